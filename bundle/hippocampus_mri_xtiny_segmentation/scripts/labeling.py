# Written by monai_xtiny 0.2.0, which need not be installed.
"""Label a folder case by case; labels lie where their images lie."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import nibabel
import numpy as np
from monai.data import NibabelReader, NibabelWriter, list_data_collate
from monai.engines import SupervisedEvaluator
from torch.utils.data import Dataset

from .cases import ImageCases
from .files import PathLike, written_whole
from .geometry import on_grid_of


class CaseByCase:
    """Label each case apart: one that cannot be labeled is named at the end, after the others.

    It is the ``iteration_update`` of an evaluator whose loader has the dataset of :meth:`guard` and
    the ``collate_fn`` of :meth:`collate`.

    Args:
        images: the cases of the folder.
        in_channels: channels of an image.
    """

    def __init__(self, images: ImageCases, in_channels: int) -> None:
        self.num_labeled = 0
        self.problems = [
            f"{case}: {len(images.cases[case])} files, not 1 or one for each of {in_channels} "
            "channels (CASE_0000, CASE_0001, ...): add what is missing"
            for case in images.unclear
        ]

    def guard(self, dataset: Dataset) -> Dataset:
        """A dataset whose items say what is wrong, where they would raise."""
        return _Guarded(dataset)

    @staticmethod
    def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of the items that could be read, and the problems of the others."""
        problems = [item["problem"] for item in items if "problem" in item]
        read = [item for item in items if "problem" not in item]
        try:
            batch = cast(dict[str, Any], list_data_collate(read)) if read else {}
        except RuntimeError:
            batch = {}
            problems += [
                f"{item['image'].meta['filename_or_obj']}: its batch holds images of other sizes: "
                "pass --batch_size 1"
                for item in read
            ]
        return {"problems": problems, "batch": batch} if problems else batch

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        """One iteration of the evaluator, post-processing included."""
        if "problems" in batch:
            self.problems += batch["problems"]
            batch = batch["batch"]
            engine.state.batch = batch
        if not batch:
            return {}
        try:
            output = engine._iteration(engine, batch)
        except Exception as error:
            files = batch["image"].meta["filename_or_obj"]
            for file in [files] if isinstance(files, str) else files:
                self.problems.append(_problem_of(file, error))
            return {}
        self.num_labeled += len(batch["image"])
        return output

    def finish(self) -> None:
        """Name the cases that have no label, at the end of all output.

        Raises:
            SystemExit: there are some; MONAI would wrap another error into its own.
        """
        if self.problems:
            count = len(self.problems)
            lines = "\n".join(self.problems)
            raise SystemExit(f"{count} of {count + self.num_labeled} not labeled:\n{lines}")


class ChannelReader(NibabelReader):
    """MONAI's reader of NIfTI files, for channels that lie a fraction of a voxel apart.

    MONAI refuses affines that differ by 1e-8. The gate has compared them before; here the first
    file's grid is that of all.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Read a file, or one per channel; channels take the header of the first."""
        found = super().read(data, **kwargs)
        if not isinstance(found, list):
            return found
        first = found[0]
        return [first, *(_moved(image, first) for image in found[1:])]


class LabelWriter(NibabelWriter):
    """MONAI's writer of NIfTI files, for labels that lie where their images lie.

    The label file gets its image's header: sform and qform with their codes, spacing and units.
    MONAI writes one affine for both, and viewers differ in which they take. The file is written
    whole or not at all.
    """

    def set_metadata(
        self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any
    ) -> None:
        """Take the metadata of the image, whose file has the header."""
        super().set_metadata(meta_dict, resample, **options)
        self.image_file = str((meta_dict or {}).get("filename_or_obj", ""))

    def write(self, filename: PathLike, verbose: bool = False, **options: Any) -> None:
        """Write the label.

        Raises:
            ValueError: it is not on the grid of its image.
        """
        if not self.image_file.lower().endswith((".nii", ".nii.gz")):
            super().write(filename, verbose, **options)
            return
        image: Any = nibabel.load(self.image_file)
        label = np.asarray(self.data_obj).astype(self.output_dtype)
        try:
            written = on_grid_of(image, label)
        except ValueError as error:
            raise ValueError(f"{self.image_file!r}: {error}") from error
        with written_whole(filename, clears=False) as part:  # thousands may lie there
            nibabel.save(written, part)


class _Guarded(Dataset):
    """A dataset whose items say what is wrong, where they would raise."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            data = getattr(self.dataset, "data", None)
            files = data[index]["image"] if data else f"image {index}"
            return {"problem": _problem_of(files, error)}


def _problem_of(files: Any, error: BaseException) -> str:
    """What is wrong with a case, in a line that names its file."""
    while error.__cause__ is not None:
        error = error.__cause__
    file = str(files if isinstance(files, (str, os.PathLike)) else files[0])
    # SaveImage puts a traceback into its message, the error last.
    text = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return text if os.path.basename(file) in text else f"{file!r}: {text}"


def _moved(image: Any, first: Any) -> Any:
    """An image on the grid of another, its voxels still unread."""
    if np.array_equal(image.affine, first.affine):
        return image
    return type(image)(image.dataobj, first.affine, image.header)
