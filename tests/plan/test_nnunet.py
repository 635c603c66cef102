from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from monai_xtiny.data.labels import read_label_names
from monai_xtiny.plan.nnunet import load_nnunet_plan, read_nnunet_plans, resolve_configuration
from tests.conftest import DATA

HIPPOCAMPUS = DATA / "nnUNetPlans_Dataset004_Hippocampus.json"
FLUO = DATA / "nnUNetPlans_Dataset076_DSB2018Fluo.json"


def changed(tmp_path: Path, change) -> Path:
    """A plans file with a change."""
    content = json.loads(HIPPOCAMPUS.read_text())
    change(content)
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(content))
    return path


def test_load_nnunet_plan_turns_axes_round() -> None:
    plan = load_nnunet_plan(HIPPOCAMPUS, "2d", in_channels=1, out_channels=3)
    assert plan.patch_size == (40, 56)  # nnU-Net writes [56, 40]
    assert plan.slice_axis == 2
    assert plan.features_per_stage == (32, 64, 128, 256)
    full = load_nnunet_plan(HIPPOCAMPUS, "3d_fullres", in_channels=1, out_channels=3)
    assert full.patch_size == (40, 56, 40)
    assert full.slice_axis is None


def test_load_nnunet_plan_of_images_has_no_slice_axis() -> None:
    plan = load_nnunet_plan(FLUO, "2d", in_channels=1, out_channels=2, of_images=True)
    assert plan.slice_axis is None
    assert plan.patch_size == (256, 256)


def test_load_nnunet_plan_undoes_the_transposition(tmp_path) -> None:
    def transpose(content) -> None:
        content["transpose_forward"] = [2, 0, 1]  # slices along x; then z, y
        content["configurations"]["2d"]["spacing"] = [3.0, 0.5]

    plan = load_nnunet_plan(changed(tmp_path, transpose), "2d", in_channels=1, out_channels=3)
    assert plan.slice_axis == 0
    assert plan.spacing == (0.5, 3.0)  # (y, z)


@pytest.mark.parametrize("order", [[0, 0, 2], [0, 1], "012345"])
def test_load_nnunet_plan_refuses_a_transposition_that_is_no_order(tmp_path, order) -> None:
    path = changed(tmp_path, lambda content: content.update(transpose_forward=order))
    with pytest.raises(ValueError, match="is no order of 0, 1, 2.*give an nnUNetPlans"):
        load_nnunet_plan(path, "2d", in_channels=1, out_channels=3)


def test_load_nnunet_plan_refuses_an_infinite_size(tmp_path) -> None:
    path = changed(tmp_path, lambda content: None)
    path.write_text(re.sub(r'"patch_size": \[\s*56', '"patch_size": [1e999', path.read_text()))
    with pytest.raises(ValueError, match="plans.json' has no plan for '2d' that can be used"):
        load_nnunet_plan(path, "2d", in_channels=1, out_channels=3)


def test_load_nnunet_plan_reads_the_form_before_v2_4(tmp_path) -> None:
    def age(content) -> None:
        settings = content["configurations"]["2d"]
        architecture = settings.pop("architecture")["arch_kwargs"]
        settings.update(
            UNet_class_name="PlainConvUNet", UNet_base_num_features=32, unet_max_num_features=512,
            conv_kernel_sizes=architecture["kernel_sizes"],
            pool_op_kernel_sizes=architecture["strides"],
            n_conv_per_stage_encoder=[2] * 4, n_conv_per_stage_decoder=[2] * 3,
        )  # fmt: skip

    old = load_nnunet_plan(changed(tmp_path, age), "2d", in_channels=1, out_channels=3)
    assert old == load_nnunet_plan(HIPPOCAMPUS, "2d", in_channels=1, out_channels=3)


def test_load_nnunet_plan_follows_inheritance(tmp_path) -> None:
    def derive(content) -> None:
        content["configurations"]["wide"] = {"inherits_from": "2d", "spacing": [2.0, 2.0]}

    path = changed(tmp_path, derive)
    assert load_nnunet_plan(path, "wide", in_channels=1, out_channels=3).spacing == (2.0, 2.0)


def resenc(content) -> None:
    architecture = content["configurations"]["2d"]["architecture"]
    architecture["network_class_name"] = "a.ResidualEncoderUNet"


