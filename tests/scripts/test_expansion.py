from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.networks.nets import DynUNet
from torch import nn

from monai_xtiny.training.train import train_width
from tests.conftest import write_labeled_pictures

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from expansion import contract_network, expand, expand_until_validation  # noqa: E402
from recipes import RECIPES  # noqa: E402


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
    evaluator = Engine(lambda _engine, _batch: None)
    expanded = expand_until_validation(copy.deepcopy(network), evaluator, 2)
    image = torch.randn(2, 1, 16, 16)
    optimizer = torch.optim.SGD(expanded.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        expanded(image).square().mean().backward()
        # Every factor learns, in all directions: the products are no longer what they were.
        assert all(p.grad is not None and p.grad.any() for p in expanded.parameters())
        optimizer.step()
    trained = expanded(image)
    evaluator.run([0])
    torch.testing.assert_close(expanded(image), trained, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(trained, network(image), atol=1e-2)
    fresh = small_network(2)
    fresh.load_state_dict(expanded.state_dict())  # the same names and shapes
    torch.testing.assert_close(fresh(image), trained, rtol=1e-3, atol=1e-4)
    contract_network(fresh)  # has nothing to do
    torch.testing.assert_close(fresh(image), trained, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_recipe_trains_expanded_and_is_evaluated_contracted(selection, tmp_path) -> None:
    root = write_labeled_pictures(tmp_path / "data")
    trainings = {
        name: train_width(
            selection,
            4,
            data=root,
            bundle_dir=tmp_path / f"{name}_segmentation",
            epochs=2,
            val_interval=1,
            overrides={"num_workers": 0, **RECIPES[name]},
        )
        for name in ("plain", "expand")
    }
    weights = [
        torch.load(tmp_path / f"{name}_segmentation" / "models" / "model.pt") for name in trainings
    ]
    shapes = [{key: value.shape for key, value in item.items()} for item in weights]
    assert shapes[0] == shapes[1]
    assert [len(item.curve) for item in trainings.values()] == [2, 1]
    assert len(trainings["expand"].evaluation.cases) == 2
    # The same crops and the same first kernels: what differs is how the kernels learn.
    key = "input_block.conv1.conv.weight"
    assert not torch.equal(weights[0][key], weights[1][key])
    torch.testing.assert_close(weights[0][key], weights[1][key], atol=0.1, rtol=0)
