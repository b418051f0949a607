"""Plans: time from measured speed, shared trunks, warnings, designs that keep to their budget, the next run to add.

Those marked slow take under a minute together.
"""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from experiments.__main__ import main
from experiments.lock import resolve
from experiments.planner.amounts import duration
from experiments.planner.crew import START_SECONDS, Crew, makespan
from experiments.planner.designs import chinchilla, isoflop, loss, optimal_size
from experiments.planner.ladder import ladder
from experiments.planner.rates import Rate, Rates, Setting, by_shape
from experiments.planner.settings import EMBEDDED, watts_of
from experiments.study import Study
from experiments.trunks import find_trunks
from nanogpt.config import UserError

pytestmark = pytest.mark.usefixtures("fake_engine")
SURFACE = "{grid: {n_embd: [8, 16, 32], tokens: [65536, 131072, 262144]}}"
CHINCHILLA = "fit: {law: chinchilla}"

SLOW = pytest.mark.slow  # budget: half a minute each
KINDS = ["isoflop", *(pytest.param(kind, marks=SLOW) for kind in ("tokens_per_param", "chinchilla"))]


@pytest.fixture
def plan(tmp_path, capsys):
    """`plan` on a study in this process; returns its status, what it printed, and what it said aside."""

    def run(study, *arguments, out=None):
        status = main(["plan", str(study), "--out", str(out or tmp_path / "results"), *map(str, arguments)])
        return (status, *capsys.readouterr())

    return run


def test_the_plan_foresees_the_fit_and_shows_every_shape(plan, write_study, tmp_path):
    status, page, _ = plan(write_study(SURFACE, CHINCHILLA))
    assert status == 0
    assert "expected 95 % intervals" in page
    assert all(f"               {name} " in page for name in ("E", "alpha", "beta", "a (N_opt ~ C^a)"))
    assert "noise 0.50% of the loss: assumed" in page
    assert page.count("\n  n_embd=") == 3
    assert "unknown: 3 shapes not measured" in page
    assert not (tmp_path / "results").exists()


