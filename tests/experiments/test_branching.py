"""WSD trunks trained once by workers: bit-equal to runs from scratch, in the right order, tidied up, and recorded.

Slow part: about half a minute.
"""

import pytest

from experiments.branching import Branching, Start
from experiments.lock import resolve, write_lock
from experiments.queue import Queue
from experiments.results import load
from experiments.store import StudyFolder, published_record
from experiments.study import Study
from nanogpt.record import read_history

LINE = ("step", "tokens", "flops", "train_loss", "val_loss", "learning_rate", "grad_norm")
MODEL = "model: {n_layer: 1, n_head: 2, block_size: 16}, train: {batch_size: 4, precision: fp32, eval_interval: 4}"
CORPUS = "data: {corpus: {kind: zipf_mixture, alphabet_size: 32, train_tokens: 65536, val_tokens: 2048}}"


def section(more: str = "") -> str:
    schedule = "schedule: {kind: wsd, warmup_iters: 2, cooldown: 0.25}"
    return f"config: {{{MODEL}, {CORPUS}, {schedule}, runtime: {{device: cpu, threads: 1, log_interval: 3{more}}}}}"


@pytest.fixture
def trained(write_study, command, tmp_path):
    """Run a study of two sizes and three horizons with the real engine; returns its folder."""

    def run(name, more="", *flags):
        path = write_study("{grid: {n_embd: [8, 12], max_iters: [16, 24, 40]}}", section(more), name=name)
        done = command("run", path, "--no-report", "--out", tmp_path / "results", *flags)
        assert done.returncode == 0, done.stderr
        return StudyFolder(tmp_path / "results" / name)

    return run


@pytest.mark.slow  # budget: half a minute
def test_runs_on_a_shared_trunk_equal_runs_from_scratch(trained):
    alone = trained("alone", ", share_trunk: false")
    told = {}
    for name, flags in {"two": ("--jobs", "2"), "here": ("--launcher", "inprocess")}.items():
        shared = trained(name, "", *flags)
        for run, other in zip(shared.runs(), alone.runs(), strict=True):
            record, scratch = (published_record(study.folder(each)) for study, each in ((shared, run), (alone, other)))
            assert record is not None
            assert scratch is not None
            assert (record.id, record.val_loss, record.flops) == (scratch.id, scratch.val_loss, scratch.flops)
            assert history(shared, run) == history(alone, other)
            assert "branched_from" not in scratch.environment
            told[run.steps] = record.environment.get("branched_from")
            assert len(list(shared.folder(run).glob("attempts/*/checkpoint-*.pt"))) <= 2
        assert told[40] is None
        for steps in (16, 24):
            assert told[steps]["step"] == steps * 3 // 4
            assert "max_iters=40" in told[steps]["checkpoint"]
    assert len(load(shared)) == 6


def history(study, run):
    return [tuple(line.get(key) for key in LINE) for line in read_history(study.folder(run) / "history.jsonl")]


@pytest.fixture
def planned(write_study, tmp_path):
    """A locked study of one size and three horizons, of which nothing is trained."""

    def make(more=""):
        folder = tmp_path / "results" / "tiny"
        folder.mkdir(parents=True)
        sweep = "{grid: {max_iters: [16, 24, 40]}}"
        write_lock(folder, resolve(Study.load(write_study(sweep, f"config: {{schedule: {{kind: wsd}}{more}}}"))))
        study = StudyFolder(folder)
        return study, {run.steps: run for run in study.runs()}

    return make


def save(study, run, *steps):
    """Checkpoints as the engine leaves them, and the config of an attempt."""
    home = study.folder(run) / "attempts" / "1"
    home.mkdir(parents=True, exist_ok=True)
    for step in steps:
        (home / f"checkpoint-{step:08d}.pt").touch()
        (home / f"checkpoint-{step:08d}.pt.sha256").touch()


def saved(study, run):
    return sorted(int(path.stem.partition("-")[2]) for path in study.folder(run).glob("attempts/*/*.pt"))


@pytest.mark.usefixtures("fake_engine")
def test_a_run_waits_for_the_one_that_trains_its_trunk(planned):
    study, runs = planned()
    branching, left = Branching(study), {run.id for run in runs.values()}
    assert branching.start(runs[40]) == Start(None, (13, 19))
    assert branching.may_start(runs[40], left)
    assert not branching.may_start(runs[16], left)
    save(study, runs[40], 13)
    assert branching.may_start(runs[16], left)
    assert branching.start(runs[16]) == Start(study.folder(runs[40]), ())
    assert not branching.may_start(runs[24], left)
    assert branching.start(runs[24]) == Start(study.folder(runs[40]), (13,))  # better than nothing


@pytest.mark.usefixtures("fake_engine")
def test_nobody_waits_for_a_run_that_is_not_to_be_trained(planned):
    study, runs = planned()
    branching = Branching(study)
    assert branching.may_start(runs[24], {runs[16].id, runs[24].id})
    assert not branching.may_start(runs[16], {runs[16].id, runs[24].id})  # which is the trunk now
    save(study, runs[16], 5)  # its own
    assert branching.may_start(runs[16], {runs[24].id})
    queue = Queue(study)
    queue.drop(runs[40])
    assert queue.wants(runs[24])


@pytest.mark.usefixtures("fake_engine")
@pytest.mark.parametrize("more", [
    ", runtime: {share_trunk: false}", ", runtime: {checkpoint: never}",
    ", parametrization: {weight_decay_rule: tau_epoch}",
])  # fmt: skip
def test_who_cannot_share_is_left_alone(planned, more):
    study, runs = planned(more)
    branching = Branching(study)
    save(study, runs[40], 13)
    assert all(branching.may_start(run, {each.id for each in runs.values()}) for run in runs.values())
    assert {branching.start(run) for run in runs.values()} == {Start()}


@pytest.mark.usefixtures("fake_engine")
def test_a_trunk_of_other_threads_is_not_taken(planned):
    study, runs = planned()
    save(study, runs[40], 13)
    text = "runtime: {threads: 3}\n"
    (study.folder(runs[40]) / "config.yaml").write_text(text)
    assert Branching(study).start(runs[16]).trunk is None
    (study.folder(runs[16])).mkdir()
    (study.folder(runs[16]) / "config.yaml").write_text(text)
    assert Branching(study).start(runs[16]).trunk == study.folder(runs[40])


@pytest.mark.usefixtures("fake_engine")
def test_what_was_kept_for_others_goes_once_all_are_finished(planned, command):
    study, runs = planned()
    save(study, runs[40], 13, 19, 30, 39, 40)
    Branching(study).tidy(runs[40])
    assert saved(study, runs[40]) == [13, 19, 30, 39, 40]
    assert command("run", study.path, "--no-report").returncode == 0
    assert {13, 19}.isdisjoint(saved(study, runs[40]))
