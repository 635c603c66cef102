from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.networks.nets import DynUNet
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from expansion import contract_before, contracted, expand  # noqa: E402


def small_network(spatial_dims: int) -> nn.Module:
    torch.manual_seed(0)
    return DynUNet(spatial_dims, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 4])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("ratio", [1, 3])
def test_the_expanded_network_computes_what_it_did(spatial_dims: int, ratio: int) -> None:
    network = small_network(spatial_dims)
    image = torch.randn(2, 1, *[16] * spatial_dims)
    expanded = expand(copy.deepcopy(network), ratio)
    torch.testing.assert_close(expanded(image), network(image), rtol=1e-3, atol=1e-4)


def test_what_was_trained_contracts_to_a_network_of_the_former_shape() -> None:
    network = small_network(2)
    expanded = expand(copy.deepcopy(network), 2)
    image = torch.randn(2, 1, 16, 16)
    optimizer = torch.optim.SGD(expanded.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        expanded(image).square().mean().backward()
        # Every factor learns, in all directions: the products are no longer what they were.
        assert all(p.grad is not None and p.grad.any() for p in expanded.parameters())
        optimizer.step()
    trained = expanded(image)
    evaluator = Engine(lambda _engine, _batch: None)
    contract_before(evaluator, expanded)
    evaluator.run([0])
    torch.testing.assert_close(expanded(image), trained, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(trained, network(image), atol=1e-2)
    fresh = small_network(2)
    fresh.load_state_dict(expanded.state_dict())  # the same names and shapes
    torch.testing.assert_close(fresh(image), trained, rtol=1e-3, atol=1e-4)
    contracted(fresh)  # has nothing to do
    torch.testing.assert_close(fresh(image), trained, rtol=1e-3, atol=1e-4)
