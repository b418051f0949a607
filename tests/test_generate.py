"""Generation from a model: what is drawn from, the sliding window, seeds, rows, ids that stand for nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from nanogpt.config import Config, UserError
from nanogpt.generation import generate, row_generators
from nanogpt.model import GPT, Cache, build_model
from nanogpt.model.trunks import Application, Stack
from nanogpt.sampling import Sampling, next_tokens

Make = Callable[..., Config]
RULES = {"mode": "completep", "base_n_embd": 4, "base_n_layer": 1, "init_std": 1.0, "output_multiplier": 0.5}
START = torch.tensor([[1, 2, 3]])


def small(make: Make, model: dict[str, Any] | None = None, **parametrization: Any) -> GPT:
    shape = {"n_embd": 16, "vocab_size": 5, "logit_softcap": None} | (model or {})
    return build_model(make(model=shape, parametrization=RULES | parametrization)).eval()


def drawn(model: GPT, rows: int, how: Sampling, seed: int = 0, **settings: Any) -> torch.Tensor:
    steps = generate(model, START.expand(rows, -1), how, row_generators(seed, range(rows)), **settings)
    return torch.stack(list(steps), dim=1)


def test_tokens_are_drawn_from_the_distribution_that_the_loss_scores(tiny: Make) -> None:
    """In public code the output multiplier often stands on the training path alone, and samples come out too hot.

    The probabilities are read from `loss`, token by token, and compared with frequencies in 20,000 draws.
    """
    model, draws = small(tiny), 20_000
    assert model.rules.output_multiplier == 0.5 / 4
    unscored = [-1, -1]
    with torch.no_grad():
        losses = [model.loss(START, torch.tensor([[*unscored, token]])).item() for token in range(5)]
    expected = torch.tensor(losses).neg().exp()
    assert expected.sum().item() == pytest.approx(1, abs=1e-6)
    one_stream = [torch.Generator().manual_seed(0)] * draws
    (tokens,) = generate(model, START.expand(draws, -1), Sampling(max_new_tokens=1), one_stream)
    found = tokens.bincount(minlength=5) / draws
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((found - expected).abs() < 5 * error).all()
    # Without the multiplier the same weights give another distribution, which these draws tell apart.
    other = small(tiny, output_multiplier=4.0)
    with torch.no_grad():
        hot = other(START)[0, -1].softmax(-1)
    assert ((found - hot).abs() > 5 * error).any()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("length", [1, 10, 16, 40])
def test_past_the_context_the_model_sees_the_last_tokens_from_position_0(tiny: Make, length: int, cached: bool) -> None:
    """nanoGPT's rule, written out: crop to block_size, compute all of it anew, take the last position."""
    model = small(tiny)
    idx = torch.arange(length)[None] % 5
    how = Sampling(max_new_tokens=40, do_sample=False)
    found = [int(token) for token in generate(model, idx, how, row_generators(0, range(1)), cached=cached)]
    for token in found:
        with torch.no_grad():
            assert token == int(model(idx[:, -16:])[0, -1].argmax())
        idx = torch.cat([idx, torch.tensor([[token]])], dim=1)
    assert len(found) == 40


def test_a_seed_gives_the_same_text_and_another_seed_another(tiny: Make) -> None:
    model, how = small(tiny), Sampling(max_new_tokens=30)
    assert torch.equal(drawn(model, 1, how, seed=3), drawn(model, 1, how, seed=3))
    assert not torch.equal(drawn(model, 1, how, seed=3), drawn(model, 1, how, seed=4))
    assert torch.equal(drawn(model, 2, how, seed=-1), drawn(model, 2, how, seed=-1))


def test_a_row_is_what_it_is_alone_and_rows_differ(tiny: Make) -> None:
    model, how = small(tiny), Sampling(max_new_tokens=30, top_p=0.95)
    together = drawn(model, 5, how)
    assert len({tuple(row) for row in together.tolist()}) == 5
    for row in range(5):
        stream = row_generators(0, range(row, row + 1))
        alone = torch.stack(list(generate(model, START, how, stream)), dim=1)
        assert torch.equal(alone, together[row : row + 1])


def test_the_global_generator_is_neither_read_nor_moved(tiny: Make) -> None:
    model, how = small(tiny), Sampling(max_new_tokens=10)
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), drawn(model, 2, how)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(drawn(model, 2, how), first)


def test_ids_that_stand_for_nothing_are_never_chosen(tiny: Make) -> None:
    model = small(tiny, {"vocab_size": 64})
    with torch.no_grad():
        # The head is tied: these ids become by far the likeliest.
        model.embedding.weight[40:] = 0
        logits = model.next_logits(START)[0]
        model.embedding.weight[40:] = 5 * model.embedding.weight[int(logits[:40].argmax())]
        assert int(model.next_logits(START)[0].argmax()) >= 40
    for how in (Sampling(30), Sampling(30, top_k=60, top_p=1.0), Sampling(30, do_sample=False), Sampling(30, 9.0)):
        assert drawn(model, 4, how, tokens=40).max() < 40
    assert drawn(model, 4, Sampling(30), tokens=None).max() >= 40


def test_the_penalty_counts_every_token_so_far_those_beyond_the_window_too(tiny: Make) -> None:
    model = small(tiny, {"vocab_size": 64}, output_multiplier=20.0)
    idx = torch.arange(30)[None]  # the window has the last 16
    how = Sampling(max_new_tokens=8, repetition_penalty=3.0, temperature=0.8)
    stream = row_generators(0, range(1))
    found = [int(token) for token in generate(model, idx, how, row_generators(0, range(1)))]
    for token in found:
        seen = torch.zeros(1, 64, dtype=torch.bool)
        seen[0, idx[0]] = True
        with torch.no_grad():
            logits = model.next_logits(idx[:, -16:])
        assert token == int(next_tokens(logits, seen, how, stream))
        idx = torch.cat([idx, torch.tensor([[token]])], dim=1)
    assert found != [int(token) for token in generate(model, START, Sampling(8, 0.8), row_generators(0, range(1)))]


def test_logits_that_are_not_finite_are_said(tiny: Make) -> None:
    model = small(tiny)
    with torch.no_grad():
        model.final_norm.gain.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite: its training has diverged"):
        drawn(model, 1, Sampling())


def test_the_mode_of_the_model_is_given_back(tiny: Make) -> None:
    """A model in training generates without dropout, and goes on training, also when nobody reads to the end."""
    model = small(tiny, {"dropout": 0.5})
    expected = drawn(model, 1, Sampling(20))
    model.train()
    assert torch.equal(drawn(model, 1, Sampling(20)), expected)
    assert model.training
    steps: Iterator[torch.Tensor] = generate(model, START, Sampling(20), row_generators(0, range(1)))
    next(steps)
    assert torch.is_grad_enabled()
    steps.close()
    assert model.training


def test_a_block_used_several_times_has_a_slot_for_each_use(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slot per block would let the second use overwrite the keys of the first."""
    order = (0, 1, 0, 0)
    monkeypatch.setattr(Stack, "plan", lambda trunk, schedule=None: tuple(map(Application, order)))
    model, cache = small(tiny), Cache(8)
    idx = torch.randint(5, (2, 8), generator=torch.Generator().manual_seed(0))
    assert len(model.trunk.unique()) == 2
    with torch.no_grad():
        parts = torch.cat([model(part, cache) for part in idx.split([3, 1, 1, 2, 1], dim=1)], dim=1)
        torch.testing.assert_close(parts, model(idx), rtol=0, atol=1e-5)
    assert cache.applications == {0, 1, 2, 3}
