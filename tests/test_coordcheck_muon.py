"""The coordinate check with Muon: its rates and headings; that the rules of every scale pass, and wrong ones fail.

Slow part: about 60 s for all sweeps.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from nanogpt.__main__ import main
from nanogpt.config import Config
from nanogpt.configfile import dump_yaml, load_config
from nanogpt.coordcheck import Sweep, run_sweep, sized
from nanogpt.coordreport import FLAT, RATE, default_rates, slopes
from nanogpt.optim.muon import Muon
from parametrization import MuonScale, muon_rule

ROOT = Path(__file__).resolve().parent.parent
SCALES = get_args(MuonScale)
any_scale = pytest.mark.parametrize("scale", SCALES)


def muon(scale: str) -> Config:
    return load_config(ROOT / "configs" / "tiny_cpu.yaml", ["--optimizer=muon", f"--scale={scale}"])


@any_scale
def test_the_command_names_muon_its_scale_and_both_rates(
    tiny: Callable[..., Config], capsys: pytest.CaptureFixture[str], tmp_path: Path, scale: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_yaml(tiny(optimizer={"kind": "muon", "scale": scale}).model_dump(mode="json")))
    words = ["--widths=8,32", "--modes=mup", "--steps=1", "--seeds=1", f"--out={tmp_path / 'out'}"]
    assert main(["coord-check", str(config), *words, "--adamw_learning_rate=0.003"]) in (0, 1)  # as the verdict is
    rate = {"match_rms_adamw": 0.001 / 0.2}.get(scale, 0.001 * math.sqrt(8))
    heading = f"Muon, scale {scale}, 1 step of 8 x 16 tokens, constant learning rate {rate:.3g} (AdamW's half 0.003)"
    assert heading in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "coord_check.csv",
        "coord_check.txt",
        "coord_check_width.png",
        "slopes.csv",
    ]


@any_scale
@pytest.mark.parametrize("size", [32, 128])
def test_the_default_rate_moves_square_matrices_by_its_share_of_init_std(scale: str, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(size, size))
    matrix.grad = torch.randn(size, size, generator=generator)
    rate, adamw_rate = default_rates(muon(scale), size)
    Muon([matrix], lr=rate, scale=scale).step()
    moved = matrix.detach().square().mean().sqrt().item()
    # Singular values end between about 0.7 and 1.15, and a few of a square matrix below.
    assert 0.75 < moved / (0.02 * RATE) < 1.1
    assert adamw_rate == 0.02 * RATE


def test_both_halves_train_at_the_checks_rates() -> None:
    sweep = Sweep("width", (32, 64), learning_rate=0.5, adamw_learning_rate=0.25)
    optimizer = sized(muon("spectral"), sweep, "mup", 64).optimizer
    assert (optimizer.learning_rate, optimizer.adamw_learning_rate, optimizer.scale) == (0.5, 0.25, "spectral")


Table = dict[tuple[str, str], float]


def at_the_end(scale: str, axis: Any, sizes: tuple[int, ...], mode: str) -> Table:
    torch.set_num_threads(1)
    config = muon(scale)
    rates = default_rates(config, sizes[0] if axis == "width" else config.model.n_embd)
    found = slopes(run_sweep(config, [Sweep(axis, sizes, (mode,), 10, 3, 8, *rates)]))
    return {(slope.kind, slope.quantity): slope.slope for slope in found if slope.step == 10}


def steep(table: Table) -> Table:
    return {key: slope for key, slope in table.items() if not abs(slope) <= FLAT}


@pytest.mark.slow
@any_scale
def test_nothing_moves_with_the_width_under_mup(scale: str) -> None:
    """Budget: 6 s each."""
    assert steep(at_the_end(scale, "width", (32, 64, 128, 256), "mup")) == {}


@pytest.mark.slow
def test_the_width_shows_without_the_factor_of_match_rms_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: its rate without m^-1/2, all else as it is. Budget: 6 s."""
    monkeypatch.setattr(
        "nanogpt.optim.build.muon_rule", lambda rule, *settings: muon_rule(replace(rule, fan_in_ratio=1.0), *settings)
    )
    table = at_the_end("match_rms_adamw", "width", (32, 64, 128, 256), "mup")
    for kind in ("attention branch", "mlp branch", "final residual"):
        assert table[kind, "rms"] >= 0.25
        assert table[kind, "change"] >= 0.25


@pytest.mark.slow
@any_scale
def test_nothing_moves_with_the_depth_under_completep(scale: str) -> None:
    """Budget: 12 s each."""
    assert steep(at_the_end(scale, "depth", (2, 4, 8, 16, 32), "completep")) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "kind", "sign"), [("mup", "final residual", 1), ("depth_mup", "mlp branch", -1)], ids=["mup", "depth_mup"]
)
def test_the_depth_shows_without_a_residual_factor_and_with_alpha_one_half(mode: str, kind: str, sign: int) -> None:
    """The check can fail, and tells alpha = 1/2 from alpha = 1. Budget: 12 s each."""
    table = at_the_end("original", "depth", (2, 4, 8, 16, 32), mode)
    assert sign * table[kind, "change"] >= 0.25
