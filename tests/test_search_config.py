"""configs/search.json from the images to the sample: what it reads, names and leaves to users."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser

import monai_xtiny
from monai_xtiny.bundled import gate
from monai_xtiny.cli.commands import main
from monai_xtiny.cli.options import make_workflow
from monai_xtiny.plan.preprocessing import preprocessing_fragment
from monai_xtiny.system.errors import innermost
from tests.conftest import DATA, texture, write_dicom_series, write_nifti, write_png

CONFIG = Path(__file__).parents[1] / "configs" / "search.json"
SAVED_COPY = DATA / "search_0.1.0.json"
DATA_IDS = (
    "labels", "cases", "sampled_cases", "headers", "header", "reader", "plan", "slice_axis",
    "preprocessing", "sample",
)  # fmt: skip
LOADING = "preprocessing#transforms#0"
KINDS = ("nifti", "channels", "png", "dicom")
# Stored (z, x, y) with two axes flipped: what is read has to be turned.
AFFINE = np.array([[0, -1.0, 0, 0], [0, 0, 1.0, 0], [-2.0, 0, 0, 0], [0, 0, 0, 1]])


def config_parser(folder: Path, config: Path = CONFIG, **changes: Any) -> ConfigParser:
    """The search config for the images of a folder, nothing evaluated."""
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.update({"images": str(folder), "progress": False, **changes})
    return parser


def leaves(item: Any) -> Iterator[str]:
    """Every string of a config."""
    if isinstance(item, dict | list):
        for value in item.values() if isinstance(item, dict) else item:
            yield from leaves(value)
    elif isinstance(item, str):
        yield item


def write_images(folder: Path, kind: str, count: int = 4) -> None:
    """A folder of small images of one format."""
    for index in range(count):
        if kind == "nifti":
            write_nifti(folder / f"{index}.nii.gz", (10, 32, 28), seed=index, affine=AFFINE)
        elif kind == "channels":
            for channel in range(2):
                name = f"case{index}_{channel:04d}.nii.gz"
                write_nifti(folder / name, (32, 28, 16), seed=2 * index + channel)
        elif kind == "png":
            write_png(folder / f"{index}.png", (32, 40), seed=index)
        else:
            write_dicom_series(folder / str(index), slices=9, series=f"1.2.{index}", shape=(32, 28))


@pytest.fixture
def opened(monkeypatch) -> Counter[str]:
    """How often each file has been opened by the library of its format."""
    counts: Counter[str] = Counter()

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        def read_and_count(*args: Any, **options: Any) -> Any:
            counts[str([*args, *options.values()][0])] += 1
            return read(*args, **options)

        return read_and_count

    monkeypatch.setattr(nibabel, "load", counted(nibabel.load))
    monkeypatch.setattr(gate, "ImageOpener", counted(gate.ImageOpener))
    monkeypatch.setattr(PIL.Image, "open", counted(PIL.Image.open))
    monkeypatch.setattr(pydicom, "dcmread", counted(pydicom.dcmread))
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_each_file_is_opened_once_for_its_header_and_once_for_its_voxels(
    tmp_path, opened, kind
) -> None:
    write_images(tmp_path, kind)
    files = {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    config_parser(tmp_path, num_images=2).get_parsed_content("sample")
    # All four are planned from, and so read in full; two of them are scored.
    assert opened == dict.fromkeys(files, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_search_opens_no_file_more_often(tmp_path, opened, kind) -> None:
    folder = tmp_path / "images"
    write_images(folder, kind)
    files = {str(path) for path in folder.rglob("*") if path.is_file()}
    bundle = tmp_path / "x_segmentation"
    options = ("--images", str(folder), "--bundle", str(bundle), "--num_images", "2")
    main(["search", *options, "--method", "paper"])
    assert (bundle / "docs" / "search.json").is_file()
    assert {file: opened[file] for file in files} == dict.fromkeys(files, 2)


def test_search_with_nnunets_plan_reads_the_scored_images_only(tmp_path, opened) -> None:
    write_images(tmp_path, "png")
    plans = DATA / "nnUNetPlans_Dataset004_Hippocampus.json"
    parser = config_parser(tmp_path, num_images=2, plans=str(plans))
    sample = parser.get_parsed_content("sample")
    assert opened == {str(tmp_path / name): 2 for name in sample.names}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_images", [2, None], ids=["some", "all"])
def test_sample_is_the_same_whether_images_are_kept_or_read_again(
    tmp_path, opened, kind, num_images
) -> None:
    write_images(tmp_path, kind)
    made = []
    for max_gb in (1, 0):
        opened.clear()
        parser = config_parser(tmp_path, num_images=num_images, **{f"{LOADING}#max_gb": max_gb})
        sample = parser.get_parsed_content("sample")
        assert max(opened.values()) == (2 if max_gb else 3)
        assert parser.get_parsed_content(LOADING).num_bytes == 0
        made.append((parser.get_parsed_content("plan"), sample.names, sample.images))
    assert made[0][:2] == made[1][:2]
    for kept, read_again in zip(made[0][2], made[1][2], strict=True):
        assert torch.equal(kept, read_again)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_saved_copy_of_an_earlier_search_config_makes_the_same_sample(tmp_path, dims) -> None:
    write_images(tmp_path, "nifti")
    now = config_parser(tmp_path, num_images=2, spatial_dims=dims)
    then = config_parser(tmp_path, SAVED_COPY, num_images=2, spatial_dims=dims)
    with pytest.warns(DeprecationWarning, match="monai_xtiny.headers has moved"):
        former = then.get_parsed_content("sample")
    sample = now.get_parsed_content("sample")
    assert now.get_parsed_content("plan") == then.get_parsed_content("plan")
    assert sample.names == former.names
    for image, expected in zip(sample.images, former.images, strict=True):
        assert torch.equal(image, expected)


@pytest.mark.search
def test_search_scores_wide_widths_on_as_many_images_as_the_rule_asks_for(tmp_path) -> None:
    write_images(tmp_path, "png")
    former = json.loads(CONFIG.read_text())
    del former["num_wide_images"], former["scores"]["num_wide_images"]
    copy = tmp_path / "former" / "search.json"
    copy.parent.mkdir()
    copy.write_text(json.dumps(former))
    changes = {"refine": None, "journal": None}
    found, before, paper = (
        config_parser(tmp_path, config, method=method, **changes).get_parsed_content("scores")
        for config, method in ((CONFIG, "alignment"), (copy, "alignment"), (CONFIG, "paper"))
    )
    few = monai_xtiny.find_rule("alignment").num_wide_images
    assert found.num_compared == few
    # A copy that does not know the key, and the published rule, go on with all images.
    for table in (before, paper):
        assert table.num_compared == len(table.images) == 4
    for rung, whole in zip(found.ladder, before.ladder, strict=True):
        if rung.alignment:
            assert rung == whole
        else:
            assert rung.sensitivity[0] == pytest.approx(whole.sensitivity[0][:few], rel=1e-5)


def write_oriented(folder: Path, *, is_shared: bool = True, count: int = 24) -> None:
    """2D images with a bright part at one side, or at either."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        pixels = texture((64, 56), index) // 2
        pixels[4:24, 6:40] += 100
        image = PIL.Image.fromarray(pixels)
        image = image if is_shared or index % 2 else image.rotate(180)
        image.save(folder / f"{index:02d}.png")


