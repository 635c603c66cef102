"""The Python that travels in bundles, as the module of the package that it is a copy of."""

from __future__ import annotations

import ast
import json
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, MeanDice, StatsHandler, from_engine
from torch import nn

from monai_xtiny import __version__
from monai_xtiny.bundle import workflow
from monai_xtiny.bundle.templates import workflow_source
from monai_xtiny.bundle.writer import export_bundle

NIFTI = {"file_endings": ["nii.gz", "nii"], "in_channels": 2}
PNG = {"file_endings": ["png", "bmp"], "in_channels": 1}


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def find(root: Path, form: dict, **options) -> workflow.LabeledCases:
    return workflow.find_labeled_cases(root, None, root, **form, **options)


def named(cases: list[dict]) -> list[tuple[list[str], str]]:
    """File names of cases."""
    return [
        ([Path(file).name for file in case["image"]], Path(case["label"]).name) for case in cases
    ]


def test_find_labeled_cases_takes_a_file_per_channel_or_one_with_all(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    touch(tmp_path, "imagesTr/b_0000.nii", "labelsTr/b.NII.GZ")
    touch(tmp_path, "imagesTr/notes.txt", "imagesTr/.nii", "labelsTr/.hidden.nii")
    found = find(tmp_path, NIFTI)
    assert named(found.cases) == [
        (["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz"),
        (["b_0000.nii"], "b.NII.GZ"),
    ]
    assert (found.unmatched, found.unlabeled, found.duplicates) == ({}, [], [])
    assert found.source == str(tmp_path)


def test_find_labeled_cases_says_what_fits_no_case(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.png", "imagesTr/a_0000.bmp", "labelsTr/a.png")
    touch(tmp_path, "labelsTr/without.png", "imagesTr/alone_0000.png")
    found = find(tmp_path, PNG)
    assert named(found.cases) == [(["a_0000.png"], "a.png"), ([], "without.png")]
    assert list(found.unmatched) == ["without"]
    assert [Path(file).name for file in found.unlabeled] == ["alone_0000.png"]
    assert [Path(file).name for file in found.duplicates] == ["a_0000.bmp"]


def test_find_labeled_cases_reads_both_sections_of_a_datalist(tmp_path) -> None:
    cases = [{"image": f"./i/{name}.nii", "label": f"./l/{name}.nii"} for name in "abc"]
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"training": cases[:2], "validation": cases[2:]}))
    found = workflow.find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
    assert [case["image"] for case in found.cases] == [f"{tmp_path}/i/{name}.nii" for name in "ab"]
    assert [case["label"] for case in found.validation] == [f"{tmp_path}/l/c.nii"]
    assert found.source == str(datalist)
    datalist.write_text(json.dumps({"training": cases}))
    found = workflow.find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
    assert (len(found.cases), found.validation) == (3, [])


def test_find_data_root_is_the_datalists_folder_unless_another_is_given(tmp_path) -> None:
    datalist, default = tmp_path / "list.json", "bundle/dataset"
    assert workflow.find_data_root(default, datalist, default) == str(tmp_path)
    assert workflow.find_data_root("elsewhere", datalist, default) == "elsewhere"
    assert workflow.find_data_root("elsewhere", None, default) == "elsewhere"


def test_find_images_joins_channels_of_complete_cases_only(tmp_path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b.nii", "c_0000.nii", "c_0001.nii")
    touch(tmp_path, "c_0002.nii", "d_0001.nii")  # numbered otherwise than channels
    found = workflow.find_images(tmp_path, **NIFTI)
    files = {case: [Path(file).name for file in files] for case, files in found.cases.items()}
    assert files == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b.nii"],
        **{name: [f"{name}.nii"] for name in ("c_0000", "c_0001", "c_0002", "d_0001")},
    }
    assert (found.unclear, found.duplicates) == ([], [])
    assert found.data == [{"image": files} for files in found.cases.values()]


