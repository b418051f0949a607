"""The coordinate check: what it measures, its slopes and verdicts, its files; that it passes and fails where it must.

Slow part: about 40 s for the two sweeps together.
"""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.__main__ import main
from nanogpt.config import Config
from nanogpt.configfile import dump_yaml, load_config
from nanogpt.coordcheck import KINDS, Reading, Sweep, activations, run_sweep, sized
from nanogpt.coordreport import FLAT, Slope, format_table, slopes, verdicts
from nanogpt.model import build_model

ROOT = Path(__file__).resolve().parent.parent
Make = Callable[..., Config]


@pytest.fixture
def config_file(tiny: Make, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(tiny().model_dump(mode="json")))
    return path


@pytest.mark.parametrize(("flat", "status", "said"), [(100.0, 0, "passes"), (0.0, 1, "FAILS")])
def test_a_verdict_that_fails_is_the_exit_status(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    flat: float, status: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("nanogpt.coordreport.FLAT", flat)
    words = ["--widths=8,16", "--modes=mup", "--steps=1", "--seeds=1", "--sequences=2", f"--out={tmp_path / 'out'}"]
    assert main(["coord-check", str(config_file), *words]) == status
    assert f"{said}: " in capsys.readouterr().out


def test_the_command_leaves_a_table_readings_and_figures(
    config_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--widths=8,16", "--depths", "1,2", "--modes=sp,mup", "--steps=2", "--seeds=2", f"--out={out}"]
    status = main(["coord-check", str(config_file), *words, "--n_layer=1"])
    printed = capsys.readouterr()
    assert status == ("FAILS" in printed.out)
    assert sorted(path.name for path in out.iterdir()) == [
        "coord_check.csv",
        "coord_check.txt",
        "coord_check_depth.png",
        "coord_check_width.png",
        "slopes.csv",
    ]
    assert printed.out.startswith((out / "coord_check.txt").read_text().rstrip())
    assert "AdamW, 2 steps of 8 x 16 tokens, constant learning rate 0.001, 2 seeds" in printed.out
    for heading in ("width: sp", "width: mup", "depth: sp", "depth: mup"):
        assert heading in printed.out
    assert printed.out.count("the steepest is") == 4
    assert printed.err.count("coord-check: ") == 8, "one line of progress per model size"
    with (out / "coord_check.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 2 * 3 * len(KINDS)  # axes, modes, sizes, seeds, steps 0 to 2
    assert all(float(row["change"]) == 0 for row in rows if row["step"] == "0")
    assert all(float(row["change"]) > 0 for row in rows if row["step"] == "2" and row["kind"] == "logits")
    assert (out / "coord_check_width.png").stat().st_size > 10_000


MISTAKES = {
    "no axis": ([], "coord-check: needs --widths or --depths"),
    "one size": (["--widths=8,8"], "coord-check: widths: 8: a slope needs two different positive sizes"),
    "no number": (["--depths=2,x"], "coord-check: depths: expected whole numbers with commas between them, got '2,x'"),
    "unknown mode": (["--depths=1,2", "--modes=sp,mop"], "no such mode 'mop'; did you mean 'mup'?"),
    "heads do not fit": (["--widths=8,12"], "coord-check: widths: 12 is not a multiple of the head size, 8"),
    "no steps": (["--depths=1,2", "--steps=0"], "coord-check: steps: expected at least 1, got 0"),
    "half a rate": (["--depths=1,2", "--adamw_learning_rate=1"], "optimizer.kind=adamw has one rate alone"),
    "no half a rate": (
        ["--depths=1,2", "--optimizer=muon", "--adamw_learning_rate=-1"],
        "coord-check: adamw_learning_rate: expected a positive number, got -1.0",
    ),
    "rate": (["--depths=1,2", "--learning_rate=0"], "coord-check: learning_rate: expected a positive number, got 0"),
    "the config's rate": (["--depths=1,2", "--optimizer.learning_rate=1"], "takes --learning_rate, its own"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_trains_nothing(
    config_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    words, message = MISTAKES[name]
    assert main(["coord-check", str(config_file), *words, f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_takes_no_files_is_found_before_anything_is_trained(
    config_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    assert main(["coord-check", str(config_file), "--widths=8,16", f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be written" in error


def test_a_width_keeps_head_size_query_groups_and_proportions(tiny: Make) -> None:
    shape = {"n_layer": 1, "n_embd": 32, "n_head": 4, "n_kv_head": 2, "dropout": 0.1}
    config = tiny(model=shape | {"vocab_size": 32, "ffn": {"kind": "gelu", "hidden": 48}})
    wide = sized(config, Sweep("width", (16, 64)), "completep", 64).model
    assert (wide.n_embd, wide.n_head, wide.n_kv_head, wide.ffn_hidden, wide.dropout) == (64, 8, 4, 96, 0)
    assert (wide.head_size, wide.n_layer) == (8, 1)


def test_the_base_is_the_configs_or_the_smallest_size(tiny: Make) -> None:
    sweep = Sweep("depth", (8, 2, 4))
    given = tiny(parametrization={"mode": "mup", "base_n_embd": 8, "base_n_layer": 1})
    for config, base in ((tiny(), (16, 2)), (given, (8, 1))):
        found = sized(config, sweep, "completep", 8).parametrization
        assert (found.base_n_embd, found.base_n_layer) == base


def test_activations_are_those_of_the_models_own_operations(tiny: Make) -> None:
    model = build_model(tiny(model={"vocab_size": 32, "n_layer": 2}))
    idx = torch.arange(32).view(2, 16)
    found = activations(model, idx)
    x = model.embedding(idx) + model.position.weight
    torch.testing.assert_close(found["embedding"], [x.detach()])
    context = model._context(idx)
    for layer, block in enumerate(model.trunk.blocks):
        branch = block.attention(block.attention_norm(x), context, layer)
        torch.testing.assert_close(found["attention branch"][layer], branch.detach())
        x = x + branch
        branch = block.ffn(block.ffn_norm(x), context, layer)
        torch.testing.assert_close(found["mlp branch"][layer], branch.detach())
        x = x + branch
    torch.testing.assert_close(found["final residual"], [x.detach()])
    torch.testing.assert_close(found["logits"], [model(idx).detach()])
    modules = [model.trunk, *(module for block in model.trunk.blocks for module in (block.attention, block.ffn))]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules), "hooks stayed behind"


def planted(exponent: float, last: float = 1.0, kinds: tuple[str, ...] = KINDS) -> list[Reading]:
    """rms = size^exponent with a factor per seed; the largest size is off by `last`."""
    return [
        Reading("width", "mup", size, seed, step, kind, *(rms, rms if step else 0.0), None)
        for kind in kinds
        for size in (2, 4, 8)
        for seed in (0, 1)
        for step in (0, 1)
        for rms in [(1 + seed) * size**exponent * (last if size == 8 else 1.0)]
    ]


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.14, 0.16, 1.0])
def test_a_planted_power_law_is_found_and_judged(exponent: float) -> None:
    found = slopes(planted(exponent))
    assert len(found) == len(KINDS) * 3  # rms at both steps, the change at the last alone
    assert [slope.slope for slope in found] == pytest.approx([exponent] * len(found), abs=1e-12)
    assert [slope.spread for slope in found] == pytest.approx([0.0] * len(found), abs=1e-12)
    verdict = verdicts(found)[0]
    assert verdict.passed == (abs(exponent) <= FLAT)
    assert ("passes" if verdict.passed else "FAILS") in format_table(found)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(value: float) -> None:
    verdict = verdicts(slopes(planted(0.0, last=value)))[0]
    assert not verdict.passed
    assert math.isnan(verdict.worst.slope)
    assert "FAILS: not finite" in format_table(slopes(planted(0.0, last=value)))


def test_a_sweep_is_reproducible_and_its_modes_differ_away_from_the_base(tiny: Make) -> None:
    sweep = Sweep("width", (8, 32), ("sp", "mup", "completep"), steps=3, seeds=1)
    config = tiny(parametrization={"base_n_embd": 8, "base_n_layer": 1, "residual_init": "plain"})
    readings = run_sweep(config, [sweep])
    assert readings == run_sweep(config, [sweep])
    losses: dict[Any, list[float]] = {}
    for reading in readings:
        if reading.kind == "logits" and reading.train_loss is not None:
            losses.setdefault((reading.mode, reading.size), []).append(reading.train_loss)
    assert all(len(sequence) == 3 for sequence in losses.values())
    wide = [losses[mode, 32] for mode in sweep.modes]
    assert wide[0] != wide[1] != wide[2] != wide[0]
    assert losses["sp", 8] == losses["mup", 8], "at the base width, with one depth, they are one"


Table = dict[tuple[str, str, str], Slope]


def at_the_end(axis: Any, sizes: tuple[int, ...], modes: tuple[str, ...]) -> Table:
    torch.set_num_threads(1)
    found = slopes(run_sweep(load_config(ROOT / "configs" / "tiny_cpu.yaml"), [Sweep(axis, sizes, modes)]))
    return {(slope.mode, slope.kind, slope.quantity): slope for slope in found if slope.step == 10}


@pytest.fixture(scope="module")
def width() -> Table:
    return at_the_end("width", (32, 64, 128, 256), ("sp", "mup", "completep"))


@pytest.fixture(scope="module")
def depth() -> Table:
    return at_the_end("depth", (2, 4, 8, 16, 32), ("mup", "depth_mup", "completep"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mup", "completep"])
def test_nothing_moves_with_the_width_under_mup_and_completep(width: Table, mode: str) -> None:
    """Budget: 12 s for the sweep that the width tests share."""
    assert {key: s.slope for key, s in width.items() if key[0] == mode and not abs(s.slope) <= FLAT} == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attention branch", "mlp branch", "final residual", "logits"])
@pytest.mark.parametrize("quantity", ["rms", "change"])
def test_under_sp_everything_grows_with_the_width(width: Table, kind: str, quantity: str) -> None:
    """The check can fail. Budget: the shared sweep's."""
    assert width["sp", kind, quantity].slope >= 0.25


@pytest.mark.slow
def test_nothing_moves_with_the_depth_under_completep(depth: Table) -> None:
    """Budget: 28 s for the sweep that the depth tests share."""
    assert {key: s.slope for key, s in depth.items() if key[0] == "completep" and not abs(s.slope) <= FLAT} == {}


@pytest.mark.slow
def test_depth_shows_in_mups_residual_and_in_the_branches_of_depth_mup(depth: Table) -> None:
    """The check can fail, and tells alpha = 1/2 from alpha = 1. Budget: the shared sweep's."""
    assert depth["mup", "final residual", "rms"].slope >= 0.25
    assert abs(depth["depth_mup", "final residual", "rms"].slope) <= FLAT
    assert depth["depth_mup", "mlp branch", "change"].slope <= -0.25
    assert depth["depth_mup", "attention branch", "change"].slope <= -0.25
