"""Where the labeled data of a workflow are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai_xtiny.system.config_text import PlainPath, check_config_text


def data_options(
    data: str | os.PathLike[str] | None,
    datalist: str | os.PathLike[str] | None,
    group: str | None = None,
) -> dict[str, Any]:
    """The configs' keys for labeled data, checked.

    Args:
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        datalist: MSD ``dataset.json``; one of the two is needed.
        group: which cases are of one patient, for the split: a regular expression, or a JSON file.

    Raises:
        FileNotFoundError: neither is given, or one does not exist.
        ValueError: MONAI would not read ``group`` as text.
    """
    for path in (data, datalist):
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"no such data: {os.fspath(path)!r}: check the path")
    if data is None and datalist is None:
        raise FileNotFoundError("no labeled data: give --data DIR or --datalist FILE")
    paths = {"dataset_dir": data, "datalist": datalist}
    options: dict[str, Any] = {
        key: PlainPath(os.fspath(path)) for key, path in paths.items() if path is not None
    }
    return options if group is None else {**options, "group": check_config_text(group, "--group")}
