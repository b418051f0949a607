"""The flags of `fit --csv` against each other: nothing is written over, and nothing that is said is ignored.

Those marked slow take under a minute together.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.__main__ import main
from experiments.analysis.tablefit import Columns, fit_prepared, prepare
from experiments.analysis.tablewords import allocation_text
from tests.analysis.test_tablefit import QUICK, run, table, written

Output = pytest.CaptureFixture[str]


def refused(path: Path, capsys: Output, *words: str) -> str:
    """The one line that a mistake gets."""
    assert run(path, *QUICK, *words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err


def page(path: Path, capsys: Output, *words: str) -> str:
    assert run(path, *QUICK, *words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--json", "--figure", "--corner"])
@pytest.mark.parametrize("how", ["itself", "link", "hard link"])
def test_the_table_itself_is_never_written_over(flag: str, how: str, tmp_path: Path, capsys: Output) -> None:
    path = written(tmp_path, table(), "t.png")
    target = path
    if how != "itself":
        target = tmp_path / "other.png"
        target.symlink_to(path) if how == "link" else os.link(path, target)
    before = path.read_bytes()
    assert f"fit: {flag}: {target} is the table itself" in refused(path, capsys, flag, str(target))
    assert path.read_bytes() == before


def test_two_outputs_on_one_path_are_refused_before_the_table_is_read(tmp_path: Path, capsys: Output) -> None:
    same = str(tmp_path / "a.png")
    said = refused(tmp_path / "nowhere.csv", capsys, "--figure", same, "--corner", f"{tmp_path}/./a.png")
    assert "--figure and --corner are one file" in said
    assert "--json and --figure" in refused(tmp_path / "nowhere.csv", capsys, "--json", same, "--figure", same)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--corner", "{}/none/c.png"), "fit: --corner: {}/none/c.png cannot be written: there is no folder {}/none"),
        (("--corner", "{}/c.jpeg"), "fit: --corner: {}/c.jpeg: a figure is written as one of .png, .svg, .pdf"),
        (("--figure", "{}"), "fit: --figure: {}"),
        (("--corner", "{}/t.csv/c.png"), "{}/t.csv is no folder"),
        (("--corner", "/dev/null"), "a figure is written as one of"),
        (("--corner", "{}/c.png"), "bootstrap"),  # no draws: nothing is written, the JSON neither
    ],
)
def test_every_target_is_checked_before_any_is_written(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: Output
) -> None:
    path = written(tmp_path, table())
    words = tuple(word.format(tmp_path) for word in words)
    assert said.format(*[tmp_path] * said.count("{}")) in refused(
        path, capsys, "--json", str(tmp_path / "fit.json"), *words
    )
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_no_target(tmp_path: Path, capsys: Output) -> None:
    assert "--json: /dev/null cannot be written: it is no plain file" in refused(
        written(tmp_path, table()), capsys, "--json", "/dev/null"
    )


@pytest.mark.parametrize("cuts", ["-1", "1.5", "many"])
def test_cuts_are_a_whole_number(cuts: str, tmp_path: Path, capsys: Output) -> None:
    for flag in ("--rollout", "--bootstrap"):
        with pytest.raises(SystemExit) as stopped:
            run(written(tmp_path, table()), flag, cuts)
        assert stopped.value.code == 2
        assert f"{flag}: expected a whole number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "small"), "--size chooses among the sizes of a study, and a table has none"),
        (("--out", "there"), "--out"),
        (("--delta", "0.1", "--loss-fn", "lad"), "--delta is the threshold of --loss-fn huber; lad has none"),
        (("--delta", "0.1", "--residual", "loss"), "lsq has none"),
        (("--input", "n=params"), "--input n: the input is given twice"),
    ],
)
def test_a_flag_without_effect_is_refused(words: tuple[str, ...], said: str, tmp_path: Path, capsys: Output) -> None:
    assert said in refused(written(tmp_path, table()), capsys, *words)


def test_a_flag_of_tables_needs_a_table(capsys: Output) -> None:
    assert main(["fit", "studies/quickstart.yaml", "--where", "D > 1", "--seed", "3"]) == 2
    assert (
        capsys.readouterr().err == "fit: --seed, --where: only with --csv FILE; a study's file says how it is fitted\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--n", "tokens", "--d", "tokens"), "--n and --d are both 'tokens'"),
        (("--n", "params", "--d", "`params`"), "--n and --d are both 'params'"),
        (("--n", "params", "--d", "tokens", "--loss", "tokens"), "--d and --loss are both 'tokens'"),
        (("--input", "unique=loss2"), "law chinchilla has no input 'unique'; it takes n, d"),
        (("--predict", "N=1e9,N=2e9,D=1e10"), "N is given twice"),
        (("--predict", "N=1e9,params=2e9,D=1e10"), "N is given twice"),
        (("--predict", "N=1e9,D=1e10,C=1e22"), "C would be ignored: chinchilla reads N and D"),
        (("--predict", "L=3,D=1e10"), "'L=3' is not an input; allowed: N, D, C (as in"),
        (("--holdout", "below=1e9"), "--holdout by=C,below=1000000000.0: "),
        (("--holdout", "below=1e99"), "--holdout by=C,below=1e+99: no finished run has C >= 1e+99"),
        (("--holdout", "largest=2,by=Q"), "--holdout by=Q,largest=2: "),
        (("--holdout", "biggest=2"), "--holdout 'biggest=2'"),
        (("--where", "nothing > 0"), "nothing is no column"),
    ],
)
def test_a_slip_names_the_flag(words: tuple[str, ...], said: str, tmp_path: Path, capsys: Output) -> None:
    assert said in refused(written(tmp_path, table().assign(loss2=3.0)), capsys, *words)


@pytest.mark.slow
def test_inputs_that_are_one_have_a_page_all_the_same(tmp_path: Path, capsys: Output) -> None:
    page(written(tmp_path, table()), capsys, "--n", "params", "--d", "params * 1", "--json", "-")
    page(written(tmp_path, table()), capsys, "--n", "params", "--d", "params * 1")


@pytest.mark.parametrize("none", [("alpha", "beta"), ("alpha",), ("beta",), ("A",), ("B",)])
def test_terms_that_vanish_allocate_nothing(none: tuple[str, ...], tmp_path: Path) -> None:
    law, prepared = prepare(written(tmp_path, table()), "chinchilla", Columns("loss", {"n": "params", "d": "tokens"}))
    done = fit_prepared(law, prepared, cuts=0, bootstrap=20)
    flat = replace(done.fit, params=done.fit.params | dict.fromkeys(none, 0.0))
    assert allocation_text(flat, prepared).startswith("no compute-optimal N and D: these runs do not tell")


def test_compute_that_does_not_agree_is_a_warning(tmp_path: Path, capsys: Output) -> None:
    flops = 6 * table()["params"] * table()["tokens"]
    words = ("--flops", "spent")
    assert "--flops" not in page(written(tmp_path, table().assign(spent=2 * flops)), capsys, *words)
    said = page(written(tmp_path, table().assign(spent=flops / 1e15)), capsys, *words)
    assert "warning: spent (--flops) is 1e-15 times 6 N D in the median row" in said
    said = page(written(tmp_path, table().assign(spent=flops.where(flops.index > 2, 0))), capsys, *words)
    assert "warning: 3 of 30 cells of spent (--flops) are zero, negative or empty" in said
    said = page(written(tmp_path, table().assign(spent=flops)), capsys, *words, "--law", "power_law")
    assert "warning: --n (params) is not used: power_law reads C" in said


def curves(**columns: object) -> pd.DataFrame:
    """Six runs of five points each, as if they were lines of their logs."""
    runs = table().sort_values(["params", "tokens"], ignore_index=True)
    return runs.assign(**columns)


@pytest.mark.parametrize("name", ["run_id", "run", "runId", "Trial"])
def test_points_of_one_curve_are_recognised_by_the_label_of_their_run(
    name: str, tmp_path: Path, capsys: Output
) -> None:
    path = written(tmp_path, curves(**{name: np.arange(30) // 5}))
    said = page(path, capsys, "--bootstrap", "20")
    assert f"30 points share 6 values of {name}, at one N each and growing D: points of one run are not" in said
    assert f"--cluster {name} draws runs whole" in said
    assert "draws runs whole" not in page(path, capsys, "--cluster", name, "--bootstrap", "20")


@pytest.mark.parametrize("name", ["model", "label", "name", "size"])
def test_a_model_may_stand_for_a_curve(name: str, tmp_path: Path, capsys: Output) -> None:
    said = page(written(tmp_path, curves(**{name: [f"m{i // 5}" for i in range(30)]})), capsys)
    assert f"30 points share 6 values of {name}, at one N each and growing D: if they are points of one" in said


def test_shapes_and_seeds_are_no_labels_of_curves(tmp_path: Path, capsys: Output) -> None:
    shapes = curves(n_layer=np.arange(30) // 5, d_model=np.arange(30) // 5, seed=np.arange(30) % 2, run=np.arange(30))
    assert "draws runs whole" not in page(written(tmp_path, shapes), capsys)
    twice = pd.concat([curves(model=[f"m{i // 5}" for i in range(30)])] * 2)  # trained anew for each D, with two seeds
    assert "draws runs whole" not in page(written(tmp_path, twice), capsys)


def test_the_warning_of_units_quotes_the_column(tmp_path: Path, capsys: Output) -> None:
    units = table().assign(params=[f"{n / 1e6:.6g}M" for n in table()["params"]])
    said = page(written(tmp_path, units), capsys)
    assert "30 cells of params (--n) have a unit and were read as numbers: 10M as 1e+07" in said
