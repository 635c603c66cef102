from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy.onnx_model import input_format
from monai_xtiny.deploy.segmenter import InputFormat
from monai_xtiny.deploy.timing import (
    EAGER,
    ONNX,
    TORCHSCRIPT,
    EngineModel,
    EngineTiming,
    _measure,
    benchmark_engines,
)
from monai_xtiny.networks.dynunet import network_config
from tests.conftest import write_png
from tests.deploy.deployed import PLANS, exported_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.search


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, EngineModel]:
    """A network in the file of each engine."""
    folder = tmp_path_factory.mktemp("models")
    bundle = exported_bundle("pictures", folder)
    network = Bundle.open(bundle).network()
    eager, script, onnx = folder / "x.pt", folder / "x.ts", bundle / "models" / "model.onnx"
    arguments = network_config(PLANS["pictures"], 4)
    torch.save({"arguments": arguments, "state_dict": network.state_dict()}, eager)
    torch.jit.script(network).save(script)
    return {
        engine: EngineModel("selected", 4, engine, path)
        for engine, path in ((EAGER, eager), (TORCHSCRIPT, script), (ONNX, onnx))
    }


@pytest.fixture
def form(models) -> InputFormat:
    """What the network takes."""
    return input_format(Bundle.open(models[ONNX].path.parents[1]))


def test_benchmark_engines_times_each_in_a_process_of_its_own(models, form, tmp_path) -> None:
    image = write_png(tmp_path / "x.png", (37, 51))
    said: list[str] = []
    timings = benchmark_engines(
        list(models.values()), form, [image], (51, 37), threads=(1,), rounds=2, seconds=0,
        progress=said.append,
    )  # fmt: skip
    assert [row.engine for row in timings] == [EAGER, TORCHSCRIPT, ONNX]
    assert [row.num_bytes for row in timings] == [
        model.path.stat().st_size for model in models.values()
    ]
    assert len(said) == 3
    for row in timings:
        assert 0 < row.network_ms <= row.network_p95_ms
        assert row.image_ms is not None and row.image_p95_ms is not None
        assert 0 < row.image_ms <= row.image_p95_ms
    # ONNX Runtime's process holds no PyTorch, the scripted network's no MONAI.
    peaks = [row.peak_mib for row in timings]
    assert peaks[0] > peaks[1] > peaks[2] > 10


def test_benchmark_engines_ends_with_the_last_words_of_an_engine(tmp_path) -> None:
    form = InputFormat("images", 1, (32, 48), (8, 8), ("background", "cell"))
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no model")
    model = EngineModel("selected", 2, ONNX, path)
    with pytest.raises(RuntimeError, match="ONNX Runtime failed: ValueError: .* is no ONNX model"):
        benchmark_engines([model], form, [], (32, 48), threads=(1,), rounds=1)


def test_benchmark_engines_takes_no_answer_from_what_an_engine_prints(tmp_path) -> None:
    class Loud(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            print("EP Error: falling back")
            return image

    form = InputFormat("images", 1, (32, 48), (8, 8), ("background", "cell"))
    path = tmp_path / "x.ts"
    torch.jit.script(Loud()).save(path)
    model = EngineModel("selected", 2, TORCHSCRIPT, path)
    (row,) = benchmark_engines([model], form, [], (32, 48), threads=(1,), rounds=1, seconds=0)
    assert row.network_ms > 0


def test_frames_per_second_is_of_images_from_file_where_there_are_any() -> None:
    volumes = EngineTiming("selected", 2, ONNX, 1, 10, 50.0, 20.0, 30.0)
    images = EngineTiming("selected", 2, ONNX, 1, 10, 50.0, 20.0, 30.0, 25.0, 40.0)
    assert volumes.frames_per_second == 50
    assert images.frames_per_second == 40


def test_measure_counts_three_calls_at_least_and_not_the_first_two() -> None:
    calls: list[int] = []
    assert len(_measure(lambda: calls.append(1), 0)) == 3
    assert len(calls) == 5


def test_timing_imports_neither_pytorch_nor_monai() -> None:
    code = "import sys, monai_xtiny.deploy.timing; print({'torch', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


LIGHT = {"monai_xtiny", "monai_xtiny.deploy", "monai_xtiny.deploy.segmenter"}
LIGHT |= {"monai_xtiny.system", "monai_xtiny.system.lazy"}
NETWORK = {"monai_xtiny.networks", "monai_xtiny.networks.dynunet", "monai_xtiny.networks.ladder"}
NETWORK |= {"monai_xtiny.networks.cost"}  # what is too large is not built
NETWORK |= {"monai_xtiny.plan", "monai_xtiny.plan.unet_plan"}


@pytest.mark.parametrize(
    ("engine", "ours", "others"),
    [
        (ONNX, LIGHT, {"numpy", "onnxruntime", "PIL"}),
        (TORCHSCRIPT, LIGHT, {"numpy", "torch", "PIL"}),
        (EAGER, LIGHT | NETWORK, {"numpy", "torch", "PIL", "monai", "matplotlib", "nibabel"}),
    ],
    ids=["onnx", "torchscript", "eager"],
)
def test_timing_of_an_engine_imports_what_that_needs(
    models, form, tmp_path, engine, ours, others
) -> None:
    # What else were imported would be counted as memory of the engine; MONAI has needs of its own.
    job = {
        "engine": engine,
        "path": str(models[engine].path),
        "form": form.to_metadata(),
        "images": [str(write_png(tmp_path / "x.png", (150, 131)))],
        "size": [131, 150],
        "num_threads": 1,
        "device": "cpu",
    }
    code = (
        "import runpy, sys\n"
        "runpy.run_module('monai_xtiny.deploy.timing', run_name='__main__', alter_sys=True)\n"
        "print('modules', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(job)],
        input='["network", 0]\n["image", 0]\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 2
    loaded = set(done.stderr.splitlines()[-1].split()[1:])
    assert {name for name in loaded if name.split(".")[0] == "monai_xtiny"} == ours
    heavy = {"numpy", "onnxruntime", "onnx", "torch", "monai", "PIL", "matplotlib", "nibabel"}
    assert heavy & loaded <= others
