"""Pages of the book and the README: their blocks of commands, and running these."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from tests.conftest import write_dicom_series
from tests.processes import run_module

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```([\w{}]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN, RUN_BY = "*Not run by the tests: ", "*Run by "
PAGE_NOT_RUN = "*The commands of this page are not run by the tests: "
# Words that stand for what the reader has; the runs below have folders of these names.
PLACES = re.compile(r"^(DATA|IMAGES|LABELS|MASKS|DICOM|OUT|BUNDLE|B)(?=/|$)")
BUNDLE_TO_BE = re.compile(r"^(OUT/\w+_segmentation|BUNDLE)$")
# What makes a bundle, so that none may be there.
MAKING = ("search", "export", "configs/search.json")
# What is added to commands that would take minutes.
ONE_IMAGE, NO_WORKERS = ("--num_images", "1", "--num_seeds", "1"), ("--num_workers", "0")
QUICKLY = {
    "search": ONE_IMAGE,
    "score": ONE_IMAGE,
    "configs/search.json": ONE_IMAGE,
    "verify": ("--epochs", "1"),
    "deploy": ("--nobenchmark",),
    "configs/train.json": ("--epochs", "1", "--val_interval", "1", *NO_WORKERS),
    "configs/inference.json": NO_WORKERS,
    "['configs/train.json','configs/evaluate.json']": NO_WORKERS,
}
RACE_MINUTES = "0.01"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        page: from the root of the repository.
        kind: its language.
        text: what is in it.
        mark: the paragraph before it, or of the page, that says who runs it; else empty.
    """

    page: str
    kind: str
    text: str
    mark: str

    @property
    def commands(self) -> list[str]:
        """Lines of a shell, without comments; of a synopsis with its options given."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
        return [re.sub(r"\[(--[^]|]*)(\|[^]]*)?\]", r"\1", line) for line in lines]


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    whole = next((part for part in text.split("\n\n") if part.startswith(PAGE_NOT_RUN)), "")
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip().split("\n\n")[-1]
        mark = before if before.startswith((NOT_RUN, RUN_BY)) else whole
        found.append(Block(page, match[1], match[2], mark))
    return found


def first_of_their_kind(blocks: Iterable[Block]) -> list[list[str]]:
    """Of each block the lines that are to be run: none that another has, whatever its bundle."""
    seen: set[str] = set()
    found = []
    for block in blocks:
        kept = []
        for line in block.commands:
            plain = re.sub(r"\b(OUT/\w+_segmentation|B|BUNDLE)(?=[\s/]|$)", "BUNDLE", line)
            if line.startswith("cd ") or plain not in seen:
                kept.append(line)
            seen.add(plain)
        found.append(kept)
    return found


class Shell:
    """Runs commands of a page, in forked processes, in a folder where its placeholders are.

    Args:
        folder: what :func:`prepare` has made, or a copy of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = self.cwd = folder

    def run(self, line: str) -> None:
        """Run one line to its end; an error shows what it said."""
        words = shlex.split(line, comments=True)
        if words[0] == "cd":
            self._need(words[1])
            self.cwd = self.folder / words[1]
            return
        assert words[:2] == ["python", "-m"], f"nothing runs {line!r}: mark it in its page"
        module, *rest = words[2:]
        name = rest[0] if module == "monai_xtiny" else rest[rest.index("--config_file") + 1]
        for word in filter(BUNDLE_TO_BE.match, rest):
            if name in MAKING:
                shutil.rmtree(self.folder / word, ignore_errors=True)
            else:
                self._need(word)
        added = QUICKLY.get(name, ())
        rest += added if added[:1] and added[0] not in rest else ()
        if "--max_minutes" in rest:
            rest[rest.index("--max_minutes") + 1] = RACE_MINUTES
        typed = [str(self.folder / word) if PLACES.match(word) else word for word in rest]
        done = run_module(module, *typed, cwd=self.cwd, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"

    def _need(self, word: str) -> None:
        """A bundle of this name is there."""
        if not (self.folder / word).exists():
            shutil.copytree(self.folder / "B", self.folder / word)


def prepare(kind: str, source: Path, folder: Path) -> None:
    """Make what a reader has: data, images, masks, DICOM series, a trained bundle ``B``.

    Args:
        kind: ``images`` or ``volumes``.
        source: a real data set in nnU-Net's folders, of which ten cases are cropped.
        folder: where it shall be.
    """
    is_2d = kind == "images"
    classes = ("nucleus",) if is_2d else ("Anterior", "Posterior")
    _crop_data(source, folder / "DATA", 64 if is_2d else 24, classes)
    shutil.copytree(folder / "DATA" / "imagesTr", folder / "IMAGES")
    (folder / "MASKS").mkdir()
    for label in (folder / "DATA" / "labelsTr").glob("*.png"):
        mask = np.asarray(Image.open(label)) * np.uint8(255)
        Image.fromarray(mask).save(folder / "MASKS" / label.name)
    for patient in ("patient1", "patient2"):
        write_dicom_series(folder / "DICOM" / patient, 24, patient[-1], (24, 28))
    for empty in ("OUT", "LABELS"):
        (folder / empty).mkdir()
    (folder / "configs").symlink_to(ROOT / "configs")
    shell = Shell(folder)
    shell.run("python -m monai_xtiny search --images DATA --bundle OUT/B_segmentation")
    shutil.move(folder / "OUT" / "B_segmentation", folder / "B")
    shell.cwd = folder / "B"
    shell.run("python -m monai.bundle run --config_file configs/train.json --dataset_dir DATA")


def _crop_data(source: Path, target: Path, edge: int, classes: tuple[str, ...]) -> None:
    """Ten cases, cropped, in nnU-Net's folders and as a datalist of MSD."""
    entries = []
    labels = sorted((source / "labelsTr").iterdir())[:10]
    for label in labels:
        (image,) = (source / "imagesTr").glob(f"{label.name.partition('.')[0]}_0000.*")
        _write_crop(image, label, target / "imagesTr" / image.name, edge)
        _write_crop(label, label, target / "labelsTr" / label.name, edge)
        entries.append({"image": f"imagesTr/{image.name}", "label": f"labelsTr/{label.name}"})
    content = {
        "channel_names": {"0": "image"},
        "labels": {name: index for index, name in enumerate(("background", *classes))},
        "numTraining": len(entries),
        "file_ending": "".join(labels[0].suffixes),
        "training": entries,
    }
    (target / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def _write_crop(file: Path, label: Path, target: Path, edge: int) -> None:
    """The middle of a volume, or what is around the first labeled pixel of an image."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        pixels = np.asarray(Image.open(file))
        row, column = np.argwhere(np.asarray(Image.open(label)))[0]
        top = min(max(row - edge // 2, 0), pixels.shape[0] - edge)
        left = min(max(column - edge // 2, 0), pixels.shape[1] - edge)
        Image.fromarray(pixels[top : top + edge, left : left + edge]).save(target)
        return
    volume = nibabel.load(file)
    middle = [(size - edge) // 2 for size in volume.shape]
    volume.slicer[tuple(slice(at, at + edge) for at in middle)].to_filename(target)