def test_a_calibration_is_measured_once_and_kept(plan, write_study, tmp_path):
    study = write_study(SURFACE, "plan: {price: 2, currency: EUR, power: 0.5kW}")
    _, page, aside = plan(study, "--calibrate", "--jobs", 1, "--budget", "1m")
    assert "measuring 3 shapes, 1 at a time" in aside
    kept = json.loads((tmp_path / "results" / "throughput.json").read_text())["rates"]
    assert sorted(entry["shape"]["n_embd"] for entry in kept.values()) == [8, 16, 32]
    tokens = 65536 * 7
    seconds = sum(tokens * width / 1e6 for width in (8, 16, 32)) + 9 * 0.25
    evaluations = 3 * sum(-(-(tokens // 7 * factor // 16) // 250) for factor in (1, 2, 4)) * 0.5
    assert f"{duration(seconds + evaluations + START_SECONDS)} for 9 runs" in page
    assert "money        EUR" in page
    assert "energy" in page
    assert "does not fit" in page
    status, again, aside = plan(study, "--jobs", 1)
    assert (status, aside) == (0, "")
    assert again.count("  time  ") == 1
    assert "unknown" not in again


def test_two_calibrations_at_once_keep_the_speeds_of_both(write_study, tmp_path):
    setting, rate = Setting("a machine", 2, 1), Rate(1e3, 0.0, 0.0, 0.0)
    one, two = resolve(Study.load(write_study())).runs
    first, second = Rates(tmp_path), Rates(tmp_path)
    first.keep("one", setting, one, rate)
    second.keep("two", setting, two, rate)
    assert Rates(tmp_path).get("one", setting) == Rates(tmp_path).get("two", setting) == rate


def test_a_shape_that_cannot_be_measured_is_named(plan, write_study):
    _, page, _ = plan(write_study("{seeds: [100]}"), "--calibrate")
    assert "cannot be measured here: told to fail" in page


BAD = {
    "--budget": ["soon", "0h", "-3h", "nan", "inf", "3 parsecs", "", "1e400"],
    "--flops": ["inf", "nan", "0", "-1", "1e400", "1e18 FLOP/s", "many", "true", ""],
    "--price": ["-1", "nan", "inf", "cheap", "2.5 USD"],
    "--power": ["many", "-1W", "nan", "inf", "3MW"],
    "--smallest": ["0", "-1", "2.5", "few"],
}


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in BAD.items() for value in values])
def test_a_bad_amount_is_one_line(plan, write_study, flag, value):
    status, page, error = plan(write_study(), f"{flag}={value}")
    assert (status, page) == (2, "")
    assert error.startswith(f"command line: {flag}: expected")
    assert error.count("\n") == 1


GOOD = {
    "--budget=90m": "1 h 30 min", "--budget=1.5h": "1 h 30 min", "--budget=3 hours": "3 h 00 min",
    "--budget=1h30m": "1 h 30 min", "--budget=2 h 05 min": "2 h 05 min", "--budget=5400": "1 h 30 min",
    "--flops=1e18": "of 1 EFLOP", "--flops=1e18FLOP": "of 1 EFLOP", "--flops=4 TFLOP": "of 4 TFLOP",
    "--flops=2.5e3 GFLOPs": "of 2.5 TFLOP",
}  # fmt: skip


@pytest.mark.parametrize("flag", GOOD)
def test_an_amount_is_written_as_people_do_and_answered_without_a_measurement(plan, write_study, flag):
    status, page, _ = plan(write_study(), flag)
    (line,) = [line for line in page.splitlines() if line.startswith("  budget ")]
    assert status == 0
    assert GOOD[flag] in line


def test_no_flag_is_left_without_an_answer(plan, write_study):
    flags = ["--budget", "1h", "--flops", "1e9", "--price", "2", "--power", "300W"]
    _, page, _ = plan(write_study(SURFACE), *flags)
    assert "budget       1 h 00 min: unknown whether it fits: " in page
    assert "FLOP in that time ask for" in page
    assert "--calibrate" in page
    assert "money        unknown" in page
    assert "energy       unknown" in page
    assert "budget       fits" in page or "budget       does not fit" in page


@pytest.mark.parametrize(("launcher", "words"), [
    ("local", "would run on local, 1 run at a time"),
    ("{kind: slurm, workers: 3, cpus: 4}", "would run on slurm, 3 workers of "),
    ("{kind: ray, workers: 2, cpus: 1}", "would run on ray, 2 workers of 1 run at a time; ray may train elsewhere"),
])  # fmt: skip
def test_the_plan_names_where_it_would_run(plan, write_study, launcher, words):
    jobs = ["--jobs", "1"] if launcher == "local" else []
    assert words in plan(write_study(SURFACE, f"launcher: {launcher}"), *jobs)[1]


def test_money_and_energy_are_those_of_the_devices_held(plan, write_study):
    study = write_study("{grid: {max_iters: [1000]}}", "plan: {price: 3.6, currency: EUR, power: 720}")
    _, page, _ = plan(study, "--calibrate", "--jobs", 1)
    seconds = START_SECONDS + 16000 * 8 / 1e6 + 0.25 + 4 * 0.5
    assert f"money        EUR {seconds / 1000:.3g} (1 machine, EUR 3.6 an hour each, held throughout)" in page
    assert f"energy       {seconds / 5:.3g} Wh (1 machine at 720 W)" in page


def test_a_bad_section_is_placed(write_study):
    with pytest.raises(UserError, match=r"tiny\.yaml:5: plan\.prize: no such key; did you mean 'price'"):
        Study.load(write_study(more="plan: {prize: 2}"))


def test_the_slots_take_the_longest_run_first(write_study):
    runs = resolve(Study.load(write_study("{grid: {max_iters: [1, 2, 3, 10]}}"))).runs
    two = Crew("local", 1, 2, 1, 1, "machine", here=True)
    assert makespan(runs, lambda run: float(run.steps), two) == START_SECONDS + 10
    assert makespan(runs, lambda run: 4.0, two) == START_SECONDS + 8
    assert makespan([], lambda run: 4.0, two) == 0


def test_a_rate_counts_evaluations_and_checkpoints(write_study):
    (run,) = resolve(Study.load(write_study("{}", "config: {max_iters: 500, eval_interval: 100}"))).runs
    rate = Rate(run.tokens / 61.0, evaluation_seconds=2.0, setup_seconds=1.0, checkpoint_seconds=0.5)
    assert rate.seconds(run) == pytest.approx(61 + 5 * 2 + 1 + 2 * 0.5)


def test_runs_of_one_shape_differ_in_nothing_that_costs_time(write_study):
    sweep = "{grid: {n_embd: [8, 16], learning_rate: [1e-3, 1e-2], max_iters: [5, 6]}, seeds: 2}"
    assert [len(group) for group in by_shape(resolve(Study.load(write_study(sweep))).runs).values()] == [8, 8]


def test_trunks_are_shared_up_to_the_first_cool_down(plan, write_study):
    schedule = "config: {schedule: {kind: wsd, cooldown: 0.2}}"
    study = write_study("{grid: {n_embd: [8, 16], max_iters: [100, 200, 400]}}", schedule)
    trunks = find_trunks(resolve(Study.load(study)).runs)
    assert [trunk.stable for trunk in trunks] == [(320, 160, 80)] * 2
    assert trunks[0].saved_steps == 240
    assert trunks[0].saved_flops == trunks[0].runs[0].flops * 240 / 400
    assert "6 runs share 2 WSD trunks, trained once each" in plan(study)[1]
    assert "(34%)" in plan(study)[1]


@pytest.mark.parametrize("more", ["", "config: {schedule: cosine}"])
def test_other_schedules_share_nothing(write_study, more):
    assert find_trunks(resolve(Study.load(write_study("{grid: {max_iters: [100, 200]}}", more))).runs) == []


@pytest.mark.slow
def test_a_fixed_ratio_is_warned_of(plan, write_study):
    fixed = write_study("{grid: {n_embd: [8, 16, 32, 64, 128, 256], tokens_per_param: [20]}}", CHINCHILLA)
    _, page, _ = plan(fixed)
    assert "every run has the same 20 tokens per parameter" in page or "every run has the same 20." in page
    assert page.count("not identified by these runs") == 4
    assert ": ill conditioned: the runs do not move the law's inputs apart" in page
    assert "well conditioned" not in page
    assert "every run has" not in plan(write_study(SURFACE, CHINCHILLA))[1]


def test_repeated_data_is_warned_of(plan, write_study):
    assert "8 runs read" not in plan(write_study("{grid: {max_iters: [60]}}"))[1]
    _, page, _ = plan(write_study("{grid: {max_iters: [60, 125]}}"))
    assert "1 run read the training data more than once, max_iters=125 2 times" in page


@pytest.mark.slow
def test_a_law_nobody_expects_is_said_so(plan, write_study):
    law = "fit: {law: power_law, x: tokens}"
    assert "no expected parameters yet" in plan(write_study(SURFACE, law))[1]
    prior = "plan: {prior: {A: 20.0, alpha: 0.2}, noise: 0.01}"
    page = plan(write_study(SURFACE, f"{law}\n{prior}"))[1]
    assert "alpha " in page
    assert "the study's `plan.prior`; noise 1.00% of the loss" in page
    assert "lacks alpha of power_law" in plan(write_study(SURFACE, f"{law}\nplan: {{prior: {{A: 20.0}}}}"))[1]


def rungs(write_study):
    return ladder(resolve(Study.load(write_study(SURFACE))).runs, 1e8)


def test_the_ladder_grows_as_the_study_does(write_study):
    widths = [rung.settings for rung in rungs(write_study)]
    assert widths[:5] == [{"n_embd": 8}, {"n_embd": 16}, {"n_embd": 24}, {"n_embd": 32}, {"n_embd": 40}]
    odd = ladder(resolve(Study.load(write_study("{grid: {n_embd: [6, 8]}}"))).runs, 1e8)
    assert [rung.settings["n_embd"] for rung in odd[:3]] == [4, 6, 8]  # whose widths are no multiples of 8
    both = write_study("{zip: {n_embd: [64, 256], n_layer: [2, 8], n_head: [2, 8]}}")
    found = {rung.settings["n_embd"]: rung.settings for rung in ladder(resolve(Study.load(both)).runs, 1e8)}
    assert found[128] == {"n_embd": 128, "n_layer": 4, "n_head": 4}
    assert found[512] == {"n_embd": 512, "n_layer": 16, "n_head": 16}
    deep = write_study("{grid: {n_layer: [2, 4]}}")
    assert {"n_layer": 16} in [rung.settings for rung in ladder(resolve(Study.load(deep)).runs, 1e6)]


def test_an_isoflop_design_encloses_every_optimum(write_study):
    shapes, law = rungs(write_study), EMBEDDED
    design = isoflop(1e14, law, shapes)
    budgets = {cell.value for cell in design.cells}
    assert len(budgets) == 5
    for budget in budgets:
        sizes = [cell.rung.n for cell in design.cells if cell.value == budget]
        lowest = min(sizes, key=lambda n: loss(law, n, budget / (6 * n)))
        assert len([n for n in sizes if n < lowest]) >= 2 <= len([n for n in sizes if n > lowest])
    assert 0.9e14 <= design.flops <= 1e14


def test_the_optimal_size_is_the_closed_form(write_study):
    g = (EMBEDDED["alpha"] * EMBEDDED["A"] / EMBEDDED["beta"] / EMBEDDED["B"]) ** (
        1 / (EMBEDDED["alpha"] + EMBEDDED["beta"])
    )
    exact = g * (1e13 / 6) ** (EMBEDDED["beta"] / (EMBEDDED["alpha"] + EMBEDDED["beta"]))
    assert optimal_size(EMBEDDED, rungs(write_study), 1e13) == pytest.approx(exact, rel=0.05)


def test_a_surface_crosses_sizes_and_lengths(write_study):
    design = chinchilla(1e14, EMBEDDED, rungs(write_study))
    assert len(design.cells) == 25 == len({(cell.rung.n, cell.value) for cell in design.cells})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [["--flops", "1e14"], pytest.param(["--budget", "1d"], marks=SLOW)])
