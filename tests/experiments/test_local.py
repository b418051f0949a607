"""Slots from cores and GPUs, devices shared out, compiled shapes in order, looks spread out: no worker is started."""

import io
from itertools import pairwise
from random import Random
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments import devices, published
from experiments.devices import GpuPool, visible_gpus
from experiments.launchers import Job
from experiments.launchers.settings import LocalSettings
from experiments.launchers.slots import Slots, slots_for
from experiments.lease import Claimant, release
from experiments.lock import LockedRun
from experiments.progress import Change, Running, Snapshot, change_text, panel
from experiments.shapes import CACHE, VARIABLE, Shapes, use_cache
from experiments.spread import LONGEST_WAIT, Looks
from experiments.store import RunState
from nanogpt.config import UserError


def locked(number: int, device: str = "cpu", compile: bool = False, n_layer: int = 1) -> LockedRun:
    config = {
        "model": {"n_layer": n_layer},
        "train": {"batch_size": 2, "precision": "fp32"},
        "parametrization": {},
        "optimizer": {"learning_rate": number / 1e4},
        "runtime": {"device": device, "compile": compile},
    }
    sizes = dict.fromkeys(("steps", "tokens", "flops_per_token", "n_params", "n_params_non_embedding"), 1)
    sizes |= dict.fromkeys(("n_params_active", "memory_bytes", "checkpoint_bytes"), 1)
    return LockedRun(
        id=f"{number:012x}", label=f"run={number}", factors={}, asked=str(number), config=config, flops=100.0 - number,
        parameters={}, **sizes,
    )  # fmt: skip


def runs(count: int, **how: object) -> list[LockedRun]:
    return [locked(number, **how) for number in range(count)]


@pytest.mark.parametrize(
    ("settings", "jobs", "count", "expected"),
    [
        ({}, None, 100, Slots(8, 1)),
        ({}, 2, 100, Slots(2, 4)),
        ({}, None, 2, Slots(2, 4)),
        ({"jobs": 4}, None, 100, Slots(4, 2)),
        ({"jobs": 4}, 16, 100, Slots(16, 1)),
        ({"threads": 3}, 2, 100, Slots(2, 3)),
        ({"nproc": 4}, None, 100, Slots(2, 1)),
    ],
)
def test_slots_come_from_cores_and_share_them_out(settings, jobs, count, expected):
    job = Job(LocalSettings(**settings), jobs)
    assert slots_for(job, runs(count), cores=8, gpus=["0"] * 4) == expected  # GPUs that no run uses do not count


@pytest.mark.parametrize(
    ("settings", "jobs", "gpus", "expected"),
    [
        ({}, None, 4, Slots(4, 4, 1)),
        ({"slots_per_gpu": 2}, None, 4, Slots(8, 2, 1)),
        ({"nproc": 2}, None, 4, Slots(2, 4, 2)),
        ({"nproc": 3}, None, 4, Slots(1, 5, 3)),
        ({}, 64, 4, Slots(4, 4, 1)),
        ({}, 1, 4, Slots(1, 16, 1)),
    ],
)
def test_slots_come_from_gpus_where_runs_use_them(settings, jobs, gpus, expected):
    job = Job(LocalSettings(**settings), jobs)
    assert slots_for(job, runs(9, device="cuda"), cores=16, gpus=[str(i) for i in range(gpus)]) == expected


@pytest.mark.parametrize(
    ("to_come", "device", "gpus", "expected"),
    [
        (6, "", [], Slots(6, 2)),
        (6, "cpu", ["0"], Slots(6, 2)),
        (99, "cpu", [], Slots(16, 1)),
        (6, "", ["0", "1"], Slots(2, 8, 1)),
    ],
)
def test_trials_that_are_still_to_be_proposed_have_slots(to_come, device, gpus, expected):
    assert slots_for(Job(LocalSettings()), [], cores=16, gpus=gpus, to_come=to_come, device=device) == expected


def test_a_run_that_wants_more_gpus_than_there_are_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^runtime.nproc: 4: one run wants more GPUs than there are \(2\)$"):
        slots_for(Job(LocalSettings(nproc=4)), runs(1, device="cuda"), cores=16, gpus=["0", "1"])


def test_the_gpus_are_those_given_else_those_of_the_driver_else_those_a_tool_lists(tmp_path, monkeypatch):
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:02").mkdir()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-ab,5"}, tmp_path) == ["3", "GPU-ab", "5"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    listing = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n"
    )
    answer = SimpleNamespace(returncode=0, stdout=listing)
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: answer)
    assert visible_gpus({}, tmp_path / "none") == ["0", "1"]


def test_no_gpu_holds_more_runs_than_it_may():
    pool = GpuPool(["a", "b", "c"], per_run=2, slots_per_gpu=2)
    held = []
    while pool.has_room:
        held.append(pool.take())
    assert sorted(gpu for gpus in held for gpu in gpus) == ["a", "a", "b", "b", "c", "c"]
    assert all(len(set(gpus)) == 2 for gpus in held)
    pool.give_back(held[0])
    assert pool.has_room


@pytest.fixture
def study(tmp_path):
    def make(every):
        def folder(run):
            return tmp_path / run.name

        return SimpleNamespace(path=tmp_path, runs=lambda: every, folder=folder)

    return make


