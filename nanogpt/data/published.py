"""OpenAI's encodings: what defines each, and its ranks from a file, from tiktoken's cache, or downloaded once."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nanogpt.config.errors import UserError
from nanogpt.data.alphabets import END_OF_TEXT
from nanogpt.data.bpe import GPT2_PATTERN, Bpe, Ranks, ranks_sha256
from nanogpt.data.ranks import parse_ranks, read_ranks
from nanogpt.downloads import fetch, why
from nanogpt.record import replacing

BLOBS = "https://openaipublic.blob.core.windows.net"


class MissingRanks(UserError):
    """An encoding's ranks are not on this machine and cannot be downloaded."""


@dataclass(frozen=True)
class RanksFile:
    """A published file of ranks, by its address and the sha256 of its bytes."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def cached_as(self) -> str:
        """Its name in tiktoken's cache: the sha1 of its address."""
        return hashlib.sha1(self.url.encode()).hexdigest()


@dataclass(frozen=True)
class Published:
    """An encoding: how it cuts texts, its special tokens, its ranks by number and sha256, and the files that have them.

    `ranks_sha256` is that of the .tiktoken file; any other of the same ranks is as good. Each of `files` is enough.
    """

    pattern: str
    specials: Mapping[str, int]
    n_ranks: int
    ranks_sha256: str
    files: tuple[RanksFile, ...]


def _tiktoken_file(name: str, sha256: str) -> RanksFile:
    return RanksFile(f"{BLOBS}/encodings/{name}.tiktoken", sha256)


# Definitions and hashes as published in tiktoken (openai_public.py). GPT-2's ranks are those of r50k_base.
_R50K = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
_CL100K = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_O200K = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
_VOCAB_BPE = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
O200K_PATTERN = (
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_FILL_IN = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
PUBLISHED = {
    "gpt2": Published(
        GPT2_PATTERN,
        {END_OF_TEXT: 50256},
        50256,
        _R50K,
        (RanksFile(f"{BLOBS}/gpt-2/encodings/main/vocab.bpe", _VOCAB_BPE), _tiktoken_file("r50k_base", _R50K)),
    ),
    "cl100k_base": Published(
        CL100K_PATTERN,
        {END_OF_TEXT: 100257, **_FILL_IN, "<|endofprompt|>": 100276},
        100256,
        _CL100K,
        (_tiktoken_file("cl100k_base", _CL100K),),
    ),
    "o200k_base": Published(
        O200K_PATTERN,
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
        199998,
        _O200K,
        (_tiktoken_file("o200k_base", _O200K),),
    ),
}


def load_published(name: str, given: Path | None = None) -> Bpe:
    """One of OpenAI's encodings; `given` is a file of its ranks, or a folder with one.

    Raises MissingRanks when they are nowhere and cannot be downloaded, UserError for ranks of something else.
    """
    published = PUBLISHED[name]
    ranks = _given(name, published, given) if given else _cached(published) or _downloaded(name, published)
    return Bpe(name, ranks, published.pattern, published.specials)


def recognised(ranks: Ranks) -> Bpe:
    """The published encoding that has these ranks, else one that cuts texts as GPT-2 does and ends them likewise."""
    digest = ranks_sha256(ranks)
    for name, published in PUBLISHED.items():
        if published.ranks_sha256 == digest:
            return Bpe(name, ranks, published.pattern, published.specials)
    return Bpe(f"bpe{len(ranks) + 1}", ranks, GPT2_PATTERN, {END_OF_TEXT: len(ranks)})


def _given(name: str, published: Published, given: Path) -> Ranks:
    """The ranks of a file or folder that a person named."""
    given = given.expanduser()
    if given.is_dir():
        found = next((path for path, _ in _candidates(published, given) if path.is_file()), None)
        if found is None:
            names = " or ".join(f"{file.name} ({file.cached_as})" for file in published.files)
            raise UserError(f"{given}: no ranks of {name} there: expected {names}")
        given = found
    ranks = read_ranks(given)
    if len(ranks) != published.n_ranks:
        raise UserError(
            f"{given}: {len(ranks):,} ranks, but {name} has {published.n_ranks:,}: cut off, or of another encoding "
            "(which is named by the file itself, in place of a name)"
        )
    if ranks_sha256(ranks) != published.ranks_sha256:
        raise UserError(f"{given}: as many ranks as {name} has, but not the same: damaged")
    return ranks


def _candidates(published: Published, folder: Path) -> Iterator[tuple[Path, RanksFile]]:
    """Where a folder may have the ranks: under the names of tiktoken's cache, or under their own."""
    for file in published.files:
        yield folder / file.cached_as, file
        yield folder / file.name, file


def cache_folder() -> Path | None:
    """Where tiktoken keeps what it has downloaded; None where a person has switched its cache off (an empty name)."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if given is None:
        return Path(tempfile.gettempdir()) / "data-gym-cache"
    return Path(given).expanduser() if given else None


def _cached(published: Published) -> Ranks | None:
    """The ranks in the cache, None where it has none that are whole. Nothing is deleted there: it may be shared."""
    folder = cache_folder()
    for path, file in _candidates(published, folder) if folder else ():
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == file.sha256:
                return parse_ranks(data, str(path))
    return None


def _downloaded(name: str, published: Published) -> Ranks:
    """Download the ranks and leave them in the cache."""
    file, folder = published.files[0], cache_folder()
    try:
        data = fetch(file.url, file.sha256)
    except OSError as error:
        reason = why(error)
    else:
        _keep(data, folder, file)
        return parse_ranks(data, file.url)
    there = "there under that name or its own" if folder else "into a folder that TIKTOKEN_CACHE_DIR names"
    raise MissingRanks(
        f"{name}: its ranks are not in {_told(published, folder)}, and cannot be downloaded: {reason}; "
        f"fetch {file.url} elsewhere and put it {there}, or pass --ranks FILE"
    )


def _told(published: Published, folder: Path | None) -> str:
    """How a message names the cache: what was looked for, and what is there but damaged."""
    if folder is None:
        return "a cache (TIKTOKEN_CACHE_DIR is empty)"
    source = "TIKTOKEN_CACHE_DIR" if "TIKTOKEN_CACHE_DIR" in os.environ else "TIKTOKEN_CACHE_DIR is not set"
    damaged = [path.name for path, _ in _candidates(published, folder) if path.is_file()]
    state = f"{damaged[0]} is damaged" if damaged else f"no file {published.files[0].cached_as}"
    return f"{folder} ({source}; {state})"


def _keep(data: bytes, folder: Path | None, file: RanksFile) -> None:
    """Put a download into the cache, where there is one that can be written: it may be another person's, or full."""
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / file.cached_as) as temporary:
            temporary.write_bytes(data)
