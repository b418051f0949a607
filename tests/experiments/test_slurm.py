"""The `slurm` launcher without Slurm: what it writes, how it reads answers, what it says when there is no Slurm.

The answers are those of Slurm 22.05, shortened. What a real cluster makes of the scripts is tested in tests/slurm.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.launchers import slurm, slurm_client, slurm_requeue
from experiments.launchers.base import Job
from experiments.launchers.settings import as_section, check_launcher
from experiments.launchers.slurm_client import Ended, Task
from experiments.launchers.slurm_script import Array, array_script, array_sizes, torchrun_script
from experiments.launchers.submitted import Submission, submissions, write_submission
from experiments.lock import resolve, write_lock
from experiments.study import Study
from nanogpt.config import UserError

FOLDER = Path("/data/my results/depth %")


def settings(**given):
    return check_launcher({"kind": "slurm", **given})


def script_of(jobs=None, retry_failed=False, tasks=3, **given) -> str:
    array = Array(FOLDER, settings(**given), tasks, jobs, retry_failed)
    return array_script(array, FOLDER / "workers" / "slurm-1.sh", FOLDER / "workers" / "torchrun.sh")


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def test_the_script_asks_for_what_the_study_says():
    script = script_of(partition="gpu", account="me", mem="8G", time="2h", cpus=8, gpus=4, nproc=2,
                       sbatch={"nodelist": "a1", "exclusive": ""}, setup=["module load cuda"])  # fmt: skip
    asked = directives(script)
    for line in ("--array=0-2", "--partition=gpu", "--account=me", "--mem=8G", "--time=0-02:00:00", "--gres=gpu:4",
                 "--cpus-per-task=8", "--nodelist=a1", "--exclusive", "--requeue", "--open-mode=append",
                 "--signal=B:USR1@60", "--job-name=depth--"):  # fmt: skip
        assert line in asked
    # A percent sign of the folder's is none of Slurm's.
    assert '--output="/data/my results/depth %%/workers/slurm-%A_%a.log"' in asked
    lines = script.splitlines()
    assert lines.index("trap '' TERM USR1") < lines.index("module load cuda") < lines.index("export OMP_NUM_THREADS=2")
    assert "--slots 2 --threads 2 --grace 50 --gpus-per-run 2 --isolation process --nproc 2" in script
    assert lines[-2].startswith(f"exec {sys.executable} -m experiments worker '/data/my results/depth %'")
    assert lines[-1].endswith("--on-term requeue-command")


def test_a_script_is_a_shell_script(tmp_path):
    for text in (script_of(setup=["echo 'a b'"]), torchrun_script(4)):
        (tmp_path / "script.sh").write_text(text)
        subprocess.run(["bash", "-n", str(tmp_path / "script.sh")], check=True)


def test_a_script_needs_nothing_of_whoever_submits_it(monkeypatch):
    monkeypatch.setenv("NANOGPT_DATA_DIR", "/data/with space")
    monkeypatch.setenv("NANOGPT_TORCHRUN", "of another job")
    script = script_of()
    assert "export NANOGPT_DATA_DIR='/data/with space'" in script
    assert "NANOGPT_TORCHRUN" not in script
    assert f"--chdir={Path.cwd()}" in directives(script)
    assert "--retry-failed" not in script
    assert "--retry-failed" in script_of(retry_failed=True)
    assert f"export NANOGPT_TORCHRUN='{FOLDER}/workers/torchrun.sh'" in script_of(nodes=2, nproc=8, gpus=4)


@pytest.mark.parametrize(
    ("given", "jobs", "slots"),
    [({}, None, 1), ({"cpus": 4}, None, 4), ({"cpus": 4}, 2, 2), ({"gpus": 2, "cpus": 8}, None, 2),
     ({"gpus": 8, "nproc": 4}, None, 2), ({"nodes": 2, "nproc": 8, "gpus": 4}, 3, 1), ({"jobs": 3}, None, 3)],
)  # fmt: skip
def test_runs_at_a_time(given, jobs, slots):
    assert settings(**given).slots(jobs) == slots


WRONG = {
    "time": ("soon", "expected a time such as 90m"),
    "grace": (3600, "expected a grace below the time limit"),
    "partition": ("a b", "expected a word"),
    "sbatch": ({"array": "0-3"}, "other than the launcher's own, got 'array'"),
    "nodes": (2, "expected nproc to be a multiple of nodes"),
    "workers": (0, "greater than or equal to 1"),
}


@pytest.mark.parametrize("key", WRONG)
def test_settings_that_slurm_could_not_follow_are_refused(key):
    value, reason = WRONG[key]
    with pytest.raises(UserError, match=reason) as caught:
        settings(**{key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("time", "text"),
    [("2h", "0-02:00:00"), (90, "0-00:01:30"), ("1.5d", "1-12:00:00"), ("2-12", "2-12"), ("30:00", "30:00"),
     ("1-00:00:00", "1-00:00:00"), ("UNLIMITED", "UNLIMITED")],
)  # fmt: skip
def test_times_are_those_of_a_study_or_of_slurm(time, text):
    read = settings(time=time)
    assert read.time == text
    assert check_launcher(as_section(read)) == read


@pytest.mark.parametrize(("tasks", "most", "sizes"), [(4, 1001, [4]), (7, 3, [3, 3, 1]), (6, 3, [3, 3]), (1, 1, [1])])
def test_arrays_are_split_at_the_limit(tasks, most, sizes):
    assert array_sizes(tasks, most) == sizes


QUEUE = "12_0|RUNNING|None\n12_1|PENDING|Resources\n12_2|COMPLETING|None\n"
JOBS = """JobId=13 ArrayJobId=12 ArrayTaskId=0 JobName=a JobState=COMPLETED Reason=None ExitCode=0:0 RunTime=00:00:05
JobId=12 ArrayJobId=12 ArrayTaskId=1 JobName=a JobState=FAILED Reason=NonZeroExitCode ExitCode=127:0
JobId=14 JobName=b JobState=CANCELLED Reason=None ExitCode=0:15
"""


def test_slurms_answers_are_read():
    assert slurm_client.parse_queue(QUEUE)[1] == Task("12_1", "PENDING", "Resources")
    jobs = [Ended("12_0", "COMPLETED", 0), Ended("12_1", "FAILED", 127), Ended("14", "CANCELLED", -15)]
    assert slurm_client.parse_jobs(JOBS) == jobs
    assert slurm_client.parse_accounts("12_0|COMPLETED|0:0\n12_1|FAILED|127:0\n14|CANCELLED by 0|0:15\n") == jobs


RUNNING = "JobId=13 ArrayJobId=12 JobState=RUNNING Reason=None RunTime=00:10:00 TimeLimit=01:00:00"
ENDING = RUNNING.replace("RUNNING", "COMPLETING")


@pytest.mark.parametrize(
    ("job", "again"),
    [(RUNNING, True), (ENDING, False), (ENDING.replace("=00:10:00", "=01:00:02"), True),
     (ENDING.replace("=01:00:00", "=UNLIMITED"), False), (RUNNING.replace("RUNNING", "PENDING"), False)],
    ids=["warned", "cancelled", "out of time", "cancelled without a limit", "requeued already"],
)  # fmt: skip
def test_a_job_that_slurm_ends_is_requeued_only_for_its_time(job, again):
    assert (slurm_requeue.why_not(job) == "") is again


PROGRAM = """#!/bin/sh
# Stands in for one of Slurm's programs.
echo "$0 $*" >> "$LOG"
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Write stand-ins for Slurm's programs, the only ones on the path; `programs.calls()` are those made."""
    home = tmp_path / "bin"
    home.mkdir()
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.setenv("LOG", str(tmp_path / "calls"))

    def write(**bodies: str) -> None:
        for name, body in bodies.items():
            (home / name).write_text(PROGRAM + body)
            (home / name).chmod(0o755)

    write.calls = lambda: [line.removeprefix(f"{home}/") for line in (tmp_path / "calls").read_text().splitlines()]
    return write


