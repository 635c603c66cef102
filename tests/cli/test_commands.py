from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.typed import run_main


def test_search_runs_nothing_for_a_misspelt_option(capsys, tmp_path, png_folder) -> None:
    bundle = tmp_path / "x_segmentation"
    assert run_main("search", "--images", png_folder, "--bundle", bundle, "--sed", "1") == 2
    assert "--sed" in capsys.readouterr().err
    assert not bundle.exists()


@pytest.mark.slow
def test_the_module_and_the_console_script_are_the_command_line(tmp_path) -> None:
    script = Path(sys.executable).with_name("monai-xtiny")
    for start in ([sys.executable, "-m", "monai_xtiny"], [str(script)]):
        done = subprocess.run(
            [*start, "plan", "--images", str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: no images in")
        assert len(done.stderr.strip().splitlines()) == 1
