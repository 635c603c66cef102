from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from monai_xtiny.bundle.card import check_marks
from monai_xtiny.bundle.folder import CARD, Bundle
from monai_xtiny.bundle.foreign import foreign_code
from monai_xtiny.bundle.measured import write_evaluation
from monai_xtiny.bundle.templates import any_rotation
from monai_xtiny.bundled.nnunet_preprocessing import preprocess, read_preprocessing, restore_logits
from monai_xtiny.bundled.nnunet_windows import NnunetInferer
from monai_xtiny.cli.commands import main
from monai_xtiny.deploy.segment import segment_images
from monai_xtiny.nnunet.checkpoint import read_checkpoint
from monai_xtiny.nnunet.importing import import_checkpoint
from monai_xtiny.system.config_text import PlainPath
from monai_xtiny.training.check import check_bundle
from monai_xtiny.training.evaluate import evaluate_bundle, evaluate_held_out
from tests.conftest import texture
from tests.nnunet.models import (
    DATASET,
    change_model,
    planned,
    small_plans,
    trained_network,
    write_model,
)

FLUO = "nnUNetPlans_Dataset076_DSB2018Fluo"
NUCLEI = {"channel_names": {"0": "gray"}, "labels": {"background": 0, "nucleus": 1},
          "file_ending": ".png"}  # fmt: skip


def imported(tmp_path: Path, *arguments, **options) -> Bundle:
    """The bundle of a small checkpoint."""
    file = write_model(tmp_path / "checkpoint_final.pth", *arguments, **options)
    return Bundle.open(import_checkpoint(file, tmp_path / "x_segmentation"))


def test_import_checkpoint_keeps_the_network(tmp_path) -> None:
    bundle = imported(tmp_path)
    plan = planned(small_plans(), "3d_fullres", DATASET)
    assert bundle.plan == plan
    assert bundle.kind == "volumes"
    assert bundle.label_names == ("background", "Anterior", "Posterior")
    expected = trained_network(plan).state_dict()
    found = bundle.weights()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_import_checkpoint_writes_a_bundle_like_others(tmp_path) -> None:
    bundle = imported(tmp_path)
    assert bundle.selection.method == "nnunet"
    assert bundle.selection.confidence is None
    assert foreign_code(bundle) == ()
    card = bundle.path(CARD).read_text(encoding="utf-8")
    check_marks(card)
    assert "trained by nnU-Net as configuration `3d_fullres`" in card
    assert "flips along x, z" in card
    assert bundle.config("metadata")["task"] == "Segmentation of Anterior, Posterior"


def test_import_checkpoint_of_slices_and_of_images(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    slices = imported(tmp_path / "a", "2d", inference_allowed_mirroring_axes=(0,))
    assert (slices.kind, slices.plan.slice_axis) == ("slices", 2)
    assert slices.config("inference")["mirror_axes"] == [1]  # nnU-Net's y
    assert slices.config("train")["rotation_range"] == any_rotation()  # as nnU-Net rotates slices
    assert foreign_code(slices) == ()
    (tmp_path / "b").mkdir()
    images = imported(tmp_path / "b", "2d", plans=small_plans(FLUO), dataset=NUCLEI,
                      inference_allowed_mirroring_axes=(0, 1))  # fmt: skip
    assert images.kind == "images"
    assert images.config("metadata")["data_type"] == "png"
    assert foreign_code(images) == ()


def test_import_checkpoint_without_mirroring(tmp_path) -> None:
    file = write_model(tmp_path / "x.pth")
    made = import_checkpoint(file, tmp_path / "x_segmentation", mirroring=False)
    assert Bundle.open(made).config("inference")["mirror_axes"] == []


def test_import_checkpoint_takes_the_plans_that_nnunet_would(tmp_path) -> None:
    folder = tmp_path / "model" / "fold_0"
    folder.mkdir(parents=True)
    file = write_model(folder / "checkpoint_final.pth")
    plans = small_plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 0.5]
    for name, content in (("plans", plans), ("dataset", DATASET)):
        (tmp_path / "model" / f"{name}.json").write_text(json.dumps(content))
    beside = Bundle.open(import_checkpoint(file, tmp_path / "x_segmentation"))
    assert beside.plan.spacing == (0.5, 1.0, 2.0)
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 1.0, 1.0]
    (tmp_path / "other.json").write_text(json.dumps(plans))
    given = import_checkpoint(file, tmp_path / "y_segmentation", plans=tmp_path / "other.json")
    assert Bundle.open(given).plan.spacing == (1.0, 1.0, 3.0)