@pytest.mark.search
@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "any"])
def test_search_emits_a_recipe_that_suits_the_orientation(tmp_path, is_shared) -> None:
    folder, bundle = tmp_path / "images", tmp_path / "x_segmentation"
    write_oriented(folder, is_shared=is_shared)
    options = ("--num_images", "2", "--method", "paper")
    main(["search", "--images", str(folder), "--bundle", str(bundle), *options])
    content = json.loads((bundle / "docs" / "search.json").read_text())
    assert (content["shared_orientation"] > 0.5) == is_shared
    train = json.loads((bundle / "configs" / "train.json").read_text())
    assert train["mirror_prob"] == (0.0 if is_shared else 0.5)
    again = tmp_path / "again_segmentation"
    main(["export", "--search", str(bundle / "docs" / "search.json"), "--bundle", str(again)])
    assert json.loads((again / "configs" / "train.json").read_text()) == train


def test_search_measures_the_orientation_with_a_blank_image_and_a_given_plan(tmp_path) -> None:
    write_oriented(tmp_path)
    PIL.Image.new("L", (56, 64)).save(tmp_path / "99.png")
    plans = DATA / "nnUNetPlans_Dataset004_Hippocampus.json"
    parser = config_parser(tmp_path, num_images=2, plans=str(plans))
    assert parser.get_parsed_content("shared_orientation") > 0.5


def test_search_opens_sampled_images_once_though_their_orientation_is_measured(
    tmp_path, opened
) -> None:
    write_oriented(tmp_path)
    parser = config_parser(tmp_path, num_images=2, bundle=str(tmp_path / "x"))
    parser.get_parsed_content("shared_orientation")
    for name in parser.get_parsed_content("sample").names:
        # For its header by the sample, the plan and the measure, and once for its voxels.
        assert opened[str(tmp_path / name)] == 3
    assert parser.get_parsed_content(LOADING).num_bytes == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_search_measures_no_orientation_of_volumes(tmp_path, monkeypatch, dims) -> None:
    write_images(tmp_path, "nifti")
    monkeypatch.setattr(monai_xtiny, "measure_orientation", pytest.fail, raising=False)
    parser = config_parser(tmp_path, num_images=2, spatial_dims=dims)
    assert parser.get_parsed_content("shared_orientation") is None


