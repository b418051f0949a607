"""Downloads: single files, and datasets of the Hugging Face Hub as streams. Without a network one line, at once."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.data.manifest import SPLIT_WORDS, Split
from nanogpt.data.sources import Stream
from nanogpt.data.tokenizing import Stopped
from nanogpt.downloads import ANSWER_SECONDS, fetch_file, offline, why

PARQUET = "refs/convert/parquet"  # the Hub's own copy of datasets that were published as programs


def download(url: str, path: Path, corpus: str, sha256: str | None = None) -> Path:
    """A file, fetched once and then kept. Raises UserError in one line when it cannot be had."""
    if path.exists():
        return path
    try:
        fetch_file(url, path, sha256)
    except OSError as error:
        raise Stopped(
            f"{corpus}: cannot download {url} ({why(error)}); fetch it elsewhere and pass --from PATH"
        ) from None
    return path


def hub_streams(repository: str, subset: str | None, column: str | None) -> tuple[list[Stream], dict[str, Any]]:
    """A dataset's splits as streams, and what identifies it: its revision is fixed, so that a later call goes on in it.

    Raises UserError without the package `datasets`, without a network, and for what the dataset does not have.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"hf:{repository}: needs the package datasets: pip install 'nanogpt-scaling[data]'")
    # Asked before the seconds that importing `datasets` takes, and the half minute of its retries.
    revision = None if Path(repository).is_dir() else _revision(repository)
    with _one_line(repository):
        names, revision = _splits(repository, subset, revision)
    wanted = {name: SPLIT_WORDS[name] for name in names if name in SPLIT_WORDS}
    if "train" not in wanted:
        raise UserError(f"hf:{repository}: no split 'train'; it has {', '.join(names)}")
    has_val = "val" in wanted.values()
    streams = []
    for name, split in wanted.items():
        if has_val or split == "train":
            streams.append(_stream(repository, subset, revision, name, split if has_val else None, column))
    return streams, {"dataset": repository, "subset": subset, "revision": revision}


def _revision(repository: str) -> str:
    """The commit that the dataset is at now: one quick question, which also tells whether there is a network."""
    from huggingface_hub import HfApi

    if reason := offline("HF_DATASETS_OFFLINE"):
        raise UserError(f"hf:{repository}: cannot be downloaded: {reason}; pass local files with --from PATH")
    with _one_line(repository):
        return str(HfApi().dataset_info(repository, timeout=ANSWER_SECONDS).sha)


def _splits(repository: str, subset: str | None, revision: str | None) -> tuple[list[str], str | None]:
    import datasets

    try:
        configs = datasets.get_dataset_config_names(repository, revision=revision)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        revision = PARQUET
        configs = datasets.get_dataset_config_names(repository, revision=revision)
    if subset is not None and subset not in configs:
        raise UserError(f"hf:{repository}: no subset {subset!r}{did_you_mean(subset, configs)}")
    if subset is None and len(configs) > 1 and "default" not in configs:
        raise UserError(f"hf:{repository}: which subset? give --subset, one of {', '.join(configs[:20])}")
    return list(datasets.get_dataset_split_names(repository, subset, revision=revision)), revision


def _stream(
    repository: str, subset: str | None, revision: str | None, name: str, split: Split | None, column: str | None
) -> Stream:
    def texts(skip: int) -> Iterator[str]:
        import datasets

        with _one_line(repository, during=True):
            rows = datasets.load_dataset(repository, subset, split=name, streaming=True, revision=revision)
            first = next(iter(rows), None)
            chosen = _column(repository, first or {}, column)
            for row in rows.skip(skip) if skip else rows:
                text = row[chosen]
                if text is not None and not isinstance(text, str):
                    raise UserError(f"hf:{repository}: {chosen}: expected texts, found a {type(text).__name__}")
                yield text or ""

    return Stream(f"hf:{repository}/{name}", texts, split)


def _column(repository: str, row: dict[str, Any], given: str | None) -> str:
    """The column with the texts: the one asked for, else `text`, else the only one of texts."""
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if given in texts or (given is None and "text" in texts) or not row:
        return given or "text"
    if given is None and len(texts) == 1:
        return texts[0]
    where = f"column {given!r}: no column of texts" if given else "which column has the texts? name it with --column"
    raise UserError(f"hf:{repository}: {where}{did_you_mean(given or 'text', texts)}")


@contextlib.contextmanager
def _one_line(repository: str, during: bool = False) -> Iterator[None]:
    """Whatever the libraries raise (they have dozens of classes for a missing network), in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
        if during:
            raise Stopped(f"hf:{repository}: the download stopped: {reason}; the same command goes on") from None
        raise UserError(f"hf:{repository}: cannot be downloaded: {reason}; pass local files with --from PATH") from None
