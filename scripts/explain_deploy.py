"""Where an emitted network's time goes in ONNX Runtime: the same network, changed in one respect.

usage: python scripts/explain_deploy.py BUNDLE [--size WIDTH,HEIGHT] [--repeats 5]
           [--output FILE.md]
example: python scripts/explain_deploy.py bundle/nuclei_fluorescence_xtiny_segmentation

For 2D networks. Next to the export as it is, and to the full width of the same plan:

- with ONNX Runtime's own instance normalisation, which is faster and not exact;
- without any normalisation, so that an activation is part of the convolution before it. What it
  computes is of no use: it is how fast the export could be if normalisation cost nothing;
- with pairs of neighbouring columns as channels at full resolution, where the network has fewer
  channels than a block of the convolution. It computes the same, with zeros among its weights;
- without normalisation and with pairs of columns.

Let nothing else run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from benchmark_deploy import processor
from monai.networks.nets import DynUNet
from torch import nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from monai_xtiny.bundle.search_file import read_search
from monai_xtiny.bundle.weights import load_network
from monai_xtiny.deploy.onnx_model import input_format, write_onnx
from monai_xtiny.deploy.segmenter import import_deploy
from monai_xtiny.deploy.timing import ONNX, EngineModel, EngineTiming, benchmark_engines
from monai_xtiny.networks.cost import network_cost
from monai_xtiny.networks.dynunet import build_network

AS_EXPORTED, FULL_WIDTH = "as exported", "full width"


class OwnNormalisation(nn.Module):
    """Instance normalisation as one operator of ONNX; the export leaves it as it is."""

    def __init__(self, norm: _InstanceNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, H, W)."""
        return functional.instance_norm(image, weight=self.weight, bias=self.bias, eps=self.eps)