def test_find_images_looks_into_images_tr_where_the_folder_holds_none(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.png", "dataset.json")
    assert list(workflow.find_images(tmp_path, **PNG).cases) == ["a"]
    touch(tmp_path, "b.png")
    assert list(workflow.find_images(tmp_path, **PNG).cases) == ["b"]
    assert workflow.find_images(tmp_path / "nowhere", **PNG).cases == {}


def test_find_images_says_what_is_unclear(tmp_path) -> None:
    touch(tmp_path, "a_0000.nii", "b.nii", "b.nii.gz", "c.nii", "c_0000.nii", "c_0001.nii")
    found = workflow.find_images(tmp_path, **{**NIFTI, "in_channels": 2})
    assert found.unclear == ["c"]
    assert [Path(file).name for file in found.duplicates] == ["b.nii"]


@pytest.mark.parametrize(
    "names, ending",
    [(["a.png"], ".png"), (["a.nii"], ".nii.gz"), (["a.NII.GZ", "b.png"], ".nii.gz"), ([], ".png")],
    ids=str,
)
def test_image_cases_write_nifti_where_there_is_nifti(tmp_path, names, ending) -> None:
    touch(tmp_path, *names)
    form = {"file_endings": ["nii.gz", "nii", "png"], "in_channels": 1}
    assert workflow.find_images(tmp_path, **form).output_ext == ending


def test_image_cases_name_labels_by_case(tmp_path) -> None:
    touch(tmp_path, "a.b_0000.nii.gz", "a.b_0001.nii.gz")
    found = workflow.find_images(tmp_path, **NIFTI)
    first = found.cases["a.b"][0]
    # SaveImage takes off one ending.
    assert found.name_output({"filename_or_obj": first}, None) == {"subject": "a.b.nii"}
    assert found.name_output({"filename_or_obj": "other"}, None) == {"subject": "other"}


def labeled(count: int, validation: int = 0) -> workflow.LabeledCases:
    cases = [
        {"image": [f"imagesTr/c{i}.png"], "label": f"labelsTr/c{i}.png"}
        for i in range(count + validation)
    ]
    return workflow.LabeledCases("data", cases[:count], cases[count:], {}, [], [])


def numbers(cases: list[dict]) -> list[int]:
    return [int(Path(case["label"]).stem[1:]) for case in cases]


def test_split_cases_is_the_split_of_earlier_bundles() -> None:
    split = workflow.split_cases(labeled(10), fold=1, val_fraction=0.2, split_seed=0)
    assert numbers(split.training) == [2, 8, 1, 6, 7, 3, 0, 5]
    assert numbers(split.validation) == [4, 9]


@pytest.mark.parametrize("count", [2, 5, 6, 7, 11, 15])
def test_split_cases_holds_every_case_out_once(count) -> None:
    held_out = []
    for fold in range(5):
        split = workflow.split_cases(labeled(count), fold=fold, val_fraction=0.2, split_seed=3)
        assert sorted(numbers(split.training + split.validation)) == list(range(count))
        held_out += numbers(split.validation)
    assert sorted(held_out) == list(range(count))


def test_split_cases_trains_on_one_case_at_least() -> None:
    split = workflow.split_cases(labeled(3), fold=0, val_fraction=1.0, split_seed=0)
    assert (len(split.training), len(split.validation)) == (1, 2)
    split = workflow.split_cases(labeled(1), fold=0, val_fraction=0.2, split_seed=0)
    assert (len(split.training), len(split.validation)) == (1, 0)


def test_split_cases_holds_out_what_the_datalist_does() -> None:
    split = workflow.split_cases(labeled(4, 2), fold=3, val_fraction=0.2, split_seed=0)
    assert sorted(numbers(split.training)) == [0, 1, 2, 3]
    assert numbers(split.validation) == [4, 5]
    assert split.label_names()[1] == ["c4.png", "c5.png"]


def test_write_split_is_a_datalist_relative_to_the_data(tmp_path) -> None:
    root = touch(tmp_path / "data", *(f"imagesTr/{name}.png" for name in "ab"))
    touch(root, *(f"labelsTr/{name}.png" for name in "ab"))
    split = workflow.split_cases(find(root, PNG), fold=0, val_fraction=0.5, split_seed=0)
    file = tmp_path / "split.json"
    workflow.write_split(split, file, root)
    assert file.read_text().endswith("}\n") and [p.name for p in tmp_path.glob("*.part")] == []
    assert [path.name for path in file.parent.glob(".*")] == []
    found = workflow.find_labeled_cases(root, file, root, **PNG)
    assert workflow.split_cases(found, fold=0, val_fraction=0.5, split_seed=9) == workflow.Split(
        split.training, split.validation
    )
    content = json.loads(file.read_text())
    assert set(content) == {"description", "training", "validation"}
    assert content["training"][0]["label"] in ("labelsTr/a.png", "labelsTr/b.png")


def test_write_split_takes_one_image_as_text(tmp_path) -> None:
    split = workflow.Split([{"image": "d/i/a.nii", "label": "d/l/a.nii"}], [])
    workflow.write_split(split, tmp_path / "s.json", "d")
    assert json.loads((tmp_path / "s.json").read_text())["training"] == [
        {"image": ["i/a.nii"], "label": "l/a.nii"}
    ]


def test_check_cases_names_labels_without_their_images(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii", "labelsTr/a.nii", "labelsTr/b.nii")
    found = find(tmp_path, {**NIFTI, "in_channels": 3})
    with pytest.raises(ValueError, match=r"the labels b in .*/labelsTr need .*3 channels.*\[0\]"):
        workflow.check_cases(found, found.cases, **NIFTI | {"in_channels": 3})


def test_check_cases_refuses_an_empty_data_set(tmp_path) -> None:
    found = find(tmp_path, NIFTI)
    with pytest.raises(ValueError, match=r"no labeled image in .*as nii.gz nii, or pass --data"):
        workflow.check_cases(found, found.cases, **NIFTI)
    workflow.check_cases(found, [{"image": "a", "label": "b"}], **NIFTI)  # of another's


@pytest.mark.parametrize(
    "name, message",
    [
        ("imagesTr/b_0000.png", r"no label in labelsTr for the images .*b_0000\.png: add"),
        ("imagesTr/a_0000.bmp", r"two files are of one case: rename or remove .*a_0000\.bmp"),
        ("labelsTr/a.bmp", r"two files are of one case: rename or remove .*a\.bmp"),
    ],
)
def test_check_unused_names_what_would_be_left_out(tmp_path, name, message) -> None:
    touch(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png")
    workflow.check_unused(find(tmp_path, PNG))
    touch(tmp_path, name)
    with pytest.raises(ValueError, match=message):
        workflow.check_unused(find(tmp_path, PNG))


def test_check_fold_names_the_folds_that_there_are() -> None:
    options = {"fold": 5, "val_fraction": 0.2}
    split = workflow.split_cases(labeled(7), **options, split_seed=0)
    with pytest.raises(ValueError, match=r"fold 5 holds out none of the 7 cases: give --fold .* 4"):
        workflow.check_fold(split, **options)
    for count, fraction in ((7, 0.0), (1, 0.2)):
        options = {"fold": 0, "val_fraction": fraction}
        workflow.check_fold(
            workflow.split_cases(labeled(count), **options, split_seed=0), **options
        )


def test_check_evaluation_needs_cases_with_images(tmp_path) -> None:
    found = find(touch(tmp_path, "imagesTr/a.png", "labelsTr/a.png"), PNG)
    workflow.check_evaluation(found, found.cases)
    with pytest.raises(ValueError, match="no labeled image to evaluate in"):
        workflow.check_evaluation(found, [])
    found = find(touch(tmp_path, "labelsTr/b.png"), PNG)
    with pytest.raises(ValueError, match="no image, or not one for each channel, for the labels b"):
        workflow.check_evaluation(found, found.cases)


def test_check_images_says_what_is_wrong_with_the_folder(tmp_path) -> None:
    found = workflow.find_images(tmp_path, **NIFTI)
    with pytest.raises(ValueError, match=r"no image in .* or its imagesTr \(looked for nii.gz nii"):
        workflow.check_images(found, found.data, **NIFTI)
    found = workflow.find_images(touch(tmp_path, "a.nii"), **NIFTI)
    workflow.check_images(found, found.data, **NIFTI)
    found = workflow.find_images(touch(tmp_path, "a.nii.gz"), **NIFTI)
    with pytest.raises(ValueError, match=r"two images would give one label file: rename .*a\.nii"):
        workflow.check_images(found, found.data, **NIFTI)
    found = workflow.find_images(touch(tmp_path, "b.nii", "b_0000.nii", "b_0001.nii"), **NIFTI)
    with pytest.raises(ValueError, match="expected 1 file or one for each of 2 channels .* case b"):
        workflow.check_images(found, found.data, **NIFTI)


@pytest.mark.parametrize(
    ("dataset", "output"),
    [
        ("images", "images"), ("images", "images/../images"), ("images", "link"),
        ("link", "images"), ("set", "set/imagesTr"), ("set", "set"), ("set", "set/labelsTr"),
        ("set/imagesTr", "set/labelsTr"), ("set/imagesTs", "set/labelsTs"),
    ],
)  # fmt: skip
def test_check_output_dir_refuses_folders_of_the_data_set(tmp_path, dataset, output) -> None:
    touch(tmp_path, "images/a.png", "set/imagesTr/a.png", "set/labelsTr/a.png")
    touch(tmp_path, "set/imagesTs/b.png", "set/labelsTs/b.png", "out/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    found = workflow.find_images(tmp_path / dataset, **PNG)
    with pytest.raises(ValueError, match="among the images or labels: give another --output_dir"):
        workflow.check_output_dir(found, tmp_path / output)
    for other in ("out", "none/yet", "set/predicted"):
        workflow.check_output_dir(found, tmp_path / other)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_check_output_dir_refuses_a_folder_of_links_to_images(tmp_path, link) -> None:
    touch(tmp_path, "images/a.png", "out/b.png", "file")
    found = workflow.find_images(tmp_path / "images", **PNG)
    workflow.check_output_dir(found, tmp_path / "out")
    link(tmp_path / "out" / "a.png", tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=r"out/a\.png' is a link to an image or a label"):
        workflow.check_output_dir(found, tmp_path / "out")
    with pytest.raises(ValueError, match="file' is a file: give another --output_dir"):
        workflow.check_output_dir(found, tmp_path / "file")


def test_check_output_dir_knows_labeled_cases_too(tmp_path) -> None:
    touch(tmp_path, "x/i/a.png", "x/l/a.png", "x/l/b.png", "eval/metrics.csv")
    entries = [{"image": f"x/i/{name}.png", "label": f"x/l/{name}.png"} for name in "ab"]
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"training": entries[:1], "validation": entries[1:]}))
    found = workflow.find_labeled_cases(tmp_path, datalist, tmp_path, **PNG)
    workflow.check_output_dir(found, tmp_path / "eval")
    for folder in ("x/i", "x/l"):
        with pytest.raises(ValueError, match="would lie among the images or labels"):
            workflow.check_output_dir(found, tmp_path / folder)


def test_write_split_names_the_file_of_a_full_disk_and_follows_no_link(tmp_path, monkeypatch):
    file, victim = tmp_path / "datalist.json", touch(tmp_path, "victim") / "victim"
    (tmp_path / "datalist.json.part").symlink_to(victim)
    (tmp_path / ".datalist.json.tmp.killed").mkdir()
    workflow.write_split(workflow.Split([], []), file, tmp_path)
    assert victim.read_text() == ""
    assert sorted(path.name for path in tmp_path.glob("*data*")) == [file.name, f"{file.name}.part"]

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match=r"datalist\.json' cannot be written .*is the disk full"):
        workflow.write_split(workflow.Split([], []), file, tmp_path)
    assert file.read_bytes() == before


