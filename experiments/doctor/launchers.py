"""Launchers: does the one that is wanted answer, and which others are there. Standard library until one is asked."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from experiments.doctor.finding import Finding, ok, problem, warning
from experiments.doctor.machine import installed

ANSWER_SECONDS = 20.0
SLURM = ("sbatch", "squeue", "scontrol")


def launchers(settings: Any) -> Iterator[Finding]:
    """The launcher of these settings for real; of the others only whether they could be there."""
    wanted = settings.kind
    if wanted == "slurm":
        yield from slurm()
    elif wanted == "ray":
        yield from ray(settings)
    else:
        yield ok(wanted, "needs nothing but this machine")
    others = {"local": True, "slurm": bool(shutil.which("sbatch")), "ray": installed("ray") is not None}
    there = ", ".join(name for name, is_there in others.items() if is_there and name != wanted)
    if there:
        yield ok("launchers", f"not asked: {there} (doctor --launcher NAME)")


def slurm() -> Iterator[Finding]:
    """The commands are there, the controller answers, and whether there is an accounting database."""
    missing = [name for name in SLURM if shutil.which(name) is None]
    if missing:
        yield problem("slurm", f"no {', '.join(missing)} on the PATH", "run on a login node of the cluster")
        return
    version, _ = _ask("sbatch", "--version")
    queue, said = _ask("squeue", "--noheader", "--user", str(os.getuid()))
    if queue is None:
        yield problem("slurm", f"{version or 'sbatch'}: squeue does not answer: {said}", "is the controller up?")
        return
    partitions, _ = _ask("sinfo", "--noheader", "--format", "%R %a %D")
    shown = "; ".join((partitions or "").splitlines()[:6]) or "none seen"
    yield ok("slurm", f"{version}; {len(queue.splitlines())} jobs of yours; partitions, state, nodes: {shown}")
    accounts, _ = _ask("sacct", "--noheader", "--allocations", "--starttime", "now")
    yield ok("sacct", "answers" if accounts is not None else "no accounting database; nothing here needs one")


def _ask(*command: str) -> tuple[str | None, str]:
    """What a command prints, None when it fails; and the last line of its complaint."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {ANSWER_SECONDS:.0f} s"
    except OSError as error:
        return None, error.strerror or str(error)
    if done.returncode:
        return None, done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
    return done.stdout.strip(), ""


def ray(settings: Any) -> Iterator[Finding]:
    """Ray is there, its cluster answers and takes our token, and a worker fits."""
    from experiments.launchers.raycluster import ask_cluster, check_room

    cluster = ask_cluster(settings.address)
    amounts = ", ".join(f"{cluster.total(name):g} {name}" for name in ("CPU", "GPU") if cluster.total(name))
    yield ok("ray", f"{cluster.version}, {len(cluster.nodes)} nodes at {settings.address}: {amounts}")
    workers = check_room(cluster, settings)
    if workers < settings.workers:
        found = f"{workers} of {settings.workers} workers fit at a time"
        yield warning("ray", found, "the others wait for room: ask for fewer, or smaller ones")
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        advice = "the cluster runs whatever reaches it: RAY_AUTH_MODE=token and a RAY_AUTH_TOKEN keep others out"
        yield warning("ray", "RAY_AUTH_MODE=disabled", advice)
