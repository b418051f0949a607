"""loss.png: the losses of one run against the tokens it saw, drawn from its history."""

from pathlib import Path
from typing import Any

from nanogpt.record import read_history, read_record, replacing


def draw_loss(folder: Path) -> Path | None:
    """Draw `loss.png` beside a published record; returns its path, or None when the history has nothing to draw."""
    from matplotlib.figure import Figure

    history = read_history(folder / "history.jsonl")
    record = read_record(folder / "metrics.json")
    if not any("train_loss" in line for line in history):
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*_series(history, "train_loss"), color="#7a9cc6", linewidth=1, label="training (mean between log lines)")
    tokens, losses = _series(history, "val_loss")
    axes.plot(tokens, losses, "o-", color="#c4452d", markersize=4, linewidth=1.4, label="validation (fixed windows)")
    if record.val_entropy is not None:
        label = f"entropy of the source, {record.val_entropy:.3f}"
        axes.axhline(record.val_entropy, color="0.4", linestyle=":", label=label)
    if record.best_step is not None and record.best_val_loss is not None:
        best = record.tokens / record.steps * record.best_step
        axes.plot([best], [record.best_val_loss], "*", color="black", markersize=11, zorder=5)
        axes.annotate(
            f"best {record.best_val_loss:.4f}",
            (best, record.best_val_loss),
            textcoords="offset points",
            xytext=(-6, 12),
            ha="right",
        )
    axes.set_xlabel("training tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(_title(folder, record.status, record.n_params), fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path = folder / "loss.png"
    with replacing(path) as temporary:  # two runners may both finish a study, and draw it
        figure.savefig(temporary, dpi=130, metadata={"Software": None})
    return path


def _series(history: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(line["tokens"], line[key]) for line in history if line.get(key) is not None]
    return [tokens for tokens, _ in points], [loss for _, loss in points]


def _title(folder: Path, status: str, n_params: int) -> str:
    return f"{folder.name}: {n_params:,} parameters, {status}"
