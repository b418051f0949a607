"""What is known of a corpus before training, and how its tokens are opened."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt.config.data import (
    BinFolder,
    Data,
    Mixture,
    ShakespeareChar,
    SingleCorpus,
    ZipfMixture,
)
from nanogpt.config.diskfull import os_reason
from nanogpt.config.errors import UserError
from nanogpt.config.identity import canonical_json
from nanogpt.config.runtime import Runtime
from nanogpt.data import zipf
from nanogpt.data.binfiles import NANOGPT_VOCAB, file_sha256, read_meta, write_meta, write_tokens
from nanogpt.data.folders import GPT2, CorpusFiles, MissingCorpus, find_files
from nanogpt.data.manifest import MANIFEST
from nanogpt.data.places import corpus_folder, data_root, find_corpus, zipf_folder
from nanogpt.data.scanned import scan
from nanogpt.data.tokenfiles import Shards, Tokens
from nanogpt.data.tokensizes import token_sizes

__all__ = [
    "CorpusFacts", "MissingCorpus", "OpenCorpus", "OpenMixture", "OpenPart", "assumed_facts", "corpus_folder",
    "data_root", "facts", "generate_zipf", "open_corpus", "open_data", "part_names", "with_content", "zipf_folder",
]  # fmt: skip

SHAKESPEARE_CHARACTERS = 65
SCANS = ".scans"  # in the data directory: what reading large files of other makers told


@dataclass(frozen=True)
class CorpusFacts:
    """What a run needs to know before it starts. `content` fingerprints prepared files; `files` says which they are.

    `tokenizer` and its `fingerprint` are None where they are not known. A mixture has `parts` and no content.
    """

    vocab_size: int
    train_tokens: int
    val_tokens: int
    content: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    fingerprint: str | None = None
    parts: tuple["CorpusFacts", ...] = ()


@dataclass(frozen=True)
class OpenCorpus:
    """The splits as sequences of token ids, and how windows may be cut from them.

    `document` is the length of the independent documents that windows must not cross (None: the text is one piece).
    Targets with fewer than `min_context` predecessors in the block are not scored. `log_prob(window)` gives the true
    ln P of the scored targets of [..., T + 1] tokens where the source is known. `bytes_V` is the size of each token's
    text in UTF-8, 0 for those without one, and `val_bytes_per_token` its mean where no more is known; both are None
    where bits per byte mean nothing.
    """

    vocab_size: int
    train: Tokens
    val: Tokens
    document: int | None = None
    min_context: int = 1
    log_prob: Callable[[NDArray[Any]], NDArray[np.float64]] | None = None
    val_bytes_per_token: float | None = None
    bytes_V: NDArray[np.int64] | None = None
    test: Tokens | None = None


@dataclass(frozen=True)
class OpenPart:
    """One corpus of a mixture: what it is called, and its share of the sequences; the shares add up to 1."""

    name: str
    share: float
    corpus: OpenCorpus


@dataclass(frozen=True)
class OpenMixture:
    """Several corpora in one vocabulary, which every batch draws on."""

    vocab_size: int
    parts: tuple[OpenPart, ...]


def assumed_facts(data: Data) -> CorpusFacts:
    """What may be taken for granted of a corpus that is not there: its usual vocabulary, and nothing of its length."""
    vocab_size = SHAKESPEARE_CHARACTERS if isinstance(data.corpus, ShakespeareChar) else NANOGPT_VOCAB
    return CorpusFacts(vocab_size, train_tokens=0, val_tokens=0)


def facts(data: Data, runtime: Runtime) -> CorpusFacts:
    """What is known of a corpus. Raises UserError when it has to be prepared first, or its files are damaged."""
    if not isinstance(data.corpus, Mixture):
        return _single_facts(data.corpus, data.tokenizer, runtime)
    parts = tuple(_single_facts(part.corpus, data.tokenizer, runtime) for part in data.corpus.parts)
    _check_mixture(data.corpus, parts)
    first = parts[0]
    return CorpusFacts(
        max(part.vocab_size for part in parts),
        sum(part.train_tokens for part in parts),
        sum(part.val_tokens for part in parts),
        files={name: digest for part in parts for name, digest in part.files.items()},
        tokenizer=first.tokenizer,
        fingerprint=first.fingerprint,
        parts=parts,
    )


def _single_facts(corpus: SingleCorpus, tokenizer: str | None, runtime: Runtime) -> CorpusFacts:
    if isinstance(corpus, ZipfMixture):
        train, val = (-(-n // zipf.DOCUMENT) * zipf.DOCUMENT for n in (corpus.train_tokens, corpus.val_tokens))
        return CorpusFacts(corpus.alphabet_size, train, val, tokenizer="zipf_mixture")
    return _folder_facts(find_corpus(corpus, tokenizer, runtime), data_root(runtime) / SCANS)


def _check_mixture(mixture: Mixture, parts: tuple[CorpusFacts, ...]) -> None:
    """The same number must mean the same text in every part, and no text may be counted as two."""
    names = part_names(mixture)
    texts = [part.content or section.corpus for part, section in zip(parts, mixture.parts, strict=True)]
    for number, text in enumerate(texts):
        if text in texts[:number]:
            raise UserError(
                f"data.corpus.parts: {names[texts.index(text)]} and {names[number]} are the same corpus, whose repeats "
                "would be counted as different tokens; name it once, with the sum of the weights"
            )
    for number, part in enumerate(parts[1:], start=1):
        if not _one_tokenizer(parts[0], part):
            first, other = (
                f"{names[each]} ({parts[each].tokenizer or 'tokens of an unknown kind'}, "
                f"{parts[each].vocab_size:,} kinds)"
                for each in (0, number)
            )
            raise UserError(
                f"data.corpus.parts: {first} and {other} are in two tokenizers; prepare them with the same one"
            )


def _one_tokenizer(one: CorpusFacts, other: CorpusFacts) -> bool:
    if one.fingerprint and other.fingerprint:
        return one.fingerprint == other.fingerprint
    same_size = one.vocab_size == other.vocab_size or one.tokenizer == other.tokenizer == GPT2  # which some pad
    return one.tokenizer == other.tokenizer and same_size


def part_names(mixture: Mixture) -> list[str]:
    """What the parts of a mixture are called: their folders' names or kinds, numbered where two have one."""
    names = [Path(part.corpus.path).name if isinstance(part.corpus, BinFolder) else part.corpus.kind
             for part in mixture.parts]  # fmt: skip
    return [name if names.count(name) == 1 else f"{name}#{number}" for number, name in enumerate(names, start=1)]


