"""What this machine is and can do: device, precision, peak FLOP/s, matmul accuracy, environment. Imports no torch."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nanogpt.config import Config, UserError
from nanogpt.config.ffns import TopKMoE

if TYPE_CHECKING:
    import torch

SOURCE = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "pydantic", "pandas", "scipy")

# Dense bf16 peak in FLOP/s, without sparsity, from the vendors' data sheets. A row holds for a device whose name has
# all of its words; the first such row counts, so that "H100 PCIe" stands before "H100".
PEAK_BF16_FLOPS: dict[str, float] = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "B100": 1.8e15,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800 NVL": 989e12,
    "H800": 756e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L4": 121e12,
    "MI355": 2.5e15,
    "MI325": 1307.4e12,
    "MI300X": 1307.4e12,
    "MI250X": 383e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
# Words that turn the name of a GPU above into that of another, or of a slice of it: no peak is better than a wrong one.
OTHER_SILICON = {"laptop", "max", "ti", "d", "super", "mig"}
BF16_CAPABILITY = (8, 0)  # Ampere, the first of NVIDIA's GPUs that multiply it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MATMUL_TOLERANCE = 1e-5  # relative error against float64: true float32 reaches 1e-6, bf16 4e-3, TF32 5e-4


def resolve_device(name: str) -> str:
    """`auto` is cuda, else mps, else cpu; any other name is checked. Raises UserError when the device is missing."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda":
        if not torch.cuda.is_available():
            reason = "this torch has no CUDA" if torch.version.cuda is None else "no CUDA device is visible"
            raise UserError(f"runtime.device: {name} asked for but {reason}; allowed here: auto, cpu")
        if index and int(index) >= torch.cuda.device_count():
            raise UserError(f"runtime.device: {name} asked for but this machine has {torch.cuda.device_count()} GPU(s)")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("runtime.device: mps asked for but this machine has none; allowed here: auto, cpu")
    return name


def torch_device(name: str, threads: int | None = None) -> "torch.device":
    """The device of a run, with torch's CPU threads set (None: as they are). Raises UserError when it is missing."""
    import torch

    device = torch.device(resolve_device(name))
    if threads is not None:
        torch.set_num_threads(threads)
    return device


def resolve_precision(name: str, device: str, nproc: int = 1, sharded: bool = False) -> str:
    """`auto` is what the hardware multiplies fast: bf16, on older GPUs fp16 with a loss scaler, else fp32.

    It suits the oldest GPU of `nproc` processes; `sharded` runs have no loss scaler. Raises UserError where `name`
    cannot run.
    """
    kind = device.partition(":")[0]
    if name == "auto":
        return _auto_precision(device, nproc, sharded).precision
    if name == "fp16" and kind == "cpu":
        raise UserError("train.precision: fp16 does not train on a CPU; use bf16 or fp32")
    if name == "bf16" and kind == "cuda" and not _has_fast_bf16(device, nproc):
        raise UserError(f"train.precision: {_gpu_name(device)} has no bf16 (it needs 8.0 or newer); use fp16 or fp32")
    return name


class _Chosen(NamedTuple):
    precision: str
    why: str


def _auto_precision(device: str, nproc: int, sharded: bool) -> _Chosen:
    if _has_fast_bf16(device, nproc):
        return _Chosen("bf16", "which it multiplies fast")
    kind = device.partition(":")[0]
    if kind == "cpu":
        return _Chosen("fp32", "the CPU has no instructions for bf16")
    if kind == "mps":
        return _Chosen("fp32", "nobody has tried bf16 on MPS")
    old = f"before {'.'.join(map(str, BF16_CAPABILITY))} there is no bf16"
    if sharded:
        return _Chosen("fp32", f"{old}, and fp16 does not go with fsdp2")
    return _Chosen("fp16", f"with a loss scaler: {old}")


def is_sharded(config: Config) -> bool:
    """Whether each process of the run holds a part of the model only."""
    return config.runtime.nproc > 1 and config.runtime.data_parallel == "fsdp2"


def choice_of(config: Config) -> str:
    """What the run of a resolved config computes on and in, and why, in one line: for its first lines and its record.

    What is not as `auto` takes it on this machine was asked for.
    """
    device, precision, nproc = config.runtime.device, config.train.precision, config.runtime.nproc
    kind, best = device.partition(":")[0], resolve_device("auto")
    why = {"cuda": "a GPU is there", "mps": "its GPU is there", "cpu": "no GPU is there"}[kind]
    auto = _auto_precision(device, nproc, is_sharded(config))
    chosen = auto.why if precision == auto.precision else f"as asked; auto takes {auto.precision}"
    place = why if kind == best else f"as asked; auto takes {best}"
    return f"device {device}{_particulars(device, nproc)}: {place}; precision {precision}, {chosen}"


def _particulars(device: str, nproc: int) -> str:
    """` (NVIDIA T4, compute capability 7.5, 1 of 2 GPUs)`; nothing for what has no such facts."""
    if not device.startswith("cuda"):
        return ""
    import torch

    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    used = f"{nproc} of {torch.cuda.device_count()} GPU(s)"
    return f" ({_gpu_name(device)}, compute capability {capability}, {used})"


