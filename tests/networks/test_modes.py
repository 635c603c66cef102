from __future__ import annotations

import pytest
from torch import nn

from monai_xtiny.networks.modes import evaluated


def flags(network: nn.Module) -> list[bool]:
    modes = [module.training for module in network.modules()]
    return modes + [parameter.requires_grad for parameter in network.parameters()]


@pytest.mark.parametrize("error", [None, ValueError("in the block")], ids=["", "after an error"])
def test_evaluated_puts_every_flag_back(error) -> None:
    network = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(1)))
    network[1][0].eval()
    network[0].bias.requires_grad_(False)
    before = flags(network)
    try:
        with evaluated(network):
            assert not any(flags(network))
            if error is not None:
                raise error
    except ValueError as found:
        assert found is error
    assert flags(network) == before
