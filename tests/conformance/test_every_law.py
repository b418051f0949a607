"""Every law of the registry: planted truth comes back, derivatives are right, parameters can be held, units stand.

Slow part, every loss and the profiles of the laws with most parameters: about half a minute.
"""

from dataclasses import replace

import numpy as np
import pytest

from experiments.analysis.derivatives import TorchModel
from experiments.analysis.designs import simulate
from experiments.analysis.fit import fit
from experiments.analysis.laws import LAWS, Law, PowerTerms, make_law
from experiments.analysis.problem import Problem, make_problem
from experiments.analysis.solver import expand, huber, solve
from experiments.analysis.spec import FitSpec
from tests.covers import cover

EVERY = [pytest.param(make_law(name), id=name) for name in LAWS]
# Fits of these take seconds.
LARGE = {"bnsl2", "m4", "muennighoff"}
SMALL = [pytest.param(make_law(name), id=name, marks=[pytest.mark.slow] * (name in LARGE)) for name in LAWS]
SUMS = [pytest.param(make_law(name), id=name) for name, law in LAWS.items() if issubclass(law, PowerTerms)]


def noisy_problem(law: Law) -> tuple[Problem, np.ndarray]:
    """The law's own design with noise, and coordinates a little away from the truth."""
    design = law.identifying_design()
    bound = law.bind(design.table)
    problem = make_problem(bound, simulate(law, design, seed=1), "val_loss")
    truth = problem.coordinates(design.params)
    return problem, truth + np.random.default_rng(2).normal(0.0, 0.01, truth.shape)


@pytest.mark.parametrize(("law", "loss"), cover({name: make_law(name) for name in LAWS}, ["huber", "lad", "lsq"]))
def test_data_without_noise_give_the_parameters_back(law: Law, loss: str) -> None:
    design = law.identifying_design()
    result = fit(law, simulate(law, design), loss=loss, bootstrap=0)
    assert result.converged
    assert result.params == pytest.approx(dict(design.params), rel=1e-6)
    beyond = law.bind(design.table).predict(design.params, design.held_out)
    np.testing.assert_allclose(result.predict(design.held_out)["predicted"], beyond, rtol=1e-6)


@pytest.mark.parametrize("law", EVERY)
def test_noise_leaves_no_better_optimum_near_the_truth(law: Law) -> None:
    """The starts know nothing of the truth; what they find is no worse than a descent from it."""
    problem, near = noisy_problem(law)
    weights = np.ones((1, len(problem.ln_y)))
    found = solve(problem, problem.starts(), weights, "huber", 1e-3)
    informed = solve(problem, near, weights, "huber", 1e-3)
    assert found.converged[found.best]
    assert found.objective[found.best] <= informed.objective[0] * (1 + 1e-9)


@pytest.mark.parametrize("law", EVERY)
def test_derivatives_are_the_numerical_ones(law: Law) -> None:
    problem, theta = noisy_problem(law)
    weights = np.ones((1, len(problem.ln_y)))
    exact = expand(problem, theta, weights, np.inf, np.arange(1))
    for j, step in enumerate(1e-5 * np.eye(theta.shape[1])):
        up, down = (expand(problem, theta + side * step, weights, np.inf, np.arange(1)).gradient[0] for side in (1, -1))
        above, below = (huber(problem.residuals(theta + side * step), weights, np.inf)[0] for side in (1, -1))
        scale = np.abs(exact.hessian[0]).max()
        assert (above - below) / 2e-5 == pytest.approx(exact.gradient[0, j], rel=1e-5, abs=1e-7 * scale)
        np.testing.assert_allclose((up - down) / 2e-5, exact.hessian[0, j], rtol=1e-4, atol=1e-7 * scale)