def test_a_proposed_study_keeps_to_its_budget_by_its_own_plan(plan, write_study, tmp_path, monkeypatch, kind, budget):
    monkeypatch.chdir(tmp_path)  # speeds are kept in ./results
    target = tmp_path / "mine.yaml"
    status, told, error = plan(write_study(SURFACE, CHINCHILLA), "--propose", kind, *budget, out=target)
    assert status == 0, error
    assert told.startswith(f"{target}: ")
    _, page, _ = plan(target, out="results")
    assert "budget       fits:" in page, page
    assert "does not fit" not in page
    used = int(page.partition("fits:")[2].partition("(")[2].partition("%")[0])
    assert used >= 60
    assert "E                1.95 +- " in page
    assert ("well conditioned" in page) == ("not identified" not in page)
    assert all(f"n_embd: {width}," not in target.read_text() for width in (4, 5, 6))
    assert list(tmp_path.glob("*draft*")) == []


def test_a_proposal_is_refused_where_an_optimum_would_sit_on_the_edge(plan, write_study, tmp_path):
    study = write_study(SURFACE, CHINCHILLA)
    status, _, error = plan(study, "--propose", "isoflop", "--flops", "1e9", out=tmp_path / "mine.yaml")
    assert status == 2
    assert "refused: at" in error
    assert "would sit on the edge" in error
    assert not (tmp_path / "mine.yaml").exists()
    status, _, error = plan(study, "--propose", "chinchilla", "--flops", "1e9", out=tmp_path / "mine.yaml")
    assert "are too few: the cheapest such design" in error


