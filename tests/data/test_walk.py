from __future__ import annotations

import glob
import os
import socket
from pathlib import Path

import pytest

from monai_xtiny.data.walk import check_file_name, check_regular, expand_glob, walk_once


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files in folders, one of them linked to twice, and links that lead in circles."""
    for name in ("a.png", "p/b.png", "p/q/c.png", "[x]/d.png", ".hidden/e.png", "p/.f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "p" / "up").symlink_to(tmp_path)
    (tmp_path / "p" / "up 2").symlink_to(tmp_path)
    (tmp_path / "r").symlink_to(tmp_path / "p")
    return tmp_path


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("**/*.png", ["[x]/d.png", "a.png", "p/b.png", "p/q/c.png"]),
        ("**/q/*.png", ["p/q/c.png"]),
        ("p/**/*.png", ["p/b.png", "p/q/c.png", "p/up/[x]/d.png", "p/up/a.png"]),
        ("**/q/**/*.png", ["p/q/c.png"]),
        ("*/*.png", ["[x]/d.png", "p/b.png", "r/b.png"]),
        ("none/**/*.png", []),
    ],
)
def test_expand_glob_finds_each_file_once_though_links_lead_in_circles(
    tree, monkeypatch, pattern, expected
) -> None:
    assert expand_glob(f"{glob.escape(str(tree))}/{pattern}") == [
        f"{tree}/{name}" for name in expected
    ]
    monkeypatch.chdir(tree)
    assert expand_glob(pattern) == expected


@pytest.mark.parametrize("pattern", ["**/*.png", "p/**/*.png", "**", "**/", "**/p/*.png"])
def test_expand_glob_without_links_is_pythons(tree, pattern) -> None:
    for link in ("p/up", "p/up 2", "r"):
        (tree / link).unlink()
    found = [name for name in expand_glob(f"{tree}/{pattern}") if os.path.isfile(name)]
    expected = glob.glob(f"{tree}/{pattern.rstrip('/')}", recursive=True)
    assert found == sorted(filter(os.path.isfile, expected)) or pattern == "**/"


def test_walk_once_follows_links_and_ends(tree, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "g.png").touch()
    (tree / "linked").symlink_to(other)
    folders = dict(walk_once(tree))
    assert folders[str(tree / "linked")] == ["g.png"]
    assert len({os.path.realpath(folder) for folder in folders}) == len(folders) == 5


def test_check_regular_refuses_what_has_no_end(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        for path in (tmp_path / "pipe.png", tmp_path / "link.png", tmp_path / "socket.png"):
            with pytest.raises(ValueError, match=rf"{path.name}' is a pipe, socket or device"):
                check_regular(path)
    with pytest.raises(ValueError, match="'/dev/zero' is a pipe, socket or device"):
        check_regular("/dev/zero")
    check_regular(tmp_path)
    check_regular(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a\nb", "a\x00.png", "\udce9.png", "a\u2028b", "a\x1b[1m"])
def test_check_file_name_refuses_what_no_text_file_holds(name) -> None:
    with pytest.raises(ValueError, match="holds a control character or is not UTF-8: rename it"):
        check_file_name(name)


def test_check_file_name_takes_every_language() -> None:
    for name in ("Größe 1.png", "画像.nii.gz", "e\u0301.png", "a\u00a0b.png"):
        assert check_file_name(name) is None
