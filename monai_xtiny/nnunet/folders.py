"""Where nnU-Net keeps a data set: the folders that its environment variables name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RAW, PREPROCESSED = "nnUNet_raw", "nnUNet_preprocessed"


@dataclass(frozen=True)
class NnunetDataSet:
    """A data set of nnU-Net v2 that has been planned.

    Args:
        name: ``Dataset004_Hippocampus`` for example.
        preprocessed: its folder in ``nnUNet_preprocessed``, with the plans.
        raw: its folder in ``nnUNet_raw``, if it is there.
    """

    name: str
    preprocessed: Path
    raw: Path | None = None

    @property
    def number(self) -> int:
        """The ID, as nnU-Net's commands take it."""
        return int(self.name[7:10])

    def plans_path(self, identifier: str) -> Path:
        """Path of a plans file.

        Raises:
            ValueError: the identifier is a path.
            FileNotFoundError: there is no such plans file.
        """
        if not identifier or Path(identifier).name != identifier:
            raise ValueError(
                f"--plans_identifier is {identifier!r}: give the name of a plans file without its "
                "folder and .json"
            )
        path = self.preprocessed / f"{identifier}.json"
        if path.is_file():
            return path
        if any(self.preprocessed.glob("*.pkl")):
            raise ValueError(
                f"{str(self.preprocessed)!r} holds plans of nnU-Net v1, which are not supported: "
                f"{self._plan_command()}"
            )
        raise FileNotFoundError(f"no such file: {str(path)!r}: {self._plan_command()}")

    def _plan_command(self) -> str:
        """What to do without plans."""
        return f"plan with nnU-Net v2 (nnUNetv2_plan_and_preprocess -d {self.number})"


def find_data_set(
    dataset_id: str | int, environment: Mapping[str, str] | None = None
) -> NnunetDataSet:
    """Find a data set by its ID, or its name, as nnU-Net's commands do.

    Args:
        dataset_id: ``4``, ``"004"`` or ``"Dataset004_Hippocampus"``.
        environment: with ``nnUNet_preprocessed``, and ``nnUNet_raw`` where images must be
            preprocessed; default: ``os.environ``.

    Raises:
        ValueError: a variable is not set, the ID is none, or two data sets have it.
        FileNotFoundError: a folder or the data set is not there.
    """
    known = os.environ if environment is None else environment
    pattern = _name_pattern(str(dataset_id))
    folder = _folder(PREPROCESSED, known)
    if folder is None:
        raise ValueError(
            f"the environment variable {PREPROCESSED} is not set: set it to nnU-Net's folder of "
            "preprocessed data"
        )
    raw_folder = _folder(RAW, known)
    found, raw = _matching(folder, pattern), _matching(raw_folder, pattern)
    names = sorted(set(found) | set(raw))
    if len(names) > 1:
        raise ValueError(
            f"the data sets {', '.join(names)} have the same ID {dataset_id}: rename one"
        )
    if not found and raw:
        raise FileNotFoundError(
            f"{raw[0]} is in {RAW} and not in {PREPROCESSED}: plan it "
            f"(nnUNetv2_plan_and_preprocess -d {int(raw[0][7:10])})"
        )
    if not found:
        others = ", ".join(_matching(folder, r"Dataset\d{3}_.+")[:10]) or "no data set"
        raise FileNotFoundError(
            f"no data set {dataset_id} in {PREPROCESSED} ({str(folder)!r} has {others}): check "
            "--dataset_id"
        )
    name = found[0]
    return NnunetDataSet(
        name, folder / name, raw_folder / name if raw_folder is not None and raw else None
    )


def _name_pattern(dataset_id: str) -> str:
    """What the name of the data set looks like."""
    if re.fullmatch(r"Dataset\d{3}_.+", dataset_id) and Path(dataset_id).name == dataset_id:
        return re.escape(dataset_id)
    if not re.fullmatch(r"\d{1,3}", dataset_id):
        raise ValueError(
            f"--dataset_id is {dataset_id!r}: give a number from 0 to 999, or a name such as "
            "Dataset004_Hippocampus"
        )
    return rf"Dataset{int(dataset_id):03d}_.+"


def _folder(variable: str, environment: Mapping[str, str]) -> Path | None:
    """The folder that a variable names; ``None`` where it is not set."""
    value = environment.get(variable)
    if not value:
        return None
    if not Path(value).is_dir():
        raise FileNotFoundError(
            f"the environment variable {variable} is {value!r}, and there is no such folder: "
            "make it, or set the variable right"
        )
    return Path(value)


def _matching(folder: Path | None, pattern: str) -> list[str]:
    """Names of the data sets in a folder that match."""
    if folder is None:
        return []
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and re.fullmatch(pattern, path.name)
    )
