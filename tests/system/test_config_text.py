from __future__ import annotations

import pytest

from monai_xtiny.system.config_text import PlainPath, check_config_text, path_text


@pytest.mark.parametrize("text", ["$a", "@a", "%a", "a#b", "a::b", "a\nb", "a\x00b"])
def test_check_config_text_refuses_code(text) -> None:
    with pytest.raises(ValueError, match="rename it"):
        check_config_text(text, "label name")


@pytest.mark.parametrize("text", ["nucleus", "Größe 1", "a$b", "50%", "a@b", "a:b", "脳"])
def test_check_config_text_passes_text_on(text) -> None:
    assert check_config_text(text, "label name") == text


def test_path_text_refuses_what_monai_made_of_a_path(tmp_path, monkeypatch) -> None:
    for wrong in (123, 1.5, True, None, ["a"]):
        with pytest.raises(ValueError, match="images is .*, which is no path: write ./NAME"):
            path_text(wrong, "images")
    with pytest.raises(ValueError, match="'a::b' is not there, and MONAI reads '#' as '::'"):
        path_text("a::b", "images")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a::b").touch()
    for right in ("a::b", PlainPath("c::d"), "a#b"):
        assert path_text(right, "images") == str(right)
