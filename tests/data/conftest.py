"""Pieces so small that a few kilobytes make many."""

import pytest

from nanogpt.data import making, pieces, plan, sources


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a few kilobytes make many, and a note after each."""
    for module in (pieces, sources, plan):
        monkeypatch.setattr(module, "PIECE", 1000)
    monkeypatch.setattr(pieces, "WINDOW", 100)
    monkeypatch.setattr(making, "NOTE_SECONDS", 0.0)