def test_check_weights_takes_a_bare_state_dict_and_one_under_model(tmp_path) -> None:
    network, file = nn.Linear(2, 3), str(tmp_path / "model.pt")
    for content in (network.state_dict(), {"model": network.state_dict()}):
        torch.save(content, file)
        workflow.check_weights(file, nn.Linear(2, 3))
        with pytest.raises(ValueError, match="are of another network than network_def"):
            workflow.check_weights(file, nn.Linear(2, 4))


FORM = {"in_channels": 1, "num_classes": 3, "spatial_dims": 3}
GRID = np.array([[0, -1.2, 0, 9], [0, 0, 1.0, -4], [1.5, 0, 0, 3], [0, 0, 0, 1]])


def case(**changes) -> dict:
    """A volume and its label on one grid."""
    image = torch.linspace(0, 1, 60).reshape(1, 3, 4, 5)
    content = {"image": image, "label": torch.arange(60).reshape(1, 3, 4, 5) % 3, **changes}
    affine = {"image": GRID, "label": changes.pop("affine", GRID)}
    return {
        key: MetaTensor(
            content[key],
            affine=torch.as_tensor(affine[key]),
            meta={"filename_or_obj": f"/data/{key}/" + changes.get("name", "c1.nii.gz")},
        )
        for key in ("image", "label")
    }


