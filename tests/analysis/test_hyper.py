"""Hyper-parameter laws: planted exponents come back, their intervals cover, and what is not identified is refused.

Slow part: under a minute.
"""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.hyper import HyperLaw, hyper_law
from experiments.analysis.parabola import Refusal
from experiments.analysis.student import Interval
from nanogpt.config import UserError

N, D, RATE = "n_params_non_embedding", "tokens", "optimizer.learning_rate"
SIZES = [2**k for k in (12, 14, 16, 18)]
TOKENS = [2**k for k in (18, 20, 22)]
A, B, BEST = -0.3, 0.2, -7.0  # log2 of the best rate at N = 2^15, D = 2^20


def sweep(
    sizes: Any = SIZES, tokens: Any = TOKENS, seeds: int = 3, noise: float = 0.0, scatter: float = 0.0, draw: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """A parabola of losses over nine octaves per (N, D); `scatter` moves each optimum off the law (octaves)."""
    rng = np.random.default_rng(draw)
    rows = []
    for n, d in product(sizes, tokens):
        best = BEST + A * (np.log2(n) - 15) + B * (np.log2(d) - 20) + scatter * rng.normal()
        for seed, k in product(range(1, seeds + 1), range(-12, -2)):
            loss = 2.5 + 0.02 * seed + 0.05 * (k - best) ** 2 + noise * rng.normal()
            rows.append({"status": "completed", "seed": seed, RATE: 2.0**k, N: n, D: d, "val_loss": loss})
    return pd.DataFrame(rows)


def exponent(law: HyperLaw, name: str) -> Interval:
    found = law.exponents[name]
    assert isinstance(found, Interval), found
    return found


def test_planted_exponents_come_back_without_noise() -> None:
    law = hyper_law(sweep(), "learning_rate", ["n_params_non_embedding", "tokens"])
    assert exponent(law, N).value == pytest.approx(A, abs=1e-9)
    assert exponent(law, D).value == pytest.approx(B, abs=1e-9)
    assert law.predict(n_params_non_embedding=2**15, tokens=2**20).value == pytest.approx(2**BEST, rel=1e-9)
    far = law.predict(n_params_non_embedding=2**25, tokens=2**30).value
    assert far == pytest.approx(2 ** (BEST + 10 * A + 10 * B), rel=1e-9)
    assert law.optima["reason"].eq("").all()
    assert "exponent in tokens +0.200" in law.sentence()


def test_one_size_column_is_enough() -> None:
    law = hyper_law(sweep(tokens=[2**20]), "learning_rate", ["n_params_non_embedding"])
    assert exponent(law, N).value == pytest.approx(A, abs=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes on a machine that does other things, too
@pytest.mark.parametrize(
    "options", [{"noise": 0.01}, {"noise": 0.01, "seeds": 1}, {"noise": 0.002, "scatter": 0.3}],
    ids=["seeds", "one seed", "off the law"],
)  # fmt: skip
def test_intervals_cover_at_their_rate(options: dict[str, Any]) -> None:
    """90 % of 300 simulated studies, within 86 to 94 %, for an exponent and for an optimum beyond the sizes tried."""
    laws = [hyper_law(sweep(tokens=[2**20], draw=draw, **options), RATE, [N], bootstrap=0) for draw in range(300)]
    exponents = [exponent(law, N) for law in laws]
    beyond = [law.predict(n_params_non_embedding=2**22) for law in laws]
    true = 2.0 ** (BEST + 7 * A)
    assert 0.86 <= np.mean([each.lower <= A <= each.upper for each in exponents]) <= 0.94
    assert 0.86 <= np.mean([each.lower <= true <= each.upper for each in beyond]) <= 0.94


def test_noise_widens_the_interval_and_it_holds_the_truth() -> None:
    law = hyper_law(sweep(noise=0.01, draw=1), RATE, [N, D])
    assert exponent(law, N).lower < A < exponent(law, N).upper
    assert 0.001 < exponent(law, N).upper - exponent(law, N).lower < 0.2


def test_sizes_that_move_together_are_refused() -> None:
    rows = sweep()
    together = rows[np.log2(rows[D]) - np.log2(rows[N]) == 6]
    law = hyper_law(together.assign(tokens=20 * together[N]), RATE, [N, D])
    assert isinstance(law.constant, Refusal)
    assert "hardly move apart" in law.constant.reason
    with pytest.raises(UserError, match="there is none to predict from"):
        law.predict(n_params_non_embedding=1, tokens=1)


def test_an_optimum_on_the_edge_is_left_out_with_its_reason() -> None:
    rows = sweep(sizes=[*SIZES, 2**40], tokens=[2**20])
    law = hyper_law(rows, RATE, [N])
    reasons = law.optima.set_index(N)["reason"]
    assert "edge of the values tried" in reasons[2**40]
    assert exponent(law, N).value == pytest.approx(A, abs=1e-9)
    assert "4 of 5 sizes" in law.sentence()


def test_a_weight_decay_of_zero_is_left_out_and_said() -> None:
    rows = sweep(tokens=[2**20])
    none = rows[rows[RATE] == 2.0**-12].assign(**{RATE: 0.0})
    law = hyper_law(pd.concat([rows, none]), RATE, [N])
    assert law.notes == (f"{len(none)} runs with {RATE} = 0 have no logarithm and were left out",)
    assert exponent(law, N).value == pytest.approx(A, abs=1e-9)


def test_two_sizes_of_one_seed_have_no_error() -> None:
    law = hyper_law(sweep(sizes=SIZES[:2], tokens=[2**20], seeds=1), RATE, [N])
    assert isinstance(law.exponents[N], Refusal)
    one = hyper_law(sweep(sizes=SIZES[:1], tokens=[2**20]), RATE, [N])
    assert isinstance(one.constant, Refusal)
    assert "it takes 2 sizes with an optimum, found 1" in one.sentence()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((RATE, ["n_params_nonembedding"]), "did you mean 'n_params_non_embedding'"), (("lrate", [N]), "no column"),
     ((RATE, ["status"]), "must be numbers above 0")],
)  # fmt: skip
def test_mistakes(arguments: tuple[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hyper_law(sweep(), *arguments)
