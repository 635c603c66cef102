"""The race that a search ends with goes on after a kill: what is kept of it beside the bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from monai_xtiny.bundle.folder import SEARCH
from monai_xtiny.system.config_text import path_text
from monai_xtiny.system.files import read_json, write_json


@dataclass(frozen=True)
class RaceFolder:
    """A hidden folder beside a bundle: what was asked for, and the trainings that are finished.

    It is there from before the search writes the bundle until the race is in it.

    Args:
        bundle_root: of the bundle, which need not exist.
        asked: the options of the command, as JSON holds them.
    """

    bundle_root: Path
    asked: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The folder.

        >>> RaceFolder(Path("out/x_segmentation"), {}).path.name
        '.x_segmentation.race'
        """
        root = Path(os.path.realpath(path_text(self.bundle_root, "bundle")))
        return root.with_name(f".{root.name}.race")

    @property
    def trainings(self) -> Path:
        """The work folder of the race."""
        return self.path / "trainings"

    def is_searched(self) -> bool:
        """Whether the same command has written its bundle, and was stopped before it ended."""
        begun = self._begun()
        return (
            begun is not None
            and begun["asked"] == self.asked
            and self._digest() not in (None, begun["former"])
        )

    def begin(self) -> None:
        """Write down what is asked for, before a bundle of it is written.

        Trainings of a former command go, unless it asked for the same.
        """
        begun = self._begun()
        if begun is None or begun["asked"] != self.asked:
            self.remove()
            self.path.mkdir(parents=True)
        write_json(self._file, {"asked": self.asked, "former": self._digest()})

    def remove(self) -> None:
        """The race is in the bundle."""
        hidden = self.path.with_name(f"{self.path.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)  # a kill may have left it
        if self.path.is_dir():
            self.path.rename(hidden)  # at once: half a folder would be that of an unfinished race
            shutil.rmtree(hidden)

    def other_options(self) -> dict[str, Any]:
        """Options of which the command that began the race had other values, with these."""
        begun = self._begun()
        former = begun["asked"] if begun is not None else self.asked
        names = dict.fromkeys((*self.asked, *former))
        return {
            name: former.get(name) for name in names if former.get(name) != self.asked.get(name)
        }

    @property
    def _file(self) -> Path:
        return self.path / "search.json"

    def _begun(self) -> dict[str, Any] | None:
        """What a former command wrote down."""
        if not self._file.is_file():
            return None
        content = read_json(self._file)
        return {"asked": content.get("asked"), "former": content.get("former")}

    def _digest(self) -> str | None:
        """Of the choice that the bundle has; ``None`` without one."""
        search = self.bundle_root / SEARCH
        return sha256(search.read_bytes()).hexdigest() if search.is_file() else None
