"""The door of `fit`: whatever is handed to it or to its result is taken, or refused in one line that says why.

Slow part, the laws with most parameters: about 5 s.
"""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.fit import fit
from experiments.analysis.fitted import Fit
from experiments.analysis.holdout import holdout
from experiments.analysis.laws import LAWS, Chinchilla, make_law
from experiments.analysis.on_loss import fit_on_loss
from experiments.analysis.rollout import rollout
from nanogpt.config import UserError
from tests.analysis.tables import planted_runs
from tests.conformance.test_every_law import LARGE


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit("chinchilla", planted_runs(), bootstrap=40)


def one_line(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert all(part in said for part in parts), said


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"loss": "hubber"}, "loss 'hubber' is not known; did you mean 'huber'?"),
    ({"loss": ["lsq"]}, "loss ['lsq'] is not known"),
    ({"delta": 0}, "delta must be positive and finite, found 0"),
    ({"delta": -1e-3}, "delta must be positive"),
    ({"delta": np.nan}, "delta must be positive"),
    ({"delta": np.inf}, "delta must be positive and finite"),
    ({"delta": "1e-3"}, "delta must be a number, found '1e-3'"),
    ({"delta": True}, "delta must be a number, found True"),
    ({"y": None}, "y must be the name of a column, found None"),
    ({"y": "val_los"}, "did you mean 'val_loss'?"),
    ({"y": "tokens"}, "d and y are both the column 'tokens'"),
    ({"where": 3}, "where must be a filter such as"),
    ({"where": "n_embd >"}, "is not an expression"),
    ({"bootstrap": -5}, "bootstrap must be a whole number of at least 0, found -5"),
    ({"bootstrap": 2.5}, "bootstrap must be a whole number of at least 0, found 2.5"),
    ({"bootstrap": 1}, "at least 2, found 1"),
    ({"bootstrap": True}, "bootstrap must be a whole number of at least 0, found True"),
    ({"bootstrap": None}, "bootstrap must be a whole number of at least 0, found None"),
    ({"cluster": 3}, "cluster must be the name of a column, found 3"),
    ({"cluster": "sed"}, "no column 'sed'; did you mean 'seed'?"),
    ({"cluster": "n_embd", "resample": "residual"}, "pairs can"),
    ({"cluster": "n_embd", "intervals": "profile"}, "bootstrap can"),
    ({"seed": -1}, "seed must be a whole number of at least 0, found -1"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"resample": "residuals"}, "did you mean 'residual'?"),
    ({"intervals": "profil"}, "intervals 'profil' is not known; did you mean 'profile'?"),
    ({"keep": "flops"}, "keep must be a list of columns"),
    ({"keep": [3]}, "keep must be the name of a column"),
    ({"keep": ["flop"]}, "did you mean 'flops'?"),
    ({"trust_units": 1}, "trust_units must be True or False, found 1"),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS, ids=lambda each: str(each) if isinstance(each, dict) else "")
def test_every_option_of_fit(options: dict[str, Any], said: str) -> None:
    one_line(lambda: fit("chinchilla", planted_runs(), **{"bootstrap": 0, **options}), said)


@pytest.mark.parametrize(
    ("law", "said"),
    [
        ("chinchila", "did you mean 'chinchilla'?"),
        (Chinchilla, "law is the class Chinchilla; Chinchilla() is a law"),
        (None, "law must be a law or the name of one, found None"),
        (Chinchilla(n="tokens"), "n and d are both the column 'tokens'"),
        (Chinchilla(n="parms"), "no column 'parms'"),
    ],
)
def test_what_is_no_law(law: Any, said: str) -> None:
    one_line(lambda: fit(law, planted_runs(), bootstrap=0), said)
    one_line(lambda: rollout(law, planted_runs(), bootstrap=0), said)


def changed(column: str, value: object, row: int = 3) -> pd.DataFrame:
    runs = planted_runs().astype({column: object})
    runs.loc[row, column] = value
    return runs


