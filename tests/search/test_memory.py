from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from math import floor
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet

from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.handlers import SensitivityHandler
from monai_xtiny.search import memory
from monai_xtiny.search.memory import (
    free_memory_gb,
    is_out_of_memory,
    scoring_limit_gb,
    scoring_memory_gb,
)
from monai_xtiny.search.scorer import Scorer
from tests.conftest import write_png
from tests.processes import run_module

CPU = torch.device("cpu")
# Prints the growth of the peak while the width of argv is scored on as many images, and the
# estimate of it.
PEAK = """
import json, sys, torch
from monai_xtiny.data.case import Sample
from monai_xtiny.deploy.timing import peak_memory_mib
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.search.scorer import Scorer
torch.set_num_threads(1)
plan, width, count = UNetPlan(**json.loads(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
torch.nn.Conv2d(4, 4, 3)(torch.randn(1, 4, 64, 64)).sum().backward()
images = tuple(torch.randn(1, *plan.patch_size) for _ in range(count))
scorer = Scorer(Sample(tuple(map(str, range(count))), images), plan, (1,), torch.device("cpu"),
                align=False)
before = peak_memory_mib()
scorer.score(width, 1)
print((peak_memory_mib() - before) * 2**20 / 1e9, scorer.memory_gb(width))
"""
LIMITED = """
import json, resource, sys, torch
from monai_xtiny.data.case import Sample
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.search.scorer import Scorer
torch.set_num_threads(1)
plan = UNetPlan(**json.loads(sys.argv[1]))
images = tuple(torch.randn(1, *plan.patch_size) for _ in range(8))
scorer = Scorer(Sample(tuple("abcdefgh"), images), plan, (1, 2), torch.device("cpu"), align=False)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + int(sys.argv[2]),) * 2)
scorer.score(8, 1)
"""


def plan_of(patch_size: tuple[int, ...], features: tuple[int, ...]) -> dict:
    """A plan with isotropic kernels, as JSON has it."""
    dims = len(patch_size)
    return {
        "spatial_dims": dims,
        "in_channels": 1,
        "out_channels": 2,
        "spacing": [1.0] * dims,
        "patch_size": patch_size,
        "kernel_size": [[3] * dims] * len(features),
        "strides": [[1] * dims, *[[2] * dims] * (len(features) - 1)],
        "features_per_stage": features,
    }


