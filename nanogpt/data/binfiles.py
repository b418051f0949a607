"""nanoGPT's corpus files: train.bin and val.bin (raw little-endian uint16) with a meta.json, or an old meta.pkl."""

import hashlib
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt.config.errors import UserError
from nanogpt.record import read_json, replacing, to_json, write_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPLITS = ("train", "val")
GPT2_VOCAB = 50257  # 50,000 merges, 256 bytes and the end of a text, which also begins one
NANOGPT_VOCAB = 50304  # the same padded to a multiple of 64: what nanoGPT takes a folder without a meta file to hold
MOST_KINDS = 2**31  # of tokens


def write_tokens(path: Path, tokens: "NDArray[Any]") -> None:
    """Write token ids as raw little-endian uint16, atomically."""
    with replacing(path) as temporary:
        tokens.astype("<u2").tofile(temporary)


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json, atomically."""
    write_atomic(folder / "meta.json", to_json(meta))


def nanogpt_meta(vocab_size: int, characters: Sequence[str] | None = None) -> dict[str, Any]:
    """What nanoGPT keeps in meta.pkl: without it its train.py takes GPT-2's vocabulary for granted."""
    meta: dict[str, Any] = {"vocab_size": vocab_size}
    if characters is not None:
        meta |= {"itos": dict(enumerate(characters)), "stoi": {text: n for n, text in enumerate(characters)}}
    return meta


def write_pickle(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.pkl, atomically."""
    with replacing(folder / "meta.pkl") as temporary:
        temporary.write_bytes(pickle.dumps(meta, protocol=4))


def has_meta(folder: Path) -> bool:
    """Whether a meta file says what the tokens are."""
    return (folder / "meta.json").exists() or (folder / "meta.pkl").exists()


def read_meta(folder: Path) -> dict[str, Any]:
    """The folder's meta.json, else its meta.pkl (read without executing anything in it), else nanoGPT's default."""
    if (folder / "meta.json").exists():
        meta = read_json(folder / "meta.json")
    elif (folder / "meta.pkl").exists():
        meta = read_pickle(folder / "meta.pkl")
    else:
        meta = {"vocab_size": NANOGPT_VOCAB}
    size = meta.get("vocab_size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MOST_KINDS:
        raise UserError(f"{folder}: meta file: vocab_size: expected a whole number up to {MOST_KINDS}, got {size!r}")
    return meta


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings and numbers; a pickle that names any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise UserError(f"refers to {module}.{name}; only plain dicts, lists, strings and numbers are read")


def read_pickle(path: Path) -> dict[str, Any]:
    """A meta.pkl, without executing anything in it."""
    try:
        meta = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle may raise nearly anything
        raise UserError(f"{path}: not a meta.pkl of nanoGPT's: {error}") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path}: expected a dict, found a {type(meta).__name__}")
    return meta


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
