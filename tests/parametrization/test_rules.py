"""The rules against table 1 of CompleteP, written out here a second time, over a grid of ratios."""

import itertools
import math

import pytest

from parametrization import MODES, WEIGHT_DECAY_RULES, Role, Rules, Shape, decay_divisor, scaling_rules
from parametrization.__main__ import main

BASE = Shape(n_embd=64, n_layer=2, head_size=16, ffn_hidden=256)
STD = 0.03
ALPHA = {"depth_mup": 0.5, "completep": 1.0}


def expected(mode: str, m_n: float, m_l: float, m_ff: float, n_layer: int) -> dict[Role, tuple[float, ...]]:
    """(init std, lr, weight decay, eps) per role, straight from the published table."""
    if mode == "sp":
        m_n = m_ff = 1.0
    alpha = ALPHA.get(mode)
    lr_depth = 1.0 if alpha is None else m_l ** (alpha - 1)
    eps_depth = 1.0 if alpha is None else m_l ** (-alpha)
    gpt2 = 1 / math.sqrt(2 * n_layer) if mode == "sp" else 1.0
    hidden = (m_n**-0.5 * STD, lr_depth / m_n, m_n, eps_depth / m_n)
    vector = (0.0, lr_depth, 0.0, eps_depth / m_n)
    return {
        Role.EMBEDDING: (STD, 1, 1, 1),
        Role.POSITION: (STD, 1, 1, 1),
        Role.HIDDEN: hidden,
        Role.ATTENTION_OUT: (hidden[0] * gpt2, *hidden[1:]),
        Role.FFN_OUT: (m_ff**-0.5 * STD * gpt2, lr_depth / m_ff, m_ff, eps_depth / m_ff),
        Role.READOUT: (STD, 1, 1, 1),
        Role.HIDDEN_BIAS: vector,
        Role.NORM_GAIN: vector,
        Role.NORM_BIAS: vector,
        Role.FINAL_NORM_GAIN: (0, 1, 0, 1),
        Role.FINAL_NORM_BIAS: (0, 1, 0, 1),
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("m_n", "m_l", "m_ff"), list(itertools.product((0.5, 1, 4, 16), (0.5, 1, 3, 8), (1, 3, 16))))
def test_rules_equal_the_published_table(mode: str, m_n: float, m_l: float, m_ff: float) -> None:
    shape = Shape(int(64 * m_n), int(2 * m_l), 32, 256 * m_ff)
    rules = scaling_rules(mode, shape, BASE, init_std=STD, output_multiplier=3.0, input_multiplier=5.0)
    for role, row in expected(mode, m_n, m_l, m_ff, shape.n_layer).items():
        rule = rules.roles[role]
        found = (rule.init_std, rule.lr_multiplier, rule.weight_decay_multiplier, rule.eps_multiplier)
        assert found == pytest.approx(row, rel=1e-12, abs=0), role
    assert rules.input_multiplier == 5.0
    assert rules.residual_multiplier == pytest.approx(m_l ** -ALPHA.get(mode, 0), rel=1e-12)
    assert rules.output_multiplier == pytest.approx(3.0 if mode == "sp" else 3.0 / m_n, rel=1e-12)
    scale = 1 / math.sqrt(32) if mode == "sp" else math.sqrt(16) / 32
    assert rules.attention_scale == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_plain_sp_at_the_base_shape(mode: str) -> None:
    plain: Rules = scaling_rules("sp", BASE, residual_init="plain")
    assert scaling_rules(mode, BASE, BASE, residual_init="plain") == plain


@pytest.mark.parametrize("mode", MODES)
def test_every_role_has_a_rule(mode: str) -> None:
    assert set(scaling_rules(mode, BASE).roles) == set(Role)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "sp"])
def test_modes_differ_away_from_the_base(mode: str) -> None:
    wide = Shape(256, 8, 16, 1024)
    tables = {other: scaling_rules(other, wide, BASE, residual_init="plain") for other in MODES}
    assert all(tables[mode] != tables[other] for other in MODES if other != mode)


@pytest.mark.parametrize("rule", WEIGHT_DECAY_RULES)
def test_decay_per_step_follows_the_chosen_rule(rule: str) -> None:
    """The product lr * wd is what acts on a weight; a coordinate check would not notice a wrong one."""
    hidden = scaling_rules("mup", Shape(1024, 2, 16, 4096), BASE, weight_decay_rule=rule).roles[Role.HIDDEN]
    product = hidden.lr_multiplier * hidden.weight_decay_multiplier
    named = {"width": 1, "coupled": 1 / 16, "sqrt": 1 / 4, "independent": 1, "tau_epoch": 1}
    assert product == pytest.approx(named[rule], rel=1e-12)


