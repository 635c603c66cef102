"""Emitted bundles, run as their users run them: python -m monai.bundle in another process."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from PIL import Image

from monai_xtiny.bundled.locks import write_lock
from monai_xtiny.cli.commands import main
from tests.conftest import DATA, texture
from tests.processes import run_module, start_module

DATASET, BUNDLE = Path("Dataset 1"), Path("out") / "tiny_segmentation"
NIFTI_KINDS = ("volumes", "slices", "flat")
pytestmark = pytest.mark.slow
# One kind of bundle is enough where the configs differ in transforms only.
PICTURES = pytest.mark.parametrize("emitted", ["rgb"], indirect=True)
VOLUMES = pytest.mark.parametrize("emitted", ["volumes"], indirect=True)
SLICES = pytest.mark.parametrize("emitted", ["slices"], indirect=True)


@dataclass(frozen=True)
class Emitted:
    """A bundle and the labeled data set that it was searched on."""

    kind: str
    bundle: Path
    dataset: Path


def stored_affine(kind: str) -> np.ndarray:
    """Volumes are stored with their axes permuted and flipped, and anisotropic."""
    if kind == "flat":  # a 2D NIfTI: a rotated plane
        return np.array([[0, -0.7, 0, 9], [0.7, 0, 0, -4], [0, 0, 1, 3], [0, 0, 0, 1]])
    if kind == "volumes":
        return np.array([[0, -1.2, 0, 9], [0, 0, 1.0, -4], [1.5, 0, 0, 3], [0, 0, 0, 1]])
    return np.array([[0, 0.8, 0, 0], [0, 0, 0.8, 0], [-4.0, 0, 0, 0], [0, 0, 0, 1]])


def scored(field: np.ndarray) -> np.ndarray:
    """Intensities as the network sees them."""
    return (field - field.mean()) / field.std()


def write_case(kind: str, root: Path, index: int) -> None:
    """One labeled case; the label is a threshold of the image's own z-score."""
    images, labels = root / "imagesTr", root / "labelsTr"
    name = f"Fall é {index}"
    if kind in NIFTI_KINDS:
        shape = {"volumes": (18, 28, 24), "slices": (7, 40, 32), "flat": (40, 56)}[kind]
        field = texture(shape, index)
        affine = stored_affine(kind)
        channels = [field, 255 - field] if kind == "volumes" else [field]
        for number, channel in enumerate(channels):
            image = nibabel.Nifti1Image(channel.astype(np.float32), affine)
            nibabel.save(image, images / f"{name}_{number:04d}.nii.gz")
        label = np.digitize(scored(field), [0.0, 0.8]).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, affine), labels / f"{name}.nii.gz")
    else:
        field = texture((40, 56), index)
        Image.fromarray(np.stack([field, 255 - field, field // 2], -1)).save(
            images / f"{name}_0000.png"
        )
        Image.fromarray((scored(field) > 0).astype(np.uint8)).save(labels / f"{name}.png")


@pytest.fixture(params=["volumes", "slices", "rgb", "flat"])
def emitted(request, made_once, tmp_path_factory) -> Emitted:
    """A bundle of each kind, searched by the command line; each test has a copy."""
    kind = request.param
    made = made_once(f"emitted_{kind}", lambda folder: search_bundle(kind, folder))
    root = shutil.copytree(made, tmp_path_factory.mktemp(kind), dirs_exist_ok=True)
    return Emitted(kind, root / BUNDLE, root / DATASET)


def search_bundle(kind: str, root: Path) -> None:
    """Write a data set and search on it."""
    dataset, bundle = root / DATASET, root / BUNDLE
    for folder in ("imagesTr", "labelsTr"):
        (dataset / folder).mkdir(parents=True)
    for index in range(5):
        write_case(kind, dataset, index)
    labels = "background,gray,white" if kind in NIFTI_KINDS else "background,cell"
    command = ["search", "--images", dataset, "--bundle", bundle, "--label_names", labels]
    command += ["--num_images", 2, *(["--spatial_dims", 2] if kind == "slices" else [])]
    # By the rule that scores less where that takes long; what it chooses is trained sooner too.
    is_brief = kind in ("volumes", "slices")
    command += ["--unit_test", *(["--method", "paper"] if is_brief else [])]
    main([str(part) for part in command])


def run_bundle(emitted: Emitted, config: str, *options: object, cwd: Path, status: int = 0) -> str:
    """Run a config of the bundle; returns what it printed."""
    files = [str(emitted.bundle / "configs" / f"{name}.json") for name in config.split("+")]
    command = ["run", "--config_file", str(files), "--bundle_root", str(emitted.bundle)]
    done = run_monai_bundle(emitted, *command, *options, cwd=cwd)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-9000:]
    return done.stdout + done.stderr


# Configs that a new interpreter has run.
_STARTED: set[str] = set()


def run_monai_bundle(
    emitted: Emitted, *command: object, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m monai.bundle``: of flat images each config once in a new interpreter.

    All else is run in forked ones, which do not import MONAI anew.
    """
    # Where monai_xtiny cannot be imported.
    without = emitted.bundle.parent / "without"
    without.mkdir(exist_ok=True)
    (without / "monai_xtiny.py").write_text("raise ImportError('monai_xtiny is not here')")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(without)
    configs = re.findall(r"\w+\.json", " ".join(map(str, command)))
    if emitted.kind != "flat" or str(configs) in _STARTED:
        return run_module("monai.bundle", *command, cwd=cwd, env=environment)
    _STARTED.add(str(configs))
    start = [sys.executable, "-m", "monai.bundle", *map(str, command)]
    return subprocess.run(
        start, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def load_label(path: Path) -> np.ndarray:
    if path.suffix == ".png":
        return np.asarray(Image.open(path))
    return np.asarray(nibabel.load(path).dataobj)


def test_bundle_has_every_file_of_the_design(emitted) -> None:
    files = {str(p.relative_to(emitted.bundle)) for p in emitted.bundle.rglob("*") if p.is_file()}
    expected = {
        "LICENSE", "models/model.pt", "docs/README.md", "docs/data_license.txt",
        "docs/search.json", "docs/sensitivity.png", "configs/metadata.json", "configs/train.json",
        "configs/inference.json", "configs/evaluate.json", "configs/multi_gpu_train.json",
        "configs/logging.conf", "scripts/workflow.py",
    }  # fmt: skip
    assert expected <= files
    assert not list(emitted.bundle.parent.glob(".tiny*"))


def test_bundle_needs_monai_pytorch_and_ignite_alone(emitted) -> None:
    for path in (emitted.bundle / "configs").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "monai_xtiny" not in text
        assert text.endswith("}\n") and '\n    "' in text
        targets = []

        def collect(item, found=targets):
            if isinstance(item, dict):
                found += [item["_target_"]] if "_target_" in item else []
                item = list(item.values())
            for part in item if isinstance(item, list) else []:
                collect(part, found)

        collect(json.loads(text))
        for target in targets:
            assert "." not in target or target.split(".")[0] in ("monai", "torch", "ignite"), target


def test_bundle_metadata_obeys_the_zoos_schema(emitted, tmp_path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_bytes((DATA / "meta_schema_20240725.json").read_bytes())
    metadata = str(emitted.bundle / "configs" / "metadata.json")
    verify_metadata(meta_file=metadata, filepath=str(schema))
    content = json.loads(Path(metadata).read_text(encoding="utf-8"))
    assert content["version"] in content["changelog"]
    assert not any("+" in v for v in content["required_packages_version"].values())
    assert "+" not in content["pytorch_version"]


def test_bundle_network_passes_the_zoos_check_of_shapes(emitted, tmp_path) -> None:
    metadata = emitted.bundle / "configs" / "metadata.json"

    def verify(meta_file: Path) -> None:
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(meta_file),
            config_file=str(emitted.bundle / "configs" / "inference.json"),
            n=1, p=1, any=1,
        )  # fmt: skip

    verify(metadata)
    content = json.loads(metadata.read_text(encoding="utf-8"))
    content["network_data_format"]["outputs"]["pred"]["num_channels"] += 1
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="output"):
        verify(tmp_path / "metadata.json")


@pytest.mark.parametrize("name, kind", [("train", "train"), ("inference", "infer")])
def test_bundle_has_clean_properties(emitted, name, kind) -> None:
    configs = emitted.bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=str(configs / f"{name}.json"),
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(emitted.bundle),
        dataset_dir=str(emitted.dataset),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def run_unit_test(start: list[str], test: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an emitted unit test in another process."""
    environment = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return run_module(*start, str(test), cwd=cwd, env=environment)


def test_bundle_comes_with_a_unit_test_that_passes_and_changes_nothing(emitted, tmp_path) -> None:
    test = emitted.bundle.with_name("test_tiny_segmentation.py")
    before = {path: path.stat().st_mtime_ns for path in emitted.bundle.rglob("*")}
    done = run_unit_test([], test, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]
    assert "Ran 2 tests" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in emitted.bundle.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


@PICTURES
def test_bundle_unit_test_finds_the_bundle_in_the_zoo_and_can_fail(emitted, tmp_path) -> None:
    folder = tmp_path / "ci" / "unit_tests"
    folder.mkdir(parents=True)
    test = Path(shutil.copy(emitted.bundle.with_name("test_tiny_segmentation.py"), folder))
    bundle = tmp_path / "models" / emitted.bundle.name
    shutil.copytree(emitted.bundle, bundle)
    pytest_quietly = ["pytest", "-q", "-p", "no:cacheprovider"]
    done = run_unit_test(pytest_quietly, test, tmp_path)
    assert done.returncode == 0, done.stdout[-9000:]
    assert "2 passed" in done.stdout
    config = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    config["network_def"]["out_channels"] += 1
    (bundle / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    done = run_unit_test(pytest_quietly, test, tmp_path)
    assert done.returncode == 1, "the weights are of another network"
    assert "1 failed, 1 passed" in done.stdout


def test_bundle_weights_load_strictly_and_are_what_search_json_says(emitted) -> None:
    weights = torch.load(emitted.bundle / "models" / "model.pt", weights_only=True)
    parser = ConfigParser()
    parser.read_config(str(emitted.bundle / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(weights, strict=True)
    search = json.loads((emitted.bundle / "docs" / "search.json").read_text(encoding="utf-8"))
    selected = search["selected"]
    assert sum(p.numel() for p in network.parameters()) == selected["num_parameters"]
    assert list(network.filters) == selected["features_per_stage"]
    rung = next(r for r in search["ladder"] if r["max_features"] == selected["max_features"])
    assert {key: rung[key] for key in selected} == selected


@pytest.mark.parametrize("export", ["ckpt_export", "onnx_export"])
def test_bundle_exports_with_equal_outputs(emitted, tmp_path, export) -> None:
    target = tmp_path / ("model.ts" if export == "ckpt_export" else "model.onnx")
    configs = emitted.bundle / "configs"
    command = [export, "--net_id", "network_def"]
    command += ["--filepath", str(target), "--ckpt_file", str(emitted.bundle / "models/model.pt")]
    command += ["--meta_file", str(configs / "metadata.json")]
    command += ["--config_file", str(configs / "inference.json")]
    if export == "ckpt_export":
        command += ["--bundle_root", str(emitted.bundle)]
    done = run_monai_bundle(emitted, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-9000:]
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.json"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(emitted.bundle / "models/model.pt", weights_only=True))
    shape = (1, parser["in_channels"], *parser["patch_size"])
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(image)
    if export == "ckpt_export":
        found = torch.jit.load(target)(image)
    else:
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = torch.as_tensor(session.run(None, {name: image.numpy()})[0])
    torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=1e-4)


def test_bundle_trains_resumes_infers_and_evaluates(emitted, tmp_path) -> None:
    bundle, dataset = emitted.bundle, emitted.dataset
    before = (bundle / "models" / "model.pt").read_bytes()
    short = ("--dataset_dir", dataset, "--num_workers", 0, "--val_interval", 1)
    run_bundle(emitted, "train", *short, "--epochs", 1, cwd=tmp_path)
    trained = (bundle / "models" / "model.pt").read_bytes()
    assert trained != before
    assert [path.name for path in (bundle / "models").iterdir()] == ["model.pt"]
    assert list((bundle / "eval" / "tensorboard").glob("events.out.tfevents.*"))
    split = json.loads((bundle / "configs" / "datalist.json").read_text(encoding="utf-8"))
    sections = [{case["label"] for case in split[key]} for key in ("training", "validation")]
    assert [len(section) for section in sections] == [4, 1]
    assert {Path(name).name for name in sections[0] | sections[1]} == {
        path.name for path in (dataset / "labelsTr").iterdir()
    }
    log = run_bundle(emitted, "train", *short, "--epochs", 2, cwd=tmp_path)
    assert "Epoch: 2/2" in log and "Epoch: 1/2" not in log

    # Settings of the new run count, not those that the state was saved with.
    options = (*short, "--batch_size", 1, "--learning_rate", 0.005, "--weight_decay", 0.1)
    log = run_bundle(emitted, "train", *options, "--epochs", 3, cwd=tmp_path)
    assert "Epoch: 3/3, Iter: 4/4" in log and "Epoch: 2/3" not in log
    state = torch.load(bundle / "eval" / "checkpoints" / "training_state.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["initial_lr"] == 0.005
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.1

    # Other cases, or another split of them, are not mixed with these.
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    for path in (*other.glob("labelsTr/*4.*"), *other.glob("imagesTr/*4_*")):
        path.unlink()
    trained = (bundle / "models" / "model.pt").read_bytes()
    options = ("--dataset_dir", other, *short[2:], "--epochs", 4)
    log = run_bundle(emitted, "train", *options, cwd=tmp_path, status=1)
    assert "is of other cases or of another split" in log
    assert (bundle / "models" / "model.pt").read_bytes() == trained
    assert json.loads((bundle / "configs" / "datalist.json").read_text(encoding="utf-8")) == split

    out = tmp_path / "Ausgabe é"
    images = dataset / "imagesTr"
    run_bundle(emitted, "inference", "--dataset_dir", images, "--output_dir", out, cwd=tmp_path)
    suffix = ".nii.gz" if emitted.kind in NIFTI_KINDS else ".png"
    assert sorted(p.name for p in out.iterdir()) == [f"Fall é {i}{suffix}" for i in range(5)]
    for path in out.iterdir():
        label, reference = load_label(path), load_label(dataset / "labelsTr" / path.name)
        assert label.shape == reference.shape
        assert label.dtype == np.uint8
        assert label.max() < (2 if emitted.kind == "rgb" else 3)
        if suffix == ".nii.gz":
            affine = nibabel.load(path).affine
            np.testing.assert_allclose(affine, stored_affine(emitted.kind), atol=1e-5)

    run_bundle(
        emitted, "train+evaluate", "--dataset_dir", dataset, "--num_workers", 0, cwd=tmp_path
    )
    with open(bundle / "eval" / "val_mean_dice_raw.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert len(rows) >= 2


def test_bundle_learns_and_labels_lie_on_the_image(emitted, tmp_path) -> None:
    # A threshold of the image is learned in a few epochs only if image and label agree in space.
    epochs = 15 if emitted.kind in ("volumes", "slices") else 30
    run_bundle(
        emitted, "train", "--dataset_dir", emitted.dataset, "--num_workers", 0, "--epochs", epochs,
        "--val_interval", epochs, "--resume", "False", "--output_dir", tmp_path / "state",
        cwd=tmp_path,
    )  # fmt: skip
    out = tmp_path / "labels"
    run_bundle(
        emitted, "inference", "--dataset_dir", emitted.dataset, "--output_dir", out, cwd=tmp_path
    )
    dice = []
    for path in out.iterdir():
        label, reference = load_label(path), load_label(emitted.dataset / "labelsTr" / path.name)
        foreground, truth = label > 0, reference > 0
        dice.append(2 * (foreground & truth).sum() / (foreground.sum() + truth.sum()))
    assert np.mean(dice) > 0.85, dice


def test_bundle_says_what_is_missing(emitted, tmp_path) -> None:
    empty = tmp_path / "nothing here"
    empty.mkdir()
    for config in ("train", "inference"):
        log = run_bundle(emitted, config, "--dataset_dir", empty, cwd=tmp_path, status=1)
        assert "nothing here" in log
        assert "--dataset_dir FOLDER" in log


@pytest.mark.usefixtures("without_gpus")
@VOLUMES
def test_bundle_trains_on_two_processes(emitted, tmp_path) -> None:
    bundle = tmp_path / "copy"
    shutil.copytree(emitted.bundle, bundle)
    shutil.rmtree(bundle / "eval", ignore_errors=True)
    before = (bundle / "models" / "model.pt").read_bytes()
    files = [str(bundle / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(files)]
    command += ["--bundle_root", str(bundle), "--dataset_dir", str(emitted.dataset)]
    command += ["--epochs", "2", "--val_interval", "1", "--num_workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (bundle / "models" / "model.pt").read_bytes() != before
    assert [path.name for path in (bundle / "models").iterdir()] == ["model.pt"]


@SLICES
def test_bundle_trains_on_an_msd_datalist(emitted, tmp_path) -> None:
    root = tmp_path / "msd"
    shutil.copytree(emitted.dataset, root)
    cases = [f"Fall é {index}" for index in range(3)]
    entries = [
        {"image": f"./imagesTr/{case}_0000.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
        for case in cases
    ]
    (root / "dataset.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    bundle = tmp_path / "copy"
    shutil.copytree(emitted.bundle, bundle)
    shutil.rmtree(bundle / "eval", ignore_errors=True)
    before = (bundle / "models" / "model.pt").read_bytes()
    copied = Emitted(emitted.kind, bundle, root)
    options = ("--datalist", root / "dataset.json", "--epochs", 1, "--val_interval", 1)
    run_bundle(copied, "train", *options, "--num_workers", 0, cwd=tmp_path)
    assert (bundle / "models" / "model.pt").read_bytes() != before
    state = torch.load(bundle / "eval" / "checkpoints" / "training_state.pt", weights_only=True)
    assert sorted(sum(state["split"], [])) == [f"{case}.nii.gz" for case in cases]
    split = json.loads((bundle / "configs" / "datalist.json").read_text(encoding="utf-8"))
    assert len(split["training"]) == 2 and len(split["validation"]) == 1
    assert split["validation"][0]["label"] in [entry["label"][2:] for entry in entries]


@pytest.fixture
def copied(emitted, tmp_path) -> Emitted:
    """A copy of the bundle and its data, to be spoilt."""
    shutil.copytree(emitted.bundle, tmp_path / "copy_segmentation")
    shutil.rmtree(tmp_path / "copy_segmentation" / "eval", ignore_errors=True)
    shutil.copytree(emitted.dataset, tmp_path / "data")
    return Emitted(emitted.kind, tmp_path / "copy_segmentation", tmp_path / "data")


def no_label(root: Path) -> None:
    (root / "labelsTr" / "Fall é 2.png").unlink()


def no_image(root: Path) -> None:
    (root / "imagesTr" / "Fall é 2_0000.png").unlink()


def unknown_value(root: Path) -> None:
    Image.fromarray(np.full((40, 56), 255, np.uint8)).save(root / "labelsTr" / "Fall é 2.png")


def another_shape(root: Path) -> None:
    Image.fromarray(np.zeros((56, 40), np.uint8)).save(root / "labelsTr" / "Fall é 2.png")


def other_channels(root: Path) -> None:
    Image.fromarray(texture((40, 56), 2)).save(root / "imagesTr" / "Fall é 2_0000.png")


@PICTURES
@pytest.mark.parametrize(
    "spoil, message",
    [
        (no_label, "no label in labelsTr for the images"),
        (no_image, "need imagesTr/CASE_0000"),
        (unknown_value, "the label holds 255.0, and the classes are 0 to 1"),
        (another_shape, "the image has shape (56, 40), the label (40, 56)"),
        (other_channels, "the image has 1 channels, and the network takes 3"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bundle_refuses_data_that_do_not_fit_before_the_first_step(
    copied, tmp_path, spoil, message
) -> None:
    spoil(copied.dataset)
    before = (copied.bundle / "models" / "model.pt").read_bytes()
    options = ("--dataset_dir", copied.dataset, "--num_workers", 0, "--epochs", 1)
    log = run_bundle(copied, "train", *options, cwd=tmp_path, status=1)
    assert message in log and "Fall é 2" in log
    assert "Iter: 1/" not in log
    assert (copied.bundle / "models" / "model.pt").read_bytes() == before


@PICTURES
def test_bundle_refuses_an_empty_datalist(copied, tmp_path) -> None:
    datalist = copied.dataset / "dataset.json"
    datalist.write_text(json.dumps({"training": []}))
    log = run_bundle(copied, "train", "--datalist", datalist, cwd=tmp_path, status=1)
    assert f"{datalist} lists no cases: it needs a 'training' list as MSD has" in log


@PICTURES
@pytest.mark.parametrize("config", ["inference", "train+evaluate"])
def test_bundle_refuses_weights_of_another_width(copied, tmp_path, config) -> None:
    weights = copied.bundle / "models" / "model.pt"
    state = torch.load(weights, weights_only=True)
    torch.save({name: value[..., :1] for name, value in state.items()}, weights)
    log = run_bundle(copied, config, "--dataset_dir", copied.dataset, cwd=tmp_path, status=1)
    assert "are of another network than network_def" in log and str(weights) in log


@PICTURES
def test_bundle_refuses_to_resume_the_training_of_another_network(copied, tmp_path) -> None:
    options = ("--dataset_dir", copied.dataset, "--num_workers", 0, "--val_interval", 1)
    run_bundle(copied, "train", *options, "--epochs", 1, cwd=tmp_path)
    state = copied.bundle / "eval" / "checkpoints" / "training_state.pt"
    content = torch.load(state, weights_only=True)
    content["network"] = {name: value[..., :1] for name, value in content["network"].items()}
    torch.save(content, state)
    log = run_bundle(copied, "train", *options, "--epochs", 2, cwd=tmp_path, status=1)
    assert "is of another network: pass another --output_dir, or --resume False" in log


@PICTURES
def test_bundle_takes_the_validation_cases_of_a_datalist(copied, tmp_path) -> None:
    entries = [
        {"image": f"imagesTr/Fall é {i}_0000.png", "label": f"labelsTr/Fall é {i}.png"}
        for i in range(4)
    ]
    datalist = copied.bundle / "configs" / "own.json"
    datalist.write_text(json.dumps({"training": entries[:1], "validation": entries[1:]}))
    parser = ConfigParser()
    parser.read_config(str(copied.bundle / "configs" / "train.json"))
    parser["bundle_root"] = str(copied.bundle)
    parser["dataset_dir"], parser["datalist"] = str(copied.dataset), str(datalist)
    names = [
        [Path(case["label"]).name for case in parser.get_parsed_content(key)]
        for key in ("train_cases", "val_cases")
    ]
    assert names == [["Fall é 0.png"], [f"Fall é {i}.png" for i in (1, 2, 3)]]


@PICTURES
@pytest.mark.parametrize("count", [5, 6, 7, 11])
def test_bundle_folds_hold_every_case_out_once(copied, tmp_path, count) -> None:
    for index in range(count):
        for name in (f"imagesTr/c{index}_0000.png", f"labelsTr/c{index}.png"):
            (tmp_path / "names" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "names" / name).touch()
    held_out = []
    for fold in range(5):
        parser = ConfigParser()
        parser.read_config(str(copied.bundle / "configs" / "train.json"))
        parser["bundle_root"] = str(copied.bundle)
        parser["dataset_dir"], parser["fold"] = str(tmp_path / "names"), fold
        train, val = (
            [case["label"] for case in parser.get_parsed_content(key)]
            for key in ("train_cases", "val_cases")
        )
        assert len(train) + len(val) == count and not set(train) & set(val)
        held_out += val
    assert len(held_out) == len(set(held_out)) == count


@PICTURES
def test_bundle_refuses_a_fold_that_holds_out_nothing(copied, tmp_path) -> None:
    options = ("--dataset_dir", copied.dataset, "--fold", 5, "--num_workers", 0)
    log = run_bundle(copied, "train", *options, cwd=tmp_path, status=1)
    assert "fold 5 holds out none of the 5 cases: give --fold from 0 to 4" in log


@PICTURES
def test_bundle_resumes_with_and_without_mixed_precision(copied, tmp_path) -> None:
    options = ("--dataset_dir", copied.dataset, "--num_workers", 0, "--val_interval", 1)
    for epoch, amp in enumerate((False, True, False), start=1):
        log = run_bundle(copied, "train", *options, "--epochs", epoch, "--amp", amp, cwd=tmp_path)
        assert f"Epoch: {epoch}/{epoch}" in log
        assert epoch == 1 or f"Epoch: {epoch - 1}/{epoch}" not in log


@PICTURES
def test_bundle_does_not_resume_the_training_of_another_split(copied, tmp_path) -> None:
    options = ("--dataset_dir", copied.dataset, "--num_workers", 0, "--epochs", 1)
    run_bundle(copied, "train", *options, cwd=tmp_path)
    split = (copied.bundle / "configs" / "datalist.json").read_bytes()
    log = run_bundle(copied, "train", *options, "--split_seed", 1, cwd=tmp_path, status=1)
    assert "is of other cases or of another split: pass another --output_dir" in log
    assert (copied.bundle / "configs" / "datalist.json").read_bytes() == split
    run_bundle(copied, "train", *options, "--split_seed", 1, "--resume", "False", cwd=tmp_path)
    assert (copied.bundle / "configs" / "datalist.json").read_bytes() != split


def not_finite(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    values = np.asarray(image.dataobj).copy()
    values[3, 4, 5] = np.nan
    return nibabel.Nifti1Image(values, image.affine)


def moved(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    affine = image.affine.copy()
    affine[0, 3] += 3
    return nibabel.Nifti1Image(np.asarray(image.dataobj), affine)


@VOLUMES
@pytest.mark.parametrize(
    "file, spoil, message",
    [
        ("imagesTr/Fall é 2_0000.nii.gz", not_finite, "voxels are NaN or infinite"),
        ("labelsTr/Fall é 2.nii.gz", moved, "the label lies 3.0 voxels away from its image"),
    ],
    ids=["not_finite", "moved"],
)
def test_bundle_refuses_volumes_that_would_spoil_the_weights(
    emitted, tmp_path, file, spoil, message
) -> None:
    dataset = tmp_path / "data"
    shutil.copytree(emitted.dataset, dataset)
    nibabel.save(spoil(nibabel.load(dataset / file)), tmp_path / "spoilt.nii.gz")
    shutil.move(tmp_path / "spoilt.nii.gz", dataset / file)
    before = (emitted.bundle / "models" / "model.pt").read_bytes()
    options = ("--dataset_dir", dataset, "--num_workers", 0, "--output_dir", tmp_path / "out")
    log = run_bundle(emitted, "train", *options, cwd=tmp_path, status=1)
    assert message in log and "Fall é 2" in log
    assert (emitted.bundle / "models" / "model.pt").read_bytes() == before


@PICTURES
def test_bundle_writes_neither_what_another_process_writes_nor_over_images(
    emitted, tmp_path
) -> None:
    options = ("--dataset_dir", emitted.dataset, "--num_workers", 0, "--epochs", 1)
    with write_lock(emitted.bundle):
        log = run_bundle(emitted, "train", *options, cwd=tmp_path, status=1)
    assert f"another process writes '{emitted.bundle}'" in log
    run_bundle(emitted, "train", *options, cwd=tmp_path)
    assert not list(emitted.bundle.parent.rglob("*.lock"))
    before = {path: path.read_bytes() for path in emitted.dataset.rglob("*.*")}
    for output in ("imagesTr", "labelsTr"):
        folders = ("--dataset_dir", emitted.dataset, "--output_dir", emitted.dataset / output)
        for config in ("inference", "train+evaluate"):
            log = run_bundle(emitted, config, *folders, cwd=tmp_path, status=1)
            assert "would lie among the images or labels: give another --output_dir" in log
    assert {path: path.read_bytes() for path in emitted.dataset.rglob("*.*")} == before


@PICTURES
def test_bundle_resumes_after_a_kill_at_any_moment(copied, tmp_path) -> None:
    configs, state = copied.bundle / "configs", copied.bundle / "eval/checkpoints/training_state.pt"
    command = ["run"]
    command += ["--config_file", str(configs / "train.json"), "--bundle_root", str(copied.bundle)]
    command += ["--dataset_dir", str(copied.dataset), "--num_workers", "0", "--val_interval", "1"]
    generator = np.random.default_rng(0)
    epoch, total = 0, 400
    for delay in generator.uniform(0, 2, 5):
        process = start_module(
            "monai.bundle", *command, "--epochs", total, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}
        )
        # Killed somewhere among its epochs, not in its imports.
        former, deadline = state.stat().st_mtime_ns if state.exists() else 0, time.time() + 120
        while (state.stat().st_mtime_ns if state.exists() else 0) == former:
            assert process.is_alive() and time.time() < deadline
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.join()
        trainer = torch.load(state, weights_only=True)["trainer"]
        assert trainer["iteration"] // trainer["epoch_length"] > epoch
        epoch = trainer["iteration"] // trainer["epoch_length"]
        weights = torch.load(copied.bundle / "models" / "model.pt", weights_only=True)
        assert all(torch.isfinite(value).all() for value in weights.values())
    options = ("--dataset_dir", copied.dataset, "--num_workers", 0, "--epochs", epoch + 1)
    log = run_bundle(copied, "train", *options, cwd=tmp_path)
    assert f"Epoch: {epoch + 1}/{epoch + 1}" in log and f"Epoch: {epoch}/" not in log
    # What a kill left half written goes with the next weights that are written.
    left = {path.name for path in (copied.bundle / "models").iterdir()} - {"model.pt"}
    assert all(name.startswith(".model.pt.tmp.") for name in left) and len(left) < 2
