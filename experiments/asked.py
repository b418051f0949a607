"""What was asked, in a study's folder: study.yaml and the lock are written there, and taken back if nothing starts."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.launchers.submitted import WORKERS
from experiments.lock import LOCK_NAME, write_lock
from experiments.store import StudyFolder
from nanogpt.config import UserError, os_reason
from nanogpt.record import write_atomic

STUDY_NAME = "study.yaml"


@contextlib.contextmanager
def written(study: StudyFolder, text: str | None, is_new: bool) -> Iterator[None]:
    """Inside, the folder holds the study and its lock. An error inside (no sbatch, no cluster) leaves it as it was.

    Raises UserError when the folder cannot be written.
    """
    path = study.path
    texts = {} if text is None or _content(path / STUDY_NAME) == text.encode() else {path / STUDY_NAME: text}
    locks = [path / LOCK_NAME] if is_new or not (path / LOCK_NAME).exists() else []
    before = {file: _content(file) for file in (*texts, *locks)}
    folders, made = set(study.folders()), [each for each in (path / WORKERS, path, *path.parents) if not each.exists()]
    try:
        _write(study, texts, bool(locks))
        yield
    except (UserError, OSError):
        # Unless someone else has begun to work with it.
        if set(study.folders()) == folders:
            _take_back(before, made)
        raise


def _write(study: StudyFolder, texts: Mapping[Path, str], with_lock: bool) -> None:
    try:
        study.path.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            write_atomic(file, text)
        if with_lock:
            write_lock(study.path, study.lock)
    except OSError as error:
        raise UserError(f"{study.path}: cannot be written: {os_reason(error, study.path)}") from None


def _take_back(before: Mapping[Path, bytes | None], made: Sequence[Path]) -> None:
    """The files as they were, and the folders away that were not there, as far as they are empty."""
    with contextlib.suppress(OSError):
        for file, content in before.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                write_atomic(file, content.decode())
        for folder in made:
            if folder.exists():
                folder.rmdir()


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
