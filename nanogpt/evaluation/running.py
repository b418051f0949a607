"""The figure so far while an evaluation works: one line that is rewritten on a terminal, now and then one elsewhere."""

import sys
import time
from typing import TextIO

TERMINAL_SECONDS, LOG_SECONDS = 0.2, 10.0


class Running:
    """Says how far an evaluation is, on stderr: stdout holds results alone. One of several ranks speaks."""

    def __init__(self, speaks: bool = True, stream: TextIO | None = None) -> None:
        self._stream, self._speaks = stream or sys.stderr, speaks
        self._is_terminal = self._stream.isatty()
        self._started = self._last = time.monotonic()
        self._shown = 0  # characters on the terminal's line

    def is_due(self) -> bool:
        """Whether it is time for another line."""
        interval = TERMINAL_SECONDS if self._is_terminal else LOG_SECONDS
        return self._speaks and time.monotonic() - self._last >= interval

    def say(self, done: int, total: int, unit: str, figure: str) -> None:
        """`1,200 of 10,042 items  acc 0.2890 ± 0.0131  95 s left`."""
        self._last = time.monotonic()
        left = (self._last - self._started) * (total - done) / done
        self._write(f"{done:,} of {total:,} {unit}  {figure}  {left:,.0f} s left")

    def end(self) -> None:
        """Leave the terminal's line empty for what comes next."""
        if self._shown:
            self._put("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        if self._is_terminal:
            self._put("\r" + text.ljust(self._shown))
            self._shown = max(self._shown, len(text))
        else:
            self._put(text + "\n")

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # a reader that went away, or a full disk, is no reason to stop
            self._speaks = False