def run(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, whose peak memory is its own too."""
    path = folder / "script.py"
    path.write_text(script)
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return run_module(str(path), *arguments, cwd=folder, env=here)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the parent's peak counts")
@pytest.mark.parametrize(
    ("patch_size", "features", "width", "count"),
    [
        ((512, 512), (32, 64, 128, 256, 512, 512), 512, 1),
        ((512, 512), (32, 64, 128, 256, 512, 512), 8, 2),
        ((512, 512), (32, 64, 128, 256, 512, 512), 1, 8),
        ((96, 96, 96), (32, 64, 128, 256, 320), 320, 1),
    ],
)
def test_scoring_memory_is_near_the_measured_peak(
    patch_size, features, width, count, tmp_path
) -> None:
    plan = plan_of(patch_size, features)
    done = run(PEAK, tmp_path, json.dumps(plan), str(width), str(count))
    assert done.returncode == 0, done.stderr
    measured, expected = map(float, done.stdout.split())
    assert 0.6 * expected < measured < 1.4 * expected


@pytest.mark.search
def test_smaller_batches_are_tried_where_memory_runs_out(plan_2d, sample_2d, monkeypatch) -> None:
    scorer = Scorer(sample_2d, plan_2d, (1,), CPU, align=False)
    whole, score, tried = scorer.score(8, 1), Scorer._score, []

    def short(self, width, seed, size):
        tried.append(size)
        if size > 1:
            torch.empty(2**62, dtype=torch.uint8)
        return score(self, width, seed, size)

    monkeypatch.setattr(Scorer, "_score", short)
    assert scorer.score(8, 1).sensitivity == pytest.approx(whole.sensitivity, rel=1e-4)
    assert tried[0] > 2
    assert tried[1:] == sorted(tried[1:], reverse=True)
    assert tried[-1] == 1


@pytest.mark.search
def test_what_did_not_fit_is_freed_before_smaller_batches_are_tried(
    plan_2d, sample_2d, monkeypatch
) -> None:
    scorer = Scorer(sample_2d, plan_2d, (1,), CPU, align=False)
    held, alive, update = [], [], SensitivityHandler.update

    def short(self, engine):
        alive.append([reference() is not None for reference in held])
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        if len(held) < 3:
            raise torch.OutOfMemoryError(f"no memory for {len(activations)} more")
        update(self, engine)

    monkeypatch.setattr(SensitivityHandler, "update", short)
    gc.disable()
    try:
        scorer.score(8, 1)
    finally:
        gc.enable()
    assert alive[:3] == [[], [False], [False, False]]


@pytest.mark.search
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
def test_an_image_that_does_not_fit_is_said_in_one_line(tmp_path) -> None:
    plan = json.dumps(plan_of((1024, 1024), (16, 32, 64, 64)))
    done = run(LIMITED, tmp_path, plan, "1000000")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("MemoryError: width 8 on one image of 1024x1024 does not fit in memory")


def test_a_given_limit_makes_batches_smaller_and_refuses_less_than_an_image(sample_2d) -> None:
    plan = UNetPlan(**plan_of((256, 256), (8, 16, 32, 64)))
    images = tuple(torch.zeros(1, 256, 256) for _ in range(8))
    sample = replace(sample_2d, images=images, names=tuple("abcdefgh"))
    free = Scorer(sample, plan, (1,), CPU, align=False)
    held = _held()
    needed = scoring_memory_gb(plan, 64, is_packed=True)
    short = Scorer(sample, plan, (1,), CPU, align=False, max_memory_gb=held + needed + 0.005)
    assert short._sizes[8] < free._sizes[8]
    assert all(short.memory_gb(width) <= short.limit_gb for width in short._sizes)
    with pytest.raises(ValueError, match=r"max_memory_gb is .* width 64 needs about .* give more"):
        Scorer(sample, plan, (1,), CPU, align=False, max_memory_gb=held + needed / 2)


@pytest.mark.search
def test_a_network_of_many_weights_is_freed_once_it_is_scored(plan_2d, sample_2d) -> None:
    plan = replace(plan_2d, features_per_stage=(32, 64, 256, 512))
    scorer = Scorer(sample_2d, plan, (1,), CPU, align=False)
    gc.collect()
    before = sum(isinstance(item, DynUNet) for item in gc.get_objects())
    gc.disable()
    try:
        scorer.score(512, 1)
        assert sum(isinstance(item, DynUNet) for item in gc.get_objects()) == before
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks as Linux counts them")
def test_a_search_stays_under_the_limit_given(tmp_path) -> None:
    for index in range(3):
        write_png(tmp_path / "images" / f"{index}.png", (512, 512), seed=index)
    command = [sys.executable, "-m", "monai_xtiny", "search", "--images", str(tmp_path / "images")]
    command += ["--bundle", str(tmp_path / "x_segmentation"), "--method", "paper"]
    command += ["--max_memory_gb", "1.7"]  # unlimited, it takes 1.8
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *map(int, re.findall(r"VmHWM:\s+(\d+) kB", status)), 0)
            time.sleep(0.05)
    assert process.returncode == 0
    assert 1.0 < peak * 1024 / 1e9 < 1.7


def _held() -> float:
    """What the process holds, as a limit counts it."""
    return floor(2 * memory._held_gb(CPU) + 0.5) / 2 + 0.25


def test_scoring_limit_is_a_share_of_what_is_free_or_what_was_given(monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory_gb", lambda device: 0.5)
    assert scoring_limit_gb(CPU) == 0.25
    assert scoring_limit_gb(CPU, 100.0) == 100.0 - _held()
    with pytest.raises(ValueError, match=r"max_memory_gb is 0\.01, and the process holds"):
        scoring_limit_gb(CPU, 0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_free_memory_is_no_more_than_the_machine_has() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    assert 0 < free_memory_gb(CPU) <= total


def test_is_out_of_memory_knows_the_errors_of_an_allocator() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))
