"""Sampling: from the distribution that was trained, every multiplier in it; seeds, filters, folders, the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.__main__ import main
from nanogpt.config import Config, UserError
from nanogpt.configfile import dump_yaml
from nanogpt.data.vocabulary import Vocabulary, read_vocabulary
from nanogpt.model import GPT, build_model
from nanogpt.sampling import Sampling, generate, load_trained

Make = Callable[..., Config]
RULES = {"mode": "completep", "base_n_embd": 4, "base_n_layer": 1, "init_std": 1.0, "output_multiplier": 0.5}


def small(make: Make, **parametrization: Any) -> GPT:
    model = {"n_embd": 16, "vocab_size": 5, "logit_softcap": None}
    return build_model(make(model=model, parametrization=RULES | parametrization)).eval()


def drawn(model: GPT, samples: int, how: Sampling, seed: int = 0) -> torch.Tensor:
    start = torch.tensor([[1, 2, 3]]).expand(samples, -1)
    return torch.stack(list(generate(model, start, how, torch.Generator().manual_seed(seed))), dim=1)


def test_tokens_are_drawn_from_the_distribution_that_the_loss_scores(tiny: Make) -> None:
    """In public code the output multiplier often stands on the training path alone, and samples come out too hot.

    The probabilities are read from `loss`, token by token, and compared with frequencies in 20,000 draws.
    """
    model, draws = small(tiny), 20_000
    assert model.rules.output_multiplier == 0.5 / 4
    start, unscored = torch.tensor([[1, 2, 3]]), [-1, -1]
    with torch.no_grad():
        losses = [model.loss(start, torch.tensor([[*unscored, token]])).item() for token in range(5)]
    expected = torch.tensor(losses).neg().exp()
    assert expected.sum().item() == pytest.approx(1, abs=1e-6)
    found = drawn(model, draws, Sampling(max_new_tokens=1))[:, 0].bincount(minlength=5) / draws
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((found - expected).abs() < 5 * error).all()
    # Without the multiplier the same weights give another distribution, which these draws tell apart.
    other = small(tiny, output_multiplier=4.0)
    with torch.no_grad():
        hot = other(start)[0, -1].softmax(-1)
    assert ((found - hot).abs() > 5 * error).any()


def test_generation_goes_on_past_the_context(tiny: Make) -> None:
    model = small(tiny)
    tokens = drawn(model, 2, Sampling(max_new_tokens=40))
    assert tokens.shape == (2, 40)
    window = torch.cat([torch.tensor([[1, 2, 3]]).expand(2, -1), tokens], dim=1)[:, -17:-1]
    with torch.no_grad():
        last = model(window)[:, -1].argmax(-1)
    greedy = next(generate(model, window, Sampling(1, temperature=0), torch.Generator()))
    assert torch.equal(last, greedy)


def test_a_seed_gives_the_same_text_and_another_seed_another(tiny: Make) -> None:
    model, how = small(tiny), Sampling(max_new_tokens=30)
    assert torch.equal(drawn(model, 1, how, seed=3), drawn(model, 1, how, seed=3))
    assert not torch.equal(drawn(model, 1, how, seed=3), drawn(model, 1, how, seed=4))


def test_filters(tiny: Make) -> None:
    model = small(tiny)
    with torch.no_grad():
        order = model(torch.tensor([[1, 2, 3]]))[0, -1].argsort(descending=True)
    assert set(drawn(model, 500, Sampling(1, top_k=2)).flatten().tolist()) == set(order[:2].tolist())
    assert set(drawn(model, 500, Sampling(1, top_k=99)).flatten().tolist()) == set(range(5))
    assert set(drawn(model, 50, Sampling(1, temperature=0)).flatten().tolist()) == {int(order[0])}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"temperature": -1}, "temperature"), ({"top_k": 0}, "top_k"), ({"max_new_tokens": 0}, "max_new_tokens")],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"sample: {message}: expected"):
        Sampling(**change)


def test_vocabularies() -> None:
    letters = Vocabulary(4, ("a", "b", "c"))
    assert letters.decode(letters.encode("cab")) == "cab"
    assert letters.decode([3]) == "\ufffd"
    with pytest.raises(UserError, match="outside the vocabulary: 'z'"):
        letters.encode("az")
    numbers = Vocabulary(10)
    assert numbers.encode("1 9") == [1, 9]
    assert numbers.decode([1, 9]) == " 1 9"
    for wrong in ("10", "-1", "x"):
        with pytest.raises(UserError, match="is no token id"):
            numbers.encode(wrong)


@pytest.mark.parametrize("itos", [["a", "b", "c"], {"2": "c", "0": "a", "1": "b"}])
def test_the_vocabulary_is_the_corpus_own(tiny: Make, tmp_path: Path, itos: Any) -> None:
    from nanogpt.data.binfiles import write_meta

    write_meta(tmp_path, {"vocab_size": 3, "itos": itos})
    config = tiny(data={"corpus": {"kind": "bin", "path": str(tmp_path)}})
    assert read_vocabulary(config.data, config.runtime) == Vocabulary(3, ("a", "b", "c"))


def test_the_command_samples_what_train_left(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(dump_yaml(tiny(train={"max_iters": 3}).model_dump(mode="json")))
    assert main(["train", str(path), f"--out_dir={out}"]) == 0
    capsys.readouterr()
    arguments = ["sample", str(out), "--prompt", "1 2", "--max_new_tokens", "4", "--num_samples", "2"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert first.count("--- sample") == 2
    assert [len(line.split()) for line in first.splitlines() if not line.startswith("---")] == [6, 6]
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    weights = load_trained(out).model.state_dict()
    assert not torch.equal(weights["embedding.weight"], build_model(load_trained(out).config).embedding.weight)
    for wrong in (["sample", str(tmp_path)], ["sample", str(out), "--prompt", "xyz"], [*arguments, "--top_k=0"]):
        assert main(wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
