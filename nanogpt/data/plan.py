"""What a call of `prepare` is going to make, worked out before anything is written."""

import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.config.identity import canonical_json
from nanogpt.data.alphabets import Tokenizer
from nanogpt.data.bpe import bpe_size
from nanogpt.data.corpora import (
    CORPORA,
    FROM_HUB,
    OWN_FILES,
    OWN_SHARE,
    SHARD_TOKENS,
    Corpus,
    Place,
    cut_text,
    find_on_hub,
    find_own,
)
from nanogpt.data.manifest import Layout
from nanogpt.data.pieces import PIECE, Reading
from nanogpt.data.shardwriter import MOST_TOKENS
from nanogpt.data.sources import Source, SourceFile, hashed
from nanogpt.data.splitting import Splitting
from nanogpt.data.tokenizers import load_tokenizer

VERSION = 1  # of what decides about the bytes: a change there makes other files of the same sources
DOWNLOADS = ".downloads"
MUCH = 10**9  # bytes that take more than a moment to read
NEAR = 0.9  # so alike is a slip of the finger, not a name of one's own


@dataclass(frozen=True)
class Request:
    """What a person asked for; None where the corpus's own way is meant. `root` is the folder of prepared corpora."""

    name: str
    root: Path
    source: str | None = None
    tokenizer: str | None = None
    ranks: Path | None = None
    layout: Layout | None = None
    shard_tokens: int | None = None
    workers: int = 1
    val_share: float | None = None
    subset: str | None = None
    column: str | None = None
    glob: str | None = None
    errors: Literal["strict", "replace"] = "strict"


