"""What is known of a corpus before training, and how its tokens are opened."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt.config.data import BinFolder, Data, ShakespeareChar, ZipfMixture
from nanogpt.config.diskfull import os_reason
from nanogpt.config.errors import UserError
from nanogpt.config.identity import canonical_json
from nanogpt.config.runtime import Runtime
from nanogpt.data import zipf
from nanogpt.data.binfiles import NANOGPT_VOCAB, SPLITS, file_sha256, read_meta, read_tokens, write_meta, write_tokens

SHAKESPEARE_CHARACTERS = 65


@dataclass(frozen=True)
class CorpusFacts:
    """What a run needs to know before it starts. `content` fingerprints prepared files; `files` says which they are."""

    vocab_size: int
    train_tokens: int
    val_tokens: int
    content: str | None = None
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenCorpus:
    """The two splits as one-dimensional uint16 arrays, and how windows may be cut from them.

    `document` is the length of the independent documents that windows must not cross (None: the text is one piece).
    Targets with fewer than `min_context` predecessors in the block are not scored. `log_prob(window)` gives the true
    ln P of the scored targets of [..., T + 1] tokens where the source is known. `val_bytes_per_token` is None where
    bits per byte mean nothing.
    """

    vocab_size: int
    train: NDArray[np.uint16]
    val: NDArray[np.uint16]
    document: int | None = None
    min_context: int = 1
    log_prob: Callable[[NDArray[Any]], NDArray[np.float64]] | None = None
    val_bytes_per_token: float | None = None


class MissingCorpus(UserError):
    """The corpus has not been prepared, or lies elsewhere."""


def assumed_facts(data: Data) -> CorpusFacts:
    """What may be taken for granted of a corpus that is not there: its usual vocabulary, and nothing of its length."""
    vocab_size = SHAKESPEARE_CHARACTERS if isinstance(data.corpus, ShakespeareChar) else NANOGPT_VOCAB
    return CorpusFacts(vocab_size, train_tokens=0, val_tokens=0)


def data_root(runtime: Runtime) -> Path:
    """The folder of prepared corpora: `runtime.data_dir`, else $NANOGPT_DATA_DIR, else data/ of the checkout."""
    given = runtime.data_dir or os.environ.get("NANOGPT_DATA_DIR")
    if given:
        return Path(given).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "data" if (checkout / "pyproject.toml").exists() else Path.cwd() / "data"


def facts(data: Data, runtime: Runtime) -> CorpusFacts:
    """What is known of a corpus. Raises UserError when it has to be prepared first."""
    corpus = data.corpus
    if isinstance(corpus, ZipfMixture):
        train, val = (-(-n // zipf.DOCUMENT) * zipf.DOCUMENT for n in (corpus.train_tokens, corpus.val_tokens))
        return CorpusFacts(corpus.alphabet_size, train, val)
    return _folder_facts(corpus_folder(corpus, runtime))


def open_corpus(data: Data, runtime: Runtime) -> OpenCorpus:
    """Open a corpus for training; an embedded one is generated on first use. Raises UserError for missing files."""
    corpus = data.corpus
    if isinstance(corpus, ZipfMixture):
        return _open_zipf(corpus, data_root(runtime))
    folder = corpus_folder(corpus, runtime)
    found = _folder_facts(folder)
    if corpus.content not in (None, found.content):
        raise UserError(f"{folder}: its content has changed since this run was set up; prepare it again, or start anew")
    train, val = (read_tokens(folder / f"{split}.bin") for split in SPLITS)
    return OpenCorpus(found.vocab_size, train, val, val_bytes_per_token=read_meta(folder).get("val_bytes_per_token"))


def corpus_folder(corpus: ShakespeareChar | BinFolder, runtime: Runtime) -> Path:
    """Where the prepared files of a corpus lie."""
    if isinstance(corpus, ShakespeareChar):
        return data_root(runtime) / "shakespeare_char"
    given = Path(corpus.path).expanduser()
    return given if given.is_dir() else data_root(runtime) / given


def _folder_facts(folder: Path) -> CorpusFacts:
    paths = {split: folder / f"{split}.bin" for split in SPLITS}
    missing = [path.name for path in paths.values() if not path.exists()]
    if missing:
        prepare = "; run `python -m nanogpt prepare shakespeare_char`" if folder.name == "shakespeare_char" else ""
        raise MissingCorpus(f"{folder}: no corpus there ({' and '.join(missing)} missing){prepare}")
    vocab_size = read_meta(folder)["vocab_size"]
    for path in paths.values():
        largest = int(read_tokens(path).max())
        if largest >= vocab_size:
            raise UserError(f"{path}: holds the token {largest}, outside its vocabulary of {vocab_size} tokens")
    hashes = {str(path): file_sha256(path) for path in paths.values()}
    content = canonical_json({"files": list(hashes.values()), "vocab_size": vocab_size})
    train, val = (len(read_tokens(path)) for path in paths.values())
    return CorpusFacts(vocab_size, train, val, hashlib.sha256(content.encode()).hexdigest(), hashes)


def zipf_folder(corpus: ZipfMixture, root: Path) -> Path:
    """Where the generated text lies; the name changes with everything that changes the text."""
    key = canonical_json(corpus.model_dump(mode="json"))
    return root / f"zipf_mixture-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _open_zipf(corpus: ZipfMixture, root: Path) -> OpenCorpus:
    folder = generate_zipf(corpus, root)
    process = zipf.make_process(corpus)
    train, val = (read_tokens(folder / f"{split}.bin") for split in SPLITS)
    return OpenCorpus(
        corpus.alphabet_size,
        train,
        val,
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
