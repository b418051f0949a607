"""The worker's side of proposing: one child that knows the sampler's package is asked for trials as slots get free."""

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


def check_sampler(search: Search, place: str) -> None:
    """Raises UserError when optuna is missing or the sampler refuses its settings, before anything is run."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            f"{place}: sweep.sampler: optuna is not installed; pip install 'nanogpt-scaling[hpo]', or use random, sobol"
        )
    command = [sys.executable, "-m", "experiments.search.asktell"]
    sampler = search.sampler.model_dump_json()
    done = subprocess.run(command, input=sampler, capture_output=True, text=True, env=child_environment())
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
        if self._is_asked or self.broken or not self.more:
            return
        try:
            self._out.write(f"{waiting}\n".encode())
            self._out.flush()
            self._is_asked = True
        except OSError:
            self.broken = True

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
        """Let the child end; a proposal that it is at is dropped."""
        self._child.terminate()
        self._child.wait()
        self._out.close()
        self._in.close()
