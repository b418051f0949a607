"""Trials as files: proposers that race agree, nothing is proposed twice after a kill, and what a sampler is told.

Those marked slow take under a minute together.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from statistics import median

import pytest
from conftest import ROOT, wait_until

from experiments.lock import resolve, write_lock
from experiments.search.trials import Trial, publish_trial, read_trial, trial_path
from experiments.store import StudyFolder
from experiments.study import Study
from nanogpt.config import UserError
from nanogpt.record import read_record

pytestmark = pytest.mark.usefixtures("fake_engine")

SPACE = "space: {learning_rate: {log: [1e-4, 1e-1]}, weight_decay: {uniform: [0, 0.3]}}"
LONG = "config: {max_iters: 20, eval_interval: 5}"


def tpe(trials: int, more: str = "") -> str:
    return f"{{sampler: {{kind: optuna, trials: {trials}, optuna: {{n_startup_trials: 5}}}}, {SPACE}{more}}}"


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="optuna is not installed (the extra `hpo`)")


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results"


def locked(write_study, results, sweep: str, more: str = LONG) -> StudyFolder:
    lock = resolve(Study.load(write_study(sweep, more)))
    results.mkdir(exist_ok=True)
    write_lock(results, lock)
    return StudyFolder(results)


def trial(number: int, rate: float) -> Trial:
    return Trial(trial=number, search="x", sampler="tpe", seed=0, settings={"learning_rate": rate})


def test_of_many_proposers_of_one_trial_one_wins_and_all_agree(tmp_path):
    found: list[Trial] = []
    start = threading.Barrier(8)

    def propose(rate: float) -> None:
        start.wait()
        found.extend(publish_trial(tmp_path, trial(number, rate)) for number in range(20))

    threads = [threading.Thread(target=propose, args=(float(k),)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(20):
        (winner,) = {one.settings["learning_rate"] for one in found if one.trial == number}
        assert read_trial(trial_path(tmp_path, number)).settings["learning_rate"] == winner
    assert len(list((tmp_path / "trials").iterdir())) == 20  # no drafts are left


def test_two_proposing_processes_share_one_search(optuna, write_study, results):
    study = locked(write_study, results, tpe(10))
    command = [sys.executable, "-m", "experiments", "propose", str(results), "--waiting", "10"]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(racer.communicate(timeout=120)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sum(answer["published"] for answer in answers) == 10
    assert list(study.trials.all()) == list(range(10))
    assert len({run.id for run in study.runs()}) == 10


@pytest.mark.slow  # budget: half a minute
def test_a_trial_can_be_asked_again_from_what_its_sampler_was_told(optuna, write_study, results, command, monkeypatch):
    from experiments.search.asktell import ask
    from experiments.search.outcomes import outcome_of
    from experiments.search.propose import told_of

    monkeypatch.setenv("FAKE_LOSS", "bowl")
    study = write_study(tpe(9), LONG)
    assert command("run", study, "--out", results, "--no-report", "--jobs", "1").returncode == 0
    folder = StudyFolder(results / "tiny")
    search, trials = folder.lock.search, list(folder.trials.all().values())
    assert [trial.trial for trial in trials] == list(range(9))
    assert all(trial.told == list(range(trial.trial)) for trial in trials)
    outcomes = {trial.trial: outcome_of(folder, trial.runs, search.pruner) for trial in trials}
    assert all(outcome.state == "completed" for outcome in outcomes.values())
    for trial in trials:
        again = ask(search, 0, told_of(trials[: trial.trial], outcomes))
        assert again.settings == trial.settings


@pytest.mark.slow
def test_tpe_finds_the_region_of_a_planted_optimum(optuna, write_study, results, command, monkeypatch):
    monkeypatch.setenv("FAKE_LOSS", "bowl")
    study = write_study(tpe(30), LONG)
    done = command("run", study, "--out", results, "--no-report", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert "30 of 30 runs are finished" in done.stdout
    folder = StudyFolder(results / "tiny")
    losses = [read_record(folder.folder(run) / "metrics.json").val_loss for run in folder.runs()]
    best = min(folder.runs(), key=lambda run: losses[run.trial])
    assert best.config["optimizer"]["learning_rate"] == pytest.approx(1e-2, rel=0.8)
    # It learns: its later trials are better than those that it drew at random.
    assert median(losses[15:]) < median(losses[:5]) - 0.1


@pytest.mark.slow
def test_a_killed_search_goes_on_and_proposes_nothing_twice(optuna, write_study, results, command, monkeypatch):
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    study = write_study(tpe(6), LONG)
    line = [sys.executable, "-m", "experiments", "run", str(study), "--out", str(results), "--no-report", "--jobs", "2"]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(results.glob("tiny/*/attempts/1/checkpoint-3.pt")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.read_text() for path in (results / "tiny" / "trials").glob("*.json")}
    assert before
    wait_until(lambda: not _at_work(results))
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.001")
    done = command("run", study, "--out", results, "--no-report", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    after = {path.name: path.read_text() for path in (results / "tiny" / "trials").glob("*.json")}
    assert {name: after[name] for name in before} == before
    assert sorted(after) == sorted(f"{k}.json" for k in range(6))
    for log in results.glob("tiny/*/steps.log"):
        assert len({line.split()[1] for line in log.read_text().splitlines()}) == 20
    assert len(list(results.glob("tiny/*/metrics.json"))) == 6
    again = command("run", study, "--out", results, "--no-report")
    assert "nothing was left to do" in again.stdout


def _at_work(results: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(results).encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_refused_proposals_are_files_too_and_are_told(optuna, write_study, results, command):
    sweep = "{sampler: {kind: optuna, trials: 4}, space: {n_head: {int: [1, 4]}, learning_rate: {log: [1e-4, 1e-1]}}}"
    study = write_study(sweep)
    assert command("run", study, "--out", results, "--no-report").returncode == 0
    folder = StudyFolder(results / "tiny")
    refused = folder.refused()
    assert len(folder.runs()) == 4
    for one in refused:
        assert "n_embd=8 is not divisible by n_head=3" in one.reason
    status = command("status", results / "tiny").stdout
    assert "4 completed" in status
    assert ("refused and replaced" in status) == bool(refused)


@pytest.mark.slow
def test_the_cost_of_what_is_not_proposed_is_not_said_to_be_nothing(optuna, write_study, results, command):
    planned = command("plan", write_study(tpe(3)), "--out", results).stdout
    assert "0 (3 trials to propose)" in planned
    assert "what they cost is known once they are proposed" in planned
    assert "0 FLOP" not in planned
    folder = locked(write_study, results, tpe(3))
    assert "no runs yet" in command("status", folder.path).stdout


@pytest.mark.slow  # budget: half a minute
def test_the_proposals_of_another_space_are_not_mixed_in(optuna, write_study, results, command):
    study = write_study(tpe(2))
    assert command("run", study, "--out", results, "--no-report").returncode == 0
    more = write_study(tpe(3))
    assert command("run", more, "--out", results, "--no-report").returncode == 0
    assert len(StudyFolder(results / "tiny").trials.all()) == 3
    other = write_study(tpe(3).replace("1e-1", "1e-2"))
    refused = command("run", other, "--out", results, "--no-report")
    assert refused.returncode == 2
    assert "3 proposals are of another search" in refused.stderr


def test_optuna_s_mistakes_are_one_line(optuna, write_study):
    sweep = f"{{sampler: {{kind: optuna, trials: 3, optuna: {{n_startup: 5}}}}, {SPACE}}}"
    with pytest.raises(UserError, match="tpe has no setting 'n_startup'; did you mean 'n_startup_trials'") as error:
        resolve(Study.load(write_study(sweep)))
    assert "\n" not in str(error.value)


def test_a_setting_that_optuna_breaks_at_only_later_is_refused_before_anything_is_written(optuna, write_study):
    sweep = f"{{sampler: {{kind: optuna, trials: 3, optuna: {{n_startup_trials: x}}}}, {SPACE}}}"
    with pytest.raises(UserError, match="optuna breaks with") as error:
        resolve(Study.load(write_study(sweep)))
    assert "\n" not in str(error.value)


def test_without_optuna_one_line_says_what_to_install(write_study, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"optuna is not installed; pip install 'nanogpt-scaling\[hpo\]'"):
        resolve(Study.load(write_study(tpe(3))))


@pytest.mark.parametrize("name", ["cmaes", "gp"])
def test_other_samplers_propose_within_bounds(optuna, write_study, results, name):
    pytest.importorskip({"cmaes": "cmaes", "gp": "torch"}[name])
    from experiments.search.asktell import Told, ask

    sweep = f"{{sampler: {{kind: optuna, trials: 9, optuna: {{sampler: {name}}}}}, {SPACE}}}"
    search = Study.load(write_study(sweep)).search()
    told: list[Told] = []
    for _ in range(7 if name == "cmaes" else 3):
        asked = ask(search, 0, told)
        assert ask(search, 0, told).settings == asked.settings
        assert 1e-4 <= asked.settings["learning_rate"] <= 1e-1
        told.append(Told(asked.settings, value=abs(asked.settings["weight_decay"] - 0.1), state=asked.state))
    assert len({trial.settings["weight_decay"] for trial in told}) == len(told)


@pytest.mark.slow
def test_trials_of_a_search_have_their_number_in_every_view(write_study, results, command):
    sweep = f"{{sampler: {{kind: random, trials: 3}}, {SPACE}}}"
    study = write_study(sweep)
    assert "3 missing" in command("plan", study, "--out", results).stdout
    assert not os.path.exists(results)
    assert command("run", study, "--out", results, "--no-report").returncode == 0
    rows = json.loads(command("status", results / "tiny", "--json").stdout)["runs"]
    assert [row["trial"] for row in rows] == [0, 1, 2]
    table = command("results", results / "tiny", "--csv").stdout.splitlines()
    assert "trial" in table[0].split(",")


def test_where_runs_are_trained_does_not_make_another_search(write_study):
    one = Study.load(write_study(tpe(3))).search()
    assert Study.load(write_study(tpe(9), "config: {threads: 3}")).search().hash == one.hash
    assert Study.load(write_study(tpe(3), "config: {n_layer: 2}")).search().hash != one.hash
    assert one.model_copy(update={"data": ["0" * 64]}).hash != one.hash
