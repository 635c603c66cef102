from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.weights import weights_digest
from tests.exports import exported


@pytest.fixture
def bundle(tmp_path, selection) -> Path:
    return exported(selection, tmp_path / "x_segmentation")


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["state dict", "under model"])
def test_load_network_has_the_weights_in_evaluation_mode(bundle, is_wrapped) -> None:
    path = bundle / "models" / "model.pt"
    weights = {name: value + 1 for name, value in torch.load(path, weights_only=True).items()}
    torch.save({"model": weights} if is_wrapped else weights, path)
    state = torch.get_rng_state()
    network = Bundle.open(bundle).network()
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in network.modules())
    found = network.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("content", [b"no weights", None], ids=["no weights", "missing"])
def test_load_network_refuses_what_is_no_file_of_its_weights(bundle, content) -> None:
    path = bundle / "models" / "model.pt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.pt' does not hold the network of .*inference"):
        Bundle.open(bundle).network()


def test_weights_digest_is_of_names_and_values_alone() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    digest = weights_digest(weights)
    # Neither the order of the names nor that of the values in memory counts.
    assert weights_digest({"b": weights["b"], "a": weights["a"]}) == digest
    assert weights_digest({**weights, "a": weights["a"].mT.contiguous().mT}) == digest
    assert weights_digest({**weights, "b": torch.tensor([1.0, 1.0 + 1e-7])}) != digest
    assert weights_digest({"a": weights["a"], "c": weights["b"]}) != digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": [10**7] * 4}, "parameters, more than 1,000,000,000"),
        ({"in_channels": 10**12}, "parameters, more than 1,000,000,000"),
        ({"out_channels": 10**30}, "cannot be built"),
        ({"filters": []}, "cannot be built"),
        ({"_target_": "NoSuchNetwork"}, "cannot be built"),
    ],
    ids=["filters", "channels", "overflow", "empty", "unknown"],
)
def test_load_network_refuses_a_giant_before_it_takes_memory(bundle, change, message) -> None:
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["network_def"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"network_def of .*inference.json.*{message}"):
        Bundle.open(bundle).network()
    with pytest.raises(ValueError, match=f"network_def of .*inference.json.*{message}"):
        Bundle.open(bundle).workflow(["inference"])
