"""The fit:, optimum: and report: sections: equal to the registries, light to import, mistakes answered in one line."""

import subprocess
import sys
from typing import get_args

import pytest

from experiments.analysis.figures import FIGURES
from experiments.analysis.fit import LOSSES
from experiments.analysis.fitted import METHODS, Method
from experiments.analysis.laws import LAWS, make_law
from experiments.analysis.resample import RESAMPLES
from experiments.analysis.spec import (
    LAW_INPUTS,
    FigureName,
    FitSpec,
    LawName,
    LossName,
    ReportSpec,
    check_fit_spec,
    check_optimum_spec,
    check_report_spec,
    columns_named,
)
from nanogpt.config import UserError


def test_names_equal_the_registries() -> None:
    assert set(get_args(LawName)) == set(LAWS) == set(LAW_INPUTS)
    assert set(get_args(get_args(FitSpec.model_fields["resample"].annotation)[0])) == set(RESAMPLES)
    assert get_args(get_args(FitSpec.model_fields["intervals"].annotation)[0]) == get_args(Method) == METHODS
    assert {name: law.inputs() for name, law in LAWS.items()} == LAW_INPUTS
    assert set(get_args(LossName)) == set(LOSSES)
    assert set(get_args(FigureName)) == set(FIGURES)


def test_importing_the_checks_loads_nothing_heavy() -> None:
    code = (
        "import sys, experiments.analysis.spec, experiments.report\n"
        "heavy = {'numpy', 'pandas', 'scipy', 'matplotlib', 'torch', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"law": "chinchila"}, "study: fit.law: 'chinchila' is not known; did you mean 'chinchilla'?"),
        ({"losss": "huber"}, "study: fit.losss: no such key; did you mean 'loss'?"),
        ({"loss": "hubber"}, "did you mean 'huber'?"),
        ({"delta": 0}, "study: fit.delta: input should be greater than 0, found 0"),
        ({"holdout": {"fractoin": 0.3}}, "study: fit.holdout.fractoin: no such key; did you mean 'fraction'?"),
        ({"holdout": {"by": "flops"}}, "study: fit.holdout: give exactly one of fraction, below, largest"),
        ({"law": "chinchilla", "x": "flops"}, "study: fit: law chinchilla has no input 'x'"),
        ({"where": "import os"}, "not an expression"),
        ({"resample": "residuals"}, "study: fit.resample: 'residuals' is not known; did you mean 'residual'?"),
        ({"intervals": "profiles"}, "study: fit.intervals: 'profiles' is not known; did you mean 'profile'?"),
        ({"resample": "residual", "cluster": "seed"}, "cannot go with cluster; pairs can"),
        ({"law": "muennighoff", "group": "kind"}, "study: fit: law muennighoff has no input 'group'"),
        ("chinchilla", "expected a mapping"),
    ],
)
def test_fit_mistakes(spec: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_fit_spec(spec, "study: fit")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("law", LAWS)
def test_the_columns_a_law_reads_are_told_before_the_runs_start(law: str) -> None:
    """Its own defaults too: a study whose table has no `group` or `unique_tokens` is refused at once."""
    chosen = {name: f"my_{name}" for name in LAWS[law].inputs()}
    for spec, expected in ((FitSpec(law=law), make_law(law)), (FitSpec(law=law, **chosen), make_law(law, **chosen))):
        named = columns_named(spec, ReportSpec())
        assert {(f"fit.{name}", getattr(expected, name)) for name in LAWS[law].inputs()} <= set(named)


def test_report_figures_are_names_or_mappings() -> None:
    spec = check_report_spec({"figures": ["loss_vs_compute", {"figure": "loss_vs", "x": "n_layer"}], "hue": "seed"})
    assert spec.figures is not None
    assert [figure.figure for figure in spec.figures] == ["loss_vs_compute", "loss_vs"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"figures": ["loss_vs_computee"]}, "did you mean 'loss_vs_compute'?"),
        ({"figures": [{"figure": "loss_vs", "colour": "seed"}]}, "no such key"),
        ({"figure": []}, "did you mean 'figures'?"),
    ],
)
def test_report_mistakes(spec: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_report_spec(spec)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"of": "learning_rate"}, "study: optimum.per: is missing; a whole section is such as {of: learning_rate, per"),
        ({"off": "learning_rate", "per": "n_embd", "of": "x"}, "study: optimum.off: no such key; did you mean 'of'?"),
        ({"of": "x", "per": "y", "window": 0}, "study: optimum.window: input should be greater than or equal to 1"),
        (
            {"of": "x", "per": "y", "max_drift": -1},
            "study: optimum.max_drift: input should be greater than 0, found -1",
        ),
        ({"of": "x", "per": "y", "where": "import os"}, "not an expression"),
        ("learning_rate", "study: optimum: expected a mapping such as {of: learning_rate, per: n_embd}"),
    ],
)
def test_optimum_mistakes(spec: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_optimum_spec(spec, "study: optimum")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
