from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from light_networks import CMUNeXt, ShiftedMLP, TinyUNet, UNeXt  # noqa: E402

NETWORKS = [UNeXt, CMUNeXt, TinyUNet]


def count(network: torch.nn.Module) -> int:
    return sum(item.numel() for item in network.parameters())


@pytest.mark.parametrize(
    ("network", "published", "digits"),
    [
        # 1.47 M, Table 1 of arXiv:2203.04967: known to ten thousand.
        (UNeXt, 1_470_000, -4),
        # 418 k and 481 k, Kimbowa et al. 2026 (arXiv:2605.09639); 0.418 M and 0.48 M by their own.
        (CMUNeXt, 418_000, -3),
        (TinyUNet, 481_000, -3),
    ],
)
def test_a_network_has_the_published_number_of_parameters(network, published, digits) -> None:
    assert round(count(network(in_channels=3, out_channels=1)), digits) == published


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_takes_channels_classes_and_sizes_of_any_kind(network) -> None:
    built = network(in_channels=2, out_channels=5).eval()
    with torch.inference_mode():
        assert built(torch.rand(1, 2, 40, 56)).shape == (1, 5, 40, 56)
        image = torch.rand(1, 2, 64, 32)
        padded = torch.nn.functional.pad(image, (0, 32, 0, 0))
        # What is padded inside is padded with zeros, at the ends of the axes.
        torch.testing.assert_close(
            built(image[..., :30]),
            built(torch.nn.functional.pad(image[..., :30], (0, 2)))[..., :30],
        )
        assert built(padded).shape == (1, 5, 64, 64)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_takes_part(network) -> None:
    torch.manual_seed(0)
    built = network(in_channels=1, out_channels=2)
    built(torch.rand(2, 1, 64, 64)).square().sum().backward()
    idle = [name for name, item in built.named_parameters() if item.grad is None]
    assert idle == []


def test_a_shift_moves_each_group_and_fills_with_zeros() -> None:
    tokens = torch.arange(1.0, 6.0).expand(1, 5, 1, 5)
    moved = ShiftedMLP(5).shifted(tokens, 3)[0, :, 0]
    expected = [[3, 4, 5, 0, 0], [2, 3, 4, 5, 0], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]
    assert moved.tolist() == expected


@pytest.mark.search
def test_a_network_is_exported_as_onnx_and_gives_the_same_logits(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = TinyUNet(1, 2, features=(16, 32)).eval()
    image = torch.rand(1, 1, 32, 24)
    file = tmp_path / "network.onnx"
    torch.onnx.export(network, (image,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), network(image), atol=1e-5, rtol=1e-4)
