"""Into nnU-Net and back: ``nnunet configure``, ``nnunet import``, ``nnunet export``."""

from __future__ import annotations

import os
from functools import partial

from monai_xtiny.cli.job import Job, as_typed
from monai_xtiny.cli.options import check_limits, parse_flag, parse_int
from monai_xtiny.system.startup import import_monai


@as_typed
def configure(
    dataset_id: str,
    configuration: str = "2d",
    plans_identifier: str = "nnUNetPlans",
    method: str = "bayes",
    num_images: str | None = None,
    seed: int = 369,
    num_seeds: int | None = None,
    max_seconds: float | None = None,
    max_memory_gb: float | None = None,
    max_parameters: int | None = None,
    max_gmacs: float | None = None,
    max_latency_ms: float | None = None,
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
        num_seeds: initializations of every width; default: one for 'paper', and more of narrow
            widths for the other rules.
        max_seconds: time after which no further initializations are asked for.
        max_memory_gb: what the process may hold; with less, fewer networks and images at a time.
        max_parameters: of the network: the best width within the limits is chosen.
        max_gmacs: of one forward pass on one patch, in 1e9 multiply-accumulates.
        max_latency_ms: of one forward pass on one patch, measured here with ONNX Runtime on the
            CPU, ms.
        device: auto, cpu, cuda, cuda:1, ...
        debug: show tracebacks.
    """

    def run() -> None:
        import_monai()
        from monai_xtiny.bundle.summary import ladder_table
        from monai_xtiny.deploy.latency import check_latency, measure_latency
        from monai_xtiny.nnunet.configure import configure_data_set, plan_nnunet_data_set
        from monai_xtiny.selection.limits import checked_limits
        from monai_xtiny.selection.rules import check_method
        from monai_xtiny.system.devices import select_device

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("nnunet configure runs in one process: start it without torchrun")
        number = None if num_images in (None, "all") else parse_int("num_images", num_images)
        check_limits(num_seeds, max_seconds, max_memory_gb)
        check_method(method)
        limits = checked_limits(max_parameters, max_gmacs, max_latency_ms)
        check_latency(max_latency_ms)
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
            **limits,
            measure=partial(measure_latency, progress=print),
            device=device,
        )
        print(ladder_table(found.selection))
        print(found.summary)

    return Job(run, debug, resumes=True)


@as_typed
def import_model(
    checkpoint: str,
    bundle: str,
    plans: str | None = None,
    mirroring: bool = True,
    overwrite: bool = False,
    debug: bool = False,
) -> Job:
    """Make a MONAI bundle of a checkpoint of nnU-Net, which predicts what nnUNetv2_predict does.

    Nothing in the checkpoint is run.

    Args:
        checkpoint: checkpoint_final.pth of a plain U-Net, in its model folder or alone.
        bundle: the bundle to write, OUT/NAME_segmentation.
        plans: plans file of the training; default: that of the model folder, or in the checkpoint.
        mirroring: average over flips, as nnUNetv2_predict does; --nomirroring is its --disable_tta.
        overwrite: replace a bundle that is there.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.nnunet.importing import import_checkpoint

        made = import_checkpoint(
            checkpoint,
            bundle,
            plans=plans,
            mirroring=parse_flag("mirroring", mirroring),
            overwrite=parse_flag("overwrite", overwrite),
        )
        print(made)

    return Job(run, debug)


@as_typed
def export_model(bundle: str, output: str, debug: bool = False) -> Job:
    """Write a trained bundle as a model folder of nnU-Net, for nnUNetv2_predict.

    Args:
        bundle: the bundle; all of its folds are written.
        output: folder to make; nnUNetv2_predict -d finds
            nnUNet_results/DatasetNNN_NAME/nnUNetTrainer__nnUNetPlans__CONFIGURATION.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.nnunet.exporting import export_to_nnunet

        made = export_to_nnunet(bundle, output)
        folds = " ".join(map(str, made.folds))
        print(made.path)
        print(
            f"nnUNetv2_predict_from_modelfolder -i IMAGES -o OUT -m {str(made.path)!r} -f {folds} "
            "predicts with it"
        )

    return Job(run, debug)


# By the words that are typed: "import" cannot be the name of a function.
COMMANDS_OF_NNUNET = {"configure": configure, "import": import_model, "export": export_model}
