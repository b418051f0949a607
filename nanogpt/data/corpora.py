"""The corpora that `prepare` knows by name: where each comes from, where its documents begin, and its customary split.

A further one is an entry in CORPORA. What is not here is prepared from a person's own files, or from any dataset of the
Hugging Face Hub (`hf:OWNER/NAME`).
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanogpt.config.errors import UserError
from nanogpt.data.hub import download, hub_streams
from nanogpt.data.manifest import Layout
from nanogpt.data.pieces import Reading, decode, table_rows
from nanogpt.data.shakespeare import SHA256, TRAIN_SHARE, URL
from nanogpt.data.sources import Source, SourceFile, Stream, find_files, separate, split_of
from nanogpt.data.splitting import Splitting

OWN_SHARE = 0.01  # of a person's own documents that validate
SHARD_TOKENS = 100_000_000  # build-nanogpt's and modded-nanogpt's
FROM_HUB = "hf:"
OWN_FILES = ("zipf_mixture", "shakespeare_char")  # made as they always were, without a manifest
_WORDS: dict[Splitting, str] = {"hash": "by a hash of the document", "first_shard": "the first shard validates"}
_TITLE = re.compile(r" = (?!= ).*(?<! =) = ?\n?")


@dataclass(frozen=True)
class Found:
    """The sources of a corpus, how its documents are split, and what is told of them in the manifest."""

    sources: list[Source]
    splitting: Splitting
    facts: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where to look: `given` is a file or folder (None: download), `downloads` where what is fetched is kept."""

    name: str
    given: Path | None
    downloads: Path
    subset: str | None = None
    column: str | None = None
    glob: str | None = None


@dataclass(frozen=True)
class Corpus:
    """A corpus by name. `separate` says whether an end-of-text token begins each document; `val_share` is of a hash.

    `shard_tokens` and `layout` are what its users are used to; `prefix` begins the names of its shards.
    """

    find: Callable[[Place], Found]
    about: str
    val_share: float | None = None
    separate: bool = True
    layout: Layout = "nanogpt"
    shard_tokens: int | None = None
    prefix: str | None = None
    downloads: tuple[str, ...] = ()


def find_own(place: Place) -> Found:
    """A person's own file or folder: split as its names say, a single text in two, else by hash."""
    assert place.given is not None
    files = separate(find_files(place.given, place.glob), articles=False)
    if files[0].split is not None:
        return Found(list(files), "files", {"splits": "as the files' names say"})
    if len(files) == 1 and files[0].kind == "text" and files[0].boundary is None and not files[0].packed:
        return Found([*files], "files", {"splits": "one text, cut in two"})
    return Found(list(files), "hash", {"splits": "by a hash of the document"})


def cut_text(file: SourceFile, share: float) -> list[Source]:
    """One text in two: the first part trains, the rest validates. It is cut at the end of a line, if it has any."""
    offset = int(file.size * (1 - share))
    with Path(file.path).open("rb") as opened:
        opened.seek(offset)
        block = opened.read(2**16)
    line = block.find(b"\n")
    offset += line + 1 if line >= 0 else next((n for n, byte in enumerate(block[:4]) if byte & 0xC0 != 0x80), 0)
    return _in_two(file, offset)


def _in_two(file: SourceFile, offset: int) -> list[Source]:
    if not 0 < offset < file.size:
        raise UserError(f"{file.path}: {file.size:,} bytes are too few to split into train and val")
    return [replace(file, split="train", end=offset), replace(file, split="val", first=offset)]


def _shakespeare(place: Place) -> Found:
    """nanoGPT's split: the first 90 % of the characters train."""
    path = place.given or download(URL, place.downloads / "input.txt", place.name, SHA256)
    files = find_files(path, place.glob, splits=False)
    if len(files) > 1:
        raise UserError(f"{path}: shakespeare is one file, found {len(files)}")
    text = decode(Path(files[0].path).read_bytes(), files[0].path, 0, Reading())
    offset = len(text[: int(len(text) * TRAIN_SHARE)].encode())
    return Found(_in_two(files[0], offset), "files", {"splits": "nanoGPT's: the first 90 % of the characters train"})


def _wikitext_files(train: int) -> tuple[str, ...]:
    parts = {"train": train, "validation": 1, "test": 1}
    return tuple(f"{split}-{n:05d}-of-{count:05d}.parquet" for split, count in parts.items() for n in range(count))


