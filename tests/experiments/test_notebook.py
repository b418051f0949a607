"""Searches and study files from Python, the handle as a notebook shows it, and Ctrl-C in a cell that waits.

Those marked slow take under a minute together.
"""

import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, wait_until

from experiments import ExperimentRunner
from experiments.glance import html, line
from experiments.lease import is_released, top_generation
from experiments.lock import resolve
from experiments.progress import Running, Snapshot
from experiments.store import StudyFolder
from experiments.study import Study
from nanogpt.config import UserError

pytestmark = pytest.mark.usefixtures("fake_engine")

SPACE = {"learning_rate": {"log": [1e-4, 1e-1]}, "weight_decay": {"uniform": [0, 0.3]}}


@pytest.fixture
def runner(write_study, tmp_path) -> ExperimentRunner:
    return ExperimentRunner(write_study().parent / "base.yaml", tmp_path / "results")


def test_a_random_search_returns_its_table(runner):
    table = runner.run_search("tuned", {"n_embd": 16}, SPACE, trials=4, seed=7, seeds=[1, 2])
    assert list(table["trial"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(table["status"]) == {"completed"}
    assert table["optimizer.learning_rate"].between(1e-4, 1e-1).all()
    again = runner.run_search("tuned", {"n_embd": 16}, SPACE, trials=4, seed=7, seeds=[1, 2])
    assert again.equals(table)


@pytest.mark.slow
def test_a_search_from_python_equals_one_from_yaml(runner, write_study):
    sweep = (
        "{grid: {n_layer: [1, 2]}, sampler: {kind: sobol, trials: 4, seed: 3}, filter: weight_decay < 0.2, "
        "space: {learning_rate: {log: [1e-4, 1e-1]}, weight_decay: {uniform: [0, 0.3]}}, "
        "pruner: {kind: median, at: [0.5]}}"
    )
    lock = resolve(Study.load(write_study(sweep, "config: {n_embd: 16, eval_interval: 1}")))
    handle = runner.run_search(
        "tiny", {"n_embd": 16, "eval_interval": 1}, SPACE, "sobol", 4, 3, {"kind": "median", "at": [0.5]},
        {"n_layer": [1, 2]}, "weight_decay < 0.2", wait=False, launcher="inprocess",
    )  # fmt: skip
    assert handle.folder.lock.search == lock.search
    assert handle.folder.lock.runs == lock.runs


@pytest.mark.slow
def test_optuna_s_trials_are_proposed_while_it_runs(runner, monkeypatch):
    pytest.importorskip("optuna", reason="optuna is not installed (the extra `hpo`)")
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    sampler = {"kind": "optuna", "optuna": {"n_startup_trials": 2}}
    handle = runner.run_search("tuned", space=SPACE, sampler=sampler, trials=4, wait=False, jobs=1)
    assert "to be proposed" in repr(handle)
    assert handle.wait() == {"completed": 4}
    assert list(handle.result()["trial"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"space": SPACE, "trials": 3, "sampler": "sobl"}, r"run_search: .*'sobl'; did you mean 'sobol'"),
        ({"space": SPACE}, "run_search: .*random needs trials: how many settings are tried"),
        ({"trials": 3}, "run_search: .*random needs a space, such as"),
        ({"space": {"learning_rat": {"log": [1, 2]}}, "trials": 3}, "space: .*did you mean 'learning_rate'"),
        ({"space": {"learning_rate": {"lg": [1, 2]}}, "trials": 3}, "run_search: .*did you mean 'log'"),
        ({"space": {"learning_rate": [1e-4, 1e-1]}, "trials": 3}, "run_search: .*space.learning_rate"),
        ({"space": SPACE, "trials": 3, "pruner": "medan"}, "run_search: .*did you mean 'median'"),
        ({"space": SPACE, "trials": 3, "pruner": "median"}, "run_search: .*expected rising fractions"),
        ({"space": SPACE, "trials": 3, "sampler": {"kind": "random", "trials": 4}}, "run_search: trials: said twice"),
        ({"space": SPACE, "trials": 3, "jobs": 0}, "run_search: jobs: expected a whole number"),
        ({"space": SPACE, "trials": 3, "launcher": "rya"}, "run_search: launcher: .*did you mean 'ray'"),
    ],
)
def test_mistakes_in_a_search_are_one_line_and_start_nothing(runner, tmp_path, asked, message):
    with pytest.raises(UserError, match=message) as error:
        runner.run_search("tuned", **asked)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "results").exists()


