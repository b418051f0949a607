"""Waiting that a signal ends: a worker sleeps until a child ends, someone asks it to stop, or its parent is gone."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # engines warn by each of these


@contextlib.contextmanager
def woken_by_signals(on_stop: Callable[[int], None]) -> Iterator[int]:
    """A descriptor that becomes readable when a child ends or a stop is asked for; the latter also calls `on_stop`."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    handlers: dict[int, Callable[..., None]] = {number: lambda number, _: on_stop(number) for number in STOPS}
    handlers[signal.SIGCHLD] = lambda *_: None
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)
