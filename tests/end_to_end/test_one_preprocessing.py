"""Search, training, validation, inference and the ONNX segmenter see the same tensor of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, NormalizeIntensityd
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.templates import configs_dir
from monai_xtiny.deploy.onnx_model import input_format
from monai_xtiny.deploy.segmenter import Segmenter, _content, z_score
from monai_xtiny.networks.ladder import cap_features, width_ladder
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.choice import Selection
from tests.conftest import texture
from tests.exports import exported

# Stored with axes permuted and flipped, of unequal spacings: each case is resampled otherwise.
AFFINES = (
    [[0, -1.2, 0, 9], [0, 0, 1.0, -4], [1.5, 0, 0, 3], [0, 0, 0, 1]],
    [[0, 1.0, 0, 0], [0, 0, -1.1, 5], [2.0, 0, 0, 0], [0, 0, 0, 1]],
    [[0, -1.4, 0, 9], [0, 0, 0.9, -4], [-2.5, 0, 0, 3], [0, 0, 0, 1]],
)
KINDS = ("volumes", "slices", "gray", "rgb")


@dataclass(frozen=True)
class Dataset:
    """A data set, the parsed search of it, and the bundle of its plan."""

    kind: str
    root: Path
    search: ConfigParser
    bundle: Path


def write_case(kind: str, root: Path, index: int, channels: int = 2) -> None:
    """A labeled case with values far from z-scores, and a border of 0 to be cropped."""
    images, labels, name = root / "imagesTr", root / "labelsTr", f"c{index}"
    if kind in ("volumes", "slices"):
        field, affine = texture((18 + index, 28, 24), index), np.array(AFFINES[index])
        for channel, values in enumerate((field + 1.0, 300.0 - 2 * field)[:channels]):
            values[:2], values[..., -1] = 0, 0
            image = nibabel.Nifti1Image(values.astype(np.float32), affine)
            nibabel.save(image, images / f"{name}_{channel:04d}.nii.gz")
        label = nibabel.Nifti1Image((field > 128).astype(np.uint8), affine)
        nibabel.save(label, labels / f"{name}.nii.gz")
        return
    field = texture((40, 56 + index), index)
    pixels = field if kind == "gray" else np.stack([field, 255 - field, field // 2], -1)
    pixels = np.maximum(pixels, 1)
    pixels[:3], pixels[:, -2:] = 0, 0
    Image.fromarray(pixels).save(images / f"{name}_0000.png")
    Image.fromarray((field > 128).astype(np.uint8)).save(labels / f"{name}.png")


def choose(plan: UNetPlan, images: tuple[str, ...]) -> Selection:
    """A choice of the plan's narrowest width, of invented scores."""
    ladder = tuple(
        Rung(width, cap_features(plan, width), 1, 1, 1.0, ((1.0,) * len(images),))
        for width in width_ladder(plan)
    )
    seconds = {"load": 1.0, "score": 1.0, "total": 2.0}
    table = ScoreTable(plan, ladder, (0,), images, seconds, {})
    return Selection("paper", ladder[-1].max_features, {ladder[-1].max_features: 1.0}, None, table)


@pytest.fixture(scope="module", params=KINDS)
def dataset(request, tmp_path_factory) -> Dataset:
    """Three cases of each kind, planned as the search plans them."""
    return make_dataset(request.param, tmp_path_factory.mktemp(request.param))


def make_dataset(kind: str, folder: Path, channels: int = 2) -> Dataset:
    """A data set of three cases in a folder; volumes have as many channels."""
    root = folder / "data"
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for index in range(3):
        write_case(kind, root, index, channels)
    search = ConfigParser()
    search.read_config(str(configs_dir() / "search.json"))
    dims = 2 if kind == "slices" else None
    search.update({"images": str(root), "spatial_dims": dims, "progress": False})
    names = tuple(case.images[0] for case in search.get_parsed_content("cases"))
    bundle = exported(choose(search.get_parsed_content("plan"), names), folder / "x_segmentation")
    return Dataset(kind, root, search, bundle)


def config(dataset: Dataset, *names: str) -> ConfigParser:
    """Configs of the bundle, pointed at the data."""
    parser = ConfigParser()
    parser.read_config([str(dataset.bundle / "configs" / f"{name}.json") for name in names])
    parser.update({"bundle_root": str(dataset.bundle), "dataset_dir": str(dataset.root)})
    return parser


