"""A thread beside the training that shows the run's confirmed lines to its tracker, and can cost the run nothing.

Whatever a tracker raises is one warning. One that hangs is left alone: training never waits for it, and the end of a
run waits seconds.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from nanogpt.config.tracker import NoTracker
from nanogpt.describe import Description
from nanogpt.record import PUBLISHED, Record
from nanogpt.trackers.confirmed import ConfirmedLines
from nanogpt.trackers.files import earlier_step, tracker_id, write_state
from nanogpt.trackers.reach import wandb_mode
from nanogpt.trackers.registry import check_installed, make_tracker
from nanogpt.trackers.tracker import TrackedRun, Tracker, as_metrics, as_summary

POLL_SECONDS = 1.0
STANDSTILL_SECONDS = 20.0  # the end of a run waits this long for a tracker that gets nowhere
MOST_SECONDS = 60.0  # and this long for one that does
AGAIN_SECONDS = 3.0  # as the first, where another run of the folder has just met a tracker that hangs
ASKED_SECONDS = 5.0  # as the first, where someone waits for the process to go
MARK_SECONDS = 600.0
HUNG_NAME = ".tracker-hung"
CHUNK = 100  # lines between two signs of life
TOLD: set[tuple[Path, str]] = set()
LEFT_ALONE = threading.Event()  # set when a tracker of this process was not ended


class Mirror:
    """Shows one attempt's history to a tracker, from a thread of its own."""

    def __init__(self, description: Description, folder: Path, attempt: int, step: int) -> None:
        self._description, self._folder, self._attempt = description, folder, attempt
        self._settings = description.config.runtime.tracker
        self._record: Record | None = None
        self._wake = threading.Event()
        self._over, self._abandoned = False, False
        self._advanced = time.monotonic()
        self._shown = self._held = 0
        self._tracker: Tracker | None = None
        self._run: TrackedRun | None = None
        self._lines: ConfirmedLines | None = None
        self._first_step = step
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")
        self._thread.start()

    def close(self, record: Record) -> None:
        """The run has ended and its outcome is written: show what is left, for as long as that gets on."""
        began, patience = time.monotonic(), self._patience(record)
        self._record, self._over = record, True
        self._wake.set()
        try:
            while self._thread.is_alive():
                now = time.monotonic()
                if now - max(self._advanced, began) > patience or now - began > MOST_SECONDS:
                    self._give_up(now - self._advanced)
                    return
                self._thread.join(0.02)
        except KeyboardInterrupt:  # whoever waits for it need not
            self.abandon()
            return
        with contextlib.suppress(OSError):
            self._mark.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leave everything as it is: the attempt was superseded, or broke off without an outcome."""
        self._abandoned = True
        self._wake.set()
        LEFT_ALONE.set()
        self._thread.join(0.2)

    @property
    def _mark(self) -> Path:
        return self._folder.parent / HUNG_NAME

    def _patience(self, record: Record) -> float:
        """A study of hundreds of runs must not wait for the same hanging tracker hundreds of times."""
        if record.status == "interrupted":
            return ASKED_SECONDS
        with contextlib.suppress(OSError):
            if time.time() - self._mark.stat().st_mtime < MARK_SECONDS:
                return AGAIN_SECONDS
        return STANDSTILL_SECONDS

    def _give_up(self, stood: float) -> None:
        self._abandoned = True
        LEFT_ALONE.set()
        with contextlib.suppress(OSError):
            self._mark.touch()
        why = f"hangs since {stood:.0f} s, at step {self._shown}"
        self._warn(f"{why}; the run ends without it")
        self._note("gave up", why)

    def _work(self) -> None:
        try:
            self._start()
            while self._turn():
                self._wake.wait(POLL_SECONDS)
                self._advanced = time.monotonic()
        except BaseException as error:  # some trackers end the process when they have no key
            if not self._abandoned:
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                self._warn(f"{why}; the run goes on without it")
                self._note("gave up", why)

    def _start(self) -> None:
        description, settings = self._description, self._settings
        check_installed(settings)
        id = tracker_id(self._folder, description.id)
        names = ("steps", "tokens", "flops", "flops_per_token", "n_params", "n_params_non_embedding", "n_params_active")
        self._run = TrackedRun(
            id=id,
            name=self._folder.resolve().name,
            folder=self._folder,
            attempt=self._attempt,
            settings=settings,
            config=description.config.model_dump(mode="json"),
            facts={"id": description.id, **{name: getattr(description, name) for name in names}},
            earlier_step=earlier_step(self._folder, settings.kind),
        )
        self._lines = ConfirmedLines(self._run.attempt_folder, self._first_step)
        tracker = make_tracker(settings)
        held = tracker.start(self._run)
        if not isinstance(held, int):
            raise TypeError(f"start returned {held!r}, not the step up to which it has the run's lines (0: none)")
        self._held = self._shown = held
        self._tracker = tracker
        self._advanced = time.monotonic()
        told = (self._folder.resolve().parent, tracker.warning)
        if tracker.warning and told not in TOLD:  # once for all runs of a study in one process
            TOLD.add(told)
            self._warn(tracker.warning)
        self._note("open")

    def _turn(self) -> bool:
        """Show what is confirmed by now; returns whether there is more to come."""
        assert self._tracker is not None
        assert self._lines is not None
        if self._abandoned:
            return False
        over = self._over  # asked before the lines are read: those of the end are then among them
        is_result = self._record is not None and self._record.status in PUBLISHED
        lines = [line for line in self._lines.take(everything=over and is_result) if line["step"] > self._held]
        for first in range(0, len(lines), CHUNK):
            chunk = lines[first : first + CHUNK]
            self._tracker.log([as_metrics(line) for line in chunk])
            self._advanced, self._shown = time.monotonic(), chunk[-1]["step"]
            if self._abandoned:
                return False
        if lines:
            self._note("open")
        if over:
            assert self._record is not None
            self._tracker.finish(self._record.status, as_summary(self._record.model_dump(mode="json")))
            self._note("finished")
        return not over

    def _note(self, state: str, why: str = "") -> None:
        """Keep how far it got, for `experiments sync` and for the next attempt."""
        known = {"kind": self._settings.kind, "state": state, "step": self._shown}
        if self._tracker is not None and self._run is not None:
            known |= {"id": self._run.id, "upload": self._tracker.upload, "place": self._tracker.place}
        with contextlib.suppress(OSError):
            write_state(self._folder, self._attempt, {**known, **({"why": why} if why else {})})

    def _warn(self, why: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"nanogpt: tracker {self._settings.kind}: {why}", file=sys.stderr, flush=True)


class Mirrored:
    """What `mirrored` hands out: told the record of the run when it has ended."""

    def __init__(self, mirror: Mirror | None) -> None:
        self._mirror = mirror

    def ended(self, record: Record) -> Record:
        if self._mirror is not None:
            self._mirror.close(record)
        return record


@contextlib.contextmanager
def mirrored(description: Description, folder: Path, attempt: int, step: int, leads: bool) -> Iterator[Mirrored]:
    """A run's tracker while the run trains, in the process of its leader. Without one, nothing is loaded or started.

    `step` is that of the checkpoint it goes on from.
    """
    settings = description.config.runtime.tracker
    off = isinstance(settings, NoTracker) or (settings.kind == "wandb" and wandb_mode() == "disabled")
    mirror = Mirror(description, folder, attempt, step) if leads and not off else None
    try:
        yield Mirrored(mirror)
    except BaseException:
        if mirror is not None:
            mirror.abandon()
        raise


def leave(status: int) -> None:
    """End the process at once where a tracker was left alone: what it has registered for the end may hang, too."""
    if LEFT_ALONE.is_set():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
