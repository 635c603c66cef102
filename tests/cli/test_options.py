from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from monai_xtiny.bundle.figures import plot_sensitivity
from monai_xtiny.cli.options import (
    SearchOptions,
    check_output,
    emit,
    make_workflow,
    parse_flag,
    parse_int,
    parse_number,
)
from monai_xtiny.system.config_text import PlainPath
from tests.conftest import DATA

TYPED: dict[str, Any] = {
    "images": "images",
    "bundle": "out/a_segmentation",
    "label_names": "background,lesion",
    "spatial_dims": None,
    "method": "alignment",
    "num_images": None,
    "seed": 369,
    "num_seeds": None,
    "max_seconds": None,
    "max_memory_gb": None,
    "plans": None,
    "configuration": "2d",
    "device": "auto",
}


@pytest.mark.parametrize("path", ["$__import__('os').getcwd()", "@a", "%b", "a#b"])
def test_search_overrides_hands_paths_on_unread(path) -> None:
    found = SearchOptions(**{**TYPED, "images": path, "bundle": path, "plans": path}).overrides()
    for name in ("images", "bundle", "plans"):
        assert isinstance(found[name], PlainPath)
        assert str(found[name]) == path


@pytest.mark.parametrize("name", ["method", "configuration", "device"])
def test_search_overrides_refuses_what_would_be_evaluated(name) -> None:
    with pytest.raises(ValueError, match=f"--{name}"):
        SearchOptions(**{**TYPED, name: "$print()"}).overrides()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spatial_dims": 4}, "--spatial_dims is 4: give 2 or 3"),
        ({"num_seeds": 0}, "--num_seeds is 0: give at least 1"),
        ({"num_seeds": 1_000_000_000}, "--num_seeds is 1000000000: give .* at most 10000"),
        ({"num_seeds": "some"}, "--num_seeds is 'some': give a whole number"),
        ({"seed": -1}, "--seed is -1: give a number from 0"),
        ({"num_images": "many"}, "--num_images is 'many': give a whole number"),
        ({"max_seconds": "soon"}, "--max_seconds is 'soon': give a number of seconds"),
        ({"max_seconds": True}, "--max_seconds is True: give a number of seconds"),
        ({"max_seconds": float("nan")}, "--max_seconds is nan: give a number of seconds"),
        ({"max_memory_gb": -2}, "--max_memory_gb is -2: give a number of gigabytes"),
        ({"max_memory_gb": 0}, "--max_memory_gb is 0: give more than 0"),
        ({"overwrite": "no"}, "--overwrite is 'no': give the flag alone"),
        ({"max_parameters": 0}, "--max_parameters is 0: give a whole number above 0"),
        ({"max_gmacs": "few"}, "--max_gmacs is 'few': give a number above 0"),
        ({"max_latency_ms": float("nan")}, "--max_latency_ms is nan: give a number above 0"),
    ],
    ids=lambda item: "-".join(item) if isinstance(item, dict) else "",
)
def test_search_overrides_names_the_option_that_is_wrong(changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        SearchOptions(**{**TYPED, **changed}).overrides()


def test_search_overrides_leaves_the_number_of_images_to_the_config() -> None:
    assert "num_images" not in SearchOptions(**TYPED).overrides()
    assert SearchOptions(**{**TYPED, "num_images": "all"}).overrides()["num_images"] is None
    assert SearchOptions(**{**TYPED, "num_images": "5"}).overrides()["num_images"] == 5


def test_search_overrides_hands_on_numbers_typed_with_quotes() -> None:
    assert SearchOptions(**{**TYPED, "num_seeds": "3"}).overrides()["num_seeds"] == 3


def test_search_overrides_takes_a_limit_of_no_seconds() -> None:
    assert SearchOptions(**{**TYPED, "max_seconds": 0}).overrides()["max_seconds"] == 0


def test_search_overrides_leaves_limits_that_are_not_given_to_the_config() -> None:
    found = SearchOptions(**{**TYPED, "max_gmacs": 0.5}).overrides()
    assert found["max_gmacs"] == 0.5
    assert {"max_parameters", "max_latency_ms"}.isdisjoint(found)


def test_make_workflow_refuses_a_limit_that_an_earlier_config_makes_nothing_of() -> None:
    saved = str(DATA / "search_0.1.0.json")
    with pytest.raises(ValueError, match=r"0\.1\.0\.json' makes nothing of --max_gmacs: change"):
        make_workflow(saved, {"max_gmacs": 0.5})


def test_parse_int_takes_whole_numbers_as_typed() -> None:
    assert parse_int("seed", "7") == parse_int("seed", 7) == 7
    with pytest.raises(ValueError, match=r"--seed is 1\.5: give a whole number"):
        parse_int("seed", 1.5)


def test_parse_number_and_parse_flag_refuse_each_others_values() -> None:
    assert parse_number("max_seconds", 1.5, "seconds") == 1.5
    assert parse_flag("overwrite", True)
    with pytest.raises(ValueError, match="--overwrite is 1: give the flag alone"):
        parse_flag("overwrite", 1)


def test_make_workflow_names_a_missing_config() -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: 'none\.json'"):
        make_workflow("none.json", {})


@pytest.mark.parametrize(
    "content", [b"\x89PNG image", b"mine", b'{"training": []}', b"[1]", b"PK\x03\x04", b"\x1f\x8b"]
)
def test_check_output_refuses_to_replace_what_no_command_wrote(tmp_path, content) -> None:
    path = tmp_path / "case_0000"
    path.write_bytes(content)
    with pytest.raises(FileExistsError, match="case_0000' exists, and is no earlier result: give"):
        check_output(str(path))
    assert path.read_bytes() == content


def test_check_output_takes_earlier_results(tmp_path, selection) -> None:
    curve, image = tmp_path / "curve.png", tmp_path / "image.png"
    plot_sensitivity(selection, curve)
    check_output(str(curve))
    Image.new("RGBA", (840, 504)).save(image)
    with pytest.raises(FileExistsError, match="no earlier result"):
        check_output(str(image))
    for name, content in (("a.json", '{"plan": {}}'), ("b.json", '{"opset": 18}'), ("c", "")):
        (tmp_path / name).write_text(content)
        check_output(str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x_segmentation/configs/metadata.json", "{}")
    check_output(str(tmp_path / "x.zip"))


def test_emit_writes_whole_files_in_folders_that_exist(tmp_path: Path, capsys) -> None:
    emit("text", str(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_text() == "text\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    emit("shown", None)
    assert capsys.readouterr().out == "shown\n"
    for wrong in (tmp_path, tmp_path / "none" / "a.json"):
        with pytest.raises(FileNotFoundError, match="give a file in a folder that exists"):
            check_output(str(wrong))
