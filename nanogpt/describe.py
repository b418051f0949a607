"""What a config means, without training it: resolved values, steps, parameters, FLOPs, memory. Imports no torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from nanogpt.config import Config, UserError, run_id
from nanogpt.config.ffns import Mixture, TopKMoE
from nanogpt.config.model import Model
from nanogpt.config.trunks import Stack
from nanogpt.weights.resolving import init_from, starts_from, vocab_size, weights_files

if TYPE_CHECKING:
    from nanogpt.data.opening import CorpusFacts
    from nanogpt.model import GPT

FLOAT_BYTES = 4
# Float32 numbers kept per parameter by an optimizer, in the backbone's matrices and elsewhere: Adam's two moments,
# Muon's momentum (NorMuon's one number per row is left out).
MOMENTS = {"adamw": (2, 2), "muon": (1, 2)}
CHECKPOINT_OVERHEAD = 2**15  # random-number states, names, the archive's directory
# Share of the float32 activations that stays under autocast, where the residual stream and the norms are float32.
# Saved tensors measured on a CPU: 0.65 (GELU, LayerNorm) to 0.77 (SwiGLU, RMSNorm, RoPE).
HALF_PRECISION_SHARE = 0.75
MOST_DRAWN = 20_000  # steps whose schedules are drawn to say what a run realises: a moment's work
SHALLOW = (1, 2)  # layers of the models from which the memory of deeper ones is told


@dataclass(frozen=True)
class Memory:
    """Bytes while training on one device, estimated: what is certain to be there, without allocator or kernels."""

    state: int  # weights, gradients, the optimizer's moments
    activations: int  # kept for the backward pass of one micro-batch
    work: int  # half-precision copies of the weights, the gradient of the logits

    @property
    def total(self) -> int:
        return self.state + self.activations + self.work


@dataclass(frozen=True)
class ModelFacts:
    """What follows from the shape of a model alone. FLOPs are training FLOPs per token at full block_size."""

    parameters: Mapping[str, int]  # by role's group: each tensor in one of them
    n_params: int
    n_params_non_embedding: int
    n_params_active: int
    n_params_applied: int
    applications: float  # of blocks per step, in expectation
    unique_blocks: int
    flops_by_module: Mapping[str, int]

    @property
    def flops_per_token(self) -> int:
        return sum(self.flops_by_module.values())


@dataclass(frozen=True)
class Description:
    """A resolved config and everything that can be said about its run beforehand."""

    config: Config
    id: str
    steps: int
    tokens: int
    flops: float
    flops_per_token: int
    n_params: int
    n_params_non_embedding: int
    n_params_active: int
    n_params_applied: int
    applications: float
    unique_blocks: int
    parameters: dict[str, int]
    flops_by_module: dict[str, int]
    checkpoint_bytes: int
    train_tokens: int
    files: dict[str, str]

    @property
    def memory(self) -> Memory:
        """Estimated on demand: it runs the model once without numbers, which a run that just trains can do without."""
        return estimate_memory(self.config)

    @property
    def memory_bytes(self) -> int:
        return self.memory.total

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data, one flat level but for `config`, `parameters` and `files`."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "config"}
        return {"config": self.config.model_dump(mode="json"), **plain, "memory_bytes": self.memory_bytes}


def describe(config: Config, corpus: "CorpusFacts | None" = None, elsewhere: bool = False) -> Description:
    """Resolve `config` and describe its run. Raises UserError for a corpus, device or precision that is not there.

    With `corpus` the corpus itself need not be there; the id is then not that of any run. A run that trains
    `elsewhere` may name a device that this machine lacks.
    """
    corpus = corpus or _corpus_facts(config)
    weights = weights_files(config, corpus)
    config = _resolve(config, corpus, weights, elsewhere)
    facts = model_facts(config.model)
    steps = horizon_steps(config, facts, corpus.train_tokens)
    tokens = steps * tokens_per_step(config)
    return Description(
        config=config,
        id=run_id(config),
        steps=steps,
        tokens=tokens,
        flops=float(tokens * facts.flops_per_token),
        flops_per_token=facts.flops_per_token,
        n_params=facts.n_params,
        n_params_non_embedding=facts.n_params_non_embedding,
        n_params_active=facts.n_params_active,
        n_params_applied=facts.n_params_applied,
        applications=facts.applications,
        unique_blocks=facts.unique_blocks,
        parameters=dict(facts.parameters),
        flops_by_module=dict(facts.flops_by_module),
        checkpoint_bytes=FLOAT_BYTES * (facts.n_params + moments(config, facts)) + CHECKPOINT_OVERHEAD,
        train_tokens=corpus.train_tokens,
        files={**corpus.files, **weights},
    )


def describe_many(trees: Iterable[Mapping[str, Any]], elsewhere: bool = False) -> list[dict[str, Any]]:
    """`Description.as_dict` of each config dict, or {"error": one line} for one that cannot be described.

    Runs that train `elsewhere` may name a device that this machine lacks.
    """
    return [_describe_or_error(tree, elsewhere) for tree in trees]


def _describe_or_error(tree: Mapping[str, Any], elsewhere: bool) -> dict[str, Any]:
    try:
        return describe(Config.model_validate(tree), elsewhere=elsewhere).as_dict()
    except UserError as error:
        return {"error": str(error)}
    except ValueError as error:  # pydantic's: the tree was validated before, so its first line is enough
        return {"error": " ".join(str(error).split())}


def resolve(config: Config) -> Config:
    """The config with every `auto` and every content hash filled in for this machine; resolving again is idle."""
    corpus = _corpus_facts(config)
    return _resolve(config, corpus, weights_files(config, corpus))


def _corpus_facts(config: Config) -> "CorpusFacts":
    from nanogpt.data.opening import facts

    return facts(config.data, config.runtime)


def _resolve(config: Config, corpus: "CorpusFacts", weights: Mapping[str, str], elsewhere: bool = False) -> Config:
    from nanogpt.data.opening import with_content
    from nanogpt.hardware import check_experts, is_sharded, resolve_device, resolve_precision

    device, precision = config.runtime.device, str(config.train.precision)
    if not elsewhere or device == "auto":
        device = resolve_device(device)
        precision = resolve_precision(precision, device, config.runtime.nproc, is_sharded(config))
    elif precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    check_experts(config, device, precision, elsewhere)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"vocab_size": vocab_size(config, corpus.vocab_size)}),
            "data": config.data.model_copy(update={"corpus": with_content(config.data.corpus, corpus)}),
            "train": config.train.model_copy(update={"precision": precision}),
            "init_from": init_from(config, weights),
            "runtime": config.runtime.model_copy(update={"device": device}),
        }
    )


def tokens_per_step(config: Config) -> int:
    """Tokens trained on in one optimizer step."""
    return config.train.batch_size * config.model.block_size


def horizon_steps(config: Config, facts: ModelFacts, train_tokens: int) -> int:
    """Optimizer steps of a run: the horizon rounded to the nearest step, at least 1.

    `tokens_per_param` counts non-embedding parameters; `flops` buys tokens at the exact price of one.
    """
    name, value = config.train.horizon
    if name == "max_iters":
        return int(value)
    tokens = {
        "tokens": value,
        "epochs": value * train_tokens,
        "tokens_per_param": value * facts.n_params_non_embedding,
        "flops": value / facts.flops_per_token,
    }[name]
    return max(1, math.floor(tokens / tokens_per_step(config) + 0.5))


def moments(config: Config, facts: ModelFacts) -> int:
    """Numbers that the optimizer keeps from step to step."""
    inside, outside = MOMENTS[config.optimizer.kind]
    hidden = facts.parameters["hidden"]
    return inside * hidden + outside * (facts.n_params - hidden)


@cache
def model_facts(model: Model) -> ModelFacts:
    """Counts and FLOPs of a model with a resolved vocabulary, from its shapes on the meta device."""
    from nanogpt.model.gpt import PARAMETER_GROUPS

    gpt = _shapes(model)
    counts = gpt.parameter_counts()
    groups = counts.as_dict()
    return ModelFacts(
        parameters={name: groups[name] for name in PARAMETER_GROUPS},
        n_params=counts.total,
        n_params_non_embedding=counts.non_embedding,
        n_params_active=counts.active,
        n_params_applied=counts.applied,
        applications=sum(gpt.trunk.usage().values()),
        unique_blocks=len(gpt.trunk.unique()),
        flops_by_module=gpt.flops_by_module(),
    )


def _shapes(model: Model) -> "GPT":
    import torch

    from nanogpt.config.parametrization import Parametrization
    from nanogpt.model import GPT

    with torch.device("meta"):
        return GPT(model, Parametrization(), attention="explicit")


def estimate_memory(config: Config) -> Memory:
    """Memory of one process of a run with a resolved config, from what autograd keeps on the meta device."""
    assert isinstance(config.model.vocab_size, int)
    facts, half = model_facts(config.model), config.train.precision != "fp32"
    tokens = config.micro_batch_size * config.model.block_size
    activations = _saved_bytes(config.model, config.micro_batch_size, _is_fused(config))
    if half:
        activations = round(activations * HALF_PRECISION_SHARE)
    work = tokens * config.model.vocab_size * FLOAT_BYTES + (2 * facts.n_params if half else 0)
    # Weights and their gradients, all float32, beside the moments; a checkpoint leaves out the gradients.
    state = FLOAT_BYTES * (2 * facts.n_params + moments(config, facts))
    shards = config.runtime.nproc if config.runtime.data_parallel == "fsdp2" else 1
    return Memory(-(-state // shards), activations, work)


def _is_fused(config: Config) -> bool:
    from nanogpt.model.gpt import EXPLICIT_UP_TO

    if config.runtime.attention != "auto":
        return config.runtime.attention == "sdpa"
    return config.runtime.device != "cpu" or config.model.block_size > EXPLICIT_UP_TO


@cache
def _saved_bytes(model: Model, sequences: int, fused: bool) -> int:
    """float32 bytes kept for the backward pass of a micro-batch.

    Every application of a block keeps the same, whatever the trunk, so a deep model is told from two shallow ones;
    where only every so-many-th block has experts, so many at a time.
    """
    applications, between = _kept_applications(model)
    period = getattr(model.ffn, "moe_every", 1)
    shallow, deeper = (model.model_copy(update={"n_layer": period * layers, "trunk": Stack()}) for layers in SHALLOW)
    first, second = (_kept_by_autograd(each, sequences) for each in (shallow, deeper))
    saved = first + (second - first) * (applications - shallow.layers) // (deeper.layers - shallow.layers)
    saved += between * sequences * model.block_size * FLOAT_BYTES
    return saved - sequences * _score_bytes(model, applications) if fused else saved


def _kept_applications(model: Model) -> tuple[int, int]:
    from nanogpt.model.trunks import TRUNKS

    return TRUNKS[model.trunk.kind].kept(model)


@cache
def _kept_by_autograd(model: Model, sequences: int) -> int:
    """Bytes of the tensors saved in a forward pass with explicit attention, which is run without numbers."""
    import torch

    gpt = _shapes(model)
    own = {tensor.untyped_storage()._cdata for tensor in (*gpt.parameters(), *gpt.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holding the storage keeps its address from being given away again

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    idx_BT = torch.zeros(sequences, model.block_size, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        gpt.loss(idx_BT, idx_BT)
    return sum(storage.nbytes() for storage in kept.values())


def _score_bytes(model: Model, applications: int) -> int:
    """What explicit attention keeps of one sequence and a fused kernel does not: probabilities, dropout's mask."""
    scores = applications * model.n_head * model.block_size**2
    return scores * (2 * FLOAT_BYTES + 1 if model.dropout > 0 else FLOAT_BYTES)