def until_normalized(transform: Compose) -> Compose:
    """What is done to an image before it is cropped and padded."""
    steps = transform.transforms
    last = [index for index, step in enumerate(steps) if isinstance(step, NormalizeIntensityd)]
    assert len(last) == 1
    return Compose(steps[: last[0] + 1])


def seen_by_search(dataset: Dataset) -> dict[str, torch.Tensor]:
    read = until_normalized(dataset.search.get_parsed_content("preprocessing"))
    cases = dataset.search.get_parsed_content("cases")
    return {case.name: read({"image": list(case.images)})["image"] for case in cases}


def seen_with_labels(transform: Compose, cases: list[dict]) -> dict[str, torch.Tensor]:
    read = until_normalized(transform)
    return {Path(case["label"]).name.split(".")[0]: read(dict(case))["image"] for case in cases}


def seen_by_training(dataset: Dataset) -> dict[str, torch.Tensor]:
    parser = config(dataset, "train")
    cases = parser.get_parsed_content("labeled_cases").cases
    return seen_with_labels(parser.get_parsed_content("train#preprocessing"), cases)


def seen_by_validation(dataset: Dataset) -> dict[str, torch.Tensor]:
    parser = config(dataset, "train")
    cases = parser.get_parsed_content("labeled_cases").cases
    return seen_with_labels(parser.get_parsed_content("validate#preprocessing"), cases)


def seen_by_evaluation(dataset: Dataset) -> dict[str, torch.Tensor]:
    parser = config(dataset, "train", "evaluate")
    cases = parser.get_parsed_content("labeled_cases").cases
    return seen_with_labels(parser.get_parsed_content("validate#preprocessing"), cases)


def seen_by_inference(dataset: Dataset) -> dict[str, torch.Tensor]:
    parser = config(dataset, "inference")
    read = parser.get_parsed_content("preprocessing")
    cases = parser.get_parsed_content("images").cases
    return {name: read({"image": files})["image"] for name, files in cases.items()}


@pytest.mark.parametrize(
    "seen", [seen_by_training, seen_by_validation, seen_by_evaluation, seen_by_inference],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_every_reader_makes_the_tensor_of_the_search(
    dataset, seen: Callable[[Dataset], dict[str, torch.Tensor]]
) -> None:
    expected, found = seen_by_search(dataset), seen(dataset)
    assert set(found) == {"c0", "c1", "c2"}
    by_case = {Path(name).name.split("_")[0]: image for name, image in expected.items()}
    for name, image in found.items():
        assert image.dtype == by_case[name].dtype == torch.float32
        assert torch.equal(torch.as_tensor(image), torch.as_tensor(by_case[name])), name
        spatial = image.ndim - 1
        assert spatial == (3 if dataset.kind in ("volumes", "slices") else 2)
        assert float(image.mean()) == pytest.approx(0, abs=1e-4)


def test_segmenter_makes_the_tensor_of_inference(dataset) -> None:
    segmenter = Segmenter(lambda images: images, input_format(Bundle.open(dataset.bundle)))
    expected = seen_by_inference(dataset)
    for name, files in config(dataset, "inference").get_parsed_content("images").cases.items():
        if dataset.kind in ("volumes", "slices"):
            with pytest.raises(ValueError, match="which inference.json reads and resamples"):
                segmenter.read(files)
        else:
            image = segmenter.read(files)
            found = z_score(image[(slice(None), *_content(image))])
            np.testing.assert_allclose(found, np.asarray(expected[name]), atol=1e-5)


def test_preprocessing_stands_once_in_each_config(dataset) -> None:
    # Another spacing in one place is another spacing for all that the config reads.
    if dataset.kind in ("volumes", "slices"):
        parser = config(dataset, "train")
        parser["spacing"] = [3.0, 3.0, 3.0]
        case = parser.get_parsed_content("labeled_cases").cases[0]
        shapes = {
            until_normalized(parser.get_parsed_content(f"{part}#preprocessing"))(dict(case))[
                "image"
            ].shape
            for part in ("train", "validate")
        }
        assert len(shapes) == 1
    for name in ("train", "inference"):
        text = (dataset.bundle / "configs" / f"{name}.json").read_text(encoding="utf-8")
        assert text.count("NormalizeIntensityd") == 1
