"""Time the inference of two bundles by turns, and compare their labels.

usage: python scripts/benchmarks/inference.py FORMER_BUNDLE BUNDLE IMAGES [--rounds 5]

Both run in this process, after a round that is not counted: what is left is reading, the network,
and writing, without the imports. Printed are CPU seconds, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
from monai.bundle import ConfigWorkflow
from PIL import Image


def infer(bundle: Path, images: Path, output: Path) -> float:
    """Label a folder of images; the CPU seconds that it took."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        workflow = ConfigWorkflow(
            config_file=str(bundle / "configs" / "inference.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type=None,
            bundle_root=str(bundle),
            dataset_dir=str(images),
            output_dir=str(output),
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    return time.process_time() - start


def read_label(path: Path) -> np.ndarray:
    """A label file as an array."""
    if path.name.endswith((".nii", ".nii.gz")):
        return np.asarray(nibabel.load(path).dataobj)
    return np.asarray(Image.open(path))


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("former", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bundles = {"former": options.former.resolve(), "new": options.bundle.resolve()}
    with tempfile.TemporaryDirectory() as folder:
        outputs = {name: Path(folder) / name for name in bundles}
        times: dict[str, list[float]] = {name: [] for name in bundles}
        for turn in range(options.rounds + 1):
            for name in sorted(bundles, reverse=bool(turn % 2)):
                seconds = infer(bundles[name], options.images.resolve(), outputs[name])
                times[name] += [seconds] if turn else []
        labels = sorted(path.name for path in outputs["new"].iterdir())
        equal = sum(
            np.array_equal(*(read_label(outputs[name] / label) for name in bundles))
            for label in labels
        )
    for name, seconds in times.items():
        print(f"{name}: median {statistics.median(seconds):.2f} s, {min(seconds):.2f} at least")
    print(f"{equal} of {len(labels)} labels equal")


if __name__ == "__main__":
    main()
