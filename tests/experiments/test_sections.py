"""The sections `launcher` and `supervise` of a study: checked with their place, kept in the lock; submissions."""

import importlib.util
import json

import pytest

from experiments.launchers import LAUNCHERS, launcher_named
from experiments.launchers.settings import KINDS, LocalSettings, check_launcher, chosen_launcher
from experiments.launchers.submitted import Submission, end_submission, submissions, write_submission
from experiments.lock import Lock, resolve
from experiments.study import Study
from experiments.supervise import check_supervise, seconds_of
from nanogpt.config import UserError

pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.mark.parametrize(
    ("text", "seconds"), [(90, 90), ("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1.5d", 129600), (0.5, 0.5)]
)
def test_times_may_have_a_unit(text, seconds):
    assert seconds_of(text) == seconds


WRONG = {
    "supervise: {time_limit: soon}": "tiny.yaml:5: supervise.time_limit: expected a time such as 90s, 15m, 2h or 1d",
    "supervise: {time_limit: 0}": "supervise.time_limit: expected a time above zero",
    "supervise: {retrys: 1}": "tiny.yaml:5: supervise.retrys: no such key; did you mean 'retries'?",
    "supervise: {on_error: halt}": "supervise.on_error: expected 'continue' or 'stop', got 'halt'",
    "supervise: 3": "tiny.yaml:5: supervise: expected settings",
    "launcher: slrm": "tiny.yaml:5: launcher: no such launcher 'slrm'; did you mean 'slurm'?",
    "launcher: LOCAL": "tiny.yaml:5: launcher: no such launcher 'LOCAL'; did you mean 'local'?",
    "launcher: {kind: local, jbs: 2}": "tiny.yaml:5: launcher.jbs: no such key; did you mean 'jobs'?",
    "launcher: {kind: local, jobs: 0}": "launcher.jobs: expected greater than or equal to 1, got 0",
    "launcher: {kind: inprocess, jobs: 3}": "launcher.jobs: expected less than or equal to 1, got 3",
    "launcher: {kind: slurm, mem: lots}": "launcher.mem: expected a whole amount of memory such as 500M or 8G",
    "launcher: [local]": "launcher: expected a name or settings with `kind`",
}


@pytest.mark.parametrize("section", WRONG)
def test_a_slip_is_placed_and_named(write_study, section):
    with pytest.raises(UserError) as caught:
        Study.load(write_study(more=section))
    assert WRONG[section] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_sections_reach_the_lock_and_old_locks_are_read(write_study):
    more = "launcher: {kind: slurm, workers: 4}\nsupervise: {time_limit: 2h}"
    lock = resolve(Study.load(write_study(more=more)))
    assert lock.launcher == {"kind": "slurm", "workers": 4}
    assert check_supervise(lock.supervise).time_limit == 7200
    old = json.loads(lock.model_dump_json())
    del old["launcher"], old["supervise"]
    assert Lock.model_validate(old).launcher is None


def test_another_launcher_on_the_command_line_has_its_own_defaults():
    section = {"kind": "slurm", "workers": 4}
    assert chosen_launcher(section).model_dump()["workers"] == 4
    assert chosen_launcher(section, "slurm").model_dump()["workers"] == 4
    assert chosen_launcher(section, "local") == LocalSettings()
    assert check_launcher(None) == LocalSettings()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_launcher_or_one_line_that_says_why_not(kind):
    if importlib.util.find_spec(LAUNCHERS[kind].partition(":")[0]) is None:
        with pytest.raises(UserError, match=f"launcher: {kind} cannot be used here: No module named"):
            launcher_named(kind)
    else:
        assert callable(launcher_named(kind).start)


def test_submissions_are_kept_until_they_end(tmp_path):
    assert submissions(tmp_path) == []
    first = Submission("slurm", "slurm-1", 2, {"job": 17}, submitted="2026-01-01T00:00:00+00:00")
    write_submission(tmp_path, first)
    write_submission(tmp_path, Submission("ray", "ray-1", 1, {"address": "auto"}))
    (tmp_path / "workers" / "torn.json").write_text('{"launcher": "sl')
    assert [each.name for each in submissions(tmp_path)] == ["slurm-1", "ray-1"]
    assert submissions(tmp_path)[0] == first
    end_submission(tmp_path, "slurm-1")
    end_submission(tmp_path, "slurm-1")
    assert [each.name for each in submissions(tmp_path)] == ["ray-1"]
    assert (tmp_path / "workers" / "slurm-1.ended.json").exists()
