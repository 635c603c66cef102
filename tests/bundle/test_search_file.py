from __future__ import annotations

import json

import pytest

from monai_xtiny.bundle.search_file import read_search, write_search


def test_search_json_is_read_back_as_it_was_written(tmp_path, selection) -> None:
    write_search(selection, tmp_path / "search.json")
    assert read_search(tmp_path / "search.json") == selection
    content = json.loads((tmp_path / "search.json").read_text())
    assert content["format_version"] == 1
    assert content["selected"]["max_features"] == 8
    assert content["ladder"][0]["sensitivity"] == [[2.0, 33.0]]


def test_read_search_refuses_another_version(tmp_path) -> None:
    (tmp_path / "search.json").write_text('{"format_version": 2}')
    with pytest.raises(ValueError, match="no search.json of format version 1"):
        read_search(tmp_path / "search.json")
