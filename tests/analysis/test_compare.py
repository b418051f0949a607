"""Comparison: a planted compute multiplier comes back, its interval covers, seeds pair, and points never judge.

Slow part: under a minute.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.compare import Comparison, compare, effective_speedup, outcome_of
from experiments.analysis.fit import fit
from experiments.analysis.parabola import Refusal
from experiments.analysis.student import Interval
from nanogpt.config import UserError

E, A, ALPHA = 1.9, 40.0, 0.15
COMPUTE = np.geomspace(1e9, 1e12, 6)


def variants(
    multiplier: float, noise: float = 0.0, common: float = 0.0, seeds: int = 3, draw: int = 0, other: int = 0,
    compute: Any = COMPUTE,
) -> pd.DataFrame:  # fmt: skip
    """Two optimizers on one curve, the second at `multiplier` times the compute. `common` noise is that of a seed, the
    same for both; `noise` is each run's own; `other` shifts the second's seeds so that they are not the same."""
    rng = np.random.default_rng(draw)
    shared = {seed: rng.normal(0, common, len(compute)) if common else np.zeros(len(compute)) for seed in range(20)}
    rows = []
    for kind, m in (("adamw", 1.0), ("muon", multiplier)):
        for seed in range(1, seeds + 1):
            number = seed + (other if kind == "muon" else 0)
            for level, flops in enumerate(compute):
                loss = (E + A * (m * flops) ** -ALPHA) * np.exp(shared[number][level] + rng.normal(0, noise or 1e-300))
                rows.append({"status": "completed", "seed": number, "optimizer.kind": kind, "model.n_embd": 2**level,
                             "flops": flops, "val_loss": loss})  # fmt: skip
    return pd.DataFrame(rows)


def found(runs: pd.DataFrame, **options: Any) -> Comparison:
    return compare(runs, "optimizer.kind", "adamw", "muon", **options)


def interval(value: Interval | Refusal) -> Interval:
    assert isinstance(value, Interval), value
    return value


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 1.3, 2.0, 8.0])
def test_a_planted_multiplier_comes_back_without_noise(multiplier: float) -> None:
    result = found(variants(multiplier))
    assert interval(result.multiplier).value == pytest.approx(multiplier, rel=1e-6)
    assert result.floor == pytest.approx(E, rel=1e-5)
    assert result.exponent == pytest.approx(ALPHA, rel=1e-5)
    gap = np.mean(A * COMPUTE**-ALPHA * (multiplier**-ALPHA - 1))
    assert interval(result.gap).value == pytest.approx(gap, abs=1e-12)


@pytest.mark.parametrize("options", [{}, {"seeds": 1}, {"other": 5}])
def test_rounding_is_neither_a_difference_nor_a_misfit(options: dict[str, int]) -> None:
    for nudge in (0.0, 1e-10, -1e-10):
        runs = variants(1.0, **options)
        runs.loc[runs["optimizer.kind"] == "muon", "val_loss"] *= 1 + nudge
        assert found(runs).outcome == "tie"
        assert not any("one curve" in note for note in found(runs).notes)
    planted = found(variants(1.5, **options))
    assert planted.outcome == "win"
    assert planted.notes == ()


def test_a_gap_of_rounding_is_a_tie() -> None:
    assert outcome_of(1e-10, 2e-10, 0.0) == outcome_of(1 - 2e-10, 1 - 1e-10, 1.0) == "tie"
    assert (outcome_of(1 + 1e-5, 1.1, 1.0), outcome_of(0.9, 1 - 1e-5, 1.0)) == ("win", "loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "name"),
    [({"noise": 0.003}, "own noise"), ({"noise": 0.002, "common": 0.006}, "paired"),
     ({"noise": 0.003, "other": 10}, "other seeds"), ({"noise": 0.003, "seeds": 1}, "one seed")],
)  # fmt: skip
def test_the_interval_covers_at_its_rate(options: dict[str, Any], name: str) -> None:
    """90 % of 400 simulated studies, within 86 to 94 %. About 10 s each."""
    results = [interval(found(variants(1.4, draw=draw, **options)).multiplier) for draw in range(400)]
    covered = np.mean([each.lower <= 1.4 <= each.upper for each in results])
    assert 0.86 <= covered <= 0.94, (name, covered)


def test_pairing_uses_what_seeds_share() -> None:
    """The same runs, with the seeds of one variant renamed: what a seed does to both no longer cancels."""
    runs = variants(1.05, noise=0.0002, common=0.01, draw=4)
    apart = runs.assign(seed=runs["seed"] + 10 * (runs["optimizer.kind"] == "muon"))
    paired, unpaired = interval(found(runs).multiplier), interval(found(apart).multiplier)
    assert found(runs).paired
    assert not found(apart).paired
    assert paired.upper / paired.lower < 1 + 0.25 * (unpaired.upper / unpaired.lower - 1)
    assert found(runs).outcome == "win"
    assert found(apart).outcome == "tie"


def test_verdicts_follow_the_interval_and_not_the_point() -> None:
    for draw in range(20):
        result = found(variants(1.02, noise=0.01, draw=draw))
        m = interval(result.multiplier)
        assert result.outcome == ("win" if m.lower > 1 else "loss" if m.upper < 1 else "tie")
    assert found(variants(0.5, noise=0.001)).outcome == "loss"
    assert found(variants(2.0, noise=0.001)).outcome == "win"
    assert found(variants(1.0, noise=0.001)).outcome == "tie"


def test_each_variant_stands_at_its_own_best_setting() -> None:
    """Muon at the rate that is best for AdamW would lose."""
    parts = []
    for rate, penalty in ((0.01, (0.0, 0.2)), (0.02, (0.1, 0.0))):
        part = variants(1.5, noise=1e-4).assign(**{"optimizer.learning_rate": rate})
        part["val_loss"] += np.where(part["optimizer.kind"] == "muon", penalty[1], penalty[0])
        parts.append(part)
    result = found(pd.concat(parts, ignore_index=True))
    assert interval(result.multiplier).value == pytest.approx(1.5, rel=0.02)
    settings = result.levels.set_index("variant")["setting"]
    assert all("learning_rate=0.01" in words for words in settings["adamw"])
    assert all("learning_rate=0.02" in words for words in settings["muon"])


def test_one_level_gives_a_gap_and_no_multiplier() -> None:
    result = found(variants(2.0, noise=1e-4, compute=COMPUTE[:1]))
    assert isinstance(result.multiplier, Refusal)
    assert "two levels" in result.multiplier.reason
    assert interval(result.gap).upper < 0
    assert result.outcome == "win"


def test_variants_without_a_common_loss_have_no_multiplier() -> None:
    result = found(variants(1e6, compute=COMPUTE[:3]))
    assert isinstance(result.multiplier, Refusal)
    assert "share no loss" in result.multiplier.reason
    assert result.outcome == "win"


def test_variants_without_a_common_range_of_compute_have_no_verdict() -> None:
    runs = variants(1.0, noise=1e-4)
    runs.loc[runs["optimizer.kind"] == "muon", "flops"] *= 1e6
    result = found(runs)
    assert isinstance(result.multiplier, Refusal)
    assert "ranges do not overlap" in result.multiplier.reason
    assert result.outcome is None


def test_a_variant_is_not_compared_with_itself() -> None:
    with pytest.raises(UserError, match="'adamw' is compared with itself"):
        compare(variants(2.0), "optimizer.kind", "adamw", "adamw")


def test_a_multiplier_that_changes_is_said_to() -> None:
    runs = variants(1.0, noise=1e-4)
    runs.loc[runs["optimizer.kind"] == "muon", "val_loss"] = E + 250 * runs["flops"] ** -0.24
    result = found(runs)
    assert any("one curve does not fit both" in note for note in result.notes)
    assert interval(result.multiplier).upper / interval(result.multiplier).lower > 1.3


def test_a_setting_without_all_seeds_is_left_out_and_said() -> None:
    runs = variants(1.4, noise=0.001)
    lost = (runs["optimizer.kind"] == "muon") & (runs["model.n_embd"] == 4) & (runs["seed"] == 2)
    result = found(runs.assign(status=np.where(lost, "diverged", "completed")))
    assert result.notes == (
        "muon: 1 diverged have no result to compare",
        "muon: 1 settings lack a seed and were left out",
    )
    assert len(result.levels) == 11
    assert result.paired


def test_a_level_that_buys_nothing_is_left_out() -> None:
    runs = variants(1.4, noise=0.001)
    runs.loc[(runs["optimizer.kind"] == "adamw") & (runs["model.n_embd"] == 8), "val_loss"] += 1
    assert "adamw: 1 levels do no better than a cheaper one and were left out" in found(runs).notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidate": "lion"}, "no finished run has optimizer.kind = 'lion'; allowed: adamw, muon"),
        ({"x": "flop"}, "no column 'flop'; did you mean 'flops'?"),
        ({"factor": "kinds"}, "no column 'kinds'; did you mean 'kind'?"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    given = {"factor": "kind", "baseline": "adamw", "candidate": "muon", **change}
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        compare(variants(1.0), **given)


def test_two_unlike_runs_of_one_setting_are_refused() -> None:
    runs = pd.concat([variants(1.0), variants(1.0)], ignore_index=True)
    with pytest.raises(UserError, match="something else varies too"):
        found(runs)


def test_effective_speedup_is_the_closed_form_with_an_interval() -> None:
    runs = variants(1.0, noise=0.001, seeds=4)
    law = fit("saturating_power_law", runs, bootstrap=200)
    floor, alpha = law.params["E"], law.params["alpha"]
    speedup = effective_speedup(law, 2.8, 2.7)
    assert speedup.value == pytest.approx(((2.8 - floor) / (2.7 - floor)) ** (1 / alpha))
    assert speedup.lower < speedup.value < speedup.upper
    true = ((2.8 - E) / (2.7 - E)) ** (1 / ALPHA)
    assert speedup.lower < true < speedup.upper
    assert effective_speedup(law, 2.7, 2.7).value == 1
    with pytest.raises(UserError, match="not below both losses"):
        effective_speedup(law, 2.8, 1.0)
    with pytest.raises(UserError, match="needs the fit of a power law, with or without a floor, found chinchilla"):
        effective_speedup(fit("chinchilla", runs.assign(n_params_non_embedding=np.geomspace(1, 9, len(runs)),
                                                        tokens=np.geomspace(9, 1, len(runs)) ** 0.5), bootstrap=0),
                          2.8, 2.7)  # fmt: skip
