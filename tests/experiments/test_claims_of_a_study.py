"""`claims:` in a study: checked with their place before anything runs, kept in the lock, judged, and `--strict`.

Those marked slow take under a minute together.
"""

import json
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.lock import Lock, resolve
from experiments.results import check_columns, check_study_claims
from experiments.study import Study
from nanogpt.config import UserError

pytestmark = pytest.mark.usefixtures("fake_engine")
SEEDS = "{grid: {n_layer: [1, 2]}, seeds: [1, 2]}"


def check(path: Path) -> None:
    """What `plan` and `run` do before anything else."""
    study = Study.load(path)
    lock = resolve(study)
    check_columns(study, lock.factors)
    check_study_claims(study, lock.runs)


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ("[every val_lss below 3]", "claims.0: no column 'val_lss'; did you mean 'val_loss'?"),
        ("[every val_loss below 3 where n_layr == 1]", "claims.0: no column 'n_layr'; did you mean 'n_layer'?"),
        ("[1 beats 3]", "claims.0: '3' is no value of a factor; allowed: 1, 2"),
        ("[E below 2]", "claims.0: 'E below 2' needs `fit:`, which the study does not have"),
        ("[every val_loss beloww 3]",
         "tiny.yaml:5: claims.0: 'every val_loss beloww 3' is no claim that can be checked; did you mean 'every "
         "val_loss below 3'?"),
        ("every val_loss below 3", "tiny.yaml:5: claims: expected a valid list, got 'every val_loss below 3'"),
    ],
)  # fmt: skip
def test_a_slip_is_placed_and_named_before_anything_runs(write_study, capsys, tmp_path, claims, message):
    path = write_study(SEEDS, f"claims: {claims}")
    with pytest.raises(UserError) as caught:
        check(path)
    assert message in str(caught.value)
    assert main(["run", str(path), "--out", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_claims_reach_the_lock_and_a_size_has_its_own(write_study):
    more = "claims: [lowest val_loss below 3]\nsizes: {big: {claims: [lowest val_loss below 2]}, same: {limits: None.}}"
    path = write_study(SEEDS, more)
    lock = resolve(Study.load(path))
    assert lock.claims == ["lowest val_loss below 3"]
    assert Study.load(path, size="big").claims == ["lowest val_loss below 2"]
    assert Study.load(path, size="same").claims == lock.claims
    old = json.loads(lock.model_dump_json())
    del old["claims"]
    assert Lock.model_validate(old).claims == []


@pytest.mark.slow  # budget: half a minute
def test_verdicts_in_terminal_and_report_and_strict(write_study, command, tmp_path):
    more = "claims: [every val_loss below 1000, lowest val_loss above 1000, held-out error below 2 %]\n"
    more += "fit: {law: power_law, x: tokens, bootstrap: 0, holdout: {largest: 1}}"
    out = ("--out", tmp_path / "results")
    path = write_study(SEEDS, more)
    first = command("run", path, *out)
    assert first.returncode == 0, first.stderr
    assert "  held       every val_loss below 1000\n" in first.stdout
    assert "  FAILED     lowest val_loss above 1000\n" in first.stdout
    assert "  undecided  held-out error below 2 %\n             there is no held-out prediction yet\n" in first.stdout
    page = (Path(tmp_path) / "results" / "tiny" / "report.html").read_text()
    assert "What was claimed beforehand" in page
    markdown = (Path(tmp_path) / "results" / "tiny" / "report.md").read_text()
    assert "| lowest val\\_loss above 1000 | **failed** |" in markdown.replace("val_loss", "val\\_loss")
    for verb in ("run", "report"):
        strict = command(verb, path, *out, "--strict")
        assert strict.returncode == 3, strict.stderr
        assert "--strict: 1 claim failed: lowest val_loss above 1000" in strict.stderr
    assert command("report", path, *out).returncode == 0
    none = command("run", path, *out, "--strict", "--no-report")
    assert none.returncode == 2
    assert "--strict judges the claims of a report" in none.stderr


@pytest.mark.slow
def test_strict_is_content_where_nothing_failed(write_study, command, tmp_path):
    path = write_study(SEEDS, "claims: [every val_loss below 1000]")
    done = command("run", path, "--out", tmp_path / "results", "--strict")
    assert done.returncode == 0, done.stderr
    fitted = command("fit", path, "--out", tmp_path / "results")
    assert "  held       every val_loss below 1000\n" in fitted.stdout


@pytest.mark.parametrize(
    ("claim", "more", "message"),
    [
        ("every val_lss below 3", "", "no column 'val_lss'"),
        ("noise scale above 1000 tokens", "", "no run of the study measures it; set runtime.noise_scale_interval"),
        ("critical batch size above 1000 tokens", "", "needs runs of 3 batch sizes, and the study has 1"),
        ("holdout error below 2 %", "fit: {law: power_law, x: tokens}", "needs `fit.holdout:`"),
        ("alfa above 0", "fit: {law: power_law, x: tokens}", "the law has no parameter 'alfa'; did you mean 'alpha'"),
        ("rho_N[3] above 1", "fit: {law: shared_exponent, group: n_layer}",
         "the law has no parameter 'rho_N[3]'; did you mean 'rho_N[2]'"),
    ],
)  # fmt: skip
def test_what_no_run_can_answer_is_refused_with_its_line(write_study, claim, more, message):
    with pytest.raises(UserError) as caught:
        check(write_study(SEEDS, f"{more}\nclaims:\n  - lowest val_loss below 9\n  - {claim}"))
    assert f"tiny.yaml:8: claims.1: {claim!r}" in str(caught.value) or "tiny.yaml:8: claims.1: no column" in str(
        caught.value
    )
    assert message in str(caught.value)


def test_a_size_places_its_own_claims(write_study):
    more = "claims: [lowest val_loss below 9]\nsizes:\n  big:\n    claims:\n      - lowest val_lss below 2"
    study = Study.load(write_study(SEEDS, more), size="big")
    with pytest.raises(UserError, match=r"tiny\.yaml:9: claims\.0: no column 'val_lss'"):
        check_columns(study, resolve(study).factors)


def test_multipliers_of_a_shared_law_and_rollouts_can_be_claimed(write_study):
    more = "fit: {law: shared_exponent, group: n_layer}\nclaims: [rho_N[2] above 1, rollout error below 2 %]"
    check(write_study(SEEDS, more.replace("[rho_N[2]", "['rho_N[2]").replace("above 1,", "above 1',")))
