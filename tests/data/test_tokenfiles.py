"""Other people's files train here, ours are read by their code, and what is damaged is named before training."""

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt.config import UserError
from nanogpt.config.data import BinFolder, Data
from nanogpt.config.runtime import Runtime
from nanogpt.data import scanned
from nanogpt.data.binfiles import file_sha256
from nanogpt.data.folders import MissingCorpus
from nanogpt.data.manifest import Manifest, Shard, SplitFiles, TokenizerFacts, content_hash, write_manifest
from nanogpt.data.opening import CorpusFacts, OpenCorpus, facts, open_corpus
from nanogpt.data.stream import TrainStream, make_eval_set
from nanogpt.data.tokenfiles import LLMC_EVAL, Shards, TokenFile, read_layout, windows
from nanogpt.data.tokenizers import load_tokenizer, write_tokenizer

TOKENS = np.arange(1000) % 700  # of each shard, as every writer below cuts them


def raw(path: Path, tokens: Any, dtype: str = "<u2") -> None:
    np.asarray(tokens).astype(dtype).tofile(path)


def npy(path: Path, tokens: Any, dtype: str = "<u2") -> None:
    np.save(path, np.asarray(tokens).astype(dtype))


def llmc(path: Path, tokens: Any, magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> None:
    """As llm.c's data_common.py writes a file: 256 int32, then the tokens."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + np.asarray(tokens).astype(dtype).tobytes())


def folder_of(root: Path, **files: Any) -> Path:
    """A folder with files by name (`__` stands for the dot); a function of a path writes one."""
    root.mkdir(parents=True, exist_ok=True)
    for name, write in files.items():
        write(root / name.replace("__", "."))
    return root


def modded(root: Path) -> Path:
    """Shards as modded-nanogpt has them, with 0 the validation split."""
    parts = {f"fineweb_train_{number:06d}__bin": lambda path: llmc(path, TOKENS) for number in (1, 2)}
    return folder_of(root, fineweb_val_000000__bin=lambda path: llmc(path, TOKENS[:100]), **parts)


def corpus(folder: Path) -> Data:
    return Data(corpus=BinFolder(path=str(folder)))


def found(folder: Path) -> CorpusFacts:
    return facts(corpus(folder), Runtime())


def opened(folder: Path) -> OpenCorpus:
    return open_corpus(corpus(folder), Runtime())


def prepared(root: Path, layout: str, dtype: str, shards: int = 2) -> Path:
    """A folder as `prepare` leaves it, with the end of the text as its first token."""
    tokenizer = load_tokenizer("byte")
    facts_of = TokenizerFacts(
        name="byte", fingerprint=tokenizer.fingerprint, n_vocab=tokenizer.n_vocab, eot=tokenizer.eot
    )
    ids = np.array([tokenizer.eot, *tokenizer.encode("abcd ünd " * 60)])
    write = {"nanogpt": raw, "npy": npy, "llmc": llmc if dtype == "<u2" else llmc_wide}[layout]
    root.mkdir(parents=True)
    splits = {}
    for split, count in (("train", shards), ("val", 1)):
        paths = [root / f"{split}_{number:06d}.{'npy' if layout == 'npy' else 'bin'}" for number in range(count)]
        for path, part in zip(paths, np.array_split(ids, count), strict=True):
            write(path, part) if layout == "llmc" else write(path, part, dtype)
        rows = [
            Shard(file=path.name, tokens=len(part), bytes=path.stat().st_size, sha256=file_sha256(path))
            for path, part in zip(paths, np.array_split(ids, count), strict=True)
        ]
        splits[split] = SplitFiles(shards=tuple(rows), tokens=len(ids), documents=1, text_bytes=len(ids) - 1)
    write_tokenizer(tokenizer, root)
    made = Manifest.model_validate(
        {
            "name": "mine",
            "source": {},
            "tokenizer": facts_of,
            "layout": layout,
            "dtype": {"<u2": "uint16", "<u4": "uint32"}[dtype],
            "splits": splits,
            "content": content_hash(splits, facts_of),
            "files": (),
        }
    )
    write_manifest(root, made)
    return root


def llmc_wide(path: Path, tokens: Any) -> None:
    llmc(path, tokens, 20240801, 7, "<u4")


def test_every_foreign_layout_is_read(tmp_path: Path) -> None:
    """The names of nanoGPT, build-nanogpt, modded-nanogpt and llm.c, each with its usual vocabulary."""
    nano = folder_of(tmp_path / "a", train__bin=lambda p: raw(p, TOKENS), val__bin=lambda p: raw(p, TOKENS[:100]))
    build = folder_of(
        tmp_path / "b",
        edufineweb_train_000001__npy=lambda p: npy(p, TOKENS),
        edufineweb_train_000002__npy=lambda p: npy(p, TOKENS),
        edufineweb_val_000000__npy=lambda p: npy(p, TOKENS[:100]),
    )
    llama = folder_of(
        tmp_path / "c",
        tiny_shakespeare_train__bin=lambda p: llmc_wide(p, TOKENS + 100_000),
        tiny_shakespeare_val__bin=lambda p: llmc_wide(p, TOKENS),
    )
    wide = folder_of(
        tmp_path / "d",
        meta__json=lambda p: p.write_text('{"vocab_size": 200019}'),
        train__bin=lambda p: raw(p, TOKENS + 100_000, "<u4"),
        val__bin=lambda p: raw(p, TOKENS, "<u4"),
    )
    sizes = {each.name: (found(each).vocab_size, found(each).train_tokens, found(each).val_tokens)
             for each in (nano, build, modded(tmp_path / "m"), llama, wide)}  # fmt: skip
    assert sizes == {
        "a": (50304, 1000, 100),
        "b": (50304, 2000, 100),
        "m": (50304, 2000, 100),
        "c": (128256, 1000, 700 + 300),
        "d": (200019, 1000, 1000),
    }
    assert opened(llama).train[[0, 699]].tolist() == [100_000, 100_699]
    assert opened(wide).train[999] == 100_000 + 299
    batch = TrainStream(opened(build), 64, 512, seed=1).batch(3)
    assert ((batch.y_BT - batch.x_BT == 1) | (batch.y_BT == 0)).all(), "windows run on from one shard into the next"


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "..", "", "below/train.bin"])
def test_a_manifest_names_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    """It may have come with somebody else's corpus."""
    folder = prepared(tmp_path / "corpus", "nanogpt", "<u2", shards=1)
    for place in ("splits", "files", "sha256"):
        spoilt = json.loads((folder / "manifest.json").read_text())
        if place == "splits":
            spoilt["splits"]["train"]["shards"][0]["file"] = name
        else:
            spoilt[place] = {"files": [name], "sha256": {name: "0" * 64}}[place]
        copy = tmp_path / place
        copy.mkdir()
        (copy / "manifest.json").write_text(json.dumps(spoilt))
        with pytest.raises(UserError, match="expected the name of a file in the corpus's folder"):
            found(copy)


@pytest.mark.parametrize(("layout", "dtype"), [("nanogpt", "<u2"), ("npy", "<u2"), ("llmc", "<u2"), ("llmc", "<u4")])
def test_prepared_corpora_are_known_by_their_manifest(tmp_path: Path, layout: str, dtype: str) -> None:
    one, other = prepared(tmp_path / "one", layout, dtype), prepared(tmp_path / "other", layout, dtype)
    assert found(one).content == found(other).content == json.loads((one / "manifest.json").read_text())["content"]
    assert list(found(one).files) == [str(one / "manifest.json")], "no shard is read for it"
    tokenizer, open_one = load_tokenizer("byte"), opened(one)
    assert tokenizer.decode(open_one.train[1:].tolist()) == "abcd ünd " * 60
    eval_set = make_eval_set(open_one, 8, None)
    scored = eval_set.batch.y_BT.ravel()
    size = sum(len(tokenizer.token_bytes(int(token))) for token in scored) / len(scored)
    assert eval_set.bytes_per_token == pytest.approx(size), "of the scored targets themselves"


def test_their_loaders_read_our_files(tmp_path: Path) -> None:
    """What the training loops of nanoGPT, build-nanogpt and modded-nanogpt do with a file, written down anew."""
    nano, build = prepared(tmp_path / "n", "nanogpt", "<u2", 1), prepared(tmp_path / "b", "npy", "<u2")
    llm = prepared(tmp_path / "l", "llmc", "<u2")
    whole = opened(nano).train[:]
    assert np.array_equal(np.memmap(nano / "train_000000.bin", dtype=np.uint16, mode="r"), whole)
    names = sorted(name for name in os.listdir(build) if "train" in name)
    assert np.array_equal(np.concatenate([np.load(build / name).astype(np.int32) for name in names]), whole)
    parts = []
    for path in sorted(llm.glob("train_*.bin")):
        header = np.frombuffer(path.read_bytes()[: 256 * 4], dtype=np.int32)
        assert header[0] == 20240520
        assert header[1] == 1
        tokens = np.frombuffer(path.read_bytes()[256 * 4 :], dtype=np.uint16)
        assert len(tokens) == header[2]
        parts.append(tokens)
    assert np.array_equal(np.concatenate(parts), whole)


def cut(path: Path, by: int = 2) -> None:
    os.truncate(path, path.stat().st_size - by)


@pytest.mark.parametrize("layout", ["nanogpt", "npy", "llmc"])
def test_a_shard_cut_off_is_named(tmp_path: Path, layout: str) -> None:
    folder = prepared(tmp_path / "corpus", layout, "<u2")
    shard = sorted(folder.glob("train_000001.*"))[0]
    cut(shard)
    with pytest.raises(UserError, match=f"{re.escape(str(shard))}: .* bytes, its manifest says"):
        found(folder)
    shard.unlink()
    with pytest.raises(UserError, match=f"{re.escape(str(shard))}: cannot be read"):
        found(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: cut(f / "fineweb_train_000002.bin"), r"train_000002\.bin: truncated: 3,022 bytes, .* 3,024"),
        (lambda f: cut(f / "fineweb_val_000000.bin", -2), r"val_000000\.bin: damaged: too long"),
        (lambda f: cut(f / "fineweb_val_000000.bin", 900), r"val_000000\.bin: truncated: 324 bytes"),
        (lambda f: raw(f / "fineweb_train_000002.bin", TOKENS), r"000002\.bin: of another kind than fineweb_train_0"),
        (lambda f: (f / "fineweb_train_000001.bin").rename(f / "fineweb_train_000004.bin"),
         r"fineweb_train_000003\.bin: missing, though"),
        (lambda f: llmc(f / "fineweb_train_000002.bin", TOKENS, LLMC_EVAL), "evaluation questions, not of tokens"),
        (lambda f: llmc(f / "fineweb_train_000002.bin", TOKENS, version=2), "has version 2; read is version 1"),
        (lambda f: llmc(f / "fineweb_train_000002.bin", []), r"000002\.bin: its header promises 0 tokens"),
        (lambda f: llmc(f / "fineweb_train_000002.bin", TOKENS + 50_000),
         r"000002\.bin: holds the token 50699, outside its vocabulary of 50304"),
        (lambda f: npy(f / "fineweb_train_000003.npy", TOKENS), r"are of two corpora; give each a folder"),
        (lambda f: (f / "fineweb_val_000000.bin").unlink(), r"no corpus there \(a shard \*_val_\* missing\)"),
    ],
)  # fmt: skip
def test_damaged_shards_are_named(tmp_path: Path, change: Any, message: str) -> None:
    change(modded(tmp_path / "corpus"))
    with pytest.raises(UserError, match=message):
        found(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: npy(p, TOKENS * 1.0, "<f4"), "holds float32 of shape"),
        (lambda p: npy(p, TOKENS.reshape(10, 100)), r"holds uint16 of shape \(10, 100\)"),
        (lambda p: p.write_bytes(b"\x93NUMPY"), "not a NumPy file"),
        (lambda p: (npy(p, TOKENS), cut(p, 10)), "truncated: 2,118 bytes"),
        (lambda p: npy(p, [1, -1, 2], "<i4"), "holds the token -1"),
    ],
)
def test_damaged_npy_shards_are_named(tmp_path: Path, write: Any, message: str) -> None:
    folder = folder_of(tmp_path / "c", x_train_000001__npy=write, x_val_000000__npy=lambda p: npy(p, TOKENS))
    with pytest.raises(UserError, match=r"x_train_000001\.npy: " + message):
        found(folder)


