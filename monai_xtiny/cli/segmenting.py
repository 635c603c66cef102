"""Images through a trained bundle: segment."""

from __future__ import annotations

import sys

from monai_xtiny.cli.bundles import refuse_foreign
from monai_xtiny.cli.job import Job, as_typed
from monai_xtiny.cli.options import parse_flag


@as_typed
def segment(
    bundle: str,
    images: str,
    output: str,
    probabilities: bool = False,
    overlay: bool = False,
    dicom_seg: bool = False,
    tta: bool = False,
    engine: str = "auto",
    device: str | None = None,
    untrained: bool = False,
    trust: bool = False,
    debug: bool = False,
) -> Job:
    """Segment images with a trained bundle; the same command goes on from what it has finished.

    With --engine torch this runs the bundle's configs and scripts: those that monai_xtiny writes,
    or any with --trust.

    Args:
        bundle: the bundle.
        images: a file, a folder with or without folders in it, or a glob: NIfTI, PNG, JPG, TIFF,
            BMP, and folders of DICOM series.
        output: folder of the results: one label file per image, in the same folders.
        probabilities: write those of the classes: float32 NIfTI, or a PNG of 16 bits per class.
        overlay: draw each case in color, with a legend.
        dicom_seg: write CASE.seg.dcm too, a DICOM Segmentation, of each DICOM series.
        tta: average over flips along the axes that training mirrored: better, and 4 times as long
            in 2D.
        engine: onnx (models/model.onnx, which deploy writes: starts at once) or torch; default:
            onnx where its file is of the present weights.
        device: cpu, cuda, cuda:1, ...; default: onnx on the cpu, torch as the bundle says.
        untrained: segment with a network that was never trained, all the same.
        trust: run a bundle whose code differs from what monai_xtiny writes: read it first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.folder import Bundle
        from monai_xtiny.deploy.segment import segment_images

        is_trusted = parse_flag("trust", trust)
        done = segment_images(
            Bundle.open(bundle),
            images,
            output,
            probabilities=parse_flag("probabilities", probabilities),
            overlay=parse_flag("overlay", overlay),
            dicom_seg=parse_flag("dicom_seg", dicom_seg),
            tta=parse_flag("tta", tta),
            engine=engine,
            device=device,
            untrained=parse_flag("untrained", untrained),
            before_run=lambda opened: refuse_foreign(opened, is_trusted),
            say=lambda text: print(text, flush=True),
        )
        print(done.summary, flush=True)
        if done.engine == "torch":
            print(f"this ran the configs and scripts of {bundle!r}", flush=True)
        for problem in done.problems:
            print(problem, file=sys.stderr)
        if done.problems:
            raise SystemExit(1)

    return Job(run, debug, resumes=True)
