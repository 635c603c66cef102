"""Files written whole or not at all, and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {str(file)!r}: check the path")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} holds no JSON object")
    return content


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a file whole or not at all, by way of a temporary sibling.

    Raises:
        FileExistsError: there is something else than a file, a device for example.
    """
    # A link stands for what it points to.
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{str(target)!r} is no file: give another name")
    temporary = target.with_name(f".{target.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return Path(path)


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """JSON as the Model Zoo wants it: 4 spaces and a final newline; non-finite values refused."""
    text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")