def changed_plans(change):
    """A change of the plans in a checkpoint."""
    return lambda content: change(content["init_args"]["plans"])


def changed_settings(**settings):
    """A change of the configuration in a checkpoint."""
    return changed_plans(lambda plans: plans["configurations"]["3d_fullres"].update(settings))


def changed_labels(**labels):
    """A change of the data set in a checkpoint."""
    return lambda content: content["init_args"]["dataset_json"]["labels"].update(labels)


def changed_dataset(**settings):
    """A change of the data set in a checkpoint."""
    return lambda content: content["init_args"]["dataset_json"].update(settings)


def as_residual(plans) -> None:
    """Plans of a network with residual encoders."""
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "x.ResidualEncoderUNet"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed_plans(as_residual), "plans x.ResidualEncoderUNet, which is not supported"),
        (changed_settings(previous_stage="3d_lowres"), "a cascade"),
        (changed_labels(both=[1, 2]), "region 'both' of several values"),
        (changed_labels(ignore=3), "ignore label"),
        (changed_settings(normalization_schemes=["Mine"]), "normalization Mine is unknown"),
        (changed_settings(normalization_schemes=[]), "normalization_schemes"),
        (changed_settings(resampling_fn_data="resample_torch_fornnunet"), "cannot repeat"),
        (changed_settings(resampling_fn_data="no_resampling_hack"), "for images and probabilities"),
        (changed_plans(lambda plans: plans.update(image_reader_writer="Tiff3DIO")), "Tiff3DIO"),
        (changed_plans(lambda plans: plans.update(transpose_forward=[0, 1, 1])), "transpose_forw"),
        (changed_plans(lambda plans: plans.pop("transpose_forward")), "no configuration"),
        (changed_plans(lambda plans: plans.pop("configurations")), "no configuration"),
        (lambda content: content.update(trainer_name="Mine"), "was trained by Mine"),
        (lambda content: content.update(trainer_name="nnUNetTrainerReLUEverything"),
         "was trained by nnUNetTrainerReLUEverything"),
        (lambda content: content.update(trainer_name="nnUNetTrainerBN"), "by nnUNetTrainerBN"),
        (changed_plans(lambda plans: plans.update(label_manager="MyLabelManager")),
         "uses MyLabelManager, which a bundle cannot repeat"),
        (lambda content: content.update(inference_allowed_mirroring_axes=(float("inf"),)),
         "no checkpoint of nnU-Net v2"),
        (lambda content: content.update(inference_allowed_mirroring_axes=(0, 0)),
         "inference_allowed_mirroring_axes is"),
        (lambda content: content.update(inference_allowed_mirroring_axes="012"),
         "inference_allowed_mirroring_axes is"),
        (lambda content: content.update(current_epoch=float("inf")), "no checkpoint of nnU-Net"),
        (changed_dataset(channel_names={"a": "MRI"}), r"x.pth' has the channel_names .*give nnU"),
        (changed_dataset(channel_names={"0": "a", 0: "b"}), "has the channel_names"),
        (changed_labels(Anterior=1.2, Posterior=2.9), "wants whole numbers"),
        (changed_dataset(file_ending=".nrrd"), r"file_ending '.nrrd'.*convert the images to .nii"),
        (changed_dataset(file_ending=7), "file_ending 7"),
        (changed_dataset(file_ending=None), "file_ending None"),
        (changed_plans(lambda plans: plans.update(dataset_name="Dataset1_\u202eevil")),
         "name of the dataset.*holds control characters"),
        (lambda content: content.update(inference_allowed_mirroring_axes=(0, 3)),
         r"flips the axes \[0, 3\]"),
        (lambda content: content["network_weights"].pop("decoder.seg_layers.2.bias"),
         "has no decoder.seg_layers.2.bias"),
        (lambda content: content["init_args"].update(configuration="4d"), "no configuration '4d'"),
        (changed_plans(lambda plans: plans["configurations"]["3d_fullres"].update(
            normalization_schemes=["CTNormalization"]) or plans.pop(
            "foreground_intensity_properties_per_channel")), "no mean of intensities"),
    ],
    ids=["resenc", "cascade", "regions", "ignore", "scheme", "no-scheme", "resampling",
         "one-resampling", "reader", "axes", "no-axes", "no-plans", "trainer", "relu", "batch-norm",
         "label-manager", "flips-inf", "flips-twice", "flips-text", "epochs", "channels",
         "channels-twice", "label-values", "nrrd", "ending", "no-ending", "bidi", "flips",
         "weights", "configuration", "ct"],
)  # fmt: skip
def test_import_checkpoint_refuses_in_one_line(tmp_path, change, words) -> None:
    file = change_model(write_model(tmp_path / "x.pth"), change)
    with pytest.raises(ValueError, match=words) as caught:
        import_checkpoint(file, tmp_path / "x_segmentation")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]