def three_convolutions(content) -> None:
    arguments = content["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["n_conv_per_stage"] = [3] * 4


def cascade(content) -> None:
    content["configurations"]["2d"]["previous_stage"] = "3d_lowres"


def ct(content) -> None:
    content["configurations"]["2d"]["normalization_schemes"] = ["CTNormalization"]


def masked(content) -> None:
    content["configurations"]["2d"]["use_mask_for_norm"] = [True]


def unresampled(content) -> None:
    content["configurations"]["2d"]["resampling_fn_data"] = "no_resampling_hack"


def preprocessed_otherwise(content) -> None:
    content["configurations"]["2d"]["preprocessor_name"] = "Mine"


def old_resenc(content) -> None:
    settings = content["configurations"]["2d"]
    del settings["architecture"]
    settings.update(
        UNet_class_name="ResidualEncoderUNet", UNet_base_num_features=32,
        unet_max_num_features=512, conv_kernel_sizes=[[3, 3]] * 4,
        pool_op_kernel_sizes=[[1, 1], *[[2, 2]] * 3], n_conv_per_stage_encoder=[1, 3, 4, 6],
        n_conv_per_stage_decoder=[1] * 3,
    )  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        (
            cascade,
            r"refines the result of '3d_lowres' \(a cascade\), .*: take another, such as 3d_full",
        ),
        (
            ct,
            "normalizes by CTNormalization, .* only ZScoreNormalization of .*: search without",
        ),
        (
            masked,
            "normalizes by ZScoreNormalization within the nonzero mask, which is not supported",
        ),
        (unresampled, "has the resampling_fn_data no_resampling_hack, .*: search without --plans"),
        (preprocessed_otherwise, "has the preprocessor_name Mine, which is not supported"),
        (old_resenc, "plans ResidualEncoderUNet, which is not supported, only Plain"),
    ],
    ids=[
        "cascade",
        "CT",
        "normalization in a mask",
        "no resampling",
        "preprocessor",
        "residual encoder before v2.4",
    ],
)
def test_load_nnunet_plan_says_what_is_not_supported(tmp_path, change, message) -> None:
    path = changed(tmp_path, change)
    with pytest.raises(ValueError, match=rf"^'{path}': configuration '2d' {message}") as caught:
        load_nnunet_plan(path, "2d", in_channels=1, out_channels=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "labels, what",
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "region 'whole' of several values"),
        ({"background": 0, "a": 1, "ignore": 2}, "ignore label"),
        ({"0": "background", "1": "a", "2": "ignore"}, "ignore label"),
    ],
    ids=["regions", "ignore", "ignore, MSD"],
)
def test_labels_of_the_planned_data_set_must_be_plain_classes(tmp_path, labels, what) -> None:
    path = changed(tmp_path, lambda content: None)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1}}))
    load_nnunet_plan(path, "2d", in_channels=1, out_channels=3)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(ValueError, match=f"beside the plans has nnU-Net's {what}, which is not"):
        load_nnunet_plan(path, "2d", in_channels=1, out_channels=3)
    with pytest.raises(
        ValueError, match=f"no plain labels .*{what}.*: give --label_names, one per"
    ):
        read_label_names(tmp_path)
    assert read_label_names(tmp_path, "background,a,b") == ("background", "a", "b")


def circle(content) -> None:
    content["configurations"]["2d"]["inherits_from"] = "2d"


