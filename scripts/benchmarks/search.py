"""Time a search: from process start, width by width against the arithmetic, and with many files.

usage: python scripts/benchmarks/search.py --images DATA [--device DEVICE] [--repeats N]
           [--output FILE.md] [--by_width] [--profile] [--cases 100,1000,10000,100000]
           [--processes 1,2] [--resample 512,512] [SEARCH OPTIONS]
example: python scripts/benchmarks/search.py --images DATA/Dataset076_DSB2018Fluo --method paper \
             --by_width --profile

Each repeat is a new process that runs `python -m monai_xtiny search` with the options given, on a
bundle that is thrown away: seconds from process start to its end, to load and to score, and the
peak resident memory. --by_width scores every width of that search again, with as many
initializations side by side as there are cores, and once more in a plain loop: one image at a time,
one network after the other. The floor is the time of the arithmetic alone (a forward pass and the
gradient to the image) at the rate of a matrix product measured in between. --profile lists where
the time goes. --cases links the first image so many times and plans and searches those.
--processes searches under torchrun, one core per process. --resample measures on copies of the
first images of another size, (x, y[, z]). With --device cuda on a machine that has none, nothing is
measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NARROW, WIDE = 8, 64


def run_once(
    options: Sequence[str], launcher: Sequence[str] = ()
) -> tuple[dict[str, float], dict[str, Any]]:
    """One search in a process of its own: seconds and peak memory in MiB, and its search.json."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "benchmark_segmentation"
        command = [sys.executable, *launcher, "-m", "monai_xtiny", "search", *options]
        command += ["--bundle", str(bundle)]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(os.waitstatus_to_exitcode(status))
        search = json.loads((bundle / "docs" / "search.json").read_text(encoding="utf-8"))
    peak = usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    return {
        "total": seconds,
        "load": search["seconds"]["load"],
        "score": search["seconds"]["score"],
        "peak": peak,
        "selected": search["selected"]["max_features"],
        "images": len(search["images"]),
    }, search


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--num_images")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--by_width", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--cases", help="numbers of files with commas")
    parser.add_argument("--processes", help="numbers of processes with commas")
    parser.add_argument("--resample", help="size of the images with commas")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--device", default="auto")
    arguments, options = parser.parse_known_args()
    if arguments.device.startswith("cuda") and not has_cuda():
        print("skipped: there is no CUDA device here")
        return
    if arguments.device != "auto":
        options += ["--device", arguments.device]
    if arguments.num_images is not None:
        options += ["--num_images", arguments.num_images]
    with tempfile.TemporaryDirectory() as folder:
        shown = ["--images", arguments.images, *options]
        if arguments.resample is not None:
            shown += ["--resample", arguments.resample]
            size = [int(edge) for edge in arguments.resample.split(",")]
            arguments.images = resample(arguments.images, size, Path(folder))
        text = measure(arguments, options, shown)
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")


def measure(arguments: argparse.Namespace, options: Sequence[str], shown: Sequence[str]) -> str:
    """All tables that were asked for."""
    runs, search = [], {}
    for _ in range(arguments.repeats):
        run, search = run_once(["--images", arguments.images, *options])
        runs.append(run)
    parts = [describe(shown, search["environment"]["device"]), repeats_table(runs)]
    if arguments.by_width or arguments.profile:
        parts += width_tables(arguments, search)
    if arguments.cases is not None:
        parts.append(cases_table(arguments, options))
    if arguments.processes is not None:
        parts.append(processes_table(arguments, options))
    return "\n".join(parts)


def resample(images: str, size: Sequence[int], folder: Path, count: int = 16) -> str:
    """Copies of the first images at another size, and where they are."""
    import nibabel
    import numpy as np
    from monai.transforms import LoadImage, Resize
    from PIL import Image

    from monai_xtiny.data.cases import find_cases

    load, resize = LoadImage(ensure_channel_first=True), Resize(size, mode="area")
    for number, case in enumerate(find_cases(images)[:count]):
        for index, path in enumerate(case.images):
            values = resize(load(path)).numpy()
            name = f"case_{number:03d}_{index:04d}"
            if len(size) == 3:
                image = nibabel.Nifti1Image(values[0], np.eye(4))
                nibabel.save(image, folder / f"{name}.nii.gz")
            else:
                pixels = values.transpose(2, 1, 0).round().astype(np.uint8).squeeze()
                Image.fromarray(pixels).save(folder / f"{name}.png")
    return str(folder)


def has_cuda() -> bool:
    """Whether there is a GPU that PyTorch can use."""
    import torch

    return bool(torch.cuda.is_available())


