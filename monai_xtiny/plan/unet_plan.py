"""The plan of a U-Net: what the network of a data set looks like before any width cap."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from operator import index

MAX_WIDTH = 4096
MAX_STAGES = 16
MAX_KERNEL = 31
MAX_CHANNELS = 1024
# Labels are written with 8 bits per voxel.
MAX_CLASSES = 256
# 512 along each axis of a volume.
MAX_PATCH = 2**27


@dataclass(frozen=True)
class UNetPlan:
    """The full network of a data set, before any width cap.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        spacing: mm along (x, y[, z]); 1 for images without a physical size.
        patch_size: voxels along (x, y[, z]).
        kernel_size: of the two convolutions of each stage, one tuple per stage.
        strides: of the first convolution of each stage; the first stage's are 1.
        features_per_stage: channels of each stage.
        slice_axis: for a 2D plan on volumes, the axis (0, 1, 2 for x, y, z) along which they are
            cut into slices; ``None`` for 3D plans and for 2D images.

    Raises:
        TypeError: dimensions or channels are no whole numbers.
        ValueError: the fields contradict each other, DynUNet cannot run them, or they are larger
            than any network that could be used.
    """

    spatial_dims: int
    in_channels: int
    out_channels: int
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    kernel_size: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    features_per_stage: tuple[int, ...]
    slice_axis: int | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        for name in ("spatial_dims", "in_channels", "out_channels"):
            set_field(self, name, index(getattr(self, name)))
        set_field(self, "spacing", tuple(float(size) for size in self.spacing))
        set_field(self, "patch_size", tuple(int(size) for size in self.patch_size))
        set_field(self, "kernel_size", tuple(tuple(map(int, k)) for k in self.kernel_size))
        set_field(self, "strides", tuple(tuple(map(int, s)) for s in self.strides))
        set_field(self, "features_per_stage", tuple(map(int, self.features_per_stage)))
        self._check()

    def _check(self) -> None:
        """Raise ``ValueError`` for a plan that no DynUNet can run."""
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {self.spatial_dims}: give 2 or 3")
        if self.in_channels < 1 or self.out_channels < 2:
            raise ValueError(
                f"in_channels {self.in_channels} and out_channels {self.out_channels}: needed are "
                "at least 1 channel, and 2 classes with the background"
            )
        if self.in_channels > MAX_CHANNELS or self.out_channels > MAX_CLASSES:
            raise ValueError(
                f"in_channels {self.in_channels} and out_channels {self.out_channels}: at most "
                f"{MAX_CHANNELS} channels and {MAX_CLASSES} classes can be handled"
            )
        stages = len(self.features_per_stage)
        if not len(self.kernel_size) == len(self.strides) == stages:
            raise ValueError(
                f"{len(self.kernel_size)} kernels, {len(self.strides)} strides and {stages} "
                "features: give one of each per stage"
            )
        if stages < 3:
            raise ValueError(
                f"a patch of {self.patch_size} voxels leaves {stages} stages, and a U-Net needs 3: "
                "the images are too small, or too thin along an axis"
            )
        axes = (self.spacing, self.patch_size, *self.kernel_size, *self.strides)
        if any(len(values) != self.spatial_dims for values in axes):
            raise ValueError(f"spacing, patch, kernels and strides need {self.spatial_dims} axes")
        if not all(0 < size < inf for size in self.spacing) or not all(
            0 < width <= MAX_WIDTH for width in self.features_per_stage
        ):
            raise ValueError(
                f"spacing {self.spacing} must be positive, and features {self.features_per_stage} "
                f"from 1 to {MAX_WIDTH}"
            )
        kernels = [size for kernel in self.kernel_size for size in kernel]
        if stages > MAX_STAGES or max(kernels) > MAX_KERNEL or prod(self.patch_size) > MAX_PATCH:
            raise ValueError(
                f"{stages} stages, kernels up to {max(kernels)} and a patch of {self.patch_size} "
                f"voxels: at most {MAX_STAGES} stages, kernels of {MAX_KERNEL} and "
                f"{MAX_PATCH:,} voxels can be handled"
            )
        if min(self.patch_size) < 1 or any(size % 2 == 0 for k in self.kernel_size for size in k):
            raise ValueError(
                f"the patch {self.patch_size} must be positive, and kernels {self.kernel_size} odd"
            )
        if set(self.strides[0]) != {1} or any(size < 1 for s in self.strides for size in s):
            raise ValueError(f"strides {self.strides}: the first stage's must be 1, none below 1")
        divisor = [prod(stride[axis] for stride in self.strides) for axis in range(len(axes[0]))]
        if any(size % factor for size, factor in zip(self.patch_size, divisor, strict=True)):
            raise ValueError(
                f"the patch {self.patch_size} is not divisible by the strides' product {divisor}"
            )
        if prod(self.patch_size) <= prod(divisor):
            raise ValueError(
                f"the patch {self.patch_size} shrinks to one voxel, and instance normalization "
                "needs two"
            )
        if (self.slice_axis is not None) and not (
            self.spatial_dims == 2 and self.slice_axis in (0, 1, 2)
        ):
            raise ValueError(f"slice_axis is {self.slice_axis}: 0, 1 or 2, and for 2D plans only")

    @property
    def divisor(self) -> tuple[int, ...]:
        """Product of the strides along each axis; input sizes must be divisible by it."""
        return tuple(
            prod(stride[axis] for stride in self.strides) for axis in range(self.spatial_dims)
        )

    @property
    def pixdim(self) -> tuple[float, ...]:
        """Spacing to resample the images to, mm; -1 at the slice axis, which is left as it is."""
        if self.slice_axis is None:
            return self.spacing
        in_plane = list(self.spacing)
        in_plane.insert(self.slice_axis, -1.0)
        return tuple(in_plane)