class PairedNormalisation(nn.Module):
    """Instance normalisation of (B, C * 2, H, W / 2), two columns of a channel side by side."""

    def __init__(self, norm: _InstanceNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise."""
        batch, channels, height, width = image.shape
        rows = image.reshape(batch, channels // 2, 2 * height, width)
        return self.norm(rows).reshape(batch, channels, height, width)


class PairedColumns(nn.Module):
    """A U-Net whose full resolution has pairs of columns as channels: (B, C * 2, H, W / 2)."""

    def __init__(self, network: DynUNet) -> None:
        super().__init__()
        self.network = network
        first, down, up = network.input_block, network.downsamples[0], network.upsamples[-1]
        for block in (first, up.conv_block):
            for layer in (block.conv1, block.conv2):
                layer.conv = paired_convolution(layer.conv)
            if isinstance(block.norm1, _InstanceNorm):
                block.norm1 = PairedNormalisation(block.norm1)
                block.norm2 = PairedNormalisation(block.norm2)
        down.conv1.conv = paired_convolution(down.conv1.conv)
        up.transp_conv.conv = paired_upsampling(up.transp_conv.conv)
        network.output_block.conv.conv = paired_convolution(network.output_block.conv.conv)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, H, W) of an image (B, C, H, W)."""
        batch, channels, height, width = image.shape
        pairs = image.reshape(batch, channels, height, width // 2, 2).permute(0, 1, 4, 2, 3)
        logits = self.network(pairs.reshape(batch, channels * 2, height, width // 2))
        classes = logits.shape[1] // 2
        columns = logits.reshape(batch, classes, 2, height, width // 2).permute(0, 1, 3, 4, 2)
        return columns.reshape(batch, classes, height, width)


def paired_convolution(layer: nn.Conv2d) -> nn.Conv2d:
    """The convolution from pairs of columns, to pairs or, where it strides, to single ones."""
    outputs, inputs, _, taps = layer.weight.shape
    num_columns = 3 - layer.stride[1]  # of the output, side by side
    reach = taps // 2
    weight = torch.zeros(outputs, num_columns, inputs, 2, taps, 2 * reach + 1)
    for column in range(num_columns):
        for tap in range(taps):
            pair, side = divmod(column + tap - reach, 2)
            weight[:, column, :, side, :, pair + reach] = layer.weight[..., tap]
    paired = nn.Conv2d(
        inputs * 2,
        outputs * num_columns,
        (layer.weight.shape[2], taps),
        (layer.stride[0], 1),
        (reach, reach),
        bias=layer.bias is not None,
    )
    paired.weight = nn.Parameter(weight.reshape(paired.weight.shape))
    if layer.bias is not None:
        paired.bias = nn.Parameter(layer.bias.repeat_interleave(num_columns))
    return paired


def paired_upsampling(layer: nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    """The transposed convolution of stride 2 from single columns to pairs."""
    inputs, outputs = layer.weight.shape[:2]
    bias = layer.bias is not None
    paired = nn.ConvTranspose2d(inputs, outputs * 2, (2, 1), (2, 1), bias=bias)
    paired.weight = nn.Parameter(layer.weight.transpose(2, 3).reshape(paired.weight.shape))
    if layer.bias is not None:
        paired.bias = nn.Parameter(layer.bias.repeat_interleave(2))
    return paired


def with_norms(network: DynUNet, replacement: type[nn.Module]) -> DynUNet:
    """A copy of a network with each instance normalisation replaced."""
    network = copy.deepcopy(network)
    replaced: dict[nn.Module, nn.Module] = {}  # blocks are listed twice in a DynUNet
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _InstanceNorm):
                setattr(module, name, replaced.setdefault(child, replacement(child)))
    return network


class NoNormalisation(nn.Identity):
    """Leaves an image as it is."""


def variants(network: DynUNet, initial: DynUNet) -> dict[str, nn.Module]:
    """The network and its changed copies, by name; of ``initial`` where trained values overflow."""
    found: dict[str, nn.Module] = {
        AS_EXPORTED: network,
        "ONNX Runtime's instance normalisation": with_norms(network, OwnNormalisation),
        "no normalisation": with_norms(initial, NoNormalisation),
        "columns in pairs": PairedColumns(copy.deepcopy(network)).eval(),
        "columns in pairs, no normalisation": PairedColumns(
            with_norms(initial, NoNormalisation)
        ).eval(),
    }
    image = torch.randn(1, network.in_channels, 256, 256, generator=torch.manual_seed(0))
    with torch.inference_mode():
        difference = (found["columns in pairs"](image) - network(image)).abs().max().item()
    if difference > 1e-3:
        raise SystemExit(f"columns in pairs change the logits by {difference:.1e}: not compared")
    return found


def table(runs: Sequence[Sequence[EngineTiming]]) -> str:
    """Medians over the runs as a Markdown table, one row a network; ratios with their range."""
    names = list(dict.fromkeys(timing.network for timing in runs[0]))
    threads = sorted({timing.num_threads for timing in runs[0]})
    took = [
        {(timing.network, timing.num_threads): timing.network_ms for timing in run} for run in runs
    ]
    head = "| network |" + "".join(
        f" {count} thread{'s' * (count > 1)}, ms | of the export | full width takes, times |"
        for count in threads
    )
    lines = [head, "|---|" + "---:|---:|---:|" * len(threads)]
    for name in names:
        row = f"| {name} |"
        for count in threads:
            time_ms = median(run[name, count] for run in took)
            share = median(run[name, count] / run[AS_EXPORTED, count] for run in took)
            ratios = sorted(run[FULL_WIDTH, count] / run[name, count] for run in took)
            row += f" {time_ms:.1f} | {share:.2f} | {median(ratios):.1f}"
            row += f" ({ratios[0]:.1f} to {ratios[-1]:.1f}) |" if name != FULL_WIDTH else " |"
        lines.append(row)
    return "\n".join(lines)


def main() -> None:
    """Write the variants as ONNX, time them by turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", default="256,256")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    try:
        selection = read_search(arguments.bundle / "docs" / "search.json")
        network = load_network(arguments.bundle).requires_grad_(False)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    plan, width = selection.table.plan, selection.max_features
    if plan.spatial_dims != 2 or not isinstance(network, DynUNet):
        raise SystemExit(f"{arguments.bundle} is not a 2D U-Net: nothing to explain")
    form = input_format(arguments.bundle)
    size = tuple(int(edge) for edge in arguments.size.split(","))
    full, initial = (
        build_network(plan, cap, seed=0).eval().requires_grad_(False) for cap in (None, width)
    )
    made = {**variants(network, initial), FULL_WIDTH: full}
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for index, (name, item) in enumerate(made.items()):
            path = Path(folder) / f"{index}.onnx"
            write_onnx(item, form, path)
            cap = plan.features_per_stage[-1] if name == FULL_WIDTH else width
            models.append(EngineModel(name, cap, ONNX, path))
        runs = [benchmark_engines(models, form, (), size) for _ in range(arguments.repeats)]
    gmacs, gmacs_full = (network_cost(plan, cap).gmacs for cap in (width, None))
    text = (
        f"`python scripts/explain_deploy.py bundle/{arguments.bundle.name}`, "
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores, "
        f"torch {version('torch')}, onnxruntime {import_deploy('onnxruntime').__version__}; "
        f"width {width}, image of {' x '.join(map(str, size))}, medians of {len(runs)} runs. "
        f"The full width has {gmacs_full / gmacs:.0f} times the arithmetic.\n\n{table(runs)}\n"
    )
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
