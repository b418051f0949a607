"""Prepares tiny Shakespeare by characters, byte for byte the split and the ids of nanoGPT's prepare.py."""

from pathlib import Path
from typing import Any

import numpy as np

from nanogpt.config.diskfull import os_reason
from nanogpt.config.errors import UserError
from nanogpt.data.binfiles import (
    file_sha256,
    nanogpt_meta,
    read_meta,
    read_pickle,
    write_meta,
    write_pickle,
    write_tokens,
)
from nanogpt.downloads import fetch, why

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # of its 1,115,394 bytes
TRAIN_SHARE = 0.9
FILES = ["train.bin", "val.bin", "meta.pkl", "meta.json"]


def read_text(source: Path | None) -> tuple[str, str]:
    """The text and a word on where it came from: a local file when given, else the download."""
    if source is not None:
        try:
            return source.read_text(encoding="utf-8"), str(source)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source}: cannot be read as text: {error}") from None
    try:
        return fetch(URL, SHA256).decode("utf-8"), URL
    except OSError as error:
        raise UserError(
            f"shakespeare_char: cannot download {URL} ({why(error)}); fetch it elsewhere and pass --from FILE"
        ) from None


def prepare(folder: Path, source: Path | None) -> dict[str, Any]:
    """Write train.bin, val.bin (uint16), meta.pkl and meta.json into `folder`; returns the meta data.

    The vocabulary is the sorted set of characters; the first 90 % are the training split, as nanoGPT has it.
    Raises UserError for a folder with another's meta.pkl.
    """
    text, origin = read_text(source)
    characters = sorted(set(text))
    split = int(len(text) * TRAIN_SHARE)
    if split < 1 or split == len(text):
        raise UserError(f"{origin}: {len(text)} characters are too few to split into train and val")
    index = {character: position for position, character in enumerate(characters)}
    ids = np.array([index[character] for character in text], dtype=np.uint16)
    theirs = nanogpt_meta(len(characters), characters)
    _check_foreign(folder, theirs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)  # while it is absent, the folder is not whole
        write_tokens(folder / "train.bin", ids[:split])
        write_tokens(folder / "val.bin", ids[split:])
        meta = _describe(folder, text[split:], characters, split, len(text) - split, origin)
        write_pickle(folder, theirs)
        write_meta(folder, meta)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {os_reason(error, folder)}") from None
    return meta


def _check_foreign(folder: Path, theirs: dict[str, Any]) -> None:
    """A meta.pkl that we did not make belongs to tokens that we did not make, unless it says the same."""
    path = folder / "meta.pkl"
    ours = (folder / "meta.json").exists() and "meta.pkl" in read_meta(folder).get("files", [])
    if path.exists() and not ours and read_pickle(path) != theirs:
        raise UserError(f"{path}: of another corpus, which is not written over; move the folder away")


def _describe(
    folder: Path, val: str, characters: list[str], train_tokens: int, val_tokens: int, origin: str
) -> dict[str, Any]:
    return {
        "tokenizer": "char",
        "vocab_size": len(characters),
        "itos": characters,
        "train_tokens": train_tokens,
        "val_tokens": val_tokens,
        "val_bytes_per_token": len(val.encode()) / val_tokens,
        "source": origin,
        "sha256": {name: file_sha256(folder / name) for name in ("train.bin", "val.bin")},
        "files": FILES,
    }
