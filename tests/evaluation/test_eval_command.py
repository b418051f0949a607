"""`python -m nanogpt eval`: what it prints and leaves for runs, checkpoints and corpora; one-line errors.

The tests marked slow start processes that import torch and lm-eval: under a minute together.
"""

import json
import os
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt import checkpoint
from nanogpt.__main__ import _parser, main
from nanogpt.configfile import dump_yaml
from nanogpt.data.alphabets import Bytes
from nanogpt.data.binfiles import write_meta, write_tokens
from nanogpt.data.tokenizers import write_tokenizer
from nanogpt.record import read_published
from tests.commands import Capture, answer, refusal
from tests.evaluation.test_hellaswag import ITEMS

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "".join(sorted(set(ITEMS.read_text(encoding="utf-8") + string.ascii_uppercase + "\nä")))
TEXT = (LETTERS + "\nFirst Citizen:\nBefore we proceed any further, hear me speak.\n") * 30
TREE: dict[str, Any] = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "bias": False},
    "data": {"corpus": "shakespeare_char"},
    "optimizer": {"learning_rate": 1e-2},
    "train": {"batch_size": 4, "max_iters": 10, "precision": "fp32", "eval_interval": 10, "eval_tokens": 100_000},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on characters."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "input.txt").write_text(TEXT, encoding="utf-8")
    data = folder / "data"
    assert main(["prepare", "shakespeare_char", "--from", str(folder / "input.txt"), "--data_dir", str(data)]) == 0
    runtime = {"device": "cpu", "threads": 1, "data_dir": str(data)}
    (folder / "config.yaml").write_text(dump_yaml(TREE | {"runtime": runtime}))
    assert main(["train", str(folder / "config.yaml"), f"--out_dir={folder / 'run'}"]) == 0
    return folder / "run"


def evaluated(capsys: Capture, *words: str | Path) -> str:
    return answer(capsys, "eval", *words)


def refused(capsys: Capture, *words: str | Path) -> str:
    return refusal(capsys, "eval", *words)


def results(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "evaluations" / f"{name}.json").read_text())


def test_hellaswag_leaves_each_measure_under_its_name(run: Path, capsys: Capture, tmp_path: Path) -> None:
    text = evaluated(capsys, run, "hellaswag", "--data", ITEMS, "--items", tmp_path / "items.jsonl")
    found = results(run, "hellaswag")
    for measure in ("acc", "acc_norm", "acc_norm_tokens"):
        assert f"{measure:<15}  {found[measure]:.4f} ± {found[f'{measure}_stderr']:.4f}  likeliest" in text
    assert (found["items"], found["model"]["step"], found["model"]["id"]) == (20, 10, read_published(run).id)
    assert found["cut_endings"] > 0
    assert "endings do not fit the model's context of 32 tokens" in text
    lines = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    right = sum(line["texts"]["build-nanogpt"]["chosen"]["acc_norm_tokens"] == line["label"] for line in lines)
    assert right == 20 * found["acc_norm_tokens"]
    assert lines[3]["item"] == f"{ITEMS}:4"


def test_parts_and_checkpoints_have_files_of_their_own(run: Path, capsys: Capture) -> None:
    words = ("hellaswag", "--data", ITEMS, "--limit", "4", "--text", "lm-eval", "--batch-size", "3")
    text = evaluated(capsys, run, *words)
    assert "acc_norm_tokens" not in text
    found = results(run, "hellaswag.limit-4")
    assert (found["items"], found["limit"], found["batch_size"], list(found["by_text"])) == (4, 4, 3, ["lm-eval"])
    file = checkpoint.listed(run)[0].path
    evaluated(capsys, file, *words)
    again = results(run, f"hellaswag.{file.stem}.limit-4")
    assert [again[key] for key in ("acc", "acc_norm", "items")] == [found[key] for key in ("acc", "acc_norm", "items")]


def test_the_runs_own_corpus_gives_the_records_loss(run: Path, capsys: Capture) -> None:
    """Nearly: what is left after the whole windows is scored, too."""
    record = read_published(run)
    text = evaluated(capsys, run, "own")
    found = results(run, "own")
    assert found["loss"] == pytest.approx(record.val_loss, abs=0.02)
    assert found["bits_per_byte"] == pytest.approx(record.val_bits_per_byte, abs=0.02)
    assert "context        up to 32 tokens, on average 16.5 (stride 32)" in text
    assert f"bits per byte  {found['bits_per_byte']:.4f} ({found['bytes']:,} bytes)" in text
    whole = evaluated(capsys, run, "own", "--limit", str(found["of_windows"] - 1), "--split", "train")
    assert whole.startswith("own, split train: ")
    val = TEXT[int(len(TEXT) * 0.9) :]
    assert found["tokens"] == len(val) - 1
    assert found["bytes"] == len(val[1:].encode())


