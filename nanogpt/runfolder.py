"""A run's folder as a person starts it: where it lies, its config.yaml and launch.sh, and starting it clean."""

import shutil
import sys
from pathlib import Path

from nanogpt.config import Config, UserError, os_reason, run_id
from nanogpt.configfile import build_config, dump_yaml, load_layers
from nanogpt.record import attempt_folder, attempt_numbers, launch_script, write_atomic

# What a run of ours puts into its folder; --reset removes these and nothing else.
OURS = (
    "config.yaml", "launch.sh", "metrics.json", "history.jsonl", "loss.png", "attempts", "lease.*", "released.*",
    "evaluations", "tracker.json", "tensorboard",
)  # fmt: skip


def default_folder(target: Path, identity: str) -> Path:
    """Where a run goes when no out_dir is given: a fresh folder for every identity."""
    return Path("results") / "train" / f"{target.stem}.{identity}"


def check_folder(folder: Path, config: Config) -> None:
    """Raise UserError when the folder holds another run, or things that are no run at all."""
    if (folder / "config.yaml").exists():
        there = build_config(load_layers(folder / "config.yaml"), str(folder / "config.yaml"))
        if run_id(there) != run_id(config):
            raise UserError(
                f"{folder}: holds another run ({run_id(there)}, not {run_id(config)}); "
                "give another --out_dir, or start it clean with --reset"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty and not a run's folder; give another --out_dir")


def write_folder(folder: Path, config: Config) -> None:
    """Write config.yaml (fully resolved) and launch.sh, with which a person reruns it without the framework."""
    if (folder / "config.yaml").exists():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "launch.sh", launch_script(folder.name))
        (folder / "launch.sh").chmod(0o755)
        write_atomic(folder / "config.yaml", dump_yaml(config.model_dump(mode="json")))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {os_reason(error, folder)}") from None


def next_attempt(folder: Path) -> int:
    """Claim the next attempt number by making its folder; two starts at once get two numbers."""
    number = max(attempt_numbers(folder), default=0) + 1
    while True:
        path = attempt_folder(folder, number)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"{path}: cannot be made: {os_reason(error, path)}") from None
        else:
            return number


def reset(folder: Path, yes: bool) -> None:
    """Remove what a run left in its folder, after asking. Raises UserError when it is not confirmed."""
    found = [path for pattern in OURS for path in sorted(folder.glob(pattern))]
    if not found:
        return
    if not yes:
        _confirm(folder, [path.name for path in found])
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _confirm(folder: Path, names: list[str]) -> None:
    if not sys.stdin.isatty():
        raise UserError(f"{folder}: --reset would remove {', '.join(names)}; confirm with --yes")
    answer = input(f"Remove {', '.join(names)} from {folder}? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError(f"{folder}: not reset")
