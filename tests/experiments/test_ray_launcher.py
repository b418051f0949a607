"""The ray launcher without Ray: what a node does, what a driver makes of its tasks, and what is wrong in one line."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, wait_until

from experiments import lease
from experiments.launchers import launcher_named, raycluster, raynode
from experiments.launchers.base import Job
from experiments.launchers.ray import Ray, RayWorkers, _order, _submission, record_path
from experiments.launchers.raycluster import Cluster, ask_cluster, check_room, demands
from experiments.launchers.settings import RaySettings, check_launcher
from experiments.launchers.submitted import submissions, write_submission
from experiments.lock import resolve, write_lock
from experiments.store import StudyFolder
from experiments.study import Study
from nanogpt.config import UserError

GB = 2.0**30
NODES = Cluster("2.60.0", [("head", {"CPU": 4, "memory": 8 * GB}), ("gpu", {"CPU": 16, "GPU": 2, "memory": 64 * GB})])
TASK = """import json, sys
from experiments.launchers import raynode
print(json.dumps(raynode.work(json.loads(sys.argv[1]))))
"""


@pytest.fixture
def study(fake_engine, write_study, tmp_path, monkeypatch) -> StudyFolder:
    """A locked study of one run that takes a minute unless it is stopped."""
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    folder = StudyFolder(tmp_path / "tiny")
    folder.path.mkdir()
    sweep = "{grid: {n_layer: [1]}}"
    write_lock(folder.path, resolve(Study.load(write_study(sweep, "config: {train: {max_iters: 1200}}"))))
    return folder


@pytest.fixture
def order(study) -> raynode.Order:
    submission = _submission(study.path, RaySettings())
    write_submission(study.path, submission)
    return _order(study.path, submission, Job(RaySettings()), 0)


def at_work(order: raynode.Order) -> "subprocess.Popen[str]":
    """A task of its own, as on a node, that has made a few steps."""
    task = subprocess.Popen(
        [sys.executable, "-c", TASK, json.dumps(order)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: list(Path(order["folder"]).glob("*/attempts/1/checkpoint-3.pt")))
    return task


def is_worked_on(folder: str) -> bool:
    """Whether any process of this machine still works on a results folder."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if b"worker" in words and folder.encode() in words:
            return True
    return False


def test_a_cancelled_task_lets_its_run_save_and_says_so(order, study):
    task = at_work(order)
    task.send_signal(signal.SIGINT)  # Ray interrupts the function of a cancelled task in this way
    out, _ = task.communicate(timeout=60)
    assert json.loads(out)["status"] == 75
    assert not is_worked_on(order["folder"])
    (state,) = study.states().values()
    assert state.generation == 1
    assert list(study.path.glob("*/lease.1.released"))


def test_a_task_that_is_killed_leaves_no_process_and_no_held_lease(order, study):
    task = at_work(order)
    task.kill()
    task.communicate()
    wait_until(lambda: not is_worked_on(order["folder"]), 30)
    assert list(study.path.glob("*/lease.1.released"))
    assert list(study.path.glob("*/attempts/1/outcome.json"))


def test_a_node_says_what_keeps_it_from_working(order, tmp_path):
    def said(**change: str) -> str:
        ended = raynode.work({**order, **change})
        assert ended["status"] == raynode.NO_WORKER
        assert ended["host"] in ended["problem"]
        return ended["problem"]

    assert f"does not see the results folder {tmp_path}/none: mount it" in said(folder=f"{tmp_path}/none")
    assert f"cannot write {tmp_path}/none/log" in said(log=f"{tmp_path}/none/log")


def test_a_folder_of_the_same_name_that_is_not_shared_is_noticed(order, tmp_path, monkeypatch):
    monkeypatch.setattr(raynode, "RECORD_SECONDS", 0.0)
    ended = raynode.work({**order, "record": str(tmp_path / "tiny" / "workers" / "ray-elsewhere.json")})
    assert "but not the shared one" in ended["problem"]


def test_a_node_without_the_packages_is_told_where_they_can_come_from(order, monkeypatch):
    monkeypatch.setattr(raynode.importlib.util, "find_spec", lambda name: None)
    assert "has no package `experiments` in" in raynode.work({**order, "source": None})["problem"]