CODE = "$__import__('os').mkdir('harm')"


@pytest.mark.parametrize(
    "change",
    [
        changed_settings(use_mask_for_norm=[CODE]),
        changed_settings(spacing=[CODE, 1, 1]),
        changed_settings(resampling_fn_data_kwargs={"order": 3, "force_separate_z": CODE}),
        changed_settings(resampling_fn_data_kwargs={"order": 3, CODE: CODE}),
        changed_plans(lambda plans: plans.update(image_reader_writer=CODE)),
        changed_plans(lambda plans: plans.update(original_median_shape_after_transp=CODE)),
        changed_plans(lambda plans: plans["foreground_intensity_properties_per_channel"].update(
            {"0": {"mean": CODE, CODE: 1}})),
        changed_plans(lambda plans: plans.update(dataset_name=CODE)),
        lambda content: content["init_args"]["dataset_json"].update(file_ending=CODE),
        lambda content: content["init_args"]["dataset_json"].update(channel_names={"0": CODE}),
    ],
    ids=["mask", "spacing", "separate", "argument", "reader", "median", "intensities", "data-set",
         "ending", "channel"],
)  # fmt: skip
def test_import_checkpoint_lets_no_code_into_configs(tmp_path, change) -> None:
    file = change_model(write_model(tmp_path / "x.pth"), change)
    try:
        made = import_checkpoint(file, tmp_path / "x_segmentation")
    except ValueError:
        return
    for path in (made / "configs").glob("*.json"):
        assert CODE not in path.read_text()


def test_import_checkpoint_refuses_labels_that_are_code(tmp_path) -> None:
    dataset = {**DATASET, "labels": {"background": 0, "$exit()": 1, "b": 2}}
    file = write_model(tmp_path / "x.pth", dataset=dataset)
    with pytest.raises(ValueError, match="label name"):
        import_checkpoint(file, tmp_path / "x_segmentation")


def test_foreign_code_of_an_imported_bundle_is_found(tmp_path) -> None:
    bundle = imported(tmp_path)
    path = bundle.path("configs/inference.json")
    config = json.loads(path.read_text())
    config["nnunet_configuration"]["normalization_schemes"] = ["$exit()"]
    config["inferer"] = "$exit()"
    path.write_text(json.dumps(config))
    bundle.path("scripts/nnunet_windows.py").write_text("exit()")
    found = "\n".join(foreign_code(bundle))
    for words in ("normalization_schemes#0 is '$exit()'", "inferer is", "nnunet_windows.py is not"):
        assert words in found


