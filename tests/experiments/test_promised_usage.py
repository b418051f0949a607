"""The usage that was promised, word for word but for the number of iterations, with the real engine."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from experiments import ExperimentRunner
from nanogpt.__main__ import main

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n" * 60


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with the shipped config and a small corpus of characters, as a person's working folder."""
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "shakespeare_char.yaml", tmp_path / "configs")
    (tmp_path / "input.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOGPT_DATA_DIR", str(tmp_path / "data"))
    assert main(["prepare", "shakespeare_char", "--from", "input.txt", "--data_dir", "data"]) == 0
    return tmp_path


def test_the_promised_usage(project, capsys):
    # fmt: off
    runner = ExperimentRunner(base_config_path='configs/shakespeare_char.yaml', output_root='experiments_out')
    table = runner.run_grid(
        grid_name='depth_study',
        base_params={'dataset': 'shakespeare_char', 'max_iters': 2},
        grid_params={'n_layer': [2, 4, 8]}
    )
    # fmt: on
    assert list(table["model.n_layer"]) == [2, 4, 8]
    assert set(table["status"]) == {"completed"}
    assert (table["steps"] == 2).all()
    # Found by membership and id: a renamed folder is still this run's, and a stranger's folder is nobody's.
    run = next(path for path in Path("experiments_out/depth_study").glob("n_layer=2.*"))
    run.rename(run.with_name(f"n_layer=88.{run.name[-12:]}"))
    shutil.copytree(run.with_name(f"n_layer=88.{run.name[-12:]}"), run.with_name("n_layer=2.aaaaaaaaaaaa"))
    again = runner.load_metrics("depth_study")
    assert again.drop(columns="folder").equals(table.drop(columns="folder"))
    # The folders of a study's runs hold models: text comes out of each, the same from a checkpoint's file.
    for folder in map(Path, again["folder"]):
        (file,) = folder.glob("attempts/*/checkpoint-*.pt")
        texts = []
        for place in (folder, file):
            capsys.readouterr()
            assert main(["sample", str(place), "--prompt", "All:", "--num_samples", "2", "--max_new_tokens", "9"]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1]
        assert texts[0].count("All:") == 2