def test_what_is_sent_by_value_imports_the_standard_library_alone():
    tree = ast.parse(Path(raynode.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_one_worker_gets_slots_and_threads_from_what_it_asked_for(study):
    def words(at_a_time: int | None = None, **settings: object) -> str:
        asked = RaySettings(**settings)
        return " ".join(_order(study.path, _submission(study.path, asked), Job(asked, at_a_time), 0)["arguments"])

    assert words().startswith("--slots 1 --threads 1 ")
    assert words(cpus=8).startswith("--slots 8 --threads 1 ")
    assert words(cpus=8, jobs=2).startswith("--slots 2 --threads 4 ")
    assert words(4, cpus=8, jobs=2).startswith("--slots 4 --threads 2 ")
    assert words(cpus=8, gpus=2).startswith("--slots 2 --threads 4 ")
    assert words(cpus=0.5, gpus=0.5).startswith("--slots 1 --threads 1 ")


def test_a_worker_without_gpus_sees_none_and_our_variables_travel(study, monkeypatch):
    monkeypatch.setenv("NANOGPT_DATA_DIR", "/shared/data")
    without, with_one = RaySettings(cpus=4), RaySettings(cpus=4, gpus=1)
    orders = [
        _order(study.path, _submission(study.path, each), Job(each), 0)["environment"] for each in (without, with_one)
    ]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in orders] == ["", None]
    assert [each["NANOGPT_DATA_DIR"] for each in orders] == ["/shared/data"] * 2
    assert [each["OMP_NUM_THREADS"] for each in orders] == ["1", "4"]


class StandIn(types.ModuleType):
    """As much of Ray as a driver uses; tasks are numbers, and what they bring is set by a test."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(TaskCancelledError=KeyError)
        self.brought: dict[int, object] = {}
        self.cancelled: list[tuple[int, bool]] = []

    def wait(self, tasks, num_returns, timeout, fetch_local):
        return [task for task in tasks if task in self.brought], []

    def get(self, task):
        brought = self.brought[task]
        if isinstance(brought, Exception):
            raise brought
        status, problem = brought if isinstance(brought, tuple) else (brought, "")
        return {"status": status, "host": "n1", "problem": problem}

    def cancel(self, task, force):
        self.cancelled.append((task, force))


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    ray = StandIn()
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


@pytest.fixture
def workers(stand_in, tmp_path) -> Iterator[RayWorkers]:
    """Three tasks under way."""
    submission = _submission(tmp_path, RaySettings(workers=3))
    write_submission(tmp_path, submission)
    started = RayWorkers(tmp_path, submission, [0, 1, 2])
    yield started
    stand_in.brought |= dict.fromkeys(set(range(3)) - set(stand_in.brought), 0)
    started.poll()


@pytest.mark.parametrize(
    ("brought", "status"),
    [((0, 0, 0), 0), ((0, 1, 75), 1), ((0, 75, 0), 75), ((0, (2, "n2 sees nothing"), 0), 0), ((0, -9, 0), -9)],
)
def test_the_end_of_all_workers_is_one_status(workers, stand_in, tmp_path, brought, status):
    assert workers.poll() is None
    stand_in.brought = dict(enumerate(brought))
    assert workers.poll() == status
    assert submissions(tmp_path) == []


def test_what_is_wrong_with_one_node_is_said_at_once_and_with_all_at_the_end(workers, stand_in, tmp_path, capsys):
    stand_in.brought[1] = (2, "node n2 does not see the results folder")
    assert workers.poll() is None
    assert capsys.readouterr().err == (
        "launcher: ray: node n2 does not see the results folder; the other workers go on\n"
    )
    (submission,) = submissions(tmp_path)
    assert Ray().alive(submission) == 2
    stand_in.brought |= {0: (2, "n0"), 2: RuntimeError("the environment\ncould not be made")}
    assert workers.poll() == 2
    assert workers.last_words() == [
        "node n2 does not see the results folder",
        "n0",
        "RuntimeError: the environment could not be made",
    ]


def test_cancel_reaches_a_driver_through_the_folder(workers, stand_in, tmp_path):
    (submission,) = submissions(tmp_path)
    stand_in.brought[0] = 0
    workers.poll()
    Ray().cancel(submission)
    wait_until(lambda: len(stand_in.cancelled) == 2, 20)
    assert stand_in.cancelled == [(1, False), (2, False)]
    stand_in.brought |= {1: KeyError(), 2: KeyError()}
    assert workers.poll() == 75


def test_what_a_killed_driver_submitted_is_no_longer_queued(study, command):
    mine = _submission(study.path, RaySettings(workers=3))
    write_submission(study.path, mine)
    assert {state.status for state in study.states().values()} == {"queued"}
    # Killed with SIGKILL it ends no submission; status is true all the same, and changes nothing.
    gone = replace(mine, handle={**mine.handle, "driver": {**mine.handle["driver"], "pid": 2**22 + 1}})
    write_submission(study.path, gone)
    assert {state.status for state in study.states().values()} == {"missing"}
    told = command("status", study.path, "--json").stdout
    assert [each["alive"] for each in json.loads(told)["submissions"]] == [0]
    shown = command("status", study.path).stdout
    assert "1 missing" in shown
    assert "none is left, so `run` starts others" in shown
    assert len(submissions(study.path)) == 1
    elsewhere = replace(mine, handle={**mine.handle, "driver": {**mine.handle["driver"], "machine": "another"}})
    write_submission(study.path, elsewhere)
    assert {state.status for state in study.states().values()} == {"queued"}
    os.utime(record_path(study.path, elsewhere), (1, 1))
    assert {state.status for state in study.states().values()} == {"missing"}


def test_a_submission_is_alive_as_long_as_its_driver(tmp_path):
    mine = _submission(tmp_path, RaySettings(workers=3))
    write_submission(tmp_path, mine)
    assert Ray().alive(mine) == 3
    dead = replace(mine, handle={**mine.handle, "driver": {**mine.handle["driver"], "started": "0"}})
    assert Ray().alive(dead) == 0
    elsewhere = replace(mine, handle={**mine.handle, "driver": {**mine.handle["driver"], "machine": "another"}})
    assert Ray().alive(elsewhere) == 3
    os.utime(record_path(tmp_path, mine), (time.time() - 2 * lease.STALE_SECONDS,) * 2)
    assert Ray().alive(elsewhere) == 0
    assert Ray().alive(replace(mine, handle={})) is None


def test_room_is_counted_by_node():
    def fits(**settings: object) -> int:
        return check_room(NODES, RaySettings(**settings))

    assert fits() == 20
    assert fits(cpus=4) == 5
    assert fits(cpus=4, gpus=0.5) == 4
    assert fits(memory="16G") == 4
    assert fits(cpus=32, autoscaling=True) == 0
    with pytest.raises(
        UserError, match=r"no node has 4 CPU, 100G memory for a worker; the most on one node: 16 CPU, 64G"
    ):
        fits(cpus=4, memory="100GB")


def test_a_worker_asks_for_what_the_study_says():
    assert demands(RaySettings(cpus=0.5, memory="1.5g")) == {"CPU": 0.5, "memory": 1.5 * GB}
    with pytest.raises(
        UserError, match=r"launcher\.memory: expected an amount of memory such as 500M or 8G, got 'much'"
    ):
        check_launcher({"kind": "ray", "memory": "much"})


def test_what_ray_prints_becomes_one_line():
    noise = [
        "[2026-01-01 gcs_client.cc:210: Failed: Unauthenticated: RPC error: InvalidAuthToken: missing or incorrect\n"
    ]
    assert raycluster._read_facts(noise)["error"].startswith("the cluster refused the token; RAY_AUTH_MODE=token")
    assert raycluster._read_facts(["Aborted\n"]) == {"error": "Aborted"}
    assert raycluster._read_facts([]) == {"error": "it did not answer in time"}
    answer = ["a warning\n", "\n", 'cluster: {"version": "2.60.0", "nodes": [["head", {"CPU": 2.0}]]}\n']
    assert raycluster._read_facts(answer)["nodes"] == [["head", {"CPU": 2.0}]]


def test_without_ray_the_launcher_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(raycluster, "ray_version", lambda: None)
    with pytest.raises(UserError, match=r'Ray is not installed; pip install "ray\[default\]"'):
        launcher_named("ray").start(tmp_path, Job(RaySettings()))
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_of_its_own_is_no_cluster(monkeypatch):
    monkeypatch.setattr(raycluster, "ray_version", lambda: "2.60.0")
    with pytest.raises(UserError, match="on one machine take launcher: local"):
        ask_cluster("local")


def test_every_setting_is_on_the_page():
    page = (ROOT / "docs" / "clusters.md").read_text()
    for name in set(RaySettings.model_fields) - {"kind"}:
        assert f"| `launcher.{name}` |" in page
