"""Batches made ahead of time in a thread of their own, so that a training step waits for no disk.

NumPy leaves other threads running while it gathers tokens, page faults of a cold file included.
"""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from nanogpt.data.stream import Batch

BYTES_AHEAD = 2**22
MOST_AHEAD = 64
PATIENCE = 10.0  # seconds for the batch in the making when training stops; a file system that hangs is left behind


class Prefetcher:
    """The batches of steps `first` to `last - 1`, the same and in the same order as without it.

    The thread fills up to `ahead` batches (default: four megabytes of them, at least 2) and then sleeps until half of
    them are taken: waking it for every batch costs a small model more than the batch itself.

    What goes wrong in the thread is raised by the `batch` call that needs its result. The thread ends with the block:
        with Prefetcher(stream.batch, 0, steps) as batches:
            batches.batch(0)
    """

    def __init__(self, make: Callable[[int], Batch], first: int, last: int, ahead: int | None = None) -> None:
        self._make, self._next, self._last, self._ahead = make, first, last, ahead
        self._ready: deque[Batch] = deque()
        self._problem: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        # A daemon: it must not keep a process alive that ends in another way than by leaving the block.
        self._thread = threading.Thread(target=self._work, args=(first,), name="prefetch", daemon=True)

    def batch(self, step: int) -> Batch:
        """The batch of the next step. Steps are asked for in order."""
        assert step == self._next, f"step {step} was asked for, step {self._next} is next"
        with self._changed:
            while not self._ready and self._problem is None:
                self._changed.wait()
            if not self._ready:
                assert self._problem is not None
                raise self._problem
            self._next += 1
            batch = self._ready.popleft()
            if len(self._ready) <= self._lowest:
                self._changed.notify_all()
            return batch

    @property
    def _lowest(self) -> int:
        """How many batches may be left when the thread is woken."""
        return 0 if self._ahead is None else self._ahead // 2

    def _work(self, step: int) -> None:
        try:
            while step < self._last and self._has_room():
                batch = self._make(step)
                step += 1
                with self._changed:
                    if self._ahead is None:
                        size = batch.x_BT.nbytes + batch.y_BT.nbytes
                        self._ahead = min(max(2, BYTES_AHEAD // size), MOST_AHEAD)
                    self._ready.append(batch)
                    if len(self._ready) == 1:
                        self._changed.notify_all()
        except BaseException as problem:
            with self._changed:
                self._problem = problem
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Waits until another batch is wanted; False when none is."""
        with self._changed:
            if self._ahead is not None and len(self._ready) >= self._ahead:
                while len(self._ready) > self._lowest and not self._stopped:
                    self._changed.wait()
            return not self._stopped

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(PATIENCE)
