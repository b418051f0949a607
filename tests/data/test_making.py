"""`prepare` killed at every step, its workers too: what it makes in the end is what it would have made at once."""

import errno
import gzip
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nanogpt.__main__ import main
from nanogpt.data import making, tokenizing
from nanogpt.data.shardwriter import SplitWriter
from tests.data.preparing import Killed, Killer, contents, run, texts, write_jsonl


@pytest.mark.parametrize(("name", "more"), [("mine", ["--format", "llmc", "--shard-tokens", "3000"]),
                                            ("fineweb-edu", ["--shard-tokens", "2000"])])  # fmt: skip
def test_a_kill_anywhere_changes_nothing(
    name: str, more: list[str], small_pieces: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(24) + texts(4))
    if name == "fineweb-edu":  # a packed file comes as a stream, which can only be taken up from its beginning
        (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
        source = tmp_path / "in.jsonl.gz"
    whole = contents(run(name, source, tmp_path / "whole", *more))
    killer = Killer(monkeypatch)
    run(name, source, tmp_path / "counted", *more)
    points = killer.count
    assert points > 25
    for at in range(1, points, 1 + points // 16):
        root = tmp_path / f"killed{at}"
        killer.at, killer.count = at, 0
        with pytest.raises(Killed):
            run(name, source, root, *more)
        killer.count = 0  # and again at the same step of what is left, where it has so many
        try:
            run(name, source, root, *more)
        except Killed:
            killer.at = 10**9
            run(name, source, root, *more)
        killer.at = 10**9
        assert contents(root / f"{name}.byte") == whole, at


def test_a_changed_source_starts_anew(small_pieces: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(24))
    killer = Killer(monkeypatch)
    killer.at = 16
    with pytest.raises(Killed):
        run("mine", source, tmp_path / "data")
    killer.at = 10**9
    write_jsonl(source, texts(24, seed=1))
    folder = run("mine", source, tmp_path / "data")
    assert contents(folder) == contents(run("mine", source, tmp_path / "other"))


def test_damage_while_interrupted_is_found(small_pieces: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A power failure may leave zeros where a note says that tokens are."""
    source = write_jsonl(tmp_path / "in.jsonl", texts(24))
    whole = contents(run("mine", source, tmp_path / "whole"))
    killer = Killer(monkeypatch)
    killer.at = 16
    with pytest.raises(Killed):
        run("mine", source, tmp_path / "data")
    killer.at = 10**9
    begun = tmp_path / "data" / "mine.byte" / making.WORK / "train.bin"
    begun.write_bytes(bytes(1000) + begun.read_bytes()[1000:])
    assert contents(run("mine", source, tmp_path / "data")) == whole


def test_a_full_disk_costs_no_work(
    small_pieces: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(24))
    whole = contents(run("mine", source, tmp_path / "whole"))
    write, calls = SplitWriter._write, iter(range(10**9))

    def full(writer: SplitWriter, data: memoryview) -> None:
        if next(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", "train.bin")
        write(writer, data)

    monkeypatch.setattr(SplitWriter, "_write", full)
    argv = ["prepare", "mine", "--from", str(source), "--data_dir", str(tmp_path / "data"), "--tokenizer", "byte"]
    assert main([*argv, "--workers", "1"]) == 1
    assert "train.bin: No space left on device" in capsys.readouterr().err
    assert (tmp_path / "data" / "mine.byte" / making.WORK / making.PROGRESS).exists()
    assert contents(run("mine", source, tmp_path / "data")) == whole


def test_a_worker_that_is_killed_costs_nothing(
    small_pieces: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(60))
    whole = contents(run("mine", source, tmp_path / "whole"))
    real = tokenizing.Pool.map

    def map_and_kill(pool: tokenizing.Pool, given: Any) -> Any:
        for count, each in enumerate(real(pool, given)):
            if count == 5:
                os.kill(pool._workers[0].pid, signal.SIGKILL)
            yield each

    argv = ["prepare", "mine", "--from", str(source), "--tokenizer", "byte", "--data_dir", str(tmp_path / "data")]
    monkeypatch.setattr(tokenizing.Pool, "map", map_and_kill)
    assert main([*argv, "--workers", "2"]) == 2
    assert "a tokenizing process was ended by SIGKILL; out of memory?" in capsys.readouterr().err
    monkeypatch.setattr(tokenizing.Pool, "map", real)
    assert contents(run("mine", source, tmp_path / "data")) == whole


@pytest.mark.slow  # half a minute: real processes, really killed
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [text * 60 for text in texts(2000)])
    command = [sys.executable, "-m", "nanogpt", "prepare", "mine", "--from", str(source), "--tokenizer", "byte"]
    command += ["--workers", "2", "--shard-tokens", "1000000", "--val-share", "0.1", "--data_dir"]
    started = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    seconds = time.monotonic() - started  # on this machine, as busy as it is
    whole = contents(tmp_path / "whole" / "mine.byte")
    rng, killed = random.Random(0), 0
    for turn in range(6):
        data = str(tmp_path / f"data{turn}")
        while True:
            process = subprocess.Popen([*command, data], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.1, 0.9) * seconds)
            process.send_signal(signal.SIGKILL)
            if process.wait() == 0:
                break
            killed += 1
            if killed % 5 == 4:  # and now undisturbed, however soon after the kill
                assert subprocess.run([*command, data], capture_output=True).returncode == 0
                break
        assert contents(Path(data) / "mine.byte") == whole
    assert killed
