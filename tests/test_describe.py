"""Descriptions against what is then built, trained and saved; resolution; the doors stay free of torch."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from nanogpt.config import Config, UserError, run_id
from nanogpt.data import opening
from nanogpt.data.opening import CorpusFacts
from nanogpt.describe import (
    _kept_by_autograd,
    _saved_bytes,
    causal_flops_per_token,
    describe,
    describe_many,
    estimate_memory,
    format_bytes,
    format_description,
    model_facts,
    resolve,
)
from nanogpt.model import build_model
from nanogpt.model.trunks import TRUNKS
from nanogpt.optim import build_optimizer
from nanogpt.optim.build import OPTIMIZERS

SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 32}
CONTENT = "c" * 64


@pytest.fixture(autouse=True)
def stub_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    found = CorpusFacts(50, 64_000, 6_400, content=CONTENT, files={"train.bin": "f" * 64})
    embedded = CorpusFacts(50, 64_000, 6_400)
    kinds = {"zipf_mixture": embedded, "bin": found, "shakespeare_char": found}
    monkeypatch.setattr(opening, "facts", lambda data, runtime: kinds[data.corpus.kind])


def make(**sections: Any) -> Config:
    model = SHAPE | sections.pop("model", {})
    runtime = {"device": "cpu"} | sections.pop("runtime", {})
    train = {"batch_size": 8, "precision": "fp32"} | sections.pop("train", {"max_iters": 10})
    return Config.model_validate({"model": model, "runtime": runtime, "train": train, **sections})


def test_the_description_is_of_the_model_that_is_built() -> None:
    told = describe(make())
    model = build_model(told.config)
    assert told.n_params == sum(parameter.numel() for parameter in model.parameters()) == sum(told.parameters.values())
    assert told.n_params_non_embedding == model.parameter_counts().non_embedding
    assert told.flops_per_token == model.flops_per_token() == sum(told.flops_by_module.values())
    assert (told.steps, told.tokens) == (10, 10 * 8 * 32)
    assert told.flops == told.tokens * told.flops_per_token
    assert told.id == run_id(told.config)


@pytest.mark.parametrize(
    ("horizon", "steps"),
    [
        ({"max_iters": 7}, 7),
        ({"tokens": 256 * 9 + 127}, 9),
        ({"tokens": 256 * 9 + 128}, 10),
        ({"tokens": 1}, 1),
        ({"epochs": 0.5}, 125),
        ({"epochs": 1e-9}, 1),
    ],
)
def test_horizons_become_the_nearest_number_of_steps(horizon: dict[str, Any], steps: int) -> None:
    assert describe(make(train=horizon)).steps == steps


def test_tokens_per_param_counts_non_embedding_parameters_and_flops_are_exact() -> None:
    told = describe(make())
    by_params = describe(make(train={"tokens_per_param": 20.0}))
    assert by_params.steps == round(20 * told.n_params_non_embedding / 256)
    by_flops = describe(make(train={"flops": 1e11}))
    assert by_flops.steps == round(1e11 / told.flops_per_token / 256)
    assert abs(by_flops.flops - 1e11) <= 128 * told.flops_per_token


def test_the_page_says_how_blocks_are_used() -> None:
    def trunk(**model: Any) -> str:
        page = format_description(describe(make(model=model, train={"max_iters": 2000})))
        return next(line for line in page.splitlines() if line.strip().startswith("trunk")).split(maxsplit=1)[1]

    assert trunk(trunk="stack") == "stack: 2 unique blocks, 2 applications"
    assert trunk(trunk="shared", n_layer=5) == "shared: 1 unique block, 5 applications"
    assert trunk(trunk="recurrent", n_layer=None) == "recurrent: 3 unique blocks, 6 applications"
    assert trunk(trunk={"kind": "recurrent", "eval_loops": 7}, n_layer=None).endswith(
        "6 applications expected, 9 in evaluation"
    )
    drawn = trunk(trunk="random2d", n_layer=None).split(", ")
    assert drawn[:2] == ["random2d: 3 unique blocks", "11.25 applications expected"]
    assert float(drawn[2].split()[0]) == pytest.approx(11.25, rel=0.03)
    assert drawn[3] == "11 in evaluation"


def test_parameters_are_counted_by_application() -> None:
    def applied(**model: Any) -> int:
        return describe(make(model={"bias": False, **model})).n_params_applied

    block, outside = 12 * 64**2 + 2 * 64, 50 * 64 + 32 * 64 + 64
    assert applied(n_layer=3) == outside + 3 * block == describe(make(model={"bias": False, "n_layer": 3})).n_params
    assert applied(n_layer=3, trunk="shared") == outside + 3 * block
    assert applied(n_layer=None, trunk="random2d") == outside + 11.25 * block
    assert applied(n_layer=None, trunk="recurrent") == outside + 6 * block + 4 * 2 * 64**2


def test_both_conventions_of_attention_and_both_of_6nd_are_told() -> None:
    told = describe(make())
    scores = 12 * told.config.model.n_layer * told.config.model.n_embd * told.config.model.block_size
    assert told.flops_by_module["attention scores"] == scores  # 12 L H Q T: PaLM, appendix B
    assert causal_flops_per_token(told) == told.flops_per_token - scores / 2
    page = {line[2:30].strip(): line[30:].split() for line in format_description(told).splitlines() if line[:2] == "  "}
    assert float(page["exact, full attention"][0]) == pytest.approx(told.flops, rel=1e-3)
    assert float(page["causal attention"][0]) == pytest.approx(causal_flops_per_token(told) * told.tokens, rel=1e-3)
    assert float(page["6ND, all parameters"][0]) == pytest.approx(6 * told.n_params * told.tokens, rel=1e-3)
    kaplan = 6 * told.n_params_non_embedding * told.tokens
    assert float(page["6ND, non-embedding (Kaplan)"][0]) == pytest.approx(kaplan, rel=1e-3)


def test_resolution_fills_in_every_auto_and_is_idle_when_repeated() -> None:
    config = make(data={"corpus": {"kind": "bin", "path": "somewhere"}}, train={"max_iters": 1, "precision": "auto"})
    done = resolve(config.model_copy(update={"runtime": config.runtime.model_copy(update={"device": "auto"})}))
    assert done.model.vocab_size == 50
    assert done.data.corpus.content == CONTENT
    assert done.train.precision in ("fp32", "bf16")
    assert done.runtime.device != "auto"
    assert resolve(done) == done
    assert Config.model_validate(done.model_dump(mode="json")) == done


def test_changed_files_are_not_taken_for_the_ones_a_config_was_made_for() -> None:
    with pytest.raises(UserError, match=r"data\.corpus: the files' content is cccccccccccc, .* made for dddddddddddd"):
        describe(make(data={"corpus": {"kind": "bin", "path": "x", "content": "d" * 64}}))


def test_a_vocabulary_smaller_than_the_corpus_is_refused_and_a_larger_one_kept() -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size: 49 is less than the corpus's 50"):
        describe(make(model={"vocab_size": 49}))
    assert describe(make(model={"vocab_size": 64})).config.model.vocab_size == 64


@pytest.mark.parametrize(
    ("ffn", "precision", "runtime", "problem"),
    [
        ({"hidden": 41}, "fp32", {}, "widths 41 and 32 are no multiples of 4"),
        ({"hidden": 44}, "bf16", {}, "widths 44 and 32 are no multiples of 8"),
        ({"hidden": 64}, "fp32", {"compile": True}, "compiled code has it in bf16 only"),
        ({"hidden": 64}, "fp32", {"device": "cuda"}, "there is none in float32 on cuda"),
        ({"hidden": 64}, "bf16", {"device": "cuda"}, None),
        ({"hidden": 44}, "fp32", {}, None),
        ({"hidden": 41}, "fp32", {"expert_matmul": "auto"}, None),
        ({"hidden": 41, "kind": "soft_moe"}, "fp32", {}, None),
    ],
)
def test_a_grouped_matmul_that_cannot_be_is_refused_before_anything_is_written(
    ffn: dict[str, Any], precision: str, runtime: dict[str, Any], problem: str | None
) -> None:
    config = make(
        model={"n_head": 2, "n_embd": 32, "ffn": {"kind": "topk_moe", **ffn}},
        train={"precision": precision, "max_iters": 10},
        runtime={"device": "cpu", "expert_matmul": "grouped", **runtime},
    )
    if problem is None:
        describe(config, elsewhere=True)
    else:
        with pytest.raises(UserError, match=rf"^runtime\.expert_matmul: grouped: {problem}; use auto or loop$"):
            describe(config, elsewhere=True)


def saved_bytes(config: Config) -> int:
    """What autograd keeps for one real micro-batch on the CPU."""
    model = build_model(config)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}
    idx = torch.zeros(config.micro_batch_size, config.model.block_size, dtype=torch.long)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        return kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    half = config.train.precision == "bf16"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda kept_tensor: kept_tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False),
    ):
        model.loss(idx, idx)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


STYLES = [{}, {"norm": "rmsnorm", "position": "rope", "ffn": "swiglu", "n_kv_head": 2}, {"dropout": 0.1}]


# Not fused attention with dropout: torch's CPU kernel keeps the probabilities then, which those of GPUs do not.
PATHS = [(model, "explicit") for model in STYLES] + [(model, "sdpa") for model in STYLES if "dropout" not in model]


@pytest.mark.parametrize(("model", "attention"), PATHS)
def test_estimated_activations_are_the_tensors_autograd_keeps(model: dict[str, Any], attention: str) -> None:
    config = resolve(make(model=model, runtime={"attention": attention, "micro_batch_size": 4}))
    # The fused kernels keep views of q, k and v where explicit attention keeps copies; the estimate is of copies.
    tolerance = 0.002 if attention == "explicit" else 0.1
    assert estimate_memory(config).activations == pytest.approx(saved_bytes(config), rel=tolerance)


DEEP: dict[str, dict[str, Any]] = {
    "stack": {"n_layer": 7},
    "shared": {"n_layer": 7, "trunk": {"kind": "shared", "groups": 3}},
    "shared ffn": {"n_layer": 7, "trunk": {"kind": "shared", "scope": "ffn"}},
    "recurrent": {"n_layer": None, "trunk": {"kind": "recurrent", "core": 2, "depth": {"loops": 3}}},
    "add": {"n_layer": None, "trunk": {"kind": "recurrent", "inject": "add", "state_init": "input"}},
    "truncated": {"n_layer": None, "trunk": {"kind": "recurrent", "depth": {"loops": 5}, "backprop_loops": 2}},
    "random2d": {"n_layer": None, "trunk": {"kind": "random2d", "vertical": [2, 2], "verifier": [3, 3],
                                            "horizontal": [2, 2]}},
}  # fmt: skip


def test_every_trunk_is_among_the_deep_models() -> None:
    assert set(TRUNKS) <= set(DEEP)


@pytest.mark.parametrize("trunk", DEEP.values(), ids=list(DEEP))
@pytest.mark.parametrize("model", [*STYLES, {"n_embd": 32, "qk_norm": True, "tie_embeddings": False}])
@pytest.mark.parametrize("sequences", [1, 3])
def test_the_memory_of_a_deep_model_is_told_exactly_from_two_shallow_ones(
    model: dict[str, Any], trunk: dict[str, Any], sequences: int
) -> None:
    deep = resolve(make(model={**trunk, **model})).model
    assert _saved_bytes(deep, sequences, fused=False) == _kept_by_autograd(deep, sequences)


@pytest.mark.parametrize("model", STYLES)
def test_half_precision_activations_are_estimated_on_the_safe_side(model: dict[str, Any]) -> None:
    config = resolve(make(model=model, train={"max_iters": 1, "precision": "bf16"}))
    memory, found = estimate_memory(config), saved_bytes(config)
    assert 0.9 * found < memory.activations + memory.work < 1.5 * found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_estimated_checkpoint_is_what_torch_writes(tmp_path: Any, optimizer: str) -> None:
    config = resolve(make(model={"n_embd": 128}, optimizer=optimizer))
    model = build_model(config)
    optimizer = build_optimizer(model, config, "cpu")
    idx = torch.zeros(1, 4, dtype=torch.long)
    model.loss(idx, idx).backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    assert describe(config).checkpoint_bytes == pytest.approx((tmp_path / "checkpoint.pt").stat().st_size, rel=0.03)


def test_models_of_one_shape_are_built_once() -> None:
    model_facts.cache_clear()
    trees = [make(seed=seed).model_dump(mode="json") for seed in range(5)]
    answers = describe_many(trees)
    assert model_facts.cache_info().misses == 1
    assert len({answer["id"] for answer in answers}) == 5


def test_many_descriptions_are_plain_json_with_an_error_in_its_place() -> None:
    good, bad = make().model_dump(mode="json"), make(model={"vocab_size": 3}).model_dump(mode="json")
    first, second, third = json.loads(json.dumps(describe_many([good, bad, good | {"seed": "x"}])))
    keys = {field.name for field in dataclasses.fields(describe(make()))} - {"memory"} | {"memory_bytes"}
    assert first.keys() == keys
    assert Config.model_validate(first["config"]) == resolve(make())
    assert second.keys() == third.keys() == {"error"}
    assert "vocab_size" in second["error"]
    assert "\n" not in third["error"]


def test_the_page_for_people_names_what_matters() -> None:
    told = describe(make())
    page = format_description(told)
    for figure in (told.id, f"{told.n_params:,}", f"{told.n_params_non_embedding:,}", f"{told.flops_per_token:,}"):
        assert figure in page
    assert "Kaplan" in page
    assert f"{6.0 * told.n_params * told.tokens:.4g}" in page


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1.02e+03 B"), (1536, "1.5 KiB"), (3 * 2**40, "3 TiB")])
def test_bytes_are_written_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize("door", ["nanogpt.describe", "nanogpt.hardware", "parametrization"])
def test_importing_a_door_loads_no_torch(door: str) -> None:
    code = f"import sys, {door}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
