from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.nnunet.checkpoint import (
    NnunetCheckpoint,
    network_axes,
    nnunet_kernels,
    read_checkpoint,
    used_kernels,
    weights_from_nnunet,
    weights_to_nnunet,
    write_checkpoint,
)
from monai_xtiny.plan.unet_plan import UNetPlan

unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")

PLAIN = UNetPlan(
    3, 2, 3, (1, 1, 1), (16, 24, 32), ((3, 3, 3),) * 3,
    ((1, 1, 1), (2, 2, 2), (2, 2, 2)), (4, 6, 8),
)  # fmt: skip
THICK = replace(
    PLAIN, patch_size=(16, 24, 8), kernel_size=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
)  # fmt: skip
FLAT = UNetPlan(
    2, 1, 2, (1, 1), (16, 24), ((3, 3),) * 3, ((1, 1), (2, 2), (2, 2)), (4, 6, 8), slice_axis=0
)
PLANS = pytest.mark.parametrize(
    ("plan", "order"),
    [(PLAIN, (0, 1, 2)), (PLAIN, (1, 2, 0)), (THICK, (0, 1, 2)), (THICK, (2, 0, 1)),
     (FLAT, (2, 0, 1))],
    ids=["plain", "transposed", "anisotropic", "anisotropic-transposed", "slices"],
)  # fmt: skip


def back_of(axes: Sequence[int]) -> list[int]:
    """MONAI's axes in nnU-Net's order."""
    return [int(axis) for axis in np.argsort(axes)]


def nnunet_network(plan: UNetPlan, axes: Sequence[int]) -> nn.Module:
    """nnU-Net's network of a plan, with random weights and biases."""
    back, dims, stages = back_of(axes), plan.spatial_dims, len(plan.strides)
    network = unet.PlainConvUNet(
        plan.in_channels, stages, list(plan.features_per_stage),
        {2: nn.Conv2d, 3: nn.Conv3d}[dims],
        [[kernel[axis] for axis in back] for kernel in plan.kernel_size],
        [[stride[axis] for axis in back] for stride in plan.strides],
        [2] * stages, plan.out_channels, [2] * (stages - 1), True,
        {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims], {"eps": 1e-5, "affine": True},
        None, None, nn.LeakyReLU, {"inplace": True},
    )  # fmt: skip
    return with_random_weights(network)


def with_random_weights(network: nn.Module) -> nn.Module:
    """All parameters drawn, in evaluation mode."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def dynunet(plan: UNetPlan, weights: dict[str, torch.Tensor]) -> nn.Module:
    """DynUNet with weights, of which only aliases may be missing."""
    network = build_network(plan, seed=0).eval()
    problems = network.load_state_dict(weights, strict=False)
    assert not problems.unexpected_keys
    assert all(name.startswith("skip_layers.") for name in problems.missing_keys)
    return network


def outputs(plan: UNetPlan, axes: Sequence[int], ours: nn.Module, theirs: nn.Module):
    """Logits of both networks, in MONAI's order."""
    image = torch.randn(1, plan.in_channels, *plan.patch_size)
    there, back = ([axis + 2 for axis in some] for some in (axes, back_of(axes)))
    with torch.inference_mode():
        return ours(image), theirs(image.permute(0, 1, *back)).permute(0, 1, *there)


@PLANS
def test_weights_from_nnunet_give_the_same_logits(plan, order) -> None:
    axes = network_axes(order, plan.spatial_dims)
    theirs = nnunet_network(plan, axes)
    weights = weights_from_nnunet(theirs.state_dict(), plan, axes, source="x.pth")
    found, expected = outputs(plan, axes, dynunet(plan, weights), theirs)
    assert float(expected.std()) > 0.05
    assert torch.allclose(found, expected, atol=1e-5)


@PLANS
def test_weights_to_nnunet_give_the_same_logits_and_come_back(plan, order) -> None:
    axes = network_axes(order, plan.spatial_dims)
    ours = with_random_weights(build_network(plan, seed=0))
    state = ours.state_dict()
    wide = replace(plan, kernel_size=nnunet_kernels(state, plan))
    theirs = nnunet_network(wide, axes)
    there = weights_to_nnunet(state, wide, axes)
    theirs.load_state_dict(there)  # all of nnU-Net's names, and no other
    found, expected = outputs(plan, axes, ours, theirs)
    assert torch.allclose(found, expected, atol=1e-5)
    narrow = replace(wide, kernel_size=used_kernels(there, wide, axes))
    back = weights_from_nnunet(there, narrow, axes, source="x.pth")
    assert narrow.kernel_size == plan.kernel_size
    assert all(torch.equal(back[name], state[name]) for name in back)
    assert {name for name in state if not name.startswith("skip_layers.")} == set(back)


def test_nnunet_kernels_stay_as_planned_where_zeros_were_padded() -> None:
    axes = network_axes((0, 1, 2), 3)
    theirs = nnunet_network(THICK, axes).state_dict()
    weights = weights_from_nnunet(theirs, THICK, axes, source="x.pth")
    assert nnunet_kernels(weights, THICK) == THICK.kernel_size
    again = weights_to_nnunet(weights, THICK, axes)
    dropped = ("conv.bias", "all_modules.0", "seg_layers.0")
    kept = [name for name in theirs if not any(part in name for part in dropped)]
    assert len(kept) > 30
    assert all(torch.equal(again[name], theirs[name]) for name in kept)


