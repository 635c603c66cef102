"""Which files the labels of a folder were made from: a journal beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monai_xtiny.deploy.results import ResultFiles
from monai_xtiny.system.files import cut_half_line, names_file, read_lines

JOURNAL = "segment_cases.jsonl"


@dataclass(frozen=True)
class Sources:
    """The files of a case, as digests that tell no name.

    Args:
        paths: of where they are, or the folders of DICOM series; links are followed.
        state: of their sizes and of when they were last changed.
    """

    paths: str
    state: str

    @classmethod
    def of(cls, files: Sequence[str]) -> Sources:
        """Those of files, and of folders of DICOM series.

        Raises:
            OSError: one is gone.
        """
        return cls(
            _digest_of([os.path.realpath(file) for file in files]),
            _digest_of([_state(file) for file in files]),
        )


class SourceJournal:
    """What the results of a folder were made from, written down case by case.

    Args:
        folder: of the results, which nobody else writes to.

    Raises:
        ValueError: the journal is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        cut_half_line(self._path)
        self._known: dict[str, tuple[Sources, frozenset[str]]] = {}
        for line in read_lines(self._path):
            self._note(
                str(line.get("case")),
                Sources(str(line.get("paths")), str(line.get("state"))),
                map(str, line.get("results", ())),
            )

    def is_done(self, name: str, sources: Sources, files: ResultFiles) -> bool:
        """Whether the results of a case are there, and made from these files as they are.

        Files that were moved or copied, with the time of their last change, are the same.

        Raises:
            FileExistsError: the labels are those of another image of that name.
        """
        if name not in self._known or not files.labels.is_file():
            return False
        known, results = self._known[name]
        if known.state == sources.state:
            return all(path.is_file() and path.name in results for path in files.all)
        if known.paths != sources.paths:
            raise FileExistsError(
                f"{str(files.labels)!r} has the labels of another image of this name: give "
                "another --output"
            )
        return False

    def add(self, name: str, sources: Sources, files: ResultFiles) -> None:
        """Write down what the results of a case were made from, once they are there."""
        results = [path.name for path in files.all]
        line = json.dumps({"case": name, **asdict(sources), "results": results})
        with names_file(self._path), open(self._path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        self._note(name, sources, results)

    def _note(self, name: str, sources: Sources, results: Iterable[str]) -> None:
        """Add results of the same files to former ones; those of former files count no more."""
        former, kept = self._known.get(name, (sources, frozenset()))
        is_same = former.state == sources.state
        self._known[name] = sources, frozenset(results) | (kept if is_same else frozenset())


def _state(file: str) -> Any:
    """Size and time of the last change of a file, or of those in a folder, with their names."""
    if os.path.isdir(file):
        return sorted((entry.name, _state(entry.path)) for entry in os.scandir(file))
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
