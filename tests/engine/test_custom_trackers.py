"""Trackers that others wrote: three methods are enough, and what lacks them is named, mostly before a run starts."""

import sys
from typing import Any, cast

import pytest
from pydantic import TypeAdapter

from nanogpt.config import UserError
from nanogpt.config.tracker import CustomTracker, TrackerSection
from nanogpt.trackers import TrackedRun, Tracker, check_installed, make_tracker


class ThreeMethods:
    """What the page asks for, and no base class."""

    said: tuple[Any, ...] = ()

    def start(self, run: Any) -> int:
        self.place = "there"
        return 7

    def log(self, lines: Any) -> None:
        self.said += tuple(lines)

    def finish(self, status: str, summary: Any) -> None:
        self.said += (status, summary)

    class Inner:
        """Found by its dotted name."""


class OneMethod:
    def start(self, run: Any) -> int:
        return 0


def custom(name: str) -> CustomTracker:
    return CustomTracker(factory=f"{__name__}:{name}")


def test_three_methods_are_a_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    lent = ThreeMethods()
    monkeypatch.setattr(sys.modules[__name__], "OneMethod", lambda: lent)
    tracker = make_tracker(custom("OneMethod"))
    assert isinstance(tracker, Tracker)
    assert tracker.start(cast(TrackedRun, None)) == 7
    tracker.log([{"step": 1}])
    tracker.finish("completed", {})
    assert lent.said == ({"step": 1}, "completed", {})
    assert (tracker.place, tracker.upload, tracker.warning) == ("there", "", "")


@pytest.mark.parametrize("value", [None, False, True])
def test_a_switch_is_asked_which_tracker_it_means(value: Any) -> None:
    with pytest.raises(ValueError, match=f"expected none, wandb, tensorboard, trackio or custom, got {value}"):
        TypeAdapter(TrackerSection).validate_python(value)


def test_what_has_not_all_methods_is_named() -> None:
    with pytest.raises(TypeError, match="makes a OneMethod without log, finish"):
        make_tracker(custom("OneMethod"))


def test_a_class_that_its_module_lacks_is_named_before_anything_starts() -> None:
    for name in ("ThreeMethods", "TrackedRun", "ThreeMethods.Inner"):
        check_installed(custom(name))
    check_installed(CustomTracker(factory="os:fspath"))
    with pytest.raises(UserError, match=r"no ThreeMethod in .*test_custom_trackers.py; did you mean ThreeMethods\?"):
        check_installed(custom("ThreeMethod"))