def test_import_on_the_command_line(tmp_path, capsys) -> None:
    file = write_model(tmp_path / "x.pth")
    main(["nnunet", "import", str(file), "--bundle", str(tmp_path / "x_segmentation")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "x_segmentation")
    for arguments in (
        [str(file), "--bundle", str(tmp_path / "x_segmentation")],  # exists
        [str(tmp_path / "y.pth"), "--bundle", str(tmp_path / "y_segmentation")],
    ):
        with pytest.raises(SystemExit) as caught:
            main(["nnunet", "import", *arguments])
        assert caught.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "y_segmentation").exists()


def expected_label(file: Path, array: np.ndarray, spacing: tuple[float, ...], axes) -> np.ndarray:
    """Labels (z, y, x) by the functions that the bundle carries, in nnU-Net's order."""
    checkpoint = read_checkpoint(file)
    configuration = checkpoint.plans["configurations"][checkpoint.configuration]
    settings = read_preprocessing(checkpoint.plans, configuration)
    data, placement = preprocess(array, spacing, settings)
    plan = planned(dict(checkpoint.plans), checkpoint.configuration,
                   dict(checkpoint.dataset_json))  # fmt: skip
    inferer = NnunetInferer(
        lambda image: (image, None), lambda logits, _: logits, patch_size=plan.patch_size,
        network_axes=axes, mirror_axes=[list(axes).index(axis) for axis in checkpoint.mirror_axes],
    )  # fmt: skip
    with torch.inference_mode():
        logits = inferer.predict(torch.from_numpy(data.copy()), trained_network(plan))
    return restore_logits(logits.numpy(), placement, settings).argmax(0)


@pytest.mark.search
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_inference_of_volumes_is_nnunets(tmp_path, configuration) -> None:
    plans = small_plans()
    plans["transpose_forward"], plans["transpose_backward"] = [1, 0, 2], [1, 0, 2]
    mirrored = (0, 1)
    bundle = imported(tmp_path, configuration, plans=plans,
                      inference_allowed_mirroring_axes=mirrored)  # fmt: skip
    volume = np.zeros((34, 70, 30), np.float32)  # (x, y, z)
    volume[3:-2, :, 2:] = np.random.default_rng(0).uniform(1, 200, (29, 70, 28))
    (tmp_path / "images").mkdir()
    affine = np.diag([-0.8, 1.2, 1.1, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "images" / "a_0000.nii.gz")
    workflow = bundle.workflow(("inference",), {
        "dataset_dir": PlainPath(str(tmp_path / "images")),
        "output_dir": PlainPath(str(tmp_path / "labels")),
    })  # fmt: skip
    workflow.run()
    written = nibabel.load(tmp_path / "labels" / "a.nii.gz")
    found = np.asarray(written.dataobj)
    axes = (2, 0, 1) if configuration == "3d_fullres" else (1, 0)
    spacing = tuple(float(np.float32(size)) for size in (1.1, 1.2, 0.8))
    expected = expected_label(
        tmp_path / "checkpoint_final.pth", volume.transpose(2, 1, 0)[None], spacing, axes
    )
    assert np.allclose(written.affine, affine)
    assert len(np.unique(found)) > 1
    assert np.array_equal(found, expected.transpose(2, 1, 0))


@pytest.mark.search
def test_inference_of_images_is_nnunets(tmp_path) -> None:
    bundle = imported(tmp_path, "2d", plans=small_plans(FLUO), dataset=NUCLEI,
                      inference_allowed_mirroring_axes=(1,))  # fmt: skip
    pixels = texture((300, 200), 0)  # rows, columns
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a_0000.png")
    workflow = bundle.workflow(("inference",), {
        "dataset_dir": PlainPath(str(tmp_path / "images")),
        "output_dir": PlainPath(str(tmp_path / "labels")),
    })  # fmt: skip
    workflow.run()
    found = np.asarray(Image.open(tmp_path / "labels" / "a.png"))
    expected = expected_label(
        tmp_path / "checkpoint_final.pth", pixels[None, None], (999, 1, 1), (1, 0)
    )[0]
    assert len(np.unique(found)) > 1
    assert np.array_equal(found, expected)


ONE_SLICE = {**NUCLEI, "file_ending": ".nii.gz"}


def plans_of_one_slice(**changes) -> dict:
    """Plans of 2D images that are NIfTI, as data sets of nnU-Net v1 have them."""
    return {**small_plans(FLUO), "image_reader_writer": "SimpleITKIO", **changes}


def test_import_checkpoint_of_one_slice_takes_images_or_volumes(tmp_path) -> None:
    found = {}
    for name, changes in {
        "itk": {},
        "nibabel": {"image_reader_writer": "NibabelIO"},
        "turned": {"image_reader_writer": "NibabelIOWithReorient"},
        "along-y": {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]},
    }.items():
        (tmp_path / name).mkdir()
        bundle = imported(tmp_path / name, "2d", plans=plans_of_one_slice(**changes),
                          dataset=ONE_SLICE, inference_allowed_mirroring_axes=None)  # fmt: skip
        assert foreign_code(bundle) == ()
        found[name] = (bundle.kind, bundle.plan.slice_axis)
    assert found == {"itk": ("images", None), "nibabel": ("images", None),
                     "turned": ("slices", 2), "along-y": ("slices", 1)}  # fmt: skip


