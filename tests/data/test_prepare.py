"""`prepare`: kills at every step, splits without a common document, others' layouts, and what is said of bad input."""

import gzip
import io
import json
import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nanogpt.__main__ import main
from nanogpt.config.data import BinFolder, Data
from nanogpt.config.runtime import Runtime
from nanogpt.data import opening, pieces, plan, preparing, shards, sources, tokenizing
from nanogpt.data.alphabets import Characters
from nanogpt.data.manifest import read_manifest
from nanogpt.data.plan import Request, make_plan
from nanogpt.data.tokenizers import read_tokenizer, write_tokenizer

EOT = 255  # the byte tokenizer's


def texts(count: int = 40, seed: int = 0) -> list[str]:
    """Documents of 5 to 500 characters, no two alike."""
    rng = random.Random(seed)
    words = ["wherefore", "art", "Ω", "thou?", "naïve\n", "7"]
    return [f"{n} " + " ".join(rng.choices(words, k=rng.randint(1, 80))) for n in range(count)]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def run(name: str, source: Path, root: Path, *more: str) -> Path:
    """Prepare by bytes, and the folder it went to."""
    argv = ["prepare", name, "--from", str(source), "--data_dir", str(root), "--tokenizer", "byte", "--workers", "1"]
    assert main([*argv, *more]) == 0
    return root / f"{name}.byte"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ids(folder: Path, split: str) -> list[int]:
    manifest = read_manifest(folder)
    assert manifest is not None
    files = manifest.splits[split].shards  # type: ignore[index]
    parts = [np.fromfile(folder / shard.file, dtype=manifest.dtype) for shard in files]
    return np.concatenate(parts).tolist()


