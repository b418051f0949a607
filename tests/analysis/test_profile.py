"""Profile likelihood: equal to the textbook's interval where there is one, open where the data say nothing, drawn."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from experiments.analysis.fit import fit
from experiments.analysis.laws import Chinchilla
from experiments.analysis.profileplot import profile
from nanogpt.config import UserError
from tests.analysis.tables import planted_runs


def line(noise: float = 0.01, points: int = 12, seed: int = 0) -> pd.DataFrame:
    """A power law along compute: a straight line on logarithmic axes, where least squares is ordinary regression."""
    x = np.geomspace(1e8, 1e13, points)
    return pd.DataFrame(
        {"flops": x, "val_loss": 30 * x**-0.1 * np.exp(np.random.default_rng(seed).normal(0, noise, points))}
    )


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_on_a_straight_line_it_is_the_interval_of_the_regression(level: float) -> None:
    table = line()
    result = fit("power_law", table, loss="lsq", bootstrap=0)
    ols = stats.linregress(np.log(table["flops"]), np.log(table["val_loss"]))
    t = stats.t.ppf(0.5 + level / 2, len(table) - 2)
    alpha, a = result.profile("alpha", level), result.profile("A", level)
    assert (alpha.lower, alpha.upper) == pytest.approx(
        (-ols.slope - t * ols.stderr, -ols.slope + t * ols.stderr), rel=1e-5
    )
    by_hand = np.exp(ols.intercept + t * ols.intercept_stderr * np.array([-1.0, 1.0]))
    assert (a.lower, a.upper) == pytest.approx(tuple(by_hand), rel=1e-4)
    assert alpha.cutoff == pytest.approx(t**2)


@pytest.mark.parametrize("loss", ["huber", "lad", "lsq"])
def test_the_ends_are_where_the_deviance_is_the_cutoff(loss: str) -> None:
    """Refitting with the parameter held at an end costs the cutoff; the profile is lowest at the estimate."""
    result = fit("chinchilla", planted_runs(0.004), loss=loss, bootstrap=0)
    found = result.profile("alpha", 0.9)
    assert found.closed
    assert found.lower < result.params["alpha"] < found.upper
    deviance = np.interp([found.lower, found.upper], found.table["value"], found.table["deviance"])
    np.testing.assert_allclose(deviance, found.cutoff, rtol=0.15)
    assert found.table["deviance"].idxmin() == (found.table["value"] - found.estimate).abs().idxmin()
    wider = result.profile("alpha", 0.99)
    assert wider.lower < found.lower < found.upper < wider.upper


def test_intervals_of_a_fit_may_be_profiles() -> None:
    result = fit("chinchilla", planted_runs(), bootstrap=0, intervals="profile")
    table = result.conf_int(0.9)
    assert list(table.columns) == ["lower", "upper"]
    assert table.loc["E"].tolist() == [result.profile("E", 0.9).lower, result.profile("E", 0.9).upper]
    assert result.identified == dict.fromkeys(result.params, True)
    assert "profile likelihood" in result.summary()


def test_a_floor_that_nothing_shows_has_an_open_end() -> None:
    result = fit("saturating_power_law", line(), bootstrap=0)
    floor = result.profile("E")
    assert floor.open_below
    assert floor.lower == 0.0
    assert "not identified from below" in floor.words
    assert not result.identified["E"]


def test_a_law_with_one_input_that_does_nothing() -> None:
    """Where the loss does not depend on N, any alpha with a small enough A will do."""
    runs = planted_runs()
    runs["val_loss"] = (2.0 + 300 / runs["tokens"] ** 0.45) * np.exp(
        np.random.default_rng(0).normal(0, 0.002, len(runs))
    )
    result = fit("chinchilla", runs, bootstrap=60)
    assert not result.identified["alpha"]
    assert result.identified["beta"]
    assert not result.profile("alpha").closed


def test_unknown_parameter() -> None:
    with pytest.raises(UserError, match="did you mean 'alpha'"):
        fit("power_law", line(), bootstrap=0).profile("alpa")


@pytest.mark.parametrize("name", ["E", "A", "alpha"])
def test_the_figure_is_drawn_where_asked(name: str) -> None:
    axes, runs = Figure().add_subplot(), planted_runs()
    whole = fit(Chinchilla(), runs, bootstrap=0)
    assert profile(runs, axes, fit=whole, parameter=name) is axes
    assert name in axes.get_xlabel()
    assert len(axes.lines) == 4
    profile(runs, fit=whole, parameter=name).figure.savefig("/dev/null", format="svg")
