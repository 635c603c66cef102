from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from distillation import write_datalist  # noqa: E402


def test_write_datalist_names_files_relative_to_a_common_folder(tmp_path: Path) -> None:
    case = {"image": [str(tmp_path / "a" / "c_0000.png")], "label": str(tmp_path / "a" / "c.png")}
    other = {"image": [str(tmp_path / "b" / "d_0000.png")], "label": str(tmp_path / "w" / "d.png")}
    file, root = write_datalist([case, other], [case], tmp_path / "w" / "datalist.json")
    content = json.loads(file.read_text())
    assert root == tmp_path
    assert content["training"][1] == {"image": ["b/d_0000.png"], "label": "w/d.png"}
    assert content["validation"] == [{"image": ["a/c_0000.png"], "label": "a/c.png"}]
