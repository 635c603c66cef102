from __future__ import annotations

import pytest

from monai_xtiny.system.config_text import check_config_text


@pytest.mark.parametrize("text", ["$a", "@a", "%a", "a#b", "a::b", "a\nb", "a\x00b"])
def test_check_config_text_refuses_code(text) -> None:
    with pytest.raises(ValueError, match="rename it"):
        check_config_text(text, "label name")


@pytest.mark.parametrize("text", ["nucleus", "Größe 1", "a$b", "50%", "a@b", "a:b", "脳"])
def test_check_config_text_passes_text_on(text) -> None:
    assert check_config_text(text, "label name") == text
