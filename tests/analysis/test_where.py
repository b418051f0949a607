"""Row filters: what they select, and that nothing but comparisons and arithmetic gets through."""

import pandas as pd
import pytest

from experiments.analysis.where import parse_where, select
from nanogpt.config import UserError

TABLE = pd.DataFrame({
    "model.n_layer": [1, 2, 4, 8], "tokens": [10.0, 20.0, 30.0, 40.0],
    "status": ["completed", "failed", "completed", "completed"],
})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("n_layer >= 2", [1, 2, 3]),
        ("model.n_layer >= 2 and tokens < 40", [1, 2]),
        ("not (n_layer == 2) or status == 'failed'", [0, 1, 2, 3]),
        ("1 < n_layer <= 4", [1, 2]),
        ("n_layer in [1, 8]", [0, 3]),
        ("n_layer not in (1, 8)", [1, 2]),
        ("tokens / n_layer > 9", [0, 1]),
        ("tokens * 2 - 10 >= 2 ** 5 + 18", [2, 3]),
        ("-n_layer < -3", [2, 3]),
    ],
)
def test_selects(text: str, kept: list[int]) -> None:
    assert list(TABLE.index[select(TABLE, text)]) == kept


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "tokens.__class__()",
        "[x for x in tokens]",
        "lambda: 1",
        "tokens[0]",
        "a = 1",
        "",
        "tokens >",
    ],
)
def test_refuses_to_parse(text: str) -> None:
    with pytest.raises(UserError):
        parse_where(text)


@pytest.mark.parametrize(("text", "message"), [("n_layr > 1", "did you mean"), ("tokens + 1", "not true or false")])
def test_refuses_on_the_table(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(TABLE, text)
