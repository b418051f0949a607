"""How far `prepare` has come: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

LINE_SECONDS = 15.0


class Display:
    """Shows work done against `total` bytes of sources (0: unknown) and the tokens made, on stderr."""

    def __init__(self, name: str, total: int, done: int, tokens: int) -> None:
        self._name, self._total, self._start = name, total, done
        self._done, self._tokens, self._first_tokens = done, tokens, tokens
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Display":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as Speed

            columns = [
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn(),
                TextColumn("{task.fields[tokens]} tokens"),
            ]  # fmt: skip
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(
                self._name, total=self._total or None, completed=self._done, tokens=f"{self._tokens:,}"
            )
            self._bar.start()
        return self

    def advance(self, weight: int, tokens: int) -> None:
        """Note a piece's bytes and the tokens it became."""
        self._done, self._tokens = self._done + weight, self._tokens + tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, tokens=f"{self._tokens:,}")
        elif time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        of = f" of {self._total / 1e6:,.0f} MB ({100 * self._done / self._total:.0f} %)" if self._total else " MB"
        speed = f"{(self._done - self._start) / seconds / 1e6:.1f} MB/s"
        return f"{self._name}: {self._done / 1e6:,.0f}{of}, {self._tokens:,} tokens, {speed}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
