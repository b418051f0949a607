"""Choices that depend on the machine, with the machine's abilities replaced by ones the test knows."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt import hardware, team
from nanogpt.__main__ import main
from nanogpt.captain import check_devices
from nanogpt.config import Config, UserError
from nanogpt.configfile import dump_yaml
from nanogpt.describe import describe
from nanogpt.record import read_record


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: int = 0, mps: bool = False, capability: int = 9) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (capability, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Test")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "asked", "given"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda:1", "cuda:1"),
        (0, True, "mps", "mps"),
    ],
)
def test_the_best_device_is_taken_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, asked: str, given: str
) -> None:
    pretend(monkeypatch, cuda, mps)
    assert hardware.resolve_device(asked) == given


@pytest.mark.parametrize(("cuda", "asked"), [(0, "cuda"), (0, "cuda:0"), (0, "mps"), (2, "cuda:2")])
def test_a_missing_device_is_named(monkeypatch: pytest.MonkeyPatch, cuda: int, asked: str) -> None:
    pretend(monkeypatch, cuda)
    with pytest.raises(UserError, match=rf"runtime\.device: {asked} asked for but"):
        hardware.resolve_device(asked)


@pytest.mark.parametrize(
    ("device", "capability", "flags", "precision"),
    [
        ("cuda", 8, set(), "bf16"),
        ("cuda:0", 9, set(), "bf16"),
        ("cuda", 7, {"amx_bf16"}, "fp16"),
        ("cuda:0", 6, set(), "fp16"),
        ("mps", 9, {"amx_bf16"}, "fp32"),
        ("cpu", 9, {"avx512f"}, "fp32"),
        ("cpu", 9, {"avx512_bf16"}, "bf16"),
        ("cpu", 9, {"amx_bf16"}, "bf16"),
    ],
)
def test_auto_precision_is_bf16_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: int, flags: set[str], precision: str
) -> None:
    pretend(monkeypatch, 1, capability=capability)
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset(flags))
    assert hardware.resolve_precision("auto", device) == precision
    assert hardware.resolve_precision("fp32", device) == "fp32"


def test_the_oldest_gpu_of_a_team_decides_and_shards_have_no_loss_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0) if device == 1 else (9, 0))
    assert hardware.resolve_precision("auto", "cuda") == "bf16"
    assert hardware.resolve_precision("auto", "cuda", nproc=2) == "fp16"
    assert hardware.resolve_precision("auto", "cuda", nproc=2, sharded=True) == "fp32"
    with pytest.raises(UserError, match="no bf16"):
        hardware.resolve_precision("bf16", "cuda", nproc=2)


def config(tiny: Callable[..., Config], device: str, precision: str, nproc: int = 1, **more: str) -> Config:
    return tiny(train={"precision": precision}, runtime={"device": device, "nproc": nproc, **more})


CHOICES = {
    "new GPU": ((1, False, 9), ("cuda", "bf16"), "device cuda (NVIDIA Test, compute capability 9.0, 1 of 1 GPU(s)): "
                "a GPU is there; precision bf16, which it multiplies fast"),
    "one of two": ((2, False, 8), ("cuda:1", "bf16"), "device cuda:1 (NVIDIA Test, compute capability 8.0, 1 of 2 "
                   "GPU(s)): a GPU is there; precision bf16, which it multiplies fast"),
    "two GPUs": ((2, False, 8), ("cuda", "bf16", 2), "device cuda (NVIDIA Test, compute capability 8.0, 2 of 2 "
                 "GPU(s)): a GPU is there; precision bf16, which it multiplies fast"),
    "old GPU": ((1, False, 7), ("cuda", "fp16"), "device cuda (NVIDIA Test, compute capability 7.0, 1 of 1 GPU(s)): "
                "a GPU is there; precision fp16, with a loss scaler: before 8.0 there is no bf16"),
    "old GPU, asked": ((1, False, 7), ("cuda", "fp32"), "device cuda (NVIDIA Test, compute capability 7.0, 1 of 1 "
                       "GPU(s)): a GPU is there; precision fp32, as asked; auto takes fp16"),
    "MPS": ((0, True, 0), ("mps", "fp32"), "device mps: its GPU is there; precision fp32, nobody has tried bf16 on "
            "MPS"),
    "no GPU": ((0, False, 0), ("cpu", "fp32"), "device cpu: no GPU is there; precision fp32, the CPU has no "
               "instructions for bf16"),
    "CPU, asked": ((1, False, 9), ("cpu", "bf16"), "device cpu: as asked; auto takes cuda; precision bf16, as asked; "
                   "auto takes fp32"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_the_choice_is_said_with_its_reason_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Config], name: str
) -> None:
    (cuda, mps, capability), asked, line = CHOICES[name]
    pretend(monkeypatch, cuda, mps, capability)
    monkeypatch.setattr(hardware, "_cpu_flags", frozenset)
    assert hardware.choice_of(config(tiny, *asked)) == line


@pytest.mark.parametrize(
    ("cuda", "mps", "capability", "chosen"),
    [(1, False, 9, ("cuda", "bf16")), (2, False, 7, ("cuda", "fp16")), (0, True, 0, ("mps", "fp32")),
     (0, False, 0, ("cpu", "fp32"))],
)  # fmt: skip
def test_a_config_of_autos_is_resolved_on_every_machine(
    monkeypatch: pytest.MonkeyPatch,
    tiny: Callable[..., Config],
    cuda: int,
    mps: bool,
    capability: int,
    chosen: tuple[str, str],
) -> None:
    pretend(monkeypatch, cuda, mps, capability)
    monkeypatch.setattr(hardware, "_cpu_flags", frozenset)
    resolved = describe(config(tiny, "auto", "auto")).config
    assert (resolved.runtime.device, resolved.train.precision) == chosen


def test_ranks_have_a_gpu_each_or_none_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    check_devices("cuda", 2)
    with pytest.raises(UserError, match="3 processes want a GPU each; this machine has 2"):
        check_devices("cuda", 3)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert team.local_device(torch.device("cuda")) == torch.device("cuda:1")
    assert team.local_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
def test_a_run_on_a_missing_device_is_one_line_and_nothing_on_disk(
    monkeypatch: pytest.MonkeyPatch,
    tiny: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    device: str,
) -> None:
    pretend(monkeypatch)
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config(tiny, device, "auto").model_dump(mode="json")))
    assert main(["train", str(path), f"--out_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert f"runtime.device: {device} asked for but" in said.err
    assert [each.name for each in tmp_path.iterdir()] == ["config.yaml"]


def test_a_run_says_in_its_second_line_and_its_record_what_it_chose(
    tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(tiny(train={"max_iters": 1}).model_dump(mode="json")))
    assert main(["train", str(path), f"--out_dir={tmp_path / 'run'}"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("device cpu: ")
    assert "; precision fp32, " in line
    assert read_record(tmp_path / "run" / "metrics.json").environment["device"] == line


def test_precisions_that_cannot_run_name_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="fp16 does not train on a CPU; use bf16"):
        hardware.resolve_precision("fp16", "cpu")
    pretend(monkeypatch, 1, capability=7)
    with pytest.raises(UserError, match=r"NVIDIA Test has no bf16.*use fp16"):
        hardware.resolve_precision("bf16", "cuda")
    assert hardware.resolve_precision("fp16", "cuda") == "fp16"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A40", 149.7e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Voodoo 2", None),
        ("", None),
    ],
)
def test_peaks_go_by_the_whole_name(name: str, peak: float | None) -> None:
    assert hardware.peak_flops_by_name(name) == peak


def test_a_cpu_has_no_peak() -> None:
    assert hardware.peak_flops("cpu") is None


def test_fast_matmul_is_kept_only_when_it_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        report = hardware.enable_fast_float32_matmul("cpu")
        assert report.enabled == (report.error <= 1e-5)
        assert torch.get_float32_matmul_precision() == ("medium" if report.enabled else "highest")
        monkeypatch.setattr(hardware, "MATMUL_TOLERANCE", 1e-12)
        assert not hardware.enable_fast_float32_matmul("cpu").enabled
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_environment_is_plain_and_complete() -> None:
    found = hardware.environment("cpu")
    assert found["packages"]["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads()
    assert found["gpu"] is None
    assert found["cpu"]
    assert hardware.peak_memory_bytes("cpu") > 10_000_000


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_is_the_checkouts_own(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    assert hardware.git_state(root) == {"git_revision": None, "git_dirty": None}
    git(root, "init", "-q")
    git(root, "commit", "-q", "--allow-empty", "-m", "first")
    hardware.git_state.cache_clear()
    assert hardware.git_state(root) == {"git_revision": git(root, "rev-parse", "HEAD"), "git_dirty": False}
    (root / "inner").mkdir()
    assert hardware.git_state(root / "inner")["git_revision"] is None, "another project's checkout is not ours"
    (root / "new").write_text("x")
    hardware.git_state.cache_clear()
    assert hardware.git_state(root)["git_dirty"] is True
