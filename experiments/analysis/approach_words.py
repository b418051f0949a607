"""The three approaches in words and tables for people: what each says, how far they part, and what was refused."""

import math
from typing import Any

import pandas as pd

from experiments.analysis.approaches import TITLES, Approaches
from experiments.analysis.claims import Claim
from experiments.analysis.envelope import Envelope
from experiments.analysis.isoflop import IsoFlops

SPENT = {"exact": "as spent", "6ND": "6 N D"}


def approach_claims(found: Approaches) -> tuple[Claim, ...]:
    """What the approaches say under the study's own accounting, and how far approaches and accountings part."""
    own = [item for item in found.items if item.accounting == found.main]
    table = found.table().iloc[: len(own)]
    known = table[table["refused"] == ""]
    counted = f"N counts {found.main.size_words}, FLOPs {SPENT[found.main.compute]}"
    if not len(known):
        return (Claim(f"No approach finds compute-optimal sizes in these runs ({counted}).", undecided=True),)
    each = "; ".join(f"{_bracketed(row, 'a', '.3f')} by approach {row['approach']}" for row in _rows(known))
    sizes = f"N = {_range(known['n'])} and {_range(known['tokens_per_param'])} tokens per parameter"
    first = f"Compute-optimal N grows as C^a with a = {each} ({counted}; 95 % intervals in brackets). "
    claims = [Claim(f"{first}At C = {found.at:.3g} FLOPs the best are {sizes}.")]
    return (*claims, *_parting(found.table(), known))


def _parting(table: pd.DataFrame, known: pd.DataFrame) -> list[Claim]:
    """How far the exponents part between approaches, and between accountings within one approach."""
    parts = []
    if len(known) > 1:
        rows = sorted(_rows(known), key=lambda row: float(row["a"]))
        low, high = rows[0], rows[-1]
        apart = "their intervals do not overlap" if low["a_upper"] < high["a_lower"] else "their intervals overlap"
        ends = f"{low['approach']} to {high['approach']}"
        parts.append(f"the approach moves a by up to {high['a'] - low['a']:.3f} ({ends}; {apart})")
    counted = table[table["refused"] == ""].groupby("approach", sort=False)["a"]
    if len(spread := (counted.max() - counted.min())[counted.size() > 1]):
        name = TITLES["surface"] if TITLES["surface"] in spread.index else str(spread.idxmax())
        parts.append(f"how N and FLOPs are counted moves it by up to {spread[name]:.3f} (approach {name})")
    text = "; ".join(parts)
    return [Claim(f"{text[0].upper()}{text[1:]}.")] if parts else []


def approach_table(found: Approaches) -> pd.DataFrame:
    """The comparison as text: one row per approach and accounting."""
    rows = []
    for row in _rows(found.table()):
        refused = row["refused"] != ""
        rows.append({
            "approach": row["approach"], "N counts": row["n_counts"], "FLOPs": SPENT[row["compute"]],
            "a (N ~ C^a)": "refused" if refused else _bracketed(row, "a", ".3f"),
            "b (D ~ C^b)": "" if refused else _bracketed(row, "b", ".3f"),
            "best N": "" if refused else _bracketed(row, "n", ".3g"),
            "best D": "" if refused else _bracketed(row, "d", ".3g"),
            "tokens per parameter": "" if refused else _bracketed(row, "tokens_per_param", ".3g"),
            "from": row["refused"] or row["budgets"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def approach_notes(found: Approaches) -> tuple[str, ...]:
    """How the numbers of the table came about."""
    slices = (item.result for item in found.items if isinstance(item.result, Envelope | IsoFlops))
    noise = next((result.noise.words for result in slices), None)
    notes = [
        f"Best N, best D and tokens per parameter are for C = {found.at:.3g} FLOPs as the row counts them; an optimum "
        "at the edge of a budget's sizes is refused and enters no line.",
        "95 % intervals in brackets. Approaches 1 and 2: disturbed tables"
        + (f" (noise of a loss {noise})" if noise else "")
        + ", widened where optima scatter more than that noise explains; approach 3: the bootstrap of its fit.",
    ]
    if found.main.compute == "exact":
        notes.append("With FLOPs as spent a + b is not 1: FLOPs per token do not grow in proportion to N.")
    return tuple(notes)


def approach_text(found: Approaches) -> str:
    """The table and its notes as a terminal shows them; reasons for refusals below it."""
    table = approach_table(found).drop(columns="from")
    widths = {name: max(len(name), *(len(cell) for cell in table[name])) for name in table.columns}
    lines = ["  ".join(name.ljust(widths[name]) for name in table.columns).rstrip()]
    lines += ["  ".join(str(row[name]).ljust(widths[name]) for name in table.columns).rstrip() for row in _rows(table)]
    reasons = dict.fromkeys(item.refused for item in found.items if item.refused and item.accounting == found.main)
    return "\n".join(
        [*lines, *(f"  refused: {reason}" for reason in reasons), *map("  {}".format, approach_notes(found))]
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict(orient="records")]


def _bracketed(row: dict[str, Any], name: str, form: str) -> str:
    text = f"{row[name]:{form}}"
    low, high = row[f"{name}_lower"], row[f"{name}_upper"]
    return text if math.isnan(low) else f"{text} [{low:{form}}, {high:{form}}]"


def _range(values: "pd.Series[float]") -> str:
    """`5.1e8 to 5.3e8`, or the one number."""
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"
