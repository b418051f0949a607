"""The analysis of a study whose file was edited after it ran: the file is asked as it is now, the folder as locked."""

import shutil
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.lock import resolve, write_lock
from experiments.present import asked_now
from experiments.store import StudyFolder
from experiments.study import Study
from nanogpt.config import UserError

pytestmark = pytest.mark.usefixtures("fake_engine")
SWEEP, CLAIM = "{grid: {n_layer: [1, 2]}, seeds: [1, 2]}", "every val_loss below 1000"


@pytest.fixture
def locked(write_study, tmp_path) -> tuple[Path, StudyFolder]:
    """A study with a claim, and its locked folder."""
    path, folder = write_study(SWEEP, f"claims: [{CLAIM}]"), tmp_path / "results" / "tiny"
    folder.mkdir(parents=True)
    write_lock(folder, resolve(Study.load(path)))
    return path, StudyFolder(folder)


def test_an_unchanged_file_and_the_folder_ask_what_the_lock_does(locked):
    path, folder = locked
    for source in (path, folder.path):
        asked = asked_now(folder, str(source))
        assert (asked.lock, asked.new_claims, asked.notes) == (folder.lock, (), ())


def test_a_file_is_asked_as_it_is_now_and_says_what_changed(locked, write_study):
    path, folder = locked
    write_study(SWEEP, f"claims: [{CLAIM}, lowest  val_loss above 1000]\nlimits: None.\nreport: {{x: n_layer}}")
    asked = asked_now(folder, str(path))
    assert asked.lock.claims == [CLAIM, "lowest  val_loss above 1000"]
    assert (asked.lock.limits, asked.lock.report) == ("None.", {"x": "n_layer"})
    assert asked.lock.runs == folder.lock.runs
    assert asked.new_claims == ("lowest val_loss above 1000",)
    assert asked.notes == (
        f"`limits:`, `claims:`, `report:` have changed since the runs were locked, and are read from {path} as it is "
        "now",)  # fmt: skip
    assert asked_now(folder, str(folder.path)).lock.claims == [CLAIM]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [("{grid: {n_layer: [1, 2, 3]}, seeds: [1, 2]}", "asks for 2 runs more than its lock"),
     ("{grid: {n_layer: [2, 3]}, seeds: [1, 2]}", "asks for 2 runs more and 2 fewer than its lock"),
     ("{grid: {n_layer: [1, 2]}}", "asks for 2 runs more and 4 fewer than its lock"),
     ("{grid: {n_layer: [1]}, seeds: [1, 2]}", "asks for 2 fewer than its lock"),
     ("{sampler: {kind: random, trials: 3}, space: {learning_rate: {log: [0.001, 0.1]}}}",
      "searches otherwise")],
)  # fmt: skip
def test_other_runs_than_the_locks_are_said_and_not_analysed(locked, write_study, sweep, words):
    path, folder = locked
    write_study(sweep, f"claims: [{CLAIM}]")
    asked = asked_now(folder, str(path))
    assert asked.lock.runs == folder.lock.runs
    (note,) = asked.notes
    assert words in note


def test_an_edit_that_changes_nothing_is_no_change(locked):
    path, folder = locked
    path.write_text(path.read_text() + "# A remark.\n")
    assert asked_now(folder, str(path)).notes == ()


def test_a_claim_that_the_runs_cannot_answer_is_refused_with_its_line(locked, write_study):
    path, folder = locked
    for claim, message in (("every los below 2", "no column 'los'"), ("3 beats 1", "'3' is no value of a factor"),
                           ("E below 2", "needs `fit:`")):  # fmt: skip
        write_study(SWEEP, f"claims:\n  - {CLAIM}\n  - {claim}")
        with pytest.raises(UserError) as caught:
            asked_now(folder, str(path))
        assert str(caught.value).startswith(f"{path}:7: claims.1: ")
        assert message in str(caught.value)


def test_strict_judges_the_file_that_is_given(locked, write_study, tmp_path, capsys):
    """From the folder the locked claim holds; from the file the edited one fails, in `fit` as in `report`."""
    path, folder = locked
    out = ["--out", str(tmp_path / "results")]
    assert main(["run", str(path), *out, "--no-report", "--launcher", "inprocess"]) == 0
    write_study(SWEEP, "claims: [lowest val_loss above 1000]")
    for verb in ("fit", "report"):
        assert main([verb, str(folder.path), "--strict"]) == 0
        assert f"held       {CLAIM}" in capsys.readouterr().out
        assert main([verb, str(path), *out, "--strict"]) == 3
        told = capsys.readouterr()
        assert "FAILED     lowest val_loss above 1000" in told.out
        assert CLAIM not in told.out
        assert "note: `claims:` has changed since the runs were locked, and is read from" in told.out
        assert told.err == "--strict: 1 claim failed: lowest val_loss above 1000\n"
    page = (folder.path / "report.md").read_text()
    assert "## What was claimed\n" in page
    assert "(written after the runs were locked)" in page
    shutil.rmtree(folder.path)
