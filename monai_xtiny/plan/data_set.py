"""The plan of a data set: nnU-Net's own, where its file is given, or made from the images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
        return nnunet.load_nnunet_plan(
            plans,
            configuration,
            in_channels=header.in_channels,
            out_channels=out_channels,
            of_images=len(header.shape) == 2,
            spatial_dims=spatial_dims,
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
