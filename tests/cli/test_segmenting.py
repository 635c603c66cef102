from __future__ import annotations

import pytest

from tests.cli.typed import refused, run_main
from tests.conftest import write_png
from tests.deploy.deployed import exported_bundle, write_bundle


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


def test_label_next_refuses_what_is_no_bundle(capsys, tmp_path) -> None:
    line = refused(capsys, "label-next", tmp_path, tmp_path, "--output", tmp_path / "out")
    assert "is no bundle" in line
    assert refused(capsys, "label-next", "--images", "x").startswith("error: label-next needs --b")
    assert not list(tmp_path.iterdir())


@pytest.mark.search
def test_label_next_prints_a_table_and_lists_bad_files_at_the_end(capsys, tmp_path) -> None:
    bundle = write_bundle("pictures", tmp_path)
    images, output = tmp_path / "images", tmp_path / "out"
    write_png(images / "a.png", (40, 40))
    write_png(images / "b.png", (40, 40), 1)
    words = ("label-next", bundle, images, "--num", 1, "--output", output)
    assert run_main(*words) == 0
    shown = capsys.readouterr().out
    assert len([line for line in shown.splitlines() if line.startswith("   1  ")]) == 1
    assert f"2 ranked: {output / 'label_next.json'}" in shown
    (images / "c.png").write_bytes(b"no image")
    assert run_main(*words) == 1
    shown = capsys.readouterr()
    assert "2 ranked, 1 not" in shown.out
    assert len(shown.err.strip().splitlines()) == 1 and "c.png" in shown.err
    assert "--num is 0" in refused(capsys, *words[:4], 0)
    assert "--server is 'x'" in refused(capsys, *words, "--server", "x")
