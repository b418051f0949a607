"""Checkpoints: a torn or damaged one is never loaded, the one before it is, and there is never a start from noise."""

import hashlib
from pathlib import Path

import pytest
import torch

from nanogpt import checkpoint
from nanogpt.config import UserError
from nanogpt.record import attempt_folder


def save(folder: Path, attempt: int, *steps: int) -> None:
    attempt_folder(folder, attempt).mkdir(parents=True, exist_ok=True)
    for step in steps:
        checkpoint.save(folder, attempt, step, {"value": torch.full((64,), float(step))})


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def path_of(folder: Path, attempt: int, step: int) -> Path:
    return attempt_folder(folder, attempt) / f"checkpoint-{step:08d}.pt"


def test_the_furthest_is_loaded_whatever_attempt_wrote_it(tmp_path: Path) -> None:
    save(tmp_path, 1, 10, 20)
    save(tmp_path, 2, 15)
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.file.attempt, loaded.file.step, loaded.state["value"][0]) == (1, 20, 20.0)
    early = checkpoint.load_latest(tmp_path, before_step=16)
    assert early is not None
    assert early.file.step == 15
    assert checkpoint.load_latest(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("harm", ["flip", "truncate", "no digest", "empty digest"])
def test_damage_is_named_and_the_one_before_is_used(tmp_path: Path, harm: str) -> None:
    save(tmp_path, 1, 10, 20)
    path = path_of(tmp_path, 1, 20)
    digest = path.with_name(path.name + ".sha256")
    if harm == "flip":
        flip_a_byte(path)
    elif harm == "truncate":
        path.write_bytes(path.read_bytes()[:100])
    elif harm == "empty digest":
        digest.write_text("")
    else:
        digest.unlink()  # what a kill between the two writes leaves: no warning, it never was a checkpoint
        loaded = checkpoint.load_latest(tmp_path)
        assert loaded is not None
        assert loaded.file.step == 10
        return
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert loaded.file.step == 10
    assert len(loaded.damaged) == 1
    assert f"{path}: damaged checkpoint" in loaded.damaged[0]


def test_without_a_good_one_there_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, 1, 10, 20)
    for step in (10, 20):
        flip_a_byte(path_of(tmp_path, 1, step))
    with pytest.raises(UserError, match=r"no good checkpoint .*00000020.*00000010"):
        checkpoint.load_latest(tmp_path)


def test_one_flipped_byte_would_have_passed_torch(tmp_path: Path) -> None:
    """Why the sha256 is there: torch.load itself takes a damaged tensor without a word."""
    save(tmp_path, 1, 10)
    path = path_of(tmp_path, 1, 10)
    data = bytearray(path.read_bytes())
    needle = torch.tensor([10.0]).numpy().tobytes() * 8
    data[data.index(needle) + 3] ^= 1
    path.write_bytes(data)
    value = torch.load(path, weights_only=True)["value"]
    assert not torch.equal(value, torch.full((64,), 10.0))


def test_pruning_keeps_what_it_must(tmp_path: Path) -> None:
    save(tmp_path, 1, 10, 20)
    save(tmp_path, 2, 30)
    checkpoint.prune(tmp_path, 2, keep=2)
    assert [c.step for c in checkpoint.listed(tmp_path)] == [30, 20, 10], "one of its own is not enough yet"
    save(tmp_path, 2, 40, 50)
    checkpoint.prune(tmp_path, 2, keep=2, every=20, also={30})
    assert [c.step for c in checkpoint.listed(tmp_path)] == [50, 40, 30, 20]
    checkpoint.prune(tmp_path, 2, keep=2)
    assert [c.step for c in checkpoint.listed(tmp_path)] == [50, 40]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_file_with_a_right_digest_that_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1, 10, 20)
    path = path_of(tmp_path, 1, 20)
    path.write_bytes(b"junk")
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(b"junk").hexdigest())
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert loaded.file.step == 10
    assert "it is no checkpoint" in loaded.damaged[0]
