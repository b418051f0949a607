"""`python -m nanogpt sample`: runs and checkpoints, streaming, several samples, seeds, one-line errors.

Those marked slow take under a minute together.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt import checkpoint, samples
from nanogpt.__main__ import _parser, main
from nanogpt.configfile import dump_yaml
from nanogpt.model import build_model
from nanogpt.model.trunks import Application, Stack
from nanogpt.trained import load_trained
from tests.commands import Capture, answer, refusal
from tests.tiny import TINY

ROOT = Path(__file__).resolve().parents[1]
TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, Caf\u00e9.\n\n" * 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on characters, as `nanogpt train` leaves it."""
    folder = tmp_path_factory.mktemp("sample")
    (folder / "input.txt").write_text(TEXT)
    data = folder / "data"
    assert main(["prepare", "shakespeare_char", "--from", str(folder / "input.txt"), "--data_dir", str(data)]) == 0
    tree: dict[str, Any] = TINY | {"data": {"corpus": "shakespeare_char"}}
    tree |= {"train": TINY["train"] | {"max_iters": 40}, "runtime": TINY["runtime"] | {"data_dir": str(data)}}
    (folder / "config.yaml").write_text(dump_yaml(tree))
    assert main(["train", str(folder / "config.yaml"), f"--out_dir={folder / 'run'}"]) == 0
    return folder / "run"


def sampled(capsys: Capture, *words: str | Path) -> str:
    return answer(capsys, "sample", *words)


def refused(capsys: Capture, *words: str | Path) -> str:
    return refusal(capsys, "sample", *words)


def file_of(run: Path) -> Path:
    return checkpoint.listed(run)[0].path


def test_one_sample_is_the_prompt_and_what_follows_and_nothing_else(run: Path, capsys: Capture) -> None:
    text = sampled(capsys, run, "--prompt", "All:\nSpe", "--max_new_tokens", "50")
    assert text.startswith("All:\nSpe")
    assert len(text) == len("All:\nSpe") + 50 + 1
    assert set(text) <= set(TEXT)
    weights = load_trained(run).model.state_dict()
    assert not torch.equal(weights["embedding.weight"], build_model(load_trained(run).config).embedding.weight)


def test_five_samples_keep_the_prompt_and_differ_and_the_seed_repeats_them(run: Path, capsys: Capture) -> None:
    words = (run, "--prompt", "Speak", "--num_samples", "5", "--max_new_tokens", "40", "--seed")
    text = sampled(capsys, *words, "7")
    parts = text.split("--- sample ")[1:]
    assert [part.partition(" ---\n")[0] for part in parts] == [f"{n} of 5, seed 7" for n in range(1, 6)]
    bodies = [part.partition(" ---\n")[2] for part in parts]
    assert all(body.startswith("Speak") and len(body) == 5 + 40 + 1 for body in bodies)
    assert len(set(bodies)) == 5
    assert sampled(capsys, *words, "7") == text
    assert sampled(capsys, *words, "8") != text
    # A sample is the same however many are asked for, and in whatever batches they are made.
    assert sampled(capsys, run, "--prompt", "Speak", "--max_new_tokens", "40", "--seed", "7") == bodies[0]


def test_a_prompt_may_stand_without_its_flag_wherever_it_is(run: Path, capsys: Capture) -> None:
    expected = sampled(capsys, run, "--prompt", "All:\nSpe", "--max_new_tokens", "20", "--seed", "3")
    words = ("--max_new_tokens", "20", "--seed", "3")
    for spelled in ((run, "All:\nSpe", *words), (*words, run, "All:\nSpe"), (run, *words, "All:\nSpe")):
        assert sampled(capsys, *spelled) == expected
    assert sampled(capsys, f"--pretrained={run}", *words, "All:\nSpe") == expected
    assert sampled(capsys, "All:\nSpe", "--pretrained", run, *words) == expected


