"""Code in a bundle that this version does not write: a MONAI config is a program."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from monai_xtiny.bundle.folder import METADATA, Bundle
from monai_xtiny.bundle.imported import SETTINGS, imported_configs, is_imported
from monai_xtiny.bundle.templates import any_rotation, script_sources, templates_dir
from monai_xtiny.bundle.writer import emitted_configs
from monai_xtiny.plan.nnunet import RAS_READER
from monai_xtiny.system.files import read_json

_Place: TypeAlias = tuple[str, ...]

# Keys at the top of a config whose text is a path, a device or an ending: it calls nothing.
_PLAIN_TEXTS = {
    "bundle_root", "ckpt_dir", "checkpoint", "teacher", "output_dir", "log_dir", "dataset_dir",
    "datalist", "split_file", "model_file", "state_file", "device", "file_endings", "output_ext",
    "nnunet_plans", "nnunet_configuration",
}  # fmt: skip
# Lists that MONAI runs entry by entry, checks among them.
_STEPS = ("imports", "initialize", "run", "finalize")
# What Python imports in place of a module of that name, since MONAI puts the bundle in its path.
_IMPORTED = (".py", ".pyc", ".pyd", ".so")
# Keys that MONAI takes apart: paths in a config, and what is to be merged or removed.
_MERGING = re.compile("#|::|^[+~]")
_ABSENT = object()


def foreign_code(bundle: Bundle) -> tuple[str, ...]:
    """Where a bundle would run other code than this version writes for its ``search.json``.

    Compared are every text in the configs that can call something (expressions, references,
    ``_target_``, names of readers and modes), ``_disabled_`` and the like, ``scripts/*.py``,
    ``logging.conf``, and Python files that would be imported. Numbers, switches, sizes, and paths
    at the top of a config are settings, not code. Nothing of the bundle is run.

    Args:
        bundle: of anybody.

    Returns:
        One line per place, ``configs/train.json: loss#_target_ is 'DiceLoss', not 'DiceCELoss'``;
        none for a bundle as it was written, whatever its settings.

    Raises:
        ValueError: a config is damaged.
    """
    lines: list[str] = []
    for name, expected in _expected_configs(bundle).items():
        file = f"configs/{name}.json"
        if bundle.path(file).is_file():  # evaluation needs no multi_gpu_train.json
            found, emitted = (dict(_leaves(item)) for item in (bundle.config(name), expected))
            lines += [f"{file}: {text}" for text in _differences(found, emitted)]
    metadata = dict(_leaves(read_json(bundle.path(METADATA))))
    lines += [
        f"{METADATA}: {'#'.join(place)} is {_shown(value)}, which MONAI evaluates"
        for place, value in metadata.items()
        if _is_special(place) or (isinstance(value, str) and value.startswith(("$", "@", "%")))
    ]
    sources = script_sources(of_nnunet=is_imported(bundle.selection))
    texts = {
        **{f"scripts/{name}": source for name, source in sources.items()},
        "configs/logging.conf": (templates_dir() / "logging.conf").read_text(encoding="utf-8"),
    }
    for file, text in texts.items():
        path = bundle.path(file)
        if not path.is_file():
            lines.append(f"{file} is missing")
        elif path.read_bytes().replace(b"\r\n", b"\n") != text.encode():
            lines.append(f"{file} is not what this version writes")
    return (*lines, *(f"{file} would be imported" for file in _imported_files(bundle.root)))


def edited_places(bundle: Bundle) -> tuple[str, ...]:
    """Where configs or scripts differ from what this version writes, settings included.

    Args:
        bundle: of anybody.

    Returns:
        One entry per place, ``configs/train.json: patch_size``.
    """
    places = list(foreign_code(bundle))
    settings = SETTINGS if is_imported(bundle.selection) else ()
    for name, expected in _expected_configs(bundle).items():
        file = f"configs/{name}.json"
        found = bundle.config(name) if bundle.path(file).is_file() else expected
        keys = [key for key in dict.fromkeys((*expected, *found)) if key not in settings]
        changed = [key for key in keys if found.get(key) != expected.get(key)]
        places += [
            f"{file}: {key}"
            for key in changed
            if not any(line.startswith((f"{file}: {key} ", f"{file}: {key}#")) for line in places)
        ]
    return tuple(places)


def _expected_configs(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What this version writes for a bundle's search, or for one that was imported."""
    if not is_imported(bundle.selection):
        return emitted_configs(bundle.selection)
    plans = bundle.config("inference").get("nnunet_plans")
    reader = plans.get("image_reader_writer") if isinstance(plans, dict) else None
    settings = {
        "nnunet_plans": {"image_reader_writer": str(reader)} if reader == RAS_READER else {}
    }
    return imported_configs(bundle.selection, bundle.kind, settings)


def _leaves(value: Any, place: _Place = ()) -> Iterator[tuple[_Place, Any]]:
    """Values of a config and where they are; a list without text is one value."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*place, str(key)))
    elif isinstance(value, list) and not _is_setting(value):
        for index, item in enumerate(value):
            yield from _leaves(item, (*place, str(index)))
    else:
        yield place, value


def _is_setting(value: Any) -> bool:
    """Whether a value is a number, a switch, nothing, or a list of such."""
    if isinstance(value, list):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, (bool, int, float))


def _is_special(place: _Place) -> bool:
    """Whether a key is one that MONAI acts on, ``_target_`` or ``_disabled_`` for example."""
    key = place[-1] if place else ""
    return len(key) > 2 and key.startswith("_") and key.endswith("_") and key != "_desc_"


def _differences(found: Mapping[_Place, Any], emitted: Mapping[_Place, Any]) -> Iterator[str]:
    """The places of a config whose code differs."""
    for place in dict.fromkeys((*emitted, *found)):
        has, wants = found.get(place, _ABSENT), emitted.get(place, _ABSENT)
        is_code = isinstance(has, str) or isinstance(wants, str) or _is_special(place)
        # Such a key replaces, adds or removes a place elsewhere in the config.
        is_code |= wants is _ABSENT and any(_MERGING.search(key) for key in place)
        if has == wants or not is_code or place[-1:] == ("_desc_",):
            continue
        if has is not _ABSENT and _may_replace(place, has, wants):
            continue
        name = "#".join(place)
        if wants is _ABSENT:
            yield f"{name} is {_shown(has)}, and this version has no such key"
        elif has is _ABSENT:
            yield f"{name} is missing, and was {_shown(wants)}"
        else:
            yield f"{name} is {_shown(has)}, not {_shown(wants)}"


def _may_replace(place: _Place, has: Any, wants: Any) -> bool:
    """Whether a value is a setting where it stands: no code, and no check that it turns off.

    The angle of 2D images may stand for that of slices, which earlier versions rotated alike, and
    for that of images which share an orientation.
    """
    if _is_special(place) or place[0] in _STEPS or any(map(_MERGING.search, place)):
        return False
    if _is_setting(has):
        return True
    if place == ("rotation_range",):
        return bool(has == any_rotation())
    is_plain = isinstance(has, str) and not has.startswith(("$", "@", "%"))
    return is_plain and (place[0] in _PLAIN_TEXTS or (len(place) == 1 and wants is None))


def _shown(value: Any) -> str:
    """A value in one short line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}...{text[-15:]}"


def _imported_files(root: Path) -> list[str]:
    """Files that Python would find before the modules of the same name, with forward slashes."""
    files = [
        path
        for pattern in ("*", "*/__init__.*")
        for path in root.glob(pattern)
        if path.suffix in _IMPORTED and path.is_file()
    ]
    return sorted(os.fspath(path.relative_to(root).as_posix()) for path in files)
