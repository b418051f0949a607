"""Corpora as configs name them: short names, tokenizers, mixtures; what a run reads is in its record."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt.__main__ import main
from nanogpt.config import Config, UserError, identity, run_id
from nanogpt.config.data import BinFolder, Data, Mixture
from nanogpt.config.runtime import Runtime
from nanogpt.configfile import load_config
from nanogpt.data.opening import corpus_folder, facts, open_corpus
from nanogpt.data.stream import Batch, MixedStream
from nanogpt.data.vocabulary import read_vocabulary
from nanogpt.describe import describe
from nanogpt.record import read_history, read_record
from tests.conftest import TINY
from tests.data.test_tokenfiles import cut, llmc, modded, prepared, raw

ZIPF = {"kind": "zipf_mixture", "alphabet_size": 32, "train_tokens": 8192, "val_tokens": 8192}


def config(data: dict[str, Any], **sections: Any) -> Config:
    return Config.model_validate({**TINY, "data": data, **sections})


def write(path: Path, data: Any, **sections: Any) -> Path:
    """A config file; JSON is YAML."""
    path.write_text(json.dumps({**TINY, "data": data, **sections}))
    return path


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "parts: [{corpus: a, wieght: 2}]",
            r"yaml:1: data\.corpus\.parts\.0\.wieght: no such key; did you mean 'weight'",
        ),
        (
            "parts: [{corpus: {kind: bin, path: a, lags: 2}}]",
            r"corpus\.lags: no such key; allowed: kind, path, content",
        ),
        ("parts: [{weight: 2}]", r"data\.corpus\.parts\.0\.corpus: is missing"),
        ("parts: [{corpus: a, weight: 0}]", r"parts\.0\.weight: must be greater than or equal to 0\.000000001, got 0"),
        ("parts: [{corpus: {kind: mixture, parts: []}}]", r"no such kind 'mixture'"),
        ("parts: wikitext-2", r"expected a list of \{corpus: \.\.\., weight: \.\.\.\}, got 'wikitext-2'"),
        ("parts: []", r"data\.corpus\.parts: .* at least 1 item"),
    ],
)
def test_a_mistake_in_a_mixture_is_named(tmp_path: Path, said: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {{corpus: {{kind: mixture, {said}}}}}\ntrain: {{batch_size: 4, max_iters: 1}}\n")
    with pytest.raises(UserError, match=message):
        load_config(path)


@pytest.mark.parametrize(
    ("said", "corpus"),
    [
        ("corpus=zipf_mixture", {"kind": "zipf_mixture"}),
        ("corpus=wikitext-2", {"kind": "bin", "path": "wikitext-2"}),
        ("data.corpus=./my texts", {"kind": "bin", "path": "./my texts"}),
        ("corpus.path=other", {"kind": "bin", "path": "other"}),
    ],
)
def test_a_corpus_by_its_name(tmp_path: Path, said: str, corpus: dict[str, str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: {corpus: mytexts}\ntrain: {batch_size: 4, max_iters: 1}\n")
    found = load_config(path, [said]).data.corpus.model_dump()
    assert {key: found[key] for key in corpus} == corpus


def test_the_tokenizer_selects_among_prepared_folders(tmp_path: Path) -> None:
    runtime = Runtime(data_dir=str(tmp_path))
    for name in ("web.gpt2", "web.cl100k_base", "web.byte", "plain.byte"):
        modded(tmp_path / name) if "byte" not in name else prepared(tmp_path / name, "nanogpt", "<u2")

    def folder(path: str, tokenizer: str | None = None) -> str:
        return corpus_folder(BinFolder(path=path), runtime, tokenizer).name

    assert [folder("web"), folder("web", "cl100k"), folder("web", "byte"), folder("web.byte")] == [
        "web.gpt2", "web.cl100k_base", "web.byte", "web.byte",
    ]  # fmt: skip
    assert corpus_folder(BinFolder(path=str(tmp_path / "web")), Runtime()).name == "web.gpt2"
    asked = config({"corpus": "web", "tokenizer": "byte"}, runtime={"data_dir": str(tmp_path), "device": "cpu"})
    plain = config({"corpus": "web.byte"}, runtime={"data_dir": str(tmp_path), "device": "cpu"})
    assert describe(asked).id == describe(plain).id, "only a way to find the folder"
    with pytest.raises(UserError, match=r"data\.tokenizer: gpt2: .*web\.byte holds tokens of byte"):
        facts(Data(corpus=BinFolder(path="web.byte"), tokenizer="gpt2"), runtime)
    with pytest.raises(
        UserError, match=r"plain: no corpus there; it is prepared with byte: set data\.tokenizer to byte"
    ):
        facts(Data(corpus=BinFolder(path="plain")), runtime)
    with pytest.raises(UserError, match=r"wbe: no corpus there; did you mean 'web'\?"):
        facts(Data(corpus=BinFolder(path="wbe")), runtime)
    with pytest.raises(UserError, match=r"shakespear: no corpus there; did you mean 'shakespeare_char'"):
        facts(Data(corpus=BinFolder(path="shakespear")), runtime)


def test_old_ids_stand_and_another_sampling_is_another_run() -> None:
    old = config({"corpus": ZIPF})
    assert "sampling" not in identity(old)["data"]
    assert "tokenizer" not in identity(old)["data"]
    assert run_id(config({"corpus": ZIPF, "sampling": "shuffled"})) != run_id(old)


def mixture(*parts: Any) -> dict[str, Any]:
    return {"kind": "mixture", "parts": [{"corpus": corpus, "weight": weight} for corpus, weight in parts]}


def test_a_mixture_is_known_by_its_parts(tmp_path: Path) -> None:
    one, other = prepared(tmp_path / "a" / "one", "npy", "<u2"), prepared(tmp_path / "a" / "other", "llmc", "<u2")
    resolved = describe(config({"corpus": mixture((str(one), 3), (str(other), 1))}))
    assert isinstance(resolved.config.data.corpus, Mixture)
    contents = [getattr(part.corpus, "content", None) for part in resolved.config.data.corpus.parts]
    assert contents == [facts(Data(corpus=BinFolder(path=str(each))), Runtime()).content for each in (one, other)]
    assert resolved.train_tokens == 2 * facts(Data(corpus=BinFolder(path=str(one))), Runtime()).train_tokens
    assert describe(resolved.config).id == resolved.id, "resolving again is idle"
    moved = shutil.copytree(one, tmp_path / "moved")
    assert describe(config({"corpus": mixture((str(moved), 3), (str(other), 1))})).id == resolved.id
    assert describe(config({"corpus": mixture((str(one), 2), (str(other), 1))})).id != resolved.id
    with pytest.raises(
        UserError, match=r"parts: one \(byte, 256 kinds\) and zipf_mixture \(.*, 256 kinds\) are in two"
    ):
        facts(config({"corpus": mixture((str(one), 1), ("zipf_mixture", 1))}).data, Runtime())
    with pytest.raises(UserError, match=r"a mixture of one, other; expected one corpus"):
        open_corpus(resolved.config.data, Runtime())


def test_a_corpus_is_in_a_mixture_once(tmp_path: Path) -> None:
    """Else what both parts have read would be counted twice among the unique tokens."""
    for name in ("one", "copy"):
        (tmp_path / name).mkdir()
        for file in ("train.bin", "val.bin"):
            np.arange(100, dtype="<u2").tofile(tmp_path / name / file)
    parts = mixture((str(tmp_path / "one"), 3), (str(tmp_path / "copy"), 1))
    with pytest.raises(UserError, match=r"parts: one and copy are the same corpus, .* name it once"):
        facts(config({"corpus": parts}).data, Runtime())
    with pytest.raises(UserError, match=r"zipf_mixture#1 and zipf_mixture#2 are the same corpus"):
        facts(config({"corpus": mixture((ZIPF, 1), (ZIPF, 1))}).data, Runtime())


@pytest.mark.parametrize("weight", [0, -1, 1e308, 1e-300])
def test_weights_are_numbers_whose_shares_can_be_counted(weight: float) -> None:
    with pytest.raises(ValueError, match=r"parts\.0\.weight"):
        config({"corpus": mixture((ZIPF, weight), ({**ZIPF, "source_seed": 1}, 1))})


def test_training_on_a_mixture_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Straight through and in two attempts: equal losses, and a record that says what was read of each part."""
    data = {"corpus": mixture((ZIPF, 3), ({**ZIPF, "source_seed": 1}, 1)), "sampling": "shuffled"}
    path = write(tmp_path / "config.yaml", data)
    assert main(["train", str(path), f"--out_dir={tmp_path / 'straight'}"]) == 0
    straight = read_record(tmp_path / "straight" / "metrics.json")
    batch, left = MixedStream.batch, [9]

    def fail_once(self: MixedStream, step: int) -> Batch:
        if step in left:
            left.remove(step)
            raise OSError("no more tokens")
        return batch(self, step)

    monkeypatch.setattr(MixedStream, "batch", fail_once)
    every = "--runtime.checkpoint={policy: every_n, every: 3}"
    assert main(["train", str(path), f"--out_dir={tmp_path / 'again'}", every]) != 0
    assert "no more tokens" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "again")]) == 0
    assert "going on from step 9" in capsys.readouterr().out
    again = read_record(tmp_path / "again" / "metrics.json")
    assert (again.val_loss, again.train_loss, again.mixture) == (
        straight.val_loss, straight.train_loss, straight.mixture,
    )  # fmt: skip
    assert again.mixture is not None
    first, second = again.mixture["zipf_mixture#1"], again.mixture["zipf_mixture#2"]
    assert (first["tokens"], second["tokens"]) == (36 * 16, 12 * 16), "3 rows of 4, over 12 steps"
    assert (first["epochs"], again.epochs) == (36 * 16 / 8192, 48 * 16 / 16384)
    assert again.unique_tokens == 48 * 16, "no window twice"
    assert again.val_loss == pytest.approx(0.75 * first["val_loss"] + 0.25 * second["val_loss"])
    assert again.val_entropy is not None
    line = read_history(tmp_path / "again" / "history.jsonl")[-1]
    assert line["val_losses"] == {"zipf_mixture#1": first["val_loss"], "zipf_mixture#2": second["val_loss"]}


