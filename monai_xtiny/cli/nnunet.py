"""Into nnU-Net and back: ``nnunet configure``, ``nnunet import``, ``nnunet export``."""

from __future__ import annotations

import os

from monai_xtiny.cli.job import Job, as_typed
from monai_xtiny.cli.options import check_limits, parse_int


@as_typed
def configure(
    dataset_id: str,
    configuration: str = "2d",
    plans_identifier: str = "nnUNetPlans",
    method: str = "alignment",
    num_images: str | None = None,
    seed: int = 369,
    num_seeds: int | None = None,
    max_seconds: float | None = None,
    max_memory_gb: float | None = None,
    device: str = "auto",
    debug: bool = False,
) -> Job:
    """Find the width for an nnU-Net data set and add it to the plans, for nnUNetv2_train.

    The environment variable nnUNet_preprocessed says where the data set is; nnUNet_raw too, where
    no cases are preprocessed yet.

    Args:
        dataset_id: nnU-Net's, 4 for example, or the data set's name.
        configuration: of the plans: 2d, 3d_fullres or 3d_lowres.
        plans_identifier: name of the plans file, without .json.
        method: rule that chooses the width.
        num_images: images to score, or 'all'; default: as many as the rule asks for.
        seed: of the first initialization and of the draw of images.
        num_seeds: initializations of every width; default: one for 'paper', and for 'alignment' as
            many of narrow widths as make the choice sure.
        max_seconds: time after which no further initializations are asked for.
        max_memory_gb: what the process may hold; with less, fewer networks and images at a time.
        device: auto, cpu, cuda, cuda:1, ...
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.summary import ladder_table
        from monai_xtiny.nnunet.configure import configure_data_set, plan_nnunet_data_set
        from monai_xtiny.selection.rules import check_method
        from monai_xtiny.system.devices import select_device

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("nnunet configure runs in one process: start it without torchrun")
        number = None if num_images in (None, "all") else parse_int("num_images", num_images)
        check_limits(num_seeds, max_seconds, max_memory_gb)
        check_method(method)
        select_device(device)
        planned = plan_nnunet_data_set(dataset_id, configuration, plans_identifier)
        print(planned.describe(), flush=True)
        found = configure_data_set(
            planned,
            method=method,
            num_images=num_images if number is None else number,
            seed=parse_int("seed", seed),
            num_seeds=num_seeds,
            max_seconds=max_seconds,
            max_memory_gb=max_memory_gb,
            device=device,
        )
        print(ladder_table(found.selection))
        print(found.summary)

    return Job(run, debug, resumes=True)


# By the words that are typed: "import" cannot be the name of a function.
COMMANDS_OF_NNUNET = {"configure": configure}
