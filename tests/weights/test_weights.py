"""Weights to start from, offline and without transformers: what is filled in, refused, hashed and cached."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt import checkpoint
from nanogpt.__main__ import main
from nanogpt.config import Config, UserError, run_id
from nanogpt.configfile import dump_yaml
from nanogpt.describe import describe
from nanogpt.materials import gather
from nanogpt.record import Record, read_record
from nanogpt.trained import load_trained
from nanogpt.weights import digest, hub
from nanogpt.weights.layouts import model_of
from tests.weights.checkpoints import CORPUS, GPT2, LLAMA, config_of, random_model, save_hf, some_tokens


def trained_in(folder: Path, config: Config, attempt: int = 1) -> Record:
    """The record of an attempt in a run's folder, as a worker trains it: nothing is published or drawn."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    assert main(["train", str(folder), "--attempt", str(attempt), "--fence", str(folder / "fence")]) == 0
    return read_record(folder / "attempts" / str(attempt) / "outcome.json")


def logits(gpt: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return gpt(some_tokens())


def test_the_model_is_that_of_the_weights(tmp_path: Path) -> None:
    save_hf(tmp_path / "w", {**LLAMA, "n_kv_head": 1, "rope_theta": 500.0})
    model = config_of(tmp_path / "w", dropout=0.1).model
    assert (model.n_layer, model.kv_heads, model.position, model.rope_theta) == (2, 1, "rope", 500.0)
    assert (model.ffn.kind, model.norm, model.vocab_size, model.dropout) == ("swiglu", "rmsnorm", 32, 0.1)
    # Said again in other words, it is no contradiction; RoPE has no table that a longer context could outgrow.
    assert config_of(tmp_path / "w", n_kv_head=1, ffn="swiglu", vocab_size="auto", block_size=64).model.block_size == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_layer": 3}, "here.yaml:3: model.n_layer: 3, but the weights of .* have 2; take it out"),
        ({"ffn": "swiglu"}, "model.ffn: {kind: swiglu.*have {kind: gelu"),
        ({"bias": False}, "model.bias: false, but .* have true"),
        ({"block_size": 17}, "model.block_size: 17, but .* have 16 positions; it can be cropped, not grown"),
        ({"vocab_size": 31}, "model.vocab_size: 31, but .* have 32 tokens"),
        ({"trunk": {"kind": "shared"}}, "model.trunk: {kind: shared"),
    ],
)
def test_what_contradicts_the_weights_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_hf(tmp_path / "w")
    with pytest.raises(UserError, match=message):
        config_of(tmp_path / "w", **settings)


def test_places_that_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "headless").mkdir()
    (tmp_path / "headless" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for place, message in {
        tmp_path
        / "emty": r"here.yaml:3: init_from: .*no such run, checkpoint or folder of weights; did you mean 'empty'",
        tmp_path / "empty": r"neither a run \(config.yaml\) nor weights that transformers saved \(config.json\)",
        tmp_path / "headless": "config.json: model_type=bert: only gpt2 and llama are read",
        "someone/model": "a model of the hub is written hf:someone/model",
        "hf:a/b/c": "expected hf:NAME or hf:OWNER/NAME",
        "hf:gpt2": "hf:gpt2: not in .*hub, and HF_HUB_OFFLINE=1 keeps us off the network",
        "gpt2-xl": "hf:gpt2-xl: not in",
    }.items():
        with pytest.raises(UserError, match=message):
            config_of(place)


def test_fields_that_would_make_another_function_are_refused(tmp_path: Path) -> None:
    save_hf(tmp_path / "g"), save_hf(tmp_path / "l", LLAMA)
    for folder, field, value in (
        ("g", "layer_norm_epsilon", 1e-6), ("g", "activation_function", "silu"), ("g", "scale_attn_weights", False),
        ("g", "n_head", "two"), ("l", "rms_norm_eps", 1e-6), ("l", "hidden_act", "gelu"), ("l", "head_dim", 4),
        ("l", "rope_parameters", {"rope_type": "llama3", "rope_theta": 5e5}),
    ):  # fmt: skip
        path = tmp_path / folder / "config.json"
        content = json.loads(path.read_text())
        with pytest.raises(UserError, match=rf"config.json: {'rope_type=llama3' if field[:2] == 'ro' else field}"):
            model_of({**content, field: value}, str(path))


def test_a_run_of_ours_is_another_start(tmp_path: Path) -> None:
    """Also under muP, whose multipliers come with the weights, and from one of its checkpoints."""
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8}
    trained_in(tmp_path / "run", describe(config_of("scratch", **shape, mode="mup", base_n_embd=8)).config)
    file = checkpoint.listed(tmp_path / "run")[0].path
    for place in (tmp_path / "run", file):
        config = describe(config_of(place, block_size=4)).config
        assert config.parametrization.base_n_embd == 8
        assert config.model.block_size == 4
        begun = gather(describe(config), tmp_path / "new").initial
        trained = load_trained(place).model
        assert torch.equal(begun["trunk.blocks.0.ffn.up.weight"], trained.state_dict()["trunk.blocks.0.ffn.up.weight"])
        assert begun["position.weight"].shape == (4, 16)
    with pytest.raises(UserError, match=r"parametrization.mode=sp: its output multiplier is 1.*trained with 0.5"):
        describe(config_of(tmp_path / "run", mode="sp"))


