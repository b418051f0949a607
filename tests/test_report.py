"""The report: self-contained, escaped, deterministic, atomic, and plain about what failed.

Those marked slow take under a minute together.
"""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.report import StudyMeta, analyse, print_analysis, write_report
from nanogpt.config import UserError
from tests.analysis.tables import planted_curves, planted_ladder, planted_runs, with_diverged

FIT = {"law": "chinchilla", "bootstrap": 40, "holdout": {"largest": 5}}
META = StudyMeta(
    name="quickstart",
    question="How does the loss fall with compute?",
    hypothesis="A law fitted to the small runs predicts the large ones.",
    fit=FIT,
    commands=("python -m experiments run studies/quickstart.yaml",),
    notes=("Learning rates were not tuned.",),
    environment={"packages": {"torch": "2.13.0", "numpy": "2.4"}, "gpu": None},
)


class Page(HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A report on 35 runs, one diverged, one failed with a hostile error and label."""
    runs = with_diverged(planted_runs(noise=0.002), 17)
    runs.loc[3, "status"] = "failed"
    runs.loc[3, ["val_loss", "flops"]] = np.nan
    runs.loc[3, "label"] = "<script>alert('run')</script>|x"
    runs["error"] = None
    runs.at[3, "error"] = {"class": "OutOfMemory", "message": "<img src=x onerror=alert(1)>"}
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, META, runs, planted_curves(runs))
    return folder, runs


def test_page_asks_for_nothing_outside_itself(written: tuple[Path, pd.DataFrame]) -> None:
    page = Page((written[0] / "report.html").read_text())
    outside = [pair for pair in page.attributes if re.search(r"https?:|//|^file:", pair[1])]
    assert outside == []
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    policy = [value for _, value in page.attributes if value.startswith("default-src")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_ids_are_unique_and_every_reference_has_one(written: tuple[Path, pd.DataFrame]) -> None:
    html = (written[0] / "report.html").read_text()
    ids = Counter(value for name, value in Page(html).attributes if name == "id")
    assert [name for name, count in ids.items() if count > 1] == []
    references = re.findall(r"url\(#([^)]*)\)", html) + re.findall(r'href="#([^"]*)"', html)
    assert set(references) <= set(ids)
    assert Page(html).tags.count("svg") == 4


def test_names_and_errors_are_escaped(written: tuple[Path, pd.DataFrame]) -> None:
    html = (written[0] / "report.html").read_text()
    markdown = (written[0] / "report.md").read_text()
    for text in (html, markdown):
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;" in text
    assert "</script>\\|x" not in markdown
    assert "&lt;/script&gt;\\|x" in markdown


def test_content_stands_in_order(written: tuple[Path, pd.DataFrame]) -> None:
    words = Page((written[0] / "report.html").read_text()).words
    order = ["How does the loss fall", "A law fitted to the small", "33 completed, 1 diverged, 1 failed",
             "What came out", "val_loss = E + A", "held-out runs", "the floor E =", "Figures", "Figure 1.",
             "measured against predicted", "How the law was fitted", "condition number", "Every run",
             "Cost and environment", "training FLOPs", "torch 2.13.0, numpy 2.4",
             "Learning rates were not tuned", "To reproduce",
             "python -m experiments run"]  # fmt: skip
    place = 0
    for part in order:
        place = words.find(part, place)
        assert place >= 0, f"{part!r} is missing or out of order"
    assert "1: status diverged; 1: status failed" in words
    assert "OutOfMemory <img src=x onerror=alert(1)>" in words


def test_files_and_table(written: tuple[Path, pd.DataFrame]) -> None:
    folder, runs = written
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "report.html", "report.md", "table.csv"]
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == len(runs)
    assert table["val_loss"].to_numpy() == pytest.approx(runs["val_loss"].to_numpy(), nan_ok=True)
    links = re.findall(r"\]\((figures/[^)]*)\)", (folder / "report.md").read_text())
    assert len(links) == 4
    assert all((folder / link).stat().st_size > 5000 for link in links)


def test_same_input_same_bytes(written: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder, runs = written
    again = write_report(tmp_path, META, runs, planted_curves(runs))
    for path in (again.html, again.markdown, again.table, *again.figures):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes(), path.name


def test_claims_that_hold_say_so() -> None:
    analysis = analyse(META, planted_runs(noise=0.001))
    assert [claim.holds for claim in analysis.claims] == [None, True, None, True, None]
    text = print_analysis(analysis)
    assert "holds: Fitted to the 30 runs" in text
    assert "covers it" in text
    assert "The fit on the 30 smaller runs alone gives E = " in text
    for row in analysis.holdout.table.itertuples():
        assert row.label in text
        assert f"{row.measured:8.4f}  {row.predicted:9.4f}" in text


def test_claims_that_fail_are_said_plainly(tmp_path: Path) -> None:
    runs = planted_runs(noise=0.001)
    runs.loc[runs["flops"].nlargest(5).index, "val_loss"] *= 1.2
    runs["val_entropy"] = 1.5
    analysis = analyse(META, runs)
    failed = [claim.text for claim in analysis.claims if claim.holds is False]
    told = ("ABOVE the limit of 3.00%: the prediction fails",
            "The intervals of that prediction: only 0 of 5 held-out losses lie inside",
            "The form of the law: the law bends away from the data", "does NOT cover it")  # fmt: skip
    assert len(failed) == len(told)
    assert all(part in text for part, text in zip(told, failed, strict=True)), failed
    assert "predicts all of them too low: it bends away from the data" in failed[1]
    paths = write_report(tmp_path, META, runs, None, analysis)
    assert Page(paths.html.read_text()).words.count("Does not hold") == len(told)
    assert paths.markdown.read_text().count("**Does not hold.**") == len(told)
    assert print_analysis(analysis).count("FAILS: ") == len(told)


def test_an_error_within_its_limit_does_not_excuse_narrow_intervals(tmp_path: Path) -> None:
    """Held-out losses half a percent off are good predictions, and lie outside intervals a tenth of that wide."""
    runs = planted_runs(noise=0.0005)
    runs.loc[runs["flops"].nlargest(5).index, "val_loss"] *= 1.005
    analysis = analyse(META, runs)
    error, intervals = analysis.claims[1:3]
    assert "within the limit of 3.00%" in error.text
    assert error.holds is True
    assert intervals.holds is False
    assert intervals.text == f"The intervals of that prediction: {analysis.holdout.misfit}"
    assert json.loads(json.dumps(analysis.holdout.to_dict()))["misfit"] == analysis.holdout.misfit
    assert "FAILS: The intervals of that prediction: only 0 of 5" in print_analysis(analysis)


def test_the_details_to_report_stand_in_both_reports(written: tuple[Path, pd.DataFrame]) -> None:
    from experiments.analysis.checklist import YOURS

    folder, _ = written
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    words = Page(page).words
    assert page.count("<details>") == 1
    for name, hint in YOURS:
        assert f"{name} (yours to say)" in words
        assert f"- [ ] {name}: {hint}" in text
    for name in ("form", "objective", "form against the data", "held-out error"):
        assert f"- [x] {name}: " in text
    assert "held-out error: not measured" not in text


def test_without_a_bootstrap_the_report_says_none(tmp_path: Path) -> None:
    meta = StudyMeta("s", fit={"law": "chinchilla", "bootstrap": 0, "holdout": {"largest": 2}})
    runs = planted_runs()
    analysis = analyse(meta, runs)
    paths = write_report(tmp_path, meta, runs, None, analysis)
    said = paths.markdown.read_text() + print_analysis(analysis)
    assert "nan" not in said.lower()
    assert "no interval" in said


@pytest.mark.parametrize(
    ("inside", "n", "narrow"), [(4, 4, False), (3, 4, False), (2, 4, True), (0, 1, False), (0, 2, True)]
)
def test_intervals_that_miss_too_often_are_called_narrow(inside: int, n: int, narrow: bool) -> None:
    from experiments.analysis.misfit import improbable

    assert improbable(inside, n) is narrow


def test_too_few_finished_runs_still_make_a_report(tmp_path: Path) -> None:
    runs = planted_runs().assign(status="failed", val_loss=np.nan)
    runs.loc[:2, "status"] = "completed"
    runs.loc[:2, "val_loss"] = 3.0
    paths = write_report(tmp_path, META, runs)
    words = Page(paths.html.read_text()).words
    assert "Not done" in words
    assert "needs at least 6 points, found 3 (32 dropped)" in words
    assert "3 completed, 32 failed" in words


@pytest.mark.slow
def test_a_table_of_objects_with_gaps_is_read_like_one_of_numbers(tmp_path: Path) -> None:
    runs = with_diverged(planted_runs(), 17)
    curves = planted_curves(runs)
    gaps = runs.astype(object).where(runs.notna(), None)
    for folder, table in (("numbers", runs), ("objects", gaps)):
        write_report(tmp_path / folder, META, table, curves)
    assert (tmp_path / "objects" / "report.html").read_text() == (tmp_path / "numbers" / "report.html").read_text()


@pytest.mark.parametrize("rows", [0, 35])
def test_no_finished_run_at_all(tmp_path: Path, rows: int) -> None:
    runs = planted_runs().assign(status="failed", val_loss=np.nan).head(rows)
    words = Page(write_report(tmp_path, StudyMeta("empty"), runs).html.read_text()).words
    assert "No run has finished." in words
    assert "could not be drawn" in words


def test_a_study_without_a_fit_shows_figures_and_the_best_run(tmp_path: Path) -> None:
    meta = StudyMeta("depth", report={"figures": ["loss_vs"], "x": "n_embd", "hue": "tokens"})
    runs = planted_runs()
    analysis = analyse(meta, runs)
    assert analysis.fit is None
    best = runs.loc[runs["val_loss"].idxmin(), "label"]
    assert [claim.text for claim in analysis.claims] == [
        f"The lowest val_loss, {runs['val_loss'].min():.4f}, was reached by {best}."
    ]
    paths = write_report(tmp_path, meta, runs, None, analysis)
    assert [path.name for path in paths.figures] == ["loss_vs.png", "loss_vs.svg"]
    assert "How the law was fitted" not in paths.html.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("fit", [None, FIT | {"holdout": None}])
def test_approaches_stand_in_the_report_with_and_without_a_fit(tmp_path: Path, fit: dict | None) -> None:
    meta = StudyMeta("ladder", fit=fit, approaches={"draws": 30})
    runs = planted_ladder(0.003)
    analysis = analyse(meta, runs)
    assert analysis.approaches is not None
    assert analysis.approaches.get("surface").result is not None
    paths = write_report(tmp_path, meta, runs, None, analysis)
    words, markdown, text = Page(paths.html.read_text()).words, paths.markdown.read_text(), print_analysis(analysis)
    for part in (
        "Compute-optimal N grows as C^a with a = ",
        "tokens per parameter",
        "2, Akima",
        "6 N D",
        "all parameters",
    ):
        assert all(part in page for page in (words, text)), part
        assert part in markdown.replace("\\", ""), part
    assert {"isoflop_slices", "compute_envelope", "loss_contours"} <= {path.stem for path in paths.figures}
    assert ("rollout_errors" in {path.stem for path in paths.figures}) == (fit is not None)
    assert ("Expanding cuts: how far the law predicts" in words) == (fit is not None)


def test_the_study_s_own_fit_is_the_surface_of_approach_3() -> None:
    analysis = analyse(
        StudyMeta("ladder", fit={**FIT, "holdout": None}, approaches={"draws": 0}), planted_ladder(0.003)
    )
    assert analysis.approaches is not None
    assert analysis.approaches.get("surface").result.fit is analysis.fit


def test_approaches_read_curves_where_they_are_asked_to() -> None:
    runs = planted_ladder(0.003)
    seen = analyse(
        StudyMeta("ladder", approaches={"read": "curves", "draws": 0}), runs, planted_curves(runs)
    ).approaches
    assert seen is not None
    assert seen.observations.source == "curves"
    assert seen.observations.runs == len(runs)


def test_a_fit_that_no_cut_can_judge_says_so() -> None:
    analysis = analyse(StudyMeta("few", fit={"law": "chinchilla", "bootstrap": 0}), planted_runs().head(6))
    assert analysis.rollout is None
    assert any("no held-out error stands beside the fit" in problem for problem in analysis.problems)


def test_excess_loss_has_the_true_floor_zero() -> None:
    meta = StudyMeta("excess", fit={**FIT, "y": "val_excess_loss", "holdout": None})
    claim = analyse(meta, planted_runs(noise=0.0005)).claims[2]
    assert "true floor 0.0000" in claim.text


def test_mistakes_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quickstart: report\.figures\.0\.figure: 'loss_vs_flops' is not known"):
        write_report(tmp_path / "new", StudyMeta("quickstart", report={"figures": ["loss_vs_flops"]}), planted_runs())
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file", StudyMeta("quickstart"), planted_runs())


@pytest.mark.browser
def test_a_browser_shows_it_without_a_complaint(written: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    import shutil
    import subprocess

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    shot = tmp_path / "page.png"
    command = [
        chromium,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--screenshot={shot}",
    ]
    page = (written[0] / "report.html").as_uri()
    done = subprocess.run([*command, page], capture_output=True, text=True, timeout=180, check=False)
    assert shot.stat().st_size > 20000
    assert "CONSOLE" not in done.stderr


def test_with_seeds_the_best_setting_is_that_of_lowest_mean() -> None:
    losses = {(1, 1): 2.0, (1, 2): 2.1, (2, 1): 1.9, (2, 2): 2.4}
    rows = [
        {"id": f"{n}{seed}", "label": f"n_layer={n}-seed={seed}", "status": "completed", "seed": seed,
         "model.n_layer": n, "flops": 1e9 * n, "n_params": n, "val_loss": loss}
        for (n, seed), loss in losses.items()
    ]  # fmt: skip
    claims = [claim.text for claim in analyse(StudyMeta("depth"), pd.DataFrame(rows)).claims]
    assert claims == [
        "The lowest mean val_loss over 2 seeds, 2.0500 (sd 0.0707), was at n_layer=1.",
        "The lowest val_loss, 1.9000, was reached by n_layer=2-seed=1.",
    ]