def check_experts(config: Config, device: str, precision: str, elsewhere: bool) -> None:
    """Refuse a grouped matmul that is asked for and cannot be: the first forward pass would, with the folder written.

    Of soft mixtures each expert sees every token, so they have no use for one.
    """
    model, runtime = config.model, config.runtime
    if runtime.expert_matmul != "grouped" or not isinstance(model.ffn, TopKMoE):
        return
    import torch

    from nanogpt.model.experts import why_not_grouped
    from nanogpt.train import DTYPES

    shape = (model.ffn_hidden, model.n_embd)
    missing = why_not_grouped(torch.device(device), DTYPES[precision], shape, runtime.compile, elsewhere)
    if missing is not None:
        raise UserError(f"runtime.expert_matmul: grouped: {missing}; use auto or loop")


def _has_fast_bf16(device: str, nproc: int = 1) -> bool:
    if device.startswith("cuda"):
        import torch

        used = [device] if nproc == 1 else range(min(nproc, torch.cuda.device_count()))
        return all(torch.cuda.get_device_capability(each) >= BF16_CAPABILITY for each in used)
    return device == "cpu" and bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})


@cache
def _cpu_field(*names: str) -> str:
    """The first line of /proc/cpuinfo that has one of the names; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in names), "")


@cache
def _cpu_flags() -> frozenset[str]:
    return frozenset(_cpu_field("flags", "Features").split())


def _gpu_name(device: "str | torch.device") -> str | None:
    if not str(device).startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(device)


def peak_flops(device: "str | torch.device") -> float | None:
    """Dense bf16 peak of the device in FLOP/s, the denominator of MFU; None for CPUs and unknown GPUs."""
    return peak_flops_by_name(_gpu_name(device) or "")


def peak_flops_by_name(gpu_name: str) -> float | None:
    """The same by the name a GPU reports, as in `NVIDIA H100 80GB HBM3`. Whole words only: an L40 is no L4."""
    words = set(gpu_name.lower().replace("-", " ").split())
    if words & OTHER_SILICON:
        return None
    return next((peak for name, peak in PEAK_BF16_FLOPS.items() if set(name.lower().split()) <= words), None)


@dataclass(frozen=True)
class MatmulReport:
    """Whether the fast float32 path is on, and the relative error that was measured for it."""

    error: float
    enabled: bool

    def describe(self) -> dict[str, Any]:
        """As it stands in a record's environment."""
        return {"fast": self.enabled, "relative_error": self.error}


def enable_fast_float32_matmul(device: "str | torch.device" = "cpu") -> MatmulReport:
    """Route float32 matmuls through a faster kernel, where a measurement shows that they stay float32.

    On a CPU that is oneDNN, twice as fast as MKL on some. A GPU fails the test and keeps true float32.

    The flag allows bf16 inside float32 matmuls. A CPU without AMX ignores that and computes true float32 by a better
    kernel; one with AMX would compute in bf16. Only a measurement tells, so a product is compared with float64.
    """
    import torch

    error = float32_matmul_error(str(device))
    enabled = error <= MATMUL_TOLERANCE
    torch.set_float32_matmul_precision("medium" if enabled else "highest")
    return MatmulReport(error, enabled)


@cache
def float32_matmul_error(device: str) -> float:
    """Relative error against float64 of a float32 product under the flag that allows bf16, which stays as it was."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 256, 256, generator=generator)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    found = (left.to(device) @ right.to(device)).cpu().double()
    torch.set_float32_matmul_precision(before)
    exact = left.double() @ right.double()
    return float((found - exact).norm() / exact.norm())


def calm_threads() -> None:
    """Make waiting OpenMP threads spin a thousand times, not for milliseconds; call it before torch is imported.

    With another busy process on a core, the default spinning slows a small model down tenfold and more (docs/LOG.md).
    What a person has set in the environment stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "1000"


def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks of up to 32 MiB for the next step; returns whether it could be told.

    Training frees and takes the same activations at every step. By default glibc hands blocks of that size back to
    the kernel and pays a page fault for every 4 KiB when it takes them again, a quarter of a small model's step.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # From mallopt(3). The trim threshold alone would switch off the growing of the other and make things worse.
    settings = {_M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 2**31 - 1}
    return all(libc.mallopt(option, value) for option, value in settings.items())


def peak_memory_bytes(device: "str | torch.device") -> int:
    """Peak memory so far: allocated by torch on a GPU, resident in the process on anything else."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def environment(device: "str | torch.device" = "cpu") -> dict[str, Any]:
    """What a result depends on besides its config; recorded with every run, part of no identity."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "cpu": _cpu_field("model name", "Model") or platform.processor() or platform.machine(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": _gpu_name(device),
        "cuda": torch.version.cuda,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        **git_state(),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def git_state(source: Path = SOURCE) -> dict[str, Any]:
    """Revision and dirty flag of the checkout this code runs from; None for both when it is not a checkout."""
    unknown = {"git_revision": None, "git_dirty": None}
    root = _git(source, "rev-parse", "--show-toplevel")
    # An installed copy may lie inside the environment of some other checkout: that one's revision is not ours.
    if root is None or Path(root).resolve() != source:
        return unknown
    revision, changes = _git(source, "rev-parse", "HEAD"), _git(source, "status", "--porcelain")
    return {"git_revision": revision, "git_dirty": bool(changes)} if revision else unknown


def _git(source: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(source), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
