"""Time a search from process start, and its peak memory.

usage: python scripts/benchmark_search.py [--repeats N] [--output FILE.md] -- SEARCH OPTIONS
example: python scripts/benchmark_search.py -- --images DATA/Dataset076_DSB2018Fluo --num_images 16

Each repeat is a new process that runs `python -m monai_xtiny search` with the options given, on a
bundle that is thrown away. Printed are, for each repeat and their median: seconds from process
start to its end, seconds to load and to score, and the peak resident memory of the process.
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
from pathlib import Path


def run_once(options: list[str]) -> dict[str, float]:
    """One search in a process of its own: seconds and peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "benchmark_segmentation"
        command = [sys.executable, "-m", "monai_xtiny", "search", *options, "--bundle", str(bundle)]
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
    }


def main() -> None:
    """Run the repeats and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("options", nargs="+", metavar="-- SEARCH OPTIONS")
    arguments = parser.parse_args()
    options = [option for option in arguments.options if option != "--"]
    runs = [run_once(options) for _ in range(arguments.repeats)]
    median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    lines = [
        f"`monai_xtiny search {' '.join(Path(o).name if os.sep in o else o for o in options)}`, "
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}",
        "",
        "| run | images | selected | load, s | score, s | from process start, s | peak, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, run in [*((str(i + 1), run) for i, run in enumerate(runs)), ("median", median)]:
        lines.append(
            f"| {name} | {run['images']:.0f} | {run['selected']:.0f} | {run['load']:.2f} "
            f"| {run['score']:.1f} | {run['total']:.1f} | {run['peak']:.0f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
