from __future__ import annotations

import pytest

from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.networks.tensor_names import pair_tensor_names
from monai_xtiny.plan.unet_plan import UNetPlan


@pytest.mark.parametrize("kernel", [(3, 3), (3, 3, 1), (3, 3, 3)], ids=str)
def test_pair_tensor_names_has_every_tensor_of_the_network_once(kernel) -> None:
    dims = len(kernel)
    strides = ((1,) * dims, *((2,) * dims,) * 2)
    plan = UNetPlan(dims, 2, 3, (1,) * dims, (16,) * dims, (kernel,) * 3, strides, (4, 8, 6))
    state = build_network(plan, seed=0).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    pairs = list(pair_tensor_names(plan))
    assert {ours: shape for ours, _, shape in pairs} == {
        name: shape for name, shape in shapes.items() if not name.startswith("skip_layers.")
    }
    assert len({theirs for _, theirs, _ in pairs}) == len(pairs)
