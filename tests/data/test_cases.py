from __future__ import annotations

import json
import os

import pytest
from monai.transforms import LoadImaged

from monai_xtiny.data.cases import find_cases, sample_cases
from monai_xtiny.data.headers import read_headers
from monai_xtiny.data.images import load_sample
from tests.conftest import write_dicom_series, write_nifti, write_png


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


def touch(root, *names) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    "names, message",
    [
        (["x.png", "x_mask.png"], r"'x_mask.png' looks like a mask beside the image 'x.png', and "
         r"labels are never read: give a glob for the images alone, '.*/\*\[!k\]\.png'"),
        (["imagesTr/x_0000.nii", "imagesTr/x_seg.nii"], r"'imagesTr/x_seg.nii' looks like a mask"),
        (["a.nii", "a.nii.gz"], r"a.nii' and '.*a.nii.gz' would be one case: remove or rename one"),
        (["a.png", "a\nb.png"], r"the file name 'a\\nb.png' holds a control character"),
        (["a.png", "\udce9.png"], r"the file name '\\udce9.png' holds .* or is not UTF-8: rename"),
    ],
    ids=["mask", "mask in imagesTr", "two endings", "newline", "not UTF-8"],
)  # fmt: skip
def test_find_cases_refuses_names(tmp_path, names, message) -> None:
    touch(tmp_path, *names)
    listed = {"training": [{"image": name} for name in names]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    for images in (tmp_path, f"{tmp_path}/**/*", tmp_path / "list.json"):
        with pytest.raises(ValueError, match=message):
            find_cases(images)


def test_find_cases_refuses_folders_of_labels_in_a_glob(tmp_path) -> None:
    touch(tmp_path, "imagesTr/x.nii", "labelsTr/x.nii")
    with pytest.raises(ValueError, match=r"give a glob for the images alone, '.*/imagesTr/\*.nii'"):
        find_cases(f"{tmp_path}/*/*.nii")
    assert names(find_cases(tmp_path)) == ["imagesTr/x.nii"]


def test_find_cases_of_a_glob_ends_though_links_lead_in_circles(tmp_path) -> None:
    touch(tmp_path, "p/a.png", "p/b.png")
    for name in ("up", "up 2"):  # two of them: 2 ** 40 paths
        (tmp_path / "p" / name).symlink_to(tmp_path)
    assert names(find_cases(f"{tmp_path}/**/*.png")) == ["p/a.png", "p/b.png"]


def test_find_cases_reads_datalists_of_windows(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a.nii", "imagesTr/b.nii")
    content = {"training": [{"image": ".\\imagesTr\\a.nii"}, {"image": "imagesTr\\b.nii"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8-sig")
    cases = find_cases(tmp_path / "dataset.json")
    assert names(cases) == ["imagesTr/a.nii", "imagesTr/b.nii"]
    assert all(os.path.isfile(file) for case in cases for file in case.images)


def dicom_object(path, modality: str, sop_class: str) -> None:
    """A DICOM object without pixels."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, "1.2.9"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    item.SOPClassUID, item.SOPInstanceUID, item.Modality = sop_class, "1.2.9", modality
    pydicom.dcmwrite(path, item)


OBJECTS = {
    "DICOMDIR": ("", "1.2.840.10008.1.3.10"),
    "rs.dcm": ("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"),
    "dose.dcm": ("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2"),
    "seg.dcm": ("SEG", "1.2.840.10008.5.1.4.1.1.66.4"),
    "report.dcm": ("SR", "1.2.840.10008.5.1.4.1.1.88.11"),
    "state.dcm": ("PR", "1.2.840.10008.5.1.4.1.1.11.1"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_dicom_objects_without_an_image_make_no_case(tmp_path, name) -> None:
    write_dicom_series(tmp_path / "p 1" / "ct")
    dicom_object(tmp_path / "p 1" / name, *OBJECTS[name])
    assert names(find_cases(tmp_path)) == ["p 1/ct"]
    dicom_object(tmp_path / "p 1" / "ct" / name, *OBJECTS[name])
    with pytest.raises(ValueError, match=f"'{name}' is a DICOM object without an image .*move it"):
        read_headers(find_cases(tmp_path))


@pytest.mark.parametrize("preview", ["preview.jpg", "volume.nii.gz", "imagesTr/preview.jpg"])
def test_find_cases_refuses_images_beside_dicom_series(tmp_path, preview) -> None:
    touch(tmp_path, preview)
    folder = (tmp_path / preview).parent
    write_dicom_series(folder / "p1" / "ct", slices=2)
    with pytest.raises(ValueError, match=f"{preview}' lies beside DICOM images, in .*p1/ct': give"):
        find_cases(tmp_path)
    ending = preview.partition(".")[2]
    assert len(find_cases(f"{folder}/*.{ending}")) == 1
    assert names(find_cases(folder / "p1")) == ["ct"]


def test_a_pipe_is_never_opened(tmp_path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="case 'a.png': it is a pipe, socket or device"):
        read_headers(find_cases(tmp_path))
    folder = write_dicom_series(tmp_path / "p1" / "ct", slices=2)
    for name in ("IM1", "zz.txt"):  # MONAI's reader opens all that is in the folder
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=f"{name}' is a pipe, socket or device"):
            find_cases(tmp_path / "p1")
        (folder / name).unlink()
    assert len(find_cases(tmp_path / "p1")) == 1


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
