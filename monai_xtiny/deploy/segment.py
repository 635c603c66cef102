"""Segment images with a bundle: case by case, resumable, whatever single cases do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
from tqdm import tqdm

from monai_xtiny.bundle.folder import INFERENCE, Bundle
from monai_xtiny.data.dicom import series_image
from monai_xtiny.deploy.engines import Clock, Engine, mirror_axes, open_engine
from monai_xtiny.deploy.results import (
    ResultFiles,
    draw_labels,
    result_files,
    scratch_array,
    without_shared,
    write_labels,
    write_probabilities,
)
from monai_xtiny.deploy.sources import SourceJournal, Sources
from monai_xtiny.deploy.targets import Target, find_targets
from monai_xtiny.system.errors import innermost, plain_words
from monai_xtiny.system.files import digest_file, read_json, write_json

if TYPE_CHECKING:
    from monai_xtiny.deploy.dicom_seg import Labeler

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

# What made the labels of a folder.
RECORD = "segment.json"
_FORMAT_VERSION = 1
_SERIES = "series-as-volume.nii"


@dataclass
class Segmented:
    """What became of the cases.

    Args:
        num_done: segmented now.
        num_kept: that were done before.
        problems: one line for each that could not be segmented.
        seconds: wall time by what it was spent on.
        engine: that gave the logits, ``onnx`` or ``torch``.
    """

    num_done: int = 0
    num_kept: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    engine: str = ""

    @property
    def summary(self) -> str:
        """In a line."""
        spent = ", ".join(f"{part} {time:.1f} s" for part, time in self.seconds.items())
        kept = f", {self.num_kept} done before" if self.num_kept else ""
        failed = f", {len(self.problems)} not" if self.problems else ""
        return f"{self.num_done} segmented{kept}{failed}" + (f" ({spent})" if spent else "")


def segment_images(
    bundle: Bundle,
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    probabilities: bool = False,
    overlay: bool = False,
    dicom_seg: bool = False,
    tta: bool = False,
    engine: str = "auto",
    device: str | None = None,
    untrained: bool = False,
    before_run: Callable[[Bundle], None] = lambda bundle: None,
    say: Callable[[str], None] = print,
) -> Segmented:
    """Write a label file for each image, and go on after those that cannot be read.

    A case whose results are there, made from its files as they are, is passed over: an interrupted
    run goes on where it was. Each file is written whole.

    Args:
        bundle: a trained one.
        images: a file, a folder with or without folders in it, a glob; NIfTI, PNG, JPG, TIFF or
            BMP as the bundle reads them, and folders of DICOM series.
        output: folder of the results, which keeps the structure of folders.
        probabilities: write those of the classes too.
        overlay: draw each case.
        dicom_seg: write a DICOM Segmentation of each DICOM series, too.
        tta: average the logits over flips, along the axes that training mirrored.
        engine: ``onnx``, ``torch`` or ``auto``, as :func:`open_engine` takes it.
        device: to compute on; default: that of the engine.
        untrained: segment with a network at its initialization, whose labels mean nothing.
        before_run: called before anything in the bundle's configs and scripts is run, which the
            engine ``onnx`` does not do.
        say: is told what is noteworthy.

    Returns:
        What became of the cases.

    Raises:
        BlockingIOError: another process writes to the folder.
        FileExistsError: the folder holds something else, or results of other weights or settings.
        FileNotFoundError: there are no images, or no ONNX file that was asked for.
        ImportError: ``dicom_seg`` was asked for, and highdicom is not installed.
        ValueError: masks lie among the images, the bundle was not trained, or cannot mirror; or
            ``dicom_seg`` was asked for, and there is no DICOM series.
    """
    axes = mirror_axes(bundle) if tta else ()
    if dicom_seg:
        from monai_xtiny.deploy.dicom_seg import check_highdicom  # takes long to import

        check_highdicom()
    folder = Path(os.path.realpath(output))
    check_result_folder(folder, bundle)
    found = find_targets(
        images, reads=bundle.kind, in_channels=bundle.plan.in_channels, without=folder
    )
    if dicom_seg and not any(case.kind == "dicom" for case in found.cases):
        raise ValueError(
            f"there is no DICOM series in {str(images)!r}, and --dicom_seg is for them alone: "
            "leave it out"
        )
    opened = open_engine(
        bundle, engine, mirror_axes=axes, device=device, before_run=before_run, say=say
    )
    if not opened.is_trained and not untrained:
        raise ValueError(
            f"{str(bundle.root)!r} was never trained, so that its labels mean nothing: train it, "
            "or give --untrained to segment all the same"
        )
    to_write = {
        case: result_files(
            case,
            folder,
            len(bundle.label_names),
            probabilities=probabilities,
            overlay=overlay,
            dicom_seg=dicom_seg,
        )
        for case in found.cases
    }
    to_write, shared = without_shared(to_write)
    with _held(folder):
        _check_record(folder, bundle, opened, tta=tta)
        journal = SourceJournal(folder)
        labeler = _labeler(bundle, opened) if dicom_seg else None
        done = Segmented(
            problems=[*found.problems, *shared], seconds=opened.clock.seconds, engine=opened.name
        )
        for case in tqdm(to_write, desc="segmenting", unit="image", disable=None, leave=False):
            _add_case(done, case, to_write[case], opened, bundle, labeler, journal)
    return done


def _labeler(bundle: Bundle, engine: Engine) -> Labeler:
    """What a DICOM Segmentation says of what made it."""
    from monai_xtiny.deploy.dicom_seg import Labeler

    return Labeler.of(bundle, engine.weights_sha256)


def _add_case(
    done: Segmented,
    case: Target,
    files: ResultFiles,
    engine: Engine,
    bundle: Bundle,
    labeler: Labeler | None,
    journal: SourceJournal,
) -> None:
    """Segment a case unless it is done, and note what became of it."""
    try:
        sources = Sources.of(case.files)
        if journal.is_done(case.name, sources, files):
            done.num_kept += 1
            return
        _segment_case(case, files, engine, bundle, labeler)
        journal.add(case.name, sources, files)
    except Exception as error:
        if _cannot_write(error, files):
            raise
        done.problems.append(describe_problem(case, error))
    else:
        done.num_done += 1


def _segment_case(
    case: Target, files: ResultFiles, engine: Engine, bundle: Bundle, labeler: Labeler | None
) -> None:
    """Write the results of a case, the labels last."""
    files.labels.parent.mkdir(parents=True, exist_ok=True)
    with readable_files(case, engine.clock) as sources:
        scored = engine(sources)
        num_classes = len(bundle.label_names)
        if files.probabilities:
            with scratch_array(files.labels.parent, (num_classes, *scored.shape)) as shares:
                labels = draw_labels(scored, num_classes, shares)
                with engine.clock.spent_on("write"):
                    write_probabilities(shares, sources[0], files.probabilities)
        else:
            labels = draw_labels(scored, num_classes)
        with engine.clock.spent_on("write"):
            if files.overlay is not None:
                from monai_xtiny.deploy.overlays import draw_overlay  # matplotlib takes long

                draw_overlay(sources[0], labels, bundle.label_names, case.name, files.overlay)
            if files.dicom_seg is not None and labeler is not None:
                from monai_xtiny.deploy.dicom_seg import write_dicom_seg

                write_dicom_seg(labels, case.files[0], labeler, files.dicom_seg)
            write_labels(labels, sources[0], files.labels)


@contextmanager
def readable_files(case: Target, clock: Clock | None = None) -> Iterator[tuple[str, ...]]:
    """The files of a case; of a DICOM series, as a NIfTI file that is gone in the end."""
    if case.kind != "dicom":
        yield case.files
        return
    with tempfile.TemporaryDirectory() as hidden:
        volume = Path(hidden) / _SERIES
        with (clock or Clock()).spent_on("read"):
            nibabel.save(series_image(case.files[0]), volume)
        yield (str(volume),)


def _cannot_write(error: Exception, files: ResultFiles) -> bool:
    """Whether results cannot be written, those of other cases neither: a full disk for example."""
    named = error.filename if isinstance(error, OSError) else None
    if named is None:
        return False
    path, folder = Path(os.fsdecode(named)), files.labels.parent
    return path in (folder, *folder.parents) or path in files.all


def describe_problem(case: Target, error: Exception) -> str:
    """What is wrong with a case, in a line that names its file."""
    cause: BaseException = innermost(error)
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = " ".join(plain_words(cause).split()) or type(cause).__name__
    if not isinstance(cause, (ValueError, OSError)):
        text = f"{type(cause).__name__}: {text}"
    file = case.files[0]
    if case.kind == "dicom":  # not the file that it was read by way of
        text = re.sub(f"'[^']*{_SERIES}'", lambda _: repr(file), text)
    return text if os.path.basename(file) in text else f"{file!r}: {text}"


def check_result_folder(
    folder: Path, bundle: Bundle, record: str = RECORD, command: str = "segment"
) -> None:
    """Refuse a folder that holds anything else than results, before any work.

    Args:
        folder: of the results, a path free of links; it need not exist.
        bundle: that makes them.
        record: file that is among results.
        command: that writes them.

    Raises:
        FileExistsError: it is a file, lies in the bundle, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is a file: give another --output")
    if bundle.root in (folder, *folder.parents):
        raise FileExistsError(f"{str(folder)!r} lies in the bundle: give another --output")
    if folder.is_dir() and not (folder / record).is_file():
        kept = next((item.name for item in folder.iterdir() if item.name[0] != "."), None)
        if kept is not None:
            raise FileExistsError(
                f"{str(folder)!r} holds {kept!r}, which {command} has not written: give a new "
                "folder as --output"
            )


def _check_record(folder: Path, bundle: Bundle, engine: Engine, *, tta: bool) -> None:
    """Refuse results of other weights or settings, and write down those of this run."""
    record = {
        "format_version": _FORMAT_VERSION,
        "bundle": bundle.name,
        "labels": {str(index): name for index, name in enumerate(bundle.label_names)},
        "weights_sha256": engine.weights_sha256,
        "inference_sha256": digest_file(bundle.path(INFERENCE)),
        "tta": tta,
    }
    path = folder / RECORD
    if path.is_file():
        former = read_json(path)
        changed = [name for name in record if former.get(name) != record[name]]
        if changed:
            raise FileExistsError(
                f"{str(folder)!r} holds labels of another run ({', '.join(changed)} in {RECORD} "
                "differ): give another --output, or remove it"
            )
        return
    write_json(path, record)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder, which is made, and clear what kills left."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise BlockingIOError(
                        f"another process writes to {str(folder)!r}: wait for it, or end it"
                    ) from error
        for left in folder.rglob(".*.tmp.*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        if handle is not None:
            os.close(handle)
