"""Corpora on disk: nanoGPT's files, shakespeare_char, safe pickles, and what is answered when something is missing."""

import hashlib
import json
import os
import pickle
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt.__main__ import main
from nanogpt.config import UserError
from nanogpt.config.data import BinFolder, Data, ShakespeareChar, ZipfMixture
from nanogpt.config.runtime import Runtime
from nanogpt.data import opening
from nanogpt.data.binfiles import file_sha256, read_meta, write_tokens
from nanogpt.data.stream import TrainStream, make_eval_set
from nanogpt.data.tokenizers import read_tokenizer

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler ünder Ω\n" * 40


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def prepare(source: Path, root: Path) -> Path:
    assert main(["prepare", "shakespeare_char", "--from", str(source), "--data_dir", str(root)]) == 0
    return root / "shakespeare_char"


def test_shakespeare_is_nanogpts_format(source: Path, tmp_path: Path) -> None:
    folder = prepare(source, tmp_path / "data")
    characters = sorted(set(TEXT))
    split = int(len(TEXT) * 0.9)
    ids = [characters.index(character) for character in TEXT]
    assert np.fromfile(folder / "train.bin", dtype="<u2").tolist() == ids[:split]
    assert np.fromfile(folder / "val.bin", dtype="<u2").tolist() == ids[split:]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["vocab_size"] == len(characters)
    tokenizer = read_tokenizer(folder)
    assert tokenizer.encode(TEXT) == ids
    assert tokenizer.decode(ids) == TEXT


def test_shakespeare_tells_nanogpt_its_vocabulary(source: Path, tmp_path: Path) -> None:
    """nanoGPT's train.py and sample.py read meta.pkl; without it they take GPT-2's tokens for granted."""
    theirs = pickle.loads((prepare(source, tmp_path / "data") / "meta.pkl").read_bytes())
    characters = sorted(set(TEXT))
    assert theirs["vocab_size"] == len(characters)
    assert theirs["stoi"] == {text: number for number, text in enumerate(characters)}
    assert theirs["itos"] == dict(enumerate(characters))


def test_shakespeare_is_not_written_over_another_corpus(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "shakespeare_char"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(b"theirs")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 3}))
    command = ["prepare", "shakespeare_char", "--from", str(source), "--data_dir", str(tmp_path / "data")]
    assert main(command) == 2
    assert "meta.pkl: of another corpus, which is not written over" in capsys.readouterr().err
    assert (folder / "train.bin").read_bytes() == b"theirs"


def test_shakespeare_as_published(shared_data: Path, tmp_path: Path) -> None:
    folder = prepare(shared_data / "tinyshakespeare.txt", tmp_path / "data")
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["vocab_size"], meta["train_tokens"], meta["val_tokens"]) == (65, 1_003_854, 111_540)


