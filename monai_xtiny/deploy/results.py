"""What ``segment`` writes of a case: labels, probabilities, an overlay; each file whole.

Axis order is that of the image's file: (x, y[, z]), for PNG (width, height).
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_xtiny.bundled.geometry import on_grid_of
from monai_xtiny.deploy.engines import ScoredImage
from monai_xtiny.deploy.segmenter import largest_logit
from monai_xtiny.deploy.targets import Target
from monai_xtiny.system.files import atomic_write, names_file

_WHITE = 65535


@dataclass(frozen=True)
class ResultFiles:
    """The files of a case.

    Args:
        labels: class indices, NIfTI or PNG.
        probabilities: a float32 NIfTI of all classes, (x, y, z, K), or for PNG one of 16 bits per
            class but the background, 65535 for 1; none unless asked for.
        overlay: PNG in color, or ``None``.
        dicom_seg: DICOM Segmentation, or ``None``.
    """

    labels: Path
    probabilities: tuple[Path, ...] = ()
    overlay: Path | None = None
    dicom_seg: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """All that are asked for, the labels last: where they are, the others are too."""
        extra = [path for path in (self.overlay, self.dicom_seg) if path is not None]
        return (*self.probabilities, *extra, self.labels)


def result_files(
    case: Target,
    output: Path,
    num_classes: int,
    *,
    probabilities: bool,
    overlay: bool,
    dicom_seg: bool = False,
) -> ResultFiles:
    """Where the results of a case go; a DICOM Segmentation is of a DICOM series alone."""
    place = output / case.name
    spread: tuple[Path, ...] = ()
    if probabilities and case.kind == "raster":
        spread = tuple(
            place.with_name(f"{place.name}_probability_{index}.png")
            for index in range(1, num_classes)
        )
    elif probabilities:
        spread = (place.with_name(f"{place.name}_probabilities.nii.gz"),)
    return ResultFiles(
        place.with_name(place.name + case.ending),
        spread,
        place.with_name(f"{place.name}_overlay.png") if overlay else None,
        place.with_name(f"{place.name}.seg.dcm") if dicom_seg and case.kind == "dicom" else None,
    )


def without_shared(
    files: Mapping[Target, ResultFiles],
) -> tuple[dict[Target, ResultFiles], list[str]]:
    """Leave out the cases of which one would write over a result of another.

    The label of ``a_probability_1.png`` is called as a probability of ``a.png``, for example.

    Args:
        files: where the results of each case go.

    Returns:
        Those of the other cases, and a line for each file that is of several.
    """
    owners: dict[str, list[Target]] = defaultdict(list)
    for case, found in files.items():
        for path in found.all:
            owners[str(path).casefold()].append(case)  # where case does not tell files apart
    shared = {path: cases for path, cases in owners.items() if len(cases) > 1}
    problems = [
        f"{', '.join(repr(case.files[0]) for case in cases)} would both have the result "
        f"{os.path.basename(path)!r}: rename or remove one"
        for path, cases in shared.items()
    ]
    left_out = {case for cases in shared.values() for case in cases}
    return {case: found for case, found in files.items() if case not in left_out}, problems


def draw_labels(
    scored: ScoredImage, num_classes: int, probabilities: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Labels of an image from its logits, slab by slab.

    Args:
        scored: the logits.
        num_classes: of the network.
        probabilities: (K, *spatial) to fill with their softmax; outside of the box that the network
            saw all is background.

    Returns:
        Class indices, (*spatial).
    """
    labels = np.zeros((1, *scored.shape), np.uint8)
    drawn = scored.placement.view(labels)[0]
    shares = None
    if probabilities is not None:
        probabilities[0] = 1
        probabilities[1:] = 0
        shares = scored.placement.view(probabilities)
    at = 0
    for slab in scored.slabs:
        if len(slab) != num_classes:
            raise ValueError(f"the network gives {len(slab)} classes, not {num_classes}")
        planes = slice(at, at + slab.shape[1])
        drawn[planes] = largest_logit(slab)
        if shares is not None:
            shares[:, planes] = _softmax(slab)
        at = planes.stop
    return labels[0]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities; background where all logits are exactly 0: the network did not see that."""
    unseen = ~logits.any(axis=0)
    shares = np.exp(logits - logits.max(axis=0))
    shares /= shares.sum(axis=0)
    shares[:, unseen] = 0
    shares[0, unseen] = 1
    return shares


@contextmanager
def scratch_array(folder: Path, shape: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """A float32 array in a file that is gone in the end: probabilities may not fit the memory."""
    # Where files that are still mapped keep a name, on NFS, the folder stays until the next run.
    with tempfile.TemporaryDirectory(
        prefix=".scratch.tmp.", dir=folder, ignore_cleanup_errors=True
    ) as hidden:
        path = Path(hidden) / "values"
        with names_file(folder), open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk would end the process later
                os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
            else:
                file.truncate(4 * math.prod(shape))
        yield np.memmap(path, np.float32, "r+", shape=tuple(shape))


def write_labels(labels: NDArray[np.uint8], source: str, path: Path) -> None:
    """Write labels on the grid of their image.

    Args:
        labels: class indices, (*spatial).
        source: the image, or its first channel.
        path: ``.nii.gz`` with the header of the image, or ``.png``.
    """
    if path.suffix == ".png":
        _write_png(labels, path)
    else:
        _write_nifti(labels, source, path)


def write_probabilities(
    probabilities: NDArray[np.float32], source: str, paths: Sequence[Path]
) -> None:
    """Write probabilities on the grid of their image.

    Args:
        probabilities: (K, *spatial).
        source: the image, or its first channel.
        paths: one NIfTI file, or one PNG per class but the background.
    """
    if paths[0].suffix == ".png":
        for channel, path in zip(probabilities[1:], paths, strict=True):
            _write_png(np.rint(channel * _WHITE).astype(np.uint16), path)
        return
    planar = probabilities[:, :, :, None] if probabilities.ndim == 3 else probabilities
    _write_nifti(np.moveaxis(planar, 0, -1), source, paths[0])


def _write_png(pixels: NDArray[Any], path: Path) -> None:
    """Write pixels of (width, height)."""
    with atomic_write(path, clears=False) as part:
        Image.fromarray(np.ascontiguousarray(pixels.T)).save(part)


def _write_nifti(voxels: NDArray[Any], source: str, path: Path) -> None:
    """Write voxels with the geometry of their image."""
    image = on_grid_of(nibabel.load(source), voxels)
    with atomic_write(path, clears=False) as part:
        nibabel.save(image, part)