@pytest.mark.search
@pytest.mark.parametrize("depth", [(), (1,)], ids=["2d", "one-slice"])
def test_inference_of_nifti_of_one_slice_is_nnunets(tmp_path, depth) -> None:
    bundle = imported(tmp_path, "2d", plans=plans_of_one_slice(), dataset=ONE_SLICE,
                      inference_allowed_mirroring_axes=(1,))  # fmt: skip
    pixels = texture((300, 80), 0)  # (x, y)
    (tmp_path / "images").mkdir()
    # To nnU-Net the thick axis is y in one file, and the missing one in the other.
    affine = np.diag([-1.0, 3.5, 0.9, 1.0])
    affine[:3, 3] = 5, 6, 7
    file = tmp_path / "images" / "a_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(pixels.reshape(300, 80, *depth), affine), file)
    image = nibabel.load(file)
    workflow = bundle.workflow(("inference",), {
        "dataset_dir": PlainPath(str(tmp_path / "images")),
        "output_dir": PlainPath(str(tmp_path / "labels")),
    })  # fmt: skip
    workflow.run()
    done = segment_images(bundle, tmp_path / "images", tmp_path / "segmented", probabilities=True,
                          overlay=True, say=lambda _: None)  # fmt: skip
    assert done.problems == []
    sizes = [float(np.float32(size)) for size in (0.9, 3.5, 1.0)] if depth else [3.5 * 999, 3.5, 1]
    expected = expected_label(
        tmp_path / "checkpoint_final.pth", pixels.T[None, None], tuple(sizes), (1, 0)
    )[0]
    assert len(np.unique(expected)) > 1
    for folder in ("labels", "segmented"):
        written = nibabel.load(tmp_path / folder / "a.nii.gz")
        assert written.shape == image.shape
        assert np.array_equal(written.affine, image.affine)
        assert written.header.get_zooms() == image.header.get_zooms()
        assert np.array_equal(np.squeeze(written.dataobj), expected.T)
    shares = nibabel.load(tmp_path / "segmented" / "a_probabilities.nii.gz")
    assert shares.shape == (300, 80, 1, 2)