def test_a_length_with_the_prompt_in_it(run: Path, capsys: Capture) -> None:
    for flag in ("--max_length", "--max-length"):
        text = sampled(capsys, run, "Speak", flag, "30", "--num_samples", "5", "--seed=42")
        bodies = [part.partition(" ---\n")[2] for part in text.split("--- sample ")[1:]]
        assert [len(body) for body in bodies] == [30 + 1] * 5
        assert all(body.startswith("Speak") for body in bodies)
    assert sampled(capsys, run, "Speak", "--max_length", "25") == sampled(
        capsys, run, "Speak", "--max_new_tokens", "20"
    )
    assert len(sampled(capsys, run, "--max_length", "1")) == 1 + 1  # what an empty prompt starts from is not counted
    assert "max_length: 5 leaves no room after the prompt's 5 tokens" in refused(
        capsys, run, "Speak", "--max_length", "5"
    )


def test_samples_beyond_one_batch(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (run, "--num_samples", "5", "--max_new_tokens", "10")
    at_once = sampled(capsys, *words)
    monkeypatch.setattr(samples, "AT_ONCE", 2)
    assert sampled(capsys, *words) == at_once


def test_text_goes_on_past_the_context(run: Path, capsys: Capture) -> None:
    assert len(sampled(capsys, run, "--prompt", TEXT[:100], "--max_new_tokens", "60")) == 161


def test_greedy_in_all_its_spellings(run: Path, capsys: Capture) -> None:
    words = (run, "--prompt", "Speak", "--max_new_tokens", "30")
    greedy = sampled(capsys, *words, "--greedy")
    for spelling in (["--no-do_sample"], ["--temperature", "0"], ["--top_k", "1"], ["--greedy", "--seed", "9"]):
        assert sampled(capsys, *words, *spelling) == greedy
    assert sampled(capsys, *words, "--greedy", "--no-do_sample") == greedy
    assert sampled(capsys, *words, "--do_sample", "--top_p", "0.01") == greedy
    assert sampled(capsys, *words) != greedy


def test_filters_beside_greedy_count_for_nothing_and_that_is_said(run: Path, capsys: Capture) -> None:
    words = ["sample", str(run), "--max_new_tokens", "30"]
    greedy = sampled(capsys, *words[1:], "--greedy")
    assert main([*words, "--greedy", "--temperature", "0.8", "--repetition_penalty", "5", "--top_k", "3"]) == 0
    output = capsys.readouterr()
    assert output.out == greedy
    assert output.err.count("\n") == 1
    assert "--temperature, --top_k, --repetition_penalty left out of account" in output.err


def test_filters_reach_the_text(run: Path, capsys: Capture) -> None:
    words = (run, "--max_new_tokens", "60")
    plain = sampled(capsys, *words)
    for flag, value in (
        ("--temperature", "3"),
        ("--top_k", "2"),
        ("--top_p", "0.3"),
        ("--min_p", "0.5"),
        ("--repetition_penalty", "9"),
    ):
        assert sampled(capsys, *words, flag, value) != plain, flag
    off = ("--temperature", "1", "--top_k", "0", "--top_p", "1", "--min_p", "0", "--repetition_penalty", "1")
    assert sampled(capsys, *words, *off) == plain


def test_a_checkpoint_is_named_as_its_run_is(run: Path, capsys: Capture, tmp_path: Path) -> None:
    """In the run's attempts; beside a config.yaml; and alone, by the config inside it."""
    expected, file = sampled(capsys, run, "--max_new_tokens", "20"), file_of(run)
    assert sampled(capsys, file, "--max_new_tokens", "20") == expected
    for name in (file.name, f"{file.name}.sha256"):
        shutil.copy(file.parent / name, tmp_path)
    assert sampled(capsys, tmp_path / file.name, "--max_new_tokens", "20") == expected
    shutil.copy(run / "config.yaml", tmp_path)
    assert sampled(capsys, tmp_path / file.name, "--max_new_tokens", "20") == expected


def test_a_checkpoint_is_found_from_within_its_folder(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file_of(run).parent)
    sampled(capsys, file_of(run).name, "--max_new_tokens", "5")


def test_nothing_unverified_or_foreign_is_loaded(run: Path, capsys: Capture, tmp_path: Path) -> None:
    copy, name = tmp_path / "run", file_of(run).relative_to(run)
    shutil.copytree(run, copy)
    digest = copy / f"{name}.sha256"
    right = digest.read_text()
    digest.write_text("0" * 64 + "\n")
    assert "its sha256 does not match" in refused(capsys, copy / name)
    assert "no good checkpoint" in refused(capsys, copy)
    digest.unlink()
    assert "no checkpoint-00000040.pt.sha256 beside it" in refused(capsys, copy / name)
    assert "left no checkpoint" in refused(capsys, copy)
    digest.write_text(right)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("seed: 1337", "seed: 1338"))
    assert "belongs to run" in refused(capsys, copy / name)


