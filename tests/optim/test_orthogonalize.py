"""Orthogonalization: singular values near 1, whatever the shape and however large or small the gradient."""

import pytest
import torch
from torch import Tensor

from nanogpt.optim.muon import FAMILIES, Muon, _norm, orthogonalize

any_family = pytest.mark.parametrize("family", FAMILIES)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@any_family
@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (32, 128), (256, 64), (16, 256), (384, 96)])
def test_singular_values_of_rectangular_updates_are_near_one(family: str, shape: tuple[int, int]) -> None:
    for seed in range(5):
        values = torch.linalg.svdvals(orthogonalize(random(*shape, seed=seed), 5, family).float())
        assert values.min() >= 0.5
        assert values.max() <= 1.25


@any_family
@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_singular_values_of_square_updates_are_near_one(family: str, size: int) -> None:
    for seed in range(5):
        values = torch.linalg.svdvals(orthogonalize(random(size, size, seed=seed), 5, family).float())
        assert values.max() <= 1.25
        assert values.mean() >= 0.8


@any_family
def test_the_size_of_a_gradient_does_not_matter(family: str) -> None:
    gradient = random(16, 48)
    expected = orthogonalize(gradient, 5, family)
    for size in (2.0**-60, 2.0**-20, 2.0**40):
        assert torch.equal(orthogonalize(gradient * size, 5, family), expected)
    assert torch.count_nonzero(orthogonalize(torch.zeros(4, 8), 5, family)) == 0


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24), (3, 16, 48), (2, 3, 16, 32)])
def test_updates_whose_squares_float32_loses_are_orthogonalised_too(shape: tuple[int, ...]) -> None:
    for exponent in range(-38, -18):
        values = torch.linalg.svdvals(orthogonalize(random(*shape) * 10.0**exponent).float())
        assert values.max() <= 1.25, exponent
        assert values.mean() >= 0.8, exponent
    for exponent in range(-45, -38):
        assert torch.isfinite(orthogonalize(random(*shape) * 10.0**exponent)).all()


@pytest.mark.parametrize("normuon", [None, 0.9], ids=["muon", "normuon"])
def test_a_matrix_whose_gradient_stops_stays_finite(normuon: float | None) -> None:
    """Its momentum decays through float32's whole range: an expert that no token reaches any more."""
    weight = torch.nn.Parameter(random(8, 16))
    optimizer = Muon([weight], lr=1e-3, normuon=normuon)
    weight.grad = random(8, 16, seed=1)
    for step in range(2500):
        optimizer.step()
        if step == 0:
            weight.grad = torch.zeros(8, 16)
    assert torch.isfinite(weight).all()
    assert all(torch.isfinite(value).all() for value in optimizer.state[weight].values())


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e15])
def test_the_norm_without_float64_is_the_one_with_it(size: float) -> None:
    """Devices without float64 lose nothing, though 1e-30 squared is 0 in float32."""
    update = size * torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_norm(update, False).double(), _norm(update, True), rtol=1e-5, atol=0)
    assert torch.isfinite(_norm(torch.zeros(2, 3), False)).all()