def _wikitext(names: tuple[str, ...]) -> Callable[[Place], Found]:
    base = "https://huggingface.co/datasets/Salesforce/wikitext/resolve/main"

    def find(place: Place) -> Found:
        folder = place.given
        if folder is None:
            for name in names:
                download(f"{base}/{place.name}-raw-v1/{name}", place.downloads / name, place.name)
            folder = place.downloads
        return _articles(folder, place.glob)

    return find


def _articles(place: Path, glob: str | None) -> Found:
    """WikiText's files by the splits that their names say, a document for each article."""
    # Its own archives have names that no other texts have.
    own = (pattern for pattern in ("*.raw", "*.tokens") if place.is_dir() and any(place.rglob(pattern)))
    files = find_files(place, glob or next(own, None), splits=False)
    told = [replace(file, split=split_of(file.name)) for file in files]
    if len(files) > 1:
        told = [file for file in told if file.split is not None]
        missing = [split for split in ("train", "val") if split not in [file.split for file in told]]
        if missing:
            names = ", ".join(file.name for file in files[:5])
            raise UserError(f"{place}: no file of WikiText's {' and '.join(missing)} split; there are {names}")
    else:
        told = [replace(file, split=None) for file in told]
    sources = [_article_stream(file) if file.kind == "parquet" else file for file in separate(told, articles=True)]
    if told[0].split is None:
        return Found(list(sources), "hash", {"splits": "one file: by a hash of the article", "documents": "articles"})
    return Found(list(sources), "files", {"splits": "WikiText's files", "documents": "articles"})


def _article_stream(file: SourceFile) -> Stream:
    """The articles of a table that has a line in each row."""

    def articles(skip: int) -> Iterator[str]:
        lines: list[str] = []
        count = 0
        for line, following in itertools.pairwise(itertools.chain(table_rows(file.path, None), [""])):
            if _TITLE.fullmatch(line) and not following.strip():
                if any(each.strip() for each in lines):
                    if count >= skip:
                        yield "".join(lines)
                    count += 1
                lines = []
            # The tables have empty rows where the files have a space.
            lines.append(line or " \n")
        if count >= skip and any(each.strip() for each in lines):
            yield "".join(lines)

    return Stream(file.name, articles, file.split, file.size, file)


def _from_hub(repository: str, subset: str | None, splitting: Splitting) -> Callable[[Place], Found]:
    def find(place: Place) -> Found:
        if place.given is not None:
            files = separate(find_files(place.given, place.glob, splits=False), articles=False)
            return Found(list(files), splitting, {"splits": _WORDS[splitting]})
        streams, facts = hub_streams(repository, place.subset or subset, place.column)
        return Found(
            [replace(stream, split=None) for stream in streams], splitting, {"splits": _WORDS[splitting], **facts}
        )

    return find


def find_on_hub(repository: str) -> Callable[[Place], Found]:
    """Any dataset of the Hub: its own splits where it has them, else by hash."""

    def find(place: Place) -> Found:
        streams, facts = hub_streams(repository, place.subset, place.column)
        splitting: Splitting = "files" if all(stream.split for stream in streams) else "hash"
        splits = "the dataset's own" if splitting == "files" else "by a hash of the document"
        return Found(list(streams), splitting, {"splits": splits, **facts})

    return find


CORPORA: dict[str, Corpus] = {
    "shakespeare": Corpus(
        _shakespeare,
        "tiny Shakespeare, as nanoGPT's data/shakespeare has it: one text, nothing between",
        separate=False,
    ),
    "wikitext-2": Corpus(_wikitext(_wikitext_files(1)), "WikiText-2 raw, 13 MB", downloads=_wikitext_files(1)),
    "wikitext-103": Corpus(_wikitext(_wikitext_files(2)), "WikiText-103 raw, 550 MB", downloads=_wikitext_files(2)),
    "openwebtext": Corpus(
        _from_hub("Skylion007/openwebtext", None, "hash"), "OpenWebText, 40 GB of text", val_share=0.0005
    ),
    "fineweb-edu": Corpus(
        _from_hub("HuggingFaceFW/fineweb-edu", "sample-10BT", "first_shard"),
        "FineWeb-Edu; --subset sample-100BT and so on for more than 10 billion tokens",
        layout="npy",
        shard_tokens=SHARD_TOKENS,
        prefix="edufineweb",
    ),
}
