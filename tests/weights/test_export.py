"""Exports, offline and without transformers: what has a layout, what is refused, and the tokenizer that comes along."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanogpt.__main__ import main
from nanogpt.config import Config, UserError
from nanogpt.data.binfiles import SPLITS, write_meta, write_tokens
from nanogpt.data.tokenizers import Bytes, Tokenizer, read_tokenizer, train_bpe, train_char, write_tokenizer
from nanogpt.describe import describe
from nanogpt.trained import load_trained
from nanogpt.weights.export import export
from nanogpt.weights.layouts import layout_for
from tests.weights.checkpoints import CORPUS, GPT2, LLAMA, config_of, random_model, save_hf


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"ffn": "topk_moe"}, ["GPT-2", "ffn=topk_moe: there are no experts"]),
        ({**LLAMA, "ffn": {"kind": "soft_moe", "expert": "swiglu"}}, ["LLaMA", "ffn=soft_moe"]),
        ({"n_layer": None, "trunk": "random2d"}, ["trunk=random2d: only stack, shared, and recurrent"]),
        ({"n_layer": None, "trunk": "recurrent"}, ["inject=concat: what enters each loop has no place in a stack"]),
        ({"n_layer": None, "trunk": {"kind": "recurrent", "inject": "none", "state_init": "input",
                                     "depth": {"kind": "lognormal"}}}, ["depth=lognormal: only fixed loops"]),
        ({"qk_norm": True, "logit_softcap": 30.0}, ["qk_norm=true; logit_softcap=30"]),
        ({"position": "rope"}, ["the nearest is GPT-2, but for position=rope (only learned)"]),
        ({"position": "none", "norm": "rmsnorm", "ffn": "swiglu"}, ["LLaMA, but for position=none (only rope)"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(sorted(value)),
)  # fmt: skip
def test_models_without_a_layout_are_refused_by_name(shape: dict[str, Any], named: list[str]) -> None:
    model = Config.model_validate({"model": {**GPT2, **shape}, "train": {"max_iters": 1}}).model
    with pytest.raises(UserError) as refused:
        layout_for(model)
    assert all(text in str(refused.value) for text in named), refused.value


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = random_model(GPT2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"full: not empty; give a new folder, nothing is written over"):
        export(trained, tmp_path / "full")
    trained.model.embedding.weight.data[0, 0] = 1e6
    with pytest.raises(UserError, match=r"export: transformer.wte.weight: float16 cannot hold its values"):
        export(trained, tmp_path / "new", dtype="float16")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "safetensors", None)
        with pytest.raises(UserError, match=r"the package safetensors is missing: pip install 'nanogpt-scaling\[hf\]'"):
            export(trained, tmp_path / "new")
    monkeypatch.setattr("nanogpt.weights.export.write_safetensors", _disk_full)
    with pytest.raises(UserError, match=r"export: .*new: cannot be written: No space left on device"):
        export(trained, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


@pytest.mark.parametrize(
    ("trunk", "said"),
    [
        ({"kind": "shared"}, "1 block of weights applied 4 times in all"),
        ({"kind": "shared", "scope": "ffn", "groups": 2}, "4 blocks that share 2 ffn,"),
    ],
)
def test_an_unrolled_trunk_says_what_was_shared(trunk: dict[str, Any], said: str, tmp_path: Path) -> None:
    done = export(random_model({**GPT2, "n_layer": 4, "trunk": trunk}), tmp_path / "out")
    assert any(said in note for note in done.notes), done.notes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_export_that_is_stopped_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal comes while the draft of the folder has a half-written file in it."""
    save_hf(tmp_path / "w")

    def stopped(path: Path, _: Any) -> None:
        path.write_bytes(b"half")
        signal.raise_signal(number)

    monkeypatch.setattr("nanogpt.weights.export.write_safetensors", stopped)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["export", str(tmp_path / "w"), str(tmp_path / "out")]) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == "nanogpt: export: stopped\n"
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_half_precision_is_written_and_read_as_float32(tmp_path: Path) -> None:
    trained = random_model(LLAMA)
    export(trained, tmp_path / "out", dtype="bfloat16")
    found, given = load_trained(tmp_path / "out").model.state_dict(), trained.model.state_dict()
    assert all(torch.equal(found[name], tensor.bfloat16().float()) for name, tensor in given.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def _disk_full(*_: Any) -> None:
    raise OSError(28, os.strerror(28))


def corpus_of_characters(folder: Path, text: str) -> dict[str, Any]:
    """nanoGPT's files with their meta file; returns the section that names them."""
    tokenizer = train_char([text])
    folder.mkdir()
    for split in SPLITS:
        write_tokens(folder / f"{split}.bin", np.array(tokenizer.encode(text * 100)))
    write_meta(folder, {"vocab_size": tokenizer.n_vocab, "itos": list(tokenizer.characters)})
    return {"kind": "bin", "path": str(folder)}


def test_an_export_brings_its_tokenizer_which_corpora_must_share(tmp_path: Path) -> None:
    """A padded vocabulary is cut to the tokenizer's, whose files lie beside the weights and are read back."""
    corpus = corpus_of_characters(tmp_path / "english", "to be, or not to be?\n")
    done = export(random_model(GPT2, data={"corpus": corpus}), tmp_path / "out")
    tokenizer = read_tokenizer(tmp_path / "english")
    assert any(f"cut from 32 to {tokenizer.n_vocab}" in note for note in done.notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == tokenizer.n_vocab
    found = load_trained(tmp_path / "out").vocabulary().tokenizer
    assert found is not None
    assert found.fingerprint == tokenizer.fingerprint
    describe(config_of(tmp_path / "out", **{"data.corpus": corpus}))
    describe(config_of(tmp_path / "out", **{"data.corpus": {**CORPUS, "alphabet_size": 8}}))  # no text, no claim
    other = corpus_of_characters(tmp_path / "german", "Luft, kalt?")
    with pytest.raises(UserError, match=r"its tokenizer \(char\) is not that of .*out \(char\): the same"):
        describe(config_of(tmp_path / "out", **{"data.corpus": other}))


def test_tokens_with_a_text_are_never_cut_off_as_padding(tmp_path: Path) -> None:
    corpus = corpus_of_characters(tmp_path / "english", "to be, or not to be?\n")
    trained = random_model(GPT2, data={"corpus": corpus})
    n_vocab = read_tokenizer(tmp_path / "english").n_vocab
    with pytest.raises(UserError, match=rf"{n_vocab - 1}: the tokenizer char has {n_vocab} tokens, which are no pad"):
        export(trained, tmp_path / "out", vocab_size=n_vocab - 1)
    assert not (tmp_path / "out").exists()
    export(trained, tmp_path / "out", vocab_size=n_vocab + 1)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == n_vocab + 1


@pytest.mark.parametrize("tokenizer", [Bytes(), train_bpe(["to be, or not to be? " * 9], 262)], ids=["byte", "bpe"])
def test_tokenizers_come_back_from_an_export(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_tokenizer(tokenizer, folder)
    model = {**GPT2, "vocab_size": 320}
    export(random_model(model, data={"corpus": {"kind": "bin", "path": str(folder)}}), tmp_path / "out")
    found = load_trained(tmp_path / "out").vocabulary()
    assert found.tokenizer is not None
    assert (found.tokenizer.fingerprint, found.start) == (tokenizer.fingerprint, tokenizer.eot)
    assert found.decode(found.encode("to be?")) == "to be?"


def test_tokenizers_that_are_not_read_leave_numbers_and_a_reason(tmp_path: Path) -> None:
    save_hf(tmp_path / "w", LLAMA)
    (tmp_path / "w" / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}))
    vocabulary = load_trained(tmp_path / "w").vocabulary()
    assert vocabulary.decode([1, 2]) == " 1 2"
    assert "this is a Unigram model" in str(vocabulary.note)
