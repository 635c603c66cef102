from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy import web
from monai_xtiny.deploy.onnx_model import input_format
from monai_xtiny.deploy.segmenter import InputFormat
from monai_xtiny.deploy.web import write_site
from tests.deploy.deployed import exported_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.search

PAGE = Path(__file__).parents[2] / "scripts" / "web" / "src" / "index.html"
SCRIPT = 'const text = "</script><!-- <script>{{title}}";'
WRITTEN = ["index.html", "licenses.txt", "model.onnx", "page.js", "runtime.wasm"]


@pytest.fixture
def parts(tmp_path, monkeypatch) -> Path:
    """Parts of a page that are quickly built; scripts/web_e2e.sh has the real ones."""
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "index.html").write_bytes(PAGE.read_bytes())
    (folder / "page.js").write_text(SCRIPT)
    (folder / "style.css").write_text("p {}")
    (folder / "runtime.wasm").write_bytes(bytes(range(256)))
    (folder / "licenses.txt").write_text("MIT <of everything>")
    monkeypatch.setattr(web, "ASSETS", folder)
    return folder


@pytest.fixture
def bundle(tmp_path) -> Path:
    return exported_bundle("pictures", tmp_path)


def element(page: str, name: str) -> str:
    """Text of the script with an id."""
    found = re.search(rf'<script [^>]*id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return found[1]


def test_write_site_writes_a_folder_that_says_what_the_network_takes(parts, bundle, tmp_path):
    page = write_site(bundle, tmp_path / "new" / "site")
    assert sorted(item.name for item in page.parent.iterdir()) == WRITTEN
    model = (bundle / "models" / "model.onnx").read_bytes()
    assert (page.parent / "model.onnx").read_bytes() == model
    form = json.loads(element(page.read_text(), "form"))
    expected = input_format(Bundle.open(bundle)).to_metadata()
    assert form == {name: json.loads(value) for name, value in expected.items()}
    assert "MIT &lt;of everything&gt;" in page.read_text()


def test_write_site_puts_everything_into_a_single_file(parts, bundle, tmp_path) -> None:
    folder = tmp_path / "site"
    write_site(bundle, folder)
    text = write_site(bundle, folder, single_file=True).read_text()
    assert [item.name for item in folder.iterdir()] == ["index.html"]
    model = (bundle / "models" / "model.onnx").read_bytes()
    assert base64.b64decode(element(text, "part-model")) == model
    assert base64.b64decode(element(text, "part-runtime")) == bytes(range(256))
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    # Nothing in the script ends it, and what reads like a blank of the page stays.
    assert script is not None
    assert script[1] == r'const text = "<\/script><\!-- <script>{{title}}";'
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}' 'wasm-unsafe-eval' blob:;" in text


def test_write_site_names_no_other_place(parts, bundle, tmp_path) -> None:
    text = write_site(bundle, tmp_path / "site").read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"(?:https?:)?//\w", text)


def test_fill_page_shows_names_of_classes_as_text(parts) -> None:
    labels = ("background", "</script><b>{{form}}\"'\n<!--")
    form = InputFormat("images", 1, (32, 48), (8, 8), labels)
    page = web._fill_page(web._read_parts(), "<i>_segmentation", form, single_file=False)
    assert json.loads(element(page, "form"))["labels"] == list(labels)
    shown = "Finds &lt;/script&gt;&lt;b&gt;{{form}}&quot;&#x27;\n&lt;!-- in images"
    assert shown in page and "<!--" not in page
    assert "<h1>&lt;i&gt;</h1>" in page


def test_write_site_exports_weights_that_are_newer(parts, bundle, tmp_path) -> None:
    model = bundle / "models" / "model.onnx"
    former = model.read_bytes()
    path = bundle / "models" / "model.pt"
    weights = {name: value * 1.5 for name, value in torch.load(path, weights_only=True).items()}
    torch.save(weights, path)
    page = write_site(bundle, tmp_path / "site")
    assert (page.parent / "model.onnx").read_bytes() != former
    assert model.read_bytes() == former


def test_write_site_refuses_an_untrained_bundle(parts, bundle, tmp_path) -> None:
    path = bundle / "models" / "model.pt"
    weights = {
        name: torch.full_like(value, name.endswith("weight")) if value.ndim == 1 else value
        for name, value in torch.load(path, weights_only=True).items()
    }
    torch.save(weights, path)
    with pytest.raises(ValueError, match="was not trained: its labels would mean nothing"):
        write_site(bundle, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_write_site_says_how_to_build_what_is_missing(parts, bundle, tmp_path) -> None:
    (parts / "runtime.wasm").unlink()
    with pytest.raises(FileNotFoundError, match=r"wasm' is missing\): run bash scripts/web"):
        write_site(bundle, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_write_site_leaves_other_files_alone(parts, bundle, tmp_path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds 'notes.txt': give a new folder"):
        write_site(bundle, mine)
    with pytest.raises(FileExistsError, match="is no folder"):
        write_site(bundle, mine / "notes.txt")
    with pytest.raises(ValueError, match="lies in the bundle"):
        write_site(bundle, bundle / "site")
    assert [item.name for item in mine.iterdir()] == ["notes.txt"]


def test_write_site_keeps_the_former_page_where_the_disk_is_full(
    parts, bundle, tmp_path, monkeypatch
) -> None:
    page = write_site(bundle, tmp_path / "site", single_file=True)
    former = page.read_text()
    real = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if path.name == "model.onnx":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):
        write_site(bundle, page.parent)
    assert page.read_text() == former
