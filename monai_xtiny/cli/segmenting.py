"""Images through a trained bundle: segment, label-next."""

from __future__ import annotations

import sys

from monai_xtiny.cli.bundles import refuse_foreign
from monai_xtiny.cli.job import Job, as_typed
from monai_xtiny.cli.options import parse_flag, parse_int


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


@as_typed
def label_next(
    bundle: str,
    images: str,
    num: int = 10,
    output: str = "label_next",
    labeled: str | None = None,
    server: str | None = None,
    device: str | None = None,
    untrained: bool = False,
    trust: bool = False,
    debug: bool = False,
) -> Job:
    """Say which unlabeled images to label next: those with uncertain labels, no two alike.

    This runs the bundle's configs and scripts: those that monai_xtiny writes, or any with --trust.
    Images with a label are left out: those with a file of their name in labelsTr beside imagesTr,
    and those that the bundle was trained on.

    Args:
        bundle: the bundle, best with several folds (models/model_fold1.pt, ...).
        images: a file, a folder with or without folders in it, or a glob: NIfTI, PNG, JPG, TIFF,
            BMP, and folders of DICOM series.
        num: of images to label next.
        output: folder of label_next.json, with all images in order, and label_next.png.
        labeled: folder of labels; images with a file of their name there are left out.
        server: address of a MONAI Label server, http://127.0.0.1:8000 for example: its images get
            the scores, so that its strategy epistemic picks the same.
        device: cpu, cuda, cuda:1, ...; default: as the bundle says.
        untrained: rank with a network that was never trained, all the same.
        trust: run a bundle whose code differs from what monai_xtiny writes: read it first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.folder import Bundle
        from monai_xtiny.deploy.label_server import LabelServer
        from monai_xtiny.deploy.ranking import rank_images

        is_trusted = parse_flag("trust", trust)
        label_server = None if server is None else LabelServer(server)
        opened = Bundle.open(bundle)
        ranking = rank_images(
            opened,
            images,
            output,
            num=parse_int("num", num),
            labeled=labeled,
            device=device,
            untrained=parse_flag("untrained", untrained),
            before_run=lambda found: refuse_foreign(found, is_trusted),
            say=lambda text: print(text, flush=True),
        )
        if ranking.cases:
            print(ranking.table)
        print(ranking.summary, flush=True)
        if label_server is not None:
            print(label_server.send(ranking, opened), flush=True)
        for problem in ranking.problems:
            print(problem, file=sys.stderr)
        if ranking.problems:
            raise SystemExit(1)

    return Job(run, debug)
