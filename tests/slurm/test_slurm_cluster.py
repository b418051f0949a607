"""The `slurm` launcher on a real Slurm: whatever happens to the workers, every run is published, and once.

Budget: each test under 2 minutes on 2 cores, all of them about 6. Most of that is Slurm's own waiting: a requeued job
waits for its credential to expire (12 s here, 2 minutes by default), and a dead node is noticed after half a minute.
Most tests use the fake engine, one the real one. Skipped, with the reason, without Slurm's packages or root.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_cluster import Cluster, why_not

from experiments.launchers.submitted import submissions
from experiments.results import load
from nanogpt.record import read_record

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=why_not())]

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = """# A base for the tests on Slurm.
model: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 8}
train: {batch_size: 2, max_iters: 100, precision: fp32}
runtime: {device: cpu}
"""
REAL = """# A base for the one test that really trains.
model: {n_layer: 1, n_head: 1, n_embd: 16, block_size: 16}
data: {corpus: {kind: zipf_mixture, alphabet_size: 32, train_tokens: 65536, val_tokens: 8192}}
train: {batch_size: 4, max_iters: 1500, eval_interval: 750, eval_tokens: 1024, precision: fp32}
runtime: {device: cpu, threads: 1, checkpoint: {interval_seconds: 1}}
"""
EQUAL = ["id", "status", "seed", "steps", "tokens", "flops", "n_params", "val_loss", "best_val_loss", "train_loss"]


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Cluster]]:
    """Start a cluster with the given settings; ends it with the test."""
    started: list[Cluster] = []

    def begin(**settings: object) -> Cluster:
        started.append(Cluster(tmp_path / "slurm", **settings).__enter__())
        return started[-1]

    yield begin
    for cluster in started:
        cluster.stop()


@dataclass
class Lab:
    """A study on a cluster: what a person types, and what is on the disk afterwards."""

    home: Path
    cluster: Cluster
    study: str = "tiny"
    engine: str = "fake_engine"
    step_seconds: float = 0.05

    def write(self, sweep: str, launcher: str, base: str = BASE) -> None:
        (self.home / "base.yaml").write_text(base)
        text = f"question: What?\nhypothesis: That.\nbase: base.yaml\nsweep: {sweep}\nlauncher: {launcher}\n"
        (self.home / f"{self.study}.yaml").write_text(text)

    @property
    def folder(self) -> Path:
        # With a space, since people's folders have them.
        return self.home / "the results" / self.study

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(ROOT), str(ROOT / "tests" / "experiments")]
        return {**os.environ, **self.cluster.environment, "NANOGPT_ENGINE": self.engine,
                "PYTHONPATH": os.pathsep.join(paths), "FAKE_STEP_SECONDS": str(self.step_seconds)}  # fmt: skip

    def words(self, *more: str) -> list[str]:
        study = str(self.home / f"{self.study}.yaml")
        command = [sys.executable, "-m", "experiments", "run", study, "--out", str(self.folder.parent), "--no-report"]
        return [*command, *more]

    def run(self, *more: str) -> "subprocess.CompletedProcess[str]":
        return self.command(*self.words(*more)[3:])

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "experiments", *words]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=110)

    def begin(self, *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(self.words(*more), env=self.environment, cwd=ROOT, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip

    def steps(self) -> int:
        return sum(len(path.read_text().splitlines()) for path in self.folder.glob("*/steps.log"))

    def worker_logs(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted((self.folder / "workers").glob("slurm-*.log"))}

    def queue(self) -> list[str]:
        return self.cluster.ask("squeue", "-h", "-r", "-o", "%T").split()


@pytest.fixture
def lab(tmp_path, start) -> Callable[..., Lab]:
    return lambda **settings: Lab(tmp_path, start(**settings))


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.1)


def finish(lab: Lab, process: "subprocess.Popen[str]") -> str:
    """The driver's output, once it has ended well."""
    try:
        output, _ = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"the driver hangs:\n{process.communicate()[0]}\n{lab.queue()}\n{lab.worker_logs()}")
    assert process.returncode == 0, f"{output}\n{lab.worker_logs()}\n{lab.cluster.logs()}"
    return output


