"""`ExperimentRunner`, progress and tables, as a notebook meets them.

Slow part: about half a minute.
"""

import io
import json

import pytest
from conftest import ROOT, wait_until

from experiments import ExperimentRunner
from experiments.progress import Change, Observer, Plain, Snapshot, duration, last_line, summary_text
from experiments.results import best_row, load, load_curves
from experiments.runner import prepare
from experiments.study import Study
from nanogpt.config import UserError

pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.fixture
def runner(write_study, tmp_path) -> ExperimentRunner:
    return ExperimentRunner(base_config_path=write_study().parent / "base.yaml", output_root=tmp_path / "results")


def test_run_grid_returns_the_table_of_its_runs(runner, tmp_path):
    table = runner.run_grid(
        grid_name="depth", base_params={"n_embd": 16, "use_rope": True}, grid_params={"n_layer": [1, 2]}, seeds=[1, 2]
    )
    assert list(table["model.n_layer"]) == [1, 1, 2, 2]
    assert list(table["seed"]) == [1, 2, 1, 2]
    assert set(table["status"]) == {"completed"}
    assert (table["n_params"] == 12 * table["model.n_layer"] * 16**2).all()
    assert (table["tokens"] == 5 * 2 * 8).all()
    assert best_row(table)["model.n_layer"] == 2
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["depth"]


def test_a_second_call_starts_nothing(runner, tmp_path, monkeypatch):
    first = runner.run_grid(grid_name="depth", grid_params={"n_layer": [1, 2]})
    monkeypatch.setenv("NANOGPT_ENGINE", "no_such_engine")
    second = runner.run_grid(grid_name="depth", grid_params={"n_layer": [1, 2]})
    assert first.equals(second)
    assert len(list((tmp_path / "results" / "depth" / "workers").glob("*.log"))) == 1


def test_without_waiting_one_gets_a_handle(runner, monkeypatch):
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.2")
    handle = runner.run_grid(grid_name="slow", grid_params={"n_layer": [1, 2, 3]}, wait=False, jobs=1)
    wait_until(lambda: handle.status().get("running") == 1)
    assert handle.is_working
    assert handle.progress().states == {"running": 1, "missing": 2}
    assert [each.label for each in handle.progress().running] == ["n_layer=3"]
    handle.stop()
    assert not handle.is_working
    assert handle.status()["interrupted"] == 1
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.001")
    again = runner.run_grid(grid_name="slow", grid_params={"n_layer": [1, 2, 3]}, wait=False)
    assert again.wait() == {"completed": 3}
    assert set(again.result()["status"]) == {"completed"}


def test_the_launcher_is_a_name_or_settings(runner):
    grid = {"grid_name": "depth", "grid_params": {"n_layer": [1]}}
    assert set(runner.run_grid(**grid, launcher="inprocess")["status"]) == {"completed"}
    runner.run_grid(**grid, launcher={"kind": "local", "jobs": 1}, supervise={"time_limit": "1h"})
    with pytest.raises(UserError, match="run_grid: launcher: no such launcher 'locl'; did you mean 'local'"):
        runner.run_grid(**grid, launcher="locl")
    with pytest.raises(UserError, match=r"run_grid: launcher\.workers: no such key"):
        runner.run_grid(**grid, launcher={"kind": "local", "workers": 1})


def test_metrics_are_loaded_by_exact_name(runner):
    runner.run_grid(grid_name="depth", grid_params={"n_layer": [1]})
    runner.run_grid(grid_name="depth_2", grid_params={"n_layer": [1, 2]})
    assert len(runner.load_metrics("depth")) == 1
    assert list(runner.load_metrics()["study"]) == ["depth", "depth_2", "depth_2"]
    with pytest.raises(UserError, match=r"no study\.lock\.json here"):
        runner.load_metrics("dept")


def test_a_smaller_grid_of_the_same_name_has_only_its_own_runs(runner):
    runner.run_grid(grid_name="depth", grid_params={"n_layer": [1, 2]})
    assert list(runner.run_grid(grid_name="depth", grid_params={"n_layer": [2]})["model.n_layer"]) == [2]