def test_one_run_of_each_shape_goes_first_and_its_siblings_wait_until_it_has_logged_a_step(study):
    every = [locked(n, compile=True, n_layer=1 + n % 2) for n in range(6)]
    here, there = Shapes(study(every)), Shapes(study(every))
    ordered = here.leaders_first(every)
    assert [run.id for run in ordered] == [every[i].id for i in (0, 1, 2, 3, 4, 5)]
    first, other_shape, sibling = every[:3]
    folder = study(every).folder(first)
    folder.mkdir()
    assert here.may_start(first)
    held = Claimant().claim(folder)
    assert here.may_start(other_shape)
    assert not here.may_start(sibling)
    assert not there.may_start(sibling), "another worker sees the same files"
    (folder / "attempts" / "1").mkdir(parents=True)
    here.note_progress(first, 1)
    assert not here.may_start(sibling), "no step was logged yet"
    (folder / "attempts" / "1" / "history.jsonl").write_text('{"step": 1}\n')
    here.note_progress(first, 1)
    assert here.may_start(sibling)
    assert there.may_start(sibling)
    assert held is not None


def test_a_sibling_takes_over_when_the_first_run_of_a_shape_ends_without_a_step(study):
    first, sibling, third = every = [locked(n, compile=True) for n in range(3)]
    shapes = Shapes(study(every))
    folder = study(every).folder(first)
    folder.mkdir()
    assert shapes.may_start(first)
    held = Claimant().claim(folder)
    assert not shapes.may_start(sibling)
    release(held)
    assert shapes.may_start(sibling)
    study(every).folder(sibling).mkdir()
    Claimant().claim(study(every).folder(sibling))
    assert not shapes.may_start(third)


def test_leaders_come_before_siblings_that_are_longer(study):
    every = [locked(n, compile=True, n_layer=1 if n < 3 else 2) for n in range(5)]
    assert [run.id for run in Shapes(study(every)).leaders_first(every)] == [every[i].id for i in (0, 3, 1, 2, 4)]
    eager = runs(5)
    assert Shapes(study(eager)).leaders_first(eager) == eager


def test_only_studies_that_compile_get_a_cache_and_a_named_one_stays(study, tmp_path):
    environment: dict[str, str] = {}
    use_cache(study(runs(2)), environment)
    assert environment == {}
    use_cache(study(runs(2, compile=True)), environment)
    assert environment == {VARIABLE: str(tmp_path / CACHE)}
    environment = {VARIABLE: "/mine"}
    use_cache(study(runs(2, compile=True)), environment)
    assert environment == {VARIABLE: "/mine"}


def test_a_lone_worker_looks_at_the_longest_first():
    every = runs(20)
    assert list(Looks().in_turn(every)) == every


def test_many_workers_find_free_runs_after_few_looks_and_miss_none():
    every, taken, looks_each = runs(400), set(), []
    for number in range(400):
        looks, mine = Looks(random=Random(number)), 0
        for run in looks.in_turn(every):
            mine += 1
            if run.id not in taken:
                taken.add(run.id)
                break
            looks.held_by_others(run)
        looks_each.append(mine)
    assert len(taken) == 400, "every worker found one"
    assert sum(looks_each[:200]) / 200 < 12, "the first 200 would need 100 looks each in plain order"


def test_a_run_that_stays_held_is_looked_at_less_and_less():
    now = [0.0]
    looks, (run,) = Looks(clock=lambda: now[0]), runs(1)
    times = []
    while now[0] < 200:
        if list(looks.in_turn([run])):
            times.append(now[0])
            looks.held_by_others(run)
        now[0] += 0.5
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == [1, 2, 4, 8, 16, *[LONGEST_WAIT] * (len(gaps) - 5)]
    looks.forget(run)
    assert list(looks.in_turn([run])) == [run]


def test_workers_skip_the_runs_on_the_list_and_a_driver_takes_a_wrong_list_away(tmp_path):
    every = runs(3)
    for run in every:
        (tmp_path / run.name).mkdir()
    (tmp_path / every[0].name / "metrics.json").touch()
    published.note(tmp_path, every[0].id)
    with (tmp_path / published.NAME).open("a") as file:
        file.write("0000000000\n")  # torn
    assert published.noted(tmp_path) == {every[0].id}
    folders = {run.id: tmp_path / run.name for run in every}
    published.discard_if_wrong(tmp_path, folders)
    assert published.noted(tmp_path) == {every[0].id}
    (tmp_path / every[0].name / "metrics.json").unlink()
    published.discard_if_wrong(tmp_path, folders)
    assert published.noted(tmp_path) == set()


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("count", [3, 300])
def test_the_live_display_fits_its_terminal_whatever_the_labels_are(width, count):
    label = "n_layer=2-n_embd=32-lr=0.000948683-weight_decay=0.1-warmup_iters=10-min_lr=1e-05"
    running = [Running(f"{label}-seed={i}", i, 300, 2.5) for i in range(count)]
    snapshot = Snapshot({"completed": 7, "running": count, "missing": 5}, [], running, 50.0, 100.0, 10.0, 12.5)
    console = Console(width=width, height=24, file=io.StringIO(), force_terminal=False)
    console.print(panel(snapshot, width, 24))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= width
    assert lines[0].startswith(f"7 of {count + 12} finished, about")
    assert "12.5 s left" in lines[0]
    assert "seed=1  1/300  loss 2.500" in lines[3]
    assert (f"... and {count - 8} more" in lines[-1]) == (count == 300)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_finished_run_is_one_line(width):
    change = Change(locked(1).model_copy(update={"label": "x" * 70 + "seed=1"}), RunState("failed", 1, "out"), None)
    text = change_text(change, width)
    assert len(text) <= width
    assert text.startswith("failed ")
    assert text.endswith("seed=1  out")