def assert_published_once(lab: Lab, runs: int) -> None:
    """Every run has its result, exactly one of its attempts completed, and resumed ones began where others ended."""
    folders = [path.parent for path in lab.folder.glob("*/metrics.json")]
    assert len(folders) == runs
    for folder in folders:
        assert read_record(folder / "metrics.json").status == "completed"
        ends = [read_record(path).status for path in folder.glob("attempts/*/outcome.json")]
        assert ends.count("completed") == 1
        if lab.engine == "fake_engine":
            lines = (folder / "steps.log").read_text().splitlines()
            attempts, steps = zip(*(map(int, line.split()) for line in lines), strict=True)
            assert sorted(set(steps)) == list(range(1, 101))
            # A step that was killed before its checkpoint is done again; nothing else is.
            assert len(steps) - 100 <= len(set(attempts)) - 1


def test_an_array_is_split_and_a_second_run_adds_no_workers(lab):
    lab = lab(max_array=3)
    lab.write("{seeds: 10}", "{kind: slurm, workers: 4, time: 10m}")
    watcher = lab.begin()
    wait_until(lambda: submissions(lab.folder) and lab.steps())
    [submission] = submissions(lab.folder)
    assert submission.workers == 4
    assert len(submission.handle["jobs"]) == 2  # of 3 tasks and 1
    # Ctrl-C ends the watching, and the cluster does not notice.
    os.killpg(watcher.pid, signal.SIGINT)
    said, _ = watcher.communicate(timeout=30)
    assert watcher.returncode == 130
    assert f"scancel {' '.join(submission.handle['jobs'])}" in said
    assert lab.queue() == ["RUNNING"] * 4
    assert "4 workers by slurm" in (status := lab.command("status", str(lab.folder)).stdout)
    assert "4 wait or run" in status
    again = lab.begin()
    said = finish(lab, again)
    assert "4 workers of job" in said
    assert "no further workers are submitted" in said
    assert_published_once(lab, 10)
    assert not submissions(lab.folder)
    assert len(lab.worker_logs()) == 4
    assert "nothing was left to do" in lab.run().stdout
    # The kept script is all that Slurm needs: it finds nothing to do, and ends.
    script = lab.folder / "workers" / submission.handle["scripts"][0]
    job = lab.cluster.ask("sbatch", "--parsable", "--wait", "--chdir=/", str(script))
    assert f"slurm-{job}_0.log" in lab.worker_logs()
    assert "status 0" in lab.worker_logs()[f"slurm-{job}_0.log"]


def test_what_sbatch_refuses_is_one_line(lab):
    lab = lab()
    lab.write("{seeds: 2}", "{kind: slurm, partition: urgnt}")
    done = lab.run()
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "sbatch refuses" in done.stderr
    assert "did you mean 'urgent'?" in done.stderr
    assert not submissions(lab.folder)


@pytest.mark.parametrize("warns", [True, False], ids=["warned by the signal", "SIGTERM alone"])
def test_a_preempted_worker_saves_its_runs_and_is_requeued(lab, warns):
    lab = lab(warns=warns, grace=8 if warns else 0)
    lab.write("{seeds: 6}", "{kind: slurm, workers: 2, cpus: 2, jobs: 1, time: 10m}")
    driver = lab.begin()
    wait_until(lambda: lab.steps() > 20)
    lab.cluster.ask("sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 5")
    finish(lab, driver)
    assert_published_once(lab, 6)
    logs = lab.worker_logs().values()
    assert sum("ends with status 75" in log for log in logs) == 1  # the other worker was left in peace
    assert sum(log.count("slots of") for log in logs) >= 2
    attempts = [len(list(folder.glob("attempts/*"))) for folder in lab.folder.glob("*.*/")]
    assert sum(attempts) >= 7


def test_the_time_limit_is_a_pause(lab):
    lab = lab()
    lab.step_seconds = 0.1
    # Slurm counts limits in minutes and is some seconds late or early with its warning.
    lab.write("{seeds: 4}", "{kind: slurm, workers: 1, time: 60s, grace: 50}")
    finish(lab, lab.begin())
    assert_published_once(lab, 4)
    [log] = lab.worker_logs().values()
    assert "requeued" in log
    assert log.count("slots of") >= 2


