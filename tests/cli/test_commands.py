from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.typed import run_main
from tests.processes import run_module


def test_search_runs_nothing_for_a_misspelt_option(capsys, tmp_path, png_folder) -> None:
    bundle = tmp_path / "x_segmentation"
    assert run_main("search", "--images", png_folder, "--bundle", bundle, "--sed", "1") == 2
    assert "--sed" in capsys.readouterr().err
    assert not bundle.exists()


@pytest.mark.slow
def test_the_module_and_the_console_script_are_the_command_line(tmp_path) -> None:
    script = Path(sys.executable).with_name("monai-xtiny")
    command = ["plan", "--images", str(tmp_path)]
    for done in (
        run_module("monai_xtiny", *command, cwd=tmp_path),
        subprocess.run([str(script), *command], capture_output=True, text=True, check=False),
    ):
        assert done.returncode == 2
        assert done.stderr.startswith("error: no images in")
        assert len(done.stderr.strip().splitlines()) == 1
