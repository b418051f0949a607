"""Which runs of a study still have to be uploaded to W&B, and uploading several at a time."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.store import StudyFolder
from nanogpt.config import UserError
from nanogpt.record import attempt_folder, read_history
from nanogpt.trackers import read_states

MOST_SECONDS = 1800.0  # of one upload


@dataclass(frozen=True)
class Upload:
    """One run's newest W&B folder, which alone holds its whole curve. `short` says where the curve falls short."""

    label: str
    place: Path
    flags: tuple[str, ...] = ()
    short: str = ""


@dataclass(frozen=True)
class Waiting:
    """What is to be uploaded, and how many runs W&B has already, and how many never had a W&B run."""

    uploads: list[Upload]
    there: int
    without: int


def waiting(study: StudyFolder) -> Waiting:
    """Read from the files of the runs."""
    study.folders()
    uploads, there, without = [], 0, 0
    for run in study.runs():
        folder = study.folder(run)
        states = {number: state for number, state in read_states(folder).items() if state.get("kind") == "wandb"}
        placed = [number for number, state in states.items() if state.get("place")]
        if not placed:
            without += 1
            continue
        number = max(placed)
        state, place = states[number], attempt_folder(folder, number) / states[number]["place"]
        if (state.get("upload") == "live" and state.get("state") == "finished") or is_uploaded(place):
            there += 1
        else:
            uploads.append(Upload(run.name, place, _flags(state, place), _short(folder, state)))
    return Waiting(uploads, there, without)


def _flags(state: dict[str, Any], place: Path) -> tuple[str, ...]:
    online = ("--include-online",) if state.get("upload") == "live" else ()
    return (*online, *(("--include-synced",) if _markers(place) else ()))


def _short(folder: Path, state: dict[str, Any]) -> str:
    """A tracker that failed on the way has a part of the curve."""
    lines = read_history(folder / "history.jsonl", forgiving=True)
    last, shown = (lines[-1]["step"] if lines else 0), int(state.get("step", 0))
    return f"its curve there ends at step {shown} of {last}" if shown < last else ""


def _markers(place: Path) -> list[Path]:
    return list(place.glob("*.wandb.synced"))


def is_uploaded(place: Path) -> bool:
    """Whether `wandb sync` has marked all that is in a folder by now: a run may have gone on since."""
    files = list(place.glob("*.wandb"))
    marks = [file.with_name(f"{file.name}.synced") for file in files]
    return bool(files) and all(
        mark.exists() and mark.stat().st_mtime_ns >= file.stat().st_mtime_ns
        for file, mark in zip(files, marks, strict=True)
    )


def executable() -> str:
    """The `wandb` command. Raises UserError when there is none."""
    beside = Path(sys.executable).with_name("wandb")
    found = shutil.which("wandb") or (str(beside) if beside.exists() else None)
    if found is None:
        raise UserError("sync: there is no `wandb` command here; pip install 'nanogpt-scaling[wandb]'")
    return found


def upload_all(uploads: Sequence[Upload], jobs: int) -> Iterator[tuple[Upload, str]]:
    """Upload `jobs` at a time; gives each with what went wrong, as they end. Ctrl-C ends what is under way."""
    command = executable()
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_upload, command, upload): upload for upload in uploads}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _upload(command: str, upload: Upload) -> str:
    """What went wrong, in one line; empty when nothing did."""
    if not any(upload.place.glob("*.wandb")):
        return f"{upload.place}: nothing to upload there"
    # WANDB_MODE=offline would be obeyed here, too; the run's own project and id stand in its file.
    environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_MODE", "WANDB_RUN_ID")}
    words = [command, "sync", *upload.flags, str(upload.place)]
    try:
        done = subprocess.run(
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=MOST_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done after {MOST_SECONDS:.0f} s"
    except OSError as error:
        return f"{command}: {error.strerror or error}"
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")