@pytest.mark.parametrize("by", ["scancel", "cancel"])
def test_cancelled_workers_stay_away_and_run_goes_on(lab, by):
    lab = lab()
    lab.write("{seeds: 4}", "{kind: slurm, workers: 2, time: 10m}")
    driver = lab.begin()
    wait_until(lambda: lab.steps() > 20)
    [submission] = submissions(lab.folder)
    if by == "scancel":
        lab.cluster.ask("scancel", *submission.handle["jobs"])
    else:
        assert "cancelled" in lab.command("cancel", str(lab.folder)).stdout
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "go on with" in said
    assert lab.queue() == []
    assert not submissions(lab.folder)
    released = list(lab.folder.glob("*/lease.*.released"))
    assert len(released) == 2  # they saved their runs and gave them back
    finish(lab, lab.begin())
    assert_published_once(lab, 4)


def test_a_lost_node_loses_no_run(lab):
    lab = lab()
    lab.write("{seeds: 8}", "{kind: slurm, workers: 2, cpus: 2, jobs: 2, time: 10m}")
    driver = lab.begin()
    wait_until(lambda: lab.steps() > 60)
    assert sorted(lab.cluster.ask("squeue", "-h", "-o", "%N").split()) == ["n1", "n2"]
    lab.cluster.kill_node("n2")
    finish(lab, driver)
    assert_published_once(lab, 8)
    assert len(list(lab.folder.glob("*/attempts/2"))) == 2  # those that trained on the lost node


def test_the_real_engine_under_preemption_equals_an_undisturbed_run(lab, tmp_path):
    lab = lab(grace=20)
    lab.engine = "nanogpt"
    lab.write("{grid: {learning_rate: [0.001, 0.002]}}", "{kind: slurm, workers: 1, cpus: 2, time: 10m}", REAL)
    driver = lab.begin()
    wait_until(lambda: list(lab.folder.glob("*/attempts/1/checkpoint-*.sha256")))
    lab.cluster.ask("sbatch", "-p", "urgent", "-N2", "--ntasks-per-node=1", "-c2", "-o", "/dev/null", "--wrap=sleep 1")
    finish(lab, driver)
    assert_published_once(lab, 2)
    assert list(lab.folder.glob("*/attempts/2"))
    other = Lab(tmp_path / "undisturbed", lab.cluster, engine="nanogpt")
    other.home.mkdir()
    other.write("{grid: {learning_rate: [0.001, 0.002]}}", "local", REAL)
    assert other.run("--jobs", "2").returncode == 0
    assert load(lab.folder)[EQUAL].equals(load(other.folder)[EQUAL])


SUM = """'''Adds up the ranks of all processes.'''
import os, socket, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank()))
dist.all_reduce(total)
print(json.dumps({"rank": dist.get_rank(), "world": dist.get_world_size(), "sum": total.item(),
                  "node": os.environ["SLURMD_NODENAME"]}) + "\\n", end="", flush=True)
dist.destroy_process_group()
"""


def test_torchrun_spans_the_nodes_of_a_worker(lab, tmp_path):
    """The script that a run of several nodes is started by: two processes on each of two nodes add up their ranks."""
    from experiments.launchers.slurm_script import torchrun_script

    lab = lab()
    script, program, log = tmp_path / "torchrun-nodes.sh", tmp_path / "add_up.py", tmp_path / "sum.log"
    script.write_text(torchrun_script(2))
    program.write_text(SUM.replace("import os", "import json, os", 1))
    lab.cluster.ask("sbatch", "--wait", "-N2", "--ntasks-per-node=1", "-c2", f"--output={log}",
                    f"--wrap=OMP_NUM_THREADS=1 bash {script} {program}", seconds=100)  # fmt: skip
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert sorted(line["rank"] for line in lines) == [0, 1, 2, 3], log.read_text()
    assert {line["sum"] for line in lines} == {6.0}
    assert {line["node"] for line in lines} == {"n1", "n2"}