def test_an_invalid_run_starts_nothing(runner, tmp_path):
    with pytest.raises(UserError, match="n_layr: no such key; did you mean 'n_layer'"):
        runner.run_grid(grid_name="depth", grid_params={"n_layr": [1]})
    with pytest.raises(UserError, match="n_embd=8 is not divisible by n_head=3"):
        runner.run_grid(grid_name="depth", grid_params={"n_head": [1, 3]})
    assert not (tmp_path / "results").exists()


@pytest.mark.slow  # budget: half a minute
def test_an_unfinished_run_has_a_row_without_a_loss(runner):
    table = runner.run_grid(grid_name="mixed", grid_params={"n_layer": [1]}, seeds=[1, 100, 102])
    assert list(table["status"]) == ["completed", "failed", "diverged"]
    assert list(table["val_loss"].notna()) == [True, False, False]
    assert list(table["n_params"].notna()) == [True] * 3
    assert list(table["tokens"].notna()) == [True, False, True]


def test_curves_are_one_long_table(runner, tmp_path):
    runner.run_grid(grid_name="depth", grid_params={"n_layer": [1, 2]})
    curves = load_curves(tmp_path / "results" / "depth")
    assert list(curves["step"]) == [1, 2, 3, 4, 5] * 2
    assert list(curves["model.n_layer"]) == [1] * 5 + [2] * 5


def test_the_table_of_a_file_is_found_below_the_root(command, write_study, tmp_path):
    study = write_study()
    command("run", study, "--out", tmp_path / "results", "--no-report")
    assert len(load(study, tmp_path / "results")) == 2
    assert len(load(Study.load(study), tmp_path / "results")) == 2


def test_plain_progress_prints_changes_and_heartbeats(runner, write_study, tmp_path, monkeypatch):
    study = Study.load(write_study())
    folder = prepare(study, tmp_path / "results" / "tiny").study
    observer, out = Observer(folder), io.StringIO()
    plain = Plain(out)
    plain.show(observer.look())
    assert out.getvalue() == ""
    monkeypatch.setattr("experiments.progress.time.monotonic", lambda: plain._last + 61)
    plain.show(observer.look())
    assert out.getvalue().endswith("0 of 2 finished: 2 to go\n")


def test_time_left_is_flops_left_over_flops_measured():
    snapshot = Snapshot({"running": 1}, [], [], 25.0, 100.0, 10.0, 30.0)
    assert summary_text(snapshot) == "0 of 1 finished, about 30.0 s left: 1 running"
    assert [duration(s) for s in (1.25, 61, 3600 * 2 + 600)] == ["1.2 s", "1 min 01 s", "2 h 10 min"]


def test_the_last_whole_line_of_a_growing_history(tmp_path):
    path = tmp_path / "history.jsonl"
    assert last_line(path) == {}
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2')
    assert last_line(path) == {"step": 1}


def test_a_live_display_survives_a_change(runner, write_study, tmp_path):
    from experiments.progress import Live

    folder = prepare(Study.load(write_study()), tmp_path / "results" / "tiny").study
    snapshot = Observer(folder).look()
    state = folder.states()[folder.lock.runs[0].id]
    change = Change(folder.lock.runs[0], state, None)
    live = Live()
    live.show(Snapshot({"missing": 2}, [change], snapshot.running, 0.0, snapshot.flops, 0.0, None))
    live.close()


def test_a_grid_works_without_a_main_guard(write_study, tmp_path):
    import subprocess
    import sys

    script = tmp_path / "plain_script.py"
    script.write_text(
        f"from experiments import ExperimentRunner\n"
        f"runner = ExperimentRunner({str(write_study().parent / 'base.yaml')!r}, {str(tmp_path / 'results')!r})\n"
        f"print(len(runner.run_grid(grid_name='g', grid_params={{'n_layer': [1, 2]}})))\n"
    )
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("2\n"), done.stderr