def test_a_raw_file_cut_off_is_known_by_its_meta_file(tmp_path: Path) -> None:
    meta = {"vocab_size": 700, "train_tokens": 1000}
    folder = folder_of(
        tmp_path / "c", train__bin=lambda p: raw(p, TOKENS), val__bin=lambda p: raw(p, TOKENS),
        meta__json=lambda p: p.write_text(json.dumps(meta)),
    )  # fmt: skip
    assert found(folder).train_tokens == 1000
    cut(folder / "train.bin", 2)
    with pytest.raises(UserError, match=r"train\.bin: 999 tokens, meta\.json says 1,000: truncated or replaced"):
        found(folder)
    cut(folder / "train.bin", 1)
    with pytest.raises(UserError, match=r"train\.bin: not a file of uint16 tokens: 1997 bytes"):
        found(folder)


def test_a_folder_without_splits_says_what_it_holds(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "c", part_0__bin=lambda p: raw(p, TOKENS), notes__txt=lambda p: p.write_text("x"))
    with pytest.raises(MissingCorpus, match=r"part_0\.bin: no file is named as of a split, train or val"):
        found(folder)


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanned, "REMEMBERED_FROM", 1)
    monkeypatch.setattr(scanned, "SETTLED_SECONDS", 0.0)
    folder, runtime = modded(tmp_path / "corpus"), Runtime(data_dir=str(tmp_path / "data"))
    read: list[str] = []
    real = scanned._read
    monkeypatch.setattr(scanned, "_read", lambda file: (read.append(file.path.name), real(file))[1])
    first = facts(corpus(folder), runtime)
    assert len(read) == 3
    assert facts(corpus(folder), runtime) == first
    assert len(read) == 3, "nothing is read again"
    changed = folder / "fineweb_train_000002.bin"
    status = changed.stat()
    llmc(changed, TOKENS[::-1])
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync -t and tar leave a file
    assert facts(corpus(folder), runtime).content != first.content
    assert read[3:] == ["fineweb_train_000002.bin"]
    (memory,) = (tmp_path / "data").rglob("*.json")
    memory.write_text("{")
    facts(corpus(folder), runtime)
    assert len(read) == 7, "a damaged memory is no memory"
    monkeypatch.setattr(scanned, "SETTLED_SECONDS", 1e9)
    memory.unlink()
    facts(corpus(folder), runtime)
    assert not memory.exists(), "what may change within a tick of the clock is not remembered"


