"""The worker's side of what needs optuna: one child is asked for trials as slots get free, and for verdicts."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from experiments.engine import MISTAKE, child_environment
from experiments.search.search import Search
from nanogpt.config import UserError

CLOSE_SECONDS = 2.0  # for what was asked last; a proposal may take longer, and is dropped


def check_optuna(search: Search, place: str) -> None:
    """Raises UserError when optuna is missing, or its sampler or pruner refuses the settings, before anything is run.

    Does nothing for a search that uses neither.
    """
    if "optuna" not in (search.sampler.kind, search.pruner.kind):
        return
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            f"{place}: sweep: optuna is not installed; pip install 'nanogpt-scaling[hpo]', or do without its sampler "
            "and its pruners"
        )
    command = [sys.executable, "-m", "experiments.search.asktell"]
    asked = search.model_dump_json(include={"sampler", "pruner"})
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=child_environment())
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{place}: {last}") if done.returncode == MISTAKE else RuntimeError(f"optuna: {last}")


class Proposer:
    """A child that proposes. It ends by itself when the worker does: its standard input ends then."""

    def __init__(self, folder: Path) -> None:
        self.more = True  # until the child says that the search has all its trials
        self.broken = False
        self._is_asked, self._buffer = False, b""
        environment = {**child_environment(), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "experiments", "propose", str(folder), "--serve"]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        assert self._child.stdin is not None, "asked for"
        assert self._child.stdout is not None, "asked for"
        self._out, self._in = self._child.stdin, self._child.stdout
        os.set_blocking(self._in.fileno(), False)

    @property
    def descriptors(self) -> tuple[int, int]:
        """What a forked run must not hold: it would keep the child waiting for a worker that is gone."""
        return self._out.fileno(), self._in.fileno()

    @property
    def answers(self) -> list[int]:
        """The descriptor at which an answer will come; none while nothing is asked."""
        return [self._in.fileno()] if self._is_asked else []

    def ask(self, waiting: int) -> None:
        """Ask for trials until so many wait for a worker; returns at once."""
        if not self._is_asked and not self.broken and self.more:
            self._is_asked = self._say(f"propose {waiting}")

    def judge(self, run: str, generation: int) -> None:
        """Ask for the verdicts on a run at the rungs that it has reached: they will be files."""
        self._say(f"judge {run} {generation}")

    def conclude(self, run: str) -> None:
        """Ask for the rungs that a finished run has passed unjudged to be written down."""
        self._say(f"conclude {run}")

    def _say(self, line: str) -> bool:
        try:
            self._out.write(f"{line}\n".encode())
            self._out.flush()
        except (OSError, ValueError):
            self.broken = True
        return not self.broken

    def has_answered(self) -> bool:
        """Whether an answer has come since the last look: then there may be new trials."""
        if not self._is_asked:
            return False
        with contextlib.suppress(BlockingIOError):
            self._buffer += os.read(self._in.fileno(), 4096)
        if b"\n" in self._buffer:
            answer = json.loads(self._buffer)
            self._buffer, self._is_asked, self.more = b"", False, answer["more"]
            return True
        if self._child.poll() is not None:
            self.broken, self._is_asked = True, False
        return False

    def close(self) -> None:
        """Let the child end: what it was asked to write down is written, a proposal that it is at is dropped."""
        with contextlib.suppress(OSError):
            self._out.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(CLOSE_SECONDS)
        self._child.terminate()
        self._child.wait()
        self._in.close()
