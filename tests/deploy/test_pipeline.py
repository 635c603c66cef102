from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from monai_xtiny.bundle.archive import check_onnx
from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.cli.commands import main
from monai_xtiny.deploy import pipeline as deploy
from monai_xtiny.deploy.onnx_model import quantize_onnx
from monai_xtiny.deploy.pipeline import Deployment, deploy_bundle, deployment_table
from monai_xtiny.deploy.timing import ONNX, EngineTiming, benchmark_engines
from monai_xtiny.training.evaluate import evaluate_held_out
from tests.conftest import texture, write_nifti
from tests.deploy.deployed import drawn_images, exported_bundle, write_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.search


def write_data(kind: str, root: Path) -> Path:
    """Six labeled cases of a bundle's kind."""
    for index in range(6):
        if kind == "pictures":
            values = texture((50, 40), index)
            for folder, name, pixels in (
                ("imagesTr", f"c{index}_0000.png", values),
                ("labelsTr", f"c{index}.png", (values > 120).astype(np.uint8)),
            ):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / folder / name)
        else:
            affine = np.diag([1.5, 1.5, 5.0, 1.0])
            for channel in range(2):
                values = texture((26, 20, 8), index + 10 * channel).astype(np.float32)
                path = root / "imagesTr" / f"c{index}_000{channel}.nii.gz"
                write_nifti(path, values=values, affine=affine)
            label = np.digitize(values, [100, 150]).astype(np.uint8)
            write_nifti(root / "labelsTr" / f"c{index}.nii.gz", values=label, affine=affine)
    return root


def labeled_bundle(kind: str, folder: Path) -> tuple[Path, Path]:
    """A bundle with its ONNX file, and labeled data whose first two cases it holds out."""
    bundle, data = exported_bundle(kind, folder), write_data(kind, folder / "data")
    cases = [
        {
            "image": [str(path.relative_to(data)) for path in sorted(data.glob(f"*/c{index}_*"))],
            "label": next(str(path.relative_to(data)) for path in data.glob(f"*/c{index}.*")),
        }
        for index in range(6)
    ]
    split = {"training": cases[2:], "validation": cases[:2]}
    (bundle / "configs" / "datalist.json").write_text(json.dumps(split))
    return bundle, data


@pytest.fixture(scope="module", params=["pictures", "volumes"])
def deployed(request, tmp_path_factory) -> tuple[Path, Path, Deployment]:
    bundle, data = labeled_bundle(request.param, tmp_path_factory.mktemp(request.param))
    return bundle, data, deploy_bundle(bundle, images=data, data=data, int8=True, benchmark=False)


@pytest.mark.slow
def test_deploy_bundle_writes_both_networks_and_what_it_measured(deployed) -> None:
    bundle, _, made = deployed
    models = bundle / "models"
    assert made.files == (models / "model.onnx", models / "model_int8.onnx")
    assert sorted(path.name for path in models.iterdir()) == [
        "model.onnx",
        "model.pt",
        "model_int8.onnx",
    ]
    written = json.loads((bundle / "docs" / "deploy.json").read_text())
    assert written["files"] == ["model.onnx", "model_int8.onnx"]
    assert written["dice_int8"] == made.dice_int8 and written["num_cases"] == 2
    assert written["timings"] == [] and written["environment"]["onnxruntime"]
    assert str(bundle.parent) not in json.dumps(written)
    assert 0 < made.max_difference < 1e-4


@pytest.mark.slow
def test_deploy_bundle_measures_the_dice_that_pytorch_has(deployed) -> None:
    bundle, data, made = deployed
    results = {path.name for path in bundle.iterdir()}
    assert "eval" not in results
    expected, _ = evaluate_held_out(Bundle.open(bundle), data=data)
    shutil.rmtree(bundle / "eval")
    assert made.dice == pytest.approx(expected.mean_dice, abs=1e-3)
    assert made.dice_int8 == pytest.approx(expected.mean_dice, abs=0.1)
    assert made.dice_int8 != made.dice


def test_deploy_bundle_leaves_the_former_files_when_export_fails(tmp_path, monkeypatch) -> None:
    bundle, _ = labeled_bundle("pictures", tmp_path)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match="cannot be exported as ONNX"):
        deploy_bundle(bundle, benchmark=False)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_deploy_bundle_deletes_an_int8_model_of_other_weights(tmp_path) -> None:
    bundle, _ = labeled_bundle("pictures", tmp_path)
    quantized = quantize_onnx(bundle / "models" / "model.onnx", drawn_images((1, 1, 32, 48)))
    deploy_bundle(bundle, benchmark=False)
    assert quantized.is_file()
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({name: 2 * value for name, value in weights.items()}, bundle / "models" / "model.pt")
    deploy_bundle(bundle, benchmark=False)
    assert not quantized.exists()
    check_onnx(Bundle.open(bundle))