def test_fine_tuning_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train on, export what came of it, sample from both: the same text. The loss falls from that of the weights."""
    save_hf(tmp_path / "w")
    path = tmp_path / "tune.yaml"
    settings = {"batch_size": 4, "max_iters": 20, "eval_interval": 10, "eval_tokens": 256, "learning_rate": 3e-3}
    tree = {"init_from": str(tmp_path / "w"), "data.corpus": CORPUS, "device": "cpu", "precision": "fp32"}
    path.write_text(dump_yaml({**tree, **settings}))
    run = tmp_path / "run"
    assert main(["train", str(path), f"--out_dir={run}"]) == 0
    assert f"starting from the weights of {tmp_path / 'w'}, sha256 " in capsys.readouterr().out
    record = read_record(run / "metrics.json")
    assert record.config["init_from"] == {
        "weights": str(tmp_path / "w"),
        "sha256": record.config["init_from"]["sha256"],
    }
    assert record.val_loss is not None
    with torch.no_grad():
        before = random_model(GPT2).model
    assert not torch.equal(logits(before), logits(load_trained(run).model))
    assert main(["export", str(run), "--to", "hf", str(tmp_path / "out")]) == 0
    assert torch.equal(logits(load_trained(tmp_path / "out").model), logits(load_trained(str(run)).model))
    capsys.readouterr()
    for place in (run, tmp_path / "out"):
        assert main(["sample", str(place), "--prompt", "1 2", "--max_new_tokens", "6", "--device", "cpu"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_the_first_loss_is_that_of_the_weights(tmp_path: Path) -> None:
    """With a learning rate of nearly 0 the run's loss is what the exported model has on the same tokens."""
    save_hf(tmp_path / "w")
    description = describe(config_of(tmp_path / "w", learning_rate=1e-12, max_iters=1))
    materials = gather(description, tmp_path / "run")
    batch = materials.stream.batch(0)
    expected = load_trained(tmp_path / "w", "cpu").model.loss(
        torch.from_numpy(batch.x_BT), torch.from_numpy(batch.y_BT)
    )
    record = trained_in(tmp_path / "run", description.config)
    assert record.train_loss == pytest.approx(expected.item(), abs=1e-6)


def test_the_weights_are_part_of_the_identity_and_their_place_is_not(tmp_path: Path) -> None:
    save_hf(tmp_path / "a"), save_hf(tmp_path / "b"), save_hf(tmp_path / "c", seed=1)
    ids = [run_id(describe(config_of(tmp_path / name)).config) for name in "abc"]
    assert ids[0] == ids[1] != ids[2]
    config = describe(config_of(tmp_path / "a")).config
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "c" / "model.safetensors").read_bytes())
    assert run_id(describe(config_of(tmp_path / "a")).config) == ids[2]
    with pytest.raises(UserError, match=r"the weights have changed: their sha256 is .*, the config was made for"):
        gather(describe(config), tmp_path / "run")


def test_a_run_with_a_checkpoint_needs_its_weights_no_more(tmp_path: Path) -> None:
    save_hf(tmp_path / "w")
    run, config = tmp_path / "run", describe(config_of(tmp_path / "w")).config
    trained_in(run, config)
    (tmp_path / "w").rename(tmp_path / "gone")
    assert load_trained(run).step == 3
    assert trained_in(run, config, attempt=2).steps == 3
    with pytest.raises(UserError, match=r"no such run, checkpoint or folder of weights"):
        gather(describe(load_trained(run).config), tmp_path / "new")


def test_a_parametrization_must_leave_the_function_alone(tmp_path: Path) -> None:
    save_hf(tmp_path / "w")
    for settings, named in {
        "mup": ({"base_n_embd": 8}, "its output multiplier is 0.5, .* trained with 1"),
        "completep": ({"base_n_embd": 16, "base_n_layer": 1}, "its residual multiplier is 0.5"),
        "sp": ({"input_multiplier": 2.0}, "its input multiplier is 2"),
    }.items():
        with pytest.raises(UserError, match=rf"parametrization.mode={settings}: {named[1]}"):
            describe(config_of(tmp_path / "w", **{"mode": settings, **named[0]}))
    describe(config_of(tmp_path / "w", mode="completep", base_n_embd=16, base_n_layer=2))


def test_vocabularies_grow_by_means_and_corpora_must_fit(tmp_path: Path) -> None:
    trained = save_hf(tmp_path / "w", {**GPT2, "tie_embeddings": False})
    grown = gather(describe(config_of(tmp_path / "w", vocab_size=40)), tmp_path / "run").initial
    for name in ("embedding.weight", "head.weight"):
        old = trained.model.state_dict()[name]
        assert torch.equal(grown[name][:32], old)
        assert torch.allclose(grown[name][32:], old.mean(0).expand(8, -1))
    with pytest.raises(
        UserError, match=r"it has 64 kinds of tokens, the weights of .* 32: it was prepared with another"
    ):
        describe(config_of(tmp_path / "w", **{"data.corpus": {**CORPUS, "alphabet_size": 64}}))


