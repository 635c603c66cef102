"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_xtiny.data.case import Sample
from monai_xtiny.deploy.segmenter import InputFormat
from monai_xtiny.deploy.timing import EAGER, TORCHSCRIPT, EngineModel, benchmark_engines
from monai_xtiny.networks.dynunet import build_network, network_config
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.search.scorer import Scorer
from tests.conftest import texture
from tests.processes import run_module

SCRIPTS = Path(__file__).parents[2] / "scripts"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_cuda
@pytest.mark.parametrize("size", [(128, 128), (32, 32, 32)], ids=["2d", "3d"])
@pytest.mark.parametrize("width", [64, 8, 1])
def test_scores_on_cuda_repeat_and_are_those_of_the_cpu(size, width) -> None:
    dims = len(size)
    strides = ((1,) * dims, *((2,) * dims,) * 2)
    plan = UNetPlan(dims, 1, 2, (1,) * dims, size, ((3,) * dims,) * 3, strides, (32, 64, 64))
    images = tuple(torch.from_numpy(texture(size, seed)).float()[None] for seed in range(3))
    sample = Sample(("a", "b", "c"), images)
    cpu, cuda = (
        Scorer(sample, plan, (1,), torch.device(name), align=True) for name in ("cpu", "cuda")
    )
    found, expected = cuda.score(width, 1), cpu.score(width, 1)
    assert cuda.score(width, 1) == found
    assert found.sensitivity == pytest.approx(expected.sensitivity, rel=1e-2)
    assert found.alignment == pytest.approx(expected.alignment, abs=1e-3)


@needs_cuda
def test_benchmark_engines_times_networks_on_cuda(tmp_path) -> None:
    strides = ((1, 1), (2, 2), (2, 2))
    plan = UNetPlan(2, 1, 2, (1, 1), (32, 48), ((3, 3),) * 3, strides, (32, 64, 64))
    form = InputFormat("images", 1, (32, 48), (4, 4), ("background", "cell"))
    network = build_network(plan, 4, seed=0).eval()
    eager, script = tmp_path / "x.pt", tmp_path / "x.ts"
    torch.save({"arguments": network_config(plan, 4), "state_dict": network.state_dict()}, eager)
    torch.jit.script(network).save(script)
    models = [
        EngineModel("selected", 4, engine, path)
        for engine, path in ((EAGER, eager), (TORCHSCRIPT, script))
    ]
    timings = benchmark_engines(
        models, form, [], (32, 48), device="cuda", threads=(1,), rounds=1, seconds=0
    )
    assert [row.engine for row in timings] == [EAGER, TORCHSCRIPT]
    assert all(row.network_ms > 0 for row in timings)


@pytest.mark.search
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "command",
    [("benchmarks/search.py", "--images", "nowhere"), ("benchmarks/deploy.py", "nowhere")],
    ids=lambda command: command[0],
)
def test_benchmarks_on_cuda_are_skipped_without_one(command, tmp_path) -> None:
    name, *options = command
    done = run_module(str(SCRIPTS / name), *options, "--device", "cuda", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "skipped: there is no CUDA device here\n")
