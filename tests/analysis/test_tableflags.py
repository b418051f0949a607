"""The flags of `fit --csv` against each other: nothing is overwritten by surprise, and nothing that is said is ignored."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.__main__ import main
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
        assert f"{flag}: must be a whole number of at least 0" in capsys.readouterr().err


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
