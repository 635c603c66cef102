from __future__ import annotations

import os

import pytest

from monai_xtiny.system.config_text import PlainPath
from monai_xtiny.training.labeled import data_options


def test_data_options_hands_paths_on_unread(tmp_path) -> None:
    odd = tmp_path / "$a#b"
    odd.mkdir()
    (odd / "list.json").write_text("{}")
    found = data_options(odd, odd / "list.json")
    assert all(isinstance(path, PlainPath) for path in found.values())
    assert {key: os.fspath(path) for key, path in found.items()} == {
        "dataset_dir": str(odd),
        "datalist": str(odd / "list.json"),
    }
    assert data_options(odd, None).keys() == {"dataset_dir"}


def test_data_options_needs_data_that_exist(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no labeled data: give --data DIR"):
        data_options(None, None)
    with pytest.raises(FileNotFoundError, match="no such data: .*nowhere"):
        data_options(tmp_path / "nowhere", None)