def test_text_files_are_written_in_the_models_tokenizer(run: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Speak, Before\nwe ä", encoding="utf-8")
    (tmp_path / "mine.jsonl").write_text('{"text": "Speak"}\n\n{"text": "we"}\n')
    evaluated(capsys, run, tmp_path / "mine.txt", tmp_path / "mine.jsonl")
    found = results(run, "mine.txt")
    assert (found["tokens"], found["bytes"]) == (17, 18)
    assert results(run, "mine.jsonl")["tokens"] == 6
    (tmp_path / "mine.jsonl").write_text('{"text": "Speak"}\n{"txt": "we"}\n')
    assert "mine.jsonl:2: expected an object with a 'text'" in refused(capsys, run, tmp_path / "mine.jsonl")
    (tmp_path / "other.txt").write_text("日本")
    assert "characters outside the vocabulary: '日' '本'" in refused(capsys, run, tmp_path / "other.txt")
    (tmp_path / "f.png").write_text("")
    assert "not a file of text by its name" in refused(capsys, run, tmp_path / "f.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hellswag"], "no task, corpus, folder or file 'hellswag'"),
        (["hellswag"], "did you mean 'hellaswag'?"),
        (["zipf_mixture"], "the model reads the tokenizer char, this corpus holds 256 ids that stand for no text"),
        (["own", "--split", "test"], "has no split 'test'; it has train, val"),
        (["own", "--stride", "33"], "--stride 33: expected 1 to 32, the model's context"),
        (["own", "--data", "x"], "--data is for hellaswag, which is not asked for"),
        (["hellaswag", "--stride", "3"], "--stride is for a corpus"),
        (["own", "hellaswag", "--out", "x"], "--out takes the results of one task, 2 are asked for"),
        (["own", "--out", "."], ".: is a folder; --out takes a file"),
        (["own", "--depths", "2"], "--depths is of the run's own validation loss"),
        (["--limit", "3"], "--limit needs a task or a corpus"),
        (["own", "--include-path", "x"], "--include-path is for --lm-eval"),
        (["own", "--lm-eval", "x"], "--lm-eval takes its own tasks; ask for own apart"),
        (["own", "--batch-size", "0"], "expected a whole number of at least 1, got '0'"),
        (["own", "--batchsize", "3"], "did you mean '--batch_size'?"),
        (["own", "--precision", "fp16"], "fp16 does not train on a CPU"),
        (["hellaswag", "--data", "no.jsonl"], "--data no.jsonl: no such file"),
    ],
)
def test_mistakes_are_one_line(run: Path, capsys: Capture, words: list[str], message: str) -> None:
    assert message in refused(capsys, run, *words)


def test_a_corpus_of_another_tokenizer_is_named(run: Path, capsys: Capture) -> None:
    data = run.parent / "data"
    (data / "mine.gpt2").mkdir(exist_ok=True)
    line = refused(capsys, run, "mine")
    assert (
        "mine: prepared with gpt2, the model reads char; run `python -m nanogpt prepare mine --tokenizer char`" in line
    )


def test_a_model_of_numbers_cannot_be_asked_in_words(capsys: Capture, tmp_path: Path) -> None:
    corpus = {"kind": "zipf_mixture", "alphabet_size": 32, "train_tokens": 65536, "val_tokens": 8192}
    tree = TREE | {"data": {"corpus": corpus}, "runtime": {"device": "cpu", "threads": 1}}
    (tmp_path / "config.yaml").write_text(dump_yaml(tree))
    assert main(["train", str(tmp_path / "config.yaml"), f"--out_dir={tmp_path / 'run'}"]) == 0
    assert "hellaswag: the model's tokens are ids that stand for no text" in refused(
        capsys, tmp_path / "run", "hellaswag", "--data", ITEMS
    )
    assert "bits per byte" not in evaluated(capsys, tmp_path / "run", "own", "zipf_mixture")
    found = results(tmp_path / "run", "own")
    assert found["bits_per_byte"] is None
    assert found["loss"] == pytest.approx(read_published(tmp_path / "run").val_loss, abs=0.02)


