"""The ranks of OpenAI's encodings: from a file, from tiktoken's cache, or downloaded once into it."""

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanogpt.config.errors import UserError
from nanogpt.data.alphabets import END_OF_TEXT
from nanogpt.data.bpe import GPT2_PATTERN, Bpe, Ranks, printable_bytes, ranks_sha256

BLOBS = "https://openaipublic.blob.core.windows.net"
GPT2_VOCAB_BPE = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # sha256 of the file


@dataclass(frozen=True)
class RanksFile:
    """A published file of ranks, by its address and the sha256 of its bytes."""

    url: str
    sha256: str

    @property
    def cached_as(self) -> str:
        """Its name in tiktoken's cache."""
        return hashlib.sha1(self.url.encode()).hexdigest()

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Published:
    """An encoding of OpenAI's: how it cuts texts, its special tokens, the sha256 of its ranks and where they are."""

    pattern: str
    specials: Mapping[str, int]
    ranks_sha256: str
    files: tuple[RanksFile, ...]  # each alone is enough


# The definitions are those of tiktoken's openai_public.py, the hashes those it checks its downloads by.
PUBLISHED = {
    "gpt2": Published(
        GPT2_PATTERN,
        {END_OF_TEXT: 50256},
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        (
            RanksFile(f"{BLOBS}/gpt-2/encodings/main/vocab.bpe", GPT2_VOCAB_BPE),
            RanksFile(
                f"{BLOBS}/encodings/r50k_base.tiktoken",
                "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
            ),
        ),
    ),
}


def load_published(name: str, file: Path | None = None) -> Bpe:
    """One of OpenAI's encodings, its ranks from `file` or from tiktoken's cache. Raises UserError without them."""
    published = PUBLISHED[name]
    if file is not None:
        ranks = read_ranks(file)
        if ranks_sha256(ranks) != published.ranks_sha256:
            raise UserError(f"{file}: {len(ranks):,} ranks that are not those of {name}")
        return Bpe(name, ranks, published.pattern, published.specials)
    for each in published.files:
        path = _cache_folder() / each.cached_as
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == each.sha256:
            return Bpe(name, read_ranks(path), published.pattern, published.specials)
    raise UserError(f"{name}: no ranks in {_cache_folder()}; pass --ranks FILE")


def _cache_folder() -> Path:
    """Where tiktoken keeps its downloads."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    return Path(given) if given else Path(tempfile.gettempdir()) / "data-gym-cache"


def read_ranks(file: Path) -> Ranks:
    """The ranks in a .tiktoken file, or in GPT-2's vocab.bpe (HF's merges.txt). Raises UserError for other files."""
    try:
        lines = file.read_bytes().decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as ranks: {error}") from None
    if lines and lines[0].startswith("#version"):
        return _from_merges(lines[1:])
    try:
        pairs = [line.split() for line in lines if line]
        found = {int(rank): base64.b64decode(token, validate=True) for token, rank in pairs}
        return tuple(found[rank] for rank in range(len(found)))
    except (ValueError, KeyError, binascii.Error):
        raise UserError(f"{file}: no file of ranks") from None


def _from_merges(lines: list[str]) -> Ranks:
    """Ranks from merges in order: the 256 bytes first, then what each merge makes."""
    byte_of = printable_bytes()
    ranks = [bytes([byte]) for byte in byte_of.values()]
    merged = ["".join(line.split()) for line in lines if line]
    return (*ranks, *(bytes(byte_of[character] for character in word) for word in merged))