def shifted(distance: float) -> np.ndarray:
    """The grid, moved along its last axis by so many voxels."""
    affine = GRID.copy()
    affine[:3, 3] += distance * GRID[:3, 2]
    return affine


def test_check_case_returns_what_it_was_given() -> None:
    data = case()
    before = {key: value.clone() for key, value in data.items()}
    assert workflow.check_case(data, **FORM) is data
    assert all(torch.equal(data[key], before[key]) for key in before)
    workflow.check_case(case(affine=shifted(0.05)), **FORM)
    workflow.check_case(case(affine=shifted(5), name="c1.png"), **FORM)  # PNG has no place


@pytest.mark.parametrize(
    "changes, form, message",
    [
        ({}, {"in_channels": 2}, "the image has 1 channels, and the network takes 2: convert the"),
        ({"label": torch.zeros(3, 3, 4, 5)}, {}, "the label has 3 channels: save class indices as"),
        ({}, {"spatial_dims": 2}, "the image has 3 dimensions, and the bundle reads images of 2"),
        (
            {"label": torch.zeros(1, 3, 5, 4)}, {},
            r"the image has shape \(3, 4, 5\), the label \(3, 5, 4\): resample the label to the",
        ),
        ({"affine": shifted(3)}, {}, r"the label lies 3\.0 voxels away from its image \(their aff"),
        ({}, {"num_classes": 2}, r"the label holds 2\.0, and the classes are 0 to 1: renumber"),
        ({"label": torch.full((1, 3, 4, 5), 0.5)}, {}, r"the label holds 0\.5, and the classes"),
        ({"image": torch.full((1, 3, 4, 5), torch.inf)}, {}, "holds voxels that are not finite"),
    ],
    ids=["channels", "label_channels", "axes", "shape", "place", "class", "half", "not_finite"],
)  # fmt: skip
def test_check_case_names_the_case_and_the_remedy(changes, form, message) -> None:
    with pytest.raises(ValueError, match=r"^case c1\.nii\.gz: .*" + message):
        workflow.check_case(case(**changes), **{**FORM, **form})


