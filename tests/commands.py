"""A command of the engine as a person types it: what it answers, and the one line that refuses it."""

from pathlib import Path

import pytest

from nanogpt.__main__ import main

Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, command: str, *words: str | Path) -> str:
    """What the command prints on stdout; it must succeed and say nothing else."""
    capsys.readouterr()
    assert main([command, *map(str, words)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def refusal(capsys: Capture, command: str, *words: str | Path) -> str:
    """The one line that refuses the command."""
    capsys.readouterr()
    try:
        status = main([command, *map(str, words)])
    except SystemExit as exit_:  # argparse's way
        status = int(exit_.code or 0)
    output = capsys.readouterr()
    assert (status, output.out, output.err.count("\n")) == (2, "", 1)
    return output.err
