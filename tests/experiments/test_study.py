"""Studies: every run's config is validated before anything launches, and mistakes carry file and line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.results import check_columns
from experiments.study import Study, study_schema
from nanogpt.config import UserError
from nanogpt.configfile import load_yaml

ROOT = Path(__file__).resolve().parents[2]


def test_runs_have_configs_dotted_factors_and_labels(write_study):
    study = Study.load(write_study("{grid: {n_layer: [1, 2], learning_rate: [3e-3]}, seeds: [5]}"))
    runs = study.runs()
    assert [run.label for run in runs] == ["n_layer=1-lr=0.003-seed=5", "n_layer=2-lr=0.003-seed=5"]
    assert runs[1].factors == {"model.n_layer": 2, "optimizer.learning_rate": 0.003, "seed": 5}
    assert runs[1].config.model.n_layer == 2
    assert runs[1].config.seed == 5
    assert study.name == "tiny"


def test_sections_and_old_flags_vary_too(write_study):
    sweep = "{grid: {ffn: [gelu, {kind: swiglu, multiple_of: 8}], use_rope: [true, false], mode: [SP]}}"
    runs = Study.load(write_study(sweep)).runs()
    assert [run.factors["model.ffn"] for run in runs] == ["gelu"] * 2 + ["swiglu(multiple_of=8)"] * 2
    assert [run.factors["model.position"] for run in runs] == ["rope", "learned"] * 2
    assert {run.factors["parametrization.mode"] for run in runs} == {"sp"}
    assert runs[-1].config.model.ffn.kind == "swiglu"


def test_points_show_the_base_value_of_factors_they_do_not_set(write_study):
    runs = Study.load(write_study("{grid: {n_layer: [2]}, points: [{n_embd: 16}]}")).runs()
    assert [run.factors for run in runs] == [
        {"model.n_layer": 2, "model.n_embd": 8},
        {"model.n_layer": 1, "model.n_embd": 16},
    ]


def test_filters_see_the_factors(write_study):
    study = Study.load(write_study("{grid: {n_layer: [1, 2], n_embd: [8, 16]}, filter: n_layer * n_embd <= 16}"))
    assert [(r.config.model.n_layer, r.config.model.n_embd) for r in study.runs()] == [(1, 8), (1, 16), (2, 8)]


def test_a_horizon_in_the_sweep_replaces_the_base_s(write_study):
    (run,) = Study.load(write_study("{grid: {tokens: [1e3]}}")).runs()
    assert run.config.train.horizon == ("tokens", 1000)


def test_overrides_apply_to_all_runs(write_study):
    study = Study.load(write_study(), ["n_embd=16"])
    assert {run.config.model.n_embd for run in study.runs()} == {16}
    assert study.hash != Study.load(write_study()).hash


@pytest.mark.parametrize(
    ("sweep", "more", "message"),
    [
        ("{grid: {n_layr: [1]}}", "", "tiny.yaml:4: n_layr: no such key; did you mean 'n_layer'?"),
        ("{grid: {model.n_layr: [1]}}", "", "tiny.yaml:4: model.n_layr: no such key; did you mean 'n_layer'?"),
        ("{grid: {n_layer: [deep]}}", "", "tiny.yaml:4: model.n_layer: expected a whole number, got 'deep'"),
        ("{grid: {n_head: [3]}}", "", "tiny.yaml:4: model: n_embd=8 is not divisible by n_head=3"),
        ("{grid: {}, grdi: {}}", "", "tiny.yaml:4: sweep.grdi: no such key; did you mean 'grid'?"),
        ("{grid: {n_layer: [1]}, filter: n_layer > 3}", "", "tiny.yaml:4: sweep.filter: none of the 1 runs is left"),
        ("{grid: {n_layer: [1], model.n_layer: [2]}}", "", "tiny.yaml:4: model.n_layer: varied twice"),
        ("{grid: {n_layer: [1]}, zip: {n_layer: [2]}}", "", "tiny.yaml:4: n_layer: varied twice"),
        ("{}", "colour: red", "tiny.yaml:5: colour: no such key"),
        ("{}", "config: {n_layr: 3}", "tiny.yaml:5: n_layr: no such key; did you mean 'n_layer'?"),
        ("{}", "config: {n_layer: 3, n_layer: 4}", "tiny.yaml:5: config.n_layer: key given twice"),
        ("{}", "fit: {law: chinchila}", "tiny.yaml:5: fit.law: 'chinchila' is not known; did you mean 'chinchilla'?"),
        ("{}", "report: {figures: [pie]}", "tiny.yaml:5: report.figures"),
        ("{}", "name: ../elsewhere", "'../elsewhere' cannot name a folder"),
        ("{}", "question: 3", "key given twice"),
    ],
)
def test_mistakes_name_file_and_line(write_study, sweep, more, message):
    with pytest.raises(UserError) as error:
        Study.load(write_study(sweep, more)).runs()
    assert message in str(error.value)


def test_a_study_says_what_it_expects(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("question: What?\n")
    with pytest.raises(UserError, match="hypothesis: is missing; a study says it before it runs"):
        Study.load(path)


def test_an_override_of_a_varied_key_is_refused(write_study):
    with pytest.raises(UserError, match=r"command line: n_layer: the sweep varies it .*tiny.yaml:4"):
        Study.load(write_study(), ["n_layer=3"])


def test_ten_thousand_runs_are_validated(write_study):
    rates = "{logspace: {start: 1e-4, stop: 1e-1, num: 100}}"
    sweep = f"{{grid: {{learning_rate: {rates}, n_layer: {{range: {{start: 1, stop: 101}}}}}}}}"
    assert len(Study.load(write_study(sweep)).runs()) == 10_000


def test_a_grid_from_python_equals_one_from_yaml(write_study):
    path = write_study("{grid: {n_layer: [1, 2], use_rope: [true]}}", "config: {n_embd: 16}")
    base = path.parent / "base.yaml"
    made = Study.from_grid("tiny", base, {"n_embd": 16}, {"n_layer": [1, 2], "use_rope": [True]})
    assert [(r.config, r.label) for r in made.runs()] == [(r.config, r.label) for r in Study.load(path).runs()]
    path.with_name("again.yaml").write_text(made.text)
    assert [r.config for r in Study.load(path.with_name("again.yaml")).runs()] == [r.config for r in made.runs()]


def test_the_schema_lists_the_keys(write_study):
    schema = study_schema()
    names = schema["$defs"]["Sweep"]["properties"]["grid"]["propertyNames"]["enum"]
    assert {"n_layer", "model.n_layer", "use_rope"} <= set(names)
    assert "kind" not in names
    json.dumps(schema)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("fit", {"losss": "huber"}), ("fit", {"law": "chinchila"}), ("fit", {"bootstrap": -1}), ("fit", "chinchilla"),
        ("fit", {"intervals": "profil"}), ("fit", {"holdout": {"fractoin": 0.3}}), ("optimum", {"of": "n_embd"}),
        ("approaches", {"reed": "runs"}), ("report", {"figures": ["loss_vs_comput"]}), ("report", {"hew": "seed"}),
        ("sizes", {"small": {"optimum": {"offf": "n_embd"}}}),
    ],
)  # fmt: skip
def test_the_schema_checks_inside_the_sections_of_the_analysis(key, wrong):
    """What the program refuses an editor marks; what the shipped studies say it does not."""
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(study_schema())
    shipped = [load_yaml(path).data for path in sorted((ROOT / "studies").glob("*.yaml"))]
    assert len(shipped) > 5
    assert all(check.is_valid(study) for study in shipped)
    right = {"fit": {"law": "m4", "x": "tokens"}, "optimum": None, "approaches": {"noise": 0.002},
             "report": {"figures": ["loss_vs", {"figure": "loss_vs", "x": "n_layer"}]},
             "sizes": {"small": {"optimum": {"window": 3}}}}  # fmt: skip
    assert check.is_valid({**shipped[0], key: right[key]})
    assert not check.is_valid({**shipped[0], key: wrong})


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{grid: {}}", "sweep.grid: is empty"),
        ("{grid: {n_layer: [1]}, seeds: 0}", "sweep.seeds: expected a number of seeds of at least 1"),
        ("{points: [{}]}", "sweep.points: holds an empty point"),
        ("{grid: {out_dir: [a]}}", "runtime.out_dir: a study decides itself"),
        ("{grid: {branch_from: [nowhere]}}", "runtime.branch_from: no run's folder: nowhere"),
    ],
)
def test_what_a_study_cannot_mean_is_refused(write_study, sweep, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        Study.load(write_study(sweep)).runs()
    assert "tiny.yaml:4: " in str(error.value)


def test_numpy_values_are_as_good_as_plain_ones(write_study, tmp_path):
    write_study()
    base = tmp_path / "base.yaml"
    one = Study.from_grid("g", base, {"seed": np.int64(3)}, {"n_layer": range(1, 3), "learning_rate": np.array([1e-3])})
    other = Study.from_grid("g", base, {"seed": 3}, {"n_layer": [1, 2], "learning_rate": [1e-3]}, None)
    assert [run.config for run in one.runs()] == [run.config for run in other.runs()]
    assert one.text == other.text
    with pytest.raises(UserError, match="grid_name: expected text, got 3"):
        Study.from_grid(3, base)


def test_a_base_that_leads_back_to_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    study = tmp_path / "s.yaml"
    study.write_text("question: q\nhypothesis: h\nbase: a.yaml\nsweep: {seeds: 2}\n")
    with pytest.raises(UserError, match="leads back to"):
        Study.load(study)


@pytest.mark.parametrize(
    ("analysis", "message"),
    [
        ("fit: {law: power_law, y: val_los}", "fit.y: no column 'val_los'; did you mean 'val_loss'?"),
        ("fit: {law: power_law, x: flop}", "fit.x: no column 'flop'; did you mean 'flops'?"),
        ("fit: {law: power_law, where: n_embed > 3}", "fit.where: no column 'n_embed'"),
        ("fit: {law: power_law, holdout: {by: flop, largest: 2}}", "fit.holdout.by: no column 'flop'"),
        ("report: {hue: n_emb}", "report.hue: no column 'n_emb'"),
        ("report: {figures: [{figure: loss_vs, x: n_head}]}", "report.figures.0.x: no column 'n_head'"),
    ],
)
def test_columns_are_checked_before_anything_is_trained(write_study, analysis, message):
    study = Study.load(write_study("{grid: {n_layer: [1, 2]}}", analysis))
    with pytest.raises(UserError, match=re.escape(message)):
        check_columns(study, ["model.n_layer"])


def test_columns_go_by_their_ending_too(write_study):
    study = Study.load(write_study("{grid: {n_layer: [1, 2]}}", "report: {hue: n_layer, x: model.n_layer}"))
    check_columns(study, ["model.n_layer"])


def test_variants_multiply_the_grid_and_are_known_by_their_names(write_study):
    sweep = """
  variants:
    plain: {}
    wide: {n_head: 2, ffn: {kind: gelu, hidden: 48}}
  grid: {n_layer: [1, 2]}
  seeds: 2
  filter: variant != 'wide' or n_layer > 1"""
    specs = Study.load(write_study(sweep)).runs()
    assert [tuple(spec.factors.values()) for spec in specs] == [
        ("plain", 1, 1), ("plain", 1, 2), ("plain", 2, 1), ("plain", 2, 2), ("wide", 2, 1), ("wide", 2, 2),
    ]  # fmt: skip
    assert list(specs[0].factors) == ["variant", "model.n_layer", "seed"]
    assert specs[-1].label == "variant=wide-n_layer=2-seed=2"
    assert (specs[-1].config.model.n_head, specs[-1].config.model.ffn_hidden) == (2, 48)
    assert specs[0].config.model.n_head == 1


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{variants: {a: {n_layer: 3}}, grid: {n_layer: [1, 2]}}", "n_layer: varied twice"),
        ("{variants: {}}", r"sweep.variants: is empty"),
        ("{variants: {a: {}, b: {}}, points: [{n_layer: 1}]}", "variants do not go with points"),
        ("{variants: {a: {n_lair: 3}}}", "n_lair"),
        ("{variants: {a: {n_layer: x}}}", r"tiny.yaml:4.*n_layer"),
    ],
)
def test_a_variant_that_cannot_be_is_told_with_its_line(write_study, sweep, message):
    with pytest.raises(UserError, match=message):
        Study.load(write_study(sweep)).runs()
