"""Trackers: what shows a run's curve in W&B, TensorBoard or Trackio. Nothing of theirs is loaded unless it is used."""

from nanogpt.trackers.files import forget_unreachable, note_unreachable, read_states, tracker_id
from nanogpt.trackers.reach import wandb_mode, why_unreachable
from nanogpt.trackers.registry import TRACKERS, check_installed, make_tracker
from nanogpt.trackers.replay import replay
from nanogpt.trackers.tracker import Metrics, TrackedRun, Tracker

__all__ = [
    "TRACKERS",
    "Metrics",
    "TrackedRun",
    "Tracker",
    "check_installed",
    "forget_unreachable",
    "make_tracker",
    "note_unreachable",
    "read_states",
    "replay",
    "tracker_id",
    "wandb_mode",
    "why_unreachable",
]
