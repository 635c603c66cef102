from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from monai_xtiny.bundle.figures import Plane
from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.measured import read_evaluation, write_evaluation
from monai_xtiny.bundle.results import Evaluation, evaluation_from_dict
from monai_xtiny.bundled.locks import hold_lock
from monai_xtiny.cli.commands import main
from monai_xtiny.training.evaluate import (
    _refuse_trained,
    draw_plane,
    evaluate_bundle,
    evaluate_held_out,
)
from monai_xtiny.training.labeled import data_options
from tests.cli.typed import refused
from tests.conftest import texture, write_nifti
from tests.forked import held_elsewhere

pytestmark = pytest.mark.slow
# Of the split that the bundle was trained on.
HELD_OUT = {"num_workers": 0, "split_seed": 3}


def labeled_bundle(root: Path, spacing: float) -> tuple[Path, Path]:
    """Volumes of one grid but for its spacing, and the bundle searched on them."""
    data, bundle = root / "data", root / "v_segmentation"
    affine = np.diag([spacing, spacing, spacing, 1.0])
    for index in range(5):
        values = texture((20, 24, 18), index).astype(np.float32)
        write_nifti(data / "imagesTr" / f"v{index}_0000.nii.gz", values=values, affine=affine)
        label = np.digitize(values, [100, 170]).astype(np.uint8)
        write_nifti(data / "labelsTr" / f"v{index}.nii.gz", values=label, affine=affine)
    command = ["search", "--images", str(data), "--bundle", str(bundle), "--num_images", "2"]
    main([*command, "--label_names", "background,gray matter,white"])
    return bundle, data


@pytest.fixture
def volumes(made_once, tmp_path) -> tuple[Path, Path]:
    """A copy of a trained bundle, and the data."""

    def make(folder: Path) -> None:
        bundle, data = labeled_bundle(folder, 1.0)
        options = {**data_options(data, None), **HELD_OUT, "epochs": 1}
        Bundle.open(bundle).workflow(("train",), options).run()

    folder = made_once("trained_volumes", make)
    bundle = folder / "v_segmentation"
    return Path(shutil.copytree(bundle, tmp_path / "one" / bundle.name)), folder / "data"