def test_a_study_file_is_run_at_one_of_its_sizes(write_study, tmp_path):
    study = write_study(more="sizes: {large: {config: {n_embd: 16}, sweep: {grid: {n_layer: [3]}}}}")
    runner = ExperimentRunner(output_root=tmp_path / "results")
    assert list(runner.run_study(study)["model.n_layer"]) == [1, 2]
    large = runner.run_study(study, size="large", overrides={"max_iters": 3}, jobs=1)
    assert (list(large["model.n_layer"]), list(large["steps"])) == ([3], [3])
    assert sorted(runner.load_metrics()["study"].unique()) == ["tiny", "tiny-large"]
    assert len(runner.run_study(tmp_path / "results" / "tiny")) == 2
    with pytest.raises(UserError, match="no such size 'larg'; did you mean 'large'"):
        runner.run_study(study, size="larg")
    with pytest.raises(UserError, match="is locked; give the study's YAML file"):
        runner.run_study(tmp_path / "results" / "tiny", size="large")
    with pytest.raises(UserError, match="run_study: launcher: no such launcher 'slrm'; did you mean 'slurm'"):
        runner.run_study(study, launcher="slrm")


def test_without_a_base_only_studies_can_be_run(tmp_path):
    with pytest.raises(UserError, match="run_grid: base_config_path"):
        ExperimentRunner(output_root=tmp_path).run_grid("depth")
    with pytest.raises(UserError, match="nothing has been run"):
        _ = ExperimentRunner(output_root=tmp_path).last


def test_the_handle_shows_itself(runner, monkeypatch):
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.2")
    handle = runner.run_grid("slow", grid_params={"n_layer": [1, 2, 3]}, wait=False, jobs=1)
    wait_until(lambda: handle.status().get("running") == 1)
    assert repr(handle).startswith("<StudyRun slow, working: 0 of 3 finished")
    assert repr(handle).endswith(": 1 running, 2 to go>")
    page = handle._repr_html_()
    assert "<b>slow</b>, working: 0 of 3 finished" in page
    assert "n_layer=3" in page
    handle.stop()
    assert repr(handle) == "<StudyRun slow, stopped: 0 of 3 finished: 2 to go, 1 interrupted>"
    shutil.rmtree(handle.folder.path)
    assert repr(runner.last).endswith(": 0 of 3 finished: 3 to go>")


def test_a_look_at_the_handle_takes_no_line_from_the_one_who_waits(runner, capsys):
    handle = runner.run_grid("depth", grid_params={"n_layer": [1, 2]}, wait=False)
    wait_until(lambda: "2 of 2 finished" in repr(handle))
    handle.wait(progress=True)
    assert capsys.readouterr().out.count("completed") == 2


def test_text_from_a_study_is_escaped_and_long_lists_end():
    runs = [Running(f"n<{i}", i, 10, 2.5) for i in range(30)]
    seen = Snapshot({"running": 30, "failed": 1}, [], runs, 5.0, 50.0, 10.0, 90.0, to_propose=4)
    page = html("a<b", "working", seen, ROOT)
    assert "a&lt;b" in page
    assert "n&lt;0" in page
    assert "<b>a<" not in page
    assert "... and 22 more" in page
    assert "about 1 min 30 s left" in page
    assert "to be proposed" in page
    assert line("a", "working", seen) == (
        "<StudyRun a, working: 0 of 35 finished, about 1 min 30 s left: 30 running, 1 failed, 4 to be proposed>"
    )


SCRIPT = """
import sys
from experiments import ExperimentRunner
runner = ExperimentRunner({base!r}, {root!r})
try:
    runner.run_grid("slow", grid_params={{"n_layer": [1, 2]}}, jobs=1)
except KeyboardInterrupt:
    print("caught", runner.last.status(), flush=True)
sys.stdin.readline()
import os
os.environ["FAKE_STEP_SECONDS"] = "0.001"
print("resumed", runner.last.resume().wait(), flush=True)
"""


def test_ctrl_c_in_a_cell_that_waits_saves_releases_and_resumes(write_study, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.3")
    script = SCRIPT.format(base=str(write_study().parent / "base.yaml"), root=str(tmp_path / "results"))
    cell = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("results/slow/*/attempts/1/checkpoint-2.pt")))
    cell.send_signal(signal.SIGINT)
    caught = next(row for row in cell.stdout if row.startswith("caught"))
    assert "'interrupted': 1" in caught
    assert "'missing': 1" in caught
    study = StudyFolder(tmp_path / "results" / "slow")
    held = [folder for folder in study.folders().values() if top_generation(folder)]
    assert len(held) == 1
    assert is_released(held[0], 1)
    out, said = cell.communicate("\n", timeout=120)
    assert "resumed {'completed': 2}" in out
    assert "runner.last.resume(), goes on" in said
    steps = [row.split()[1] for row in (held[0] / "steps.log").read_text().splitlines()]
    assert sorted(set(steps)) == sorted(steps) == ["1", "2", "3", "4", "5"]