def test_several_files_are_one_sequence(tmp_path: Path) -> None:
    """Every way of indexing, against one array."""
    whole = np.arange(5000) * 7 % 60_000
    edges = [0, 1, 900, 901, 2500, 5000]
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        llmc(tmp_path / f"{number}.bin", whole[start:stop]) if number % 2 else raw(
            tmp_path / f"{number}.bin", whole[start:stop]
        )
    shards = Shards([read_layout(tmp_path / f"{number}.bin") for number in range(5)])
    places = np.random.default_rng(0).integers(0, 5000, size=(20, 30))
    assert np.array_equal(shards[places], whole[places])
    assert np.array_equal(shards[-1600:-3:7], whole[-1600:-3:7])
    assert shards[901] == whole[901]
    starts = np.append(np.random.default_rng(1).integers(0, 4000, size=50), [0, 899, 900, 3999])
    for length in (1, 2, 1001):
        assert np.array_equal(windows(shards, starts, length), windows(whole, starts, length))
    with pytest.raises(IndexError):
        shards[5000]
    assert shards.name(900).endswith("2.bin")


def test_a_token_that_no_vocabulary_has_is_found_while_training(tmp_path: Path) -> None:
    """A byte that flips under an intact manifest: its size is right, and only --verify reads everything."""
    folder = prepared(tmp_path / "corpus", "nanogpt", "<u2", 1)
    with (folder / "train_000000.bin").open("r+b") as file:
        file.seek(101)
        file.write(b"\xff")
    stream = TrainStream(opened(folder), 64, 256, seed=0)
    with pytest.raises(UserError, match=r"train_000000\.bin: holds the token 65\d\d\d, outside .*: damaged"):
        stream.batch(0)


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    raw(tmp_path / "x.bin", TOKENS)
    shards = Shards([TokenFile(tmp_path / "x.bin", "<u2", 0, 1000)] * 1500)
    assert shards[np.arange(0, 1_500_000, 1000)].sum() == 0
    if Path("/proc/self/fd").exists():
        assert len(os.listdir("/proc/self/fd")) < 600