def open_data(data: Data, runtime: Runtime) -> OpenCorpus | OpenMixture:
    """Open what a model reads, one corpus or a mixture. Raises UserError for missing files."""
    if not isinstance(data.corpus, Mixture):
        return open_corpus(data, runtime)
    whole = facts(data, runtime)
    total = sum(part.weight for part in data.corpus.parts)
    parts = tuple(
        OpenPart(name, part.weight / total, _open(part.corpus, data.tokenizer, runtime))
        for name, part in zip(part_names(data.corpus), data.corpus.parts, strict=True)
    )
    return OpenMixture(whole.vocab_size, parts)


def open_corpus(data: Data, runtime: Runtime) -> OpenCorpus:
    """Open one corpus; an embedded one is generated on first use. Raises UserError for missing files, and a mixture."""
    if isinstance(data.corpus, Mixture):
        raise UserError(f"data.corpus: a mixture of {', '.join(part_names(data.corpus))}; expected one corpus")
    return _open(data.corpus, data.tokenizer, runtime)


def _open(corpus: SingleCorpus, tokenizer: str | None, runtime: Runtime) -> OpenCorpus:
    if isinstance(corpus, ZipfMixture):
        return _open_zipf(corpus, data_root(runtime))
    files = find_corpus(corpus, tokenizer, runtime)
    found = _folder_facts(files, data_root(runtime) / SCANS)
    if corpus.content not in (None, found.content):
        raise UserError(
            f"{files.folder}: its content has changed since this run was set up; prepare it again, or start anew"
        )
    splits = {split: Shards(paths) for split, paths in files.splits.items()}
    return OpenCorpus(
        found.vocab_size,
        splits["train"],
        splits["val"],
        val_bytes_per_token=_mean_bytes(files),
        bytes_V=token_sizes(files),
        test=splits.get("test"),
    )