def test_no_network_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert main(["prepare", "shakespeare_char", "--data_dir", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert "cannot download" in error
    assert "--from FILE" in error
    assert not (tmp_path / "data").exists()


def test_a_download_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "input.txt"
    page.write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr("nanogpt.data.shakespeare.URL", page.as_uri())
    assert main(["prepare", "shakespeare_char", "--data_dir", str(tmp_path / "data")]) == 2, "it is another text"
    monkeypatch.setattr("nanogpt.data.shakespeare.SHA256", file_sha256(page))
    assert main(["prepare", "shakespeare_char", "--data_dir", str(tmp_path / "data")]) == 0
    assert read_meta(tmp_path / "data" / "shakespeare_char")["source"] == page.as_uri()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["prepare", "shakespear"], "no such corpus 'shakespear'; did you mean 'shakespeare'?"),
        (["prepare", "shakespeare_char", "--from", "nowhere.txt"], "nowhere.txt: cannot be read as text"),
        (["prepare", "zipf_mixture", "--from", "nowhere.txt"], "generated, not read"),
    ],
)
def test_wrong_prepare_calls(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--data_dir", str(tmp_path / "data")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_clean_removes_only_what_prepare_made(source: Path, tmp_path: Path) -> None:
    folder = prepare(source, tmp_path / "data")
    (folder / "notes.txt").write_text("mine")
    assert main(["prepare", "shakespeare_char", "--clean", "--data_dir", str(tmp_path / "data")]) == 0
    assert [entry.name for entry in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    prepare(source, tmp_path / "data")
    main(["prepare", "shakespeare_char", "--clean", "--data_dir", str(tmp_path / "data")])
    assert not folder.exists()


def bin_folder(root: Path, **extra: bytes) -> Path:
    folder = root / "corpus"
    folder.mkdir(parents=True)
    write_tokens(folder / "train.bin", np.arange(100) % 7)
    write_tokens(folder / "val.bin", np.arange(50) % 7)
    for name, data in extra.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    return folder


def test_an_old_meta_pickle_is_read(tmp_path: Path) -> None:
    meta = {"vocab_size": 7, "itos": dict(enumerate("abcdefg")), "stoi": {c: i for i, c in enumerate("abcdefg")}}
    folder = bin_folder(tmp_path, meta_pkl=pickle.dumps(meta))
    facts = opening.facts(Data(corpus=BinFolder(path=str(folder))), Runtime())
    assert (facts.vocab_size, facts.train_tokens, facts.val_tokens) == (7, 100, 50)


def test_a_token_outside_the_vocabulary_is_found_before_training(tmp_path: Path) -> None:
    folder = bin_folder(tmp_path, meta_json=b'{"vocab_size": 5}')
    with pytest.raises(UserError, match=r"train\.bin: holds the token 6, outside its vocabulary of 5 tokens"):
        opening.facts(Data(corpus=BinFolder(path=str(folder))), Runtime())


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed-by-a-pickle",)


@pytest.mark.parametrize("data", [pickle.dumps(_Bomb()), pickle.dumps({"vocab_size": 7, "x": _Bomb()}), b"\x80", b""])
def test_nothing_in_a_pickle_is_executed(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = bin_folder(tmp_path, meta_pkl=data)
    with pytest.raises(UserError, match=r"meta\.pkl"):
        opening.facts(Data(corpus=BinFolder(path=str(folder))), Runtime())
    assert not (tmp_path / "executed-by-a-pickle").exists()


def test_a_corpus_is_known_by_its_content(tmp_path: Path) -> None:
    one, other = bin_folder(tmp_path / "a"), bin_folder(tmp_path / "b")
    content = {opening.facts(Data(corpus=BinFolder(path=str(folder))), Runtime()).content for folder in (one, other)}
    assert len(content) == 1
    write_tokens(other / "val.bin", np.arange(50) % 6)
    changed = opening.facts(Data(corpus=BinFolder(path=str(other))), Runtime()).content
    assert changed not in content
    with pytest.raises(UserError, match="content has changed"):
        opening.open_corpus(Data(corpus=BinFolder(path=str(other), content=content.pop())), Runtime())


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (ShakespeareChar(), r"train\.bin and val\.bin missing\); run `python -m nanogpt prepare shakespeare_char`"),
        (BinFolder(path="nowhere"), r"nowhere: no corpus there"),
    ],
)
def test_a_missing_corpus_says_what_to_do(tmp_path: Path, corpus: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opening.facts(Data(corpus=corpus), Runtime(data_dir=str(tmp_path)))


def test_the_embedded_corpus_is_made_once(tmp_path: Path) -> None:
    data = Data(corpus=ZipfMixture(alphabet_size=16, train_tokens=5000, val_tokens=100))
    runtime = Runtime(data_dir=str(tmp_path))
    first = opening.open_corpus(data, runtime)
    (folder,) = tmp_path.iterdir()
    made = (folder / "train.bin").stat().st_mtime_ns
    second = opening.open_corpus(data, runtime)
    assert (folder / "train.bin").stat().st_mtime_ns == made
    assert np.array_equal(first.train, second.train)
    assert (len(first.train), len(first.val)) == (8192, 4096), "whole documents"
    assert opening.facts(data, runtime).train_tokens == 8192
    assert main(["prepare", "zipf_mixture", "--clean", "--data_dir", str(tmp_path)]) == 0


def test_an_unwritable_data_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        opening.open_corpus(Data(), Runtime(data_dir=str(tmp_path / "file")))


def test_nanogpts_folders_keep_their_content_and_their_batches(tmp_path: Path) -> None:
    """Golden values from before there were shards: published runs on such files stay what they are."""
    for split, tokens in (("train", 9000), ("val", 1000)):
        write_tokens(tmp_path / f"{split}.bin", np.arange(tokens) * 7 % 65)
    (tmp_path / "meta.json").write_text('{"vocab_size": 65}')
    data = Data(corpus=BinFolder(path=str(tmp_path)))
    content = "be7d2890a09fe6f56dfeadd954fb3294833332467e22a4b45376894909f50d95"
    assert opening.facts(data, Runtime()).content == content
    corpus = opening.open_corpus(data, Runtime())
    stream, digest = TrainStream(corpus, 12, 64, seed=1337), hashlib.sha256()
    for batch in [*(stream.batch(step * 997) for step in range(50)), make_eval_set(corpus, 64, 640).batch]:
        digest.update(batch.x_BT.tobytes() + batch.y_BT.tobytes())
    assert digest.hexdigest()[:16] == "3f81ff149a2137c5"