def test_misplacement_is_the_largest_shift_of_a_corner_along_an_axis_in_voxels() -> None:
    # A label turned round its first axis by 0.1 rad about the first corner, in 2D.
    affine = torch.eye(4, dtype=torch.float64)
    turned = affine.clone()
    turned[:2, :2] = torch.tensor([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]])
    image, label = (
        MetaTensor(torch.zeros(1, 11, 21), affine=item, meta={"filename_or_obj": "a.nii"})
        for item in (affine, turned)
    )
    expected = 10 * (1 - np.cos(0.1)) + 20 * np.sin(0.1)  # of the far corner, along x
    assert workflow._misplacement(image, label) == pytest.approx(expected)


def test_check_loss_stops_where_the_loss_is_not_a_number() -> None:
    def trainer(loss: float) -> SimpleNamespace:
        return SimpleNamespace(state=SimpleNamespace(output={"loss": torch.tensor(loss)}, epoch=7))

    workflow.check_loss(trainer(1e30))
    with pytest.raises(ValueError, match="the loss is not a number in epoch 7: lower --learning_r"):
        workflow.check_loss(trainer(float("nan")))


def test_handlers_of_rank_drops_logs_on_other_ranks(monkeypatch, tmp_path) -> None:
    handlers = [StatsHandler(), CheckpointLoader(str(tmp_path), {"a": nn.Linear(1, 1)})]
    assert workflow.handlers_of_rank(handlers) == handlers
    monkeypatch.setattr(workflow.idist, "get_rank", lambda: 1)
    assert workflow.handlers_of_rank(handlers) == handlers[1:]


