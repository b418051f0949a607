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
    stands beside it: every combination of theirs was searched on its own. `first_rung` is the share of the horizon at
    which a pruner judges first, `planned_flops` what training every trial to its end would take.
    """

    scales: Mapping[str, str]
    cells: tuple[str, ...] = ()
    first_rung: float | None = None
    planned_flops: float | None = None


def search_sentences(runs: "pd.DataFrame", searched: Searched, y: str) -> list[str]:
    """One sentence per search: what became of its trials, the best one with its interval, and why it flatters.

    Then what ending trials early has saved.
    """
    cells = [name for name in searched.cells if name in runs.columns]
    said = []
    for _, part in (
        runs.groupby(cells if len(cells) > 1 else cells[0], sort=True, dropna=False) if cells else [(0, runs)]
    ):
        where = ", ".join(f"{name.rpartition('.')[2]}={part[name].iloc[0]}" for name in cells)
        said.append(_sentence(part, searched, y, f"At {where}, of" if where else "Of"))
    return [*said, *_spent(runs, searched)]


def _spent(runs: "pd.DataFrame", searched: Searched) -> list[str]:
    """The training compute of the finished trials, beside that of training all of them to their end."""
    if not searched.planned_flops or runs["flops"].isna().any():
        return []
    share = float(runs["flops"].sum()) / searched.planned_flops
    return [f"Ending trials early, the search spent {share:.0%} of the compute that every trial to its end would take."]


def _sentence(runs: "pd.DataFrame", searched: Searched, y: str, of: str) -> str:
    import pandas as pd

    trials = runs.groupby("trial")
    states = trials["status"].agg(lambda status: _state(list(status))).value_counts().sort_index()
    start = f"{of} {trials.ngroups} trials {', '.join(f'{count} {state}' for state, count in states.items())}"
    done = runs[runs["status"].eq("completed") & pd.to_numeric(runs[y], errors="coerce").notna()]
    # A trial counts with all its seeds or not at all: a mean over the lucky ones would win.
    whole = done.groupby("trial")[y].agg(["mean", "std", "count"])
    whole = whole[whole["count"] == trials.size().reindex(whole.index)]
    if whole.empty:
        return f"{start}; none has completed, so none is best."
    at = int(whole["mean"].to_numpy().argmin())
    best, number = whole.iloc[at], int(whole.index[at])
    row = done[done["trial"] == number].iloc[0]
    settings = ", ".join(f"{_leaf(name)}={_value(row[name])}" for name in searched.scales if name in runs.columns)
    text = f"{start}; trial {number} ({settings}) reached the lowest {y}, {_with_interval(best, row, y)}."
    if trials.ngroups < 2:
        return text
    second = float(whole["mean"].nsmallest(2).iloc[-1])
    beside = f" (the next one is {second:.4f})" if len(whole) > 1 else ""
    return (
        f"{text} As the best of {trials.ngroups} it is optimistic: part of its lead{beside} is luck, and only new "
        "seeds at these settings give an honest loss."
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