def test_evaluate_bundle_measures_what_evaluate_json_writes(volumes) -> None:
    bundle, data = volumes
    planes: list[Plane] = []
    masks = []

    def look(case, label, prediction) -> None:
        planes.append(draw_plane(case, label, prediction))
        masks.append((label.clone(), prediction.clone()))

    options = {**data_options(data, None), **HELD_OUT}
    found = evaluate_bundle(Bundle.open(bundle), options, on_case=look)
    with open(bundle / "eval" / "val_mean_dice_raw.csv", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if not row[0].startswith("filen")]
    assert len(found.cases) == len(rows) == len(planes) == 1
    written = [float(value) for value in rows[0][1:3]]
    np.testing.assert_allclose(found.dice[0], written, atol=1e-4)
    # The others are what MONAI's functions give for the same masks.
    label, shown = (torch.as_tensor(item)[None] for item in masks[0])
    spacing = {"spacing": [1.0, 1.0, 1.0]}
    expected = {
        "hd95": compute_hausdorff_distance(shown, label, percentile=95, **spacing)[0],
        "nsd": compute_surface_dice(
            shown, label, class_thresholds=[1.0, 1.0], use_subvoxels=True, **spacing
        )[0],
        "volume": shown[0, 1:].sum(dim=(1, 2, 3)) / 1000,
        "label_volume": label[0, 1:].sum(dim=(1, 2, 3)) / 1000,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(np.array(getattr(found, name)[0], float), values, rtol=1e-5)
    assert all(0 < value < 1 for value in found.ece[0])
    assert (found.length_unit, found.volume_unit, found.nsd_tolerance) == ("mm", "ml", 1.0)
    label = np.asarray(planes[0].label)
    assert label.shape == planes[0].image.shape == planes[0].prediction.shape == (24, 20)
    # The slice shows the case's own label over its own image.
    values = planes[0].image
    np.testing.assert_array_equal(label, np.digitize(values, [100, 170]))


def calibration_error(probability: np.ndarray, is_class: np.ndarray, num_bins: int) -> float:
    """ECE = sum over bins of n_bin / n * abs(mean probability - share of voxels of the class)."""
    bins = np.minimum((num_bins * probability).astype(int), num_bins - 1)
    return sum(
        abs(probability[bins == number].sum() - is_class[bins == number].sum())
        for number in range(num_bins)
    ) / len(bins)


@pytest.mark.parametrize("margin", [0, 4])
def test_evaluate_bundle_measures_the_calibration_error_that_its_definition_gives(
    volumes, tmp_path, margin
) -> None:
    bundle, former = volumes
    data = shutil.copytree(former, tmp_path / "data")
    inner = (slice(margin, 20 - margin), slice(margin, 24 - margin), slice(margin, 18 - margin))
    for file in sorted(data.glob("*Tr/*.nii.gz")):
        values = np.asarray(nib.load(file).dataobj)
        kept = np.zeros_like(values)
        kept[inner] = values[inner]
        write_nifti(file, values=kept, affine=np.eye(4))
    cases = []

    def logits(image: torch.Tensor) -> torch.Tensor:
        # Of each voxel by itself, so that windows do not matter.
        return torch.stack([0 * image, 1 - 2 * image, 3 * image], dim=1)

    found = evaluate_bundle(
        Bundle.open(bundle),
        {**data_options(data, None), **HELD_OUT},
        on_case=lambda case, _label, _prediction: cases.append(case),
        predict=lambda windows: logits(windows[:, 0]),
    )
    (case,) = cases
    image = nib.load(case["image"][0]).get_fdata()[inner]
    image = (image - image.mean()) / image.std()
    # Around the box of the voxels that are not 0, all is background.
    shares = np.zeros((3, 20, 24, 18))
    shares[0] = 1
    shares[(slice(None), *inner)] = logits(torch.from_numpy(image)[None]).softmax(dim=1)[0].numpy()
    probability = shares.reshape(3, -1)
    label = nib.load(case["label"]).get_fdata().ravel()
    of_bins = {
        num_bins: [
            calibration_error(probability[number], label == number, num_bins) for number in (1, 2)
        ]
        for num_bins in (20, 10)
    }
    assert found.ece[0] == pytest.approx(of_bins[20], rel=1e-4)
    assert found.ece[0] != pytest.approx(of_bins[20][::-1], rel=0.01)
    if margin == 0:  # with a margin 10 bins give the same
        assert found.ece[0] != pytest.approx(of_bins[10], rel=1e-4)


def test_evaluate_bundle_evaluates_another_predictor_in_place_of_the_network(volumes) -> None:
    bundle, data = volumes
    options = {**data_options(data, None), **HELD_OUT}
    expected = evaluate_bundle(Bundle.open(bundle), options)
    results = (bundle / "eval" / "val_mean_dice_raw.csv").read_bytes()
    network = Bundle.open(bundle).network()

    def background(windows: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(windows), 3, *windows.shape[2:])
        logits[:, 0] = 1
        return logits

    with torch.no_grad():
        same = evaluate_bundle(Bundle.open(bundle), options, predict=network)
    assert same == expected
    none, _ = evaluate_held_out(Bundle.open(bundle), data=data, predict=background)
    assert none.dice == ((0.0, 0.0),)
    assert (bundle / "eval" / "val_mean_dice_raw.csv").read_bytes() == results


def test_evaluate_bundle_measures_the_dice_alone(volumes) -> None:
    bundle, data = volumes
    options = {**data_options(data, None), **HELD_OUT}
    found = evaluate_bundle(Bundle.open(bundle), options, only_dice=True)
    expected = evaluate_bundle(Bundle.open(bundle), options)
    others = {name: () for name in ("hd95", "nsd", "volume", "label_volume", "ece")}
    assert found == dataclasses.replace(expected, **others)
    assert evaluation_from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_evaluate_bundle_knows_patients_by_their_folders(volumes, tmp_path) -> None:
    bundle, former = volumes
    data = shutil.copytree(former, tmp_path / "data")
    cases = []
    for number, name in enumerate(("p0/a", "p0/b", "p1/a", "p2/a")):
        label = f"labelsTr/{name}.nii.gz"
        (data / label).parent.mkdir(exist_ok=True)
        (data / f"labelsTr/v{number}.nii.gz").rename(data / label)
        cases.append({"image": f"imagesTr/v{number}_0000.nii.gz", "label": label})
    (tmp_path / "list.json").write_text(
        json.dumps({"training": cases[2:], "validation": cases[:2]})
    )
    options = data_options(data, tmp_path / "list.json", "^(p[0-9])/")
    # Weights of no training that held out other cases.
    options |= {"split_file": str(tmp_path / "none.json"), "num_workers": 0}
    found = evaluate_bundle(Bundle.open(bundle), options, only_dice=True)
    assert found.patients == ("p0", "p0")
    summary = json.loads((bundle / "eval" / "summary.json").read_text(encoding="utf-8"))
    assert summary["num_patients"] == 1


def test_evaluate_bundle_gives_distances_in_mm(volumes, tmp_path) -> None:
    bundle, data = volumes
    twice, twice_data = labeled_bundle(tmp_path, 2.0)
    options = HELD_OUT
    one = evaluate_bundle(Bundle.open(bundle), {**data_options(data, None), **options})
    shutil.copyfile(bundle / "models" / "model.pt", twice / "models" / "model.pt")
    two = evaluate_bundle(Bundle.open(twice), {**data_options(twice_data, None), **options})
    assert one.cases == two.cases
    for first, second in zip(one.hd95[0], two.hd95[0], strict=True):
        assert (first is None) == (second is None)
        assert first is None or second == pytest.approx(2 * first, rel=1e-4)
    assert any(value is not None for value in one.hd95[0])


def test_evaluate_command_writes_the_model_card(volumes, capsys) -> None:
    bundle, data = volumes
    path = bundle / "docs" / "README.md"
    text = path.read_text(encoding="utf-8")
    assert "Not measured yet" in text and "at its initialization until it is trained" in text
    path.write_text(text.replace("The owners of this bundle.", "We did."), encoding="utf-8")
    main(["evaluate", "--bundle", str(bundle), "--data", str(data)])
    out = capsys.readouterr().out
    found = read_evaluation(Bundle.open(bundle))
    card = path.read_text(encoding="utf-8")
    assert f"mean Dice {found.mean_dice:.4f} over 1 cases held out" in out
    assert f"| gray matter | 1 | {found.class_dice[0]:.3f} | " in card
    assert f"gray matter      1  {found.class_dice[0]:.3f}  " in out
    written = json.loads((bundle / "docs" / "evaluation.json").read_text(encoding="utf-8"))
    assert written["summary"] == found.summary(["gray matter", "white"])
    summary = json.loads((bundle / "eval" / "summary.json").read_text(encoding="utf-8"))
    assert summary == written["summary"]
    assert "Not measured yet" not in card and "![The best" in card
    assert (
        "holds the trained network, after 1 epochs" in card and "initialization until" not in card
    )
    assert "We did." in card
    assert (bundle / "docs" / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert Bundle.open(bundle).label_names == ("background", "gray matter", "white")

    def headings(card: str) -> list[str]:
        return [line for line in card.splitlines() if line.startswith("#")]

    assert headings(card) == headings(text)
    # Those that the split of training held out, not those of the default split.
    split = json.loads((bundle / "configs" / "datalist.json").read_text(encoding="utf-8"))
    assert [Path(case["label"]).name for case in split["validation"]] == list(found.cases)


def test_evaluate_command_refuses_cases_that_were_trained_on(volumes, capsys, tmp_path) -> None:
    bundle, data = volumes
    split = json.loads((bundle / "configs" / "datalist.json").read_text(encoding="utf-8"))
    wrong = {"training": split["validation"], "validation": split["training"][:1]}
    (tmp_path / "list.json").write_text(json.dumps(wrong))
    command = ["evaluate", "--bundle", str(bundle), "--data", str(data)]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--datalist", str(tmp_path / "list.json")])
    assert stop.value.code == 2
    name = Path(split["training"][0]["label"]).name
    assert f"the network was trained on {name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "held_out, is_trained",
    [("p2/seg.png", False), ("p1/seg.png", True), ("p1\\seg.png", True), ("./p1/seg.png", True),
     ("data/p1/seg.png", True), ("seg.png", True), ("p3/p2/seg.png", False),
     (["p1/seg.png"], True)],
)  # fmt: skip
def test_evaluate_compares_paths_and_not_file_names(tmp_path, held_out, is_trained) -> None:
    trained = [{"image": "p1/image.png", "label": "p1/seg.png"}]
    command = (trained, [{"label": held_out}], tmp_path / "list.json", str(tmp_path))
    if is_trained:
        with pytest.raises(ValueError, match=r"the network was trained on seg\.png \("):
            _refuse_trained(*command)
    else:
        _refuse_trained(*command)


def test_evaluate_command_takes_the_test_section_of_a_datalist(volumes, capsys, tmp_path) -> None:
    bundle, data = volumes
    split = json.loads((bundle / "configs" / "datalist.json").read_text(encoding="utf-8"))
    lists = {"training": split["training"], "test": split["validation"]}
    file = tmp_path / "list.json"
    file.write_text(json.dumps(lists))
    command = ["evaluate", bundle, "--data", data, "--datalist", file]
    main([*map(str, command), "--nsd_tolerance", "2.5", "--group", "(v)"])
    assert "NSD (2.5 mm)" in capsys.readouterr().out
    found = read_evaluation(Bundle.open(bundle))
    assert list(found.cases) == [Path(case["label"]).name for case in split["validation"]]
    assert found.patients == ("v",) and found.nsd_tolerance == 2.5
    assert "1 cases of 1 patients that" in (bundle / "docs" / "README.md").read_text("utf-8")
    file.write_text(json.dumps({"training": split["training"], "test": split["training"][:1]}))
    assert "share v" in refused(capsys, *command) or "trained on v" in refused(capsys, *command)
    file.write_text(json.dumps({"training": split["training"], "test": ["imagesTs/a.nii.gz"]}))
    assert "no validation section, nor a test section with labels" in refused(capsys, *command)
    for section in (["a.png"], "a.png"):
        file.write_text(json.dumps({"validation": section}))
        assert "is no list of cases: give a list of objects" in refused(capsys, *command)
    assert "--nsd_tolerance is -1" in refused(capsys, *command, "--nsd_tolerance", "-1")


def test_evaluate_command_evaluates_all_external_cases(volumes, capsys, tmp_path) -> None:
    bundle, data = volumes
    results = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    other = tmp_path / "other"
    for folder in ("imagesTr", "labelsTr"):
        (other / folder).mkdir(parents=True)
        for path in (data / folder).iterdir():
            if path.name[:2] in ("v0", "v1"):
                shutil.copyfile(path, other / folder / path.name.replace("v0", "w0"))
    main(["evaluate", str(bundle), "--data", str(other), "--external"])
    out = capsys.readouterr().out
    assert "over 2 external cases" in out
    # One is called as a case of the training, or as the one held out.
    trained = "v1" in str(
        json.loads((bundle / "configs" / "datalist.json").read_text())["training"]
    )
    assert ("1 of 2 labels are called as ones that the network was trained on" in out) == trained
    summary = json.loads((bundle / "eval" / "external" / "summary.json").read_text("utf-8"))
    assert {case["case"] for case in summary["worst"]} == {"w0.nii.gz", "v1.nii.gz"}
    assert all(path.read_bytes() == content for path, content in results.items())
    untrained = shutil.copytree(bundle, tmp_path / "u_segmentation")
    torch.save(Bundle.open(data.parent / bundle.name).network().state_dict(), tmp_path / "x.pt")
    weights = torch.load(tmp_path / "x.pt", weights_only=True)
    start = {
        k: torch.full_like(v, "bias" not in k) if v.ndim == 1 else v for k, v in weights.items()
    }
    torch.save(start, untrained / "models" / "model.pt")
    line = refused(capsys, "evaluate", untrained, "--data", other, "--external")
    assert "model.pt' was not trained: train the bundle first" in line


def test_evaluate_command_evaluates_all_labeled_cases_of_an_external_datalist(
    volumes, capsys, tmp_path
) -> None:
    bundle, data = volumes
    results = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    # Another hospital's, called otherwise; not all of its cases are listed.
    other = shutil.copytree(data, tmp_path / "other")
    for path in sorted(other.rglob("v*.nii.gz")):
        path.rename(path.with_name(path.name.replace("v", "w")))
    case = [
        {"image": f"imagesTr/w{number}_0000.nii.gz", "label": f"labelsTr/w{number}.nii.gz"}
        for number in range(5)
    ]
    lists = {"training": case[:1], "validation": case[1:2]}
    lists["test"] = [case[2], "imagesTr/w3_0000.nii.gz"]
    (other / "list.json").write_text(json.dumps(lists))
    main(["evaluate", str(bundle), "--datalist", str(other / "list.json"), "--external"])
    out = capsys.readouterr().out
    assert "over 3 external cases" in out and "the network was trained on" not in out
    summary = json.loads((bundle / "eval" / "external" / "summary.json").read_text("utf-8"))
    assert {item["case"] for item in summary["worst"]} == {f"w{n}.nii.gz" for n in range(3)}
    assert all(path.read_bytes() == content for path, content in results.items())


def test_evaluate_command_measures_the_weights_of_a_fold(volumes, capsys) -> None:
    bundle, data = volumes
    command = ["evaluate", "--bundle", str(bundle), "--data", str(data), "--fold", "1"]
    with pytest.raises(SystemExit):
        main(command)
    assert "has no configs/datalist_fold1.json, which training" in capsys.readouterr().err
    split = json.loads((bundle / "configs" / "datalist.json").read_text(encoding="utf-8"))
    other = {"training": split["validation"], "validation": split["training"][:2]}
    (bundle / "configs" / "datalist_fold1.json").write_text(json.dumps(other), encoding="utf-8")
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save(zeros, bundle / "models" / "model_fold1.pt")
    before = (bundle / "docs" / "README.md").read_bytes()
    main(command)
    assert "mean Dice 0.0000 over 2 cases held out" in capsys.readouterr().out
    assert (bundle / "docs" / "README.md").read_bytes() == before


def test_evaluate_command_needs_a_trained_bundle(volumes, capsys, tmp_path) -> None:
    bundle, data = volumes
    shutil.copytree(bundle, tmp_path / "copy_segmentation")
    (tmp_path / "copy_segmentation" / "configs" / "datalist.json").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--bundle", str(tmp_path / "copy_segmentation"), "--data", str(data)])
    assert stop.value.code == 2
    assert "has no configs/datalist.json, which training writes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "no labeled data: give --data DIR or --datalist FILE"),
        (["--data", "nowhere"], "no such data: 'nowhere'"),
    ],
    ids=["no data", "missing data"],
)
def test_evaluate_command_needs_data(volumes, capsys, options, message) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--bundle", str(volumes[0]), *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_evaluate_bundle_needs_a_bundle(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        evaluate_bundle(Bundle.open(tmp_path), {})
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        evaluate_held_out(Bundle.open(tmp_path), data=tmp_path)


