"""`sample` on corpora with tokenizers: bytes that are parts of characters, trained BPE, GPT-2's folders without meta.

Tiny untrained models: what they draw is mostly no UTF-8 at all, which is the point. Fast: about 3 seconds together.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanogpt.__main__ import main
from nanogpt.configfile import dump_yaml
from nanogpt.data.binfiles import write_meta, write_tokens
from nanogpt.data.bpe import GPT2_PATTERN
from nanogpt.data.ranks import from_merges
from nanogpt.data.tokenizers import Bpe, Bytes, Tokenizer, write_tokenizer
from nanogpt.generation import generate, row_generators
from nanogpt.sampling import Sampling
from nanogpt.trained import load_trained
from tests.commands import Capture, answer

TEXT = "the caf\u00e9 \U0001f600 then\r\n" * 200
RANKS = tuple(from_merges(["Ġ t", "h e", "Ġt he"]))
BPE = Bpe("bpe260", RANKS, GPT2_PATTERN, {"<|endoftext|>": 259})


def train(folder: Path, ids: list[int], vocab_size: int | None) -> Path:
    """A run of one step on a folder of these ids; without a vocabulary there is no meta file."""
    data = folder / "corpus"
    data.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        write_tokens(data / f"{split}.bin", np.array(ids))
    if vocab_size is not None:
        write_meta(data, {"vocab_size": vocab_size})
    tree: dict[str, Any] = {
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16},
        "data": {"corpus": {"kind": "bin", "path": str(data)}},
        "train": {"batch_size": 2, "max_iters": 1, "precision": "fp32", "eval_interval": 1, "eval_tokens": 64},
        "runtime": {"device": "cpu", "threads": 1},
    }
    (folder / "config.yaml").write_text(dump_yaml(tree))
    assert main(["train", str(folder / "config.yaml"), f"--out_dir={folder / 'run'}"]) == 0
    return folder / "run"


def sampled(capsys: Capture, *words: str | Path) -> str:
    return answer(capsys, "sample", *words)


def drawn(run: Path, start: list[int], seed: int, tokens: int, vocabulary: int) -> list[int]:
    """The ids that `sample` draws."""
    how = Sampling(max_new_tokens=tokens)
    steps = generate(load_trained(run).model, torch.tensor([start]), how, row_generators(seed, range(1)),
                     tokens=vocabulary)  # fmt: skip
    return [int(next_B[0]) for next_B in steps]


@pytest.mark.parametrize("tokenizer", [Bytes(), BPE], ids=["byte", "bpe"])
def test_text_of_a_tokenizer_is_that_of_its_ids_whole(tokenizer: Tokenizer, tmp_path: Path, capsys: Capture) -> None:
    run = train(tmp_path, tokenizer.encode(TEXT), tokenizer.n_vocab + 3)
    write_tokenizer(tokenizer, tmp_path / "corpus")
    prompt = "the caf\u00e9"
    ids = drawn(run, tokenizer.encode(prompt), 5, 120, tokenizer.n_vocab)
    assert "\ufffd" in tokenizer.decode(ids)
    expected = prompt + tokenizer.decode(ids) + "\n"
    words = ("--seed=5", f"--max-length={len(tokenizer.encode(prompt)) + 120}")
    assert sampled(capsys, run, prompt, *words) == expected
    assert sampled(capsys, run, prompt, *words, "--num_samples=2").split(" ---\n")[1].startswith(expected)
    # An empty prompt starts from the end of a text, and `<|endoftext|>` in a prompt is text like any other.
    assert tokenizer.eot is not None
    fresh = drawn(run, [tokenizer.eot], 5, 9, tokenizer.n_vocab)
    assert sampled(capsys, run, "--seed=5", "--max_new_tokens=9") == tokenizer.decode(fresh) + "\n"
    assert sampled(capsys, run, "<|endoftext|>", "--max_new_tokens=1").startswith("<|endoftext|>")


def test_characters_appear_whole_while_text_is_streamed(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tmp_path, Bytes().encode(TEXT), 256)
    write_tokenizer(Bytes(), tmp_path / "corpus")
    planned = iter([*"\U0001f600\u00e9".encode(), *b"a\xf0"])
    monkeypatch.setattr("nanogpt.generation.next_tokens", lambda *_: torch.tensor([next(planned)]))
    pieces: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: pieces.extend(words))
    assert main(["sample", str(run), "--max_new_tokens=8"]) == 0
    assert pieces == ["", "", "", "", "\U0001f600", "", "\u00e9", "a", "", "\ufffd\n"]


def test_a_gpt2_folder_is_text_with_ranks_and_ids_without(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    """nanoGPT leaves no meta file beside GPT-2's tokens."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run, cache = train(tmp_path, [15496, 995, 50256] * 30, None), shared_data / "tiktoken_cache"
    text = sampled(capsys, run, "Hello world", "--max-length=4", f"--ranks={cache}")
    assert text.startswith("Hello world")
    capsys.readouterr()
    assert main(["sample", str(run), "15496 995", "--max-length=4"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("15496 995 ")
    assert len(output.out.split()) == 4
    assert "sample: token ids instead of text: gpt2: its ranks are not in" in output.err
    assert main(["sample", str(run), "Hello world"]) == 2
    assert "sample: prompt: 'Hello' is no token id: gpt2: its ranks are not in" in capsys.readouterr().err
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    assert sampled(capsys, run, "Hello world", "--max-length=4") == text