def test_a_proposal_overwrites_nothing_and_needs_a_budget(plan, write_study, tmp_path):
    study, target = write_study(SURFACE, CHINCHILLA), tmp_path / "mine.yaml"
    assert "needs a budget" in plan(study, "--propose", "isoflop", out=target)[2]
    target.write_text("mine")
    assert "exists already" in plan(study, "--propose", "isoflop", "--flops", "1e14", out=target)[2]
    assert target.read_text() == "mine"
    odd = tmp_path / "mine.txt"
    assert "a proposed study is a file NAME.yaml" in plan(study, "--propose", "isoflop", "--flops", "1e14", out=odd)[2]


@pytest.mark.slow
def test_a_proposal_keeps_to_the_studied_sizes_unless_asked(plan, write_study, tmp_path):
    study = write_study("{grid: {n_embd: [32, 64, 128], tokens: [65536, 131072, 262144]}}", CHINCHILLA)
    where = ["--propose", "isoflop", "--flops", "2e12"]
    status, _, error = plan(study, *where, out=tmp_path / "mine.yaml")
    assert status == 2
    assert "shapes start at the study's smallest, 12.3k parameters (--smallest N allows less)" in error
    status, told, error = plan(study, *where, "--smallest", "100", out=tmp_path / "mine.yaml")
    assert (status, error) == (0, "")
    assert "leaves the sizes that the study has, 12.3k to 197k parameters: down to " in told


