"""The verdicts on transfer: by interval, in the words and the numbers of the table."""

from typing import Any

import pytest

from experiments.analysis.claims import Claim
from experiments.analysis.optimum import find_optima
from experiments.analysis.spec import check_optimum_spec
from experiments.analysis.transfer import transfer_claims, transfer_table, transfer_text
from tests.analysis.test_optimum import basins, diverge

SPEC = {"of": "learning_rate", "per": "n_embd", "bootstrap": 50}


def claim(runs: Any, **changes: Any) -> Claim:
    """The one claim about a table without panels."""
    spec = check_optimum_spec({**SPEC, **changes})
    (found,) = transfer_claims(find_optima(runs, spec.of, spec.per, base=spec.base, bootstrap=spec.bootstrap), spec)
    return found


def test_a_planted_transfer_holds() -> None:
    found = claim(basins({32: -7.3, 64: -7.4, 128: -7.3}, seeds=3, noise=0.001))
    assert found.verdict == "holds"
    assert "the best learning_rate moves most at n_embd 64, by -0.10 [" in found.text
    assert "per doubling" in found.text
    assert found.text.endswith("Every interval lies within 1 octave and 0.02 (or 2 sd over seeds).")


def test_a_planted_drift_fails() -> None:
    found = claim(basins(seeds=3, noise=0.001))
    assert found.verdict == "fails"
    assert "moves most at n_embd 128, by -2.0" in found.text
    assert "Using the best of 32 costs at most 0.2" in found.text
    assert "That is NOT within 1 octave and 0.02 (or 2 sd over seeds): drift at n_embd 128; regret at" in found.text


def test_a_regret_fails_without_a_drift() -> None:
    """0.8 octaves are within the limit, and cost 0.032."""
    runs = basins({32: -7.3, 64: -8.1}, seeds=3, noise=0.0002)
    runs["val_loss"] -= 0.01 * runs["seed"]  # without a difference between seeds, the limit is 0.02
    assert claim(runs).verdict == "fails"
    assert claim(runs, max_regret=0.05).verdict == "holds"


def test_seeds_that_differ_widen_what_counts_as_noise() -> None:
    """Twice the deviation over seeds, 0.02 here, is 0.04: more than a regret of 0.032."""
    runs = basins({32: -7.3, 64: -8.1}, seeds=3, noise=0.0002)
    runs["val_loss"] += 0.01 * runs["seed"]
    assert claim(runs).verdict == "holds"


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (basins(), "is not decided: one seed gives no interval."),
        (basins({32: -7.3, 64: -8.35}, seeds=3, noise=0.02), "is not decided: drift at n_embd 64."),
        (basins({32: -7.3, 64: -13.0}, seeds=3), "At n_embd 64: the lowest loss lies at the lower edge of the values"),
        (basins({32: -2.0, 64: -7.0}, seeds=3), "how far the best learning_rate moves cannot be said."),
    ],
)
def test_what_the_data_do_not_decide_is_undecided(runs: Any, words: str) -> None:
    found = claim(runs, max_regret=0.3)
    assert found.verdict == "undecided"
    assert words in found.text


def test_a_regret_below_zero_is_no_gain() -> None:
    """A wall above the basin pulls the parabola's minimum down, and the base's own optimum beats it."""
    runs = basins({32: -7.3, 64: -7.3})
    wall = (runs["model.n_embd"] == 64) & (runs["optimizer.learning_rate"] == 2.0**-5)
    runs.loc[wall, "val_loss"] += 0.3
    assert "Using the best of 32 costs nothing that shows (-0.0" in claim(runs).text


def test_a_refusal_does_not_hide_a_failure() -> None:
    runs = basins({32: -7.3, 64: -9.3, 128: -13.0}, seeds=3, noise=0.001)
    assert claim(runs).verdict == "fails"


def test_one_size_alone_claims_nothing() -> None:
    assert claim(basins({32: -7.3}, seeds=3)).verdict is None


def test_the_table_has_every_size_and_says_how() -> None:
    runs = diverge(basins({32: -7.3, 64: -7.3, 128: -13.0}, seeds=3, noise=0.001), 64, 2.0**-4, (2,))
    optima = find_optima(runs, "learning_rate", "n_embd", bootstrap=50)
    table = transfer_table(optima)
    assert table["n_embd"].tolist() == ["32", "64", "128"]
    assert table["drift (octaves)"].tolist()[::2] == ["base", "not known"]
    assert table["diverged"].tolist() == ["0", "1", "0"]
    assert table["best learning_rate"].iloc[0].startswith("0.0063")
    text = transfer_text(optima)
    assert "50 bootstrap resamples of whole seeds" in text
    assert "At n_embd 128: the lowest loss lies at the lower edge of the values tried." in text
    assert "no intervals" in transfer_text(find_optima(basins(), "learning_rate", "n_embd"))