def test_a_task_of_an_array_requeues_itself_and_not_the_array(programs, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")  # the array's number is also that of one of its tasks
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    programs(scontrol=f"echo '{RUNNING}'")
    assert slurm_requeue.requeue() == "job 12_1: requeued"
    assert programs.calls() == ["scontrol --oneliner show job 12_1", "scontrol requeue 12_1"]


def test_without_slurm_there_is_one_line(programs, write_study, fake_engine, monkeypatch, tmp_path):
    from experiments.runner import StudyRun, prepare
    from experiments.study import Study

    prepared = prepare(Study.load(write_study(more="launcher: slurm")), tmp_path / "out")
    with pytest.raises(UserError, match=r"no sbatch on this machine: .*`launcher: local`") as caught:
        StudyRun(prepared, Job(settings())).start()
    assert "\n" not in str(caught.value)
    assert not submissions(tmp_path / "out")


def test_an_array_that_is_refused_after_another_was_taken_is_no_error(programs, tmp_path, capsys):
    programs(
        scontrol="echo 'MaxArraySize            = 2'",
        sbatch='case "$2" in *-2.sh) echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1;; esac; echo 7',
    )
    submission = slurm._submit(Array(tmp_path, settings(), 5))
    assert submission.workers == 2
    assert submission.handle["jobs"] == ["7"]
    assert submissions(tmp_path) == [submission]
    said = capsys.readouterr().out
    assert "2 of 5 workers were accepted" in said
    assert "QOSMaxSubmitJobPerUserLimit" in said


@pytest.mark.parametrize(
    ("squeue", "alive"),
    [("echo '7_0|RUNNING|None'; echo '7_1|PENDING|Priority'", 2), ("true", 0),
     ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", 0),
     ("echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1", None)],
)  # fmt: skip
def test_alive_is_none_when_nobody_knows(programs, squeue, alive):
    programs(squeue=squeue)
    assert slurm.Slurm().alive(Submission("slurm", "a", 2, {"jobs": ["7"]})) == alive


def test_workers_are_submitted_for_trials_that_are_not_proposed_yet(programs, write_study, fake_engine, tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed (the extra `hpo`)")
    space = "space: {learning_rate: {log: [1e-4, 1e-1]}}"
    lock = resolve(Study.load(write_study(f"{{sampler: {{kind: optuna, trials: 3}}, {space}}}")))
    write_lock(tmp_path, lock)
    programs(scontrol="echo 'MaxArraySize            = 1001'", sbatch="echo 7", squeue="echo '7_0|PENDING|Priority'")
    slurm.Slurm().start(tmp_path, Job(settings(workers=8)))
    (submission,) = submissions(tmp_path)
    assert submission.workers == 3


def test_status_and_plan_ask_slurm_whether_anything_is_queued(programs, write_study, fake_engine, tmp_path, capsys):
    from experiments.__main__ import main

    folder = tmp_path / "tiny"
    folder.mkdir()
    write_lock(folder, resolve(Study.load(write_study())))
    write_submission(folder, Submission("slurm", "a", 2, {"jobs": ["7"]}))
    for squeue, told in (
        ("echo '7_0|PENDING|Priority'", "2 queued"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1", "2 queued"),
        ("true", "2 missing"),
    ):
        programs(squeue=squeue)
        for verb in ("status", "plan"):
            assert main([verb, str(folder)]) == 0
            assert told in capsys.readouterr().out
    assert len(submissions(folder)) == 1


def test_workers_that_broke_say_how(programs, tmp_path):
    programs(squeue="true", scontrol="echo 'JobId=8 ArrayJobId=7 ArrayTaskId=0 JobState=FAILED ExitCode=127:0'")
    submission = Submission("slurm", "a", 1, {"jobs": ["7"]})
    write_submission(tmp_path, submission)
    (tmp_path / "workers" / "slurm-7_0.log").write_text("exec: python: not found\n")
    workers = slurm.SlurmWorkers(tmp_path, [submission])
    assert workers.wait(0) == 127
    assert workers.last_words()[0] == "1 x FAILED with status 127"
    assert workers.last_words()[-1] == "exec: python: not found"
    assert not submissions(tmp_path)


def test_stopping_only_ends_the_watching(programs, tmp_path, capsys):
    programs(squeue="echo '7_0|RUNNING|None'", scancel="true")
    workers = slurm.SlurmWorkers(tmp_path, [Submission("slurm", "a", 1, {"jobs": ["7"]})])
    assert workers.wait(0) is None
    workers.stop()
    assert workers.wait(0) == 75
    assert "scancel 7" in capsys.readouterr().out
    assert not any(call.startswith("scancel") for call in programs.calls())


def test_the_driver_loads_nothing_of_a_cluster():
    code = "import sys, experiments.launchers.slurm; print(*{'torch', 'ray', 'pandas', 'submitit'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.split() == []
