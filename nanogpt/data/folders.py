"""Which files of a folder are a corpus: ours by their manifest, other people's by their names and their layouts."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanogpt.config.errors import UserError
from nanogpt.data.binfiles import NANOGPT_VOCAB, has_meta, read_meta
from nanogpt.data.manifest import MANIFEST, SPLIT_WORDS, Manifest, Shard, check_sizes, read_manifest
from nanogpt.data.tokenfiles import LITTLE_ENDIAN, LLMC_HEADER, TokenFile, read_layout
from nanogpt.data.tokenizers import read_tokenizer

NEEDED = ("train", "val")
LLAMA3_VOCAB = 128256  # llm.c writes uint32 tokens for LLaMA 3's tokenizer alone
GPT2 = "gpt2"


class MissingCorpus(UserError):
    """The corpus has not been prepared, or lies elsewhere."""


@dataclass(frozen=True)
class CorpusFiles:
    """The files of each split in order, and what their tokens are.

    `tokenizer` names the tokenizer and `fingerprint` identifies it; None where the folder does not tell. `manifest` is
    None for files of other makers.
    """

    folder: Path
    splits: Mapping[str, tuple[TokenFile, ...]]
    vocab_size: int
    tokenizer: str | None
    fingerprint: str | None
    manifest: Manifest | None

    @property
    def files(self) -> list[TokenFile]:
        return [file for files in self.splits.values() for file in files]

    def tokens(self, split: str) -> int:
        return sum(file.tokens for file in self.splits[split])


def holds_corpus(folder: Path) -> bool:
    """Whether a folder looks like a corpus, whole or not."""
    return (folder / MANIFEST).exists() or any(_split_of(path) in NEEDED for path in _candidates(folder))


def find_files(folder: Path) -> CorpusFiles:
    """The corpus in a folder, every file's size checked against what its header, manifest or meta file says.

    Raises MissingCorpus where a split has no file, UserError naming the file that is damaged, missing or of another
    kind than the others.
    """
    manifest = read_manifest(folder)
    return _prepared(folder, manifest) if manifest is not None else _foreign(folder)


def _prepared(folder: Path, manifest: Manifest) -> CorpusFiles:
    check_sizes(folder, manifest)
    splits: dict[str, tuple[TokenFile, ...]] = {
        split: tuple(_shard(folder, manifest, shard) for shard in files.shards if shard.tokens)
        for split, files in manifest.splits.items()
    }
    for split, purpose in (("train", "train on"), ("val", "evaluate on")):
        if not splits.get(split):
            raise UserError(f"{folder / MANIFEST}: nothing to {purpose}: the corpus's {split} split is empty")
    tokenizer = manifest.tokenizer
    return CorpusFiles(folder, splits, tokenizer.n_vocab, tokenizer.name, tokenizer.fingerprint, manifest)


def _shard(folder: Path, manifest: Manifest, shard: Shard) -> TokenFile:
    dtype, path = LITTLE_ENDIAN[manifest.dtype], folder / shard.file
    if manifest.layout == "npy":  # its header has no fixed length
        file = read_layout(path)
    else:
        file = TokenFile(path, dtype, LLMC_HEADER if manifest.layout == "llmc" else 0, shard.tokens)
    if (file.dtype, file.tokens, file.size) != (dtype, shard.tokens, shard.bytes):
        raise UserError(f"{path}: not the shard of its manifest, which has {shard.tokens:,} tokens of {manifest.dtype}")
    return file


def _candidates(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".npy") and path.name[0] != ".")


def _split_of(path: Path) -> str | None:
    """The split that a file's name says, `fineweb_val_000000.bin` is val; None where it says none, or two."""
    splits: set[str] = {SPLIT_WORDS[word] for word in re.findall("[a-z]+", path.stem.lower()) if word in SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


def _foreign(folder: Path) -> CorpusFiles:
    """nanoGPT's train.bin and val.bin where both are there, else shards by the words in their names."""
    candidates = _candidates(folder)
    own = [path for path in candidates if path.name in ("train.bin", "val.bin", "test.bin")]
    named = own if len(own) > 1 else candidates
    paths = {split: [path for path in named if _split_of(path) == split] for split in ("train", "val", "test")}
    _check_splits(folder, candidates, paths)
    meta = read_meta(folder)
    raw = "<u4" if meta["vocab_size"] > 2**16 else "<u2"
    splits = {split: tuple(read_layout(path, raw) for path in found) for split, found in paths.items() if found}
    _check_alike(splits)
    _check_counts(folder, meta, splits)
    vocab_size = meta["vocab_size"] if has_meta(folder) else _customary_vocab(splits["train"][0])
    if meta.get("itos") is not None:
        return CorpusFiles(folder, splits, vocab_size, "char", read_tokenizer(folder).fingerprint, None)
    named_there = meta.get("tokenizer")
    tokenizer = named_there if isinstance(named_there, str) else GPT2 if vocab_size == NANOGPT_VOCAB else None
    return CorpusFiles(folder, splits, vocab_size, tokenizer, None, None)


def _customary_vocab(file: TokenFile) -> int:
    """What nobody says: nanoGPT and the shards that follow it hold GPT-2's tokens."""
    is_llama3 = file.path.suffix == ".bin" and (file.dtype, file.offset) == ("<u4", LLMC_HEADER)
    return LLAMA3_VOCAB if is_llama3 else NANOGPT_VOCAB


def _check_splits(folder: Path, candidates: list[Path], paths: Mapping[str, list[Path]]) -> None:
    missing = [split for split in NEEDED if not paths[split]]
    if len(missing) == len(NEEDED) and candidates:
        names = ", ".join(path.name for path in candidates[:3]) + (", ..." if len(candidates) > 3 else "")
        raise MissingCorpus(f"{folder}: no corpus there: {names}: no file is named as of a split, train or val")
    if missing:
        single = all(path.stem in NEEDED for found in paths.values() for path in found)
        names = " and ".join(f"{split}.bin" if single else f"a shard *_{split}_*" for split in missing)
        hint = "; run `python -m nanogpt prepare shakespeare_char`" if folder.name == "shakespeare_char" else ""
        raise MissingCorpus(f"{folder}: no corpus there ({names} missing){hint}")
    for found in paths.values():
        _check_row(found)


def _check_row(paths: list[Path]) -> None:
    """The shards of a split are one row of one kind: a number left out is a shard that got lost."""
    kinds: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for path in paths:
        stem = re.fullmatch(r"(.*?)(\d*)", path.stem)
        assert stem is not None
        kinds.setdefault((stem[1], path.suffix), []).append((int(stem[2] or 0), path))
    if len(kinds) > 1:
        first, second = (row[0][1].name for row in list(kinds.values())[:2])
        raise UserError(
            f"{paths[0].parent}: {first} and {second} are of two corpora; give each a folder, and mix them if you like"
        )
    row = sorted(row for rows in kinds.values() for row in rows)
    for (before, path), (after, _) in itertools.pairwise(row):
        if after != before + 1:
            prefix = path.stem.rstrip("0123456789")
            lost = f"{prefix}{before + 1:0{len(path.stem) - len(prefix)}d}{path.suffix}"
            raise UserError(f"{path.with_name(lost)}: missing, though shards before and after it are there")


def _check_alike(splits: Mapping[str, tuple[TokenFile, ...]]) -> None:
    """A file without a header among others with one is no file of raw tokens."""
    for files in splits.values():
        for file in files:
            if (file.dtype, file.offset > 0) != (files[0].dtype, files[0].offset > 0):
                raise UserError(
                    f"{file.path}: of another kind than {files[0].path.name}: damaged, or of another corpus"
                )


def _check_counts(folder: Path, meta: Mapping[str, object], splits: Mapping[str, tuple[TokenFile, ...]]) -> None:
    """A meta file of ours says how many tokens there are: raw files cannot tell that they were cut off."""
    for split, files in splits.items():
        said, found = meta.get(f"{split}_tokens"), sum(file.tokens for file in files)
        if isinstance(said, int) and said != found:
            raise UserError(
                f"{files[0].path}: {found:,} tokens, meta.json says {said:,}: truncated or replaced; "
                "prepare the corpus again"
            )