@pytest.mark.parametrize(
    "change, configuration, message",
    [
        (lambda content: None, "3d_lowres", "no plan for '3d_lowres'"),
        (resenc, "2d", "ResidualEncoderUNet"),
        (three_convolutions, "2d", "only PlainConvUNet with 2"),
        (circle, "2d", "inherit in a circle"),
        (lambda content: content.pop("configurations"), "2d", "has no configurations: give an nn"),
    ],
    ids=["unknown configuration", "residual encoder", "three convolutions", "circle", "no plans"],
)
def test_load_nnunet_plan_refuses(tmp_path, change, configuration, message) -> None:
    path = changed(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_nnunet_plan(path, configuration, in_channels=1, out_channels=3)


@pytest.mark.parametrize(
    "key, value, what",
    [
        ("dropout_op", "torch.nn.Dropout2d", "dropout_op torch.nn.Dropout2d"),
        ("norm_op", "torch.nn.BatchNorm2d", "norm_op torch.nn.BatchNorm2d"),
        ("norm_op_kwargs", {"eps": 1e-3, "affine": True}, "norm_op_kwargs {'eps': 0.001"),
        ("norm_op_kwargs", None, "norm_op_kwargs .*'affine': False"),
        ("nonlin", "torch.nn.ReLU", "nonlin torch.nn.ReLU"),
        ("nonlin_kwargs", {"negative_slope": 0.1}, "negative_slope 0.1"),
        ("conv_op", "torch.nn.modules.conv.Conv3d", "conv_op torch.nn.modules.conv.Conv3d"),
        ("conv_op", "my.own.Conv2d", "conv_op my.own.Conv2d"),
        ("norm_op", "my.own.InstanceNorm2d", "norm_op my.own.InstanceNorm2d"),
        ("nonlin", "my.own.LeakyReLU", "nonlin my.own.LeakyReLU"),
        ("norm_op_kwargs", {"eps": 1e-5, "affine": True, "track_running_stats": True}, "norm_op_k"),
        ("n_stages", 3, "kernel_sizes of 4 stages beside other n_stages"),
        ("n_conv_per_stage", [2] * 3, "kernel_sizes of 4 stages beside other n_stages"),
        ("nonlin_first", True, "nonlin_first"),
        ("squeeze_excitation", True, "squeeze_excitation"),
    ],
    ids=[
        "dropout", "batch norm", "eps", "no affine", "ReLU", "slope", "3D", "own convolution",
        "own norm", "own activation", "running statistics", "stages", "convolutions", "order",
        "unknown",
    ],
)  # fmt: skip
def test_load_nnunet_plan_refuses_other_layers(tmp_path, key, value, what) -> None:
    def change(content) -> None:
        content["configurations"]["2d"]["architecture"]["arch_kwargs"][key] = value

    with pytest.raises(ValueError, match=f"plans a network with {what}.*, which is not supported"):
        load_nnunet_plan(changed(tmp_path, change), "2d", in_channels=1, out_channels=3)


@pytest.mark.parametrize("name", ["my.own.PlainConvUNet", "PlainConvUNet", "unet.PlainConvUNet"])
def test_load_nnunet_plan_takes_no_network_by_its_last_name(tmp_path, name) -> None:
    def change(content) -> None:
        content["configurations"]["2d"]["architecture"]["network_class_name"] = name

    with pytest.raises(ValueError, match=f"plans {name}, which is not supported, only "):
        load_nnunet_plan(changed(tmp_path, change), "2d", in_channels=1, out_channels=3)


@pytest.mark.parametrize("lacking", ["n_stages", "conv_op"])
def test_load_nnunet_plan_needs_what_nnunet_needs(tmp_path, lacking) -> None:
    def change(content) -> None:
        del content["configurations"]["2d"]["architecture"]["arch_kwargs"][lacking]

    with pytest.raises(ValueError, match="plans a network with .*, which is not supported"):
        load_nnunet_plan(changed(tmp_path, change), "2d", in_channels=1, out_channels=3)


def test_load_nnunet_plan_takes_both_names_of_torch_for_a_layer(tmp_path) -> None:
    def change(content) -> None:
        content["configurations"]["2d"]["architecture"]["arch_kwargs"].update(
            nonlin="torch.nn.modules.activation.LeakyReLU", norm_op="torch.nn.InstanceNorm2d"
        )

    plan = load_nnunet_plan(changed(tmp_path, change), "2d", in_channels=1, out_channels=3)
    assert plan == load_nnunet_plan(HIPPOCAMPUS, "2d", in_channels=1, out_channels=3)


def test_load_nnunet_plan_takes_any_normalization_where_the_images_have_it(tmp_path) -> None:
    plan = load_nnunet_plan(
        changed(tmp_path, ct), "2d", in_channels=1, out_channels=3, any_normalization=True
    )
    assert plan == load_nnunet_plan(HIPPOCAMPUS, "2d", in_channels=1, out_channels=3)


@pytest.mark.parametrize(
    "name, content",
    [("nnUNetPlansv2.1_plans_2D.pkl", b"\x80\x04}q\x00."), ("v1.json", b'{"plans_per_stage": {}}')],
    ids=["pickle", "JSON"],
)
def test_plans_of_v1_are_refused_and_never_unpickled(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="holds plans of nnU-Net v1, .*: plan with nnU-Net v2"):
        read_nnunet_plans(tmp_path / name)


def test_resolve_configuration_replaces_settings_as_a_whole() -> None:
    inherited = {"inherits_from": "2d", "architecture": {"a": 1}}
    plans = {"configurations": {"2d": {"architecture": {"b": 2}, "c": 3}, "x": inherited}}
    assert resolve_configuration(plans, "x") == {**inherited, "c": 3}


def test_load_nnunet_plan_refuses_other_dimensions_than_asked_for() -> None:
    with pytest.raises(ValueError, match="it is 2D, and --spatial_dims is 3"):
        load_nnunet_plan(HIPPOCAMPUS, "2d", in_channels=1, out_channels=3, spatial_dims=3)


@pytest.mark.parametrize(
    "key, value",
    [("strides", 2), ("strides", [[0, 0]] * 4), ("kernel_sizes", [[2, 2]] * 4),
     ("features_per_stage", [10**6] * 4), ("features_per_stage", "many")],
)  # fmt: skip
def test_load_nnunet_plan_refuses_values_that_no_network_has(tmp_path, key, value) -> None:
    def spoil(content) -> None:
        content["configurations"]["2d"]["architecture"]["arch_kwargs"][key] = value

    with pytest.raises(ValueError, match="has no plan for '2d' that can be used"):
        load_nnunet_plan(changed(tmp_path, spoil), "2d", in_channels=1, out_channels=3)


def test_load_nnunet_plan_refuses_3d_for_images() -> None:
    with pytest.raises(ValueError, match="is 3D, and the images are 2D"):
        load_nnunet_plan(HIPPOCAMPUS, "3d_fullres", in_channels=1, out_channels=2, of_images=True)


def test_load_nnunet_plan_needs_a_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_nnunet_plan(tmp_path / "none.json", "2d", in_channels=1, out_channels=2)


def test_load_nnunet_plan_needs_json(tmp_path) -> None:
    (tmp_path / "plans.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON .*: give nnU-Net's plans"):
        load_nnunet_plan(tmp_path / "plans.json", "2d", in_channels=1, out_channels=2)
