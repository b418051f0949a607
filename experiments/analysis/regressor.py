"""A law as a scikit-learn regressor: fit, predict, score, and so cross-validation, grids and pipelines.

Needs the extra `sklearn`. X holds the law's numeric inputs in the order of `Law.columns` (N, D for most), or is a
DataFrame that names them; everything is positive and enters as logarithms, so do not put a scaler in front.
`check_estimator` passes whole with `columns` and `logs`. Without them its tables, of 1 to 10 features with zeros and
negative values, are refused for one of `REFUSALS`; what does not need a fit to such a table passes.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd

from experiments.analysis.arguments import law_of, switch, whole
from experiments.analysis.fit import fit
from experiments.analysis.fitted import Fit
from experiments.analysis.laws import Array, Law
from nanogpt.config import UserError

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:  # an extra
    raise ImportError("ScalingLawRegressor needs scikit-learn: pip install 'nanogpt-scaling[sklearn]'") from error

REFUSALS = ("feature(s), but the law", "Negative values in data")  # why checks fail on a law as it is, and no others


class ScalingLawRegressor(RegressorMixin, BaseEstimator):
    """A law fitted to (X, y), y the losses. `loss`, `delta`, `bootstrap`, `seed`: as for `fit`.

    `columns`: which columns of an array X are the law's inputs, where it has more. `logs`: X and y are natural
    logarithms, as behind a transformer that takes them; `predict` then gives logarithms, too.
    After `fit`: `fit_` (the `Fit`, with intervals, notes and figures), `params_` (symbol to value), `law_`.
    `score` is R^2, as everywhere in scikit-learn. Laws that read labels (shared_exponent) need `fit` itself.
    """

    def __init__(
        self,
        law: str = "chinchilla",
        loss: str = "huber",
        delta: float = 1e-3,
        bootstrap: int = 0,
        seed: int = 0,
        columns: Sequence[int] | None = None,
        logs: bool = False,
    ) -> None:
        self.law = law
        self.loss = loss
        self.delta = delta
        self.bootstrap = bootstrap
        self.seed = seed
        self.columns = columns
        self.logs = logs

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the law to X (rows, inputs) and y (rows,). ValueError, as everywhere in scikit-learn, for what `fit`
        refuses: too few rows, values without a logarithm, one distinct value of an input."""
        law = self._law()
        values, losses = validate_data(self, self._named(X, law), y, y_numeric=True, dtype=np.float64)
        table = self._table(law, values)
        if len(table) <= len(law.parameters):
            raise UserError(f"ScalingLawRegressor: n_samples = {len(table)}: {law.name} has {len(law.parameters)} "
                            "parameters and needs one sample more")  # fmt: skip
        self._check_positive(losses, "y")
        table = table.assign(val_loss=np.exp(losses) if self.logs else losses)
        options: dict[str, Any] = {"loss": self.loss, "delta": self.delta, "bootstrap": self.bootstrap}
        self.fit_: Fit = fit(law, table, seed=self.seed, **options)
        self.law_, self.params_ = law, dict(self.fit_.params)
        return self

    def predict(self, X: Any) -> Array:
        """The loss (its logarithm with `logs`) at each row of X, (rows,)."""
        check_is_fitted(self)
        values = validate_data(self, self._named(X, self.law_), reset=False, dtype=np.float64)
        loss = self.law_.predict(self.params_, self._table(self.law_, values))
        return np.log(loss) if self.logs else loss

    @staticmethod
    def _named(X: Any, law: Law) -> Any:
        """The law's columns of a DataFrame that has them by name."""
        return X[list(law.columns)] if isinstance(X, pd.DataFrame) and set(law.columns) <= set(X.columns) else X

    def _table(self, law: Law, values: Array) -> pd.DataFrame:
        """The law's inputs by name; UserError for another number of them, and for values without a logarithm."""
        names = law.columns
        if self.columns is not None:
            values = self._chosen(values)
        if values.shape[1] != len(names):
            raise UserError(f"ScalingLawRegressor: X has {values.shape[1]} feature(s), but the law {law.name} takes "
                            f"{len(names)}: {', '.join(names)}")  # fmt: skip
        self._check_positive(values, "X")
        return pd.DataFrame(np.exp(values) if self.logs else values, columns=list(names))

    def _chosen(self, values: Array) -> Array:
        """The columns asked for; all of them where X is too narrow to hold them, for `_table` to say so."""
        if isinstance(self.columns, str) or not isinstance(self.columns, Sequence):
            raise UserError(f"ScalingLawRegressor: columns must be a list of places, found {self.columns!r}")
        places = [whole(place, "ScalingLawRegressor", "each of columns") for place in self.columns]
        return values[:, places] if max(places, default=0) < values.shape[1] else values

    def _check_positive(self, values: Array, name: str) -> None:
        if not self.logs and not (values > 0).all():
            raise UserError(f"Negative values in data passed to ScalingLawRegressor, or zeros, in {name}; a law takes "
                            "logarithms")  # fmt: skip

    def _law(self) -> Law:
        switch(self.logs, "ScalingLawRegressor", "logs")
        law = law_of(self.law, "ScalingLawRegressor")
        if law.label_columns:
            raise UserError(f"ScalingLawRegressor: {law.name} reads names ({', '.join(law.label_columns)}); use `fit`")
        return law

    def __sklearn_tags__(self) -> Any:
        """Positive inputs, one output; random tables, as scikit-learn's checks use, score badly."""
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = not self.logs
        tags.regressor_tags.poor_score = True
        return tags
