"""`prepare` and bad input: damage is named, what it did not make stays, and every mistake is one line."""

import gzip
import random
from pathlib import Path

import pytest

from nanogpt.__main__ import main
from tests.data.preparing import Killed, Killer, contents, run, texts, write_jsonl


def test_verify_finds_a_flipped_byte_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("mine", write_jsonl(tmp_path / "in.jsonl", texts()), tmp_path / "data")
    argv = ["prepare", "mine", "--verify", "--data_dir", str(tmp_path / "data")]
    assert main(argv) == 0
    assert "every byte is as it was prepared" in capsys.readouterr().out
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert main(argv) in (1, 2), (path, at)
            assert path.name in capsys.readouterr().err
        path.write_bytes(whole)
    assert main(argv) == 0


def test_a_truncated_shard_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts())
    folder = run("mine", source, tmp_path / "data")
    whole = contents(folder)
    run("mine", source, tmp_path / "data")
    assert "already prepared" in capsys.readouterr().out
    (folder / "train.bin").write_bytes(whole["train.bin"][:-2])
    assert contents(run("mine", source, tmp_path / "data")) == whole
    assert "train.bin" in capsys.readouterr().err


def test_clean_removes_only_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts())
    folder = run("mine", source, tmp_path / "data")
    (folder / "notes.txt").write_text("mine")
    argv = ["prepare", "mine", "--clean", "--data_dir", str(tmp_path / "data")]
    assert main(argv) == 0
    assert list(folder.iterdir()) == [folder / "notes.txt"]
    assert "left notes.txt" in capsys.readouterr().out
    killer = Killer(monkeypatch)
    killer.at = 8
    with pytest.raises(Killed):
        run("mine", source, tmp_path / "data")
    killer.at = 10**9
    assert main(argv) == 0
    assert list(folder.iterdir()) == [folder / "notes.txt"]
    (folder / "train.bin").write_bytes(b"precious")
    assert (
        main(["prepare", "mine", "--from", str(source), "--data_dir", str(tmp_path / "data"), "--tokenizer", "byte"])
        == 2
    )
    assert "train.bin lies there, and prepare has not made it" in capsys.readouterr().err
    assert (folder / "train.bin").read_bytes() == b"precious"


PACKED = gzip.compress(random.Random(0).randbytes(500).hex().encode(), mtime=0)
BAD: list[tuple[list[str], dict[str, bytes], str]] = [
    (["wikitext2"], {"a.txt": b"x"}, "did you mean 'wikitext-2'?"),
    (["mine"], {"a.jsonl": b'{"text": "x"}\n{"text": "y"\n'}, "a.jsonl:2: not JSON"),
    (
        ["mine"],
        {"a.jsonl": b'{"texts": "x"}\n'},
        "a.jsonl:1: expected an object with 'text', or a text; did you mean 'texts'?",
    ),
    (["mine"], {"a.jsonl": b'{"text": 3}\n'}, "a.jsonl:1: text: expected a text, found a int"),
    (["mine"], {"a.jsonl": b'[{"text": "x"}]\n'}, "expected an object with 'text'"),
    (["mine"], {"a.txt": b"fine", "b.txt": b"caf\xe9"}, "b.txt: not UTF-8: byte 3 is 0xe9; --encoding-errors replace"),
    (["mine"], {"a.py": b"x = 1"}, "--glob '*.py' takes others as texts"),
    (["mine", "--glob", "*.rs"], {"a.py": b"x = 1"}, "no file matches '*.rs'; there are 1 of .py"),
    (["mine"], {"a.txt": b""}, "the file is empty"),
    (["mine"], {"a.parquet": b"no table"}, "a.parquet: not a parquet file"),
    (["mine"], {"a.jsonl": b'{"text": "x"}\n'}, "one document alone"),
    (["mine", "--shard-tokens", "9", "--format", "nanogpt"], {"a.txt": b"x y z"}, "one file per split"),
    (["mine", "--val-share", "2"], {"a.txt": b"x y z"}, "between 0 and 1"),
    (["shakespeare", "--val-share", "0.5"], {"a.txt": b"x y z"}, "has its own split"),
    (["fineweb-edu"], {"a.txt": b"x y z", "b.txt": b"x"}, "give --shard-tokens 1 or so"),
    (["wikitext-2"], {"wiki.valid.raw": b"x", "wiki.test.raw": b"y"}, "no file of WikiText's train split"),
    (["mine"], {"a.jsonl": b'{"text": ""}\n{"text": null}\n'}, "all documents are empty"),
    (["mine"], {"a.txt.gz": PACKED[:-30]}, "a.txt.gz: damaged, or no .gz file: Compressed file ended before"),
    (["mine"], {"a.txt.gz": PACKED[:200] + b"!" + PACKED[201:]}, "a.txt.gz: damaged, or no .gz file"),
    (["mine"], {"a.txt.gz": b"plain"}, "a.txt.gz: damaged, or no .gz file: Not a gzipped file"),
    (["mine"], {"a.jsonl.bz2": b"plain"}, "a.jsonl.bz2: damaged, or no .bz2 file"),
    (["mine"], {"a.txt.xz": b"plain"}, "a.txt.xz: damaged, or no .xz file"),
    (["../mine"], {"a.txt": b"x"}, "cannot name a folder"),
    (["mine", "--tokenizer", "gtp2"], {"a.txt": b"x"}, "did you mean 'gpt2'?"),
]


@pytest.mark.parametrize(("argv", "files", "message"), BAD, ids=[message[:30] for _, _, message in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(
    argv: list[str], files: dict[str, bytes], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "a.parquet" in files:
        pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    more = ["--from", str(tmp_path / "in"), "--data_dir", str(tmp_path / "data"), "--workers", "1"]
    more += [] if "--tokenizer" in argv else ["--tokenizer", "byte"]
    assert main(["prepare", *argv, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not [path for path in (tmp_path / "data").rglob("*") if path.exists()]


def test_a_file_with_characters_that_the_tokenizer_lacks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "data")
    (tmp_path / "a.txt").write_text("abc" * 50)
    assert main(["prepare", "a", "--from", str(tmp_path / "a.txt"), "--tokenizer", "char", "--data_dir", root]) == 0
    source = write_jsonl(tmp_path / "b.jsonl", ["ab", "c", "abz"])
    more = ["--tokenizer", str(tmp_path / "data" / "a.char"), "--workers", "1", "--data_dir", root]
    assert main(["prepare", "b", "--from", str(source), *more]) == 2
    assert f"{source}: characters outside the vocabulary: 'z'; allowed: 'abc'" in capsys.readouterr().err


def test_without_a_network_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("wikitext-103", "shakespeare"):
        assert main(["prepare", name, "--tokenizer", "byte", "--data_dir", str(tmp_path / "data")]) == 2
        error = capsys.readouterr().err
        assert "cannot download https://" in error
        assert "HF_HUB_OFFLINE=1" in error
        assert "pass --from PATH" in error
    assert not (tmp_path / "data").exists()
