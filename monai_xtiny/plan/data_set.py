"""The plan of a data set, nnU-Net's own or made from the images, and what was found in words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from monai_xtiny.data.case import Case, Header
from monai_xtiny.plan import nnunet, planner
from monai_xtiny.plan.unet_plan import UNetPlan


def plan_data_set(
    cases: Sequence[Case],
    headers: Mapping[Case, Header],
    *,
    out_channels: int,
    spatial_dims: int | None = None,
    plans: str | os.PathLike[str] | None = None,
    configuration: str = "2d",
    num_images: int | None = 16,
    seed: int = 369,
    loading: Callable[..., Any] | None = None,
    progress: bool = False,
) -> UNetPlan:
    """Take nnU-Net's plan if there is one, and plan from the images otherwise.

    Args:
        cases: all cases of the data set.
        headers: those read already, at least one.
        out_channels: classes, background included.
        spatial_dims: 2 or 3; ``None`` takes what the plans file or the images have.
        plans: nnU-Net's plans file; no further image is read then.
        configuration: of the plans file.
        num_images: to plan from, as for :func:`monai_xtiny.plan_images`.
        seed: of the draw of these images.
        loading: first step of the preprocessing, as for
            :func:`monai_xtiny.data.measure_nonzero`.
        progress: show a bar on stderr.

    Raises:
        FileNotFoundError: there is no such plans file.
        ValueError: the plans file or the images cannot be planned from.
    """
    if plans:
        header = next(iter(headers.values()))
        orders = {known.stored_axes for known in headers.values()}
        return nnunet.load_nnunet_plan(
            plans,
            configuration,
            in_channels=header.in_channels,
            out_channels=out_channels,
            of_images=len(header.shape) == 2,
            spatial_dims=spatial_dims,
            stored_axes=orders.pop() if len(orders) == 1 else None,
        )
    return planner.plan_images(
        cases,
        spatial_dims=spatial_dims,
        out_channels=out_channels,
        num_images=num_images,
        seed=seed,
        headers=headers,
        loading=loading,
        progress=progress,
    )


def describe_data_set(cases: Sequence[Case], headers: Iterable[Header], plan: UNetPlan) -> str:
    """Say what was found before it is worked on, in two lines: a glance shows a wrong guess.

    Args:
        cases: all cases.
        headers: of some of them, at least one.
        plan: of the network.

    >>> steps = ((1, 1), (2, 2), (2, 2))
    >>> plan = UNetPlan(2, 4, 2, (1, 1), (64, 64), ((3, 3),) * 3, steps, (8,) * 3)
    >>> case = Case("patA", tuple(f"patA_{channel:04d}.png" for channel in range(4)), "raster")
    >>> print(describe_data_set([case], [Header((70, 60), (1, 1), 4)], plan))
    found 1 case with 4 channels (patA_0000.png, patA_0001.png, ...), 2D, median size 70 x 60 pixels
    patch 64 x 64 pixels, 3 stages, at most 8 features
    """
    known = list(headers)
    files = next((list(map(os.path.basename, case.images)) for case in cases if case.images), [])
    shown = ", ".join(files[:2]) + (", ..." if len(files) > 2 else "")
    channels = known[0].in_channels
    size = np.median([header.shape for header in known], axis=0)
    is_volume = len(size) == 3
    spacing = np.median([header.spacing for header in known], axis=0)
    cut = "" if plan.slice_axis is None else f" of slices across {'xyz'[plan.slice_axis]}"
    # A spacing without unit is no spacing.
    resampled = f" of {_by(plan.spacing)} mm" if is_volume else ""
    return (
        f"found {len(cases)} case{'s' * (len(cases) > 1)} with {channels} "
        f"channel{'s' * (channels > 1)} ({shown}), {len(size)}D, median size {_by(size)} "
        + (f"voxels of {_by(spacing)} mm" if is_volume else "pixels")
        + f"\npatch {_by(plan.patch_size)} {'voxels' if is_volume else 'pixels'}{resampled}{cut}, "
        f"{len(plan.strides)} stages, at most {max(plan.features_per_stage)} features"
    )


def _by(sizes: Iterable[float]) -> str:
    """Sizes along the axes, for reading."""
    return " x ".join(f"{size:.4g}" if size < 1000 else f"{size:.0f}" for size in sizes)