def test_a_damaged_checkpoint_is_passed_over_aloud(run: Path, capsys: Capture, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    later = file_of(tmp_path / "run").with_name("checkpoint-00000099.pt")
    later.write_bytes(b"torn")
    later.with_name(later.name + ".sha256").write_text("0" * 64 + "\n")
    assert main(["sample", str(tmp_path / "run"), "--max_new_tokens", "5"]) == 0
    assert "passed over" in capsys.readouterr().err


def test_a_depth_is_chosen_where_the_trunk_lets_one(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(trunk: Stack, schedule: Any = None) -> tuple[Application, ...]:
        return tuple(map(Application, (0, 1) * getattr(trunk, "loops", 1)))

    monkeypatch.setattr(Stack, "plan", plan)
    monkeypatch.setattr(Stack, "evaluate_at", lambda trunk, depth: setattr(trunk, "loops", int(depth)))
    words = (run, "--max_new_tokens", "40")
    plain = sampled(capsys, *words)
    assert sampled(capsys, *words, "--recurrent_depth", "1") == plain
    assert sampled(capsys, *words, "--recurrent_depth", "3") != plain


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "Sp\u00eaak~"], "sample: prompt: characters outside the vocabulary: '~' '\u00ea'; allowed: '"),
        (["--do_sample", "--no-do_sample"], "--no-do_sample/--no_do_sample: not allowed with argument --do_sample"),
        (["--greedy", "--do_sample"], "--greedy and --do_sample contradict each other"),
        (["--num_samples", "0"], "--num_samples: expected a whole number of at least 1, got '0'"),
        (["--max_new_tokens", "0"], "--max_new_tokens: expected a whole number of at least 1, got '0'"),
        (["--temperature", "-0.5"], "temperature: expected 0 or more, got -0.5"),
        (["--temperature", "hot"], "--temperature: expected a number, got 'hot'"),
        (["--top_k", "-1"], "--top_k: expected a whole number of at least 0, got '-1'"),
        (["--top_k", "2.5"], "--top_k: expected a whole number of at least 0, got '2.5'"),
        (["--top_p", "1.5"], "top_p: expected a number from 0 to 1, got 1.5"),
        (["--min_p", "nan"], "min_p: expected"),
        (["--repetition_penalty", "0"], "repetition_penalty: expected more than 0"),
        (["--seed", "one"], "--seed: expected a whole number, got 'one'"),
        (["--device", "cuda:x"], "no such device 'cuda:x'; allowed: auto, cpu, mps, cuda, cuda:N"),
        (["--recurrent_depth", "4"], "sample: --recurrent_depth 4: "),
        (["--topk", "3"], "--topk: not understood; did you mean '--top_k'?"),
        (["--max-new-tokens=3"], "did you mean '--max_new_tokens'?"),
        (["--max_length", "9", "--max_new_tokens", "9"], "--max_new_tokens: not allowed with argument --max_length"),
        (["--max_length", "0"], "--max_length/--max-length: expected a whole number of at least 1, got '0'"),
        (["Speak", "up"], "sample: one prompt was expected, got 'Speak' 'up'; put it between quotes"),
        (["Speak", "--prompt", "up"], "sample: two prompts: 'Speak' and --prompt 'up'; give one of them"),
        (["--pretrained", "gpt2", "Speak"], "sample: one prompt was expected"),
        (["--ranks", "vocab.bpe"], "nanogpt: --ranks vocab.bpe: no use for them: "),
    ],
)
def test_mistakes_are_one_line(run: Path, capsys: Capture, words: list[str], message: str) -> None:
    assert message in refused(capsys, run, *words)


