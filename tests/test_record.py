"""Records: written whole, published once, validated on reading."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nanogpt.config import UserError
from nanogpt.record import (
    Record,
    attempt_folder,
    publish,
    read_history,
    read_published,
    read_record,
    replacing,
    to_json,
    write_atomic,
    write_record,
)

FIELDS: dict[str, Any] = {
    "id": "0123456789ab",
    "status": "completed",
    "val_loss": 2.5,
    "steps": 10,
    "tokens": 640,
    "flops": 1e6,
    "flops_per_token": 1562,
    "n_params": 100,
    "n_params_non_embedding": 60,
    "n_params_active": 100,
    "wall_seconds": 1.0,
    "cpu_seconds": 1.0,
    "seed": 1,
    "attempts": 1,
    "config": {},
    "parameters": {"hidden": 60, "embedding": 40},
    "environment": {},
}


def outcome(folder: Path, attempt: int, **changes: Any) -> None:
    home = attempt_folder(folder, attempt)
    home.mkdir(parents=True, exist_ok=True)
    (home / "history.jsonl").write_text(json.dumps({"step": attempt}) + "\n")
    write_record(home / "outcome.json", Record(**{**FIELDS, **changes}))


def test_round_trip(tmp_path: Path) -> None:
    record = Record(**FIELDS, val_entropy=1.9, error={"class": "X"})
    write_record(tmp_path / "metrics.json", record)
    assert read_record(tmp_path / "metrics.json") == record


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged or truncated"),
        ('{"id": "a', "damaged or truncated"),
        ("[1]", "expected a JSON object, found a list"),
        ('{"schema_version": 2}', r"written by a newer version \(schema 2; this one reads up to 1\)"),
        ('{"schema_version": 1}', "not a record of a run: id: Field required"),
        (json.dumps({**FIELDS, "colour": 1}), "not a record of a run: colour: Extra inputs"),
        (json.dumps({**FIELDS, "status": "running"}), "not a record of a run: status"),
        (json.dumps({**FIELDS, "val_loss": None}), "not a record of a run: status: .* a completed run has a val_loss"),
        (json.dumps({**FIELDS, "schema_version": "9"}), "not a record of a run: schema_version"),
        (json.dumps({**FIELDS, "schema_version": 0}), "not a record of a run: schema_version"),
        (json.dumps({**FIELDS, "val_loss": float("nan")}), "not a record of a run: val_loss"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_is_never_written() -> None:
    with pytest.raises(ValidationError):
        Record(**{**FIELDS, "val_loss": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"x": float("inf")})


def test_only_a_result_is_published(tmp_path: Path) -> None:
    write_record(tmp_path / "metrics.json", Record(**{**FIELDS, "status": "failed"}))
    with pytest.raises(UserError, match="status failed: only a result is published"):
        read_published(tmp_path)


def test_publishing_happens_once(tmp_path: Path) -> None:
    outcome(tmp_path, 1)
    outcome(tmp_path, 2, val_loss=9.0)
    assert publish(tmp_path, 1, factors={"model.n_layer": 4})
    assert not publish(tmp_path, 2)
    record = read_record(tmp_path / "metrics.json")
    assert (record.val_loss, record.factors) == (2.5, {"model.n_layer": 4})
    assert read_history(tmp_path / "history.jsonl") == [{"step": 1}]
    assert not list(tmp_path.glob(".*"))


def _publish(folder: Path, attempt: int) -> bool:
    return publish(folder, attempt)


def test_of_many_publishers_one_wins(tmp_path: Path) -> None:
    for attempt in range(1, 9):
        outcome(tmp_path, attempt)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        won = pool.starmap(_publish, [(tmp_path, attempt) for attempt in range(1, 9)])
    assert sum(won) == 1


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_history(path) == [{"step": 1}, {"step": 2}]
    for damage in (b'{"st', b"[1]", b'{"tokens": 1}'):
        path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
        with pytest.raises(UserError, match=r"history\.jsonl:2: damaged"):
            read_history(path)
        assert read_history(path, forgiving=True) == [{"step": 1}, {"step": 3}]
    path.write_bytes(b'\xff\xfe\n{"step": 3}\n')
    with pytest.raises(UserError, match="cannot be read"):
        read_history(path)
    assert read_history(path, forgiving=True) == [{"step": 3}]
    assert read_history(tmp_path / "none.jsonl") == []


def test_a_failed_write_keeps_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "loss.png"
    with replacing(path) as mine, replacing(path) as theirs:
        mine.write_text("mine")
        theirs.write_text("theirs")
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["loss.png"]


def test_a_file_that_was_not_finished_replaces_nothing(tmp_path):
    path = tmp_path / "loss.png"
    path.write_text("old")

    def half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["loss.png"]