TABLES: dict[str, tuple[Any, str]] = {
    "none": (None, "a DataFrame or a mapping of columns, found NoneType"),
    "list": ([1, 2], "a DataFrame or a mapping of columns, found list"),
    "path": ("runs.csv", "a DataFrame or a mapping of columns, found str"),
    "series": (planted_runs()["tokens"], "found Series"),
    "ragged": ({"a": [1, 2], "b": [1]}, "not of columns alike in length"),
    "numbers": ({"a": 1.0, "b": 2.0}, "not of columns alike in length"),
    "empty": (pd.DataFrame(), "no column 'n_params_non_embedding'"),
    "no rows": (planted_runs()[:0], "needs at least 6 points, found 0"),
    "two of a name": (planted_runs().assign(copy=1.0).rename(columns={"copy": "tokens"}), "2 columns called 'tokens'"),
    "text": (changed("tokens", "1e6"), "tokens of 000000000003 is '1e6', of type str, not a number"),
    "all text": (planted_runs().astype({"val_loss": str}), "of type str, not a number"),
    "true": (changed("tokens", True), "tokens of 000000000003 is True, of type bool, not a number"),
    "bools": (planted_runs().assign(tokens=True), "of type bool, not a number"),
    "time": (planted_runs().assign(tokens=pd.Timestamp("2020-01-01")), "of type Timestamp, not a number"),
    "complex": (changed("val_loss", 2j), "of type complex, not a number"),
    "missing": (changed("val_loss", None), "val_loss of 000000000003 is None; a law takes logarithms"),
    "infinite": (changed("tokens", np.inf), "tokens of 000000000003 is inf"),
    "negative": (changed("val_loss", -1.0), "val_loss of 000000000003 is -1.0"),
    "cluster": (changed("model.n_embd", None), "n_embd of 000000000003 is missing"),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_is_no_table(name: str) -> None:
    table, said = TABLES[name]
    options = {"cluster": "n_embd"} if name == "cluster" else {}
    one_line(lambda: fit("chinchilla", table, bootstrap=20, **options), said)


def test_a_mapping_of_columns_an_index_that_repeats_and_whole_numbers_are_tables() -> None:
    runs = planted_runs()
    expected = fit("chinchilla", runs, bootstrap=0, where="tokens > 2e5").params
    repeated = runs.set_index(pd.Index([0] * len(runs)))
    whole = runs.astype({"tokens": "int64", "n_params_non_embedding": "Int64"})
    for table in (runs.to_dict(orient="list"), repeated, whole):
        assert fit("chinchilla", table, bootstrap=0, where="tokens > 2e5").params == pytest.approx(expected, rel=1e-3)
    assert rollout("chinchilla", repeated, bootstrap=0).error == rollout("chinchilla", runs, bootstrap=0).error


@pytest.mark.parametrize("level", [95, 1, 0, -0.5, np.nan, "95 %", None, True])
def test_every_level(fitted: Fit, level: Any) -> None:
    for call, place in (
        (lambda: fitted.conf_int(level), "conf_int: level"),
        (lambda: fitted.profile("E", level), "profile: level"),
        (lambda: fitted.predict(planted_runs(), interval=level), "predict: interval"),
        (lambda: rollout("chinchilla", planted_runs(), interval=level), "rollout: interval"),
        (lambda: holdout("chinchilla", planted_runs(), largest=2, interval=level), "holdout: interval"),
    ):
        one_line(call, place)
    if level == 95:
        one_line(lambda: fitted.conf_int(level), "did you mean 0.95?")


def test_what_is_asked_of_a_fit(fitted: Fit) -> None:
    one_line(lambda: fitted.conf_int(method="profil"), "did you mean 'profile'?")
    one_line(lambda: fitted.profile("alfa"), "did you mean 'alpha'?")
    one_line(lambda: fitted.profile(["alpha"]), "the symbol of a parameter")


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, "1e6", None, True])
def test_predictions_at_what_is_no_input(fitted: Fit, value: Any) -> None:
    one_line(lambda: fitted.predict(changed("tokens", value)), "predict: tokens of 000000000003 is")