def test_damaged_weights_are_named_before_anything_is_written(tmp_path: Path) -> None:
    save_hf(tmp_path / "w")
    config = config_of(tmp_path / "w")
    file = tmp_path / "w" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model.safetensors: damaged, or no safetensors file"):
        gather(describe(config), tmp_path / "run")
    file.unlink()
    with pytest.raises(UserError, match=r"no weights there: neither model.safetensors nor pytorch_model.bin"):
        describe(config)
    torch.save({"transformer.wte.weight": print}, tmp_path / "w" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin: cannot be read as weights alone"):
        gather(describe(config), tmp_path / "run")
    torch.save({"transformer.wte.weight": torch.zeros(32, 16)}, tmp_path / "w" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no tensor transformer.wpe.weight there; it is not the model of its config"):
        gather(describe(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    save_hf(tmp_path / "w", LLAMA)
    content = json.loads((tmp_path / "w" / "config.json").read_text())
    (tmp_path / "w" / "config.json").write_text(json.dumps({**content, "num_hidden_layers": 1}))
    with pytest.raises(
        UserError, match=r"tensor model.layers.1.input_layernorm.weight has no place in our LLaMA \(nor"
    ):
        load_trained(tmp_path / "w")


def test_the_hub_is_its_cache_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By either of GPT-2's names, by revision, and never the network for what is there."""
    stored = tmp_path / "hub" / "models--openai-community--gpt2"
    save_hf(stored / "snapshots" / "abc")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("abc")
    for name in ("gpt2", "hf:gpt2", "hf:openai-community/gpt2", "hf:gpt2@abc"):
        assert config_of(name).model.n_embd == 16
    assert load_trained("hf:gpt2", "cpu").vocabulary().note == "hf:gpt2 has no tokenizer's files"
    with pytest.raises(UserError, match=r"hf:gpt2@main2: not in"):
        config_of("hf:gpt2@main2")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    assert load_trained("hf:gpt2", "cpu").config.init_from == describe(config_of("hf:gpt2")).config.init_from
    with pytest.raises(UserError, match=r"and the hub cannot be reached; give a local folder instead"):
        config_of("hf:someone/else")


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    hashed: list[Path] = []
    real = digest.file_sha256
    monkeypatch.setattr(digest, "file_sha256", lambda path: hashed.append(path) or real(path))
    monkeypatch.setattr(digest, "SETTLED_SECONDS", -1)

    def again() -> str:
        digest._known.cache_clear()  # as another process would see it
        return digest.known_sha256(file)

    assert again() == again() == real(file)
    assert len(hashed) == 1
    inode = file.stat().st_ino
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))  # the same size and time of change: only the kernel's own time tells
    assert file.stat().st_ino == inode
    assert again() == real(file)
    next((tmp_path / "cache").rglob("*.json")).write_text("torn")
    assert again() == real(file)
    monkeypatch.setenv("NANOGPT_CACHE_DIR", "/proc/no/such")
    assert again() == real(file)
    assert len(hashed) == 4


def test_a_file_that_was_just_written_is_not_trusted_to_stay(tmp_path: Path) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"one")
    digest.known_sha256(file)
    assert not (tmp_path / "cache").exists()


def test_a_study_starts_from_weights_and_sees_them_change(tmp_path: Path, monkeypatch: Callable[..., Any]) -> None:
    from experiments import engine
    from experiments.lock import drifts, holds, resolve
    from experiments.study import Study

    monkeypatch.setattr(engine, "describe", lambda configs, elsewhere=False: engine.describe_here(configs))
    for seed, name in enumerate(("w", "other", "third")):
        save_hf(tmp_path / name, seed=seed)
    study = tmp_path / "tune.yaml"
    study.write_text(
        "question: What?\nhypothesis: That.\nconfig:\n"
        "  train: {batch_size: 2, max_iters: 2, precision: fp32}\n  runtime: {device: cpu}\n"
        f"  data: {json.dumps({'corpus': CORPUS})}\n"
        f"sweep: {{grid: {{init_from: [{tmp_path / 'w'}, {tmp_path / 'other'}]}}}}\n"
    )
    lock = resolve(Study.load(study))
    assert {run.config["model"]["n_embd"] for run in lock.runs} == {16}
    assert [run.factors["init_from"] for run in lock.runs] == [str(tmp_path / "w"), str(tmp_path / "other")]
    assert holds(lock, Study.load(study))
    (tmp_path / "w" / "model.safetensors").write_bytes((tmp_path / "third" / "model.safetensors").read_bytes())
    assert not holds(lock, Study.load(study))
    new = resolve(Study.load(study), lock)
    found = drifts(lock, new, {run.id: tmp_path for run in lock.runs})
    assert [set(drift.differences()) for drift in found] == [{"init_from.sha256"}]
