"""The engine's command line: what a mistake is answered with, and that it changes nothing on disk."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.__main__ import main
from nanogpt.config import Config
from nanogpt.configfile import dump_yaml, load_config
from nanogpt.record import attempt_folder, read_history, read_record

Make = Callable[..., Config]


@pytest.fixture
def config_file(tiny: Make, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(tiny().model_dump(mode="json")))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def damage_run(folder: Path) -> None:
    for path in folder.rglob("*.pt"):
        path.write_bytes(path.read_bytes()[:50])


MISTAKES = {
    "unknown key": (["--n_layr=3"], "command line: n_layr: no such key; did you mean 'n_layer'?"),
    "wrong type": (["--n_layer=two"], "model.n_layer: expected a whole number, got 'two'"),
    "heads do not divide": (["--n_head=3"], "n_embd=16 is not divisible by n_head=3"),
    "no device": (["--device=cuda"], "runtime.device: cuda asked for but"),
    "fp16 on a CPU": (["--precision=fp16"], "train.precision: fp16 does not train on a CPU; use bf16 or fp32"),
    "context too long": (["--block_size=5000"], "model.block_size=5000: does not fit the corpus"),
    "vocabulary too small": (["--model.vocab_size=8"], "model.vocab_size: 8 is less than the corpus's 32"),
    "corpus not there": (["--dataset=nowhere"], "nowhere: no corpus there"),
    "muP without a base": (["--mode=MuP"], "mode=mup needs base_n_embd"),
    "nothing to resume": (["--init_from=resume"], "nothing to resume: no checkpoint there"),
    "no value": (["--compile"], "--compile: not understood; settings are written --key=value"),
    "two numbers of processes": (["--nproc=2", "--runtime.nproc=3"], "--nproc=2 and runtime.nproc=3 contradict"),
    "branch from nothing": (["--branch_from=nowhere", "--schedule=wsd"], "nowhere/config.yaml: no such file"),
    "branch without wsd": (["--branch_from=.", "--schedule=cosine"], "config.yaml"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(
    config_file: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments, message = MISTAKES[name]
    folder = config_file.parent
    before = tree(folder)
    assert main(["train", str(config_file), f"--out_dir={folder / 'run'}", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert tree(folder) == before


def test_another_runs_folder_is_left_alone(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"--out_dir={config_file.parent / 'run'}"
    assert main(["train", str(config_file), out]) == 0
    before = tree(config_file.parent)
    assert main(["train", str(config_file), out, "--seed=2"]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert tree(config_file.parent) == before


def test_a_folder_that_is_no_run_is_left_alone(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config_file.parent / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("all of it")
    for arguments in ([], ["--reset", "--yes"]):
        assert main(["train", str(config_file), f"--out_dir={folder}", *arguments]) == 2
        assert "not empty and not a run's folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["chapter.txt"]


def test_an_output_that_cannot_be_written(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config_file), f"--out_dir={config_file}/run"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_truncated_record_is_named(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config_file.parent / "run"
    assert main(["train", str(config_file), f"--out_dir={folder}"]) == 0
    record = folder / "metrics.json"
    record.write_text(record.read_text()[:100])
    capsys.readouterr()
    assert main(["train", str(folder)]) == 2
    assert f"{record}: damaged or truncated" in capsys.readouterr().err


def test_no_good_checkpoint(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config_file.parent / "run"
    assert main(["train", str(config_file), f"--out_dir={folder}"]) == 0
    for name in ("metrics.json", "history.jsonl"):
        (folder / name).unlink()
    damage_run(folder)
    before = tree(folder)
    capsys.readouterr()
    assert main(["train", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "no good checkpoint to resume from" in error
    assert error.count("\n") == 1
    assert tree(folder) == before


def test_a_resumed_run_says_where_it_goes_on_and_what_it_passed_over(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config_file.parent / "run"
    assert main(["train", str(config_file), f"--out_dir={folder}", "--checkpoint.interval_seconds=0"]) == 0
    expected = read_record(folder / "metrics.json").val_loss
    for name in ("metrics.json", "history.jsonl"):
        (folder / name).unlink()
    newest = max((folder / "attempts" / "1").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:50])
    history = folder / "attempts" / "1" / "history.jsonl"
    history.write_bytes(b"\xff\xfe\n[1]\n" + history.read_bytes())
    capsys.readouterr()
    assert main(["train", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"{newest}: damaged checkpoint" in printed
    assert "going on from step " in printed
    assert read_record(folder / "metrics.json").val_loss == expected


def test_attempts_that_are_no_folder(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config_file.parent / "run"
    assert main(["train", str(config_file), f"--out_dir={folder}"]) == 0
    (folder / "metrics.json").unlink()
    (folder / "attempts").rename(folder / "moved")
    (folder / "attempts").write_text("")
    capsys.readouterr()
    assert main(["train", str(folder)]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_a_record_from_a_newer_version(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config_file.parent / "run"
    assert main(["train", str(config_file), f"--out_dir={folder}"]) == 0
    record = folder / "metrics.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "schema_version": 99}))
    capsys.readouterr()
    assert main(["train", str(folder)]) == 2
    assert "written by a newer version (schema 99" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["train"], ["trian", "x"], ["train", "nowhere.yaml"], ["describe"], ["prepare", "x", "--y=1"]]
)
def test_wrong_calls_exit_2(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(argv)
    except SystemExit as stopped:  # argparse's own way
        status = int(stopped.code or 0)
    assert status == 2
    assert list(tmp_path.iterdir()) == []


def test_the_fast_path_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, nanogpt, nanogpt.config, nanogpt.configfile, nanogpt.record, nanogpt.describe;"
        "import nanogpt.__main__ as m; m.main(['train', 'nowhere.yaml']);"
        "print([name for name in ('torch', 'numpy', 'pandas', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr.strip() == "nanogpt: nowhere.yaml: no such file"


def test_probes_are_in_the_history_and_off_at_evaluation(config_file: Path) -> None:
    folder = config_file.parent / "run"
    assert main(["train", str(config_file), f"--out_dir={folder}", "--probe_interval=4"]) == 0
    probed = [line for line in read_history(folder / "history.jsonl") if "probes" in line]
    assert [line["step"] for line in probed] == [4, 8, 12]
    for line in probed:
        for name in ("activation_rms", "gradient_norm", "weight_rms", "update_rms"):
            assert all(line["probes"][f"{name}.{block}"] > 0 for block in (0, 1))
    plain = config_file.parent / "plain"
    assert main(["train", str(config_file), f"--out_dir={plain}"]) == 0
    assert read_record(folder / "metrics.json").val_loss == read_record(plain / "metrics.json").val_loss


def test_the_record_of_a_run(config_file: Path) -> None:
    folder = config_file.parent / "run"
    assert main(["train", str(config_file), f"--out_dir={folder}"]) == 0
    record = read_record(folder / "metrics.json")
    assert record.status == "completed"
    assert (record.steps, record.tokens, record.attempts) == (12, 12 * 4 * 16, 1)
    assert record.flops == record.flops_per_token * record.tokens
    assert sum(record.parameters.values()) == record.n_params
    assert record.val_loss is not None
    assert record.val_entropy is not None
    assert record.val_excess_loss == pytest.approx(record.val_loss - record.val_entropy)
    assert record.val_loss_stderr > 0
    assert record.best_val_loss <= record.val_loss
    assert record.mfu is None, "a CPU has no peak to compare with"
    assert record.tokens_per_second > 0
    assert record.peak_memory_bytes > 10**7
    assert record.wall_seconds > 0
    assert record.cpu_seconds > 0
    assert {"python", "packages", "threads", "git_revision", "git_dirty", "float32_matmul"} <= set(record.environment)
    history = read_history(folder / "history.jsonl")
    assert history[-1]["step"] == 12, "the last step is always evaluated"
    assert history[-1]["val_loss"] == record.val_loss
    assert history == read_history(attempt_folder(folder, 1) / "history.jsonl")
    assert load_config(folder / "config.yaml").model_dump(mode="json") == record.config


def test_launch_script_trains_the_folder(config_file: Path) -> None:
    folder = config_file.parent / "run"
    assert main(["train", str(config_file), f"--out_dir={folder}"]) == 0
    expected = read_record(folder / "metrics.json").val_loss
    for path in ("metrics.json", "history.jsonl", "loss.png"):
        (folder / path).unlink()
    done = subprocess.run(["sh", str(folder / "launch.sh")], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert read_record(folder / "metrics.json").val_loss == expected


def test_describe_prints_what_a_run_will_cost(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(config_file.parent)
    assert main(["describe", str(config_file), "--n_layer=3"]) == 0
    printed = capsys.readouterr().out
    assert "3 layers, 2 heads, 16 wide" in printed
    assert "training FLOPs per token" in printed
    assert tree(config_file.parent) == before


def test_one_window_has_no_standard_error(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config_file.parent / "run"
    assert main(["train", str(config_file), f"--out_dir={folder}", "--eval_tokens=16"]) == 0
    assert read_record(folder / "metrics.json").val_loss_stderr is None
    assert "±" not in capsys.readouterr().out


def test_a_config_can_be_described_without_its_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the id and the epochs follows from the config: a person looks at sizes before preparing gigabytes."""
    config = Path(__file__).parents[2] / "configs" / "gpt2.yaml"
    for command in ("describe", "rules"):
        assert main([command, str(config), f"--data_dir={tmp_path}"]) == 0
        text = capsys.readouterr().out
        assert ("no corpus there" in text) == (command == "describe")
    assert main(["describe", str(config), f"--data_dir={tmp_path}", "--vocab_size=50257"]) == 0
    text = capsys.readouterr().out
    assert "unknown until the corpus is there" in text
    assert "124,439,808" in text  # GPT-2 small
    assert main(["describe", str(config), f"--data_dir={tmp_path}", "--epochs=1"]) == 2
    assert "no corpus there" in capsys.readouterr().err
    assert main(["train", str(config), f"--data_dir={tmp_path}", f"--out_dir={tmp_path / 'run'}"]) == 2
    assert not (tmp_path / "run").exists()
