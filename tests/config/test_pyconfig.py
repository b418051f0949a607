"""nanoGPT's configs in Python are parsed, never executed, and mean what they meant."""

from pathlib import Path

import pytest

from experiments.study import Study
from nanogpt.__main__ import main
from nanogpt.config import UserError
from nanogpt.configfile import load_config

SHAKESPEARE = '''"""Train a small character-level model."""
# good for debugging
out_dir = 'out-shakespeare-char'
eval_interval = 250 # keep frequent
eval_iters = 20
log_interval = 10
always_save_checkpoint = False
wandb_log = False # override via command line if you like
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'
dataset = 'shakespeare_char'
gradient_accumulation_steps = 2 * 1
batch_size = 64
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
device = 'cpu'
compile = False
'''


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train_shakespeare_char.py"
    path.write_text(text)
    return path


def test_a_config_of_nanogpt_is_read(tmp_path):
    config = load_config(written(tmp_path, SHAKESPEARE))
    assert (config.model.n_layer, config.model.block_size, config.model.dropout) == (6, 256, 0.2)
    assert (config.train.batch_size, config.micro_batch_size) == (128, 64)
    assert config.data.corpus.kind == "shakespeare_char"
    assert config.runtime.checkpoint.policy == "best"
    assert config.runtime.out_dir == "out-shakespeare-char"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n_layer = int(open('/etc/passwd').read())", "n_layer: expected a plain value, got int(open("),
        ("n_layer = n_head", "n_layer: expected a plain value, got n_head"),
        ("n_layer = 9 ** 9 ** 9", "n_layer: expected a plain value, got 9 ** 9 ** 9"),
        ("n_layer = 'a' * 10", "n_layer: expected a plain value"),
        ("n_layer = 1 / 0", "n_layer: expected a plain value"),
        ("import os", "only plain assignments are read"),
        ("print('hello')", "only plain assignments are read"),
        ("a, b = 1, 2", "only names are assigned to"),
        ("n_layr = 3", "n_layr: no such key; did you mean 'n_layer'?"),
        ("n_layer = = 3", "not Python"),
    ],
)
def test_anything_else_is_refused_with_its_line(tmp_path, line, message, capsys):
    path = written(tmp_path, f"n_head = 4\n{line}\n")
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_nesting_that_python_refuses_is_refused(tmp_path):
    with pytest.raises(UserError, match="not Python: nested too deeply"):
        load_config(written(tmp_path, "n_layer = " + "-" * 20_000 + "4"))


def test_a_byte_order_mark_is_read_over_as_python_does(tmp_path):
    path = tmp_path / "marked.py"
    path.write_bytes(b"\xef\xbb\xbf" + SHAKESPEARE.encode())
    assert load_config(path).model.n_layer == 6


def test_it_is_a_base_of_studies_whose_folder_is_the_studys(tmp_path):
    study = tmp_path / "depth.yaml"
    written(tmp_path, SHAKESPEARE)
    study.write_text(
        "question: How deep?\nhypothesis: Deep.\nbase: train_shakespeare_char.py\nsweep: {grid: {n_layer: [2, 4]}}\n"
    )
    runs = Study.load(study).runs()
    assert [run.config.model.n_layer for run in runs] == [2, 4]
    assert runs[0].config.runtime.out_dir is None
    assert [name for name in Study.load(study).files if name.endswith(".py")]


def test_single_runs_are_described_from_it(tmp_path, capsys):
    text = SHAKESPEARE.replace("'shakespeare_char'", "'zipf_mixture'")
    assert main(["describe", str(written(tmp_path, text)), "--n_layer=2"]) == 0
    assert "parameters" in capsys.readouterr().out
