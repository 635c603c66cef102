"""Time a bundle's network in four engines beside the full width, and write the table.

usage: python scripts/benchmarks/deploy.py BUNDLE [--images DIR] [--data DIR] [--size WIDTH,HEIGHT]
           [--device cuda] [--output docs/benchmarks/speed.md]
example: python scripts/benchmarks/deploy.py bundle/nuclei_fluorescence_xtiny_segmentation
             --images DATA/Dataset076_DSB2018Fluo --data DATA/Dataset076_DSB2018Fluo

The bundle is copied first and stays as it is. With --images int8 is timed too, with --data the Dice
on the cases held out is measured. With --output the section Deployment of that file is replaced, or
added at its end; with --device cuda the section Deployment on a GPU, and without a GPU it is left
as it is. Let nothing else run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

from monai_xtiny.deploy.pipeline import Deployment, deploy_bundle, deployment_table
from monai_xtiny.deploy.segmenter import import_deploy

HEADING, HEADING_GPU = "## Deployment\n", "## Deployment on a GPU\n"


def processor() -> str:
    """The processor's name, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.M) if info.is_file() else []
    return names[0] if names else platform.machine()


def section(made: Deployment, command: str) -> str:
    """The section of the file: how it was measured, the table, and the Dice."""
    on_cpu = made.device == "cpu"
    versions = {name: version(name) for name in ("torch", "onnx")}
    versions["onnxruntime"] = import_deploy("onnxruntime").__version__
    packages = ", ".join(" ".join(item) for item in versions.items())
    size = " x ".join(str(edge) for edge in made.size)
    lines = [
        HEADING if on_cpu else HEADING_GPU,
        f"`{command}`, {time.strftime('%Y-%m-%d')}, "
        f"{'' if on_cpu else f'{made.device}, '}{processor()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {packages}.",
        "",
        f"An image of {size}, batch 1. Each engine runs in a process of its own, and they take "
        "turns; medians, and 95th percentiles in brackets. An image is timed from its PNG file to "
        "labels: decoding, normalization, the network, argmax. The full width is untrained.",
        "",
        deployment_table(made),
        "",
        f"Logits of ONNX Runtime and PyTorch differ by {made.max_difference:.1e} at most.",
    ]
    for name, dice in (("float32", made.dice), ("int8", made.dice_int8)):
        if dice is not None:
            lines.append(f"Mean Dice in {name}: {dice:.4f} over {made.num_cases} cases held out.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Deploy a copy of the bundle, and print or write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=lambda text: [int(edge) for edge in text.split(",")])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("skipped: there is no CUDA device here")
        return
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / arguments.bundle.resolve().name
        shutil.copytree(arguments.bundle, bundle)
        made = deploy_bundle(
            bundle,
            images=arguments.images,
            data=arguments.data,
            int8=arguments.images is not None,
            device=arguments.device,
            size=arguments.size,
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
    shown = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    text = section(made, f"python scripts/benchmarks/deploy.py {' '.join(shown)}")
    print(text, end="")
    if arguments.output is not None:
        former = arguments.output.read_text() if arguments.output.is_file() else "# Speed\n\n"
        before, _, after = former.partition(text.partition("\n")[0] + "\n")
        rest = after[after.index("\n## ") :] if "\n## " in after else ""
        whole = before.rstrip("\n") + "\n\n" + text + rest
        arguments.output.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()
