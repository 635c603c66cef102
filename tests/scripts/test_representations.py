from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from representations import effective_rank, linear_cka  # noqa: E402


def features(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def test_linear_cka_equals_the_kernel_definition() -> None:
    # HSIC of the linear kernels, from the N x N matrices (Kornblith et al. 2019, eq. 3).
    x, y = features(40, 5), features(40, 7, seed=1)
    centring = torch.eye(40, dtype=torch.float64) - 1 / 40
    k, m = (centring @ (z @ z.mT) @ centring for z in (x, y))
    expected = (k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()
    torch.testing.assert_close(linear_cka(x, y), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 3 * x,
        lambda x: x + 5,
        lambda x: x @ torch.linalg.qr(features(5, 5, seed=2)).Q,
        lambda x: x.flip(1),
    ],
    ids=["scale", "shift", "rotation", "order of channels"],
)
def test_linear_cka_does_not_change_with(change) -> None:
    x, y = features(40, 5), features(40, 7, seed=1) + features(40, 5) @ features(5, 7)
    torch.testing.assert_close(linear_cka(change(x), y), linear_cka(x, y))


def test_linear_cka_is_one_with_itself_and_zero_where_constant() -> None:
    x = features(30, 4)
    assert float(linear_cka(x, x)) == pytest.approx(1)
    assert float(linear_cka(torch.ones(30, 4), x)) == 0


def test_effective_rank_counts_equal_directions_and_ignores_copies() -> None:
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    assert float(effective_rank(axes)) == pytest.approx(4)
    assert float(effective_rank(torch.cat([axes, axes], dim=1))) == pytest.approx(4)
    assert float(effective_rank(torch.ones(5, 3))) == 0
