"""A study's claims: what parses, how a slip is answered, and that every verdict follows the evidence."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.analysis import statements
from experiments.analysis.fit import fit
from experiments.analysis.holdout import holdout
from experiments.analysis.judge import Evidence, judge, judge_claim, judged_text
from experiments.analysis.rollout import rollout
from experiments.analysis.statements import FORMS, Bound, Drift, Parameter, check_claims, parse_claim, parse_claims
from nanogpt.config import UserError
from tests.analysis.tables import PLANTED, planted_runs
from tests.analysis.test_cbs import CRITICAL, curves, measured
from tests.analysis.test_compare import variants
from tests.analysis.test_hyper import sweep
from tests.analysis.test_optimum import basins


def verdict(text: str, evidence: Evidence) -> str:
    return judge_claim(parse_claim(text), evidence).verdict


def words(text: str, evidence: Evidence) -> str:
    return judge_claim(parse_claim(text), evidence).evidence


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_has_an_example_that_is_its_own_and_a_verdict(form: type[statements.Statement]) -> None:
    found = parse_claim(form.example)
    assert type(found) is form
    assert found.text == form.example
    assert judge.dispatch(form) is not judge.dispatch(statements.Statement)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("alpha below 0.5", -math.inf, 0.5), ("alpha at most .5", -math.inf, 0.5), ("alpha above 5e-1", 0.5, math.inf),
        ("alpha at least 1_000", 1000, math.inf), ("alpha more than half", 0.5, math.inf),
        ("alpha under 50%", -math.inf, 0.5), ("alpha between -1 and 2.5", -1, 2.5),
        ("alpha within 10 % of 2", 1.8, 2.2), ("alpha within 10 % of -2", -2.2, -1.8),
        ("alpha within 2 % of the entropy", 0.98, 1.02), ("alpha  between 10 % and 20 %.", 0.1, 0.2),
    ],
)  # fmt: skip
def test_bounds_in_words(text: str, low: float, high: float) -> None:
    found = parse_claim(text)
    assert isinstance(found, Parameter)
    bound = found.bound
    assert (bound.low, bound.high) == (pytest.approx(low), pytest.approx(high))
    assert bound.of_entropy == ("entropy" in text)


def test_peoples_words_for_columns_and_numbers() -> None:
    found = parse_claim("best lr drifts under one octave in depth where mode == 'completep'")
    assert isinstance(found, Drift)
    assert (found.of, found.per, found.where) == ("learning_rate", "n_layer", "mode == 'completep'")
    assert found.bound == Bound("under one", -1.0, 1.0)
    assert parse_claim("completep beats sp at equal compute").columns() == ["flops"]
    assert parse_claim("mode completep beats sp by 1.2 x at equal tokens").columns() == ["tokens", "mode"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimal lr drfits under one octave in depth", "did you mean 'optimal lr drifts under one octave in depth'?"),
        ("muon beets adamw", "did you mean 'muon beats adamw'?"),
        ("held-out eror below 2%", "did you mean 'held-out error below 2 %'?"),
        ("held out error below 2 %", "claims are such as 'held-out error below 2 %' (docs/claims.md lists them)"),
        ("the loss is nice", "is no claim that can be checked; claims are such as"),
        ("", "is no claim that can be checked"),
        ("E between 3 and 1", "'between 3 and 1': the first number must be the smaller one"),
        ("held-out error below 2", "'below 2': an error is a share in % from 0 up, and '2' has no %, as in '2 %'"),
        ("held-out error below 0.02", "'0.02' has no %"),
        ("mean rollout error between 1 and 2 %", "'1' has no %, as in '1 %'"),
        ("held-out error below two", "'two' has no %"),
        ("held-out error within 5 % of 2", "'2' has no %"),
        ("held-out error below -2 %", "'-2 %' is below 0"),
        ("held-out error below -2", "'-2' has no %"),
        ("held-out error below 2 % where n_layer == 2", "takes no `where`; the `fit:` section chooses"),
        ("E covers the entropy where n_layer == 2", "this claim takes no `where`; `fit.where` chooses its runs"),
        ("alpha between 0.2 and 0.5 where n_layer == 2", "this claim takes no `where`; `fit.where` chooses its runs"),
        ("every val_loss below 2 where import os", "where: 'import os' is not an expression"),
        (3, "expected a sentence such as"),
        ("__import__('os').system('true') below 2", "is no claim that can be checked"),
    ],
)
def test_a_slip_is_one_line_with_what_was_meant(text: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_claims([text], "s.yaml:7: claims")
    assert str(caught.value).startswith("s.yaml:7: claims.0: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("muon beats adamw", None),
        ("muun beats adamw", "'muun' is no value of a factor; did you mean 'muon'?"),
        ("kinds muon beats adamw", "'kinds' is no factor of the study"),
        ("2 beats 4", "could mean model.n_layer or model.n_head; put the factor's name in front"),
        ("n_head 2 beats 4", None),
        ("muon beats 4", "muon and 4 are values of different factors"),
        ("held-out error below 2 %", "needs `fit:`, which the study does not have"),
        ("E covers the entropy", "needs `fit:`, which the study does not have"),
    ],
)
def test_claims_that_a_study_cannot_answer_are_found_before_it_runs(text: str, message: str | None) -> None:
    factors = {"optimizer.kind": ["adamw", "muon"], "model.n_layer": [2, 4], "model.n_head": [2, 4]}
    if message is None:
        check_claims([parse_claim(text)], factors, [], "claims.{}".format)
        return
    with pytest.raises(UserError) as caught:
        check_claims([parse_claim(text)], factors, [], "claims.{}".format)
    assert message in str(caught.value)


def test_a_parameter_that_the_law_lacks_is_found_before_it_runs() -> None:
    symbols = ("E", "A", "alpha")
    check_claims(
        [parse_claim("E covers the entropy"), parse_claim("alpha above 0")], {}, ["fit"], "claims.{}".format, symbols
    )
    with pytest.raises(UserError, match=r"claims\.0: 'alfa above 0': the law has no parameter 'alfa'; did you mean"):
        check_claims([parse_claim("alfa above 0")], {}, ["fit"], "claims.{}".format, symbols)


def test_every_verdict_of_a_bound() -> None:
    bound = Bound("", 1, 2)
    assert [bound.judge(*ends) for ends in ((1, 2), (2.1, 3), (0, 0.9), (0.5, 1.5), (math.nan, math.nan))] == [
        "held", "failed", "failed", "undecided", "undecided"]  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> Evidence:
    """A planted Chinchilla study, two seeds, with its fit and held-out prediction."""
    runs = planted_runs(noise=0.002, seeds=2)
    held = holdout("chinchilla", runs, largest=4, bootstrap=100)
    return Evidence(runs, None, fit("chinchilla", runs, bootstrap=300), held, PLANTED["E"])


def test_without_a_holdout_the_expanding_cuts_are_judged(fitted: Evidence) -> None:
    rolled = rollout("chinchilla", fitted.runs, bootstrap=0)
    evidence = replace(fitted, holdout=None, rollout=rolled)
    percent = 100 * rolled.error
    assert verdict(f"mean held-out error below {percent * 1.01:.6f} %", evidence) == "held"
    assert verdict(f"mean held-out error below {percent * 0.99:.6f} %", evidence) == "failed"
    assert verdict(f"held-out error above {percent:.6f} %", evidence) == "held"
    assert "5 expanding cuts in flops" in words("held-out error below 2 %", evidence)
    assert verdict("held-out error below 2 %", replace(evidence, rollout=None)) == "undecided"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("held-out error below 2 %", "held"), ("mean held-out error below 2 %", "held"),
        ("held-out error below 0.001 %", "failed"), ("held-out error above 10 %", "failed"),
        ("E covers the entropy", "held"), ("E within 25 % of the entropy", "held"), ("E below 0.5", "failed"),
        ("E above 5", "failed"), ("alpha between 0 and 5", "held"), ("alpha above 2", "failed"),
        ("A covers the entropy", "failed"), ("gamma above 1", "undecided"),
        ("every val_loss below 100", "held"), ("lowest val_loss below 0.1", "failed"),
        ("noise scale above 1 tokens", "undecided"), ("critical batch size above 1 tokens", "undecided"),
        ("big beats small", "undecided"),
    ],
)  # fmt: skip
def test_verdicts_on_a_fit(fitted: Evidence, text: str, expected: str) -> None:
    assert verdict(text, fitted) == expected, words(text, fitted)


def test_an_interval_around_the_limit_decides_nothing(fitted: Evidence) -> None:
    assert fitted.fit is not None
    assert verdict(f"alpha above {fitted.fit.params['alpha']:.4f}", fitted) == "undecided"
    assert "has no parameter 'alhpa'; did you mean 'alpha'?" in words("alhpa above 1", fitted)


def test_drift_is_judged_at_every_size() -> None:
    still = Evidence(basins({32: -7.3, 64: -7.4, 128: -7.3}, seeds=3, noise=0.001))
    moves = Evidence(basins(seeds=3, noise=0.001))  # one octave per doubling
    assert verdict("optimal lr drifts under 1 octave in width", still) == "held"
    assert verdict("optimal lr drifts over 1 octave in width", still) == "failed"
    assert verdict("optimal lr drifts under 0.5 octaves in width", moves) == "failed"
    assert verdict("optimal lr drifts over 1.5 octaves in width", moves) == "held"
    assert verdict("optimal lr drifts between -3 and -0.5 octaves in width", moves) == "held"
    assert "64: -1.0" in words("optimal lr drifts under 1 octave in width", moves)
    assert verdict("optimal lr drifts under 1 octave in width", Evidence(basins())) == "undecided"
    assert "one seed gives no interval" in words("optimal lr drifts under 1 octave in width", Evidence(basins()))


def test_exponents_of_optima() -> None:
    evidence = Evidence(sweep(tokens=[2**20], noise=0.01))
    text = "exponent of optimal learning_rate in size"
    assert verdict(f"{text} between -0.4 and -0.2", evidence) == "held"
    assert verdict(f"{text} above 0", evidence) == "failed"
    assert verdict(f"{text} above 0", Evidence(sweep(sizes=[2**12], tokens=[2**20]))) == "undecided"


def test_comparisons() -> None:
    better, same = Evidence(variants(2.0, noise=0.001)), Evidence(variants(1.0, noise=0.0003))
    assert verdict("muon beats adamw at equal compute", better) == "held"
    assert verdict("adamw beats muon", better) == "failed"
    assert verdict("muon beats adamw by 1.5x", better) == "held"
    assert verdict("muon beats adamw by 3x", better) == "failed"
    assert verdict("muon beats adamw", same) == "undecided"
    assert verdict("muon matches adamw within 20 %", same) == "held"
    assert verdict("muon matches adamw within 20 %", better) == "failed"
    one_level = Evidence(variants(2.0, noise=1e-4, compute=[1e9]))
    assert verdict("muon beats adamw", one_level) == "held"
    assert verdict("muon beats adamw by 1.1x", one_level) == "undecided"
    assert verdict("muon beats adamw at equal flop", better) == "undecided"


def test_batch_sizes() -> None:
    table = curves(noise=0.05)
    runs = pd.DataFrame({"id": table["id"].unique(), "status": "completed"})
    evidence = Evidence(runs, table)
    assert verdict(f"critical batch size between {CRITICAL / 2:.0f} and {CRITICAL * 2:.0f} tokens", evidence) == "held"
    assert verdict("critical batch size below 100 tokens at loss 2.5", evidence) == "failed"
    noisy = Evidence(pd.DataFrame({"id": ["run0", "run1"], "status": "completed"}), measured(runs=2))
    assert verdict("noise scale between 1000 and 9000 tokens", noisy) == "held"
    assert verdict("noise scale below 1000 tokens", noisy) == "failed"
    assert verdict("noise scale above 3000 tokens", noisy) == "undecided"


def test_one_seed_decides_nothing_about_a_mean() -> None:
    runs = variants(1.0, noise=0.001, seeds=1)
    assert verdict("every val_loss below 100", Evidence(runs)) == "undecided"
    assert "one seed gives no interval" in words("every val_loss below 100", Evidence(runs))
    assert verdict("every val_loss below 100", Evidence(variants(1.0, noise=0.001))) == "held"
    assert verdict("every val_loss below 2.6", Evidence(variants(1.0, noise=0.001))) == "failed"
    assert verdict("lowest val_loss below 2.6", Evidence(variants(1.0, noise=0.001))) == "held"


def test_half_a_study_says_that_it_is_one() -> None:
    runs = variants(2.0, noise=0.001)
    runs.loc[[0, 20], "status"] = ["missing", "failed"]
    assert words("muon beats adamw", Evidence(runs)).endswith("(2 of 36 runs have no result)")
    assert verdict("muon beats adamw", Evidence(runs[:0])) == "undecided"


def test_the_terminal_shows_verdict_and_evidence() -> None:
    evidence = Evidence(variants(2.0, noise=0.001))
    judged = [judge_claim(parse_claim(text), evidence) for text in ("muon beats adamw", "adamw beats muon")]
    lines = judged_text(judged).splitlines()
    assert lines[0] == "claims:"
    assert lines[1] == "  held       muon beats adamw"
    assert lines[2].startswith(
        "             muon against adamw (90 % intervals, 3 paired seeds): multiplier of flops 1.9"
    )
    assert lines[3] == "  FAILED     adamw beats muon"
    assert judged_text([]) == ""


def test_factors_that_are_whole_sections_are_compared_too() -> None:
    runs = variants(2.0, noise=0.001).rename(columns={"optimizer.kind": "optimizer"})
    assert verdict("muon beats adamw", Evidence(runs)) == "held"
    assert np.isfinite(runs["val_loss"]).all()


def test_a_where_that_leaves_one_variant_compares_nothing() -> None:
    evidence = Evidence(variants(2.0, noise=0.001, compute=[1e9]))
    assert "nothing varies in these runs" in words("muon beats adamw where kind == 'muon'", evidence)


def test_one_seed_is_said_in_words_and_never_as_nan() -> None:
    runs = pd.DataFrame({"status": "completed", "seed": 1, "model.n_layer": [1, 2], "val_loss": [2.5, 2.4]})
    found = judge_claim(parse_claim("lowest val_loss below 3"), Evidence(runs))
    assert found.verdict == "undecided"
    assert found.evidence == "val_loss 2.4000; one seed gives no interval"


def test_the_lowest_is_no_mean_over_the_seeds_that_survived() -> None:
    runs = pd.DataFrame({"status": "completed", "seed": [1, 2, 1, 2], "model.n_layer": [1, 1, 2, 2],
                         "val_loss": [2.5, 2.6, 2.0, 9.0]})  # fmt: skip
    runs.loc[3, "status"] = "diverged"
    found = judge_claim(parse_claim("lowest val_loss below 2.2"), Evidence(runs))
    assert "val_loss 2.5500" in found.evidence
    assert "1 settings lack a seed and do not count" in found.evidence
