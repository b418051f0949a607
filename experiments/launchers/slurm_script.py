"""The text of the scripts that the `slurm` launcher submits: workers as a job array, and torchrun over nodes.

The scripts are kept beside the results, to be read and to be submitted again by hand (`sbatch SCRIPT`): nothing comes
from the environment of whoever submits them. The worker takes the place of the shell, so that it is the process to
which Slurm sends its warnings.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.engine import CALM_THREADS, ROOT, TORCHRUN_VARIABLE
from experiments.launchers.slurm_settings import SlurmSettings

WARNING = "USR1"
LAST_SECONDS = 10  # of the grace: for the worker itself, to give its runs back and be requeued


@dataclass(frozen=True)
class Array:
    """A job array to submit: how many workers, for which study, and what each of them may take up."""

    folder: Path
    settings: SlurmSettings
    tasks: int
    jobs: int | None = None
    retry_failed: bool = False


def array_sizes(tasks: int, most: int) -> list[int]:
    """The sizes of the arrays for so many tasks, none larger than the site allows."""
    return [min(most, tasks - begun) for begun in range(0, tasks, most)]


def array_script(array: Array, script: Path, torchrun: Path) -> str:
    """The script of one array of workers. `script` and `torchrun` are where this and torchrun's script will lie."""
    settings = array.settings
    slots = settings.slots(array.jobs)
    threads = max(1, settings.cpus // (slots * settings.nproc_per_node))
    lines = [
        "#!/bin/bash",
        f"# Workers for the study {array.folder.name} under Slurm, each of which trains what is not finished.",
        f"# `sbatch {script.name}` starts as many again; no run is trained twice.",
        *(_directive(name, value) for name, value in _options(array).items()),
        "",
        "# Until the worker listens, a warning would end it, and Slurm would not start it again: let it pass.",
        f"trap '' TERM {WARNING}",
        *settings.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in _environment(threads, settings, torchrun).items()),
        "",
        f"exec {shlex.join(_worker(array, slots, threads))} \\",
        '  --name "slurm-${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" --on-term requeue-command',
    ]
    return "\n".join(lines) + "\n"


def _options(array: Array) -> dict[str, str]:
    settings = array.settings
    asked = {name: getattr(settings, name) for name in ("partition", "account", "qos", "constraint", "mem")}
    log = array.folder / "workers" / "slurm-"
    return {
        "job-name": _name(array.folder.name),
        "array": f"0-{array.tasks - 1}",
        "nodes": str(settings.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(settings.cpus),
        **({"gres": f"gpu:{settings.gpus}"} if settings.gpus else {}),
        **{name: value for name, value in asked.items() if value is not None},
        "time": settings.time,
        "chdir": str(Path.cwd()),
        # A requeued job writes to the same log.
        "output": str(log).replace("%", "%%") + "%A_%a.log",
        "open-mode": "append",
        "requeue": "",
        # To the worker alone, the batch shell's successor: it asks its children to stop.
        "signal": f"B:{WARNING}@{settings.grace}",
        **settings.sbatch,
    }


def _name(study: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_.=" else "-" for letter in study)


def _directive(name: str, value: str) -> str:
    if not value:
        return f"#SBATCH --{name}"
    quoted = f'"{value}"' if any(letter in value for letter in " '#;&|*()") else value
    return f"#SBATCH --{name}={quoted}"


def _environment(threads: int, settings: SlurmSettings, torchrun: Path) -> dict[str, str]:
    """What a worker needs to find these packages and our own settings, whoever submits the script."""
    ours = {name: value for name, value in sorted(os.environ.items()) if name.startswith("NANOGPT_")}
    ours.pop(TORCHRUN_VARIABLE, None)  # of a job that this driver itself runs in
    paths = dict.fromkeys([str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    return {
        **ours,
        **({TORCHRUN_VARIABLE: str(torchrun)} if settings.nodes > 1 else {}),
        "PYTHONPATH": os.pathsep.join(paths),
        **CALM_THREADS,
        "OMP_NUM_THREADS": str(threads),
    }


def _worker(array: Array, slots: int, threads: int) -> list[str]:
    settings = array.settings
    words = [sys.executable, "-m", "experiments", "worker", str(array.folder)]
    words += ["--slots", str(slots), "--threads", str(threads)]
    words += ["--grace", str(run_grace(settings.grace))]
    if settings.gpus:
        words += ["--gpus-per-run", str(settings.nproc_per_node)]
    if settings.nproc > 1:
        words += ["--isolation", "process", "--nproc", str(settings.nproc)]
    return [*words, "--retry-failed"] if array.retry_failed else words


def run_grace(grace: int) -> int:
    """The part of a job's grace that its runs have for a last checkpoint: when all of it has passed, Slurm kills."""
    return max(grace - LAST_SECONDS, grace // 2)


def torchrun_script(nproc_per_node: int) -> str:
    """The script that starts one run's processes on all nodes of a job: torchrun's agent once per node.

    The first node's address is given to all agents, and no rendezvous service is used. A port is drawn for each
    start, so that a run that starts again does not meet the sockets of its predecessor.
    """
    return f"""#!/bin/bash
# torchrun over the nodes of this Slurm job, {nproc_per_node} processes on each.
# Its arguments are a module and the module's own: -m MODULE ...
set -euo pipefail
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Slurm's own address of the first node: a node's name need not be that of its host. MASTER_ADDR goes before it.
address=$(scontrol --oneliner show node "${{nodes[0]}}" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
export MASTER_ADDR=${{MASTER_ADDR:-${{address:-${{nodes[0]}}}}}} MASTER_PORT=$((20000 + RANDOM % 20000))
# srun does not take over the cores of the job by itself. One process that fails ends all.
exec srun --nodes="${{#nodes[@]}}" --ntasks="${{#nodes[@]}}" --ntasks-per-node=1 \\
  --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" --kill-on-bad-exit=1 \\
  bash -c 'exec {shlex.quote(sys.executable)} -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" \\
    --nproc-per-node={nproc_per_node} --node-rank="$SLURM_NODEID" \\
    --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" "$@"' torchrun "$@"
"""