@pytest.mark.parametrize(("rule", "divisor"), [("independent", 3e-3), ("tau_epoch", 0.6), ("width", 1), ("sqrt", 1)])
def test_rules_that_name_the_product_divide_the_rate_out(rule: str, divisor: float) -> None:
    assert decay_divisor(rule, learning_rate=3e-3, steps=200) == pytest.approx(divisor, rel=1e-12)


def test_depth_mup_decay_is_independent_of_depth_only_where_the_rule_names_the_product() -> None:
    deep = Shape(64, 32, 16, 256)
    products = {}
    for rule in ("width", "independent", "tau_epoch"):
        hidden = scaling_rules("depth_mup", deep, BASE, weight_decay_rule=rule).roles[Role.HIDDEN]
        products[rule] = hidden.lr_multiplier * hidden.weight_decay_multiplier
    assert products == pytest.approx({"width": 1 / 4, "independent": 1.0, "tau_epoch": 1.0}, rel=1e-12)


def test_the_table_prints_every_mode_and_role(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--n_embd", "256", "--base_n_embd", "64", "--n_layer", "8", "--base_n_layer", "2"]) == 0
    text = capsys.readouterr().out
    assert all(mode in text for mode in MODES)
    assert all(text.count(f"{role.value} ") >= len(MODES) for role in Role)
    completep = text.partition("completep")[2]
    hidden = next(line.split() for line in completep.splitlines() if line.startswith("hidden "))
    assert hidden == ["hidden", "0.01", "0.25", "4", "1", "0.0625"]
    assert "residual branch x 0.25, head input x 0.25" in completep


WIDE_AND_DEEP = ["table", "--n_embd", "256", "--base_n_embd", "64", "--n_layer", "8", "--base_n_layer", "2"]
# By hand, for m_N = 4 and m_L = 4: learning rate under depth-muP, weight decay, and the factors on the updates.
MUON_ROWS = {
    "original": (["0.5", "1"], ("1", "2", "1")),
    "match_rms_adamw": (["0.25", "2"], ("3.2", "6.4", "6.4")),
    "spectral": (["0.5", "1"], ("1", "2", "0.5")),
}


@pytest.mark.parametrize("scale", MUON_ROWS)
def test_the_table_prints_muons_rows_beside_those_of_adamw(scale: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WIDE_AND_DEEP, "--mode", "depth_mup"]
    main(words)
    adamw = capsys.readouterr().out.splitlines()
    main([*words, "--optimizer", "muon", "--scale", scale])
    *muon, updates = capsys.readouterr().out.splitlines()
    (settings, factors) = MUON_ROWS[scale]
    for left, right in zip(adamw, muon, strict=True):
        if left.split()[0] in ("hidden", "attention_out", "ffn_out"):
            found = right.split()
            assert [*found[2:4], found[-1]] == [*settings, "(Muon)"]
        elif not left.startswith("---"):
            assert left.split() == right.split()
    square, wide, tall = factors
    assert updates == (
        f"Muon's update, scale {scale}: q, k, v, attention_out (256 x 256) x {square}; ffn in (1024 x 256) x {wide}; "
        f"ffn_out (256 x 1024) x {tall}"
    )


def test_muons_scale_is_original_unless_named(capsys: pytest.CaptureFixture[str]) -> None:
    main([*WIDE_AND_DEEP, "--optimizer", "muon"])
    unnamed = capsys.readouterr().out
    main([*WIDE_AND_DEEP, "--optimizer", "muon", "--scale", "original"])
    assert unnamed == capsys.readouterr().out


WRONG = [[], ["table"], ["table", "--n_embd", "0"], ["table", "--n_embd", "x"]]
WRONG += [["table", "--n_embd", "8", "--scale", "spectral"], ["table", "--n_embd", "8", "--optimizer", "lion"]]
WRONG += [["table", "--n_embd", "8", "--init_std", text] for text in ("-1", "0", "nan", "inf", "x")]
WRONG += [["table", "--n_embd", "100"], ["table", "--n_embd", "8", "--head_size", "3"]]


@pytest.mark.parametrize("arguments", WRONG)
def test_a_wrong_argument_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
