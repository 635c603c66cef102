from __future__ import annotations

import os

import pytest

from monai_xtiny.system.files import write_text


def listing(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_write_text_replaces_a_file_but_nothing_else(tmp_path) -> None:
    write_text(tmp_path / "a", "one")
    write_text(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="is no file"):
        write_text(tmp_path / "pipe", "three")
    assert listing(tmp_path) == ["a", "pipe"]