def describe_without_corpus(config: Config, problem: UserError) -> Description:
    """The description of a config whose corpus is not there. Raises `problem` where its length is needed."""
    from nanogpt.data.opening import assumed_facts

    if config.train.horizon[0] == "epochs":
        raise problem
    corpus = assumed_facts(config.data)
    vocab_size = config.model.vocab_size
    return describe(config, corpus if vocab_size == "auto" else replace(corpus, vocab_size=vocab_size))


def format_description(description: Description, missing: str = "") -> str:
    """The description as a page for people. `missing` says why the corpus is not there."""
    d, model, train = description, description.config.model, description.config.train
    six_nd = 6.0 * d.n_params * d.tokens
    kaplan = 6.0 * d.n_params_non_embedding * d.tokens
    parts = {
        "run": {
            "id": "unknown until the corpus is there" if missing else d.id,
            "model": f"{_depth(model)}, {model.n_head} heads, {model.n_embd} wide, context {model.block_size}",
            "trunk": _trunk(d),
            "feed-forward": _feed_forward(model),
            **starts_from(d.config),
            "corpus": f"{missing}; {model.vocab_size:,} kinds of tokens assumed"
            if missing
            else f"{d.config.data.corpus.kind}, {d.train_tokens:,} training tokens, {model.vocab_size:,} kinds",
            "length": f"{d.steps:,} steps of {tokens_per_step(d.config):,} tokens = {d.tokens:,} tokens, "
            + ("" if missing else f"{d.tokens / d.train_tokens:.3g} epochs, ")
            + f"{d.tokens / d.n_params_non_embedding:.3g} per parameter",
            "device": f"{d.config.runtime.device}, {train.precision}",
        },
        "parameters": {
            **{name: f"{count:,}" for name, count in d.parameters.items() if count},
            "total": f"{d.n_params:,}",
            "non-embedding": f"{d.n_params_non_embedding:,}",
            "active per token": f"{d.n_params_active:,}",
            "applied, counted by use": f"{d.n_params_applied:,}",
        },
        "training FLOPs per token": {
            **{name: f"{flops:,}" for name, flops in d.flops_by_module.items()},
            "total": f"{d.flops_per_token:,}",
        },
        "training FLOPs of the run": {
            "exact, full attention": f"{d.flops:.4g}",
            "causal attention": _against(causal_flops_per_token(d) * d.tokens, d.flops),
            "6ND, all parameters": _against(six_nd, d.flops),
            "6ND, non-embedding (Kaplan)": _against(kaplan, d.flops),
        },
        "memory, estimated": {
            "weights, gradients, moments": format_bytes(d.memory.state),
            "activations": format_bytes(d.memory.activations),
            "work space": format_bytes(d.memory.work),
            "total": format_bytes(d.memory_bytes),
            "one checkpoint on disk": format_bytes(d.checkpoint_bytes),
        },
    }
    return "\n\n".join(_format_part(title, rows) for title, rows in parts.items())


