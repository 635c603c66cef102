from __future__ import annotations

import pytest

from tests.cli.typed import refused, run_main
from tests.conftest import write_png
from tests.deploy.deployed import exported_bundle


def test_segment_refuses_what_is_no_bundle(capsys, tmp_path) -> None:
    line = refused(capsys, "segment", tmp_path, tmp_path, "--output", tmp_path / "out")
    assert "is no bundle" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.search
def test_segment_lists_bad_files_at_the_end(capsys, tmp_path) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    bundle = exported_bundle("pictures", tmp_path)
    images, output = tmp_path / "images", tmp_path / "out"
    write_png(images / "a.png", (40, 40))
    assert run_main("segment", bundle, images, "--output", output) == 0
    assert "1 segmented (read" in capsys.readouterr().out
    (images / "b.png").write_bytes(b"no image")
    assert run_main("segment", bundle, images, "--output", output) == 1
    shown = capsys.readouterr()
    assert "0 segmented, 1 done before, 1 not" in shown.out
    assert len(shown.err.strip().splitlines()) == 1 and "b.png" in shown.err
    assert run_main("segment", bundle, images, "--output", images) == 2
    assert "error: " in capsys.readouterr().err
