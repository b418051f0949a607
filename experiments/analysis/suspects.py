"""What makes a table suspect: units mixed within a column, rows that stand twice, points of one run taken for several.

Sizes in millions beside plain ones, losses in bits beside nats: a table put together from two sources fits no law, and
nothing in the numbers of the fit says why. Both checks ask for two things at once, a jump and the very factor that a
change of units makes, so that a real gap is not taken for one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.analysis.laws import Array
from nanogpt.config import UserError

JUMP = 200.0  # neighbouring values of one column this many times apart are two groups
WIDE = 1e3  # and this many times apart, a gap that nobody plans
FEWEST = 4  # distinct values of a column from which a gap says something
SURE = 3  # losses in another unit from which it is no outlier
FACTORS = (1e3, 1e6, 1e9, 1e12)
BITS = float(np.log(1.0 / np.log(2.0)))  # what a loss in bits is above one in nats, as a logarithm
NEAR_BITS = 0.06
EXPLAINED = 2.5  # how many times smaller the misfit has to become when the units are told apart
ROUNDS = 30
RUN_NAME = re.compile(
    r"^(run|curve|trial|job|experiment|id)$|[_\W](run|id|uid|uuid|hash)$|(?-i:[a-z]Id$)|^run[_\W]?(name|no|number|key)$",
    re.I,
)
LABEL_NAME = re.compile(r"^(model|label|name|series)$|[_\W](name|label|key)$", re.I)


@dataclass(frozen=True)
class Suspect:
    """What seems to be mixed, in words that name the rows; `sure` where it can hardly be anything else."""

    words: str
    sure: bool = True


def checked_units(
    rows: pd.DataFrame, inputs: Sequence[str], y: str, place: str, trust: bool, flag: str
) -> tuple[str, ...]:
    """What to say of columns whose units seem to be mixed; UserError where they surely are, unless `trust`.

    The index of `rows` names them; `flag` is how the person at this door says that the table is right as it is.
    """
    found = mixed_units(rows, inputs, y)
    sure = next((each for each in found if each.sure), None)
    if sure is not None and not trust:
        raise UserError(f"{place}: {sure.words}; mend the table, or {flag} takes it as it is")
    return tuple(each.words for each in found)


def repeated_rows(used: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """A sentence where rows are the same in all `columns`."""
    again = used["id"][used.duplicated(list(columns))]
    if not len(again):
        return []
    many = len(again) > 1
    rows = f"{len(again)} rows repeat another exactly" if many else "1 row repeats another exactly"
    return [f"{rows} ({'the first: ' if many else ''}{again.iloc[0]}) and count{'s' * (not many)} twice"]


def shared_ids(used: pd.DataFrame, ids: str, cluster: str | None, remedy: str = 'cluster="id"') -> list[str]:
    """A sentence where rows share a name in column `ids`, as points of one run do, that are not drawn together."""
    shared = used[ids].duplicated(keep=False) & used[ids].notna()
    if not shared.any() or _drawn_whole(used, ids, cluster):
        return []
    runs = used.loc[shared, ids].nunique()
    share = f"{int(shared.sum())} points share {runs} id{'s' * (runs != 1)}"
    return [f"{share}: points of one run are not independent, and "
            f"the intervals are too narrow; {remedy} draws runs whole"]  # fmt: skip


def likely_curves(used: pd.DataFrame, columns: Sequence[str], cluster: str | None) -> tuple[list[str], list[str]]:
    """A sentence where a column names training curves that are not drawn whole: sure where it is called a run or an
    id, else (a model may have been trained once per D) only possible."""
    found = [name for name in columns if _is_label(name, used[name]) and _names_curves(used, name)]
    if not found or any(_drawn_whole(used, name, cluster) for name in found):
        return [], []
    sure = [name for name in found if RUN_NAME.search(name)]
    counts = {name: int(used[name].nunique()) for name in sure or found}
    column = max(counts, key=counts.__getitem__)
    points, runs = int(used[column].duplicated(keep=False).sum()), counts[column]
    share = f"{points} points share {runs} values of {column}, at one N each and growing D"
    remedy = f"--cluster {column if ' ' not in column else repr(column)} draws runs whole"
    if sure:
        return [f"{share}: points of one run are not independent, and the intervals are too narrow; {remedy}"], []
    return [], [f"{share}: if they are points of one training curve each, they are not independent, and the intervals "
                f"are too narrow; {remedy}"]  # fmt: skip


def _is_label(name: str, values: "pd.Series[float] | pd.Series[str]") -> bool:
    """Whether a column names things: text, or numbers under the name of a label. n_layer is none."""
    return not pd.api.types.is_numeric_dtype(values) or bool(RUN_NAME.search(name) or LABEL_NAME.search(name))


def _names_curves(used: pd.DataFrame, name: str) -> bool:
    """Whether the rows of every value that repeats have one N and a D each, as points of a training curve."""
    groups = used[used[name].notna() & used[name].duplicated(keep=False)].groupby(name)
    several = groups["N"].nunique()
    return len(several) > 1 and bool((several == 1).all() and (groups["D"].nunique() == groups.size()).all())


def _drawn_whole(used: pd.DataFrame, name: str, cluster: str | None) -> bool:
    return cluster == name or (cluster is not None and bool((used.groupby(name)[cluster].nunique() == 1).all()))


def mixed_units(rows: pd.DataFrame, inputs: Sequence[str], y: str) -> list[Suspect]:
    """The columns whose units seem to be mixed; the index of `rows` names them: lines of a file, or ids."""
    found = [_mixed_scale(rows[name], name) for name in inputs]
    return [each for each in (*found, _bits_and_nats(rows, inputs, y)) if each is not None]


def _mixed_scale(values: "pd.Series[float]", name: str) -> Suspect | None:
    """A gap that a thousand, million, billion or trillion would close, such that both sides cover the same range; and
    any other of more than three decades, which is no proof."""
    ordered = np.sort(values.unique())
    if len(ordered) < FEWEST:
        return None
    steps = ordered[1:] / ordered[:-1]
    cut = int(np.argmax(steps))
    low, high = ordered[: cut + 1], ordered[cut + 1 :]
    if steps[cut] < JUMP:
        return None
    few = values[values <= low[-1]] if len(low) <= len(high) else values[values >= high[0]]
    gap = f"{name} jumps from {low[-1]:.6g} to {high[0]:.6g} with nothing between"
    for factor in FACTORS:
        # Scaled up, the low group has to lie within a factor of three of the range of the high one, or share half of
        # the range of both with it.
        if _within(low * factor, high) or _shared(low * factor, high) >= 0.5:
            return Suspect(f"{gap}, as if units were mixed (a factor of {factor:g}); look at {_lines(few.index)}")
    if steps[cut] > WIDE:
        # Small models in millions beside large ones in units: scaled up, they lie below the others, as they should.
        return Suspect(f"{gap}, a factor of {steps[cut]:.2g}: are its units mixed? look at {_lines(few.index)}", False)
    return None


def _within(low: Array, high: Array) -> bool:
    return bool(low[0] > high[0] / 3 and low[-1] < high[-1] * 3)


def _shared(low: Array, high: Array) -> float:
    """The share, in logarithms, of the range of both groups that both cover."""
    both = np.log(max(low[-1], high[-1]) / min(low[0], high[0]))
    return float(np.log(min(low[-1], high[-1]) / max(low[0], high[0])) / both) if both > 0 else 0.0


def _bits_and_nats(rows: pd.DataFrame, inputs: Sequence[str], y: str) -> Suspect | None:
    """Two parallel surfaces over the inputs, ln(1 / ln 2) apart."""
    if len(rows) < FEWEST:
        return None
    basis = _quadratic(np.log(rows[list(inputs)].to_numpy(dtype=float)))
    ln_y = np.log(rows[y].to_numpy(dtype=float))
    if len(ln_y) < basis.shape[1] + 3:
        return None
    single = _misfit(basis, ln_y)[0]
    best = min((_two_groups(basis, ln_y, start) for start in _first_guesses(basis, ln_y)), key=lambda found: found[0])
    misfit, step, above = best
    count = int(above.sum())
    if not 0 < count < len(ln_y) or misfit * EXPLAINED > single or abs(step - BITS) > NEAR_BITS:
        return None
    few = above if count <= len(ln_y) / 2 else ~above
    unit = "bits" if count <= len(ln_y) / 2 else "nats"
    words = (f"{y} looks like bits beside nats: {int(few.sum())} of {len(ln_y)} losses lie a factor of "
             f"{np.exp(step):.3f} {'above' if unit == 'bits' else 'below'} the others (1 nat is 1.443 bits); look at "
             f"{_lines(rows.index[few])}")  # fmt: skip
    return Suspect(words, sure=int(few.sum()) >= SURE)


def _quadratic(x: Array) -> Array:
    """1, x and, where the column has three values, its square: enough to follow a law over a table's range."""
    x = x - x.mean(axis=0)
    columns = [np.ones(len(x))]
    for values in x.T:
        distinct = len(np.unique(values))
        columns += [values**power for power in (1, 2) if distinct > power]
    return np.stack(columns, axis=1)


