"""Row filters: what they select from a table, and that mistakes are a person's, named with their place."""

import pandas as pd
import pytest

from experiments.analysis.where import select
from nanogpt.config import UserError

TABLE = pd.DataFrame({
    "model.n_layer": [1, 2, 4, 8], "tokens": [10.0, 20.0, 30.0, 40.0],
    "status": ["completed", "failed", "completed", "completed"],
}, index=[3, 5, 7, 9])  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("n_layer >= 2", [5, 7, 9]),
        ("model.n_layer >= 2 and tokens < 40", [5, 7]),
        ("1 < n_layer <= 4", [5, 7]),
        ("n_layer not in (1, 8)", [5, 7]),
        ("not (n_layer == 2) or status == 'failed'", [3, 5, 7, 9]),
        ("log2(n_layer) * 10 == tokens - 10", [3, 5, 7, 9]),
        ("tokens > 1e9", []),
    ],
)
def test_selects_and_keeps_the_index(text: str, kept: list[int]) -> None:
    mask = select(TABLE, text)
    assert mask.dtype == bool
    assert list(TABLE.index[mask]) == kept


def test_an_empty_table_selects_nothing() -> None:
    assert select(TABLE.head(0), "tokens > 1").tolist() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("n_layr > 1", "did you mean 'n_layer'"), ("tokens >", "is not an expression"), ("open('x')", "is not allowed")],
)
def test_mistakes_name_the_place(text: str, message: str) -> None:
    with pytest.raises(UserError, match="study: fit.where: .*" + message):
        select(TABLE, text, "study: fit.where")
