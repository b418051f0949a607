"""The cases that the default suite takes of a product have every choice in them; the rest is slow and none is lost."""

import itertools

import pytest

from tests.covers import chosen_of, cover


@pytest.mark.parametrize(("strength", "cases"), [(1, 6), (2, 24), (3, 48)])
def test_every_choice_along_as_many_axes_is_in_a_case(strength: int, cases: int) -> None:
    sizes = (4, 6, 2)
    chosen = chosen_of(sizes, strength)
    assert len(chosen) == cases
    for axes in itertools.combinations(range(3), strength):
        every = set(itertools.product(*(range(sizes[axis]) for axis in axes)))
        assert {tuple(case[axis] for axis in axes) for case in chosen} == every


def test_the_rest_is_slow_and_none_is_lost() -> None:
    found = cover({"a": 1, "b": 2}, ["x", "y"])
    assert [(each.id, each.values, bool(each.marks)) for each in found] == [
        ("a-x", (1, "x"), False), ("a-y", (1, "y"), True), ("b-x", (2, "x"), True), ("b-y", (2, "y"), False)
    ]  # fmt: skip