def test_places_that_hold_no_run_are_one_line(run: Path, capsys: Capture, tmp_path: Path) -> None:
    study = tmp_path / "study"
    for label in ("n_layer=1.0123456789ab", "n_layer=2.0123456789ab", "n_layer=3.0123456789ab", "n_layer=4.0"):
        (study / label).mkdir(parents=True)
        shutil.copy(run / "config.yaml", study / label)
    assert "holds 4 runs; name one of them: n_layer=1.0123456789ab, " in refused(capsys, study)
    assert "; with its id: n_layer=2.0123456789ab" in refused(capsys, study / "n_layer=2")
    assert "left no checkpoint" in refused(capsys, study / "n_layer=2.0123456789ab")
    assert "no run there" in refused(capsys, tmp_path / "study" / ".." / ".." / tmp_path.name / "study" / "..")
    assert "did you mean 'run'?" in refused(capsys, run.with_name("rnu"))
    assert "no such run or checkpoint" in refused(capsys, run / "attempts" / "1" / "checkpoint-00000001.pt")
    assert "no metrics.json.sha256 beside it" in refused(capsys, run / "metrics.json")


def test_a_corpus_without_characters_is_written_as_ids(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_yaml(TINY | {"train": TINY["train"] | {"max_iters": 2}}))
    assert main(["train", str(tmp_path / "config.yaml"), f"--out_dir={tmp_path / 'run'}"]) == 0
    text = sampled(capsys, tmp_path / "run", "--prompt", "1 2", "--max_new_tokens", "4")
    assert text.startswith("1 2 ")
    assert len(text.split()) == 6
    assert "'32' is no token id" in refused(capsys, tmp_path / "run", "--prompt", "32")


def test_without_a_run_one_is_asked_for(capsys: Capture) -> None:
    assert "sample: name a run, one of its checkpoints, or weights" in refused(capsys)
    assert "hf:gpt2-medum" in refused(capsys, "--pretrained=gpt2-medum", "Hello")


def test_every_flag_is_described() -> None:
    text = (ROOT / "docs" / "generation.md").read_text()
    described = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `--")}
    arguments, _ = _parser().parse_known_args(["sample", "run"])
    flags = {f"--{name}" for name in vars(arguments)} - {"--command", "--run", "--place", "--prefix", "--words"}
    assert described == flags


def process(run: Path, *words: str, **settings: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "nanogpt", "sample", str(run), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


@pytest.mark.slow
def test_text_arrives_as_it_is_made_and_a_closed_pipe_is_no_mishap(run: Path) -> None:
    """A reader gets the first pieces of a text that would take hours, and may leave when it has enough."""
    with process(run, "--max_new_tokens", "100000000", "--prompt", "All:") as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert len(writer.stdout.read(20)) == 20
        writer.stdout.close()
        assert writer.stderr.read() == b""
        assert writer.wait(timeout=60) == 1


def test_ctrl_c_ends_a_text_quietly(run: Path) -> None:
    with process(run, "--max_new_tokens", "100000000") as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        writer.stdout.read(20)
        writer.send_signal(signal.SIGINT)
        assert writer.stdout.read().endswith(b"\n")
        assert writer.stderr.read() == b""
        assert writer.wait(timeout=60) == 130


@pytest.mark.slow
def test_a_terminal_that_lacks_a_character_shows_the_others(run: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with process(run, "--prompt", "Caf\u00e9", "--max_new_tokens", "3", env=environment) as writer:
        text, errors = writer.communicate()
    assert (text[:7], errors, writer.returncode) == (b"Caf\\xe9", b"", 0)
