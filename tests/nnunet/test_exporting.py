from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from monai_xtiny.bundle.folder import CARD, Bundle
from monai_xtiny.bundled.nnunet_preprocessing import Resampling, preprocess, read_preprocessing
from monai_xtiny.cli.commands import main
from monai_xtiny.deploy.segment import segment_images
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.nnunet.checkpoint import network_axes, read_checkpoint
from monai_xtiny.nnunet.exporting import export_to_nnunet
from monai_xtiny.nnunet.importing import import_checkpoint
from tests.conftest import texture
from tests.nnunet.models import DATASET, planned, small_plans, write_model
from tests.nnunet.test_checkpoint import nnunet_network

ROOT = Path(__file__).parents[2]
HIPPOCAMPUS = ROOT / "bundle" / "hippocampus_mri_xtiny_segmentation"
NUCLEI = ROOT / "bundle" / "nuclei_fluorescence_xtiny_segmentation"


def read(path: Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def same_weights(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles have the same weights, bit for bit."""
    ours, theirs = one.weights(), other.weights()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("source", [HIPPOCAMPUS, NUCLEI], ids=["volumes", "images"])
def test_export_to_nnunet_and_back_gives_equal_weights(tmp_path, source) -> None:
    made = export_to_nnunet(source, tmp_path / "model")
    file = made.path / "fold_0" / "checkpoint_final.pth"
    back = Bundle.open(import_checkpoint(file, tmp_path / "x_segmentation"))
    bundle = Bundle.open(source)
    assert same_weights(bundle, back)
    assert back.label_names == bundle.label_names
    assert (back.kind, back.plan.patch_size) == (bundle.kind, bundle.plan.patch_size)
    assert back.plan.features_per_stage == bundle.selection.rung.features_per_stage


@pytest.mark.parametrize("kernel", [(3, 3, 1), (3, 3, 3)], ids=["anisotropic", "isotropic"])
def test_import_and_export_give_equal_weights(tmp_path, kernel) -> None:
    plans = small_plans()
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["kernel_sizes"][0] = list(kernel[::-1])
    plans["transpose_forward"], plans["transpose_backward"] = [1, 2, 0], [2, 0, 1]
    plan = planned(plans, "3d_fullres", DATASET)
    weights = nnunet_network(plan, network_axes((1, 2, 0), 3)).state_dict()
    file = write_model(tmp_path / "x.pth", plans=plans, network_weights=weights)
    first = Bundle.open(import_checkpoint(file, tmp_path / "x_segmentation"))
    made = export_to_nnunet(first, tmp_path / "model")
    there = made.path / "fold_0" / "checkpoint_final.pth"
    second = Bundle.open(import_checkpoint(there, tmp_path / "y_segmentation"))
    assert same_weights(first, second)
    assert first.plan == second.plan
    for name in ("inference", "train"):
        assert first.config(name) == second.config(name)
    assert read_checkpoint(there).mirror_axes == (0, 2)
    exported = read(made.path / "plans.json")
    assert exported["transpose_forward"] == [1, 2, 0]


def test_export_to_nnunet_says_what_the_bundle_does(tmp_path) -> None:
    made = export_to_nnunet(HIPPOCAMPUS, tmp_path / "model")
    plans, dataset = read(made.path / "plans.json"), read(made.path / "dataset.json")
    settings = plans["configurations"][made.configuration]
    assert made.configuration == "3d_fullres_xtiny8"
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"
    assert dataset["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert dataset["file_ending"] == ".nii.gz"
    found = read_preprocessing(plans, settings)
    assert found.image_resampling == Resampling(1, 0, False)
    assert settings["patch_size"] == [40, 56, 40]
    assert read_checkpoint(made.path / "fold_0" / "checkpoint_final.pth").mirror_axes == ()
    plan = planned(plans, made.configuration, dataset)
    assert plan.spacing == Bundle.open(HIPPOCAMPUS).plan.spacing


def test_export_to_nnunet_of_images(tmp_path) -> None:
    made = export_to_nnunet(NUCLEI, tmp_path / "model")
    plans, dataset = read(made.path / "plans.json"), read(made.path / "dataset.json")
    assert plans["image_reader_writer"] == "NaturalImage2DIO"
    assert (dataset["file_ending"], made.configuration) == (".png", "2d_xtiny8")


def nifti_images(tmp_path: Path) -> Path:
    """The bundle of 2D images, as if it had been searched on NIfTI of 0.5 x 0.7 mm."""
    bundle = Path(shutil.copytree(NUCLEI, tmp_path / NUCLEI.name))
    path = bundle / "docs" / "search.json"
    content = read(path)
    content["images"] = [name.replace(".png", ".nii.gz") for name in content["images"]]
    content["plan"]["spacing"] = [0.5, 0.7]
    path.write_text(json.dumps(content))
    return bundle


def test_export_to_nnunet_of_nifti_images_resamples_nothing(tmp_path) -> None:
    made = export_to_nnunet(nifti_images(tmp_path), tmp_path / "model")
    plans, dataset = read(made.path / "plans.json"), read(made.path / "dataset.json")
    settings = plans["configurations"][made.configuration]
    assert (plans["image_reader_writer"], dataset["file_ending"]) == ("SimpleITKIO", ".nii.gz")
    for what in ("data", "seg", "probabilities"):  # nnU-Net's function takes no other arguments
        assert settings[f"resampling_fn_{what}"] == "no_resampling_hack"
        assert settings[f"resampling_fn_{what}_kwargs"] == {}
    image = np.random.default_rng(0).uniform(1, 9, (1, 1, 30, 20))
    data, _ = preprocess(image, (999, 3.0, 2.0), read_preprocessing(plans, settings))
    assert data.shape == image.shape


@pytest.mark.search
@pytest.mark.parametrize("spacing", [(0.5, 0.7), (1.5, 2.5)], ids=["planned", "other"])
def test_export_of_nifti_images_and_back_gives_equal_labels(tmp_path, spacing) -> None:
    bundle = Bundle.open(nifti_images(tmp_path))
    made = export_to_nnunet(bundle, tmp_path / "model")
    file = made.path / "fold_0" / "checkpoint_final.pth"
    back = Bundle.open(import_checkpoint(file, tmp_path / "x_segmentation"))
    assert back.kind == "images"
    assert "no resampling" in back.path(CARD).read_text(encoding="utf-8")
    again = export_to_nnunet(back, tmp_path / "again")
    settings = [read(item.path / "plans.json")["configurations"] for item in (made, again)]
    assert settings[0] == settings[1]
    affine = np.diag([*spacing, 1.0, 1.0])
    image = nibabel.Nifti1Image(texture((256, 256), 0), affine)
    nibabel.save(image, tmp_path / "a.nii.gz")
    labels = []
    for name, item in {"own": bundle, "back": back}.items():
        done = segment_images(item, tmp_path / "a.nii.gz", tmp_path / name, say=lambda _: None)
        assert done.problems == []
        labels.append(np.asarray(nibabel.load(tmp_path / name / "a.nii.gz").dataobj))
    assert 0.01 < labels[0].mean() < 0.99
    # Of a pixel or two both logits are equal to nnU-Net's float16.
    assert (labels[0] != labels[1]).sum() <= 2


def test_export_to_nnunet_takes_names_from_the_folder(tmp_path) -> None:
    folder = tmp_path / "Dataset004_Hippocampus" / "nnUNetTrainer__myPlans__3d_tiny"
    made = export_to_nnunet(HIPPOCAMPUS, folder)
    plans = read(folder / "plans.json")
    assert made.configuration == "3d_tiny"
    assert (plans["plans_name"], plans["dataset_name"]) == ("myPlans", "Dataset004_Hippocampus")
    assert list(plans["configurations"]) == ["3d_tiny"]


def copied(tmp_path: Path) -> Path:
    """A copy of a trained bundle."""
    return Path(shutil.copytree(HIPPOCAMPUS, tmp_path / HIPPOCAMPUS.name))


def test_export_to_nnunet_writes_every_fold(tmp_path) -> None:
    bundle = copied(tmp_path)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    other = {name: value + 1 for name, value in state.items()}
    torch.save(other, bundle / "models" / "model_fold2.pt")
    made = export_to_nnunet(bundle, tmp_path / "model")
    assert made.folds == (0, 2)
    found = read_checkpoint(made.path / "fold_2" / "checkpoint_final.pth").weights
    assert torch.equal(found["decoder.seg_layers.2.bias"], other["output_block.conv.conv.bias"])


def test_export_to_nnunet_gives_nnunet_all_that_it_loads(tmp_path) -> None:
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    made = export_to_nnunet(HIPPOCAMPUS, tmp_path / "model")
    settings = read(made.path / "plans.json")["configurations"][made.configuration]
    arguments = dict(settings["architecture"]["arch_kwargs"])
    for name in settings["architecture"]["_kw_requires_import"]:
        if arguments[name] is not None:
            arguments[name] = getattr(torch.nn, arguments[name].rsplit(".", 1)[-1])
    network = unet.PlainConvUNet(input_channels=1, num_classes=3, **arguments)
    weights = read_checkpoint(made.path / "fold_0" / "checkpoint_final.pth").weights
    network.load_state_dict(weights)
    image = torch.randn(1, 1, 40, 56, 40)
    with torch.inference_mode():
        expected = Bundle.open(HIPPOCAMPUS).network()(image)
        found = network.eval()(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    assert float(expected.std()) > 1
    assert torch.allclose(found, expected, atol=1e-4)


def rename_labels(bundle: Path, name: str) -> None:
    """Give a class another name."""
    path = bundle / "configs" / "metadata.json"
    content = read(path)
    content["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] = name
    path.write_text(json.dumps(content))


def change_network(bundle: Path) -> None:
    """Give the bundle another network."""
    path = bundle / "configs" / "inference.json"
    content = read(path)
    content["network_def"]["filters"] = [8, 8, 8, 16]
    path.write_text(json.dumps(content))


def change_config(bundle: Path, **settings) -> None:
    """Change keys of ``inference.json``; ``None`` takes them out."""
    path = bundle / "configs" / "inference.json"
    content = read(path)
    content.update(settings)
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))


def change_weights(bundle: Path, change) -> None:
    """Change the state dict of a bundle."""
    path = bundle / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


NAME = "output_block.conv.conv.bias"


def put_wider_network(bundle: Path) -> None:
    """Weights of the same plan, and twice the width."""
    network = build_network(Bundle.open(bundle).plan, 16, seed=0)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put_wider_network, "has shape"),
        (lambda bundle: change_weights(bundle, lambda state: state.pop(NAME)), f"has no {NAME}"),
        (lambda bundle: change_weights(bundle, lambda state: state.update(more=state[NAME])),
         "holds more, which the network does not have"),
        (lambda bundle: change_weights(bundle, lambda state: state.update(
            {NAME: state[NAME][:2].clone()})), f"{NAME} has shape"),
        (lambda bundle: change_weights(bundle, lambda state: state.update(
            {NAME: state[NAME].int()})), f"{NAME} is of torch.int32"),
    ],
    ids=["width", "missing", "unknown", "cut", "whole-numbers"],
)  # fmt: skip
def test_export_to_nnunet_refuses_weights_of_another_network(tmp_path, change, words) -> None:
    bundle = copied(tmp_path)
    change(bundle)
    with pytest.raises(ValueError, match=rf"model\.pt.*{words}") as caught:
        export_to_nnunet(bundle, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def changed_kept(key: str, **settings):
    """A change of a dictionary of an imported bundle's ``inference.json``."""
    return lambda config: {key: {**config[key], **settings}}


@pytest.mark.parametrize(
    "change",
    [
        lambda config: {"nnunet_plans": None},
        lambda config: {"nnunet_plans": 3},
        lambda config: {"nnunet_configuration": {
            key: value for key, value in config["nnunet_configuration"].items()
            if key != "spacing"}},
        lambda config: {"mirror_axes": [5]},
        lambda config: {"mirror_axes": 5},
        changed_kept("nnunet_plans", transpose_forward=[0, 0, 7]),
        changed_kept("nnunet_plans", image_reader_writer="Foo"),
        changed_kept("nnunet_plans", file_ending=7),
        changed_kept("nnunet_plans", channel_names=["a", "b", "c"]),
        changed_kept("nnunet_configuration", normalization_schemes=["Mine"]),
    ],
    ids=["no-plans", "number", "no-spacing", "flips", "flip", "axes", "reader", "ending",
         "channels", "scheme"],
)  # fmt: skip
def test_export_to_nnunet_checks_the_settings_of_an_imported_bundle(tmp_path, change) -> None:
    file = write_model(tmp_path / "x.pth")
    bundle = import_checkpoint(file, tmp_path / "x_segmentation")
    change_config(bundle, **change(Bundle.open(bundle).config("inference")))
    with pytest.raises(ValueError, match=r"inference\.json|model\.pt") as caught:
        export_to_nnunet(bundle, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert "--plans" not in str(caught.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bundle: change_config(bundle, spacing=[2.0, 2.0, 2.0]),
         "has another spacing than docs/search.json chose"),
        (lambda bundle: change_config(bundle, patch_size=[32, 32, 32]),
         "has another patch_size than docs/search.json chose"),
        (lambda bundle: change_config(bundle, preprocessing={"_target_": "Compose"}),
         r"is not as this version writes it \(preprocessing\), and nnU-Net does only that"),
        (lambda bundle: rename_labels(bundle, "ignore"), "nnU-Net cannot have the labels"),
        (lambda bundle: rename_labels(bundle, "Posterior"), "nnU-Net cannot have the labels"),
        (change_network, "has another network than docs/search.json chose"),
        (lambda bundle: (bundle / "models" / "model.pt").write_bytes(b"x"), "damaged"),
    ],
    ids=["spacing", "patch", "steps", "ignore", "twice", "network", "damaged"],
)  # fmt: skip
def test_export_to_nnunet_refuses_in_one_line(tmp_path, change, words) -> None:
    bundle = copied(tmp_path)
    change(bundle)
    with pytest.raises(ValueError, match=words) as caught:
        export_to_nnunet(bundle, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_export_to_nnunet_leaves_the_overlap_to_the_command_line(tmp_path) -> None:
    bundle, texts = copied(tmp_path), []
    for overlap in (0.5, 0.25):
        change_config(bundle, overlap=overlap)
        made = export_to_nnunet(bundle, tmp_path / f"model{overlap}")
        texts.append((made.path / "plans.json").read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    page = (ROOT / "docs" / "nnunet.md").read_text(encoding="utf-8")
    assert "`nnUNetv2_predict -step_size` is 1 - `overlap`" in page


def test_export_to_nnunet_replaces_nothing(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "plans.json").write_text("{}")
    with pytest.raises(FileExistsError, match="exists: give another --output"):
        export_to_nnunet(HIPPOCAMPUS, tmp_path / "model")
    with pytest.raises(ValueError, match="lies in the bundle"):
        export_to_nnunet(HIPPOCAMPUS, HIPPOCAMPUS / "models" / "nnunet")


def test_export_to_nnunet_refuses_a_place_where_no_folder_can_be(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file: give another --output"):
        export_to_nnunet(HIPPOCAMPUS, tmp_path / "file" / "x")
    with pytest.raises(ValueError, match="holds a character that no path has"):
        export_to_nnunet(HIPPOCAMPUS, "a\0b")
    with pytest.raises(PermissionError, match="cannot be written to.*give another --output"):
        export_to_nnunet(HIPPOCAMPUS, "/proc/model")


def test_export_on_the_command_line(tmp_path, capsys) -> None:
    main(["nnunet", "export", str(NUCLEI), "--output", str(tmp_path / "model")])
    first, second = capsys.readouterr().out.splitlines()
    assert first == str(tmp_path / "model")
    assert "nnUNetv2_predict_from_modelfolder" in second
    with pytest.raises(SystemExit) as caught:
        main(["nnunet", "export", str(NUCLEI), "--output", str(tmp_path / "model")])
    assert caught.value.code == 2
