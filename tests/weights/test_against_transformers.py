"""Logits equal transformers' in both directions, on random weights of std 0.4 at which a wrong GELU shows.

Slow: about 40 s on one core, most of it importing transformers (which it skips without).
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.config.model import Model
from nanogpt.config.parametrization import Parametrization
from nanogpt.config.run import Config
from nanogpt.model import GPT
from nanogpt.trained import Trained, load_trained
from nanogpt.weights.export import export

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers", reason="the extra 'peers' is not installed")

VOCAB, LENGTH = 61, 24
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}  # of the largest logit
SMALL: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": LENGTH, "vocab_size": VOCAB}
LLAMA: dict[str, Any] = {**SMALL, "norm": "rmsnorm", "position": "rope", "ffn": "swiglu", "bias": False}
CLOSE_GELUS = {"activation_function": "gelu"}  # 1e-3 away from gelu_new at this scale


def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def shaken(module: Any) -> Any:
    """All parameters drawn anew: matrices and vectors of std 0.4, so that no bias, gain or scale can be left out."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.normal_(0.0, 0.4, generator=generator)
    return module.eval()


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    scale = theirs.abs().max()
    assert scale > 0.5
    assert (ours - theirs).abs().max() <= TOLERANCE[dtype] * scale


def theirs_of(folder: Path, dtype: torch.dtype, attention: str = "eager") -> Any:
    """By transformers' own way in, which is told to say what it did not find or did not know."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=dtype, attn_implementation=attention
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


EXPORTED = {
    "gpt2": (SMALL, {}),
    "gpt2 exact gelu, no bias": ({**SMALL, "bias": False, "ffn": "gelu_exact"}, {}),
    "gpt2 relu2, untied, wide": ({**SMALL, "ffn": {"kind": "relu2", "hidden": 50}, "tie_embeddings": False}, {}),
    "gpt2 grouped heads": ({**SMALL, "n_kv_head": 2}, {}),
    "gpt2 mup": (SMALL, {"mode": "mup", "base_n_embd": 8, "input_multiplier": 3.0, "output_multiplier": 2.0}),
    "gpt2 mup, tied still": (SMALL, {"mode": "mup", "base_n_embd": 16, "input_multiplier": 0.5}),
    "gpt2 completep, no bias": ({**SMALL, "bias": False}, {"mode": "completep", "base_n_embd": 8, "base_n_layer": 2}),
    "llama": (LLAMA, {}),
    "llama biases, grouped heads": ({**LLAMA, "bias": True, "n_kv_head": 2, "rope_theta": 5000.0}, {}),
    "llama untied, one kv head": ({**LLAMA, "tie_embeddings": False, "n_kv_head": 1}, {}),
    "llama completep": (
        {**LLAMA, "bias": True, "n_kv_head": 2},
        {"mode": "completep", "base_n_embd": 8, "base_n_layer": 1, "base_head_size": 4, "input_multiplier": 2.0},
    ),
    "llama depth mup": (LLAMA, {"mode": "depth_mup", "base_n_embd": 16, "base_n_layer": 2}),
    "shared": ({**SMALL, "n_layer": 4, "trunk": {"kind": "shared", "groups": 2, "order": "cycle"}}, {}),
    "shared attention": ({**LLAMA, "trunk": {"kind": "shared", "scope": "attn"}}, {}),
    "shared ffn, completep": (
        {**SMALL, "trunk": {"kind": "shared", "scope": "ffn"}},
        {"mode": "completep", "base_n_embd": 8, "base_n_layer": 1},
    ),
    "recurrent": (
        {**LLAMA, "n_layer": None, "trunk": {"kind": "recurrent", "inject": "none", "state_init": "input",
                                             "core": 2, "eval_loops": 3}},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", EXPORTED)
def test_transformers_computes_what_we_export(name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: Any) -> None:
    shape, parametrization = EXPORTED[name]
    config = Config.model_validate({"model": shape, "parametrization": parametrization, "train": {"max_iters": 1}})
    ours = shaken(GPT(config.model, config.parametrization)).to(dtype)
    monkeypatch.setitem(__import__("nanogpt.weights.export", fromlist=["DTYPES"]).DTYPES, "float32", dtype)
    done = export(Trained(config, ours, step=7, name="a run"), tmp_path / "out", vocab_size=VOCAB)
    folds = any("folded" in note for note in done.notes)
    unrolls = any("unrolled" in note for note in done.notes)
    assert folds == bool(parametrization)
    assert unrolls == ("trunk" in shape)
    with torch.no_grad():
        assert_equal(ours(tokens()), theirs_of(done.folder, dtype)(tokens()).logits, dtype)


def hf_config(kind: str, **changes: Any) -> Any:
    if kind == "gpt2":
        shape = {"n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": VOCAB, "n_positions": LENGTH}
        return transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0, **changes)
    shape = {
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
        "intermediate_size": 48, "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    return transformers.LlamaConfig(**{**shape, **changes})


IMPORTED = {
    "gpt2": ("gpt2", {}),
    "gpt2 exact gelu, untied, wide": ("gpt2", {**CLOSE_GELUS, "tie_word_embeddings": False, "n_inner": 50}),
    "llama grouped heads": ("llama", {}),
    "llama tied, biases, another theta": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "llama attention biases alone": ("llama", {"attention_bias": True, "num_key_value_heads": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPORTED)
@pytest.mark.parametrize("written", ["safetensors", "spread", "pickle"])
def test_we_compute_what_transformers_saved(name: str, written: str, tmp_path: Path) -> None:
    kind, changes = IMPORTED[name]
    theirs = shaken(transformers.AutoModelForCausalLM.from_config(hf_config(kind, **changes)))
    if written == "pickle":
        theirs.config.save_pretrained(tmp_path)
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        theirs.save_pretrained(tmp_path, max_shard_size="20KB" if written == "spread" else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (written == "spread")
    trained = load_trained(tmp_path, "cpu")
    with torch.no_grad():
        assert_equal(trained.model(tokens()), theirs(tokens()).logits, torch.float32)
        again = export(trained, tmp_path / "again", vocab_size=VOCAB)
        assert_equal(theirs_of(again.folder, torch.float32)(tokens()).logits, theirs(tokens()).logits, torch.float32)


def test_a_bare_model_of_old_with_its_masks(tmp_path: Path) -> None:
    """The hub's own gpt2: no prefix, no head, and causal masks among the tensors."""
    theirs = shaken(transformers.GPT2LMHeadModel(hf_config("gpt2")))
    theirs.config.save_pretrained(tmp_path)
    state = dict(theirs.transformer.state_dict())
    state |= {f"h.{n}.attn.bias": torch.ones(1, 1, LENGTH, LENGTH).tril() for n in range(3)}
    state |= {f"h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(3)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with torch.no_grad():
        assert_equal(load_trained(tmp_path, "cpu").model(tokens()), theirs(tokens()).logits, torch.float32)


def test_the_tolerance_would_show_a_wrong_gelu(tmp_path: Path) -> None:
    theirs = shaken(transformers.GPT2LMHeadModel(hf_config("gpt2")))
    theirs.save_pretrained(tmp_path)
    theirs.config.activation_function = "gelu"
    theirs.config.save_pretrained(tmp_path)
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_equal(load_trained(tmp_path, "cpu").model(tokens()), theirs(tokens()).logits, torch.float32)


def test_padded_rows_are_cut_and_generation_agrees(tmp_path: Path) -> None:
    """A vocabulary padded to 64 loses its rows, and transformers then takes the same likeliest tokens."""
    model = Model.model_validate({**SMALL, "vocab_size": 64})
    config = Config.model_validate({"model": model.model_dump(), "train": {"max_iters": 1}})
    ours = shaken(GPT(model, Parametrization()))
    done = export(Trained(config, ours, step=0), tmp_path / "out", vocab_size=VOCAB)
    theirs = theirs_of(done.folder, torch.float32)
    assert theirs.config.vocab_size == VOCAB
    assert any("cut from 64 to 61" in note for note in done.notes)
    with torch.no_grad():
        assert_equal(ours(tokens())[..., :VOCAB], theirs(tokens()).logits, torch.float32)
    written = theirs.generate(tokens()[:1, :4], max_new_tokens=5, do_sample=False, pad_token_id=0)
    idx_BT = tokens()[:1, :4]
    for _ in range(5):
        idx_BT = torch.cat((idx_BT, ours(idx_BT)[:, -1:, :VOCAB].argmax(-1)), dim=1)
    assert torch.equal(written, idx_BT)
