"""The response surface: planted shapes come out, and what cannot be shown is said."""

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.influence import fitted_surface, influence, inside_hull, order_of_merit
from experiments.analysis.searched import Searched, search_sentences
from experiments.analysis.surface import response_surface
from nanogpt.config import UserError

SCALES = {"optimizer.learning_rate": "log", "optimizer.weight_decay": "uniform", "model.n_layer": "choice"}


def trials(n: int = 40, pruned: int = 0, lost: int = 0) -> pd.DataFrame:
    """A search over a bowl in the learning rate alone; the worst are pruned at the first rung."""
    random = np.random.default_rng(0)
    rate = 10 ** random.uniform(-4, -1, n)
    loss = 2 + (np.log10(rate) + 2) ** 2 + random.normal(0, 0.01, n)
    table = pd.DataFrame({
        "id": [f"{k:012x}" for k in range(n)], "trial": range(n), "label": [f"t{k}" for k in range(n)],
        "status": "completed", "seed": 1, "steps": 100, "flops": 1e6, "val_loss": loss, "val_loss_stderr": 0.01,
        "first_rung_loss": loss + 1, "optimizer.learning_rate": rate,
        "optimizer.weight_decay": random.uniform(0, 0.3, n), "model.n_layer": random.choice([1, 2, 4], n),
    })  # fmt: skip
    order = table["val_loss"].sort_values(ascending=False).index
    table.loc[order[:lost], ["status", "val_loss"]] = ["diverged", np.nan]
    table.loc[order[lost : lost + pruned], "status"] = "pruned"
    table.loc[order[lost : lost + pruned], "flops"] = 0.25e6
    return table


def test_the_factor_that_matters_is_found():
    table = trials()
    ranks = order_of_merit(table, "val_loss")
    shares = {name: influence(table[name], ranks, scale == "choice") for name, scale in SCALES.items()}
    assert shares["optimizer.learning_rate"] > 0.7
    assert max(shares["optimizer.weight_decay"], shares["model.n_layer"]) < 0.2
    assert np.isnan(influence(table["model.n_layer"][:5], ranks[:5], True))


def test_diverged_runs_rank_last_and_unfinished_ones_nowhere():
    table = trials(10, lost=2)
    table.loc[table["val_loss"].idxmin(), ["status", "val_loss"]] = ["running", np.nan]
    ranks = order_of_merit(table, "val_loss")
    assert ranks[table["status"] == "diverged"].tolist() == [8.5, 8.5]
    assert ranks[table["status"] == "running"].isna().all()


def test_the_spline_recovers_a_planted_surface_within_its_hull():
    random = np.random.default_rng(1)
    points = random.uniform(0, 1, (60, 2))
    surface = fitted_surface(points, (points[:, 0] - 0.4) ** 2 + 0.5 * points[:, 1])
    where = random.uniform(0.2, 0.8, (50, 2))
    assert np.allclose(surface(where), (where[:, 0] - 0.4) ** 2 + 0.5 * where[:, 1], atol=0.02)
    assert inside_hull(points, np.array([[0.5, 0.5], [3.0, 3.0]])).tolist() == [True, False]
    assert fitted_surface(points[:5], points[:5, 0]) is None
    line = np.column_stack([points[:, 0], points[:, 0]])
    assert fitted_surface(line, points[:, 0]) is None


def words(figure) -> str:
    import matplotlib

    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_pruned_trials_are_shown_where_all_were_measured():
    axes = response_surface(trials(pruned=20, lost=2), searched=Searched(SCALES, first_rung=0.25))
    said = words(axes.figure)
    assert "Validation loss after 25% of the training over the space" in said
    assert {"completed (18)", "pruned (20)", "diverged (2)", "lowest final loss"} <= {
        text.get_text() for text in axes.get_legend().get_texts()
    }
    plain = words(response_surface(trials(), searched=Searched(SCALES)).figure)
    assert "after" not in plain
    assert "lowest loss" in plain


def test_panels_fill_their_rows_and_the_median_of_a_choice_stands_on_it():
    whole = response_surface(trials(), searched=Searched(SCALES))
    whole.figure.draw_without_rendering()
    boxes = [axes.get_position() for axes in whole.child_axes[:4]]
    assert len({round(box.x0, 3) for box in boxes}) == len({round(box.y0, 3) for box in boxes}) == 2
    (slice_of_choices,) = [axes for axes in whole.child_axes if axes.get_title(loc="left").startswith("n_layer")]
    (medians,) = [line for line in slice_of_choices.lines if line.get_marker() == "_"]
    assert list(medians.get_xdata()) == [0, 1, 2]


def test_every_point_of_a_grid_has_its_surface():
    table = pd.concat([trials(20).assign(**{"model.n_embd": size}) for size in (8, 16)], ignore_index=True)
    whole = response_surface(table, searched=Searched(SCALES, cells=("model.n_embd",)))
    titles = [axes.get_title(loc="left") for axes in whole.child_axes]
    assert titles[:2] == ["n_embd = 8", "n_embd = 16"]


def test_what_is_no_search_has_no_surface():
    with pytest.raises(UserError, match="the study is no search"):
        response_surface(trials())
    with pytest.raises(UserError, match="no factor of the search took two values"):
        response_surface(trials(), searched=Searched({"model.n_head": "int"}))


def test_the_sentence_names_the_best_trial_and_its_doubts():
    table = trials(pruned=20, lost=2)
    (said, spent) = search_sentences(table, Searched(SCALES, first_rung=0.25, planned_flops=40e6), "val_loss")
    best = table.loc[table["val_loss"].where(table["status"] == "completed").idxmin()]
    assert said.startswith("Of 40 trials 18 completed, 2 diverged, 20 pruned; trial ")
    assert f"trial {best['trial']} (learning_rate={best['optimizer.learning_rate']:.4g}" in said
    assert "± 0.0100 from the evaluation alone" in said
    assert "As the best of 40 it is optimistic" in said
    assert "spent 62% of the compute" in spent


def test_with_seeds_a_trial_counts_whole_and_has_an_interval():
    table = pd.concat([trials(10).assign(seed=seed) for seed in (1, 2, 3)], ignore_index=True)
    table["val_loss"] += 0.001 * table["seed"]
    lucky = table.index[table["trial"] == 4][0]
    table.loc[lucky, "val_loss"] = 0.1
    table.loc[table.index[table["trial"] == 4][1], "status"] = "pruned"
    (said,) = search_sentences(table, Searched(SCALES), "val_loss")
    assert "trial 4 " not in said
    assert "on the mean of 3 seeds (95 % interval" in said
    assert "9 completed, 1 pruned" in said
