"""The fault storm: kills and pauses at random over a study of real training runs. Budget: 5 minutes on two idle cores.

Two runners share one results folder while 30 SIGKILLs hit runners, workers and children, and 4 processes are stopped
for longer than a lease. Whatever was killed is started again. Then every run has been published exactly once, no file
is torn, no process is left, and each run equals the one of an undisturbed study.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from experiments.results import load
from nanogpt.record import read_history, read_record

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parent.parent.parent
RUNS, KILLS, PAUSES, LEASE_SECONDS = 60, 30, 4, 3.0
STUDY = f"""question: What is left after a storm?
hypothesis: Everything.
base: {ROOT / "configs" / "tiny_cpu.yaml"}
config:
  model: {{n_layer: 1, n_head: 1, n_embd: 16, block_size: 16}}
  data: {{corpus: {{kind: zipf_mixture, alphabet_size: 32, train_tokens: 65536, val_tokens: 8192}}}}
  train: {{batch_size: 4, max_iters: 1000, eval_interval: 200, eval_tokens: 1024}}
  runtime: {{threads: 1, checkpoint: {{interval_seconds: 0.2}}}}
sweep: {{seeds: {RUNS}}}
supervise: {{lease: {LEASE_SECONDS}s, backoff: 0, max_failures: null}}
"""
EQUAL = ["id", "label", "status", "seed", "steps", "tokens", "flops", "n_params", "val_loss", "best_val_loss",
         "best_step", "train_loss"]  # fmt: skip
CURVE = ("step", "tokens", "flops", "train_loss", "val_loss", "learning_rate", "grad_norm")


def command(study: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "experiments", "run", str(study), "--out", str(out), "--no-report", "--jobs", "1"]


def at_work_on(out: Path) -> list[int]:
    """Runners, workers and the children they forked: whoever has the folder on its command line, zombies apart."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(out).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(found)


def children_among(pids: list[int]) -> list[int]:
    """Those in training: a worker's child has the worker's command line, and the worker as its parent."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if parent in pids and line == Path(f"/proc/{parent}/cmdline").read_bytes():
                found.append(pid)
    return found


@dataclass
class Storm:
    """Keeps two runners at work on a study, and does its worst to everyone who is."""

    study: Path
    out: Path
    dice: random.Random
    runners: list[subprocess.Popen[bytes]] = field(default_factory=list)
    published: dict[Path, tuple[int, int]] = field(default_factory=dict)
    paused: dict[int, float] = field(default_factory=dict)
    killed: int = 0
    due: list[float] = field(default_factory=list)
    next_strike: float = 0.0

    def __post_init__(self) -> None:
        """Blows fall as the study advances, not as the clock does: any machine, fast or slow, gets all of them."""
        self.due = sorted(self.dice.uniform(0, 0.85 * RUNS) for _ in range(KILLS + PAUSES))

    def keep_running(self) -> None:
        self.runners = [runner for runner in self.runners if runner.poll() is None]
        while len(self.runners) < 2:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self.runners.append(subprocess.Popen(command(self.study, self.out), cwd=ROOT, **quiet))

    def note_published(self) -> None:
        """A record is linked once: the file that is first seen under the name stays what it is."""
        for path in self.out.glob("storm/*/metrics.json"):
            stat = path.stat()
            assert self.published.setdefault(path, (stat.st_ino, stat.st_mtime_ns)) == (stat.st_ino, stat.st_mtime_ns)

    def strike_if_due(self) -> None:
        if self.due and len(self.published) >= self.due[0] and time.monotonic() > self.next_strike and self.strike():
            self.due.pop(0)
            self.next_strike = time.monotonic() + self.dice.uniform(0.05, 0.4)

    def strike(self) -> bool:
        """One blow. False while torch is being imported, when a kill would harm nobody."""
        victims = [pid for pid in at_work_on(self.out) if pid not in self.paused]
        training = children_among(victims)
        if not training:
            return False
        pid = self.dice.choice(training if self.dice.random() < 0.4 else victims)
        # Pauses come early, while there is still much to take over.
        if len(self.paused) < PAUSES and self.killed >= 3 * (1 + len(self.paused)):
            self.send(pid, signal.SIGSTOP)
            self.paused[pid] = time.monotonic()
        else:
            self.send(pid, signal.SIGKILL)
            self.killed += 1
        return True

    def wake(self, everyone: bool = False) -> None:
        for pid, since in self.paused.items():
            if everyone or time.monotonic() - since > 3 * LEASE_SECONDS:
                self.send(pid, signal.SIGCONT)

    @staticmethod
    def send(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def end(self) -> None:
        for pid in at_work_on(self.out):
            self.send(pid, signal.SIGKILL)
            self.send(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def storm(tmp_path_factory) -> Storm:
    """The study after the storm; beside it, in `calm`, the same study undisturbed."""
    home = tmp_path_factory.mktemp("storm")
    study = home / "storm.yaml"
    study.write_text(STUDY)
    calm = command(study, home / "calm")
    calm[-1] = "2"
    subprocess.run(calm, cwd=ROOT, check=True, capture_output=True, timeout=300)
    seed = int(os.environ.get("STORM_SEED", time.time_ns() % 10_000))
    print(f"STORM_SEED={seed}")
    raging = Storm(study, home / "storm", random.Random(seed))
    limit = time.monotonic() + 600
    try:
        while len(raging.published) < RUNS:
            assert time.monotonic() < limit, "the study does not get done"
            raging.keep_running()
            raging.wake()
            raging.strike_if_due()
            raging.note_published()
            time.sleep(0.05)
        raging.wake(everyone=True)
        for runner in raging.runners:
            runner.wait(120)
    except BaseException:
        raging.end()
        raise
    return raging


def folders(storm: Storm) -> list[Path]:
    return sorted(path for path in (storm.out / "storm").iterdir() if (path / "config.yaml").exists())


def test_the_storm_was_one(storm):
    assert storm.killed == KILLS
    assert len(storm.paused) == PAUSES
    attempts = [len(list((folder / "attempts").iterdir())) for folder in folders(storm)]
    assert sum(attempts) >= RUNS + KILLS // 4, "hardly any run was hit"


def test_every_run_was_published_exactly_once(storm):
    assert len(folders(storm)) == RUNS
    storm.note_published()
    for folder in folders(storm):
        record = read_record(folder / "metrics.json")
        assert record.status == "completed"
        assert folder.name.endswith(record.id)


def test_no_process_is_left(storm):
    limit = time.monotonic() + 60
    while at_work_on(storm.out):
        assert time.monotonic() < limit, f"orphans: {at_work_on(storm.out)}"
        time.sleep(0.2)


def test_no_file_is_torn(storm):
    """Beside JSON and histories, checkpoints: those that have a digest match it, as every resume has verified."""
    for path in (storm.out / "storm").rglob("*.json"):
        json.loads(path.read_text())
    for folder in folders(storm):
        assert [line["step"] for line in read_history(folder / "history.jsonl")] == list(range(10, 1001, 10))


def test_every_run_equals_the_undisturbed_one(storm):
    calm = storm.out.parent / "calm" / "storm"
    stormy, undisturbed = load(storm.out / "storm"), load(calm)
    assert stormy[EQUAL].equals(undisturbed[EQUAL])
    for folder in folders(storm):
        mine, its = (read_history(root / folder.name / "history.jsonl") for root in (storm.out / "storm", calm))
        assert [[line.get(key) for key in CURVE] for line in mine] == [[line.get(key) for key in CURVE] for line in its]
