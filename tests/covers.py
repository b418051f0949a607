"""Chooses which cases of a product of parameters the default suite runs; the others are marked slow, not dropped."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

Axis = Mapping[str, Any] | Sequence[Any]


def cover(*axes: Axis, strength: int = 1) -> list[Any]:
    """The whole product of `axes`, as pytest's parameters; those that add nothing to a cover are slow.

    Every choice of values along `strength` axes is in a case of the cover: 1 is each value somewhere, 2 each pair of
    values. An axis is a mapping from the words of the test's name to its values, or values that are their own words.
    """
    named = [
        list(axis.items()) if isinstance(axis, Mapping) else [(str(value), value) for value in axis] for axis in axes
    ]
    chosen = chosen_of([len(axis) for axis in named], strength)
    return [
        pytest.param(
            *(axis[index][1] for axis, index in zip(named, case, strict=True)),
            id="-".join(axis[index][0] for axis, index in zip(named, case, strict=True)),
            marks=() if case in chosen else pytest.mark.slow,
        )
        for case in itertools.product(*(range(len(axis)) for axis in named))
    ]


def chosen_of(sizes: Sequence[int], strength: int) -> set[tuple[int, ...]]:
    """The cases of a cover, greedily: each next one has as many new choices as any case can have.

    Among equals the one with the least repeated values goes first, so that a diagonal is chosen and not an edge.
    """
    groups = list(itertools.combinations(range(len(sizes)), strength))

    def choices(case: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
        return {(group, tuple(case[axis] for axis in group)) for group in groups}

    left = {case: choices(case) for case in itertools.product(*map(range, sizes))}
    uses, chosen = Counter[tuple[int, int]](), set[tuple[int, ...]]()
    while left:
        best = max(left, key=lambda case: (len(left[case]), -sum(uses[each] for each in enumerate(case))))
        chosen.add(best)
        uses.update(enumerate(best))
        made = choices(best)
        left = {case: missing - made for case, missing in left.items() if missing - made}
    return chosen