def _first_guesses(basis: Array, ln_y: Array) -> list["np.typing.NDArray[np.bool_]"]:
    """Above the plain fit; well above it; and every run but those well below it."""
    residual = ln_y - basis @ np.linalg.lstsq(basis, ln_y)[0]
    middle = np.median(residual)
    return [residual > 0, residual > middle + BITS / 2, residual > middle - BITS / 2]


def _two_groups(
    basis: Array, ln_y: Array, above: "np.typing.NDArray[np.bool_]"
) -> tuple[float, float, "np.typing.NDArray[np.bool_]"]:
    """Misfit, distance and members of the upper of two parallel surfaces, by turns fitted and assigned."""
    misfit, step = np.inf, 0.0
    for _ in range(ROUNDS):
        misfit, weights = _misfit(np.column_stack([basis, above]), ln_y)
        step = float(weights[-1])
        assigned = ln_y - basis @ weights[:-1] > step / 2
        if (assigned == above).all() or not assigned.any() or assigned.all():
            break
        above = assigned
    return misfit, step, above


def _misfit(basis: Array, ln_y: Array) -> tuple[float, Array]:
    weights = np.linalg.lstsq(basis, ln_y)[0]
    return float(np.sqrt(np.mean((ln_y - basis @ weights) ** 2))), np.asarray(weights, dtype=float)


def _lines(index: "pd.Index[int] | pd.Index[str]", most: int = 6) -> str:
    """The rows by name; a number is a line of a file."""
    named = ", ".join(str(line) for line in index[:most]) + (" ..." if len(index) > most else "")
    return f"line{'s' * (len(index) != 1)} {named}" if pd.api.types.is_integer_dtype(index) else named
