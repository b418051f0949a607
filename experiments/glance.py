"""A study at work in a few words, as a line or as a notebook's table: what the handle of `run_grid` shows of itself."""

from html import escape
from pathlib import Path

from experiments.progress import Snapshot, duration, running_text, summary_text

SHOWN_RUNS = 8  # of those at work; a cluster may have hundreds
_CELL = "text-align: left; padding: 0 1em 0 0"


def line(name: str, stage: str, seen: Snapshot | str) -> str:
    """`<StudyRun depth, working: 1 of 3 finished, about 12.0 s left: 1 running, 1 to go>`. `seen` as text is why
    nothing can be seen."""
    return f"<StudyRun {name}, {stage}: {seen if isinstance(seen, str) else summary_text(seen)}>"


def html(name: str, stage: str, seen: Snapshot | str, folder: Path) -> str:
    """The same with a bar, a row per state and a line per run at work."""
    head = f"<b>{escape(name)}</b>, {stage}"
    if isinstance(seen, str):
        return f"<div>{head}: {escape(seen)}</div>"
    left = f", about {duration(seen.seconds_left)} left" if seen.seconds_left else ""
    bar = f'<progress max="{seen.flops or 1:g}" value="{seen.flops_done:g}"></progress>'
    told = f"{seen.finished} of {seen.total} finished{left}"
    lines = [running_text(run) for run in seen.running[:SHOWN_RUNS]]
    if len(seen.running) > SHOWN_RUNS:
        lines.append(f"... and {len(seen.running) - SHOWN_RUNS} more")
    at_work = "".join(f"<br><code>{escape(text)}</code>" for text in lines)
    return f"<div>{head}: {told}<br>{bar}{_counts(seen)}{at_work}<small>{escape(str(folder))}</small></div>"


def _counts(seen: Snapshot) -> str:
    counts = {**dict(sorted(seen.states.items())), "to be proposed": seen.to_propose}
    rows = [(state, count) for state, count in counts.items() if count]
    body = "".join(f'<tr><td style="{_CELL}">{state}</td><td>{count}</td></tr>' for state, count in rows)
    return f"<table><tr><th style='{_CELL}'>state</th><th>runs</th></tr>{body}</table>"
