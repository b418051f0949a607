"""manifest.json of a prepared corpus: what `prepare` made of which source, shard by shard, and how to check it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nanogpt.config.errors import UserError
from nanogpt.config.identity import canonical_json
from nanogpt.data.binfiles import file_sha256
from nanogpt.record import read_json, to_json, write_atomic

MANIFEST = "manifest.json"
Split = Literal["train", "val", "test"]
# How other people's files and datasets call the splits.
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
Layout = Literal["nanogpt", "npy", "llmc"]
Dtype = Literal["uint16", "uint32"]


def _plain(name: str) -> str:
    """A manifest may come with somebody else's corpus: it must not name what lies outside the folder."""
    if name in ("", ".", "..") or "\0" in name or Path(name).name != name:
        raise ValueError(f"expected the name of a file in the corpus's folder, got {name!r}")
    return name


FileName = Annotated[str, AfterValidator(_plain)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Part):
    """One file of token ids: its name in the corpus's folder, its size in tokens and bytes, and its sha256."""

    file: FileName
    tokens: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class SplitFiles(_Part):
    """A split's shards in order. `text_bytes` is the UTF-8 size of its text, end-of-text tokens counted as nothing."""

    shards: tuple[Shard, ...]
    tokens: int
    documents: int
    text_bytes: int


class TokenizerFacts(_Part):
    """Which tokenizer made the ids; `fingerprint` is a hash of all that determines them. `eot` ends a text."""

    name: str
    fingerprint: str
    n_vocab: int
    eot: int | None


class Manifest(_Part):
    """A prepared corpus. `content` identifies the tokens that a run sees, wherever they lie and whatever made them.

    `sha256` is of the files that are no shards, `seal` of the manifest itself.
    """

    format: Literal[1] = 1
    name: str
    source: Mapping[str, Any]
    tokenizer: TokenizerFacts
    layout: Layout
    dtype: Dtype
    splits: Mapping[Split, SplitFiles]
    content: str
    files: tuple[FileName, ...]  # all that was made, this file included: what may be removed again
    sha256: Mapping[FileName, str] = {}
    seal: str = ""


def content_hash(splits: Mapping[Split, SplitFiles], tokenizer: TokenizerFacts) -> str:
    """sha256 of the shards' hashes in order, by split, with the tokenizer's fingerprint."""
    shards = {split: [shard.sha256 for shard in files.shards] for split, files in splits.items()}
    text = canonical_json({"shards": shards, "tokenizer": tokenizer.fingerprint})
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json atomically: it comes last, and says that the rest is whole."""
    write_atomic(folder / MANIFEST, _text(manifest.model_copy(update={"seal": _seal(manifest)})))


def _text(manifest: Manifest) -> str:
    return to_json(manifest.model_dump(mode="json"))


def _seal(manifest: Manifest) -> str:
    facts = manifest.model_dump(mode="json", exclude={"seal"})
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, None where it has none (files of other makers). Raises UserError for a damaged one."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{path}: not a manifest of a corpus: {place}: {problem['msg'].removeprefix('Value error, ')}"
        ) from None


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises UserError naming the first shard that is missing or has another size: cheap, before every training."""
    for shard in shards_of(manifest):
        path = folder / shard.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; prepare the corpus again") from None
        if size != shard.bytes:
            raise UserError(f"{path}: {size:,} bytes, its manifest says {shard.bytes:,}; prepare the corpus again")


def verify(folder: Path, manifest: Manifest) -> list[str]:
    """Reads every byte: one line per file that is not what was once prepared, the manifest included."""
    expected = {shard.file: shard.sha256 for shard in shards_of(manifest)} | dict(manifest.sha256)
    problems = []
    for name, sha256 in expected.items():
        path = folder / name
        if not path.exists():
            problems.append(f"{path}: missing")
        elif file_sha256(path) != sha256:
            problems.append(f"{path}: its sha256 is not the manifest's: damaged, or changed since it was prepared")
    # Read as it stands, not as it is understood: a blank that became a tab is damage, too.
    is_as_written = not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() == _text(manifest).encode()
    if manifest.seal and not (is_as_written and manifest.seal == _seal(manifest)):
        problems.append(f"{folder / MANIFEST}: not as prepare wrote it: damaged, or changed since")
    return problems


def shards_of(manifest: Manifest) -> list[Shard]:
    """All shards of all splits, in order."""
    return [shard for files in manifest.splits.values() for shard in files.shards]
