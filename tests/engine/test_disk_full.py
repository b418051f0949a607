"""The engine on a full disk: one line with the file, the free space and what to do, and no half-written checkpoint."""

import errno
import os
from pathlib import Path

import pytest
import torch

from nanogpt import checkpoint
from nanogpt.__main__ import main
from nanogpt.config import is_disk_full
from nanogpt.configfile import dump_yaml
from nanogpt.history import HistoryWriter
from nanogpt.record import attempt_folder
from nanogpt.reporting import Narrator

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def test_a_disk_that_is_full_in_training_is_one_line(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    home = attempt_folder(folder, 1)
    home.mkdir(parents=True)
    (home / "history.jsonl").symlink_to(FULL)
    (folder / "config.yaml").write_text(dump_yaml(tiny().model_dump(mode="json")))
    assert main(["train", str(folder), "--attempt", "1", "--fence", str(folder / "lease.2")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"nanogpt: {home}/history.jsonl: No space left on device: ")
    assert error.endswith("; make room there, then run again\n")
    assert error.count("\n") == 1
    assert not (home / "outcome.json").exists()


def test_what_torch_says_of_a_full_disk_is_translated(tmp_path, monkeypatch):
    attempt_folder(tmp_path, 1).mkdir(parents=True)
    ask = checkpoint._ask_for_room

    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="unexpected pos"):  # there is room: it is something else
        checkpoint.save(tmp_path, 1, 7, {})
    monkeypatch.setattr(checkpoint, "_ask_for_room", lambda _: ask(FULL))
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(tmp_path, 1, 7, {})
    assert is_disk_full(caught.value)
    assert caught.value.filename.endswith("attempts/1/checkpoint-00000007.pt")
    assert not list(attempt_folder(tmp_path, 1).iterdir())


def test_a_history_names_itself():
    with pytest.raises(OSError, match="No space left") as caught, HistoryWriter(FULL, []) as history:
        history.write({"step": 1})
    assert caught.value.filename == str(FULL)


def test_a_log_without_room_does_not_end_the_training(monkeypatch):
    class Log:
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None:
            """Nothing was written."""

    monkeypatch.setattr("sys.stdout", Log())
    narrator = Narrator.__new__(Narrator)
    narrator._has_reader = True
    narrator._print("step 1")
