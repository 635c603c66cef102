from __future__ import annotations

import json
import os

import pytest
from monai.transforms import LoadImaged

from monai_xtiny.data.cases import find_cases, sample_cases
from monai_xtiny.data.headers import read_headers
from monai_xtiny.data.images import load_sample
from tests.conftest import write_nifti, write_png


def names(cases) -> list[str]:
    return [case.name for case in cases]


def test_find_cases_of_a_folder(png_folder) -> None:
    (png_folder / "notes.txt").write_text("no image")
    (png_folder / ".hidden.png").write_text("no image")
    cases = find_cases(png_folder)
    assert names(cases) == [f"case{i}.png" for i in range(6)]
    assert {case.reader for case in cases} == {"PILReader"}


def test_find_cases_stacks_the_channels_of_an_nnunet_root(tmp_path) -> None:
    for case in ("b", "a_0001x", "c"):
        for channel in range(2):
            write_nifti(tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz", seed=channel)
    cases = find_cases(tmp_path)
    assert names(cases) == [f"imagesTr/{case}_0000.nii.gz" for case in ("a_0001x", "b", "c")]
    assert [len(case.images) for case in cases] == [2, 2, 2]
    assert read_headers(cases)[0].in_channels == 2
    image = load_sample(cases[:1], LoadImaged("image", ensure_channel_first=True)).images[0]
    assert image.shape == (2, 20, 24, 18)


def test_find_cases_takes_numbered_photographs_for_images(tmp_path) -> None:
    for index in range(4):
        write_png(tmp_path / f"IMG_{index:04d}.png", seed=index)
    assert len(find_cases(tmp_path)) == 4


def test_find_cases_of_an_msd_datalist(tmp_path) -> None:
    write_nifti(tmp_path / "imagesTr" / "la 1.nii.gz")
    content = {"training": [{"image": "./imagesTr/la 1.nii.gz", "label": "./labelsTr/la 1.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert names(find_cases(tmp_path / "dataset.json")) == ["imagesTr/la 1.nii.gz"]
    assert names(find_cases(tmp_path)) == ["imagesTr/la 1.nii.gz"]


def test_find_cases_of_a_glob(png_folder) -> None:
    cases = find_cases(f"{png_folder}/case[135].png")
    assert names(cases) == ["case1.png", "case3.png", "case5.png"]


def test_find_cases_of_one_image(png_folder) -> None:
    assert names(find_cases(png_folder / "case2.png")) == ["case2.png"]


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "tif", "bmp"])
def test_every_raster_format_is_found_and_loaded(tmp_path, suffix) -> None:
    write_png(tmp_path / f"Größe 1.{suffix}", (20, 24, 3))
    cases = find_cases(tmp_path)
    assert read_headers(cases)[0].shape == (24, 20)
    transform = LoadImaged("image", reader=cases[0].reader, ensure_channel_first=True)
    assert load_sample(cases, transform).images[0].shape == (3, 24, 20)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda folder: None, FileNotFoundError, "no images in"),
        (lambda folder: folder.joinpath("imagesTr").mkdir(), FileNotFoundError, "no images in"),
        (
            lambda folder: (write_png(folder / "a.png"), write_nifti(folder / "b.nii")),
            ValueError, "different formats",
        ),
        (
            lambda folder: [write_png(folder / "imagesTr" / f"{n}.png")
                            for n in ("a_0000", "a_0001", "b_0000")],
            ValueError, "every case needs the same channels",
        ),
        (
            lambda folder: [write_png(folder / "imagesTr" / f"{n}.png")
                            for n in ("a_0000", "a_0002")],
            ValueError, "expected _0000, _0001",
        ),
    ],
    ids=["empty", "empty imagesTr", "mixed formats", "channels differ", "channel missing"],
)  # fmt: skip
def test_find_cases_refuses(tmp_path, make, error, message) -> None:
    make(tmp_path)
    with pytest.raises(error, match=message):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [("{", "is not JSON"), ('{"training": []}', "lists no images"), ("[1]", "lists no images"),
     ('{"training": [{"image": 3}]}', r"training\[0\] has no 'image' path"),
     ('{"training": [{"image": "a.doc"}]}', "is no image")],
)  # fmt: skip
def test_find_cases_refuses_bad_datalists(tmp_path, text, message) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_cases(tmp_path / "list.json")


@pytest.mark.parametrize("name", ["nowhere", "*.png"])
def test_find_cases_refuses_what_is_not_there(tmp_path, name) -> None:
    with pytest.raises(FileNotFoundError, match=name.replace("*", r"\*")):
        find_cases(tmp_path / name)


def test_sample_cases_is_seeded_sorted_and_leaves_the_generators(png_folder) -> None:
    import random

    cases = find_cases(png_folder)
    before = random.getstate()
    drawn = sample_cases(cases, 3, seed=1)
    assert random.getstate() == before
    assert drawn == sample_cases(cases, 3, seed=1)
    assert list(drawn) == sorted(drawn, key=lambda case: case.name)
    assert {sample_cases(cases, 3, seed=seed) for seed in range(20)} != {drawn}
    assert sample_cases(cases, None) == sample_cases(cases, 99) == cases


def test_sample_cases_refuses_none() -> None:
    with pytest.raises(ValueError, match="num_images is 0"):
        sample_cases([], 0)


def test_find_cases_and_sample_cases_look_at_names_only(tmp_path, monkeypatch) -> None:
    image = write_png(tmp_path / "source" / "image.png")
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(2000):
        os.symlink(image, folder / f"case{index}.png")
    opened: list[str] = []
    real_stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda *a, **k: (opened.append(str(a[0])), real_stat(*a, **k))[1]
    )
    assert len(sample_cases(find_cases(folder), 4)) == 4
    assert not [name for name in opened if os.path.basename(name).startswith("case")]