class Setup:
    """A tiny training: one voxel, two classes, a convolution."""

    def __init__(self, folder: Path, *, epochs: int, lr: float = 0.1, decay: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        data = [
            {
                "image": torch.randn(1, 4, 4, generator=generator),
                "label": torch.randint(0, 2, (1, 4, 4), generator=generator),
            }
            for _ in range(4)
        ]
        torch.manual_seed(1)
        self.network = nn.Conv2d(1, 2, 1)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr, weight_decay=decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda epoch: 1 / (1 + epoch)
        )
        loader = DataLoader(data, batch_size=2, num_workers=0)
        cpu = torch.device("cpu")
        self.trainer = SupervisedTrainer(
            cpu, epochs, loader, self.network, self.optimizer,
            lambda logits, label: nn.functional.cross_entropy(logits, label[:, 0]),
        )  # fmt: skip
        self.evaluator = SupervisedEvaluator(
            cpu, loader, self.network,
            key_val_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
        )  # fmt: skip
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.scheduler.step())
        self.trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: self.evaluator.run(self.trainer.state.epoch)
        )
        self.file = str(folder / "deep" / "state.pt")
        self.split = workflow.split_cases(labeled(4), fold=0, val_fraction=0.5, split_seed=0)

    def state(self, **options) -> workflow.TrainingState:
        options = {"split": self.split, "network": self.network, "resume": True, **options}
        return workflow.TrainingState(self.file, **options)

    def run(self, *, save: bool = True, resume: bool = True) -> workflow.TrainingState:
        state = self.state(resume=resume)
        state.check(self.trainer.state.max_epochs)
        state.attach(
            self.trainer, self.evaluator, self.optimizer, self.scheduler, seed=0, save=save
        )
        self.trainer.run()
        return state


def test_training_state_goes_on_as_if_it_had_not_stopped(tmp_path) -> None:
    whole = Setup(tmp_path / "whole", epochs=3)
    whole.run()
    for epochs in (1, 3):
        parts = Setup(tmp_path / "parts", epochs=epochs)
        state = parts.run()
    assert state.former_epoch == 1
    assert parts.trainer.state.epoch == 3 and parts.trainer.state.iteration == 6
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, parts.network.state_dict()[name]), name
    assert vars(whole.evaluator.state)["best_metric"] == parts.evaluator.state.best_metric
    assert not list(tmp_path.rglob("*.part"))


def test_training_state_keeps_the_best_of_the_former_run(tmp_path) -> None:
    Setup(tmp_path, epochs=1).run()
    content = torch.load(tmp_path / "deep" / "state.pt", weights_only=True)
    content["best"] = {"best_metric": 1e9, "best_metric_epoch": 1}
    torch.save(content, tmp_path / "deep" / "state.pt")
    later = Setup(tmp_path, epochs=2)
    later.run()
    assert (later.evaluator.state.best_metric, later.evaluator.state.best_metric_epoch) == (1e9, 1)


