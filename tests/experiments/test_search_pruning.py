"""Pruning: decisions on planted curves, verdicts written once, pruned runs finished, not retrained and out of fits.

Slow part: under half a minute.
"""

import json
import math
from pathlib import Path

import pytest

from experiments import lease
from experiments.attempt import claim
from experiments.lease import Claimant
from experiments.lock import resolve, write_lock
from experiments.outcomes import Ended, written_off
from experiments.search.pruning import Judge, threshold
from experiments.search.spec import Pruner
from experiments.search.verdicts import PRUNED_NAME, Verdict, is_pruned, read_verdict, write_verdict
from experiments.store import StudyFolder, state_of
from experiments.study import Study
from nanogpt.record import read_record, write_record

pytestmark = pytest.mark.usefixtures("fake_engine")

SPACE = "space: {learning_rate: {log: [1e-4, 1e-1]}, weight_decay: {uniform: [0, 0.3]}}"
HALVING = "pruner: {kind: successive_halving, at: [0.25, 0.5], keep: 0.5}"
LONG = "config: {max_iters: 20, eval_interval: 5}"


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def study(write_study, tmp_path) -> StudyFolder:
    """Six trials, locked but not started."""
    sweep = f"{{sampler: {{kind: random, trials: 6}}, {SPACE}, {HALVING}}}"
    folder = tmp_path / "locked"
    folder.mkdir()
    write_lock(folder, resolve(Study.load(write_study(sweep, LONG))))
    return StudyFolder(folder)


def write_history(study: StudyFolder, trial: int, losses: dict[int, float | None]) -> None:
    """A run at work that has been evaluated at these steps."""
    home = study.folder(study.runs()[trial]) / "attempts" / "1"
    home.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "train_loss": 1.0, "val_loss": loss} for step, loss in losses.items()]
    (home / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("pruner", "value", "others", "limit"),
    [
        # ASHA with eta 2: of n values the best floor(n / 2) go on, and the first ones at a rung all do.
        ({"kind": "successive_halving", "keep": 0.5}, 3.0, [], None),
        ({"kind": "successive_halving", "keep": 0.5}, 3.0, [2.0], 2.0),
        ({"kind": "successive_halving", "keep": 0.5}, 3.0, [1.0, 2.0, 4.0], 2.0),
        ({"kind": "successive_halving"}, 3.0, [1.0], None),
        ({"kind": "successive_halving"}, 3.0, [1.0, 2.0], 1.0),
        ({"kind": "successive_halving"}, 3.0, [1.0, 2.0, 4.0, 5.0, math.inf], 2.0),
        ({"kind": "median", "min_trials": 3}, 3.0, [1.0], None),
        ({"kind": "median", "min_trials": 3}, 3.0, [1.0, 2.0, 4.0, 5.0], 2.0),
        ({"kind": "percentile", "keep": 0.75, "min_trials": 2}, 3.0, [1.0, 2.0, 4.0, 5.0], 4.0),
    ],
)
def test_thresholds(pruner, value, others, limit):
    assert threshold(Pruner(at=(0.5,), **pruner), value, others) == limit


def test_planted_curves_are_judged_as_they_arrive(study):
    judge = Judge(study, study.lock.search)
    runs = study.runs()
    # Good, better, bad, crossing: the last one is ahead at the first rung and behind at the second.
    write_history(study, 0, {5: 3.0})
    assert not judge.ends(runs[0], 1)
    write_history(study, 1, {5: 2.0, 10: 1.5})
    assert not judge.ends(runs[1], 1)
    write_history(study, 2, {5: 4.0})
    assert judge.ends(runs[2], 1)
    write_history(study, 3, {5: 1.9})
    assert not judge.ends(runs[3], 1)
    write_history(study, 3, {5: 1.9, 10: 1.8})
    assert judge.ends(runs[3], 1)
    told = read_verdict(study.folder(runs[3]), 1)
    assert told == Verdict(rung=1, fraction=0.5, step=10, value=1.8, compared_with=1, compared=[1], threshold=1.5,
                           goes_on=False)  # fmt: skip
    assert (study.folder(runs[3]) / PRUNED_NAME).read_text() == (study.folder(runs[3]) / "rung.1.json").read_text()
    assert not is_pruned(study.folder(runs[1]))
    # A verdict stands: what came later does not change it, for another worker either.
    write_history(study, 0, {5: 3.0, 6: 3.0})
    assert not Judge(study, study.lock.search).ends(runs[0], 1)