def documents_of(tokens: list[int]) -> list[str]:
    assert tokens[0] == EOT
    return [part.decode() for part in bytes(tokens).split(bytes([EOT]))[1:]]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a few kilobytes make many, and a note after each."""
    for module in (pieces, sources, plan):
        monkeypatch.setattr(module, "PIECE", 1000)
    monkeypatch.setattr(pieces, "WINDOW", 100)
    monkeypatch.setattr(preparing, "NOTE_SECONDS", 0.0)


class Killed(BaseException):
    """What no code of ours catches, as nothing catches kill -9."""


class Killer:
    """Raises Killed at the `at`-th change of a file, having done half of it where that is possible."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.count = 10**9, 0
        killer = self

        class FileIO(io.FileIO):
            def write(self, data: Any) -> int:
                if killer.tick():
                    super().write(data[: len(data) // 2])
                    raise Killed
                return super().write(data)

        monkeypatch.setattr(shards, "io", SimpleNamespace(FileIO=FileIO, BytesIO=io.BytesIO))
        for name in ("replace", "unlink"):
            self._wrap(monkeypatch, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(Path, name)

        def act(path: Path, *args: Any, **kwargs: Any) -> Any:
            if self.tick():
                raise Killed
            return real(path, *args, **kwargs)

        monkeypatch.setattr(Path, name, act)

    def tick(self) -> bool:
        self.count += 1
        return self.count >= self.at


@pytest.mark.parametrize(("name", "more"), [("mine", ["--format", "llmc", "--shard-tokens", "3000"]),
                                            ("fineweb-edu", ["--shard-tokens", "2000"])])  # fmt: skip
def test_a_kill_anywhere_changes_nothing(
    name: str, more: list[str], small_pieces: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(24) + texts(4))
    whole = contents(run(name, source, tmp_path / "whole", *more))
    killer = Killer(monkeypatch)
    run(name, source, tmp_path / "counted", *more)
    points = killer.count
    assert points > 40
    for at in range(1, points, 5):
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
    begun = tmp_path / "data" / "mine.byte" / preparing.WORK / "train.bin"
    begun.write_bytes(bytes(1000) + begun.read_bytes()[1000:])
    assert contents(run("mine", source, tmp_path / "data")) == whole


def test_every_document_once_and_none_in_both(small_pieces: None, tmp_path: Path) -> None:
    """Through every kind of file, with documents that occur again in other files."""
    given = texts(60)
    folder = tmp_path / "in"
    write_jsonl(folder / "a.jsonl", [*given[:20], ""])
    (folder / "b.txt").write_text(given[20], encoding="utf-8")
    (folder / "sub").mkdir()
    (folder / "sub" / "c.txt").write_text("\n<|endoftext|>\n".join(given[21:40]), encoding="utf-8")
    with gzip.open(folder / "d.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(text) + "\n" for text in given[40:] + given[:30]))
    made = run("mine", folder, tmp_path / "data", "--val-share", "0.3")
    train, val = documents_of(ids(made, "train")), documents_of(ids(made, "val"))
    stripped = [text.strip("\r\n") if text in given[21:40] else text for text in given]
    assert sorted(train + val) == sorted(stripped + given[:30])
    assert not set(train) & {text for text in val if text not in given[21:30]}
    assert len(val) > 5
    manifest = read_manifest(made)
    assert manifest is not None
    assert manifest.splits["train"].documents == len(train)
    assert manifest.splits["val"].text_bytes == sum(len(text.encode()) for text in val)
    assert manifest.source["empty_documents"] == 1


def test_workers_make_the_same_files(small_pieces: None, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(60))
    alone = contents(run("mine", source, tmp_path / "alone"))
    assert contents(run("mine", source, tmp_path / "together", "--workers", "2")) == alone


def test_nanogpt_reads_it_and_so_do_we(tmp_path: Path) -> None:
    folder = run("mine", write_jsonl(tmp_path / "in.jsonl", texts()), tmp_path / "data")
    # nanoGPT's train.py: a memmap of uint16, and vocab_size from meta.pkl.
    data = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
    assert data.tolist() == ids(folder, "train")
    assert pickle.loads((folder / "meta.pkl").read_bytes())["vocab_size"] == 256
    corpus = opening.open_corpus(Data(corpus=BinFolder(path="mine.byte")), Runtime(data_dir=str(tmp_path / "data")))
    assert corpus.train.tolist() == data.tolist()
    assert read_tokenizer(folder).decode(data[1:10].tolist()) == bytes(data[1:10].tolist()).decode()


def test_shards_of_others(tmp_path: Path) -> None:
    """Re-read as build-nanogpt and modded-nanogpt read theirs."""
    source = write_jsonl(tmp_path / "in.jsonl", texts())
    want = ids(run("mine", source, tmp_path / "plain"), "train")
    folder = run("mine", source, tmp_path / "npy", "--shard-tokens", "1000")
    names = sorted(path.name for path in folder.iterdir() if "train" in path.name)
    assert names[:2] == ["mine_train_000001.npy", "mine_train_000002.npy"]
    arrays = [np.load(folder / name) for name in names]
    assert np.concatenate(arrays).tolist() == want
    assert {len(array) for array in arrays[:-1]} == {1000}
    assert arrays[0].dtype == np.uint16
    folder = run("mine", source, tmp_path / "llmc", "--shard-tokens", "1000", "--format", "llmc")
    found: list[int] = []
    for path in sorted(folder.glob("mine_train_*.bin")):
        head = np.fromfile(path, dtype="<i4", count=256)
        tokens = np.fromfile(path, dtype="<u2", offset=1024)
        assert (head[0], head[1], head[2]) == (20240520, 1, len(tokens))
        found += tokens.tolist()
    assert found == want


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    folder, source = tmp_path / "letters", tmp_path / "in.txt"
    folder.mkdir()
    characters = [chr(code) for code in [*range(0xD800), *range(0xE000, 0x1E000)]]
    write_tokenizer(Characters(characters), folder)
    source.write_text("".join(random.Random(0).choices(characters[128:], k=3000)), encoding="utf-8", newline="")
    argv = ["prepare", "big", "--from", str(source), "--data_dir", str(tmp_path), "--tokenizer", str(folder)]
    assert main([*argv, "--format", "llmc"]) == 0
    path = tmp_path / "big.char" / "big_train_000001.bin"
    head, tokens = np.fromfile(path, dtype="<i4", count=256), np.fromfile(path, dtype="<u4", offset=1024)
    assert (head[0], head[1], head[2]) == (20240801, 7, len(tokens))
    val = np.fromfile(tmp_path / "big.char" / "big_val_000000.bin", dtype="<u4", offset=1024)
    assert "".join(characters[token] for token in [*tokens, *val]) == source.read_bytes().decode()


def test_the_first_shard_validates(small_pieces: None, tmp_path: Path) -> None:
    """It ends with a whole document; documents that come again are left out of the training split."""
    given = texts(60)
    source = write_jsonl(tmp_path / "in.jsonl", given + given[:5])
    folder = run("fineweb-edu", source, tmp_path / "data", "--shard-tokens", "3000")
    val = documents_of(np.load(folder / "edufineweb_val_000000.npy").tolist())
    train = [np.load(path) for path in sorted(folder.glob("edufineweb_train_*.npy"))]
    assert val == given[: len(val)]
    assert documents_of(np.concatenate(train).tolist()) == given[len(val) :]
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.source["repeated_documents"] == min(5, len(val))
    assert manifest.splits["val"].tokens <= 3000


def test_a_small_corpus_still_validates(small_pieces: None, tmp_path: Path) -> None:
    for number, text in enumerate(texts(5)):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.txt").write_text(text, encoding="utf-8")
    folder = run("mine", tmp_path / "in", tmp_path / "data", "--val-share", "0.000001")
    assert (len(documents_of(ids(folder, "val"))), len(documents_of(ids(folder, "train")))) == (1, 4)


def test_files_named_for_their_splits(tmp_path: Path) -> None:
    given = texts(9)
    for name, part in (("train-0.jsonl", given[:6]), ("validation.jsonl", given[6:8]), ("test.jsonl", given[8:])):
        write_jsonl(tmp_path / "in" / name, part)
    folder = run("mine", tmp_path / "in", tmp_path / "data")
    assert [documents_of(ids(folder, split)) for split in ("train", "val", "test")] == [
        given[:6],
        given[6:8],
        given[8:],
    ]


ARTICLES = (
    " \n = One = \n \n The first . \n \n = = Part = = \n \n = 1 / s and k = \n of it . \n \n = Two = \n \n End . \n"
)


def test_wikitext_by_article(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"wiki.{split}.raw").write_text(ARTICLES * 30, encoding="utf-8")
    made = run("wikitext-2", folder, tmp_path / "data")
    train = documents_of(ids(made, "train"))
    assert len(train) == 60
    assert train[0].startswith(" = One = \n")
    assert train[1] == " = Two = \n \n End . \n \n"
    assert "".join(train) == (ARTICLES * 30)[2:]
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    tables = tmp_path / "tables"
    tables.mkdir()
    for split in ("train", "validation", "test"):  # as the Hub has them: a line in each row, blank ones empty
        lines = ["" if line == " \n" else line for line in (ARTICLES * 30).splitlines(keepends=True)]
        parquet.write_table(pyarrow.table({"text": lines}), tables / f"{split}-00000-of-00001.parquet")
    again = documents_of(ids(run("wikitext-2", tables, tmp_path / "again"), "train"))
    assert again == train


def test_tables_and_unpacked_lines_agree(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    given = texts(50)
    parquet.write_table(pyarrow.table({"body": given}), tmp_path / "a.parquet", row_group_size=7)
    one = run("mine", tmp_path / "a.parquet", tmp_path / "one", "--val-share", "0.2")
    lines = write_jsonl(tmp_path / "a.jsonl", given)
    two = run("mine", lines, tmp_path / "two", "--val-share", "0.2")
    assert ids(one, "train") == ids(two, "train")


def test_tokenizers_made_of_the_texts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    source = write_jsonl(tmp_path / "in.jsonl", texts())
    for spec in ("char", "bpe300"):
        argv = ["prepare", "mine", "--from", str(source), "--data_dir", str(tmp_path), "--tokenizer", spec]
        assert main([*argv, "--workers", "1"]) == 0
        tokenizer = read_tokenizer(tmp_path / f"mine.{spec}")
        text = tokenizer.decode(ids(tmp_path / f"mine.{spec}", "val"))
        assert any(each in text for each in texts())


def test_shakespeare_is_nanogpts(
    shared_data: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cut into a thousand pieces, and yet the ids of the whole text: the counts of nanoGPT's readme."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    argv = ["prepare", "shakespeare", "--from", str(shared_data / "tinyshakespeare.txt"), "--workers", "1"]
    monkeypatch.setattr(preparing, "NOTE_SECONDS", 3.0)
    assert main([*argv, "--data_dir", str(tmp_path)]) == 0
    train, val = (np.fromfile(tmp_path / "shakespeare.gpt2" / f"{split}.bin", "<u2") for split in ("train", "val"))
    assert (len(train), len(val)) == (301_966, 36_059)
    text = (shared_data / "tinyshakespeare.txt").read_text()
    tokenizer = read_tokenizer(tmp_path / "shakespeare.gpt2")
    assert tokenizer.encode(text[: int(len(text) * 0.9)]) == train.tolist()


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


def test_a_worker_that_is_killed_costs_nothing(
    small_pieces: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(60))
    whole = contents(run("mine", source, tmp_path / "whole"))
    real = tokenizing.Pool.map

    def map_and_kill(pool: tokenizing.Pool, given: Any) -> Any:
        import os
        import signal

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


def test_the_plan_knows_every_setting(tmp_path: Path) -> None:
    """Whatever changes the bytes changes the fingerprint; what does not, does not."""
    source = write_jsonl(tmp_path / "in.jsonl", texts(9))

    def fingerprint(**more: Any) -> str:
        asked = {"name": "mine", "root": tmp_path, "source": str(source), "tokenizer": "byte", **more}
        return make_plan(Request(**asked)).fingerprint

    changes: list[dict[str, Any]] = [
        {}, {"tokenizer": "char"}, {"layout": "llmc"}, {"shard_tokens": 9}, {"val_share": 0.5}, {"errors": "replace"},
        {"column": "id"},
    ]  # fmt: skip
    assert len({fingerprint(**change) for change in changes}) == len(changes)
    assert fingerprint(workers=7, root=tmp_path / "elsewhere") == fingerprint()
