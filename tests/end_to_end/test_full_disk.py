"""A command whose disk is full says so in one line, and goes on once there is room."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from monai_xtiny.bundle.folder import EVALUATION, REPORT, Bundle
from monai_xtiny.deploy import latency
from monai_xtiny.training import verify
from tests.cli.typed import run_main
from tests.training.test_verify import FakeTrainings, labeled

__all__ = ["labeled"]

pytestmark = pytest.mark.search


def resize(disk: Path, size: str, *, option: str = "remount") -> bool:
    """Whether a file system in memory has a size now."""
    command = ["mount", "-t", "tmpfs", "-o", f"{option},size={size}", "tmpfs", str(disk)]
    return (
        shutil.which("mount") is not None
        and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, 16 kB large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not resize(folder, "16k", option="rw"):
        pytest.skip("only root may mount a small file system, and not everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_auto_says_that_the_disk_is_full_and_goes_on_once_it_is_not(
    capsys, monkeypatch, labeled, disk
) -> None:
    levels = {f"w{2**power}": 0.8 for power in range(10)}
    monkeypatch.setattr(verify, "train_bundle", FakeTrainings(**levels))

    def check_latency(limit: float | None) -> None:  # deployment is not looked at here
        if limit is not None:
            raise ImportError("onnx cannot be imported")

    monkeypatch.setattr(latency, "check_latency", check_latency)
    bundle = disk / "x_segmentation"
    command = ("auto", "--data", labeled, "--bundle", bundle, "--epochs", 1)
    refusals = []
    for size in ("16k", "160k", "480k", "700k", "900k", "64m"):
        assert resize(disk, size)
        status = run_main(*command)
        shown = capsys.readouterr()
        if status == 0:
            break
        lines = shown.err.strip().splitlines()
        assert status == 2 and len(lines) == 1, lines
        assert "No space left on device" in lines[0] or "disk full" in lines[0], lines
        refusals.append(lines[0])
        if bundle.exists():
            Bundle.open(bundle)
    assert status == 0 and len(refusals) > 2, refusals
    assert all(Bundle.open(bundle).path(name).is_file() for name in (EVALUATION, REPORT))