def _depth(model: Model) -> str:
    return f"{model.n_layer} layers" if model.n_layer is not None else model.trunk.kind


def _trunk(description: Description) -> str:
    """Unique blocks and how often they are applied: expected, in this run's own steps, and in evaluation."""
    from nanogpt.model import build_model

    d, gpt = description, build_model(description.config, "meta")
    blocks = "block" if d.unique_blocks == 1 else "blocks"
    text = f"{d.config.model.trunk.kind}: {d.unique_blocks} unique {blocks}, {d.applications:.6g} applications"
    if not gpt.trunk.drawn and len(gpt.trunk.plan()) == d.applications:
        return text
    return f"{text} expected{_realised(d, gpt)}, {len(gpt.trunk.plan())} in evaluation"


def _realised(description: Description, gpt: "GPT") -> str:
    """What the seed draws for the steps of the run: known before it is trained."""
    if not gpt.trunk.drawn:
        return ""
    steps = min(description.steps, MOST_DRAWN)
    costs = [gpt.step_cost(step) for step in range(steps)]
    applied = sum(cost.applications for cost in costs) / steps
    flops = sum(cost.flops_per_token for cost in costs) / steps / description.flops_per_token - 1
    which = "in this run" if steps == description.steps else f"in its first {steps:,} steps"
    return f", {applied:.6g} realised {which} ({flops:+.2%} FLOPs)"


