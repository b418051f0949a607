"""The machine: Python, packages, torch and its devices, cores, memory, the data folder. Standard library only.

torch is loaded in a child process: it takes seconds, and a broken one may end its process instead of raising.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.doctor.finding import Finding, gigabytes, ok, problem, warning

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PYTHON = (3, 11)
REQUIRED = (
    "filelock", "jinja2", "matplotlib", "numpy", "pandas", "pydantic", "pyyaml", "rich", "scipy", "seaborn",
    "tiktoken", "torch",
)  # fmt: skip
OPTIONAL = ("ray", "optuna", "ipywidgets")
TORCH_SECONDS = 180.0
SLOW_SECONDS = 30.0
LITTLE_MEMORY = 2e9
_CHILD = """
import json
facts = {}
try:
    import torch
    facts["version"], facts["threads"] = torch.__version__, torch.get_num_threads()
    cuda = torch.cuda.is_available()
    facts["built_for_cuda"] = torch.version.cuda
    facts["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    facts["memory"] = [torch.cuda.get_device_properties(i).total_memory for i in range(len(facts["devices"]))]
    facts["mps"] = torch.backends.mps.is_available()
    facts["sum"] = float(torch.ones(8, 8).matmul(torch.ones(8, 8)).sum())
except BaseException as error:
    facts["error"] = " ".join(f"{type(error).__name__}: {error}".split())
try:
    from nanogpt.config.runtime import Runtime
    from nanogpt.data.opening import data_root
    facts["data"] = str(data_root(Runtime()))
except BaseException as error:
    facts["data_error"] = " ".join(f"{type(error).__name__}: {error}".split())
print("\\nfacts: " + json.dumps(facts), flush=True)
"""


def python() -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_version()}, {sys.executable}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield problem("python", found, f"needs {'.'.join(map(str, OLDEST_PYTHON))} or later")
    else:
        yield ok("python", found)


def packages() -> Iterator[Finding]:
    """Versions of what must be there, and of what may be."""
    versions = {name: installed(name) for name in (*REQUIRED, *OPTIONAL)}
    missing = [name for name in REQUIRED if versions[name] is None]
    present = ", ".join(f"{name} {versions[name]}" for name in REQUIRED if versions[name] is not None)
    yield ok("packages", present or "none")
    if missing:
        yield problem("packages", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    optional = ", ".join(f"{name} {versions[name] or 'not installed'}" for name in OPTIONAL)
    yield ok("optional", optional)


def installed(name: str) -> str | None:
    """The version of a package; None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_and_data() -> Iterator[Finding]:
    """Whether torch loads and computes, on which devices; and where prepared corpora lie."""
    began = time.monotonic()
    facts = _ask_child()
    seconds = time.monotonic() - began
    yield from _torch(facts, seconds)
    yield from _data(facts)


def _ask_child() -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=TORCH_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"did not load within {TORCH_SECONDS:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith("facts: "):
            return json.loads(line.removeprefix("facts: "))
    last = done.stderr.strip().rpartition("\n")[2]
    return {"error": f"loading it ended the process with status {done.returncode}: {last}"}


def _torch(facts: dict[str, Any], seconds: float) -> Iterator[Finding]:
    if "error" in facts:
        yield problem("torch", facts["error"], "reinstall torch; for a machine without GPU a CPU build is enough")
        return
    found = f"{facts['version']}, loads in {seconds:.1f} s, {facts['threads']} threads unless told otherwise"
    if seconds > SLOW_SECONDS:
        yield warning("torch", found, "the environment lies on a slow disk; every worker loads torch once")
    else:
        yield ok("torch", found)
    if facts["devices"]:
        names = zip(facts["devices"], facts["memory"], strict=True)
        yield ok("devices", ", ".join(f"{name} ({gigabytes(memory)})" for name, memory in names))
    elif _has_nvidia_driver():
        advice = "install a CUDA build of torch" if not facts["built_for_cuda"] else "look at nvidia-smi"
        yield warning("devices", "an NVIDIA driver is loaded, but torch sees no GPU", f"{advice}; CUDA_VISIBLE_DEVICES"
                      f" is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}")  # fmt: skip
    else:
        yield ok("devices", "mps, cpu" if facts["mps"] else "cpu")


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def _data(facts: dict[str, Any]) -> Iterator[Finding]:
    if "data" not in facts:
        yield problem("data", facts.get("data_error", "not known, because torch ended the process"))
        return
    folder = Path(facts["data"])
    if not folder.exists():
        nearest = next(path for path in folder.absolute().parents if path.exists())
        made = ok if os.access(nearest, os.W_OK | os.X_OK) else problem
        yield made("data", f"{folder}: does not exist yet" + ("" if made is ok else f", and {nearest} is not writable"))
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield warning("data", f"{folder}: cannot be written", "corpora must be there already, or set NANOGPT_DATA_DIR")
    else:
        corpora = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        yield ok("data", f"{folder}: {', '.join(corpora[:8]) or 'empty'}" + (", ..." if len(corpora) > 8 else ""))


def cores() -> Iterator[Finding]:
    """Cores this process may use, and a share of them that a container may be held to."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    found = f"{usable} of {os.cpu_count()}" if usable != os.cpu_count() else str(usable)
    threads = os.environ.get("OMP_NUM_THREADS")
    found += f", OMP_NUM_THREADS={threads} (launchers set their own)" if threads else ""
    if quota is not None and quota < usable:
        advice = f"give --jobs {max(1, int(quota))}: by itself `run` starts one run per core"
        yield warning("cores", f"{found}, but this container is held to {quota:g} cores of time", advice)
    else:
        yield ok("cores", found)


def _cpu_quota() -> float | None:
    """Cores of time under cgroup v2; None for no limit, or where that is not known."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory() -> Iterator[Finding]:
    """Memory that is free now, and a container's limit."""
    free, total = _meminfo()
    limit = _memory_limit()
    if free is None:
        yield ok("memory", f"{gigabytes(total)} in all" if total else "not known on this system")
        return
    found = f"{gigabytes(free)} free of {gigabytes(total or free)}"
    if limit is not None and (total is None or limit < total):
        found, free = f"{found}, this container is held to {gigabytes(limit)}", min(free, limit)
    if free < LITTLE_MEMORY:
        yield warning("memory", found, "a worker needs about 0.3 GB and each run its model; `plan` shows how much")
    else:
        yield ok("memory", found)


def _meminfo() -> tuple[float | None, float | None]:
    """Bytes available and in all; None where not known."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return (1024 * float(lines["MemAvailable"].split()[0]), 1024 * float(lines["MemTotal"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    try:
        return None, float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return None, None


def _memory_limit() -> float | None:
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return None
