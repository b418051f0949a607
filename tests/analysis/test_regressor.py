"""The scikit-learn door: every check of an estimator, what it refuses, and the same numbers as `fit`.

Slow part, the checks on another law: about 3 s.
"""

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is an extra: pip install 'nanogpt-scaling[sklearn]'")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from experiments.analysis.fit import fit
from experiments.analysis.regressor import REFUSALS, ScalingLawRegressor
from nanogpt.config import UserError
from tests.analysis.tables import planted_runs

NAMES = ["n_params_non_embedding", "tokens"]


@pytest.mark.parametrize(
    ("law", "columns"), [("chinchilla", (0, 1)), pytest.param("power_law", (0,), marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore")
def test_every_check_passes_where_tables_are_logarithms(law: str, columns: tuple[int, ...]) -> None:
    results = check_estimator(ScalingLawRegressor(law, columns=columns, logs=True), on_fail=None, on_skip=None)
    assert [each["check_name"] for each in results if each["status"] == "failed"] == []
    assert sum(each["status"] == "passed" for each in results) > 40


@pytest.mark.filterwarnings("ignore")
def test_a_law_as_it_is_fails_checks_for_the_stated_reasons_only() -> None:
    results = check_estimator(ScalingLawRegressor(), on_fail=None, on_skip=None)
    failed = {each["check_name"]: str(each["exception"]) for each in results if each["status"] == "failed"}
    strange = {name: said for name, said in failed.items() if not any(reason in said for reason in REFUSALS)}
    assert not strange
    assert sum(each["status"] == "passed" for each in results) > 15


def test_it_is_fit_by_another_name() -> None:
    runs = planted_runs(noise=0.01)
    model = ScalingLawRegressor().fit(runs[NAMES], runs["val_loss"])
    direct = fit("chinchilla", runs, bootstrap=0)
    assert model.params_ == direct.params
    np.testing.assert_allclose(model.predict(runs[NAMES]), direct.points["predicted"], rtol=1e-12)
    np.testing.assert_array_equal(model.predict(runs[NAMES[::-1]]), model.predict(runs[NAMES]))
    assert model.score(runs[NAMES], runs["val_loss"]) > 0.98
    logs = ScalingLawRegressor(logs=True).fit(np.log(runs[NAMES].to_numpy()), np.log(runs["val_loss"]))
    np.testing.assert_allclose(np.exp(logs.predict(np.log(runs[NAMES].to_numpy()))), direct.points["predicted"])


def test_it_works_in_searches_and_cross_validation() -> None:
    runs = planted_runs(noise=0.001, seeds=2).sample(frac=1, random_state=0)
    x, y = runs[NAMES], runs["val_loss"]
    assert cross_val_score(ScalingLawRegressor(), x, y, cv=4).min() > 0.95
    found = GridSearchCV(ScalingLawRegressor(), {"law": ["gadre", "chinchilla"]}, cv=4).fit(x, y)
    assert found.best_params_ == {"law": "chinchilla"}
    assert clone(found.best_estimator_).get_params()["law"] == "chinchilla"


def test_it_refuses_in_one_line() -> None:
    runs = planted_runs()
    with pytest.raises(UserError, match="X has 1 feature"):
        ScalingLawRegressor().fit(runs[["tokens"]], runs["val_loss"])
    with pytest.raises(UserError, match="reads names"):
        ScalingLawRegressor("shared_exponent").fit(runs[NAMES], runs["val_loss"])
    with pytest.raises(ValueError, match="did you mean 'chinchilla'"):
        ScalingLawRegressor("chinchila").fit(runs[NAMES], runs["val_loss"])
    with pytest.raises(UserError, match="in y"):
        ScalingLawRegressor().fit(runs[NAMES], -runs["val_loss"])
    model = ScalingLawRegressor().fit(runs[NAMES], runs["val_loss"])
    with pytest.raises(UserError, match="in X"):
        model.predict(pd.DataFrame({NAMES[0]: [0.0], NAMES[1]: [1e6]}))