def test_other_peoples_shards_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """modded-nanogpt's files by their folder's name, and not a file written when one of them is cut off."""
    folder = modded(tmp_path / "data" / "web.gpt2")
    for file in folder.iterdir():
        llmc(file, np.arange(1000) % 60)
    (folder / "meta.json").write_text('{"vocab_size": 60}')
    path = write(
        tmp_path / "config.yaml", {"corpus": "web"}, runtime={**TINY["runtime"], "data_dir": str(tmp_path / "data")}
    )
    assert main(["train", str(path), f"--out_dir={tmp_path / 'run'}", "--eval_tokens=512"]) == 0
    record = read_record(tmp_path / "run" / "metrics.json")
    assert record.val_loss is not None
    assert record.val_loss < np.log(60)
    assert record.epochs == 12 * 4 * 16 / 2000
    assert record.unique_tokens is not None
    assert 0 < record.unique_tokens < record.tokens, "windows that begin anywhere overlap"
    assert record.mixture is None
    cut(folder / "fineweb_train_000002.bin")
    assert main(["train", str(path), f"--out_dir={tmp_path / 'other'}"]) == 2
    assert "fineweb_train_000002.bin: truncated" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_bits_per_byte_of_nanogpts_characters(tmp_path: Path) -> None:
    """From the bytes of the targets that are scored, not from a mean over the split."""
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 3, "itos": ["a", "ü", "語"]}))
    raw(tmp_path / "train.bin", np.arange(300) % 3)
    raw(tmp_path / "val.bin", np.arange(301) % 3)
    opened = open_corpus(Data(corpus=BinFolder(path=str(tmp_path))), Runtime())
    assert opened.bytes_V is not None
    assert opened.bytes_V.tolist() == [1, 2, 3]


def test_the_vocabulary_is_that_of_the_chosen_folder(tmp_path: Path) -> None:
    """`sample` finds the tokenizer where training found the tokens; of a mixture all parts have one."""
    prepared(tmp_path / "web.byte", "npy", "<u2")
    modded(tmp_path / "web.gpt2")
    runtime = Runtime(data_dir=str(tmp_path))
    parts = Mixture.model_validate(mixture(("web", 1), (str(tmp_path / "web.byte"), 1)))
    for data in (Data(corpus=BinFolder(path="web"), tokenizer="byte"), Data(corpus=parts, tokenizer="byte")):
        assert read_vocabulary(data, runtime).encode("ü") == list("ü".encode())
