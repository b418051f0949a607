"""A worker that is started ahead of its orders: it loads torch while the driver still plans the study.

Loading torch and the trainer takes longer than all the driver has to do, so a study starts sooner by about a second.
Orders come as one line of JSON on the worker's standard input; the end of that input without a line means: go home.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import engine


@dataclass(frozen=True)
class Recruit:
    """A worker that has its orders: its process, and the pipe whose end tells it that we are gone."""

    process: "subprocess.Popen[bytes]"
    life: int


class Standby:
    """A worker of `folder` that waits for orders. `dismiss` it unless it got some."""

    def __init__(self, folder: Path) -> None:
        self._read, self._life = os.pipe()
        command = [sys.executable, "-m", "experiments", "worker", str(folder.resolve()), "--standby"]
        environment = {**engine.HUGE_PAGES, **engine.child_environment(), **engine.CALM_THREADS}
        # A session of its own: Ctrl-C reaches the runner alone, which then stops the runs in order.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
            pass_fds=(self._read,), start_new_session=True,
        )  # fmt: skip
        os.close(self._read)
        self._has_orders = False

    @property
    def is_free(self) -> bool:
        return not self._has_orders

    def order(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Recruit:
        """Send the worker's arguments, without `--parent-fd`. A worker that has died says so by its exit status."""
        words = [*arguments, "--parent-fd", str(self._read)]
        order = {"arguments": words, "log": str(log), "environment": dict(environment)}
        stdin, self._has_orders = self._process.stdin, True
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.close()
        return Recruit(self._process, self._life)

    def dismiss(self) -> None:
        """End the worker, unless it has orders."""
        if not self._has_orders:
            self._process.kill()
            self._process.communicate()
            os.close(self._life)
            self._has_orders = True


@contextlib.contextmanager
def standing_by(folder: Path, wanted: bool = True) -> Iterator[Standby | None]:
    """A worker on standby where a new study is about to be planned: one that has its folder is planned in no time."""
    standby = Standby(folder) if wanted and not folder.exists() else None
    try:
        yield standby
    finally:
        if standby is not None:
            standby.dismiss()


def obey() -> list[str]:
    """In the worker: load what runs need, wait for orders, and return the arguments. Ends the process without any."""
    with contextlib.suppress(Exception):  # whatever is wrong, the worker will meet it again, and then has a log
        engine.preload()
        importlib.import_module("experiments.worker")
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        os._exit(0)
    order = json.loads(line)
    os.environ.update(order["environment"])
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
        opened = os.open(path, mode, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    os.dup2(1, 2)
    return [str(word) for word in order["arguments"]]