def bytes_folder(folder: Path, texts: dict[str, str]) -> None:
    """A corpus in nanoGPT's files with the tokenizer of bytes."""
    folder.mkdir(parents=True)
    for split, text in texts.items():
        write_tokens(folder / f"{split}.bin", np.array([Bytes.eot, *Bytes().encode(text)]))
    write_meta(folder, {"vocab_size": 256})
    write_tokenizer(Bytes(), folder)


def test_a_mixture_is_scored_part_by_part_and_other_corpora_by_name(capsys: Capture, tmp_path: Path) -> None:
    for name, text in {"one": "abc abd. ", "two": "Zwölf Boxkämpfer. "}.items():
        bytes_folder(tmp_path / f"{name}.byte", dict.fromkeys(("train", "val"), text * 30))
    bytes_folder(tmp_path / "three.byte", {"train": "x" * 99, "val": "y" * 99, "test": "z" * 40})
    parts = [{"corpus": "one", "weight": 3}, {"corpus": "two"}]
    data = {"corpus": {"kind": "mixture", "parts": parts}, "tokenizer": "byte"}
    runtime = {"device": "cpu", "threads": 1, "data_dir": str(tmp_path)}
    (tmp_path / "config.yaml").write_text(dump_yaml(TREE | {"data": data, "runtime": runtime}))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "config.yaml"), f"--out_dir={run}"]) == 0
    evaluated(capsys, run, "own")
    first, second = results(run, "own.one"), results(run, "own.two")
    assert (first["tokens"], second["tokens"]) == (30 * 9, 30 * 20)
    assert (first["bytes"], second["bytes"]) == (30 * 9, 30 * 20)
    assert evaluated(capsys, run, "own:two").splitlines()[-2].endswith("(600 bytes)")
    assert evaluated(capsys, run, "three", "--split", "test").startswith("three, split test: 40 tokens in 2 windows")
    assert results(run, "three.test")["data"]["corpus"] == str(tmp_path / "three.byte")
    assert "own:tow: the run's corpus has no such part; did you mean 'two'?" in refused(capsys, run, "own:tow")
    assert "--out takes the results of one task" in refused(capsys, run, "own", "--out", tmp_path / "x")
    assert "did you mean 'three" in refused(capsys, run, "thre")


def test_every_flag_is_described() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    described = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `--")}
    arguments, _ = _parser().parse_known_args(["eval", "run"])
    assert described == {f"--{name}" for name in vars(arguments)} - {"--command", "--run", "--place", "--names"}


def command(*words: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "nanogpt", "eval", *map(str, words)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_find_what_one_finds(run: Path, tmp_path: Path) -> None:
    words = (run, "hellaswag", "--data", ITEMS, "--batch-size", "16")
    command(*words, "--out", tmp_path / "one.json", "--items", tmp_path / "one.jsonl")
    done = command(*words, "--nproc", "2", "--out", tmp_path / "two.json", "--items", tmp_path / "two.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two.pop("nproc") == 2
    assert one.pop("nproc") == 1
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


@pytest.mark.slow
def test_a_mistake_that_every_process_finds_is_said_once(run: Path) -> None:
    done = command(run, "hellaswag", "--data", "no.jsonl", "--nproc", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nanogpt: eval: --data no.jsonl: no such file\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_lm_evals_tasks_run_from_the_command_line(
    run: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("datasets")
    lines = [json.loads(line) for line in ITEMS.read_text(encoding="utf-8").splitlines()]
    texts = [{"query": line["ctx"], "endings": line["endings"], "label": int(line["label"])} for line in lines]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\noutput_type: multiple_choice\ndataset_path: json\nvalidation_split: validation\n"
        f"dataset_kwargs: {{data_files: {{validation: {tmp_path}/mine.jsonl}}}}\n"
        "doc_to_text: query\ndoc_to_choice: endings\ndoc_to_target: label\nmetric_list: [{metric: acc}]\n"
    )
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    words = ("eval", str(run), "--include-path", str(tmp_path), "--lm-eval")
    assert main([*words, "mine"]) == 0
    figure = capsys.readouterr().out.splitlines()[0]
    assert figure.startswith("mine  acc  0.")
    found = results(run, "lm-eval.mine")
    assert f"{found['results']['mine']['acc,none']:.4f}" in figure
    assert main([*words, "mien"]) == 2
    assert "no such task 'mien'; did you mean 'mine'?" in capsys.readouterr().err
    shared = command(*words[1:], "mine", "--nproc", "2")
    assert shared.stdout.splitlines()[:1] == [figure], shared.stderr