def test_one_verdict_on_a_design(plan, write_study):
    """Widely spread inputs and far too few runs: the inputs are told apart, but nothing is known of the law."""
    study = write_study(
        "{grid: {n_embd: [8, 16, 32], tokens: [65536, 131072, 262144]}}", f"{CHINCHILLA}\nplan: {{noise: 0.3}}"
    )
    _, page, _ = plan(study)
    assert "not identified by these runs" in page
    assert "conditioned" not in page
    assert "too few runs, or too alike, to tell" in page
    assert "warning      these runs are not expected to identify" in page


@pytest.mark.slow  # budget: half a minute
def test_the_next_run_is_within_its_cost_and_new(plan, write_study, command, tmp_path):
    sweep = "{grid: {n_embd: [8, 12, 16, 24, 32, 48]}}"
    study = write_study(sweep, "fit: {law: saturating_power_law, x: n_params, bootstrap: 0}")
    assert "needs results" in plan(study, "--next")[2]
    assert command("run", study, "--out", tmp_path / "results", "--no-report").returncode == 0
    _, page, _ = plan(study, "--next", "E")
    assert "tells most of E" in page
    assert "points: [{n_embd: " in page
    largest = max(run.flops for run in resolve(Study.load(study)).runs)
    dear = plan(study, "--next", "E", "--flops", str(largest * 100))[1]
    assert int(dear.partition("{n_embd: ")[2].partition(",")[0]) > 48
    assert "no parameter 'F'" in plan(study, "--next", "F")[2]


def test_powers_are_written_as_people_do():
    assert [watts_of(text) for text in (350, "350", "350W", "0.35kW", "0.35 kW")] == [350.0] * 5


def test_the_shipped_page_names_every_key_and_flag():
    from experiments.planner.settings import PlanSettings

    page = (ROOT / "docs" / "planning.md").read_text()
    assert all(f"`{key}`" in page for key in PlanSettings.model_fields)
    assert Path(ROOT / "docs" / "planning.md").is_file()