def test_training_state_takes_the_settings_of_this_run(tmp_path) -> None:
    Setup(tmp_path, epochs=2).run()
    later = Setup(tmp_path, epochs=3, lr=0.7, decay=0.3)
    rates = []
    later.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: rates.append(later.optimizer.param_groups[0]["lr"])
    )
    later.run()
    group = later.optimizer.param_groups[0]
    assert rates == [0.7 / 3] * 2  # the factor of the third epoch
    assert (group["initial_lr"], group["weight_decay"]) == (0.7, 0.3)


def test_training_state_neither_reads_nor_writes_unless_asked_to(tmp_path) -> None:
    Setup(tmp_path, epochs=1).run(save=False)
    assert list(tmp_path.rglob("*")) == []
    Setup(tmp_path, epochs=1).run()
    anew = Setup(tmp_path, epochs=1)
    assert anew.run(resume=False).former == {}
    assert anew.trainer.state.iteration == 2


@pytest.mark.parametrize(
    "options, max_epochs, message",
    [
        (
            {"split": workflow.Split(labeled(2).cases, [])}, 9,
            "is of other cases or of another split: pass another --output_dir, or --resume False",
        ),
        ({"network": nn.Conv2d(1, 3, 1)}, 9, "is of another network: pass another --output_dir"),
        ({}, 1, "has 2 epochs already: give --epochs above that, or --resume False to start anew"),
    ],
    ids=["split", "network", "epochs"],
)  # fmt: skip
def test_training_state_refuses_another_training(tmp_path, options, max_epochs, message) -> None:
    setup = Setup(tmp_path, epochs=2)
    setup.state().check(0)  # nothing there
    setup.run()
    setup.state().check(2)
    with pytest.raises(ValueError, match=f"the training in .*state.pt {message}"):
        setup.state(**options).check(max_epochs)


def test_best_weights_are_those_of_the_best_validation(tmp_path) -> None:
    setup, file = Setup(tmp_path, epochs=4), tmp_path / "models" / "model.pt"
    # Without a metric of its own.
    setup.evaluator = SupervisedEvaluator(
        torch.device("cpu"), setup.trainer.data_loader, setup.network
    )
    scores = iter([0.5, 0.9, 0.7, 0.8])
    weights = {}

    def judge() -> None:
        state = setup.evaluator.state
        if (score := next(scores)) > state.best_metric:
            state.best_metric, state.best_metric_epoch = score, state.epoch
        weights[state.epoch] = {k: v.clone() for k, v in setup.network.state_dict().items()}

    setup.evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: judge())
    best = workflow.BestWeights(setup.network, str(file))
    best.attach(setup.evaluator)
    setup.trainer.run()
    found = torch.load(file, weights_only=True)
    assert all(torch.equal(found[name], weights[2][name]) for name in found)
    best.save_unless_validated(setup.evaluator)
    assert all(torch.equal(torch.load(file, weights_only=True)[k], found[k]) for k in found)
    assert [path.name for path in file.parent.iterdir()] == ["model.pt"]


def test_best_weights_are_the_last_without_a_validation(tmp_path) -> None:
    network, file = nn.Linear(2, 2), tmp_path / "model.pt"
    evaluator = SimpleNamespace(state=SimpleNamespace(best_metric_epoch=-1))
    workflow.BestWeights(network, str(file)).save_unless_validated(evaluator)
    assert torch.equal(torch.load(file, weights_only=True)["weight"], network.weight)


