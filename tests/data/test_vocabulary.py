"""Vocabularies: text to ids and back, by the corpus's own tokenizer; what stands for nothing, and damaged files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import Config, UserError
from nanogpt.data.binfiles import write_meta
from nanogpt.data.tokenizers import Bytes, Characters, write_tokenizer
from nanogpt.data.vocabulary import Vocabulary, read_vocabulary

Make = Callable[..., Config]


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ranks on this machine, and no network."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def vocabulary_of(make: Make, folder: Path, ranks: Path | None = None) -> Vocabulary:
    config = make(data={"corpus": {"kind": "bin", "path": str(folder)}})
    return read_vocabulary(config.data, config.runtime, ranks)


def test_text_and_ids() -> None:
    letters = Vocabulary(4, Characters("abc"))
    assert letters.decode(letters.encode("cab")) == "cab"
    assert letters.decode([3]) == "\ufffd"
    assert (letters.meaningful, Vocabulary(2, Characters("abc")).meaningful) == (3, 2)
    with pytest.raises(UserError, match=r"outside the vocabulary: 'z'; allowed: 'abc'"):
        letters.encode("az")
    numbers = Vocabulary(10)
    assert numbers.encode("1 9") == [1, 9]
    assert numbers.decode([1, 9]) == " 1 9"
    assert numbers.meaningful == 10
    for wrong in ("10", "-1", "x", "\u0663"):
        with pytest.raises(UserError, match="is no token id: this corpus has no text"):
            numbers.encode(wrong)


def test_an_empty_prompt_starts_where_a_text_ends() -> None:
    assert (Vocabulary(3, Characters("abc")).start, Vocabulary(10).start, Vocabulary(256, Bytes()).start) == (0, 0, 255)
    assert Vocabulary(10, Bytes()).start == 0  # a model that lacks the end of a text


@pytest.mark.parametrize("itos", [["a", "b", "c"], {"2": "c", "0": "a", "1": "b"}])
def test_the_vocabulary_is_the_corpus_own(tiny: Make, tmp_path: Path, itos: Any) -> None:
    write_meta(tmp_path, {"vocab_size": 3, "itos": itos})
    assert vocabulary_of(tiny, tmp_path) == Vocabulary(3, Characters("abc"))


def test_a_tokenizer_in_the_folder_comes_first(tiny: Make, tmp_path: Path) -> None:
    write_meta(tmp_path, {"vocab_size": 3, "itos": ["a", "b", "c"]})
    write_tokenizer(Bytes(), tmp_path)
    assert vocabulary_of(tiny, tmp_path) == Vocabulary(256, Bytes())


def test_a_folder_without_a_meta_file_has_gpt2s_tokens_and_not_those_that_pad_them(tiny: Make, tmp_path: Path) -> None:
    """They are written as ids as long as the ranks cannot be had, and why is said once."""
    vocabulary = vocabulary_of(tiny, tmp_path)
    assert (vocabulary.meaningful, vocabulary.start) == (50257, 50256)
    assert vocabulary.encode("50256") == [50256]
    assert vocabulary.note is not None
    assert "gpt2: its ranks are not in" in vocabulary.note
    with pytest.raises(UserError, match=r"'Hello,' is no token id: gpt2: its ranks .* pass --ranks FILE"):
        vocabulary.encode("Hello, 50257")


def test_a_folder_without_a_meta_file_is_text_where_gpt2s_ranks_are(
    tiny: Make, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_file = vocabulary_of(tiny, tmp_path, ranks=shared_data / "tiktoken_cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    vocabulary = vocabulary_of(tiny, tmp_path)
    assert by_file == vocabulary
    assert (vocabulary.meaningful, vocabulary.start, vocabulary.note) == (50257, 50256, None)
    assert vocabulary.encode("Hello world") == [15496, 995]
    assert vocabulary.decode([15496, 995, 50256, 50300]) == "Hello world<|endoftext|>\ufffd"


def test_ranks_without_a_use_are_refused(tiny: Make, tmp_path: Path, shared_data: Path) -> None:
    ranks = shared_data / "tiktoken_cache" / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    write_meta(tmp_path, {"vocab_size": 3})
    with pytest.raises(UserError, match=r"50,257 tokens, but the corpus has 3: another tokenizer made it"):
        vocabulary_of(tiny, tmp_path, ranks)
    write_meta(tmp_path, {"vocab_size": 3, "itos": ["a", "b", "c"]})
    with pytest.raises(UserError, match=r"no use for them: .* has its characters"):
        vocabulary_of(tiny, tmp_path, ranks)
    write_tokenizer(Bytes(), tmp_path)
    with pytest.raises(UserError, match=r"no use for them: .*tokenizer\.json has its own"):
        vocabulary_of(tiny, tmp_path, ranks)


@pytest.mark.parametrize("itos", [{"0": "a", "2": "c"}, {"x": "a"}, [1, 2], "abc"])
def test_a_damaged_vocabulary_is_refused(tiny: Make, tmp_path: Path, itos: Any) -> None:
    write_meta(tmp_path, {"vocab_size": 3, "itos": itos})
    with pytest.raises(UserError, match="meta file: itos: expected"):
        vocabulary_of(tiny, tmp_path)


def test_a_corpus_that_is_gone_is_said(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no corpus there"):
        vocabulary_of(tiny, tmp_path / "gone")