def _feed_forward(model: Model) -> str:
    """`topk_moe, 8 experts (gelu, 3072 wide), 2 per token, gate renorm, balance bias`."""
    ffn = model.ffn
    if not isinstance(ffn, Mixture):
        return f"{ffn.kind}, {model.ffn_hidden} wide"
    parts = [ffn.kind, f"{ffn.experts} experts ({ffn.expert}, {model.ffn_hidden} wide)"]
    if isinstance(ffn, TopKMoE):
        shared = f" and {ffn.shared_experts} shared" if ffn.shared_experts else ""
        parts.append(f"{ffn.top_k}{shared} per token, gate {ffn.gate}, balance {ffn.balance}")
    if ffn.moe_every > 1:
        parts.append(f"in one unique block of {ffn.moe_every}")
    return ", ".join(parts)


def causal_flops_per_token(description: Description) -> float:
    """Training FLOPs per token where attention is credited with half the scores, those that a mask leaves.

    The other convention: everything else here (`flops`, laws, MFU) counts full attention, as PaLM's appendix B
    (arXiv 2204.02311), nanoGPT and torch's FlopCounterMode do.
    """
    return description.flops_per_token - description.flops_by_module["attention scores"] / 2


def _against(flops: float, exact: float) -> str:
    return f"{flops:.4g}  ({flops / exact - 1:+.1%} against exact)"


def _format_part(title: str, rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in rows.items())])


def format_bytes(count: int) -> str:
    """`1.5 GiB`: three significant digits in the largest binary unit that fits."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"