def test_search_reads_again_what_a_changed_copy_loads_in_its_own_way(tmp_path, opened) -> None:
    write_images(tmp_path, "png")
    steps = json.loads(CONFIG.read_text())["preprocessing"]["transforms"][1:]
    loading = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "@reader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
    ]
    changes = {"preprocessing#transforms": [*loading, *steps]}
    own = config_parser(tmp_path, num_images=2, **changes).get_parsed_content("sample")
    assert sorted(opened.values()) == [2, 2, 3, 3]
    sample = config_parser(tmp_path, num_images=2).get_parsed_content("sample")
    for image, expected in zip(own.images, sample.images, strict=True):
        assert torch.equal(image, expected)


def test_search_takes_another_reader_from_a_changed_copy(tmp_path) -> None:
    write_images(tmp_path, "png")
    reader = {"_target_": "monai.data.PILReader", "converter": "$lambda image: image.rotate(180)"}
    changes = {f"{LOADING}#transform#reader": reader}
    turned = config_parser(tmp_path, num_images=2, **changes).get_parsed_content("sample")
    sample = config_parser(tmp_path, num_images=2).get_parsed_content("sample")
    for image, other in zip(sample.images, turned.images, strict=True):
        assert torch.equal(image.flip(1, 2), other)


def test_search_first_says_what_it_found(tmp_path, capsys) -> None:
    for channel in range(4):
        write_png(tmp_path / "imagesTr" / f"patA_{channel:04d}.png", (32, 40), seed=channel)
    parser = config_parser(tmp_path, method="paper")
    for key in ("initialize_scores", "initialize"):
        assert parser[key][-1].startswith("$print(monai_xtiny.describe_data_set(")
    parser.get_parsed_content("initialize_scores")
    found, patch = capsys.readouterr().out.splitlines()
    assert found.startswith("found 1 case with 4 channels (patA_0000.png, patA_0001.png, ...), 2D")
    assert patch.startswith("patch 40 x 32 pixels, ")


@pytest.mark.parametrize("name", DATA_IDS)
def test_every_id_of_the_data_can_be_evaluated_alone(png_folder, name) -> None:
    assert config_parser(png_folder).get_parsed_content(name) is not None or name == "slice_axis"


def test_data_ids_name_public_names_in_short_expressions() -> None:
    config = json.loads(CONFIG.read_text())
    for text in leaves([config[name] for name in DATA_IDS]):
        assert len(text) <= 160
        for name in re.findall(r"monai_xtiny\.([\w.]+)", text):
            assert name in monai_xtiny.__all__


@pytest.mark.parametrize("kind", ["volumes", "slices", "images"])
def test_search_preprocesses_as_the_fragment_says(tmp_path, kind) -> None:
    config = json.loads(CONFIG.read_text())
    write_images(tmp_path, "png" if kind == "images" else "nifti")
    parser = config_parser(tmp_path, spatial_dims=3 if kind == "volumes" else 2)
    fragment = preprocessing_fragment(kind, pixdim="$@plan.pixdim")
    # The search is not run by MONAI Label, whose path the copies are for.
    expected = [step for step in fragment if "path" not in str(step["keys"])]
    targets = {step["_target_"] for step in preprocessing_fragment("volumes")}
    steps = []
    for index, step in enumerate(config["preprocessing"]["transforms"]):
        is_enabled = parser.get_parsed_content(f"preprocessing#transforms#{index}") is not None
        if step["_target_"] in targets and is_enabled:
            steps.append({key: value for key, value in step.items() if key != "_disabled_"})
    assert steps == expected


@pytest.mark.parametrize("name", ["images", "bundle", "plans"])
@pytest.mark.parametrize("path", [123, "a#b"], ids=["digits", "hash"])
def test_search_config_refuses_what_monai_made_of_a_path(
    tmp_path, png_folder, monkeypatch, name, path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"images": str(png_folder), "bundle": "x_segmentation", name: path}
    with pytest.raises(RuntimeError) as stop:
        make_workflow(None, given)
    assert re.search("no path: write ./NAME|'::'", str(innermost(stop.value)))
    left = [item.name for item in tmp_path.iterdir() if not item.name.endswith(".lock")]
    assert left == ["images"]
