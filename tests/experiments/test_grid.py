"""Sweeps: what they expand to, and how their mistakes are told."""

import pytest

from experiments.analysis.filters import Filter
from experiments.grid import Sweep, expand
from nanogpt.config import UserError


def place(*path: str) -> str:
    return f"s.yaml:{'/'.join(path)}"


def points(whole: bool = False, **sweep: object) -> list[dict[str, object]]:
    return [dict(point.settings) for point in expand(Sweep.model_validate(sweep), place, lambda key: whole)]


def test_grid_is_the_product_in_the_order_written():
    assert points(grid={"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_zip_moves_together_and_multiplies_the_grid():
    assert points(grid={"a": [1, 2]}, zip={"b": [3, 4], "c": [5, 6]}) == [
        {"a": 1, "b": 3, "c": 5},
        {"a": 1, "b": 4, "c": 6},
        {"a": 2, "b": 3, "c": 5},
        {"a": 2, "b": 4, "c": 6},
    ]
    assert len(points(zip=[{"b": [3, 4]}, {"c": [5, 6, 7]}])) == 6


def test_points_are_appended_and_seeds_multiply_everything():
    assert points(grid={"a": [1]}, points=[{"b": 9}], seeds=2) == [
        {"a": 1, "seed": 1},
        {"a": 1, "seed": 2},
        {"b": 9, "seed": 1},
        {"b": 9, "seed": 2},
    ]
    assert points(points=[{"b": 9}]) == [{"b": 9}]
    assert points(seeds=[7]) == [{"seed": 7}]
    assert points() == [{}]


@pytest.mark.parametrize(
    ("axis", "whole", "expected"),
    [
        ({"logspace": {"start": 1e-4, "stop": 1e-1, "num": 4}}, False, [1e-4, 1e-3, 1e-2, 1e-1]),
        ({"logspace": {"start": 262144, "stop": 4194304, "num": 5}}, True, [2**18, 2**19, 2**20, 2**21, 2**22]),
        ({"linspace": {"start": 0, "stop": 1, "num": 5}}, False, [0, 0.25, 0.5, 0.75, 1]),
        ({"range": {"start": 2, "stop": 8, "step": 2}}, True, [2, 4, 6]),
        ({"range": {"start": 0, "stop": 0.3, "step": 0.1}}, False, [0, 0.1, 0.2]),
        ({"logspace": {"start": 1, "stop": 3, "num": 9}}, True, [1, 2, 3]),
    ],
)
def test_ranges(axis, whole, expected):
    assert [point["a"] for point in points(whole, grid={"a": axis})] == expected


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"grid": {"a": []}}, "s.yaml:grid/a: a: no values, so the sweep is empty"),
        ({"grid": {"a": 3}}, "s.yaml:grid/a: a: expected a list of values, or logspace"),
        ({"grid": {"a": [1, 1]}}, "s.yaml:grid/a: the sweep holds a=1 twice"),
        ({"grid": {"a": [1]}, "points": [{"a": 1}]}, "s.yaml:points/0/a: the sweep holds a=1 twice"),
        ({"zip": {"a": [1, 2], "b": [1]}}, "keys that move together need equally many values; a has 2, b has 1"),
        ({"grid": {"a": {"logspac": {}}}}, "expected one of logspace, linspace, range; did you mean 'logspace'?"),
        ({"grid": {"a": {"logspace": {"start": 1}}}}, "logspace: expected start, stop, num; got {'start': 1}"),
        ({"grid": {"a": {"logspace": {"start": 0, "stop": 1, "num": 3}}}}, "start and stop must be above 0"),
        ({"grid": {"a": {"linspace": {"start": 0, "stop": 1, "num": 2.5}}}}, "num must be a whole number"),
        ({"grid": {"a": {"range": {"start": 0, "stop": "x"}}}}, "range.stop: expected a number, got 'x'"),
        ({"grid": {"a": {"range": {"start": 5, "stop": 5}}}}, "a: no values, so the sweep is empty"),
        ({"grid": {"seed": [1]}, "seeds": 2}, "seed is varied elsewhere in the sweep as well"),
        ({"grid": {"a": {"range": {"start": 0, "stop": 1e12}}}}, "does not lead from"),
    ],
)
def test_mistakes_name_the_place(sweep, message):
    with pytest.raises(UserError) as error:
        points(**sweep)
    assert message in str(error.value)
    assert str(error.value).startswith("s.yaml:")


FACTORS = {"model.n_embd": 16, "train.tokens": 1e6, "model.norm": "rmsnorm", "model.bias": False, "a.x": 1, "b.x": 2}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("n_embd >= 16 or tokens < 10", True),
        ("n_embd > 16 and tokens < 1e7", False),
        ("model.n_embd * 2 == 32", True),
        ("8 <= n_embd < 16", False),
        ("norm in ['rmsnorm', 'layernorm'] and not bias", True),
        ("norm not in ('rmsnorm',)", False),
        ("log2(n_embd) == 4 and max(n_embd, 3) % 5 == 1", True),
        ("bias == false", True),
        ("2 ** 3 == 8 and -1 < 0", True),
    ],
)
def test_filters(text, kept):
    assert Filter(text, "s.yaml:9").keeps(FACTORS) is kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_embd >", "is not an expression such as"),
        ("n_layr > 2", "n_layr is no factor"),
        ("n_emb > 2", "did you mean 'n_embd'?"),
        ("x > 1", "x is ambiguous: a.x, b.x"),
        ("__import__('os').system('x')", "is not allowed"),
        ("[y for y in (1, 2)]", "is not allowed"),
        ("().__class__", "is no factor"),
        ("open('x')", "is not allowed"),
        ("(lambda: 1)()", "is not allowed"),
        ("9 ** 9 ** 9", "cannot be worked out: power"),
        ("n_embd / 0 > 1", "cannot be worked out: division by zero"),
        ("n_embd > norm", "cannot be worked out"),
        ("n_embd is 3", "write == instead"),
    ],
)
def test_filters_refuse_what_they_cannot_judge(text, message):
    with pytest.raises(UserError, match=r"^s.yaml:9: ") as error:
        Filter(text, "s.yaml:9").keeps(FACTORS)
    assert message in str(error.value)
