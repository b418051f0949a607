"""The ray launcher on a real two-node cluster: completes, cancels, survives its driver and a node. Within 2 minutes.

The loss of a node is noticed after some ten seconds, and its runs are taken over after the minute in which a lease
becomes stale. The other tests use that time: the study that loses a node is started first and looked at last.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import BASE, FAKE_ENGINE, ROOT, RayCluster, namespace, wait_until, workers_of

from experiments import lease
from experiments.launchers.ray import Ray
from experiments.launchers.submitted import submissions
from experiments.store import StudyFolder
from nanogpt.record import read_published

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def write_study(folder: Path, seeds: int, step: float, **launcher: object) -> Path:
    """A study of `seeds` runs of 20 steps each, whose engine sleeps `step` seconds a step."""
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(BASE)
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(FAKE_ENGINE)]), "FAKE_STEP_SECONDS": str(step)}
    section = {"kind": "ray", "runtime_env": {"env_vars": variables}, **launcher}
    study = folder / "tiny.yaml"
    head = "question: What?\nhypothesis: That.\nbase: base.yaml\n"
    study.write_text(f"{head}sweep: {{seeds: {seeds}}}\nlauncher: {json.dumps(section)}\n")
    return study


def states(folder: Path) -> Counter[str]:
    return Counter(state.status for state in StudyFolder(folder).states().values())


def end(process: "subprocess.Popen[str]", seconds: float = 120) -> tuple[int, str]:
    """The exit status of a driver, and what it printed."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out + err


@dataclass(frozen=True)
class Bereaved:
    """A driver whose study has lost a node in the middle of its runs."""

    driver: "subprocess.Popen[str]"
    folder: Path


@pytest.fixture(scope="module", autouse=True)
def bereaved(cluster, tmp_path_factory) -> Iterator[Bereaved]:
    """Two runs were under way, one on each node; the second node is gone now."""
    study = write_study(tmp_path_factory.mktemp("bereaved"), seeds=4, step=0.4, workers=2)
    driver, folder = cluster.run(study), study.with_suffix("")
    try:
        wait_until(lambda: len(list(folder.glob("*/attempts/1/checkpoint-3.pt"))) == 2)
        cluster.second.kill()
        yield Bereaved(driver, folder)
    finally:
        driver.kill()
        driver.communicate()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where the results of this test's study will lie."""
    return tmp_path / "tiny"