@pytest.mark.parametrize("law", SUMS)
def test_the_design_tensor_and_torch_agree(law: Law) -> None:
    problem, theta = noisy_problem(law)
    fast, general = problem.model.expand(theta), TorchModel(problem.law, problem.x).expand(theta)
    first, second = np.random.default_rng(0).normal(size=(2, *fast.log_loss.shape))
    np.testing.assert_allclose(general.log_loss, fast.log_loss, rtol=1e-12)
    np.testing.assert_allclose(general.jacobian, fast.jacobian, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(general.hessian(first, second), fast.hessian(first, second), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("law", EVERY)
def test_coordinates_and_parameters_are_one_to_one(law: Law) -> None:
    problem, theta = noisy_problem(law)
    np.testing.assert_allclose(problem.coordinates(problem.natural(theta)), theta, rtol=1e-9)
    design = law.identifying_design()
    many = {name: np.array([value, value]) for name, value in design.params.items()}
    bound = law.bind(design.table)
    one = bound.predict(design.params, design.table)
    np.testing.assert_allclose(bound.predict(many, design.table), [one, one], rtol=1e-14)


@pytest.mark.parametrize("law", SMALL)
def test_a_held_parameter_stays_and_the_others_move(law: Law) -> None:
    """Bounds that meet hold a parameter, per member of the batch: what a profile likelihood is made of."""
    design = law.identifying_design()
    problem = make_problem(law.bind(design.table), simulate(law, design, seed=1), "val_loss", centre=False)
    truth = problem.coordinates(design.params)
    lower, upper = (np.repeat(side[None], 3, axis=0) for side in (problem.lower, problem.upper))
    held = truth[0, 0] + np.array([-0.02, 0.0, 0.02])
    lower[:, 0] = upper[:, 0] = held
    weights = np.ones(len(problem.ln_y))
    profile = solve(problem, np.repeat(truth, 3, axis=0), weights, "huber", 1e-3, lower, upper)
    free = solve(problem, truth, weights, "huber", 1e-3)
    np.testing.assert_array_equal(profile.theta[:, 0], held)
    assert profile.converged.all()
    assert (profile.objective >= free.objective * (1 - 1e-12)).all()


@pytest.mark.parametrize("law", SMALL)
def test_a_profile_closes_around_the_estimate_on_the_law_s_own_design(law: Law) -> None:
    """Whatever shifts the centring makes: a coefficient's coordinate is a mixture, others stand alone."""
    result = fit(law, simulate(law, law.identifying_design(), seed=1), loss="lsq", bootstrap=0)
    for name in {result.law.parameters[0], result.law.parameters[-1], *result.law.coefficients[1:2]}:
        found = result.profile(name, 0.9)
        assert found.closed, found.words
        assert found.lower < result.params[name] < found.upper
        assert (found.table["deviance"] >= 0).all()


@pytest.mark.parametrize("law", EVERY)
def test_symbols_units_source_and_study_keys(law: Law) -> None:
    bound = law.bind(law.identifying_design().table)
    assert bound.source
    assert bound.title
    assert set(bound.parameters) == set(law.identifying_design().params)
    assert all(bound.unit(symbol) for symbol in bound.parameters)
    assert all(bound.unit(symbol).startswith("nats/token") for symbol in bound.coefficients)
    assert all(bound.unit(symbol) == "no unit" for symbol in bound.exponents)
    assert set(law.inputs()) <= set(FitSpec.model_fields)


@pytest.mark.parametrize("law", EVERY)
def test_columns_are_chosen_when_the_law_is_made(law: Law) -> None:
    """Renaming every input changes names only."""
    design = law.identifying_design()
    other = replace(law, **{name: f"my_{name}" for name in law.inputs()})
    names = dict(zip((*law.columns, *law.label_columns), (*other.columns, *other.label_columns), strict=True))
    table = design.table.rename(columns=names)
    assert set(other.identifying_design().table.columns) == set(table.columns)
    expected = law.bind(design.table).predict(design.params, design.table)
    np.testing.assert_array_equal(other.bind(table).predict(design.params, table), expected)
