"""Spaces and samplers: bad input in one line, samples within bounds and reproducible, refused proposals replaced.

Those marked slow take under a minute together.
"""

import re

import numpy as np
import pytest
from scipy.stats import kstest

from experiments.lock import resolve
from experiments.search.sampling import random_point, sobol_points, unit_points
from experiments.search.spec import Dimension, Pruner, Sampler
from experiments.study import Study
from nanogpt.config import UserError

pytestmark = pytest.mark.usefixtures("fake_engine")

LR = "learning_rate: {log: [1e-4, 1e-1]}"
RANDOM = "sampler: {kind: random, trials: 6}"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (f"{{sampler: rando, space: {{{LR}}}}}", "sweep.sampler.kind: no such choice 'rando'; did you mean 'random'?"),
        (f"{{sampler: random, space: {{{LR}}}}}", "sweep.sampler: random needs trials: how many settings are tried"),
        (f"{{sampler: {{kind: random, trails: 3}}, space: {{{LR}}}}}", "trails: no such key; did you mean 'trials'?"),
        (
            f"{{sampler: {{kind: random, trials: 0}}, space: {{{LR}}}}}",
            "sampler.trials: expected greater than or equal to 1, got 0",
        ),
        (f"{{{RANDOM}}}", "sweep: sampler: random needs a space"),
        (f"{{grid: {{n_layer: [1]}}, space: {{{LR}}}}}", "sweep: space: means nothing to a grid"),
        ("{grid: {n_layer: [1]}, pruner: {kind: median, at: 0.5}}", "sweep: pruner: means nothing to a grid"),
        (
            f"{{{RANDOM}, space: {{learning_rte: {{log: [1, 2]}}}}}}",
            "learning_rte: no such key; did you mean 'learning_rate'?",
        ),
        (
            f"{{{RANDOM}, space: {{learning_rate: {{lg: [1, 2]}}}}}}",
            "learning_rate.lg: no such key; did you mean 'log'?",
        ),
        (f"{{{RANDOM}, space: {{learning_rate: {{log: [0, 2]}}}}}}", "log: both ends must be above 0, got 0.0"),
        (
            f"{{{RANDOM}, space: {{learning_rate: {{uniform: [2, 1]}}}}}}",
            "expected a low and a higher end, got 2.0 and 1.0",
        ),
        (f"{{{RANDOM}, space: {{learning_rate: {{log: [1]}}}}}}", "learning_rate.log: expected more values, got [1]"),
        (
            f"{{{RANDOM}, space: {{learning_rate: {{log: [1, 2, 3]}}}}}}",
            "log: expected at most 2 values, got [1, 2, 3]",
        ),
        ("{sampler: [random]}", "sweep.sampler: expected a mapping of settings, got ['random']"),
        ("{seeds: 0}", "sweep.seeds: expected a number of seeds of at least 1, or a list of seeds, got 0"),
        (f"{{{RANDOM}, space: {{n_layer: {{}}}}}}", "n_layer: expected one of log, uniform, int, choice"),
        (f"{{{RANDOM}, space: {{n_layer: {{choice: [1, 1]}}}}}}", "choice: holds a value twice"),
        (f"{{{RANDOM}, space: {{seed: {{int: [1, 9]}}}}}}", "space: the seed is no setting to search; name seeds"),
        (f"{{{RANDOM}, grid: {{learning_rate: [1]}}, space: {{{LR}}}}}", "learning_rate: varied twice"),
        (
            f"{{{RANDOM}, space: {{{LR}}}, pruner: {{kind: medain, at: 0.5}}}}",
            "no such choice 'medain'; did you mean 'median'?",
        ),
        (f"{{{RANDOM}, space: {{{LR}}}, pruner: {{kind: median, at: [0.5, 0.2]}}}}", "at: expected rising fractions"),
        (
            f"{{{RANDOM}, space: {{{LR}}}, pruner: {{kind: percentile, at: [0.5]}}}}",
            "percentile needs the share that goes on",
        ),
        (
            f"{{sampler: {{kind: optuna, trials: 3, optuna: {{sampler: tpee}}}}, space: {{{LR}}}}}",
            "optuna.sampler: no such sampler 'tpee'; did you mean 'tpe'?",
        ),
    ],
)
def test_bad_input_is_one_line_with_its_place(write_study, sweep, message):
    with pytest.raises(UserError) as error:
        Study.load(write_study(sweep)).runs()
    assert message in str(error.value)
    assert "tiny.yaml:4: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_points_are_functions_of_seed_and_index(kind):
    sampler = Sampler(kind=kind, trials=8, seed=3)
    few, many = unit_points(sampler, 3, 5), unit_points(sampler, 3, 40)
    assert list(few) == list(many[:5])
    assert list(few) != list(unit_points(sampler.model_copy(update={"seed": 4}), 3, 5))
    assert 0 <= np.min(many) <= np.max(many) < 1


def test_log_uniform_samples_are_uniform_in_the_logarithm():
    dimension = Dimension(log=(1e-4, 1e-1))
    values = np.array([dimension.value(random_point(0, 1, index)[0]) for index in range(2000)])
    assert values.min() >= 1e-4
    assert values.max() <= 1e-1
    assert kstest(np.log10(values), "uniform", args=(-4, 3)).pvalue > 0.01
    assert kstest(values, "uniform", args=(1e-4, 1e-1)).pvalue < 1e-6


