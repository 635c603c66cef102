from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from monai_xtiny.deploy.results import ResultFiles
from monai_xtiny.deploy.sources import JOURNAL, SourceJournal, Sources


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "here" / "scan.png"
    path.parent.mkdir()
    path.write_bytes(b"pixels")
    return path


@pytest.fixture
def files(tmp_path) -> ResultFiles:
    (tmp_path / "out").mkdir()
    made = ResultFiles(tmp_path / "out" / "scan.png", overlay=tmp_path / "out" / "scan_overlay.png")
    for path in made.all:
        path.touch()
    return made


def is_done(image: Path, files: ResultFiles) -> bool:
    """As the next run finds it."""
    journal = SourceJournal(files.labels.parent)
    return journal.is_done("scan", Sources.of([str(image)]), files)


def test_results_count_for_the_files_that_they_were_made_from(image, files, tmp_path) -> None:
    assert not is_done(image, files)  # nobody wrote down what they are of
    SourceJournal(files.labels.parent).add("scan", Sources.of([str(image)]), files)
    assert is_done(image, files)
    assert "scan.png" not in (files.labels.parent / JOURNAL).read_text().split('"results"')[0]
    copy = tmp_path / "there.png"
    shutil.copy2(image, copy)
    assert is_done(copy, files)
    image.write_bytes(b"other pixels")
    os.utime(image, ns=(1, 1))  # older than its labels, as `cp -p` leaves it
    assert not is_done(image, files)
    copy.write_bytes(b"somebody else")
    with pytest.raises(FileExistsError, match="labels of another image of this name"):
        is_done(copy, files)
    files.labels.unlink()
    assert not is_done(copy, files)


def test_files_of_one_size_and_time_are_not_the_same(image, files) -> None:
    # Archives give all files one time, and uncompressed volumes of one shape have one size.
    SourceJournal(files.labels.parent).add("scan", Sources.of([str(image)]), files)
    other = image.parents[1] / "site2" / "scan.png"
    other.parent.mkdir()
    other.write_bytes(b"PIXELS")
    shutil.copystat(image, other)
    with pytest.raises(FileExistsError, match="labels of another image of this name"):
        is_done(other, files)
    other.write_bytes(image.read_bytes())
    shutil.copystat(image, other)
    assert is_done(other, files)


def test_a_series_is_moved_with_all_its_bytes(image, files) -> None:
    (image.parent / "more").mkdir()
    (image.parent / "more" / "slice2.dcm").write_bytes(b"more")
    SourceJournal(files.labels.parent).add("scan", Sources.of([str(image.parent)]), files)
    moved = image.parent.rename(image.parent.with_name("moved"))
    assert is_done(moved, files)
    before = os.stat(moved / "more" / "slice2.dcm")
    (moved / "more" / "slice2.dcm").write_bytes(b"MORE")
    os.utime(moved / "more" / "slice2.dcm", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FileExistsError):
        is_done(moved, files)


def test_results_of_former_files_count_no_more(image, files) -> None:
    alone = ResultFiles(files.labels)
    SourceJournal(files.labels.parent).add("scan", Sources.of([str(image)]), files)
    image.write_bytes(b"other pixels")
    SourceJournal(files.labels.parent).add("scan", Sources.of([str(image)]), alone)
    assert is_done(image, alone) and not is_done(image, files)
    SourceJournal(files.labels.parent).add("scan", Sources.of([str(image)]), files)
    assert is_done(image, alone) and is_done(image, files)


def test_a_series_is_all_of_its_files(image, files) -> None:
    series = image.parent
    SourceJournal(files.labels.parent).add("scan", Sources.of([str(series)]), files)
    assert is_done(series, files)
    (series / "slice2.dcm").write_bytes(b"more")
    os.utime(series / "slice2.dcm", ns=(1, 1))
    assert not is_done(series, files)
    moved = series.rename(series.with_name("moved"))
    with pytest.raises(FileExistsError):
        is_done(moved, files)


def test_a_line_that_a_kill_cut_off_is_of_no_case(image, files) -> None:
    journal = files.labels.parent / JOURNAL
    SourceJournal(files.labels.parent).add("scan", Sources.of([str(image)]), files)
    journal.write_bytes(journal.read_bytes()[:-9])
    assert not is_done(image, files)
    SourceJournal(files.labels.parent).add("scan", Sources.of([str(image)]), files)
    assert is_done(image, files)