@dataclass(frozen=True)
class Plan:
    """Everything that decides about the bytes to be made; `fingerprint` is a hash of it.

    `tokenizer` is None where it is trained on the corpus first, as `spec` says.
    """

    name: str
    folder: Path
    sources: list[Source]
    splitting: Splitting
    val_share: float | None
    tokenizer: Tokenizer | None
    spec: str
    separate: bool
    layout: Layout
    shard_tokens: int | None
    prefix: str
    reading: Reading
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: list[SourceFile] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Bytes of all sources, 0 where that is not known beforehand."""
        sizes = [(s.end or s.size) - s.first if isinstance(s, SourceFile) else s.weight for s in self.sources]
        return sum(sizes) if all(sizes) else 0

    @property
    def fingerprint(self) -> str:
        known = {
            "version": VERSION,
            "piece": PIECE,
            "facts": {key: value for key, value in self.facts.items() if key != "from"},
            "files": [file.facts() for file in self.files],
            "splitting": [self.splitting, self.val_share],
            "tokenizer": self.spec if self.tokenizer is None else self.tokenizer.fingerprint,
            "layout": [self.layout, self.shard_tokens, self.prefix, self.separate],
            "reading": [self.reading.column, self.reading.errors],
        }
        return hashlib.sha256(canonical_json(known).encode()).hexdigest()


def make_plan(request: Request, known_hashes: Callable[[Path], Mapping[str, Any]] = lambda folder: {}) -> Plan:
    """The plan of a request; `known_hashes` has those of an earlier call. Raises UserError for what cannot be."""
    corpus, name = corpus_of(request)
    if request.val_share is not None and not 0 < request.val_share < 1:
        raise UserError(f"--val-share {request.val_share}: expected a share between 0 and 1")
    spec = request.tokenizer or "gpt2"
    tokenizer = None if spec == "char" or bpe_size(spec) is not None else load_tokenizer(spec, ranks=request.ranks)
    if tokenizer is None and request.ranks is not None:
        raise UserError(f"--ranks {request.ranks}: {spec} is made from the texts, it has no ranks yet")
    folder = request.root / f"{name}.{spec if tokenizer is None else tokenizer.name}"
    given = _given(request)
    place = Place(
        request.name, given, request.root / DOWNLOADS / request.name, request.subset, request.column, request.glob
    )  # fmt: skip
    found = corpus.find(place)
    sources, share = _split(found.sources, found.splitting, corpus, request)
    layout, shard_tokens = _layout(request, corpus)
    facts = {"from": request.source or request.name, **found.facts}
    sources, files = _hash(sources, known_hashes(folder), request.workers)
    return Plan(
        name, folder, sources, found.splitting, share, tokenizer, spec, corpus.separate, layout, shard_tokens,
        _prefix(corpus, name), Reading(request.column, request.errors), facts, files,
    )  # fmt: skip


def corpus_of(request: Request) -> tuple[Corpus, str]:
    """The corpus that a name means, and how its folder is called. Raises UserError for a name that means none."""
    name, source = request.name, request.source
    hub = next((text for text in (source, name) if text and text.startswith(FROM_HUB)), None)
    if hub is not None:
        repository = hub.removeprefix(FROM_HUB)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository) and not Path(repository).is_dir():
            raise UserError(f"{hub}: expected hf:OWNER/NAME")
        own = name if hub is source else _file_name(repository, request.subset)
        return Corpus(find_on_hub(repository), "", val_share=OWN_SHARE), _own_name(own)
    if name in CORPORA:
        plain = request.subset is None or request.subset == "sample-10BT"
        return CORPORA[name], name if plain else f"{name}-{request.subset}"
    if source is None:
        near = did_you_mean(name, [*CORPORA, *OWN_FILES])
        raise UserError(f"prepare: no such corpus {name!r}{near} A corpus of your own needs --from PATH" if "?" in near
                        else f"prepare: no such corpus {name!r}{near}; one of your own needs --from PATH")  # fmt: skip
    return Corpus(find_own, "", val_share=OWN_SHARE), _own_name(name)


def _own_name(name: str) -> str:
    import difflib

    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"prepare: {name!r} cannot name a folder: letters, digits, '-', '_' and '.' are allowed")
    if name in (*OWN_FILES, *CORPORA):
        raise UserError(f"prepare: {name!r} is the name of another corpus; choose one of your own")
    near = difflib.get_close_matches(name.lower(), [*CORPORA, *OWN_FILES], 1, NEAR)
    if near:
        raise UserError(
            f"prepare: no such corpus {name!r}; did you mean '{near[0]}'? For one of your own choose a name less alike"
        )
    return name


def _file_name(repository: str, subset: str | None) -> str:
    path = Path(repository)
    name = path.name if path.is_dir() else repository.replace("/", "--")
    return f"{name}--{subset}" if subset else name


def _given(request: Request) -> Path | None:
    if request.source is None or request.source.startswith(FROM_HUB):
        return None
    return Path(request.source).expanduser()


def _split(
    sources: list[Source], splitting: Splitting, corpus: Corpus, request: Request
) -> tuple[list[Source], float | None]:
    """The sources with their splits, and the share of documents that validate where a hash decides."""
    share = request.val_share or corpus.val_share
    first = sources[0]
    if splitting == "files" and isinstance(first, SourceFile) and first.split is None:
        return cut_text(first, request.val_share or 0.1), None
    if splitting != "hash":
        if request.val_share is not None:
            raise UserError(f"--val-share: {request.name} has its own split")
        return sources, None
    return sources, OWN_SHARE if share is None else share


def _layout(request: Request, corpus: Corpus) -> tuple[Layout, int | None]:
    """How the tokens lie in files: shards are NumPy's unless said otherwise, and nanoGPT knows one file per split."""
    layout: Layout = request.layout or ("npy" if request.shard_tokens is not None else corpus.layout)
    if layout == "nanogpt":
        if request.shard_tokens is not None:
            raise UserError("--shard-tokens: nanoGPT's layout is one file per split; --format npy or llmc has shards")
        return layout, None
    shard_tokens = request.shard_tokens or corpus.shard_tokens or SHARD_TOKENS
    if shard_tokens > MOST_TOKENS:
        raise UserError(
            f"--shard-tokens {shard_tokens}: expected at most {MOST_TOKENS}, which a shard's header can say"
        )
    return layout, shard_tokens


def _prefix(corpus: Corpus, name: str) -> str:
    """What the shards' names begin with: readers look for `train` and `val` anywhere in them."""
    prefix = corpus.prefix or re.sub(r"[^\w-]", "-", name)
    return "shard" if any(word in prefix for word in ("train", "val", "test")) else prefix


def _hash(sources: list[Source], known: Mapping[str, Any], threads: int) -> tuple[list[Source], list[SourceFile]]:
    """The sources with the hashes of their files, and each of these files once."""
    total = sum(source.size for source in sources if isinstance(source, SourceFile))
    if total > MUCH:
        print(f"prepare: reading {total / 1e9:.1f} GB once for its hash", file=sys.stderr)
    lying = [source if isinstance(source, SourceFile) else source.file for source in sources]
    files = {file.path: file for file in lying if file is not None}
    done = dict(zip(files, hashed(list(files.values()), known, max(1, threads)), strict=True))
    with_hash: list[Source] = [
        replace(source, sha256=done[source.path].sha256) if isinstance(source, SourceFile) else source
        for source in sources
    ]
    return with_hash, list(done.values())
