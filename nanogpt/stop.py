"""Reasons to stop a run early: a signal, a parent process that is gone, a lease that someone else took over."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

CAPTAIN_SECONDS = 0.5  # between looks at whether it lives


class SupersededError(RuntimeError):
    """Another attempt owns this run now; this one must leave no further trace."""


class StopRequest:
    """Set from a signal handler or a watching thread, read by the training loop between two steps."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def ask(self, reason: str) -> None:
        self.reason = self.reason or reason


@contextmanager
def stop_signals(request: StopRequest, patient: bool = False) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a checkpoint and a stop; a second SIGINT interrupts at once, as people expect.

    A `patient` process lets it pass: one Ctrl-C reaches a rank twice, from the terminal and from torchrun.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT and not patient:
            raise KeyboardInterrupt
        request.ask(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; an in-process run elsewhere is stopped by its owner
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that a command takes its unfinished files away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def watch_parent(descriptor: int, gone: Callable[[], None]) -> None:
    """Call `gone`, from a thread, when the pipe's other end closes: the parent is gone, whatever killed it."""

    def wait() -> None:
        while os.read(descriptor, 1):
            pass
        gone()

    threading.Thread(target=wait, daemon=True, name="parent-watch").start()


def watch_captain(request: StopRequest) -> None:
    """Ask for a stop when the process that started this rank is gone: a killed launcher leaves its ranks behind."""
    captain = os.getppid()

    def wait() -> None:
        while os.getppid() == captain:
            time.sleep(CAPTAIN_SECONDS)
        request.ask("launcher gone")

    threading.Thread(target=wait, daemon=True, name="captain-watch").start()


def check_fence(fence: Path | None) -> None:
    """Raise SupersededError when the file that marks a newer owner has appeared."""
    if fence is not None and fence.exists():
        raise SupersededError(f"{fence} exists: another attempt owns this run")
