"""Vocabularies: text to ids and back, by the corpus's own meta file; what stands for nothing, and damaged files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import Config, UserError
from nanogpt.data.binfiles import write_meta
from nanogpt.data.vocabulary import Vocabulary, read_vocabulary

Make = Callable[..., Config]


def vocabulary_of(make: Make, folder: Path) -> Vocabulary:
    config = make(data={"corpus": {"kind": "bin", "path": str(folder)}})
    return read_vocabulary(config.data, config.runtime)


def test_text_and_ids() -> None:
    letters = Vocabulary(4, ("a", "b", "c"))
    assert letters.decode(letters.encode("cab")) == "cab"
    assert letters.decode([3]) == "\ufffd"
    assert (letters.meaningful, Vocabulary(2, ("a", "b", "c")).meaningful) == (3, 2)
    with pytest.raises(UserError, match=r"outside the vocabulary: 'z'; allowed: 'abc'"):
        letters.encode("az")
    numbers = Vocabulary(10)
    assert numbers.encode("1 9") == [1, 9]
    assert numbers.decode([1, 9]) == " 1 9"
    assert numbers.meaningful == 10
    for wrong in ("10", "-1", "x", "\u0663"):
        with pytest.raises(UserError, match="is no token id"):
            numbers.encode(wrong)


@pytest.mark.parametrize("itos", [["a", "b", "c"], {"2": "c", "0": "a", "1": "b"}])
def test_the_vocabulary_is_the_corpus_own(tiny: Make, tmp_path: Path, itos: Any) -> None:
    write_meta(tmp_path, {"vocab_size": 3, "itos": itos})
    assert vocabulary_of(tiny, tmp_path) == Vocabulary(3, ("a", "b", "c"))


def test_a_folder_without_a_meta_file_has_gpt2s_tokens_and_not_those_that_pad_them(tiny: Make, tmp_path: Path) -> None:
    vocabulary = vocabulary_of(tiny, tmp_path)
    assert (vocabulary.meaningful, vocabulary.start) == (50257, 50256)
    assert vocabulary.encode("50256") == [50256]
    with pytest.raises(UserError, match="is no token id"):
        vocabulary.encode("50257")


@pytest.mark.parametrize("itos", [{"0": "a", "2": "c"}, {"x": "a"}, [1, 2], "abc"])
def test_a_damaged_vocabulary_is_refused(tiny: Make, tmp_path: Path, itos: Any) -> None:
    write_meta(tmp_path, {"vocab_size": 3, "itos": itos})
    with pytest.raises(UserError, match="meta file: itos: expected"):
        vocabulary_of(tiny, tmp_path)


def test_a_corpus_that_is_gone_is_said(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no corpus there"):
        vocabulary_of(tiny, tmp_path / "gone")
