"""What `prepare` makes: splits without a common document, files that others read, of every kind of source."""

import gzip
import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt.__main__ import main
from nanogpt.config.data import BinFolder, Data
from nanogpt.config.runtime import Runtime
from nanogpt.data import making, opening, pieces, sources
from nanogpt.data.alphabets import Characters
from nanogpt.data.manifest import read_manifest
from nanogpt.data.plan import Request, make_plan
from nanogpt.data.tokenizers import read_tokenizer, write_tokenizer
from tests.data.preparing import contents, documents_of, ids, run, texts, write_jsonl


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


def test_a_document_is_the_same_in_other_clothes(small_pieces: None, tmp_path: Path) -> None:
    """With a byte order mark, with bytes that are no UTF-8, with half a character in JSON: none is in both splits."""
    given = [
        text + " \ufffd" * (n % 2) for n, text in enumerate([*texts(60), *(text * 9 for text in texts(9, seed=1))])
    ]
    assert sum(len(text.encode()) > 2000 for text in given) > 3  # in several pieces each
    for n, text in enumerate(given):
        (tmp_path / "in" / f"{n}").mkdir(parents=True)
        (tmp_path / "in" / f"{n}" / "a.txt").write_bytes(text.encode())
        (tmp_path / "in" / f"{n}" / "b.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        (tmp_path / "in" / f"{n}" / "c.txt").write_bytes(text.encode().replace(b"\xef\xbf\xbd", b"\xff"))
        write_jsonl(tmp_path / "in" / f"{n}" / "d.jsonl", [text.replace("\ufffd", "\ud83d")])
    made = run("mine", tmp_path / "in", tmp_path / "data", "--val-share", "0.3", "--encoding-errors", "replace")
    train, val = documents_of(ids(made, "train")), documents_of(ids(made, "val"))
    assert sorted(train + val) == sorted(given * 4)
    assert not set(train) & set(val)
    assert len(val) > 20


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
    assert corpus.train[:].tolist() == data.tolist()
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


def test_tables_and_unpacked_lines_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    given = texts(50)
    parquet.write_table(pyarrow.table({"body": given}), tmp_path / "a.parquet", row_group_size=7)
    one = run("mine", tmp_path / "a.parquet", tmp_path / "one", "--val-share", "0.2")
    lines = write_jsonl(tmp_path / "a.jsonl", given)
    two = run("mine", lines, tmp_path / "two", "--val-share", "0.2")
    assert ids(one, "train") == ids(two, "train")
    monkeypatch.setattr(pieces, "LARGE_GROUP", 10)  # so that it is read row by row
    three = run("mine", tmp_path / "a.parquet", tmp_path / "three", "--val-share", "0.2", "--workers", "2")
    assert ids(three, "train") == ids(two, "train")


def test_categories_are_texts(tmp_path: Path) -> None:
    """As pandas writes them, in the only column that could be meant; lists of texts are none."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    given = texts(20)
    table = {"body": pyarrow.array(given).dictionary_encode(), "tags": [["a"]] * 20, "id": range(20)}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    folder = run("mine", tmp_path / "a.parquet", tmp_path / "data")
    assert sorted(documents_of(ids(folder, "train")) + documents_of(ids(folder, "val"))) == sorted(given)


def test_the_order_is_not_the_file_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "C.jsonl", "é.txt", "sub/0.txt", "other/9.txt", ".hidden.txt", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    expected = ["C.jsonl", "a.txt", "b.txt", "é.txt", "other/9.txt", "sub/0.txt"]
    walk = os.walk
    for backwards in (False, True):

        def listed(*args: Any, order: bool = backwards, **kwargs: Any) -> Iterator[Any]:
            for place, folders, names in walk(*args, **kwargs):
                folders.sort(reverse=order)
                yield place, folders, sorted(names, reverse=order)

        monkeypatch.setattr(os, "walk", listed)
        assert [file.name for file in sources.find_files(tmp_path, None)] == expected


@pytest.mark.slow  # twenty seconds: imports `datasets`
def test_a_dataset_of_the_hub_by_its_own_splits(tmp_path: Path) -> None:
    """The code that streams from the Hub, on a folder of the Hub's layout; and going on in the middle of a stream."""
    pytest.importorskip("datasets")
    from nanogpt.data.hub import hub_streams

    given = texts(30)
    for split, part in (("train", given[:25]), ("validation", given[25:])):
        write_jsonl(tmp_path / "in" / "stories" / f"{split}.jsonl", part)
    name = f"hf:{tmp_path / 'in' / 'stories'}"
    assert main(["prepare", name, "--data_dir", str(tmp_path), "--tokenizer", "byte"]) == 0
    folder = tmp_path / "stories.byte"
    assert documents_of(ids(folder, "train")) == given[:25]
    assert documents_of(ids(folder, "val")) == given[25:]
    streams, _ = hub_streams(str(tmp_path / "in" / "stories"), None, None)
    assert list(streams[0].open(7)) == given[7:25]


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
    monkeypatch.setattr(making, "NOTE_SECONDS", 3.0)
    assert main([*argv, "--data_dir", str(tmp_path)]) == 0
    train, val = (np.fromfile(tmp_path / "shakespeare.gpt2" / f"{split}.bin", "<u2") for split in ("train", "val"))
    assert (len(train), len(val)) == (301_966, 36_059)
    text = (shared_data / "tinyshakespeare.txt").read_text()
    tokenizer = read_tokenizer(tmp_path / "shakespeare.gpt2")
    assert tokenizer.encode(text[: int(len(text) * 0.9)]) == train.tolist()


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
