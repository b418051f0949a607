"""Optuna's pruners: verdicts as files, the same that optuna's own ask and tell gives on the same curves.

Those marked slow take under a minute together.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until

from experiments.lock import LockedRun, resolve, write_lock
from experiments.outcomes import Ended, written_off
from experiments.search.pruning import Judge
from experiments.search.verdicts import read_verdict
from experiments.store import StudyFolder
from experiments.study import Study
from nanogpt.config import UserError
from nanogpt.record import read_record, write_record

pytestmark = pytest.mark.usefixtures("fake_engine")

SPACE = "space: {learning_rate: {log: [1e-4, 1e-1]}, weight_decay: {uniform: [0, 0.3]}}"
LONG = "config: {max_iters: 20, eval_interval: 1}"
AT = [0.05, 0.15, 0.45, 0.9]  # steps 1, 3, 9 and 18 of 20
TRIALS = 24


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="optuna is not installed (the extra `hpo`)")


def sweep(settings: str, trials: int = TRIALS, sampler: str = "random", at: object = AT) -> str:
    pruner = f"pruner: {{kind: optuna, at: {at}, optuna: {settings}}}"
    return f"{{sampler: {{kind: {sampler}, trials: {trials}}}, {SPACE}, {pruner}}}"


def locked(path: Path, study: Path) -> StudyFolder:
    path.mkdir()
    write_lock(path, resolve(Study.load(study)))
    return StudyFolder(path)


def curve(trial: int) -> dict[int, float]:
    """Step -> loss: falls to a level that differs from trial to trial, with noise that lets some of them cross."""
    noise = random.Random(trial)
    level = noise.uniform(2, 4)
    return {step: level + 2 / step + noise.uniform(0, 0.6) for step in range(1, 21)}


def evaluate(study: StudyFolder, run: LockedRun, losses: Mapping[int, float]) -> None:
    home = study.folder(run) / "attempts" / "1"
    home.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "train_loss": 1.0, "val_loss": loss} for step, loss in losses.items()]
    (home / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def finish(study: StudyFolder, run: LockedRun, status: str, loss: float) -> None:
    home = study.folder(run) / "attempts" / "1"
    record = written_off(run, home, 1, Ended("interrupted", None))
    write_record(study.folder(run) / "metrics.json", record.model_copy(update={"status": status, "val_loss": loss}))


def ours(study: StudyFolder) -> dict[int, int | None]:
    """Trial -> the rung that ended it, one trial after the other."""
    ended: dict[int, int | None] = {}
    for trial, run in enumerate(study.runs()):
        # A worker of its own for each: what it knows comes from the files.
        judge, losses = Judge(study, study.lock.search), curve(trial)
        ended[trial] = None
        for rung, step in enumerate((1, 3, 9, 18)):
            evaluate(study, run, {at: losses[at] for at in range(1, step + 1)})
            if judge.ends(run, 1):
                ended[trial] = rung
                break
        last = losses[20] if ended[trial] is None else losses[(1, 3, 9, 18)[ended[trial] or 0]]
        finish(study, run, "completed" if ended[trial] is None else "pruned", last)
    return ended


def optuna_s(optuna: Any, pruner: Any, name: str) -> dict[int, int | None]:
    """The same by optuna alone, as its manual says."""
    study = optuna.create_study(direction="minimize", pruner=pruner, study_name=name)
    ended: dict[int, int | None] = {}
    for number in range(TRIALS):
        trial, losses = study.ask(), curve(number)
        ended[number] = None
        for rung, step in enumerate((1, 3, 9, 18)):
            trial.report(losses[step], round(100 * AT[rung]))
            if trial.should_prune():
                ended[number] = rung
                break
        if ended[number] is None:
            trial.report(losses[20], 100)
            study.tell(trial, losses[20])
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return ended


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ("{pruner: median, n_startup_trials: 3}", lambda p: p.MedianPruner(n_startup_trials=3)),
        ("{pruner: percentile, percentile: 30}", lambda p: p.PercentilePruner(30)),
        ("{pruner: successive_halving, reduction_factor: 3}",
         lambda p: p.SuccessiveHalvingPruner(min_resource=5, reduction_factor=3)),
        ("{pruner: hyperband, reduction_factor: 3}",
         lambda p: p.HyperbandPruner(min_resource=5, max_resource=100, reduction_factor=3)),
        ("{pruner: threshold, upper: 4.0, n_warmup_steps: 15}",
         lambda p: p.ThresholdPruner(upper=4.0, n_warmup_steps=15)),
        ("{pruner: patient, patience: 0, min_delta: 0.1}", lambda p: p.PatientPruner(None, 0, 0.1)),
        ("{pruner: patient, patience: 0, wrapped_pruner: {pruner: median, n_startup_trials: 2}}",
         lambda p: p.PatientPruner(p.MedianPruner(n_startup_trials=2), 0)),
    ],
)  # fmt: skip
def test_verdicts_are_those_of_optuna_s_own_loop(optuna, write_study, tmp_path, settings, make):
    study = locked(tmp_path / "locked", write_study(sweep(settings), LONG))
    found = ours(study)
    expected = optuna_s(optuna, make(optuna.pruners), f"{study.lock.search.hash}/0")
    assert found == expected
    if "patience: 0, min_delta" not in settings:
        assert len(set(found.values())) > 1, "these curves must tell the pruner's verdicts apart"


def test_a_verdict_can_be_made_again_from_the_files(optuna, write_study, tmp_path):
    study = locked(tmp_path / "locked", write_study(sweep("{pruner: successive_halving}", 12), LONG))
    ours(study)
    run = study.runs()[-1]  # which sees now what it saw then; the earlier ones would see later trials as well
    written = [read_verdict(study.folder(run), rung) for rung in range(4)]
    for path in (*study.folder(run).glob("rung.*.json"), study.folder(run) / "metrics.json"):
        path.unlink()
    (study.folder(run) / "pruned.json").unlink(missing_ok=True)
    Judge(study, study.lock.search).ends(run, 1)
    assert [read_verdict(study.folder(run), rung) for rung in range(4)] == written
    assert written[0] is not None
    assert written[0].finished == list(range(11))
    assert written[0].state


def test_runs_of_another_cell_or_seed_are_not_compared(optuna, write_study, tmp_path):
    text = sweep("{pruner: median, n_startup_trials: 1}", 3)
    text = text.replace("{sampler", "{grid: {n_layer: [1, 2]}, seeds: 2, sampler", 1)
    study = locked(tmp_path / "locked", write_study(text, LONG))
    for run in study.runs():
        evaluate(study, run, {1: 3.0 - run.trial / 100})
        assert not Judge(study, study.lock.search).ends(run, 1)
        finish(study, run, "completed", 3.0)
    last = study.runs()[-1]
    verdict = read_verdict(study.folder(last), 0)
    assert [study.lock.search.cell(trial) for trial in verdict.finished] == [study.lock.search.cell(last.trial)] * 2


@pytest.mark.slow  # budget: half a minute
def test_a_search_is_pruned_by_the_child_that_proposes(optuna, write_study, tmp_path, command, monkeypatch):
    monkeypatch.setenv("FAKE_LOSS", "bowl")
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.1")
    text = sweep("{pruner: median, n_startup_trials: 2}", 8, "optuna", [0.1, 0.3])
    done = command("run", write_study(text, LONG), "--out", tmp_path / "results", "--no-report", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    study = StudyFolder(tmp_path / "results" / "tiny")
    states = study.states()
    pruned = [run for run in study.runs() if states[run.id].status == "pruned"]
    assert pruned
    for run in pruned:
        record = read_record(study.folder(run) / "metrics.json")
        verdict = json.loads((study.folder(run) / "pruned.json").read_text())
        assert record.steps < 20
        assert len(verdict["finished"]) >= 2
    assert "nothing was left to do" in command("run", tmp_path / "results" / "tiny", "--no-report").stdout


@pytest.mark.slow
def test_a_random_search_has_optuna_s_pruners_too(optuna, write_study, tmp_path, command, monkeypatch):
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.15")
    text = sweep("{pruner: threshold, upper: 0.5}", 4, at=[0.1])
    done = command("run", write_study(text, LONG), "--out", tmp_path / "results", "--no-report", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    study = StudyFolder(tmp_path / "results" / "tiny")
    statuses = [state.status for state in study.states().values()]
    assert statuses[-1] == "pruned"  # on a loaded machine the first ones may end before optuna has been loaded
    assert set(statuses) <= {"pruned", "completed"}


@pytest.mark.parametrize(
    ("settings", "at", "message"),
    [
        ("{pruner: hyberband}", AT, "no such pruner 'hyberband'; did you mean 'hyperband'"),
        ("{}", AT, "optuna.pruner: is missing; one of median"),
        ("{pruner: wilcoxon}", AT, "the losses along one run are not"),
        ("{pruner: median, n_startup: 3}", AT, "median has no setting 'n_startup'; did you mean 'n_startup_trials'"),
        ("{pruner: percentile}", AT, "percentile: .*missing"),
        ("{pruner: percentile, percentile: 130}", AT, "between 0 and 100"),
        ("{pruner: hyperband, reduction_factor: many}", AT, "sweep.pruner.optuna: TypeError"),
        ("{pruner: patient, patience: 1, wrapped_pruner: {pruner: medan}}", AT, "did you mean 'median'"),
        ("{pruner: median}", [0.101, 0.102], r"whole percents of the horizon, which these are not: \[10, 10\]"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(optuna, write_study, settings, at, message):
    with pytest.raises(UserError, match=message) as error:
        resolve(Study.load(write_study(sweep(settings, 3, at=at), LONG)))
    assert "\n" not in str(error.value)


def test_our_own_settings_mean_nothing_to_optuna_s_pruners_and_theirs_nothing_to_ours(write_study):
    own = f"{{sampler: {{kind: random, trials: 3}}, {SPACE}, pruner: {{kind: median, at: 0.5, optuna: {{a: 1}}}}}}"
    with pytest.raises(UserError, match="the settings under optuna mean nothing to median"):
        Study.load(write_study(own))
    theirs = sweep("{pruner: median}, keep: 0.5")
    with pytest.raises(UserError, match="give them under optuna, not keep, min_trials"):
        Study.load(write_study(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["{kind: median, at: 0.1, min_trials: 2}", "optuna"])
def test_the_inprocess_launcher_prunes(optuna, write_study, tmp_path, monkeypatch, pruner):
    from experiments.__main__ import main

    monkeypatch.setenv("FAKE_LOSS", "bowl")
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    theirs = "{kind: optuna, at: [0.1], optuna: {pruner: median, n_startup_trials: 1}}"
    chosen = theirs if pruner == "optuna" else pruner
    text = f"{{sampler: {{kind: random, trials: 6, seed: 3}}, {SPACE}, pruner: {chosen}}}"
    study = write_study(text, LONG)
    out = tmp_path / "results"
    assert main(["run", str(study), "--out", str(out), "--launcher", "inprocess", "--no-report"]) == 0
    folder = StudyFolder(out / "tiny")
    pruned = [run for run in folder.runs() if folder.states()[run.id].status == "pruned"]
    assert pruned
    assert all(read_record(folder.folder(run) / "metrics.json").steps < 20 for run in pruned)
    wait_until(lambda: all(read_verdict(folder.folder(run), 0) is not None for run in folder.runs()))
