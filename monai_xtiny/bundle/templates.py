"""The files that the exporter fills."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from monai_xtiny import __version__
from monai_xtiny.system.files import read_json

# Sections of a config that an overlay changes in part; its other keys it replaces.
_MERGED_SECTIONS = ("train", "validate")


def configs_dir() -> Path:
    """Folder of the search configs and templates, in an installed package or a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def templates_dir() -> Path:
    """Folder of the files that the exporter fills."""
    return configs_dir() / "templates"


def template_environment() -> Environment:
    """Jinja as the templates of text want it: an unknown name is an error, tags leave no lines."""
    return Environment(
        loader=FileSystemLoader(templates_dir()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@cache  # to compile a page takes as long as to draw its figures
def page_environment() -> Environment:
    """Jinja as pages want it: whatever a template prints is escaped, whoever named it.

    Characters that no page can hold or that turn text around, such as a lone surrogate of a file
    name or a right-to-left override, are printed as U+FFFD.
    """
    environment = template_environment()
    # The default, and the choice by the suffix of a name, would leave .jinja unescaped.
    environment.autoescape = True
    environment.finalize = _as_printed
    return environment


def printable(text: str) -> str:
    r"""Text in which each character that is none to print is U+FFFD.

    >>> printable("a\nb\u202ec") == "a\ufffdb\ufffdc"
    True
    """
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else "\ufffd" for mark in text)


def _as_printed(value: object) -> object:
    """What a page prints of a value; markup of our own as it is."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(str(value)) if is_text else value


def any_rotation() -> str:
    """How 2D images in any orientation are rotated in training: the expression of their config."""
    return str(read_json(templates_dir() / "train_images.json")["rotation_range"])


def merged_template(workflow: str, kind: str, templates: Path) -> dict[str, Any]:
    """A template with the overlay of the data's kind laid over it."""
    config = read_json(templates / f"{workflow}.json")
    overlay = templates / f"{workflow}_{kind}.json"
    if overlay.is_file():
        for key, value in read_json(overlay).items():
            if key in _MERGED_SECTIONS and isinstance(config.get(key), Mapping):
                config[key] = {**config[key], **value}
            else:
                config[key] = value
    if kind == "images":
        config.pop("spacing", None)
    return config


def script_sources(*, of_nnunet: bool = False) -> dict[str, str]:
    """The Python of an emitted bundle by name: files of this package, and who wrote them.

    Args:
        of_nnunet: whether the bundle was imported from nnU-Net, and does as it does.
    """
    header = f"# Written by monai_xtiny {__version__}, which need not be installed.\n"
    folder = Path(__file__).parent.parent / "bundled"
    return {
        path.name: header + path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("[a-z]*.py"))
        if of_nnunet or not path.name.startswith("nnunet_")
    }