def describe(options: Sequence[str], device: str) -> str:
    """What was run, when, and on what; of paths the names only."""
    shown = " ".join(Path(option).name if os.sep in option else option for option in options)
    return (
        f"`monai_xtiny search {shown}`, {time.strftime('%Y-%m-%d')}, "
        f"{'' if device == 'cpu' else f'{device}, '}{os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}\n"
    )


def repeats_table(runs: Sequence[dict[str, float]]) -> str:
    """Every repeat and their median."""
    median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    lines = [
        "| run | images | selected | load, s | score, s | from process start, s | peak, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, run in [*((str(i + 1), run) for i, run in enumerate(runs)), ("median", median)]:
        lines.append(
            f"| {name} | {run['images']:.0f} | {run['selected']:.0f} | {run['load']:.2f} "
            f"| {run['score']:.1f} | {run['total']:.1f} | {run['peak']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def width_tables(arguments: argparse.Namespace, search: dict[str, Any]) -> list[str]:
    """Time of each width, and where it goes."""
    import torch
    from monai.bundle import ConfigParser

    from monai_xtiny.bundle.templates import configs_dir
    from monai_xtiny.networks.cost import network_cost
    from monai_xtiny.scores.table import table_from_dict
    from monai_xtiny.search.scorer import Scorer
    from monai_xtiny.search.workers import score_side_by_side
    from monai_xtiny.system.config_text import PlainPath
    from monai_xtiny.system.devices import select_device

    plan = table_from_dict(search).plan
    parser = ConfigParser(ConfigParser.load_config_files([str(configs_dir() / "search.json")]))
    parser.update(
        {"images": PlainPath(arguments.images), "plan": plan, "spatial_dims": plan.spatial_dims,
         "num_images": len(search["images"]), "progress": False}
    )  # fmt: skip
    device = select_device(arguments.device)
    sample = parser.get_parsed_content("sample")
    num_networks = torch.get_num_threads() if device.type == "cpu" else 1
    seeds = range(369, 369 + num_networks)
    scorer = Scorer(sample, plan, seeds, device, align=False)
    count = len(sample.images) * num_networks
    widths = [rung["max_features"] for rung in search["ladder"]]
    for width in widths:  # kernels are made on the first call
        scorer.score(width, seeds[0])
    rates, rows = [], []
    for width in widths:
        rates.append(matrix_product_rate(device))
        units = [(width, seed) for seed in seeds]
        seconds = timed(lambda units=units: list(score_side_by_side(scorer, units)), device)
        plain = timed(lambda width=width: plain_loop(sample, plan, width, device), device)
        rows.append((width, network_cost(plan, width).gmacs, seconds / count,
                     plain / len(sample.images)))  # fmt: skip
    rate = max(rates)
    parts = []
    if arguments.by_width:
        parts += [widths_table(rows, rate, num_networks, plan), scaling_table(rows, search, plan)]
    if arguments.profile:
        parts += [
            profile_table(scorer, [width for width in widths if width >= WIDE], "wide"),
            profile_table(scorer, [width for width in widths if width <= NARROW], "narrow"),
        ]
    return parts


def widths_table(
    rows: Sequence[tuple[int, float, float, float]], rate: float, num_networks: int, plan: Any
) -> str:
    """Time of an image at each width, next to its floor and the plain loop."""
    size = " x ".join(map(str, plan.patch_size))
    lines = [
        f"\nOne image of {size}: {num_networks} networks of each width side by side; matrix "
        f"product {rate:.0f} GFLOP/s.\n",
        "| width | GFLOP per image | ms per image | images/s | GFLOP/s | floor, ms "
        "| ratio to floor | plain loop, ms | times faster | overhead, times less |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    narrow = [row for row in rows if row[0] <= NARROW]
    totals = [
        (name, *(sum(row[index] for row in group) for index in (1, 2, 3)))
        for name, group in ((f"{NARROW} and less", narrow), ("all", rows))
    ]
    for width, gmacs, seconds, plain in [*rows, *totals]:
        flop = 4 * gmacs  # two a multiply-accumulate, forward and backward
        floor = flop / rate
        # What is above the floor; wide networks have next to none.
        is_clear = seconds > 1.5 * floor
        less = f"{(plain - floor) / (seconds - floor):.1f}" if is_clear else "-"
        lines.append(
            f"| {width} | {flop:.3g} | {1e3 * seconds:.2f} | {1 / seconds:.1f} "
            f"| {flop / seconds:.1f} | {1e3 * floor:.2f} | {seconds / floor:.2f} "
            f"| {1e3 * plain:.2f} | {plain / seconds:.1f} | {less} |"
        )
    return "\n".join(lines) + "\n"


def scaling_table(
    rows: Sequence[tuple[int, float, float, float]], search: dict[str, Any], plan: Any
) -> str:
    """Expected speed-up of this search's scoring on more processes of as many cores each.

    Units are dealt out as the search does it, by modeled cost, and take what was measured.
    """
    from monai_xtiny.search.workers import share_out, unit_costs
    from monai_xtiny.selection.budget import ALIGNMENT_COST

    seconds = {width: item for width, _, item, _ in rows}
    modeled = unit_costs(plan)
    scale = sum(seconds.values()) / sum(modeled.values())
    # A unit's sensitivity, on all images or on fewer, and its alignment, which needs no gradient.
    costs = {
        (rung["max_features"], index): seconds[rung["max_features"]]
        * (
            (index < len(search["seeds"])) * len(rung["sensitivity"][0])
            + (index < len(rung.get("alignment", []))) * ALIGNMENT_COST * len(search["images"])
        )
        for rung in search["ladder"]
        for index in range(max(len(search["seeds"]), len(rung.get("alignment", []))))
    }
    num_images = {rung["max_features"]: len(rung["sensitivity"][0]) for rung in search["ladder"]}
    ratios = ", ".join(f"{modeled[width] * scale / seconds[width]:.2f}" for width in seconds)
    lines = [
        f"\nRatio of modeled to measured cost of the widths, widest first: {ratios}. Expected "
        f"speed-up of scoring on more processes, dealt out by the model ({len(costs)} networks):\n",
        "| processes | times faster |",
        "|---:|---:|",
    ]
    for ranks in (1, 2, 4, 8, 16):
        shares = share_out(list(costs), plan, ranks, num_images=num_images.__getitem__)
        slowest = max(sum(costs[unit] for unit in share) for share in shares)
        lines.append(f"| {ranks} | {sum(costs.values()) / slowest:.1f} |")
    return "\n".join(lines) + "\n"


def plain_loop(sample: Any, plan: Any, width: int, device: Any) -> None:
    """What a first implementation does: a fresh network, one image at a time."""
    from monai_xtiny.networks.dynunet import build_network
    from monai_xtiny.scores.sensitivity import jacobian_sensitivity
    from monai_xtiny.system.devices import exact_kernels

    network = build_network(plan, width, seed=369, device=device)
    with exact_kernels(device):
        for image in sample.images:
            jacobian_sensitivity(network, image[None].to(device))


def timed(work: Callable[[], object], device: Any) -> float:
    """Shorter of two times, s."""
    import torch

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def matrix_product_rate(device: Any, size: int = 2048) -> float:
    """Measured rate of a float32 matrix product, GFLOP/s."""
    import torch

    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: left @ right, device) for _ in range(3)) / 1e9


def profile_table(scorer: Any, widths: Sequence[int], name: str) -> str:
    """The operations that take most of one thread's time, or the kernels of a GPU."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = scorer.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    measure = f"self_{'device' if on_gpu else 'cpu'}_time_total"
    with profile(activities=[activity]) as profiler:
        for width in widths:
            scorer.score(width, 369)
    found = [event for event in profiler.key_averages() if event.device_type == kind]
    events = sorted(found, key=lambda event: -getattr(event, measure))
    total = sum(getattr(event, measure) for event in events)
    lines = [
        f"\nWhere the time of the {name} widths goes ({', '.join(map(str, widths))}; "
        f"{total / 1e6:.2f} s):\n",
        "| operation | share | calls |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| `{event.key}` | {getattr(event, measure) / total:.0%} | {event.count} |"
        for event in events[:8]
    ]
    return "\n".join(lines) + "\n"


def processes_table(arguments: argparse.Namespace, options: Sequence[str]) -> str:
    """The same search on several processes of one core each."""
    lines = [
        "\n| processes | score, s | times faster | from process start, s |",
        "|---:|---:|---:|---:|",
    ]
    scores: list[float] = []
    os.environ["OMP_NUM_THREADS"] = "1"
    for count in map(int, arguments.processes.split(",")):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        run, _ = run_once(["--images", arguments.images, *options], launcher)
        scores.append(run["score"])
        faster = scores[0] / run["score"]
        lines.append(f"| {count} | {run['score']:.1f} | {faster:.2f} | {run['total']:.1f} |")
    return "\n".join(lines) + "\n"


def cases_table(arguments: argparse.Namespace, options: Sequence[str]) -> str:
    """Searches of folders with ever more links to one image."""
    from monai_xtiny.data.cases import find_cases

    source = Path(find_cases(arguments.images)[0].images[0]).resolve()
    lines = [
        "\n| files | load, s | score, s | from process start, s | peak, MiB |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count in map(int, arguments.cases.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            for index in range(count):
                (Path(folder) / f"case_{index:06d}_0000{''.join(source.suffixes)}").symlink_to(
                    source
                )
            run, _ = run_once(["--images", folder, *options])
        lines.append(
            f"| {count:,} | {run['load']:.2f} | {run['score']:.1f} | {run['total']:.1f} "
            f"| {run['peak']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