@pytest.mark.search
def test_deploy_refuses_an_imported_bundle(tmp_path, capsys) -> None:
    bundle = imported(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["deploy", "--bundle", str(bundle.root)])
    assert caught.value.code == 2
    assert "was imported from nnU-Net" in capsys.readouterr().err


@pytest.mark.slow
def test_imported_bundle_of_one_slice_is_fine_tuned_and_evaluated(tmp_path) -> None:
    bundle = imported(tmp_path, "2d", plans=plans_of_one_slice(), dataset=ONE_SLICE,
                      inference_allowed_mirroring_axes=None)  # fmt: skip
    data = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
    affine = np.diag([1.1, 1.0, 999.0, 1.0])
    for index in range(4):
        pixels = texture((190, 170), index).astype(np.float32)[..., None]
        label = np.zeros(pixels.shape, np.uint8)
        label[10:40, 20:60] = 1
        name = f"case{index}"
        image = nibabel.Nifti1Image(pixels + 100 * label, affine)
        nibabel.save(image, data / f"imagesTr/{name}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), data / f"labelsTr/{name}.nii.gz")
    assert check_bundle(bundle, data=data).problems == ()
    before = bundle.weights()
    workflow = bundle.workflow(
        ("train",),
        {"dataset_dir": PlainPath(str(data)), "epochs": 1, "val_interval": 1, "num_workers": 0},
    )
    workflow.run()
    assert any(not torch.equal(before[name], after) for name, after in bundle.weights().items())
    options = {"dataset_dir": PlainPath(str(data)), "num_workers": 0}
    shapes = []
    evaluation = evaluate_bundle(
        bundle, options, on_case=lambda case, label, pred: shapes.append((label.shape, pred.shape))
    )
    assert shapes == [((2, 190, 170), (2, 190, 170))]
    assert (len(evaluation.cases), evaluation.volume_unit) == (1, "mm2")
    _, planes = evaluate_held_out(bundle, data=data)
    assert np.shape(planes[0].image) == np.shape(planes[0].label) == (170, 190)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_imported_bundle_is_checked_fine_tuned_and_evaluated(tmp_path, configuration) -> None:
    bundle = imported(tmp_path, configuration, inference_allowed_mirroring_axes=None)
    data = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
    affine = np.diag([1.1, 1.0, 1.3, 1.0])
    generator = np.random.default_rng(0)
    for index in range(4):
        volume = generator.uniform(1, 100, (40, 50, 30)).astype(np.float32)
        label = np.zeros(volume.shape, np.uint8)
        label[10:20, 10:30, 5:20], label[20:30, 10:30, 5:20] = 1, 2
        volume += 100 * label
        name = f"case{index}"
        nibabel.save(nibabel.Nifti1Image(volume, affine), data / f"imagesTr/{name}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), data / f"labelsTr/{name}.nii.gz")
    assert check_bundle(bundle, data=data).problems == ()
    before = bundle.weights()
    workflow = bundle.workflow(
        ("train",),
        {"dataset_dir": PlainPath(str(data)), "epochs": 1, "val_interval": 1, "num_workers": 0},
    )
    # What the network is trained on lies on nnU-Net's grid.
    shapes = {tuple(case["image"].shape[1:]) for case in workflow.parser.get_parsed_content(
        "train#dataset")[0]}  # fmt: skip
    assert shapes == {bundle.plan.patch_size}
    workflow.run()
    after = bundle.weights()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    kept = bundle.path("former_training_1/models/model.pt")
    assert all(torch.equal(v, before[k]) for k, v in torch.load(kept, weights_only=True).items())
    evaluation, planes = evaluate_held_out(bundle, data=data)
    assert len(evaluation.cases) == len(planes) == 1
    card = write_evaluation(bundle, evaluation, planes).read_text(encoding="utf-8")
    assert "after 1 epochs of `configs/train.json`" in card
    assert foreign_code(bundle) == ()