def test_predictions_at_what_is_no_table(fitted: Fit) -> None:
    runs = planted_runs()
    one_line(lambda: fitted.predict(runs.drop(columns="tokens")), "predict: no column 'tokens'")
    one_line(lambda: fitted.predict(None), "predict: the table must be")
    assert fitted.predict({"n_params_non_embedding": [1e4], "tokens": [1e6]}).shape == (1, 3)
    assert list(fitted.predict(runs.set_index("label")).index) == list(runs["label"])
    assert fitted.predict(runs[:0]).empty


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cuts": 0}, "cuts must be a whole number of at least 1"), ({"cuts": 2.5}, "cuts must be a whole number"),
        ({"cuts": True}, "cuts must be a whole number"), ({"cuts": []}, "cuts must be how many"),
        ({"cuts": "5"}, "cuts must be a whole number"), ({"cuts": [1e9, np.nan]}, "each of cuts must be positive"),
        ({"cuts": ["a"]}, "each of cuts must be a number"), ({"by": "flop"}, "did you mean 'flops'?"),
        ({"bootstrap": -5}, "bootstrap must be a whole number of at least 0"),
    ],
)  # fmt: skip
def test_every_option_of_a_rollout(options: dict[str, Any], said: str) -> None:
    one_line(lambda: rollout("chinchilla", planted_runs(), **options), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one of fraction, below, largest"), ({"fraction": 30}, "fraction must lie between 0 and 1"),
        ({"fraction": "a third"}, "fraction must be a number"), ({"below": -1.0}, "below must be positive"),
        ({"below": "1e9"}, "below must be a number"), ({"largest": 2.5}, "largest must be a whole number"),
        ({"largest": 99}, "largest must lie in 1 .."),
    ],
)  # fmt: skip
def test_every_option_of_a_holdout(options: dict[str, Any], said: str) -> None:
    one_line(lambda: holdout("chinchilla", planted_runs(), bootstrap=0, **options), said)


def test_least_squares_on_the_loss_has_the_same_door() -> None:
    one_line(lambda: fit_on_loss("chinchilla", planted_runs(), bootstrap=2.5), "bootstrap must be a whole number")
    one_line(
        lambda: fit_on_loss("chinchilla", planted_runs(), bootstrap=-1),
        "bootstrap must be a whole number of at least 0",
    )
    one_line(lambda: fit_on_loss("chinchilla", None), "the table must be a DataFrame")


def test_the_mappings_of_a_fit_are_read_only(fitted: Fit) -> None:
    for mapping in (fitted.params, fitted.stderr, fitted.identified, fitted.at_ends):
        for change in (
            lambda m: m.__setitem__("E", 0.0), lambda m: m.pop("E", None), lambda m: m.update(E=0.0),
            lambda m: m.setdefault("Q", 0.0), lambda m: m.clear(), lambda m: m.__ior__({"E": 0.0}),
        ):  # fmt: skip
            with pytest.raises(TypeError, match="read-only"):
                change(mapping)
    assert json.loads(json.dumps(fitted.params)) == dict(fitted.params)


def test_a_fit_can_be_pickled_and_copied(fitted: Fit) -> None:
    told = fitted.to_dict()
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted), copy.copy(fitted)):
        assert other.to_dict() == told
        assert other.summary() == fitted.summary()
        with pytest.raises(TypeError):
            other.params["E"] = 0.0


@pytest.mark.parametrize("law", [pytest.param(law, marks=[pytest.mark.slow] * (law in LARGE)) for law in LAWS])
def test_the_default_interval_is_the_law_s_own(law: str) -> None:
    """That which the coverage of its stated design is promised for; none where no resamples are wanted."""
    from experiments.analysis.designs import simulate

    form = make_law(law)
    design = form.identifying_design()
    runs = simulate(form, design, seed=1)
    assert form.interval == design.interval
    assert fit(law, runs, bootstrap=2).method == design.interval


def test_the_default_interval_is_another_where_the_law_s_own_cannot_be() -> None:
    from experiments.analysis.designs import simulate

    form = make_law("clark")
    runs = simulate(form, form.identifying_design(), seed=1)
    assert form.interval == "profile"
    assert fit("clark", runs, bootstrap=0).method == "bootstrap"
    clusters = runs.assign(group_of=np.arange(len(runs)) // 2)
    assert fit("clark", clusters, bootstrap=2, cluster="group_of").method == "bootstrap"
    assert fit("clark", runs, bootstrap=0, intervals="profile").method == "profile"