def _mean_bytes(files: CorpusFiles) -> float | None:
    if files.manifest is None:
        return read_meta(files.folder).get("val_bytes_per_token")
    val = files.manifest.splits["val"]
    return val.text_bytes / val.tokens or None


def _folder_facts(files: CorpusFiles, scans: Path) -> CorpusFacts:
    train, val = files.tokens("train"), files.tokens("val")
    known = (files.tokenizer, files.fingerprint)
    if files.manifest is not None:
        made = files.folder / MANIFEST
        digests = {str(made): file_sha256(made)}
        return CorpusFacts(files.vocab_size, train, val, files.manifest.content, digests, *known)
    paths = [file for split in ("train", "val") for file in files.splits[split]]
    found = scan(paths, scans)
    for file, each in zip(paths, found, strict=True):
        if each.largest >= files.vocab_size:
            raise UserError(
                f"{file.path}: holds the token {each.largest}, outside its vocabulary of {files.vocab_size} tokens"
            )
    hashes = {str(file.path): each.sha256 for file, each in zip(paths, found, strict=True)}
    content: dict[str, Any] = {"files": list(hashes.values()), "vocab_size": files.vocab_size}
    if len(paths) > 2:  # of one file each, the order tells which is which
        content["train_files"] = len(files.splits["train"])
    digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()
    return CorpusFacts(files.vocab_size, train, val, digest, hashes, *known)


def with_content(section: Any, corpus: CorpusFacts) -> Any:
    """A corpus's section with the content that its files have; a mixture's with that of each part.

    Raises UserError for one that was made for another content.
    """
    if corpus.parts:
        parts = zip(section.parts, corpus.parts, strict=True)
        filled = [part.model_copy(update={"corpus": with_content(part.corpus, one)}) for part, one in parts]
        return section.model_copy(update={"parts": tuple(filled)})
    if corpus.content is None:
        return section
    known = getattr(section, "content", None)
    if known not in (None, corpus.content):
        raise UserError(
            f"data.corpus: the files' content is {corpus.content[:12]}, the config was made for {known[:12]}; "
            "prepare the corpus again, or take out data.corpus.content"
        )
    return section.model_copy(update={"content": corpus.content})


def _open_zipf(corpus: ZipfMixture, root: Path) -> OpenCorpus:
    folder = generate_zipf(corpus, root)
    process = zipf.make_process(corpus)
    found = find_files(folder)
    return OpenCorpus(
        corpus.alphabet_size,
        Shards(found.splits["train"]),
        Shards(found.splits["val"]),
        document=zipf.DOCUMENT,
        min_context=corpus.lags,
        log_prob=lambda window: zipf.log_prob(process, window),
    )


def generate_zipf(corpus: ZipfMixture, root: Path) -> Path:
    """Generate the text unless it is there, and return its folder. Safe when several runs start at once."""
    from filelock import FileLock

    folder = zipf_folder(corpus, root)
    if (folder / "meta.json").exists():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / "meta.json").exists():
                _write_zipf(corpus, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {os_reason(error, folder)}") from None
    return folder


def _write_zipf(corpus: ZipfMixture, folder: Path) -> None:
    train = zipf.generate(corpus, "train", corpus.train_tokens)
    val = zipf.generate(corpus, "val", corpus.val_tokens)
    rate = zipf.entropy_rate(zipf.make_process(corpus), train[: 2**22 // zipf.DOCUMENT])
    write_tokens(folder / "train.bin", train.ravel())
    write_tokens(folder / "val.bin", val.ravel())
    # meta.json last: it says that the rest is whole.
    write_meta(
        folder,
        {
            "vocab_size": corpus.alphabet_size,
            "corpus": corpus.model_dump(mode="json"),
            "train_tokens": train.size,
            "val_tokens": val.size,
            "document": zipf.DOCUMENT,
            "entropy_rate": rate.mean,
            "entropy_rate_stderr": rate.stderr,
            "files": ["train.bin", "val.bin", "meta.json", ".lock"],
        },
    )