def test_cancel_saves_the_runs_and_a_second_call_goes_on(cluster, tmp_path, folder):
    driver = cluster.run(write_study(tmp_path, seeds=1, step=0.3))
    wait_until(lambda: list(folder.glob("*/attempts/1/checkpoint-2.pt")))
    (submission,) = submissions(folder)
    assert Ray().alive(submission) == 1
    subprocess.run(
        [sys.executable, "-m", "experiments", "cancel", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    status, said = end(driver)
    assert status == 1
    assert "go on with: python -m experiments run" in said
    wait_until(lambda: not workers_of(folder), 20)
    assert states(folder) <= Counter(interrupted=1, preempted=1)
    assert Ray().alive(submission) == 0
    assert submissions(folder) == []
    status, said = end(cluster.run(write_study(tmp_path, seeds=1, step=0.01)))
    assert (status, states(folder)) == (0, Counter(completed=1)), said
    (log,) = folder.glob("*/steps.log")
    assert Counter(line.split()[1] for line in log.read_text().splitlines()) == Counter(map(str, range(1, 21)))


def test_a_driver_that_is_killed_leaves_no_process_and_a_checkpoint(cluster, tmp_path, folder):
    driver = cluster.run(write_study(tmp_path, seeds=1, step=0.3))
    wait_until(lambda: list(folder.glob("*/attempts/1/checkpoint-2.pt")))
    (submission,) = submissions(folder)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not workers_of(folder), 30)
    assert list(folder.glob("*/lease.1.released"))  # the worker ended in order: nobody waits for a stale lease
    assert Ray().alive(submission) == 0
    status, said = end(cluster.run(write_study(tmp_path, seeds=1, step=0.01)))
    assert (status, states(folder)) == (0, Counter(completed=1)), said


def test_a_driver_that_is_asked_to_end_stops_its_workers_first(cluster, tmp_path, folder):
    driver = cluster.run(write_study(tmp_path, seeds=1, step=0.3))
    wait_until(lambda: list(folder.glob("*/attempts/1/checkpoint-2.pt")))
    driver.terminate()  # Ray takes this signal for itself when it connects
    status, said = end(driver)
    assert status == 130
    assert "interrupted; go on with: python -m experiments run" in said
    assert not workers_of(folder)
    assert states(folder) == Counter(interrupted=1)


WRONG = {
    "no node": ({"cpus": 64}, {}, "no node has 64 CPU for a worker; the most on one node: "),
    "token": ({}, {"RAY_AUTH_TOKEN": "0" * 64}, "the cluster refused the token; RAY_AUTH_MODE=token and the same"),
    "no token": ({}, {"RAY_AUTH_TOKEN": ""}, "and there is none; RAY_AUTH_MODE=token"),
    "no cluster": ({"address": "127.0.0.1:1"}, {}, "address '127.0.0.1:1': no cluster answers; `ray start --head`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_the_cluster_is_said_in_one_line(cluster, tmp_path, folder, case):
    launcher, environment, expected = WRONG[case]
    # Without a token in the environment Ray looks for ~/.ray/auth_token, which this machine may have.
    environment = {**cluster.environment, "HOME": str(tmp_path), **environment}
    other = RayCluster(cluster.head, cluster.second, cluster.address, environment)
    driver = other.run(write_study(tmp_path, seeds=1, step=0.01, **launcher))
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 2
    assert expected in err
    assert len(err.splitlines()) == 1
    assert submissions(folder) == []


def test_the_doctor_asks_the_cluster(cluster, tmp_path):
    study = write_study(tmp_path, seeds=1, step=0.01, workers=9)
    command = [sys.executable, "-m", "experiments", "doctor", str(study), "--out", str(tmp_path), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True)
    findings = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "ray"]
    assert done.returncode == 0, done.stdout
    assert [each["verdict"] for each in findings] == ["ok", "warning"]
    assert "of 9 workers fit at a time" in findings[1]["found"]


def test_a_node_that_does_not_see_the_results_folder_says_so(cluster, tmp_path):
    """The task itself, as it runs on a node, with a folder that only the driver has."""
    program = f"""
import ray, sys
from experiments.launchers import raynode
ray.init(address="auto", log_to_driver=False, logging_level="CRITICAL")
ray.cloudpickle.register_pickle_by_value(raynode)
order = dict(folder="{tmp_path}/elsewhere", record="", log="", arguments=[], environment={{}})
order |= dict(directory="/", source="{ROOT}")
print(ray.get(ray.remote(num_cpus=1)(raynode.work).remote(order)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=cluster.environment, capture_output=True, text=True
    )
    assert f"does not see the results folder {tmp_path}/elsewhere: mount it there at the same path" in done.stdout
    assert "'status': 2" in done.stdout


def test_a_study_outlives_a_node(bereaved):
    status, said = end(bereaved.driver)
    folder = bereaved.folder
    assert (status, states(folder)) == (0, Counter(completed=4)), said
    assert not workers_of(folder)
    (taken,) = folder.glob("*/attempts/2")
    run = taken.parent.parent
    assert read_published(run).attempts == 2
    # The attempt that followed went on from the lost one's checkpoint: no step was done twice but the one in flight.
    steps = Counter(line.split()[1] for line in (run / "steps.log").read_text().splitlines())
    assert set(steps) == set(map(str, range(1, 21)))
    assert steps.total() <= 21
    if namespace():
        lost, found = (lease.read_holder(run / f"lease.{generation}") for generation in (1, 2))
        assert lost.machine != found.machine
