"""The gradient noise scale: the estimator against known noise, and that measuring leaves the training alone.

Those marked slow take under a minute together.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanogpt.config import Config
from nanogpt.describe import describe
from nanogpt.materials import gather
from nanogpt.model import build_model
from nanogpt.noisescale import GradientNoise, NoiseMeter, estimate_noise, measuring_part
from nanogpt.record import attempt_folder, read_history
from tests.engine.test_train import assert_equal_states, final_state, run

Make = Callable[..., Config]


def planted(part: int, steps: int, batch: int = 16) -> Iterator[GradientNoise]:
    """A model whose gradient is the mean of its examples: x ~ N(mu, Sigma), loss = theta . x, so G = mu exactly."""
    theta = nn.Parameter(torch.zeros(MU.shape, dtype=torch.float64))
    generator = torch.Generator().manual_seed(3)
    meter = NoiseMeter([theta], batch, part, block_size=1)
    for _ in range(steps):
        examples = MU + SD * torch.randn(batch, len(MU), generator=generator, dtype=torch.float64)

        def accumulate(micro: int, after: Callable[[], None] | None = None, examples: Tensor = examples) -> Tensor:
            for chunk in examples.split(micro):
                ((chunk @ theta).mean() * micro / len(examples)).backward()
                if after is not None:
                    after()
            return torch.zeros(())

        yield meter.measure(accumulate)[1]
        assert theta.grad is not None
        assert torch.allclose(theta.grad, examples.mean(dim=0), atol=1e-12)
        theta.grad = None


MU = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.05], dtype=torch.float64)
SD = torch.tensor([1.0, 0.5, 2.0, 1.5, 0.7], dtype=torch.float64)
TRUE_SQUARE, TRUE_VARIANCE = float(MU @ MU), float(SD @ SD)


@pytest.mark.slow
@pytest.mark.parametrize("part", [16, 8, 4, 1], ids=["uncut", "halves", "quarters", "examples"])
def test_the_estimates_are_unbiased_where_the_noise_is_known(part: int) -> None:
    """The mean of 4,000 measured steps lies within 3.5 standard errors of the planted numbers, and they are tight."""
    found = list(planted(part, 4000))
    for values, true in (
        ([noise.square for noise in found], TRUE_SQUARE),
        ([noise.variance for noise in found], TRUE_VARIANCE),
    ):
        error = np.std(values) / len(values) ** 0.5
        assert abs(np.mean(values) - true) < 3.5 * error
        assert error < 0.1 * true


def test_the_two_norms_give_the_unknowns_exactly() -> None:
    """|G_B|^2 = |G|^2 + tr(Sigma) / B at 4 and 32."""
    assert estimate_noise(2 + 12 / 4, 2 + 12 / 32, 4, 32) == GradientNoise(pytest.approx(2), pytest.approx(12))


@pytest.mark.parametrize(
    ("batch", "micro", "part"), [(32, 32, 8), (12, 12, 3), (4, 4, 1), (13, 13, 1), (22, 22, 11), (32, 8, 8), (2, 2, 1)]
)
def test_how_a_batch_is_cut(batch: int, micro: int, part: int) -> None:
    assert measuring_part(batch, micro) == part


def sequence_gradients(config: Config, folder: Path, steps: int) -> tuple[Tensor, int]:
    """The gradient of every sequence of the first batches, at the initial weights, by brute force: (rows, numbers)."""
    materials = gather(describe(config), folder)
    model = build_model(config, "cpu")
    rows = []
    for step in range(steps):
        batch = materials.stream.batch(step)
        for x_T, y_T in zip(torch.from_numpy(batch.x_BT), torch.from_numpy(batch.y_BT), strict=True):
            model.zero_grad()
            model.loss(x_T[None], y_T[None]).backward()
            rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double())
    return torch.stack(rows), config.model.block_size


@pytest.mark.parametrize("micro", [8, 2])
def test_a_models_first_step_equals_brute_force(tiny: Make, tmp_path: Path, micro: int) -> None:
    """The two norms of a real step, from gradients of single sequences: the same estimate to rounding."""
    settings = {"noise_scale_interval": 1, "micro_batch_size": micro}
    config = describe(tiny(train={"batch_size": 8, "max_iters": 1}, runtime=settings)).config
    run(config, tmp_path / "run")
    (line,) = read_history(attempt_folder(tmp_path / "run", 1) / "history.jsonl")
    rows, block = sequence_gradients(config, tmp_path / "run", 1)
    part = measuring_part(8, micro)
    small = rows.view(8 // part, part, -1).mean(dim=1).square().sum(dim=1).mean().item()
    expected = estimate_noise(small, rows.mean(dim=0).square().sum().item(), part * block, 8 * block)
    assert line["gradient_square"] == pytest.approx(expected.square, rel=1e-4)
    assert line["gradient_variance"] == pytest.approx(expected.variance, rel=1e-4)


@pytest.mark.parametrize(
    "sections",
    [{}, {"model": {"dropout": 0.2}}, {"runtime": {"micro_batch_size": 2}}, {"model": {"tie_embeddings": True}},
     {"runtime": {"probe_interval": 3}}],
    ids=["plain", "dropout", "micro", "tied", "probes"],
)  # fmt: skip
def test_a_measured_run_trains_like_one_that_is_not(tiny: Make, tmp_path: Path, sections: dict[str, Any]) -> None:
    measured = tiny(**{**sections, "runtime": {**sections.get("runtime", {}), "noise_scale_interval": 2}})
    run(tiny(**sections), tmp_path / "plain")
    run(measured, tmp_path / "measured")
    plain, other = final_state(tmp_path / "plain"), final_state(tmp_path / "measured")
    assert plain["id"] == other["id"]
    for state in (plain, other):
        state["progress"].pop("train_loss")  # a mean since the last line, and a measured run has more lines
    assert_equal_states(plain, other)
    lines = read_history(attempt_folder(tmp_path / "measured", 1) / "history.jsonl")
    assert [line["step"] for line in lines if "gradient_square" in line] == [2, 4, 6, 8, 10, 12]
    if "probe_interval" in sections.get("runtime", {}):
        assert [line["step"] for line in lines if "probes" in line] == [3, 6, 9, 12]


def test_a_batch_of_one_is_refused(tiny: Make) -> None:
    with pytest.raises(ValueError, match=r"runtime\.noise_scale_interval: a batch of 1 sequence has no parts"):
        tiny(train={"batch_size": 1}, runtime={"noise_scale_interval": 1})