def test_sobol_points_are_more_even_than_random_ones():
    from scipy.stats import qmc

    even = qmc.discrepancy(sobol_points(0, 2, 6))
    assert even < qmc.discrepancy([random_point(0, 2, index) for index in range(64)]) / 3


def test_whole_numbers_and_choices_reach_both_ends():
    shares = [index / 100 for index in range(100)]
    assert {Dimension(whole=(1, 4)).value(share) for share in shares} == {1, 2, 3, 4}
    assert {Dimension(choice=["a", {"kind": "b"}, None][:2]).value(share) == "a" for share in shares} == {True, False}
    whole = [Dimension(log=(8, 128)).value(share, is_whole=True) for share in shares]
    assert all(isinstance(value, int) for value in whole)
    assert min(whole) == 8


def test_an_invalid_combination_is_refused_with_its_reason_and_replaced(write_study):
    sweep = f"{{{RANDOM}, space: {{{LR}, n_head: {{int: [1, 4]}}}}}}"
    lock = resolve(Study.load(write_study(sweep)))
    assert len(lock.runs) == 6
    assert all(8 % run.config["model"]["n_head"] == 0 for run in lock.runs)
    assert lock.refused
    assert {refused.reason.partition(": ")[2] for refused in lock.refused} == {
        "model: n_embd=8 is not divisible by n_head=3"
    }
    assert "refused and replaced; the first: trial" in lock.notes[0]
    tried = [*(run.trial for run in lock.runs), *(refused.trial for refused in lock.refused)]
    assert sorted(tried) == list(range(len(tried)))


@pytest.mark.slow
def test_more_trials_keep_the_first_ones(write_study):
    ids = {}
    for trials in (6, 9):
        sweep = f"{{sampler: {{kind: sobol, trials: {trials}}}, space: {{{LR}, n_head: {{int: [1, 4]}}}}}}"
        ids[trials] = [run.id for run in resolve(Study.load(write_study(sweep))).runs]
    assert ids[9][:6] == ids[6]


def test_every_point_of_the_grid_is_searched_with_every_seed(write_study):
    sweep = f"{{{RANDOM}, grid: {{n_embd: [8, 16]}}, seeds: 2, space: {{{LR}}}}}"
    lock = resolve(Study.load(write_study(sweep)))
    assert len(lock.runs) == 6 * 2 * 2
    by_trial: dict[int, list[dict]] = {}
    for run in lock.runs:
        by_trial.setdefault(run.trial, []).append(run.factors)
    assert sorted(by_trial) == list(range(12))
    assert all([factors["seed"] for factors in runs] == [1, 2] for runs in by_trial.values())
    # Both cells try the same settings, so that they compare.
    rates = {cell: [by_trial[k][0]["optimizer.learning_rate"] for k in range(cell, 12, 2)] for cell in (0, 1)}
    assert rates[0] == rates[1]
    assert {runs[0]["model.n_embd"] for k, runs in by_trial.items() if k % 2} == {16}


def test_a_small_space_ends_with_a_note(write_study):
    lock = resolve(Study.load(write_study(f"{{{RANDOM}, space: {{n_layer: {{choice: [1, 2]}}}}}}")))
    assert sorted(run.config["model"]["n_layer"] for run in lock.runs) == [1, 2]
    assert lock.notes == ["only 2 trials instead of 6: the space holds no more"]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            f"{{{RANDOM}, space: {{n_head: {{choice: [3, 5]}}}}}}",
            "proposals is a valid run; the first: trial 0: model: n_embd=8",
        ),
        (f"{{{RANDOM}, space: {{{LR}}}, filter: learning_rate > 1}}", "the first: trial 0: sweep.filter drops it"),
    ],
)
def test_a_space_without_a_valid_run_is_refused(write_study, sweep, message):
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(Study.load(write_study(sweep)))


@pytest.mark.parametrize(
    ("at", "interval", "message"),
    [
        ("[0.9]", 2, "sweep.pruner.at: 0.9 of 5 steps: no evaluation before the end with train.eval_interval 2"),
        ("[0.5]", "null", "no evaluation before the end with train.eval_interval null"),
        ("[0.3, 0.4]", 2, "0.4 of 5 steps: the same evaluation as the rung before"),
    ],
)
def test_a_rung_without_an_evaluation_is_refused_before_anything_runs(write_study, at, interval, message):
    sweep = f"{{{RANDOM}, space: {{{LR}}}, pruner: {{kind: successive_halving, at: {at}}}}}"
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(Study.load(write_study(sweep, f"config: {{eval_interval: {interval}}}")))


def test_sections_survive_the_lock():
    pruner = Pruner(kind="successive_halving", at=(0.25, 0.5), keep=0.4)
    assert Pruner.model_validate_json(pruner.model_dump_json()) == pruner
    for section in (Sampler(), Pruner(), Sampler(kind="sobol", trials=4)):
        assert type(section).model_validate_json(section.model_dump_json()) == section
