"""``search.json``: a choice, and all that it was made from."""

from __future__ import annotations

import os
from pathlib import Path

from monai_xtiny.scores.table import table_from_dict, table_to_dict
from monai_xtiny.selection.choice import (
    FORMAT_VERSION,
    Selection,
    selection_from_dict,
    selection_to_dict,
)
from monai_xtiny.system.files import read_json, write_json


def write_search(selection: Selection, path: str | os.PathLike[str]) -> Path:
    """Write ``search.json``: the choice, and all that it was made from."""
    content = {**selection_to_dict(selection), **table_to_dict(selection.table)}
    return write_json(path, content)


def read_search(path: str | os.PathLike[str]) -> Selection:
    """Read what :func:`write_search` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a ``search.json`` of this version.
    """
    content = read_json(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{os.fspath(path)!r} is no search.json of format version {FORMAT_VERSION}"
        )
    return selection_from_dict(content, table_from_dict(content))
