"""The list of files that are too large for the Model Zoo's repository."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from monai_xtiny.bundle.folder import LARGE_FILES, Bundle
from monai_xtiny.system.files import write_text

# The Zoo takes no file over 25 MB.
MAX_BYTES = 25_000_000
_HEADER = """\
# The Model Zoo's repository takes no file over 25 MB. Upload each of these where anyone can
# download it, write its address as its url, and leave the file itself out of the pull request. The
# hashes are of the files as they are: 'python -m monai_xtiny package BUNDLE' renews them after
# training.
"""
_PLACEHOLDER = "FILL-IN-THE-URL-OF-"


def write_large_files(bundle: Bundle) -> Path | None:
    """List the files of a bundle that pass 25 MB in ``large_files.yml``, as the Model Zoo does.

    Each entry has ``path``, ``url``, ``hash_val`` and ``hash_type``. An address that is known stays
    as long as the file does; else it is a placeholder, to be filled in after the upload. Entries of
    files that are not there, or small, stay as they are.

    Args:
        bundle: its ``large_files.yml`` is written where something has changed.

    Returns:
        The path of ``large_files.yml``; ``None`` if there is nothing to list.

    Raises:
        ValueError: the ``large_files.yml`` that is there cannot be read.
    """
    target = bundle.path(LARGE_FILES)
    former = read_large_files(bundle)
    entries = {entry["path"]: entry for entry in former}
    for file in sorted(bundle.path("models").glob("*")):
        is_partial = file.name.startswith(".") or file.suffix == ".part"
        if file.is_file() and not is_partial and file.stat().st_size > MAX_BYTES:
            path = file.relative_to(bundle.root).as_posix()
            entries[path] = _renewed(file, path, entries.get(path, {}))
    if not entries:
        return None
    if list(entries.values()) != former:  # what nobody needs to change keeps its comments
        _write_entries(bundle, list(entries.values()))
    return target


def _write_entries(bundle: Bundle, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the list."""
    text = yaml.safe_dump({"large_files": list(entries)}, sort_keys=False)
    write_text(bundle.path(LARGE_FILES), _HEADER + text)


def forget_large_files(bundle: Bundle, patterns: Sequence[str]) -> None:
    """Take files out of a bundle's ``large_files.yml``, and the list itself where it is empty then.

    Args:
        bundle: the bundle.
        patterns: of the paths in it, such as ``models/model_fold*``.
    """
    former = read_large_files(bundle)
    left = [
        entry
        for entry in former
        if not any(fnmatchcase(entry["path"], pattern) for pattern in patterns)
    ]
    if not left and former:
        bundle.path(LARGE_FILES).unlink()
    elif left != former:
        _write_entries(bundle, left)


def read_large_files(bundle: Bundle) -> list[dict[str, Any]]:
    """Entries of a bundle's ``large_files.yml``; none without the file.

    Raises:
        ValueError: it is no YAML, or not the Model Zoo's list.
    """
    path = bundle.path(LARGE_FILES)
    if not path.is_file():
        return []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = [dict(entry) for entry in content["large_files"]]
        if not all(isinstance(entry["path"], str) for entry in entries):
            raise TypeError("a path is no text")
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is no list of large files ({error!r}): it takes the key large_files, a "
            "list of path, url, hash_val and hash_type"
        ) from error
    return entries


def _renewed(file: Path, path: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The entry of a file as it is now."""
    hash_type = str(entry.get("hash_type") or "sha256")
    if hash_type not in ("md5", "sha1", "sha256", "sha512"):
        raise ValueError(
            f"{LARGE_FILES} gives {path!r} the hash type {hash_type!r}: give sha256, or none"
        )
    hash_val = hashlib.new(hash_type, file.read_bytes()).hexdigest()
    known = entry.get("hash_val") in (hash_val, "", None)
    url = entry.get("url") if known else None
    return {
        "path": path,
        "url": url or _PLACEHOLDER + path,
        "hash_val": hash_val,
        "hash_type": hash_type,
    }