def test_used_kernels_of_trained_weights_are_those_of_the_plan() -> None:
    axes = network_axes((0, 1, 2), 3)
    assert used_kernels(nnunet_network(THICK, axes).state_dict(), THICK, axes) == THICK.kernel_size


def test_weights_from_nnunet_refuse_kernels_that_shrink_with_depth() -> None:
    plan = replace(PLAIN, kernel_size=((3, 3, 3), (3, 3, 1), (3, 3, 3)))
    axes = network_axes((0, 1, 2), 3)
    state = nnunet_network(plan, axes).state_dict()
    with pytest.raises(ValueError, match=r"decoder.stages.1.convs.0.conv.weight has kernels of"):
        weights_from_nnunet(state, plan, axes, source="x.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("encoder.stages.1.0.convs.0.conv.weight"), "has no encoder"),
        (lambda state: state.update({"encoder.norm.running_mean": torch.ones(4)}),
         "holds encoder.norm.running_mean, which is not of the plain U-Net"),
        (lambda state: state.update({"decoder.transpconvs.0.weight": torch.ones(8, 9, 2, 2, 2)}),
         "the weights are of another network"),
    ],
    ids=["missing", "batch-norm", "shape"],
)  # fmt: skip
def test_weights_from_nnunet_refuse_another_network(change, words) -> None:
    axes = network_axes((0, 1, 2), 3)
    state = dict(nnunet_network(PLAIN, axes).state_dict())
    change(state)
    with pytest.raises(ValueError, match=words):
        weights_from_nnunet(state, PLAIN, axes, source="x.pth")


def written(path: Path, **changes) -> Path:
    """A checkpoint as nnU-Net writes it, with NumPy's numbers and an optimizer's state."""
    content = {
        "network_weights": {"a.weight": torch.ones(2, 2)},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
        "logging": {"ema_fg_dice": [np.float32(0.5), np.float64(0.25)], "epochs": [np.int64(3)]},
        "_best_ema": np.float64(0.75),
        "current_epoch": 7,
        "init_args": {
            "plans": {"configurations": {}}, "configuration": "2d", "fold": 0,
            "dataset_json": {"labels": {}}, "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
        **changes,
    }  # fmt: skip
    torch.save(content, path)
    return path


def test_read_checkpoint_reads_what_nnunet_writes(tmp_path) -> None:
    found = read_checkpoint(written(tmp_path / "checkpoint_final.pth"))
    assert torch.equal(found.weights["a.weight"], torch.ones(2, 2))
    assert (found.configuration, found.trainer_name) == ("2d", "nnUNetTrainer")
    assert (found.mirror_axes, found.num_epochs) == ((0, 1), 7)
    without = written(tmp_path / "x.pth", inference_allowed_mirroring_axes=None)
    assert read_checkpoint(without).mirror_axes == ()


def test_write_checkpoint_is_read_again(tmp_path) -> None:
    checkpoint = read_checkpoint(written(tmp_path / "x.pth"))
    write_checkpoint(checkpoint, 3, tmp_path / "y.pth")
    again = read_checkpoint(tmp_path / "y.pth")
    for name in NnunetCheckpoint.__dataclass_fields__:
        if name not in ("source", "weights"):
            assert getattr(again, name) == getattr(checkpoint, name)
    assert torch.load(tmp_path / "y.pth", weights_only=True)["init_args"]["fold"] == 3


class Code:
    """What would run a command where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: written(path, extra=Code()), "cannot be read as plain data"),
        (lambda path: path.write_bytes(written(path).read_bytes()[:900]), "or cut off"),
        (lambda path: path.write_bytes(b"no zip"), "is no file of PyTorch"),
        (lambda path: torch.save({"model": {}}, path), "is no checkpoint of nnU-Net v2"),
        (lambda path: torch.save([1], path), "is no checkpoint of nnU-Net v2"),
        (lambda path: written(path, network_weights={}), "holds no weights"),
        (lambda path: written(path, network_weights={"a": 3}), "holds no weights"),
        (lambda path: written(path, network_weights={"a": torch.tensor([1.0, np.nan])}),
         "NaN or infinite"),
        (lambda path: written(path, network_weights={"a": torch.ones(1).expand(10**6, 10**6)}),
         "holds no weights"),
    ],
    ids=["code", "cut-off", "no-zip", "monai", "list", "empty", "number", "nan", "huge"],
)  # fmt: skip
def test_read_checkpoint_refuses_in_one_line(tmp_path, monkeypatch, spoil, words) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path / "x.pth")
    with pytest.raises(ValueError, match=words) as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_read_checkpoint_refuses_what_is_compressed(tmp_path) -> None:
    plain = written(tmp_path / "x.pth", network_weights={"a": torch.zeros(10**6)})
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
    with pytest.raises(ValueError, match="is compressed, as PyTorch's files never are"):
        read_checkpoint(tmp_path / "y.pth")


def test_read_checkpoint_names_a_file_that_there_is_none_of(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "x.pth")
