"""nnU-Net's checkpoints: read safely, and their weights as MONAI's DynUNet has them, and back.

nnU-Net's PlainConvUNet and DynUNet compute the same where their weights are the same, with three
differences. The axes of kernels: (z, y, x) there, (x, y, z) here. Biases before instance
normalization, which takes them off again: here there are none, there they are 0. And the kernels of
a decoder level: those of its own level there, of the level below here; where they differ, zeros
around a kernel make it larger.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_xtiny.networks.dynunet import MAX_PARAMETERS
from monai_xtiny.networks.tensor_names import pair_tensor_names
from monai_xtiny.plan.unet_plan import UNetPlan

_ADVICE = "give nnU-Net's checkpoint_final.pth or checkpoint_best.pth"
_Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class NnunetCheckpoint:
    """What a checkpoint of nnU-Net v2 holds of the network; not of the training's state.

    Args:
        source: the file.
        weights: tensors by nnU-Net's names, on the CPU.
        plans: content of the plans file that it was trained with.
        configuration: name of the configuration.
        dataset_json: content of the data set's ``dataset.json``.
        trainer_name: class of the trainer.
        mirror_axes: that the training flipped, and inference may; axes of the patch, in the plans'
            order.
        num_epochs: that it was trained for.
    """

    source: Path
    weights: Mapping[str, torch.Tensor]
    plans: Mapping[str, Any]
    configuration: str
    dataset_json: Mapping[str, Any]
    trainer_name: str
    mirror_axes: tuple[int, ...]
    num_epochs: int


def read_checkpoint(path: str | os.PathLike[str]) -> NnunetCheckpoint:
    """Read a checkpoint as plain data: nothing in it is run.

    Args:
        path: of ``checkpoint_final.pth`` or the like.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, holds more than data, or is of something else than nnU-Net v2.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {str(file)!r}: {_ADVICE}")
    _check_archive(file)
    # The best score and the losses are NumPy's numbers.
    numbers: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8"))]
    try:
        with torch.serialization.safe_globals([_scalar(), *numbers]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own words advise to load it as code.
        raise ValueError(
            f"{str(file)!r} cannot be read as plain data ({type(error).__name__}), it is cut off "
            f"or holds code: {_ADVICE}"
        ) from error
    try:
        arguments, state = content["init_args"], content["network_weights"]
        found = NnunetCheckpoint(
            source=file,
            weights={str(name).removeprefix("module."): value for name, value in state.items()},
            plans=dict(arguments["plans"]),
            configuration=str(arguments["configuration"]),
            dataset_json=dict(arguments["dataset_json"]),
            trainer_name=str(content["trainer_name"]),
            mirror_axes=_read_axes(content.get("inference_allowed_mirroring_axes")),
            num_epochs=int(content.get("current_epoch") or 0),
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{str(file)!r} is no checkpoint of nnU-Net v2 ({error!r}): {_ADVICE}"
        ) from error
    _check_weights(found)
    return found


def _read_axes(axes: Any) -> tuple[int, ...]:
    """The axes that may be flipped, each once."""
    found = () if axes is None else tuple(axes)
    if not all(type(axis) is int for axis in found) or len(set(found)) < len(found):
        raise ValueError(f"inference_allowed_mirroring_axes is {axes!r}")
    return found


def _scalar() -> Any:
    """What NumPy's numbers are pickled with; NumPy 1 has it elsewhere."""
    module = getattr(np, "_core", None) or np.core
    return module.multiarray.scalar


def _check_archive(file: Path) -> None:
    """Refuse what would become larger than the file, before it is read."""
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(
            f"{str(file)!r} is no file of PyTorch, or cut off ({error}): {_ADVICE}"
        ) from error
    if size > file.stat().st_size:
        raise ValueError(f"{str(file)!r} is compressed, as PyTorch's files never are: {_ADVICE}")


def _check_weights(checkpoint: NnunetCheckpoint) -> None:
    """Refuse weights that are none, and such that take more memory than they have."""
    values = list(checkpoint.weights.values())
    if not values or not all(
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() <= min(value.untyped_storage().nbytes(), MAX_PARAMETERS)
        for value in values
    ):
        raise ValueError(f"{str(checkpoint.source)!r} holds no weights of a network: {_ADVICE}")
    if not all(torch.isfinite(value).all() for value in values):
        raise ValueError(
            f"{str(checkpoint.source)!r} holds weights that are NaN or infinite: train again"
        )


def weights_from_nnunet(
    weights: Mapping[str, torch.Tensor],
    plan: UNetPlan,
    axes: Sequence[int],
    *,
    source: str,
) -> _Weights:
    """nnU-Net's weights by DynUNet's names.

    Args:
        weights: of a PlainConvUNet.
        plan: of that network.
        axes: place of each axis of MONAI's order among nnU-Net's, as :func:`network_axes` gives it.
        source: the file, for messages.

    Returns:
        float32 tensors; DynUNet's aliases ``skip_layers.*`` are left out.

    Raises:
        ValueError: a tensor is missing or has another shape, or a kernel of the decoder does not
            fit into DynUNet's.
    """
    found: _Weights = {}
    known = _known_names(plan)
    other = next((name for name in weights if name not in known), None)
    if other is not None:
        raise ValueError(
            f"{source!r} holds {other}, which is not of the plain U-Net of its plans: a network "
            "with other normalization or more layers is not supported"
        )
    for ours, theirs, shape in pair_tensor_names(plan):
        value = weights.get(theirs)
        if value is None:
            raise ValueError(
                f"{source!r} has no {theirs}: its weights are not those of the plain U-Net of its "
                "plans"
            )
        value = value.detach().float()
        if value.ndim > 2:
            value = value.permute(0, 1, *(axis + 2 for axis in axes))
        found[ours] = _in_shape(value, shape, theirs, source)
    return found


def check_dynunet_weights(
    weights: Mapping[str, torch.Tensor], plan: UNetPlan, *, source: str
) -> None:
    """Refuse weights that are not those of the DynUNet of a plan.

    Args:
        weights: by DynUNet's names; its aliases ``skip_layers.*`` may be there, or not.
        plan: of the DynUNet.
        source: the file, for messages.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape, or holds no real numbers.
    """
    shapes = {name: shape for name, _, shape in pair_tensor_names(plan)}
    advice = "the weights are of another network than the bundle's: train or export it again"
    for name in weights:
        if name not in shapes and not name.startswith("skip_layers."):
            raise ValueError(f"{source!r} holds {name}, which the network does not have: {advice}")
    for name, shape in shapes.items():
        value = weights.get(name)
        if value is None:
            raise ValueError(f"{source!r} has no {name}: {advice}")
        if tuple(value.shape) != shape:
            raise ValueError(
                f"{source!r}: {name} has shape {tuple(value.shape)}, and the network {shape}: "
                f"{advice}"
            )
        if not value.is_floating_point():
            raise ValueError(f"{source!r}: {name} is of {value.dtype}, not real numbers: {advice}")


def weights_to_nnunet(
    weights: Mapping[str, torch.Tensor], plan: UNetPlan, axes: Sequence[int]
) -> _Weights:
    """DynUNet's weights by nnU-Net's names, with all that nnU-Net wants besides.

    Args:
        weights: of a DynUNet of the plan, as :func:`check_dynunet_weights` takes them.
        plan: its kernels are nnU-Net's, as :func:`nnunet_kernels` gives them.
        axes: place of each axis of MONAI's order among nnU-Net's.

    Raises:
        ValueError: a kernel of the decoder has weights where nnU-Net's has none.
    """
    found: _Weights = {}
    back = np.argsort(axes)
    for ours, theirs, _ in pair_tensor_names(plan):
        value = weights[ours].detach().float()
        if value.ndim > 2:
            value = _fitted(value, _kernel_at(plan, theirs))
            value = value.permute(0, 1, *(int(axis) + 2 for axis in back)).contiguous()
        found[theirs] = value.clone()
    classes = plan.out_channels
    for name in [name for name in found if name.endswith(".conv.weight")]:
        found[name.replace(".weight", ".bias")] = torch.zeros(len(found[name]))
    # Of deep supervision, which is off in inference; nnU-Net wants them there.
    last = len(plan.features_per_stage) - 2
    for stage in range(last):
        width = plan.features_per_stage[last - stage]
        name = f"decoder.seg_layers.{stage}"
        found[f"{name}.weight"] = torch.zeros(classes, width, *[1] * plan.spatial_dims)
        found[f"{name}.bias"] = torch.zeros(classes)
    return _with_aliases(found)


def network_axes(transpose_forward: Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """Place of each axis of MONAI's order among those of nnU-Net's network.

    Args:
        transpose_forward: of the plans.
        spatial_dims: of the network.

    >>> network_axes([0, 1, 2], 3), network_axes([2, 0, 1], 2)
    ((2, 1, 0), (1, 0))
    """
    order = list(transpose_forward)[-spatial_dims:]
    return tuple(sorted(range(spatial_dims), key=lambda place: -order[place]))


def nnunet_kernels(
    weights: Mapping[str, torch.Tensor], plan: UNetPlan
) -> tuple[tuple[int, ...], ...]:
    """Kernels with which nnU-Net's network holds a DynUNet's weights.

    A level's own kernel where that is enough; else its largest edges and those of the level below,
    which the level's decoder has here.

    Args:
        weights: of the DynUNet.
        plan: of the DynUNet.
    """
    kernels = list(plan.kernel_size)
    for level in range(len(kernels) - 1):
        here, below = plan.kernel_size[level], plan.kernel_size[level + 1]
        stage = len(kernels) - 2 - level
        names = [f"upsamples.{stage}.conv_block.conv{number}.conv.weight" for number in (1, 2)]
        if here != below and not all(_fits(weights[name], here) for name in names):
            kernels[level] = tuple(max(edges) for edges in zip(here, below, strict=True))
    return tuple(kernels)


def used_kernels(
    weights: Mapping[str, torch.Tensor], plan: UNetPlan, axes: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Kernels of the encoder without the zeros that :func:`nnunet_kernels` put around them.

    Trained weights are nowhere 0, so that those of a network that nnU-Net trained are as planned.

    Args:
        weights: by nnU-Net's names.
        plan: of nnU-Net's network.
        axes: place of each axis of MONAI's order among nnU-Net's.
    """
    kernels = []
    for stage, kernel in enumerate(plan.kernel_size):
        names = [f"encoder.stages.{stage}.0.convs.{place}.conv.weight" for place in (0, 1)]
        found = [weights[name] for name in names if name in weights]
        turned = [
            value.permute(0, 1, *(axis + 2 for axis in axes))
            for value in found
            if value.ndim == 2 + len(axes)
        ]
        edges = list(kernel)
        for axis in range(len(edges) * (len(turned) == 2)):
            while edges[axis] > 1 and all(_is_bare(value, edges, axis) for value in turned):
                edges[axis] -= 2
        kernels.append(tuple(edges))
    return tuple(kernels)


def write_checkpoint(checkpoint: NnunetCheckpoint, fold: int, path: Path) -> None:
    """Write what nnU-Net predicts with, and fine-tunes from by ``-pretrained_weights``.

    Args:
        checkpoint: what to write; ``source`` is not.
        fold: of the training.
        path: of the file.
    """
    content = {
        "network_weights": dict(checkpoint.weights),
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": checkpoint.num_epochs,
        "init_args": {
            "plans": dict(checkpoint.plans),
            "configuration": checkpoint.configuration,
            "fold": fold,
            "dataset_json": dict(checkpoint.dataset_json),
        },
        "trainer_name": checkpoint.trainer_name,
        "inference_allowed_mirroring_axes": checkpoint.mirror_axes or None,
    }
    torch.save(content, path)


def _known_names(plan: UNetPlan) -> set[str]:
    """All names of the state dict of nnU-Net's network."""
    names = [theirs for _, theirs, _ in pair_tensor_names(plan)]
    names += [f"{name.removesuffix('.weight')}.bias" for name in names if ".conv.weight" in name]
    for stage in range(len(plan.features_per_stage) - 2):
        names += [f"decoder.seg_layers.{stage}.{part}" for part in ("weight", "bias")]
    return {alias for name in names for alias in _aliases(name)}


def _in_shape(value: torch.Tensor, shape: tuple[int, ...], name: str, source: str) -> torch.Tensor:
    """A tensor with zeros around its kernel, where the shape is larger."""
    if value.shape == shape:
        return value.clone(memory_format=torch.contiguous_format)
    is_block = ".convs." in name
    if value.ndim != len(shape) or value.shape[:2] != shape[:2] or not is_block:
        raise ValueError(
            f"{source!r}: {name} has shape {tuple(value.shape)}, and its plans say {shape}: the "
            "weights are of another network"
        )
    if not _fits(value, shape[2:]):
        raise ValueError(
            f"{source!r}: {name} has kernels of {tuple(value.shape[2:])}, and the level below of "
            f"{shape[2:]}, into which they do not fit: DynUNet has one kernel for both, so plan "
            "kernels that grow with depth"
        )
    return _fitted(value, shape[2:])


def _fitted(value: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """A kernel with zeros around it, or without those that lie around it."""
    padding = [(wanted - own) // 2 for own, wanted in zip(value.shape[2:], kernel, strict=True)]
    if any(edge < 0 for edge in padding) and not _fits(value, kernel):
        raise ValueError(f"a kernel of {tuple(value.shape[2:])} does not fit into {tuple(kernel)}")
    return torch.nn.functional.pad(value, [edge for edge in padding[::-1] for _ in range(2)])


def _fits(value: torch.Tensor, kernel: Sequence[int]) -> bool:
    """Whether a kernel is 0 wherever another one has no weights."""
    inside = torch.zeros(value.shape[2:], dtype=torch.bool)
    kept = [min(size, edge) for size, edge in zip(value.shape[2:], kernel, strict=True)]
    places = zip(value.shape[2:], kept, strict=True)
    inside[tuple(slice((size - edge) // 2, (size + edge) // 2) for size, edge in places)] = True
    return not value[..., ~inside].any()


def _is_bare(value: torch.Tensor, kernel: Sequence[int], axis: int) -> bool:
    """Whether the two outer planes of a kernel along an axis are 0, and its inside is not."""
    middle = value.shape[2 + axis] // 2
    reach = kernel[axis] // 2
    first, last = (value.select(2 + axis, middle + side * reach) for side in (-1, 1))
    return not first.any() and not last.any() and bool(value.any())


def _kernel_at(plan: UNetPlan, name: str) -> tuple[int, ...]:
    """The kernel that nnU-Net's network has in a layer."""
    part, kind, stage = name.split(".")[:3]
    last = len(plan.kernel_size) - 1
    if kind == "seg_layers":
        return (1,) * plan.spatial_dims
    if kind == "transpconvs":
        return plan.strides[last - int(stage)]
    return plan.kernel_size[int(stage) if part == "encoder" else last - 1 - int(stage)]


def _with_aliases(weights: _Weights) -> _Weights:
    """Weights by all names of nnU-Net's state dict."""
    return {alias: value for name, value in weights.items() for alias in _aliases(name)}


def _aliases(name: str) -> list[str]:
    """The names of one tensor: a layer of a block has two, and the decoder has the encoder."""
    names = [name]
    for layer, place in (("conv", 0), ("norm", 1)):
        if ".convs." in name and f".{layer}." in name:
            names.append(name.replace(f".{layer}.", f".all_modules.{place}."))
    return names + [f"decoder.{each}" for each in names if each.startswith("encoder.")]
