"""`python -m nanogpt rules`: the numbers it prints are those of the optimizer and of the published table."""

from pathlib import Path
from typing import get_args

import pytest

from nanogpt.__main__ import main
from nanogpt.configfile import load_config
from nanogpt.describe import resolve
from nanogpt.model import build_model
from nanogpt.optim import build_optimizer
from nanogpt.rules import muon_half, role_settings
from parametrization import MODES, MUON_ROLES, MuonScale, Role
from parametrization.table import multipliers

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "zipf_small.yaml"
DEEP = ["--n_embd=128", "--n_head=8", "--n_layer=8", "--base_n_layer=2", "--mode=completep", "--weight_decay=0.1"]


def cells(text: str, role: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.startswith(f"{role} "))[1:]


def test_the_table_holds_the_configs_own_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", str(CONFIG), *DEEP]) == 0
    text = capsys.readouterr().out
    assert text.startswith("completep: n_embd=128, n_layer=8, head size 16")
    # m_N = 4, m_L = 4: std / 2, rate / 4, decay x 4, eps / 16, by hand from CompleteP's table 1.
    assert cells(text, "hidden") == ["0.05", "0.0025", "0.4", "0.001", "6.25e-10"]
    assert cells(text, "embedding") == ["0.1", "0.01", "0.1", "0.001", "1e-08"]
    assert cells(text, "norm_gain")[2:] == ["0.01", "none", "none", "6.25e-10"]
    assert "residual branch x 0.25, head input x 0.25, attention scale 0.25" in text


def test_only_roles_that_the_model_has_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", str(CONFIG), "--tie_embeddings=true"]) == 0
    text = capsys.readouterr().out
    assert not any(f"{role} " in text for role in ("readout", "position", "hidden_bias", "norm_bias"))


def test_muons_half_has_its_own_rate_and_no_eps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", str(CONFIG), "--optimizer=muon", "--learning_rate=0.02", "--adamw_learning_rate=3e-3"]) == 0
    text = capsys.readouterr().out
    assert cells(text, "hidden")[1:2] + cells(text, "hidden")[-1:] == ["0.02", "(Muon)"]
    assert cells(text, "embedding")[1] == "0.003"


@pytest.mark.parametrize("rule", ["width", "independent", "tau_epoch"])
@pytest.mark.parametrize("mode", MODES)
def test_every_role_gets_its_rule(mode: str, rule: str) -> None:
    config = resolve(load_config(CONFIG, [*DEEP, f"--mode={mode}", f"--weight_decay_rule={rule}", "--bias=true"]))
    found = role_settings(config, steps=50)
    assert Role.HIDDEN_BIAS in found
    hidden = found[Role.HIDDEN]
    if rule in ("independent", "tau_epoch"):
        named = 0.1 if rule == "independent" else 0.1 / 50
        assert hidden.learning_rate * hidden.weight_decay == pytest.approx(named, rel=1e-12)
    else:
        depth = 0.5 if mode == "depth_mup" else 1.0
        assert hidden.learning_rate * hidden.weight_decay == pytest.approx(1e-3 * depth, rel=1e-12)


@pytest.mark.parametrize("scale", get_args(MuonScale))
@pytest.mark.parametrize("rule", ["width", "coupled", "sqrt", "independent"])
@pytest.mark.parametrize("mode", MODES)
def test_a_configs_muon_has_the_tables_multipliers(mode: str, rule: str, scale: str) -> None:
    words = ["--optimizer=muon", f"--scale={scale}", "--learning_rate=0.5", "--n_kv_head=2", "--bias=true"]
    config = resolve(load_config(CONFIG, [*DEEP, *words, f"--mode={mode}", f"--weight_decay_rule={rule}"]))
    half = muon_half(config)
    assert half is not None
    table = multipliers(build_model(config, "meta").rules, half)
    decay = config.optimizer.weight_decay / (0.5 if rule == "independent" else 1)
    for role, found in role_settings(config).items():
        assert (found.eps is None) == (role in MUON_ROLES) == (table[role].eps is None)
        if role in MUON_ROLES:
            assert found.learning_rate == pytest.approx(0.5 * table[role].learning_rate, rel=1e-12)
            assert found.weight_decay == pytest.approx(decay * table[role].weight_decay, rel=1e-12)


@pytest.mark.parametrize("ffn", ["gelu", "swiglu", "relu2"])
@pytest.mark.parametrize("heads", [2, 8])
def test_the_shapes_printed_are_those_that_muon_updates(ffn: str, heads: int) -> None:
    config = resolve(load_config(CONFIG, [*DEEP, "--optimizer=muon", f"--n_kv_head={heads}", f"--ffn={ffn}"]))
    half = muon_half(config)
    assert half is not None
    optimizer = build_optimizer(build_model(config, "meta"), config, "meta")
    pieces = [
        piece.shape
        for group in optimizer.param_groups
        for parameter in (group["params"] if group["half"] == "muon" else [])
        for matrix in (parameter.unbind(0) if parameter.dim() == 3 else (parameter,))
        for piece in (matrix.split(group["rows"]) if group["rows"] else (matrix,))
    ]
    assert {tuple(piece) for piece in pieces} == set(half.shapes.values())


def test_under_tau_epoch_the_printed_decay_follows_the_horizon(capsys: pytest.CaptureFixture[str]) -> None:
    """lr x wd is wd / steps: 524,288 tokens are 512 steps of 1,024."""
    arguments = ["rules", str(CONFIG), *DEEP, "--weight_decay_rule=tau_epoch"]
    for tokens, steps in ((524_288, 512), (1_048_576, 1024)):
        assert main([*arguments, f"--tokens={tokens}"]) == 0
        assert cells(capsys.readouterr().out, "hidden")[3] == f"{0.1 / steps:.6g}"


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", str(CONFIG), "--n_head=3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