def test_nothing_is_judged_before_its_evaluation(study):
    judge = Judge(study, study.lock.search)
    write_history(study, 0, {4: 9.0})
    assert not judge.ends(study.runs()[0], 1)
    assert read_verdict(study.folder(study.runs()[0]), 0) is None


def test_of_two_verdicts_the_first_stands(tmp_path):
    first = Verdict(rung=0, fraction=0.5, step=1, value=1.0, compared_with=0, compared=[], threshold=None, goes_on=True)
    assert write_verdict(tmp_path, first) == first
    assert write_verdict(tmp_path, first.model_copy(update={"goes_on": False})) == first
    assert not is_pruned(tmp_path)


def test_a_worker_that_died_after_the_verdict_leaves_a_run_that_is_published_not_trained(study):
    run = study.runs()[0]
    write_history(study, 0, {5: 3.0})
    folder = study.folder(run)
    lease.Lease(folder, 1).path.write_text("{}")
    lease.release(lease.Lease(folder, 1))
    verdict = Verdict(rung=0, fraction=0.25, step=5, value=3.0, compared_with=3, compared=[1, 2, 3], threshold=2.0,
                      goes_on=False)  # fmt: skip
    write_verdict(folder, verdict)
    assert claim(study, run, Claimant(), 1) is None
    record = read_record(folder / "metrics.json")
    assert (record.status, record.val_loss, record.steps) == ("pruned", 3.0, 5)
    assert state_of(folder).status == "pruned"


def test_a_pruned_run_is_never_shown_as_interrupted_while_its_worker_publishes_it(study):
    run = study.runs()[0]
    write_history(study, 0, {5: 3.0})
    folder = study.folder(run)
    assert Claimant().claim(folder) is not None
    record = written_off(run, folder / "attempts" / "2", 2, Ended("interrupted", None))
    generation = lease.top_generation(folder)
    (folder / "attempts" / str(generation)).mkdir(exist_ok=True)
    write_record(folder / "attempts" / str(generation) / "outcome.json", record)
    assert state_of(folder).status == "interrupted"
    verdict = Verdict(rung=0, fraction=0.25, step=5, value=3.0, compared_with=3, compared=[1, 2, 3], threshold=2.0,
                      goes_on=False)  # fmt: skip
    write_verdict(folder, verdict)
    assert state_of(folder).status == "running"
    lease.release(lease.Lease(folder, generation))
    assert state_of(folder).status == "interrupted"


@pytest.mark.slow  # budget: half a minute
def test_a_pruned_study_is_finished_and_reports_it(write_study, results, command, monkeypatch):
    monkeypatch.setenv("FAKE_LOSS", "bowl")
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.08")
    sweep = f"{{sampler: {{kind: random, trials: 8, seed: 3}}, {SPACE}, {HALVING}}}"
    study = write_study(sweep, LONG + "\nreport: {figures: [response_surface]}")
    done = command("run", study, "--out", results, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert "8 of 8 runs are finished" in done.stdout
    folder = StudyFolder(results / "tiny")
    states = folder.states()
    pruned = [run for run in folder.runs() if states[run.id].status == "pruned"]
    assert pruned
    for run in pruned:
        record = read_record(folder.folder(run) / "metrics.json")
        assert record.steps < 20
        verdict = json.loads((folder.folder(run) / PRUNED_NAME).read_text())
        assert verdict["value"] > verdict["threshold"]
        assert verdict["compared_with"] == len(verdict["compared"]) >= 1
    assert "pruned" in done.stdout
    assert "Ending trials early, the search spent" in done.stdout
    report = (results / "tiny" / "report.md").read_text()
    assert "As the best of 8 it is optimistic" in report
    assert (results / "tiny" / "figures" / "response_surface.png").exists()
    again = command("run", study, "--out", results)
    assert again.returncode == 0, again.stderr
    assert "nothing was left to do" in again.stdout
    assert not list(results.glob("tiny/*/lease.2"))


def test_pruned_runs_stay_out_of_fits():
    import pandas as pd

    from experiments.analysis.fit import fit

    table = pd.DataFrame({"id": list("abcdef"), "flops": [1e3, 2e3, 4e3, 8e3, 16e3, 16e3], "val_loss": 1.0})
    table["val_loss"] = 10 * table["flops"] ** -0.1
    table.loc[5, "val_loss"] = 99.0
    table["status"] = ["completed"] * 5 + ["pruned"]
    fitted = fit("power_law", table, bootstrap=0)
    assert len(fitted.points) == 5
    assert fitted.dropped["reason"].tolist() == ["status pruned"]
