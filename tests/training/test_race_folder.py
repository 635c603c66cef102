from __future__ import annotations

from pathlib import Path

import pytest

from monai_xtiny.training.race_folder import RaceFolder
from tests.kills import kill_everywhere


def write_choice(bundle: Path, text: str) -> None:
    """A bundle with a choice, as far as a race folder looks."""
    (bundle / "docs").mkdir(parents=True, exist_ok=True)
    (bundle / "docs" / "search.json").write_text(text)


@pytest.fixture
def bundle(tmp_path) -> Path:
    return tmp_path / "x_segmentation"


def test_a_search_is_done_once_its_bundle_is_there(bundle) -> None:
    kept = RaceFolder(bundle, {"images": "a"})
    assert not kept.is_searched()
    kept.begin()
    assert not kept.is_searched()
    write_choice(bundle, "{}")
    assert RaceFolder(bundle, {"images": "a"}).is_searched()
    assert not RaceFolder(bundle, {"images": "b"}).is_searched()
    kept.remove()
    assert not kept.is_searched()
    assert [path.name for path in bundle.parent.iterdir()] == ["x_segmentation"]


def test_a_bundle_that_is_to_be_replaced_is_not_taken_for_the_new_one(bundle) -> None:
    write_choice(bundle, "former")
    kept = RaceFolder(bundle, {"overwrite": True})
    kept.begin()
    assert not kept.is_searched()
    write_choice(bundle, "new")
    assert kept.is_searched()


def test_trainings_are_kept_for_the_same_command_alone(bundle) -> None:
    kept, other = RaceFolder(bundle, {"seed": 1}), RaceFolder(bundle, {"seed": 2})
    kept.begin()
    kept.trainings.mkdir()
    kept.begin()
    assert kept.trainings.is_dir()
    other.begin()
    assert not other.trainings.exists()


def test_a_race_folder_that_is_removed_half_is_of_no_race(tmp_path) -> None:
    root = tmp_path / "root"
    bundle = root / "x_segmentation"
    kept = RaceFolder(bundle, {})
    kept.begin()
    (kept.trainings / "a").mkdir(parents=True)
    (kept.trainings / "a" / "b").write_text("x")
    write_choice(bundle, "new")

    def check() -> None:
        assert not kept.is_searched() or (kept.trainings / "a" / "b").is_file()

    assert kill_everywhere(root, kept.remove, check) > 1
