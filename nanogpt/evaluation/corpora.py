"""What `eval` may score besides HellaSwag: prepared corpora by name or folder, and files of text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt.config import UserError
from nanogpt.config.data import BinFolder, Data, Mixture, ShakespeareChar, ZipfMixture
from nanogpt.config.errors import did_you_mean
from nanogpt.data.alphabets import Tokenizer
from nanogpt.data.opening import OpenCorpus, corpus_folder, data_root, open_corpus, part_names
from nanogpt.data.tokensizes import sizes_of
from nanogpt.data.vocabulary import Vocabulary
from nanogpt.evaluation.corpus_loss import Stretch
from nanogpt.evaluation.tokenizing import NO_TEXT, check_same, text_tokenizer, vocabulary_of_folder
from nanogpt.trained import Trained

SPLITS = ("train", "val", "test")
OWN = "own"  # the corpus that a run was trained on
TEXT_SUFFIXES = (".txt", ".md", ".text", ".jsonl")


@dataclass(frozen=True)
class EvalCorpus:
    """A stretch to be scored, the name that its results have, and what they say of where it came from."""

    name: str
    stretch: Stretch
    source: dict[str, Any]


def find_corpus(name: str, split: str, trained: Trained, reads: Vocabulary, ranks: Path | None = None) -> EvalCorpus:
    """A corpus for a model that reads a vocabulary.

    `name` is a prepared corpus or its folder, or a file of text: that is written in the model's tokenizer here. Raises
    UserError where there is none, and for a corpus in another tokenizer.
    """
    if Path(name).is_file():
        return _text_file(Path(name), trained, text_tokenizer(reads, name))
    data = _data_of(name, trained, reads.tokenizer)
    if isinstance(data.corpus, ZipfMixture):
        place, written = name, Vocabulary(data.corpus.alphabet_size)
    else:
        folder = corpus_folder(data.corpus, trained.config.runtime, data.tokenizer)
        place, written = str(folder), vocabulary_of_folder(folder, ranks)
    check_same(reads, written, place)
    opened = open_corpus(data, trained.config.runtime)
    source = {"corpus": place, "split": split, "content": getattr(data.corpus, "content", None)}
    return EvalCorpus(Path(name).name, _stretch(opened, split, place, written.tokenizer, trained), source)


def _data_of(name: str, trained: Trained, tokenizer: Tokenizer | None) -> Data:
    config = trained.config
    if name.partition(":")[0] == OWN:
        return _own(name, trained)
    if name == "zipf_mixture":
        return Data(corpus=config.data.corpus if isinstance(config.data.corpus, ZipfMixture) else ZipfMixture())
    if name == "shakespeare_char":
        return Data(corpus=ShakespeareChar())
    return Data(corpus=BinFolder(path=str(_folder(name, data_root(config.runtime), tokenizer))))


def parts_of(name: str, trained: Trained) -> list[str]:
    """The names that one name stands for: `own` under a mixture is each of its parts, `own:wikitext-2`."""
    corpus = trained.config.data.corpus
    if name == OWN and trained.weights is None and isinstance(corpus, Mixture):
        return [f"{OWN}:{part}" for part in part_names(corpus)]
    return [name]


def _own(name: str, trained: Trained) -> Data:
    """What a run was trained on, or one part of it."""
    if trained.weights is not None:
        raise UserError(f"eval: {trained.name} is no run, and has no corpus of its own: name one, or a file of text")
    data, part = trained.config.data, name.partition(":")[2]
    parts = (
        dict(zip(part_names(data.corpus), data.corpus.parts, strict=True)) if isinstance(data.corpus, Mixture) else {}
    )
    if (part or parts) and part not in parts:
        raise UserError(f"eval: {name}: the run's corpus has no such part{did_you_mean(part, parts)}")
    return data.model_copy(update={"corpus": parts[part].corpus}) if part else data


def _folder(name: str, root: Path, tokenizer: Tokenizer | None) -> Path:
    """A folder, or a corpus under `root` as it was prepared with the model's tokenizer."""
    under = [root / name, *([root / f"{name}.{tokenizer.name}"] if tokenizer is not None else [])]
    for folder in (Path(name).expanduser(), *under):
        if folder.is_dir():
            return folder
    there = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    others = [entry.removeprefix(f"{name}.") for entry in there if entry.startswith(f"{name}.")]
    reads = tokenizer.name if tokenizer is not None else NO_TEXT
    if others:
        raise UserError(
            f"eval: {name}: prepared with {', '.join(others)}, the model reads {reads}; "
            f"run `python -m nanogpt prepare {name} --tokenizer {reads}`"
        )
    names = ["hellaswag", OWN, *there]
    raise UserError(f"eval: no task, corpus, folder or file {name!r}; corpora lie in {root}{did_you_mean(name, names)}")


def _stretch(opened: OpenCorpus, split: str, place: str, written: Tokenizer | None, trained: Trained) -> Stretch:
    tokens = getattr(opened, split, None)
    if tokens is None or not len(tokens):
        has = [each for each in SPLITS if getattr(opened, each, None) is not None]
        raise UserError(f"eval: {place}: has no split {split!r}; it has {', '.join(has)}")
    size = trained.model.embedding.weight.shape[0]
    bytes_V = sizes_of(written, size) if written is not None else None
    return Stretch(tokens, bytes_V, opened.document, opened.min_context)


def _text_file(file: Path, trained: Trained, tokenizer: Tokenizer) -> EvalCorpus:
    """A text, or one text per line of JSON: written in the model's tokenizer, an end-of-text token before each."""
    if file.suffix.lower() not in TEXT_SUFFIXES:
        raise UserError(f"eval: {file}: not a file of text by its name; expected one of {', '.join(TEXT_SUFFIXES)}")
    ids: list[int] = []
    for place, text in _texts(file):
        ids += [tokenizer.eot] if tokenizer.eot is not None else []
        try:
            ids += tokenizer.encode(text)
        except UserError as error:
            raise UserError(f"eval: {place}: {error}") from None
    stretch = Stretch(np.array(ids, dtype=np.int64), sizes_of(tokenizer, trained.model.embedding.weight.shape[0]))
    return EvalCorpus(file.name, stretch, {"corpus": str(file), "split": None, "content": None})


def _texts(file: Path) -> Iterator[tuple[str, str]]:
    try:
        if file.suffix.lower() != ".jsonl":
            yield str(file), file.read_bytes().decode("utf-8")  # without the newlines of this machine put in
            return
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}:{number}", _text_of(f"{file}:{number}", line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"eval: {file}: cannot be read as text: {error}") from None


def _text_of(place: str, line: str) -> str:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"eval: {place}: not JSON: {error.msg}") from None
    text = found.get("text") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise UserError(f'eval: {place}: expected an object with a \'text\', as in {{"text": "..."}}')
    return text