def test_gradient_clipping_scales_gradients_to_the_norm(tmp_path) -> None:
    setup = Setup(tmp_path, epochs=1)
    norms = []

    def norm() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in setup.network.parameters()]).norm()

    workflow.GradientClipping(setup.network, setup.optimizer, 1e-3).attach(setup.trainer)
    setup.trainer.add_event_handler(
        workflow.IterationEvents.BACKWARD_COMPLETED, lambda: norms.append(float(norm()))
    )
    setup.trainer.run()
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_gradient_clipping_takes_the_scale_of_mixed_precision_out_first(tmp_path) -> None:
    setup = Setup(tmp_path, epochs=1)
    seen = []

    class Scaler:
        def unscale_(self, optimizer) -> None:
            seen.append(optimizer)
            for parameter in setup.network.parameters():
                parameter.grad = torch.full_like(parameter, 1.0)

    setup.trainer.scaler = Scaler()
    workflow.GradientClipping(setup.network, setup.optimizer, 1.0)(setup.trainer)
    assert seen == [setup.optimizer]
    squares = [float((p.grad**2).sum()) for p in setup.network.parameters()]
    assert sum(squares) == pytest.approx(1.0, rel=1e-3)


def test_files_are_written_by_rank_0_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("ignite.distributed.utils.get_rank", lambda: 1)
    workflow.BestWeights(nn.Linear(1, 1), str(tmp_path / "model.pt")).save()
    workflow.write_split(workflow.Split([], []), tmp_path / "split.json", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_former_file(monkeypatch, tmp_path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"trained for days")

    def fail(content, path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full, on purpose")

    monkeypatch.setattr(workflow.torch, "save", fail)
    with pytest.raises(OSError, match="on purpose"):
        workflow.BestWeights(nn.Linear(1, 1), str(file)).save()
    assert file.read_bytes() == b"trained for days"


def test_workflow_imports_nothing_that_a_bundle_lacks() -> None:
    allowed = {"numpy", "torch", "monai", "ignite", *sys.stdlib_module_names}
    tree = ast.parse(workflow_source())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module.split(".")[0])
    assert {"torch", "monai"} < found <= allowed


def test_export_bundle_writes_this_file_and_who_wrote_it(tmp_path, selection) -> None:
    bundle = export_bundle(selection, tmp_path / "x_segmentation")
    text = (bundle / "scripts" / "workflow.py").read_text(encoding="utf-8")
    header, source = text.split("\n", 1)
    assert header == f"# Written by monai_xtiny {__version__}, which need not be installed."
    assert source == Path(workflow.__file__).read_text(encoding="utf-8")
    assert [path.name for path in (bundle / "scripts").iterdir()] == ["workflow.py"]


def loaded(bundle: Path, **options) -> SimpleNamespace:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), **options})
    return parser.get_parsed_content("workflow")


def test_two_bundles_in_one_process_have_their_own_workflow(
    tmp_path, selection, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = export_bundle(selection, tmp_path / "a_segmentation")
    second = export_bundle(selection, tmp_path / "b_segmentation")
    file = second / "scripts" / "workflow.py"
    file.write_text(file.read_text() + "\n\ndef check_loss(trainer):\n    return 'changed'\n")
    before, path = set(sys.modules), list(sys.path)
    spaces = [loaded(first), loaded(second)]
    assert set(sys.modules) == before and sys.path == path
    assert spaces[1].check_loss(None) == "changed"
    with pytest.raises(AttributeError):
        spaces[0].check_loss(None)
    assert spaces[0].Split is not spaces[1].Split
    moved = first.rename(tmp_path / "moved_segmentation")
    assert loaded(moved).find_rotated_axes([9, 9, 1]) == [2]
    assert not list(tmp_path.rglob("__pycache__"))


def test_workflow_runs_where_monai_xtiny_cannot_be_imported(
    tmp_path, selection, monkeypatch
) -> None:
    bundle = export_bundle(selection, tmp_path / "x_segmentation")
    for name in [name for name in sys.modules if name.split(".")[0] == "monai_xtiny"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai_xtiny", None)
    space = runpy.run_path(os.fspath(bundle / "scripts" / "workflow.py"))
    assert space["find_rotated_axes"]([3, 3]) == [0, 1]
