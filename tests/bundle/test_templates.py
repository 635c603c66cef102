from __future__ import annotations

import json

from monai_xtiny.bundle.templates import templates_dir


def test_templates_are_json_with_four_spaces_and_a_final_newline() -> None:
    for path in templates_dir().glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n", path.name
