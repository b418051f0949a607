"""What a search varied and over which scales, and what may be said of its best trial."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line describes a search without pandas
    import pandas as pd


@dataclass(frozen=True)
class Searched:
    """The factors of a search by column: `log`, `uniform`, `int` or `choice`. `cells` are the columns of the grid that
    stands beside it: every combination of theirs was searched on its own.
    """

    scales: Mapping[str, str]
    cells: tuple[str, ...] = ()


def search_sentences(runs: "pd.DataFrame", searched: Searched, y: str) -> list[str]:
    """One sentence per search: what became of its trials, the best one with its interval, and why it flatters."""
    cells = [name for name in searched.cells if name in runs.columns]
    if not cells:
        return [_sentence(runs, searched, y, "")]
    groups = runs.groupby(cells if len(cells) > 1 else cells[0], sort=True, dropna=False)
    said = []
    for _, part in groups:
        where = ", ".join(f"{name.rpartition('.')[2]}={part[name].iloc[0]}" for name in cells)
        said.append(_sentence(part, searched, y, f"At {where}: "))
    return said


def _sentence(runs: "pd.DataFrame", searched: Searched, y: str, where: str) -> str:
    import pandas as pd

    trials = runs.groupby("trial")
    states = trials["status"].agg(lambda status: _state(list(status))).value_counts().sort_index()
    became = ", ".join(f"{count} {state}" for state, count in states.items())
    total = f"{where}of {trials.ngroups} trials {became}"
    done = runs[runs["status"].eq("completed") & pd.to_numeric(runs[y], errors="coerce").notna()]
    # A trial counts with all its seeds or not at all: a mean over the lucky ones would win.
    whole = done.groupby("trial")[y].agg(["mean", "std", "count"])
    whole = whole[whole["count"] == trials.size().reindex(whole.index)]
    if whole.empty:
        return f"{total[0].upper()}{total[1:]}; none has completed, so none is best."
    best = whole.loc[whole["mean"].idxmin()]
    number = int(best.name)  # type: ignore[call-overload]
    row = done[done["trial"] == number].iloc[0]
    settings = ", ".join(f"{_leaf(name)}={_value(row[name])}" for name in searched.scales if name in runs.columns)
    text = f"{total[0].upper()}{total[1:]}; trial {number} ({settings}) reached the lowest {y}, {_with_interval(best, row, y)}."
    if len(whole) < 2:
        return text
    second = float(whole["mean"].nsmallest(2).iloc[1])
    return (
        f"{text} As the best of {len(whole)} it is optimistic: part of its lead (the next one is {second:.4f}) is luck, and "
        "only new seeds at these settings give an honest loss."
    )


def _state(status: list[str]) -> str:
    """A trial with several seeds is what its worst run is."""
    ranked = ("diverged", "pruned", "failed")
    return next((state for state in ranked if state in status), "completed" if set(status) == {"completed"} else "open")


def _with_interval(best: "pd.Series[float]", row: "pd.Series[float]", y: str) -> str:
    """With seeds the 95 % t-interval of their mean; with one, the standard error of the evaluation alone."""
    n, mean = int(best["count"]), float(best["mean"])
    if n > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, n - 1)) * float(best["std"]) / math.sqrt(n)
        return f"{mean:.4f} on the mean of {n} seeds (95 % interval {mean - half:.4f} to {mean + half:.4f})"
    error = row.get("val_loss_stderr") if y == "val_loss" else None
    if error is not None and math.isfinite(float(error)):
        return f"{mean:.4f} (± {float(error):.4f} from the evaluation alone; one seed says nothing of the rest)"
    return f"{mean:.4f} (one seed, so without an interval)"


def _leaf(name: str) -> str:
    return name.removesuffix(".kind").rpartition(".")[2]


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
