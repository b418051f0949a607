"""The sizes of a study: layers over it, chosen by name, with results of their own; and `limits:` and `optimum:`.

Those marked slow take under a minute together.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from experiments.__main__ import main
from experiments.lock import read_lock
from experiments.results import check_base, check_columns, load
from experiments.study import Study
from nanogpt.config import UserError

SIZES = """limits: Nothing can be seen.
config: {n_head: 2}
sizes:
  large:
    hypothesis: More.
    limits: Something can be seen.
    config: {n_embd: 16}
    sweep: {grid: {n_layer: [3]}}
  many: {sweep: {seeds: 4}}
  broken:
    sweep:
      grid:
        n_layr: [3]
"""
SWEEP = "{grid: {n_layer: [1, 2]}, zip: {learning_rate: [1e-3], beta2: [0.9]}, seeds: [1, 2]}"


def test_a_size_is_a_layer_over_the_study(write_study):
    path = write_study(SWEEP, SIZES)
    plain, large, many = (Study.load(path, size=size) for size in (None, "large", "many"))
    assert plain.sizes == ("large", "many", "broken")
    assert [study.name for study in (plain, large, many)] == ["tiny", "tiny-large", "tiny-many"]
    assert (large.question, large.hypothesis, large.limits) == ("What?", "More.", "Something can be seen.")
    assert (many.hypothesis, many.limits) == ("That.", "Nothing can be seen.")
    runs = large.runs()
    assert {(run.config.model.n_embd, run.config.model.n_head) for run in runs} == {(16, 2)}
    assert [(run.factors["model.n_layer"], run.factors["seed"]) for run in runs] == [(3, 1), (3, 2)]
    assert runs[0].factors["optimizer.beta2"] == 0.9
    assert len(many.runs()) == 8
    assert {run.config.model.n_embd for run in plain.runs()} == {8}


def test_a_size_changes_the_hash_and_the_name_only_where_chosen(write_study):
    path = write_study(SWEEP, SIZES)
    assert len({Study.load(path, size=size).hash for size in (None, "large", "many")}) == 3


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("larg", "tiny.yaml: --size: no such size 'larg'; did you mean 'large'?"),
        ("broken", "tiny.yaml:17: n_layr: no such key; did you mean 'n_layer'?"),
    ],
)
def test_mistakes_in_a_size_are_one_line(write_study, size, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        Study.load(write_study(SWEEP, SIZES), size=size).runs()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("sizes: {gpu: {confg: {}}}", "tiny.yaml:5: sizes.gpu.confg: no such key; did you mean 'config'?"),
        ("sizes: {gpu: {sweep: {gird: {}}}}", "sizes.gpu.sweep.gird: no such key; did you mean 'grid'?"),
        ("optimum: {of: learning_rate}", "tiny.yaml:5: optimum.per: is missing"),
        ("approaches: {budget: 5}", "tiny.yaml:5: approaches.budget: no such key; did you mean 'budgets'?"),
        ("approaches: {read: curve}", "approaches.read: 'curve' is not known; did you mean 'curves'?"),
        ("approaches: {window: 3}", "approaches.window: input should be greater than or equal to 4, found 3"),
        ("approaches: {where: 'n_embd >'}", "approaches.where: "),
        ("fit: {rollout: {cut: 5}}", "fit.rollout.cut: no such key; did you mean 'cuts'?"),
        ("optimum: {of: learning_rate, pre: n_embd, per: n_embd}", "optimum.pre: no such key; did you mean 'per'?"),
    ],
)
def test_mistakes_in_the_new_keys_are_one_line(write_study, more, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Study.load(write_study(SWEEP, more))


def test_a_study_without_sizes_says_so(write_study):
    with pytest.raises(UserError, match="no such size 'gpu'; this study has no `sizes:`"):
        Study.load(write_study(), size="gpu")


def test_a_size_may_change_the_optimum(write_study):
    more = "optimum: {of: learning_rate, per: n_layer, base: 1}\nsizes: {gpu: {optimum: {base: 2, window: 3}}}"
    path = write_study(SWEEP, more)
    assert Study.load(path).optimum == {"of": "learning_rate", "per": "n_layer", "base": 1}
    assert Study.load(path, size="gpu").optimum == {"of": "learning_rate", "per": "n_layer", "base": 2, "window": 3}


@pytest.mark.parametrize(
    ("optimum", "message"),
    [
        ("{of: learning_rat, per: n_layer}", "optimum.of: no column 'learning_rat'; did you mean 'learning_rate'?"),
        ("{of: learning_rate, per: n_layr}", "optimum.per: no column 'n_layr'; did you mean 'n_layer'?"),
        ("{of: learning_rate, per: n_layer, panel: mod}", "optimum.panel: no column 'mod'"),
        ("{of: learning_rate, per: n_layer, where: n_hed > 1}", "optimum.where: no column 'n_hed'"),
        ("{of: learning_rate, per: n_layer, base: 3}", "optimum.base: 3 is none of the sizes 1, 2"),
    ],
)
@pytest.mark.usefixtures("fake_engine")
def test_columns_and_base_are_checked_before_anything_is_trained(write_study, tmp_path, capsys, optimum, message):
    study = write_study(SWEEP, f"optimum: {optimum}")
    assert main(["run", str(study), "--out", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("fake_engine")
def test_every_command_takes_a_size_and_keeps_its_results_apart(write_study, tmp_path, command, capsys):
    study, out = write_study(SWEEP, SIZES), tmp_path / "results"
    done = command("run", study, "--size", "large", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "limits       Something can be seen." in done.stdout
    assert [path.name for path in out.iterdir()] == ["tiny-large"]
    assert read_lock(out / "tiny-large").size == "large"
    for verb in ("plan", "status", "results"):
        assert main([verb, str(study), "--size", "large", "--out", str(out)]) == 0
    assert "the study has changed" not in capsys.readouterr().out
    assert command("report", study, "--size", "large", "--out", out).returncode == 0
    report = (out / "tiny-large" / "report.md").read_text()
    assert "**What this study can not show.** Something can be seen." in report
    assert f"python -m experiments run {study} --size large" in report
    assert len(load(Study.load(study, size="large"), out)) == 2
    assert main(["status", str(study), "--out", str(out)]) == 2
    assert "no study.lock.json here" in capsys.readouterr().err


@pytest.mark.usefixtures("fake_engine")
def test_a_results_folder_has_its_size(write_study, tmp_path, command, capsys):
    study, out = write_study(SWEEP, SIZES), tmp_path / "results"
    command("run", study, "--out", out, "--no-report")
    for verb in ("plan", "run", "status", "results", "fit", "report"):
        assert main([verb, str(out / "tiny"), "--size", "large"]) == 2, verb
        assert capsys.readouterr().err == (
            f"command line: --size: {out / 'tiny'} is locked; give the study's YAML file instead\n"
        )


@pytest.mark.usefixtures("fake_engine")
def test_a_lock_of_the_version_before_is_read(write_study, tmp_path, command):
    """Studies that were run before there were optima stay readable, and need no new training."""
    study, out = write_study(SWEEP), tmp_path / "results"
    command("run", study, "--out", out, "--no-report")
    path = out / "tiny" / "study.lock.json"
    lock = json.loads(path.read_text())
    for key in ("optimum", "limits", "size"):
        del lock[key]
    path.write_text(json.dumps(lock | {"schema_version": 1}))
    assert main(["status", str(study), "--out", str(out)]) == 0
    assert main(["plan", str(study), "--out", str(out)]) == 0


SHIPPED = sorted((ROOT / "studies").glob("*.yaml"))
EVERY = [(path, size) for path in SHIPPED for size in (None, *Study.load(path).sizes)]


@pytest.mark.parametrize(("path", "size"), EVERY, ids=lambda part: getattr(part, "stem", part))
def test_every_size_of_every_shipped_study_is_valid(path, size):
    study = Study.load(path, size=size)
    runs = study.runs()
    factors = dict.fromkeys(name for run in runs for name in run.factors)
    check_columns(study, factors)
    check_base(study, runs)
    assert all(run.config.train.precision != "auto" for run in runs)


@pytest.mark.parametrize(
    ("name", "size", "count", "sizes"),
    [
        ("lr_transfer_width", None, 2 * 6 * 4 * 3, [32, 64, 128, 256]),
        ("lr_transfer_width", "gpu", 2 * 8 * 4 * 3, [256, 512, 1024, 2048]),
        ("lr_transfer_depth", None, 4 * 6 * 4 * 3, [2, 4, 8, 16]),
        ("lr_transfer_depth", "gpu", 4 * 8 * 6 * 3, [2, 4, 8, 16, 32, 64]),
    ],
)
def test_the_transfer_studies_sweep_factors_of_two_at_every_size(name, size, count, sizes):
    study = Study.load(ROOT / "studies" / f"{name}.yaml", size=size)
    runs = study.runs()
    assert len(runs) == count
    per = f"model.{study.optimum['per']}"
    assert sorted({run.factors[per] for run in runs}) == sizes
    assert study.optimum["base"] == sizes[0]
    assert len({run.factors["seed"] for run in runs}) >= 3
    rates = sorted({run.factors["optimizer.learning_rate"] for run in runs})
    assert [high / low for low, high in itertools.pairwise(rates)] == pytest.approx([2.0] * (len(rates) - 1))
    for run in runs:
        config = run.config
        assert config.model.n_embd // config.model.n_head == config.parametrization.base_head_size
        if config.parametrization.mode != "sp" and run.factors[per] == sizes[0]:
            assert config.parametrization.base_n_embd == config.model.n_embd, "at the base every factor is 1"
    tokens = {run.config.train.horizon[1] for run in runs}
    assert tokens == {131_072} if size is None else min(tokens) >= 1e6


@pytest.mark.slow
def test_a_study_for_gpus_can_be_planned_without_one(tmp_path: Path) -> None:
    """And submitted from a login node; trained here it cannot be, which is said in one line before anything starts."""
    study = ROOT / "studies" / "lr_transfer_width.yaml"
    line = [sys.executable, "-m", "experiments", "plan", str(study), "--size", "gpu", "--out", str(tmp_path)]
    blind = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    planned = subprocess.run(line, cwd=ROOT, env=blind, capture_output=True, text=True, timeout=120)
    assert planned.returncode == 0, planned.stderr
    assert "192" in planned.stdout
    assert "want a GPU, and this machine has none" in planned.stdout
    line[3] = "run"
    refused = subprocess.run(line, cwd=ROOT, env=blind, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert "runtime.device: cuda" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
