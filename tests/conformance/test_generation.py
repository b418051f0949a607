"""Every model that can be configured generates with a cache exactly as without; parametrized over the registries.

By default each pair of trunk, feed-forward layer and kind of position; the slow part has all three together, and both
ways of attention for each: about two minutes.
"""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError
from test_models import MODELS, TOKENS, VOCAB, make, perturbed, tokens

from nanogpt.config.keys import arms
from nanogpt.config.model import Model
from nanogpt.generation import generate, row_generators
from nanogpt.model import GPT, Cache
from nanogpt.model.block import Block
from nanogpt.model.ffn import FFNS
from nanogpt.model.trunks import TRUNKS
from nanogpt.sampling import Sampling
from tests.covers import cover

VARIANTS: dict[str, dict[str, Any]] = {
    "learned positions": {"position": "learned"},
    "rope": {"position": "rope"},
    "no positions": {"position": "none"},
    "grouped queries, qk norm": {"position": "rope", "n_kv_head": 2, "qk_norm": True},
}
CELLS = cover({name: {"trunk": name} for name in TRUNKS}, {name: {"ffn": name} for name in FFNS}, VARIANTS, strength=2)


def options(axis: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every arm of `model.<axis>` with each choice but its default, one at a time, where the config takes it."""
    for arm in arms(Model.model_fields[axis].annotation):
        kind = {"kind": arm.model_fields["kind"].default}
        for key, field in arm.model_fields.items():
            values: list[Any] = [{"kind": each.model_fields["kind"].default} for each in arms(field.annotation)]
            if get_origin(field.annotation) is Literal and key != "kind":
                values = [value for value in get_args(field.annotation) if value != field.default]
            for value in values:
                model = {axis: kind | {key: value}, "position": "rope"}
                with contextlib.suppress(ValidationError):
                    make(model)
                    yield f"{kind['kind']}, {key}={value}", model


# The other models of the table of all models (norms, heads, caps), and the choices within trunks and layers.
OTHERS = dict(itertools.islice(MODELS.items(), len(TRUNKS) * len(FFNS), None))
OTHERS |= dict(options("trunk")) | dict(options("ffn"))
EVERY = [
    pytest.param(trunk | ffn | variant, id=cell.id, marks=cell.marks)
    for cell in CELLS
    for trunk, ffn, variant in [cell.values]
]
EVERY += [pytest.param(model, id=name) for name, model in OTHERS.items()]
any_model = pytest.mark.parametrize("model", EVERY)
# Each model with one of the two, and with the other where time is no matter.
any_model_and_attention = pytest.mark.parametrize(
    ("model", "attention"),
    [
        pytest.param(*each.values, attention, id=f"{each.id}-{attention}", marks=each.marks or marks)
        for number, each in enumerate(EVERY)
        for attention, marks in zip(
            ("explicit", "sdpa"), ((), pytest.mark.slow)[:: -1 if number % 2 else 1], strict=True
        )
    ],
)


def cached_logits(gpt: GPT, idx: torch.Tensor, parts: list[int]) -> torch.Tensor:
    """Logits of all positions, the tokens handed over in parts, each pass on top of the cache."""
    cache = Cache(idx.shape[1])
    return torch.cat([gpt(part, cache) for part in idx.split(parts, dim=1)], dim=1)


@any_model_and_attention
@torch.no_grad()
def test_logits_with_a_cache_are_those_of_the_whole_sequence(model: dict[str, Any], attention: str) -> None:
    gpt = perturbed(make(model, runtime={"attention": attention})).eval()
    idx = tokens(3)
    whole = gpt(idx)
    for parts in ([1] * TOKENS, [7, *[1] * (TOKENS - 7)], [3, 4, TOKENS - 7]):
        torch.testing.assert_close(cached_logits(gpt, idx, parts), whole, rtol=0, atol=1e-5)


@any_model
@torch.no_grad()
def test_the_cache_has_a_slot_per_application_and_the_schedule_stays(model: dict[str, Any]) -> None:
    """A block used twice fills two slots; every pass applies the same blocks in the same order, whatever the step."""
    gpt = perturbed(make(model)).eval()
    blocks, passes = {block: name for name, block in gpt.named_modules() if isinstance(block, Block)}, []
    for block in blocks:
        block.register_forward_pre_hook(lambda module, inputs: passes[-1].append((blocks[module], inputs[2])))
    cache = Cache(TOKENS)
    for position in range(TOKENS):
        gpt.at_step(position)
        passes.append([])
        gpt(tokens(1)[:, position : position + 1], cache)
    assert all(applied == passes[0] for applied in passes)
    applications = [application for _, application in passes[0]]
    assert len(set(applications)) == len(applications), "two uses of a block write to one slot"
    assert cache.applications == set(applications)
    assert cache.length == TOKENS


@any_model
@torch.no_grad()
def test_the_rows_of_a_batch_do_not_meet(model: dict[str, Any]) -> None:
    gpt = perturbed(make(model)).eval()
    idx = tokens(3)
    together = cached_logits(gpt, idx, [5, *[1] * (TOKENS - 5)])
    for row in range(3):
        alone = cached_logits(gpt, idx[row : row + 1], [5, *[1] * (TOKENS - 5)])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


@any_model
@torch.no_grad()
def test_a_pass_with_a_cache_computes_the_new_tokens_alone(model: dict[str, Any]) -> None:
    gpt = perturbed(make(model)).eval()
    widths: dict[int, set[int]] = defaultdict(set)
    for block in gpt.modules():
        if isinstance(block, Block):
            block.register_forward_pre_hook(lambda module, inputs: widths[cache.length].add(inputs[0].shape[1]))
    cache = Cache(TOKENS)
    assert gpt.next_logits(tokens(2, 5), cache).shape == (2, VOCAB)
    gpt.next_logits(tokens(2, 1), cache)
    assert widths == {0: {5}, 5: {1}}


class Recorded:
    """The model's logits of the next token, kept as generation asks for them."""

    def __init__(self, gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: list[torch.Tensor] = []
        monkeypatch.setattr(gpt, "next_logits", lambda *inputs, ask=gpt.next_logits: self._keep(ask(*inputs)))

    def _keep(self, logits: torch.Tensor) -> torch.Tensor:
        self.logits.append(logits.clone())
        return logits


@any_model_and_attention
def test_generated_logits_are_those_of_the_whole_window_also_past_it(
    model: dict[str, Any], attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached generation over three windows against a pass over the last block_size tokens, at every step."""
    gpt = perturbed(make(model, runtime={"attention": attention}))
    gpt.at_step(3)
    recorded = Recorded(gpt, monkeypatch)
    idx = tokens(2, 4)
    steps = generate(gpt, idx, Sampling(max_new_tokens=3 * TOKENS), row_generators(0, range(2)))
    for position, next_tokens in enumerate(steps):
        with torch.no_grad():
            whole = gpt.eval()(idx[:, -TOKENS:])[:, -1]
        torch.testing.assert_close(recorded.logits[position], whole, rtol=0, atol=1e-5)
        idx = torch.cat([idx, next_tokens[:, None]], dim=1)
    assert idx.shape == (2, 4 + 3 * TOKENS)


@any_model
def test_a_seed_gives_equal_tokens_with_the_cache_and_without(model: dict[str, Any]) -> None:
    gpt = perturbed(make(model))
    how = Sampling(max_new_tokens=2 * TOKENS, temperature=0.8, top_k=20)
    texts = [
        torch.stack(list(generate(gpt, tokens(2, 3), how, row_generators(1, range(2)), cached=cached)))
        for cached in (True, True, False)
    ]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
