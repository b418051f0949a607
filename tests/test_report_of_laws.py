"""Every law of the registry goes through a study's whole analysis: fit, expanding cuts, claims, figures, report.

Those marked slow take under a minute together.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.designs import simulate
from experiments.analysis.laws import LAWS, make_law
from experiments.report import StudyMeta, analyse, print_analysis, write_report


def study_of(law: str) -> pd.DataFrame:
    """The law's own design as the table of a study: ids, states, and a compute for the cuts."""
    form = make_law(law)
    runs = simulate(form, form.identifying_design(), seed=1)
    if "flops" not in runs.columns:
        runs["flops"] = 6.0 * np.prod([runs[name] for name in form.columns[:2]], axis=0)
    return runs.assign(id=[f"{i:012x}" for i in range(len(runs))], status="completed", seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("law", "intervals"), [*((name, "bootstrap") for name in LAWS), ("chinchilla", "profile")])
def test_a_study_may_ask_for_any_law(tmp_path: Path, law: str, intervals: str) -> None:
    runs = study_of(law)
    fit = {
        "law": law,
        "bootstrap": 8 * (intervals == "bootstrap"),
        "rollout": {"cuts": [float(runs["flops"].quantile(0.9))]},
        "intervals": intervals,
    }
    symbol = make_law(law).identifying_design().params
    meta = StudyMeta("s", fit=fit, claims=(f"{next(iter(symbol))} above -1000", "held-out error below 50 %"))
    found = analyse(meta, runs)
    assert found.fit is not None, found.problems
    assert found.fit.params == pytest.approx(dict(symbol), rel=0.5)
    assert found.rollout is not None, found.problems
    assert [each.verdict for each in found.judged] == ["held", "held"], found.judged
    assert f"{next(iter(symbol))} = " in print_analysis(found)
    paths = write_report(tmp_path, meta, runs, analysis=found)
    text = paths.markdown.read_text()
    assert "Held-out error" in text
    assert ("95 % profile likelihood" if intervals == "profile" else "8 residual-bootstrap resamples") in text
    assert "95 % intervals in brackets" in text


def test_a_study_chooses_how_runs_are_resampled() -> None:
    runs = study_of("power_law")
    runs["copy"] = runs.index % 5
    sections = {"pairs": {"resample": "pairs"}, "residual": {}, "pairs of": {"cluster": "copy"}}
    for kind, asked in sections.items():
        meta = StudyMeta("s", fit={"law": "power_law", "bootstrap": 20, **asked})
        assert f"20 {kind.split()[0]}-bootstrap resamples" in print_analysis(analyse(meta, runs))
