"""Which files the labels of a folder were made from: a journal beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_xtiny.deploy.results import ResultFiles
from monai_xtiny.system.files import cut_half_line, digest_files, names_file, read_lines

JOURNAL = "segment_cases.jsonl"


@dataclass(frozen=True)
class Sources:
    """The files of a case, as digests that tell no name.

    Args:
        files: where they are, or the folders of DICOM series.
        paths: of these; links are followed.
        state: of their sizes and of when they were last changed.
    """

    files: tuple[str, ...]
    paths: str
    state: str

    @classmethod
    def of(cls, files: Sequence[str]) -> Sources:
        """Those of files, and of folders of DICOM series.

        Raises:
            OSError: one is gone.
        """
        return cls(
            tuple(files),
            _digest_of([os.path.realpath(file) for file in files]),
            _digest_of([_state(file) for file in files]),
        )

    def digest_contents(self) -> str:
        """Of all their bytes."""
        return digest_files([path for file in self.files for path in _files_in(file)])


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
        self._known: dict[str, _Made] = {}
        for line in read_lines(self._path):
            made = _Made(
                str(line.get("paths")),
                str(line.get("state")),
                str(line.get("contents")),
                frozenset(map(str, line.get("results", ()))),
            )
            self._note(str(line.get("case")), made)

    def is_done(self, name: str, sources: Sources, files: ResultFiles) -> bool:
        """Whether the results of a case are there, and made from these files as they are.

        Files that were moved or copied, with the time of their last change, are the same if every
        byte is: those of other patients may have the size and the time in common.

        Raises:
            FileExistsError: the labels are those of another image of that name.
        """
        if name not in self._known or not files.labels.is_file():
            return False
        known = self._known[name]
        is_moved = known.paths != sources.paths
        is_same = known.state == sources.state and (
            not is_moved or known.contents == sources.digest_contents()
        )
        if is_same:
            return all(path.is_file() and path.name in known.results for path in files.all)
        if is_moved:
            raise FileExistsError(
                f"{str(files.labels)!r} has the labels of another image of this name: give "
                "another --output"
            )
        return False

    def add(self, name: str, sources: Sources, files: ResultFiles) -> None:
        """Write down what the results of a case were made from, once they are there."""
        made = _Made(
            sources.paths,
            sources.state,
            sources.digest_contents(),
            frozenset(path.name for path in files.all),
        )
        line = json.dumps({"case": name, **vars(made), "results": sorted(made.results)})
        with names_file(self._path), open(self._path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        self._note(name, made)

    def _note(self, name: str, made: _Made) -> None:
        """Add results of the same files to former ones; those of former files count no more."""
        former = self._known.get(name)
        if former is not None and former.state == made.state:
            made = replace(made, results=made.results | former.results)
        self._known[name] = made


@dataclass(frozen=True)
class _Made:
    """Names of results, and digests of what they were made from."""

    paths: str
    state: str
    contents: str
    results: frozenset[str]


def _files_in(file: str) -> list[str]:
    """A file, or those in a folder and in those below, in order."""
    if not os.path.isdir(file):
        return [file]
    return [path for entry in sorted(os.listdir(file)) for path in _files_in(f"{file}/{entry}")]


def _state(file: str) -> Any:
    """Size and time of the last change of a file, or of those in a folder, with their names."""
    if os.path.isdir(file):
        return sorted((entry.name, _state(entry.path)) for entry in os.scandir(file))
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
