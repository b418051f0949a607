"""The command line: a mistake is one line, status 2 and no change on disk; and the driver stays light."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import experiments.__main__
from experiments import outcomes
from experiments.__main__ import main

pytestmark = pytest.mark.usefixtures("fake_engine")
HEAVY = ("torch", "numpy", "pandas", "scipy", "matplotlib", "seaborn", "wandb", "jinja2")


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


MISTAKES = {
    "unknown key": ("{grid: {n_layr: [1]}}", "", [], "tiny.yaml:4: n_layr: no such key; did you mean 'n_layer'?"),
    "wrong type": ("{grid: {n_layer: [1.5]}}", "", [], "tiny.yaml:4: model.n_layer: expected a whole number, got 1.5"),
    "indivisible": ("{grid: {n_head: [3]}}", "", [], "n_embd=8 is not divisible by n_head=3"),
    "empty grid": ("{grid: {n_layer: []}}", "", [], "tiny.yaml:4: n_layer: no values"),
    "nothing left": ("{filter: 1 > 2}", "", [], "none of the 1 runs is left"),
    "duplicate key": ("{grid: {n_layer: [1], n_layer: [2]}}", "", [], "key given twice"),
    "duplicate point": ("{grid: {n_layer: [1, 1]}}", "", [], "the sweep holds n_layer=1 twice"),
    "not YAML": ("{grid: [", "", [], "not YAML"),
    "unknown law": ("{}", "fit: {law: ohm}", [], "fit.law: 'ohm' is not known"),
    "unresolvable": ("{seeds: [105]}", "", [], "seed=105: the corpus is nowhere to be found"),
    "unknown override": ("{}", "", ["--set", "n_layr=3"], "command line: n_layr: no such key"),
    "override of nothing": ("{}", "", ["--set", "n_layer"], "command line: n_layer: expected key=value"),
    "override of a factor": ("{grid: {n_layer: [1]}}", "", ["--set", "n_layer=3"], "the sweep varies it"),
    "unknown launcher": ("{}", "", ["--launcher", "locl"], "no such launcher 'locl'; did you mean 'local'?"),
    "nameless": ("{}", "name: a/b", [], "'a/b' cannot name a folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(write_study, tmp_path, capsys, name):
    sweep, more, options, message = MISTAKES[name]
    study = write_study(sweep, more)
    before = listing(tmp_path)
    assert main(["run", str(study), "--out", str(tmp_path / "results"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert listing(tmp_path) == before
    assert not (tmp_path / "results").exists()


def test_an_output_that_cannot_be_written_is_named(write_study, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["run", str(write_study()), "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error == f"{tmp_path}/file/tiny: cannot be written: {tmp_path}/file is not a folder\n"


def test_a_missing_base_is_placed(tmp_path, capsys):
    study = tmp_path / "s.yaml"
    study.write_text("question: What?\nhypothesis: That.\nbase: tiny_cup.yaml\n")
    assert main(["run", str(study)]) == 2
    assert capsys.readouterr().err == f"{study}:3: base: no such file: tiny_cup.yaml; did you mean 'tiny_cpu.yaml'?\n"


@pytest.mark.parametrize("verb", ["run", "plan", "status", "results", "report"])
def test_a_missing_study_is_named(tmp_path, capsys, verb):
    assert main([verb, str(tmp_path / "dept.yaml")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/dept.yaml: no such file\n"


@pytest.mark.parametrize("verb", ["status", "results", "fit", "report"])
def test_a_study_that_was_never_run_has_nothing_to_show(write_study, tmp_path, capsys, verb):
    assert main([verb, str(write_study()), "--out", str(tmp_path / "results")]) == 2
    assert "no study.lock.json here" in capsys.readouterr().err


def test_a_truncated_record_is_named_and_spares_the_others(command, write_study, tmp_path, capsys):
    study, out = write_study(), tmp_path / "results"
    assert command("run", study, "--out", out, "--no-report").returncode == 0
    record = next(out.glob("tiny/*/metrics.json"))
    record.write_text(record.read_text()[:100])
    assert main(["status", str(study), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("tiny: 1 failed, 1 completed\n")
    assert f"corrupt: {record}: damaged or truncated" in told
    assert main(["run", str(study), "--out", str(out), "--no-report"]) == 1
    assert f"{record}: damaged or truncated" in capsys.readouterr().err
    assert main(["results", str(study), "--out", str(out)]) == 0
    assert "failed" in capsys.readouterr().out
    # Asked for another try, the run is published again from its attempt; nothing is trained or deleted.
    assert main(["retry", str(study), "--out", str(out), "--class", "corrupt", "--no-report"]) == 0
    assert len(list(record.parent.glob("metrics.json.damaged-*"))) == 1
    assert not (record.parent / "attempts" / "2").exists()


def test_plan_changes_nothing_and_says_what_it_will_cost(write_study, tmp_path, capsys):
    before = listing(tmp_path)
    assert main(["plan", str(write_study()), "--out", str(tmp_path / "results")]) == 0
    output = capsys.readouterr().out
    assert "runs         2 (2 missing)" in output
    assert "FLOP" in output
    assert "160 tokens of 160 tokens" in output
    assert [path for path in listing(tmp_path) if path not in before] == [
        f"{tmp_path}/base.yaml",
        f"{tmp_path}/tiny.yaml",
    ]


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_experiments_loads_nothing_heavy():
    assert loaded_after("import experiments; experiments.ExperimentRunner") == set()


def test_the_driver_loads_nothing_heavy(write_study, tmp_path):
    """One process for the three: nothing is unloaded again."""
    study, out = str(write_study()), str(tmp_path / "results")
    lines = [[verb, study, "--out", out] for verb in ("plan", "run", "status")]
    lines[1].append("--no-report")
    calls = "\n".join(f"assert main({line!r}) == 0" for line in lines)
    assert loaded_after(f"from experiments.__main__ import main\n{calls}") == set()


def test_the_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(
        f"\n    {verb} " in text
        for verb in ("plan", "run", "status", "retry", "cancel", "forget", "results", "fit", "report")
    )


def test_the_shipped_schema_is_the_generated_one(capsys):
    assert main(["schema", "study"]) == 0
    shipped = ROOT / "configs" / "study.schema.json"
    assert json.loads(capsys.readouterr().out) == json.loads(shipped.read_text()), "run `make schemas`"


def test_classes_of_failures_have_one_list_of_names():
    assert experiments.__main__.KINDS == outcomes.KINDS


def test_a_reader_that_goes_away_is_no_mistake(write_study, tmp_path, command):
    out = tmp_path / "results"
    command("run", write_study(), "--out", out, "--no-report")
    line = f"{sys.executable} -m experiments status {out / 'tiny'} --json | head -c 1"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nprocs", "2"], "unrecognized arguments: --nprocs 2; did you mean '--nproc'?"),
        (["--nproc", "two"], "--nproc: expected a whole number of at least 1, got 'two'"),
        (["--nproc", "2", "--set", "runtime.nproc=3"], "--nproc=2 and runtime.nproc=3 contradict each other"),
    ],
)
def test_a_wrong_flag_is_one_line(write_study, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(write_study()), *options])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
