"""What a search has finished, written down unit by unit, so that it can be killed and go on.

One file per process, ``PATH`` for the first and ``PATH.1``, ``PATH.2``, ... for the other ranks;
all are read. The first line says what was searched, each further line is one finished unit. A last
line that a kill cut off is left out.
"""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from monai_xtiny.system.config_text import path_text
from monai_xtiny.system.files import append_line, cut_half_line, read_lines

Unit = tuple[int, int]


@dataclass(frozen=True)
class UnitScore:
    """What one initialized network scored.

    Args:
        sensitivity: one value per image; empty where it was not measured.
        alignment: likewise.
    """

    sensitivity: tuple[float, ...]
    alignment: tuple[float, ...] = ()


class Journal:
    """Scores of finished units, by (width, seed), in a file.

    Args:
        path: of the first rank's file; its folder is made.
        subject: what the scores depend on (images, plan, versions, device). A journal of another
            subject is refused.
        rank: of this process.

    Raises:
        ValueError: the journal that is there is of another search, or no journal.
    """

    def __init__(
        self, path: str | os.PathLike[str], subject: Mapping[str, str], *, rank: int = 0
    ) -> None:
        self.path = Path(path)
        self.subject = dict(subject)
        self._own = self.path if rank == 0 else Path(f"{self.path}.{rank}")
        self._made: list[Path] = []
        self._writing = threading.Lock()
        self.scores: dict[Unit, UnitScore] = {}
        for file in _files(self.path):
            self._read(file)

    def add(self, unit: Unit, score: UnitScore) -> None:
        """Write a finished unit down, through to the disk; from any thread."""
        line = {
            "max_features": unit[0],
            "seed": unit[1],
            "sensitivity": score.sensitivity,
            "alignment": score.alignment,
        }
        with self._writing:
            self.scores[unit] = score
            missing = [folder for folder in self._own.parents if not folder.exists()]
            self._own.parent.mkdir(parents=True, exist_ok=True)
            self._made += missing
            if not self._own.is_file() or self._own.stat().st_size == 0:
                append_line(self._own, self.subject)
            append_line(self._own, line)

    def discard(self) -> None:
        """Delete the files of all ranks and the folders that were made for them."""
        remove_journal(self.path)
        for folder in self._made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _read(self, path: Path) -> None:
        """Take up the finished units of one file; cut off what a kill left half written."""
        found, scores = read_units(path)
        if path == self._own:
            cut_half_line(path)
        if not found:
            return
        for name, value in self.subject.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{str(path)!r} is the journal of an interrupted search that differs in its "
                    f"{name} ({found.get(name)}, now {value}): finish that one as it was, or "
                    "delete the file"
                )
        self.scores.update(scores)


def read_units(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[Unit, UnitScore]]:
    """What was searched, and the finished units, of one file; a half written line is left out.

    Raises:
        ValueError: it is no journal.
    """
    lines = read_lines(path)
    if not lines:
        return {}, {}
    try:
        found, *units = lines
        # Two processes that began together have both written what they search.
        scores = {
            (int(unit["max_features"]), int(unit["seed"])): UnitScore(
                tuple(map(float, unit["sensitivity"])), tuple(map(float, unit["alignment"]))
            )
            for unit in units
            if unit != found
        }
        return dict(found), scores
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{os.fspath(path)!r} is no journal of a search: delete it") from error


def journal_path(bundle_dir: str | os.PathLike[str]) -> Path:
    """Where the journal of a search is, until its bundle is written: hidden, beside the bundle.

    >>> journal_path("out/x_segmentation").name
    '.x_segmentation.search.jsonl'
    """
    path = Path(os.path.realpath(path_text(bundle_dir, "bundle")))
    return path.with_name(f".{path.name}.search.jsonl")


def remove_journal(path: str | os.PathLike[str]) -> None:
    """Delete the files of all ranks, once what they led to is written."""
    for file in _files(Path(path)):
        file.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    """The files of all ranks that exist."""
    others = glob.glob(f"{glob.escape(str(path))}.*")
    ranks = sorted(Path(name) for name in others if name.rsplit(".", 1)[1].isdigit())
    return [file for file in (path, *ranks) if file.is_file()]
