"""Latency and memory of one network in several engines, each in a process of its own.

The engines take turns, so that a machine that slows down slows all of them. Run as a program, this
module is such a process: it imports what its engine needs, and no more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from monai_xtiny.deploy.segmenter import (
    InputFormat,
    Segmenter,
    format_from_metadata,
    load_segmenter,
)

EAGER, TORCHSCRIPT, ONNX, INT8 = "PyTorch eager", "TorchScript", "ONNX Runtime", "ONNX Runtime int8"


@dataclass(frozen=True)
class EngineModel:
    """One network as one engine takes it.

    Args:
        network: its name in the table.
        max_features: its width cap.
        engine: one of the four.
        path: the file; for PyTorch a dictionary of the network's ``arguments`` and ``state_dict``.
    """

    network: str
    max_features: int
    engine: str
    path: Path


@dataclass(frozen=True)
class EngineTiming:
    """What one engine takes with some threads.

    Args:
        network: name of the network.
        max_features: its width cap.
        engine: name of the engine.
        num_threads: intra-op threads that the engine may use.
        num_bytes: size of the file.
        peak_mib: largest resident memory of the process, MiB; a GPU's own memory is not counted.
        network_ms: median of the passes of the network on one image in memory, ms.
        network_p95_ms: 95th percentile of the same.
        image_ms: median from an image's file to labels in memory (decoding, normalization, the
            network, argmax), ms; ``None`` for volumes.
        image_p95_ms: 95th percentile of the same.
    """

    network: str
    max_features: int
    engine: str
    num_threads: int
    num_bytes: int
    peak_mib: float
    network_ms: float
    network_p95_ms: float
    image_ms: float | None = None
    image_p95_ms: float | None = None

    @property
    def frames_per_second(self) -> float:
        """Images per second from file to labels; for volumes, passes of the network per second."""
        return 1000 / (self.network_ms if self.image_ms is None else self.image_ms)


def benchmark_engines(
    models: Sequence[EngineModel],
    form: InputFormat,
    images: Sequence[str | os.PathLike[str]],
    size: Sequence[int],
    *,
    device: str = "cpu",
    threads: Sequence[int] = (1, 2),
    rounds: int = 5,
    seconds: float = 0.3,
    progress: Callable[[str], None] | None = None,
) -> tuple[EngineTiming, ...]:
    """Time models against each other.

    Args:
        models: networks and engines.
        form: what the networks take.
        images: the files of one image, one or one per channel; none for volumes.
        size: of the image, (*spatial); the networks get it padded to what they take.
        device: that computes, ``cpu`` or a ``cuda`` one; images in host memory are copied to it,
            and logits back. Engines are as they come, with TF32 where that is their default.
        threads: numbers of intra-op threads to measure with, one after the other.
        rounds: turns of each engine.
        seconds: of each turn, at least; three passes are made at least.
        progress: is told what is being measured.

    Returns:
        One timing for each model and number of threads.

    Raises:
        RuntimeError: an engine failed; the message ends with its last words.
    """
    timings = []
    for num_threads in threads:
        with ExitStack() as stack:
            workers = []
            for model in models:
                if progress is not None:
                    progress(f"{model.network} network, {model.engine}, {num_threads} threads")
                worker = _Worker(model, form, images, size, num_threads, device)
                workers.append(stack.enter_context(worker))
            for _ in range(rounds):
                for worker in workers:
                    worker.measure("network", seconds)
                    if images:
                        worker.measure("image", seconds)
            timings += [worker.timing() for worker in workers]
    return tuple(timings)


class _Worker:
    """A process that runs one model when told to."""

    def __init__(
        self,
        model: EngineModel,
        form: InputFormat,
        images: Sequence[str | os.PathLike[str]],
        size: Sequence[int],
        num_threads: int,
        device: str,
    ) -> None:
        self._model, self._num_threads = model, num_threads
        self._milliseconds: dict[str, list[float]] = {"network": [], "image": []}
        job = {
            "engine": model.engine,
            "path": os.fspath(model.path),
            "form": form.to_metadata(),
            "images": [os.fspath(image) for image in images],
            "size": list(size),
            "num_threads": num_threads,
            "device": device,
        }
        self._words: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(num_threads),
                "MKL_NUM_THREADS": str(num_threads),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")
        self._words.close()

    def measure(self, what: str, seconds: float) -> None:
        """One turn."""
        self._milliseconds[what] += self._ask([what, seconds])

    def timing(self) -> EngineTiming:
        """All turns together."""
        model, from_file = self._model, self._milliseconds["image"]
        return EngineTiming(
            model.network,
            model.max_features,
            model.engine,
            self._num_threads,
            model.path.stat().st_size,
            self._ask(["memory", 0]),
            *_median_and_p95(self._milliseconds["network"]),
            *(_median_and_p95(from_file) if from_file else ()),
        )

    def _ask(self, request: list[Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            self._process.kill()
            self._process.wait()
            self._words.seek(0)
            lines = self._words.read().decode(errors="replace").strip().splitlines() or ["killed"]
            raise RuntimeError(f"{self._model.engine} failed: {lines[-1]}") from error


def _median_and_p95(milliseconds: Sequence[float]) -> tuple[float, float]:
    """The middle of measured times, and what one in twenty exceeds."""
    median, p95 = np.percentile(milliseconds, (50, 95))
    return float(median), float(p95)


def _serve(job: dict[str, Any]) -> None:
    """Answer the requests of a :class:`_Worker`, one per line, until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # engines print there
    form = format_from_metadata(job["form"])
    predict = _predictor(job["engine"], job["path"], job["num_threads"], job["device"])
    segmenter = Segmenter(predict, form, whole_image=True)
    shape = (1, form.in_channels, *form.padded(job["size"]))
    image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    actions: dict[str, Callable[[], object]] = {
        "network": lambda: predict(image),
        "image": lambda: segmenter(job["images"]),
    }
    for line in sys.stdin:
        what, seconds = json.loads(line)
        answer = peak_memory_mib() if what == "memory" else _measure(actions[what], seconds)
        print(json.dumps(answer), file=answers, flush=True)


def _predictor(
    engine: str, path: str, num_threads: int, device: str
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The network in an engine, from arrays to arrays."""
    if engine in (ONNX, INT8):
        return load_segmenter(path, num_threads=num_threads, device=device).predict
    import torch

    torch.set_num_threads(num_threads)
    if engine == EAGER:
        from monai_xtiny.networks.dynunet import network_from_config

        content = torch.load(path, weights_only=True)
        network: torch.nn.Module = network_from_config(content["arguments"])
        network.load_state_dict(content["state_dict"])
    else:
        network = torch.jit.load(path)
    network.eval().to(device)

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(torch.from_numpy(images).to(device)).cpu().numpy()

    return predict


def _measure(action: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call after two that are not counted."""
    action()
    action()
    measured: list[float] = []
    start = time.perf_counter()
    while len(measured) < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        action()
        measured.append(1000 * (time.perf_counter() - before))
    return measured


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    try:  # getrusage would count the parent's, from before exec
        rows = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(row for row in rows if row.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        import resource  # there is none on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024**2 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
