"""What is particular to each law: its formula, its limits, its published values, and how a law is asked for."""

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.designs import simulate
from experiments.analysis.fit import fit
from experiments.analysis.laws import LAWS, Chinchilla, Law, PowerLaw, PowerTerms, Term, make_law
from nanogpt.config import UserError

SUMS = [pytest.param(make_law(name), id=name) for name, law in LAWS.items() if issubclass(law, PowerTerms)]


def planted(law: Law) -> tuple[dict[str, float], pd.DataFrame]:
    design = law.identifying_design()
    return dict(design.params), design.table.head(7).reset_index(drop=True)


@pytest.mark.parametrize("law", SUMS)
def test_prediction_is_the_formula(law: Law) -> None:
    params, table = planted(law)
    formula = law.formula.replace("^", "**")
    by_hand = [eval(formula, {}, {**params, **row}) for row in table.to_dict(orient="records")]
    np.testing.assert_allclose(law.predict(params, table), by_hand, rtol=1e-12)


def test_kaplan_is_a_power_law_in_each_input_when_the_other_is_unlimited() -> None:
    law = make_law("kaplan")
    params, _ = planted(law)
    table = {"n_params_non_embedding": np.array([1e8, 1e30]), "tokens": np.array([1e30, 1e10])}
    expected = [(6.4e13 / 1e8) ** 0.076, (1.8e13 / 1e10) ** 0.103]
    np.testing.assert_allclose(law.predict(params, table), expected, rtol=1e-9)


def test_gadre_is_stated_in_compute_and_over_training() -> None:
    law = make_law("gadre")
    params, table = planted(law)
    compute, multiple = 6 * table["n_params"] * table["tokens"], table["tokens"] / table["n_params"]
    eta = params["eta"]
    expected = params["E"] + (params["a"] * multiple**eta + params["b"] * multiple**-eta) * compute**-eta
    np.testing.assert_allclose(law.predict(params, table), expected, rtol=1e-12)


def test_data_constrained_is_chinchilla_for_one_epoch_of_a_small_model() -> None:
    law = make_law("muennighoff")
    params, _ = planted(law)
    table = {"n_params_non_embedding": np.array([1e7]), "tokens": np.array([1e10]), "unique_tokens": np.array([1e10])}
    np.testing.assert_allclose(law.predict(params, table), Chinchilla().predict(params, table), rtol=1e-12)


def test_repeated_tokens_and_excess_parameters_decay_as_published() -> None:
    """Muennighoff et al. 2023: D' = U + U R (1 - exp(-(epochs - 1)/R)), the same for N beyond what U deserves."""
    law = make_law("muennighoff")
    params, _ = planted(law)
    n, unique, epochs = 1e9, 1e9, 40.0
    deserved = (params["alpha"] * params["A"] / params["beta"] / params["B"]) ** (1 / params["alpha"]) * unique
    assert n > deserved
    data = unique * (1 + params["R_D"] * (1 - np.exp(-(epochs - 1) / params["R_D"])))
    size = deserved * (1 + params["R_N"] * (1 - np.exp(-(n / deserved - 1) / params["R_N"])))
    table = {"n_params_non_embedding": [n], "tokens": [epochs * unique], "unique_tokens": [unique]}
    expected = params["E"] + params["A"] / size ** params["alpha"] + params["B"] / data ** params["beta"]
    assert law.predict(params, table)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["bnsl", "bnsl2"])
def test_broken_law_is_caballeros_product(name: str) -> None:
    law = make_law(name)
    params, table = planted(law)
    formula = law.formula.replace("^", "**")
    by_hand = [eval(formula, {}, {**params, **row}) for row in table.to_dict(orient="records")]
    np.testing.assert_allclose(law.predict(params, table), by_hand, rtol=1e-12)


def test_m4_solves_its_equation() -> None:
    law = make_law("m4")
    for alpha in (0.2, 0.8, 1.0, 3.0):
        params = {**law.identifying_design().params, "alpha": alpha}
        x = np.geomspace(1e10, 1e24, 200)
        loss = law.predict(params, {"flops": x})
        sides = (
            np.log((loss - params["E"]) / (params["L_0"] - loss) ** alpha),
            np.log(params["beta"] / x ** params["c"]),
        )
        well_inside = (loss - params["E"] > 1e-3) & (params["L_0"] - loss > 1e-3)
        np.testing.assert_allclose(sides[0][well_inside], sides[1][well_inside], atol=1e-9)
        assert (np.diff(loss) <= 0).all()


def test_multipliers_are_worth_as_many_parameters_and_tokens() -> None:
    law = make_law("shared_exponent")
    params, _ = planted(law)
    variant = pd.DataFrame({"group": "variant", "n_params_non_embedding": [1e8], "tokens": [1e10]})
    baseline = pd.DataFrame({"n_params_non_embedding": [1.2e8], "tokens": [1.6e10]})
    bound = law.bind({"group": ["baseline", "variant"]})
    np.testing.assert_allclose(bound.predict(params, variant), Chinchilla().predict(params, baseline), rtol=1e-12)
    with pytest.raises(UserError, match="group: 'other' was not fitted; known: baseline, variant"):
        bound.predict(params, variant.assign(group="other"))


def test_the_first_group_is_the_reference() -> None:
    law = make_law("shared_exponent")
    table = simulate(law, law.identifying_design())
    turned = fit(law, table[::-1].reset_index(drop=True), bootstrap=0)
    assert turned.params["rho_D[baseline]"] == pytest.approx(1 / 1.6, rel=1e-6)


def test_experts_saturate_between_start_and_max() -> None:
    """Clark et al. 2022, eq. 6: one expert counts as X_start, unlimited ones as X_max."""
    law = make_law("clark")
    params, _ = planted(law)
    for experts, saturated in ((1.0, params["X_start"]), (1e12, params["X_max"])):
        n, s = np.log10(1e9), np.log10(saturated)
        expected = 10 ** (params["a"] * n + params["b"] * s + params["c"] * n * s + params["d"])
        found = law.predict(params, {"n_params_active": [1e9], "n_expert": [experts]})
        assert found[0] == pytest.approx(expected, rel=1e-9)


def test_columns_are_chosen_when_the_law_is_made() -> None:
    assert make_law("chinchilla").columns == ("n_params_non_embedding", "tokens")
    assert make_law("chinchilla", n="n_params").columns == ("n_params", "tokens")
    assert PowerLaw(x="tokens").columns == ("tokens",)


def test_unknown_law_and_unknown_input_name_the_right_ones() -> None:
    with pytest.raises(UserError, match="did you mean 'chinchilla'"):
        make_law("chinchila")
    with pytest.raises(UserError, match="its inputs: n, d"):
        make_law("chinchilla", x="flops")


def test_a_new_sum_of_power_terms_is_its_terms_alone() -> None:
    """Shared exponents need nothing further: alpha once over N and once over D."""

    class OneExponent(Chinchilla):
        @property
        def terms(self) -> tuple[Term, ...]:
            return (Term("E"), Term("A", (("alpha", self.n),)), Term("B", (("alpha", self.d),)))

    law, design = OneExponent(), Chinchilla().identifying_design()
    assert law.parameters == ("E", "A", "B", "alpha")
    params = {name: design.params[name] for name in law.parameters}
    runs = design.table.assign(val_loss=law.predict(params, design.table))
    assert fit(law, runs, bootstrap=0).params == pytest.approx(params, rel=1e-6)