EVALUATION = Evaluation(
    ("a", "b", "c"), ((0.6, None), (0.8, 0.5), (None, None)), ((3.0, None), (None, 2.0), (1.0, 1.0))
)


def test_read_evaluation_gives_back_what_was_written(volumes) -> None:
    bundle, _ = volumes
    # A name that Matplotlib would take for a formula.
    planes = [Plane(f"{name} $1_{{ $", *(np.eye(4) for _ in range(3))) for name in EVALUATION.cases]
    write_evaluation(Bundle.open(bundle), EVALUATION, planes)
    assert read_evaluation(Bundle.open(bundle)) == EVALUATION
    text = (bundle / "docs" / "evaluation.json").read_text(encoding="utf-8")
    assert json.loads(text)["dice"][2] == [None, None]


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("evaluate", "validate#postprocessing", "@nothing", None),
        ("evaluate", "validate#handlers", [{"_target_": "NoSuchHandler"}], None),
        ("evaluate", "run", ["$[][0]"], None),
        ("evaluate", "run", ["$unknown"], None),
        ("evaluate", "run", ["$1 / 0"], None),
        ("train", "validate", None, None),
        # What is checked says itself what is wrong.
        ("train", "num_classes", 0, "the classes are 0 to -1"),
        ("train", "patch_size", [0, 0, 0], "--patch_size is [0, 0, 0]"),
        ("train", "network_def#strides", [1], "network_def"),
    ],
    ids=str,
)
def test_evaluate_of_a_malformed_config_names_what_was_edited(
    volumes, capsys, name, place, value, message
) -> None:
    bundle, data = volumes
    file = bundle / "configs" / f"{name}.json"
    config = json.loads(file.read_text())
    *parents, key = [place] if place in config else place.split("#")
    reduce(getitem, parents, config)[key] = value
    file.write_text(json.dumps(config))
    before = (bundle / "docs" / "README.md").read_bytes()
    line = refused(capsys, "evaluate", bundle, "--data", data, "--trust")
    edited = f"is of another version, which may be why (configs/{name}.json: {(*parents, key)[0]}"
    assert (message or edited) in line
    assert (bundle / "docs" / "README.md").read_bytes() == before


def test_a_setting_is_not_blamed_for_what_has_another_reason(volumes, capsys, tmp_path) -> None:
    bundle, data = volumes
    broken = shutil.copytree(data, tmp_path / "broken")
    write_nifti(broken / "labelsTr" / "more.nii.gz", values=np.zeros((3, 4, 5)), affine=np.eye(4))

    def lines() -> list[str]:
        found = [
            refused(capsys, "evaluate", bundle, "--data", tmp_path / "nowhere"),
            refused(capsys, "check", bundle, "--data", broken),
        ]
        with held_elsewhere(lambda: hold_lock(bundle)):
            return [*found, refused(capsys, "evaluate", bundle, "--data", data)]

    before = lines()
    file = bundle / "configs" / "train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "epochs": 100}))
    assert lines() == before