def test_deploy_bundle_checks_before_it_exports(tmp_path, monkeypatch) -> None:
    bundle, data = labeled_bundle("pictures", tmp_path)
    untrained = Path(shutil.copytree(bundle, tmp_path / "untrained"))
    (untrained / "configs" / "datalist.json").unlink()

    def export(*_: object, **__: object) -> float:
        raise AssertionError("exported before everything was checked")

    monkeypatch.setattr(deploy, "write_onnx", export)
    with pytest.raises(ValueError, match="no configs/datalist.json, which training writes"):
        deploy_bundle(untrained, data=data)
    with pytest.raises(ValueError, match="calibrated on images: give --images"):
        deploy_bundle(bundle, int8=True)
    with pytest.raises(ValueError, match=r"size \(32,\): give 2 positive numbers"):
        deploy_bundle(bundle, size=(32,))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        deploy_bundle(bundle, images=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no such data"):
        deploy_bundle(bundle, data=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        deploy_bundle(tmp_path)


def test_deploy_says_in_one_line_what_is_missing(tmp_path, capsys, monkeypatch) -> None:
    bundle = write_bundle("pictures", tmp_path)
    for name, message in (
        ("onnxruntime", "error: onnxruntime cannot be imported: pip install monai-xtiny[deploy]"),
        ("onnx", "error: onnx cannot be imported: pip install monai-xtiny[deploy]"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(SystemExit, match="2"):
                main(["deploy", str(bundle), "--nobenchmark"])
        assert capsys.readouterr().err.strip() == message
    for options, message in (
        (["--int8"], "give --images"),
        (["--size", "32,x"], "--size is 'x'"),
        (["--device", "cuda:99"], "device 'cuda:99' is unknown or not available"),
        (["--output", str(tmp_path / "no" / "x.json")], "cannot write"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["deploy", str(bundle), *options])
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0]
    assert [path.name for path in (bundle / "models").iterdir()] == ["model.pt"]


def test_deployment_table_compares_with_the_full_width_on_the_same_engine() -> None:
    timings = (
        EngineTiming("full-width", 64, ONNX, 1, 10240, 90.0, 120.0, 130.0, 125.0, 140.0),
        EngineTiming("selected", 4, ONNX, 1, 2048, 50.0, 4.0, 6.0, 5.0, 7.0),
    )
    made = Deployment((Path("model.onnx"),), 1e-5, size=(32, 48), timings=timings)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in deployment_table(made).splitlines()
    ]
    assert rows[2][-1] == "1.0" and rows[3][-1] == "30.0"
    assert rows[3][:3] == ["selected, cap 4", ONNX, "1"]
    assert rows[3][3:7] == ["2", "4.0 (6.0)", "5.0 (7.0)", "200.0"]


@pytest.mark.slow
def test_deploy_times_both_networks_in_every_engine(tmp_path, capsys, monkeypatch) -> None:
    def measure_briefly(*arguments: Any, **options: Any) -> tuple[EngineTiming, ...]:
        brief = {"threads": (1,), "rounds": 1, "seconds": 0}
        return benchmark_engines(*arguments, **{**options, **brief})

    monkeypatch.setattr(deploy, "benchmark_engines", measure_briefly)
    bundle = write_bundle("pictures", tmp_path)
    data = write_data("pictures", tmp_path / "data")
    state = torch.get_rng_state()
    main(["deploy", str(bundle), "--images", str(data), "--int8", "--size", "30,45"])
    assert torch.equal(torch.get_rng_state(), state)
    written = json.loads((bundle / "docs" / "deploy.json").read_text())
    assert written["size"] == [30, 45] and len(written["timings"]) == 2 * 4
    assert written["dice"] is None and written["device"] == "cpu"
    # Names of format version 1, which do not follow those in the code.
    assert all(0 < row["picture_ms"] <= row["picture_p95_ms"] for row in written["timings"])
    assert "image_ms" not in written["timings"][0]
    output = capsys.readouterr().out
    assert output.count("| selected, cap 4 |") == output.count("| full-width, cap 256 |") == 4
