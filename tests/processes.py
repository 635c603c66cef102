"""``python -m MODULE`` in a process of its own that does not import MONAI anew.

To import MONAI takes longer than most of what the tests run. Python's fork server imports it once
per test run, and each process is forked from there: it shares nothing with the test that starts
it, nor with other processes. Nothing of ours is imported beforehand, since bundles have to work
without. What is about the start of the interpreter itself takes :mod:`subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["monai.bundle", "monai.data", "monai.engines", "monai.handlers", "monai.transforms"]
    + ["ignite.distributed", "nibabel", "PIL.Image", "matplotlib.figure", "scipy.ndimage", "fire"]
    + ["torch._dynamo"]  # which the first optimizer imports
)


def run_module(
    module: str, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` to its end; a module that ends with ``.py`` is a script."""
    with tempfile.TemporaryDirectory() as folder:
        streams = Path(folder) / "stdout", Path(folder) / "stderr"
        process = start_module(module, *arguments, cwd=cwd, env=env, streams=streams)
        process.join()
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in streams]
    status = process.exitcode
    assert status is not None
    return subprocess.CompletedProcess([module, *map(str, arguments)], status, *texts)


def run_ranks(
    module: str, *arguments: object, cwd: Path, num_ranks: int = 2
) -> list[subprocess.CompletedProcess[str]]:
    """Run ``python -m module`` on ranks of one machine, in the environment that torchrun makes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor(num_ranks) as pool:
        runs = [
            pool.submit(
                run_module, module, *arguments, cwd=cwd,
                env={**size, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(num_ranks)
        ]  # fmt: skip
        return [run.result() for run in runs]


def run_code(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], **_: object
) -> subprocess.CompletedProcess[str]:
    """In place of :func:`subprocess.run` for ``python -c CODE`` with arguments."""
    _, option, code, *arguments = command
    assert option == "-c"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "code.py"
        script.write_text(code, encoding="utf-8")
        return run_module(str(script), *arguments, cwd=cwd, env=env)


def start_module(
    module: str,
    *arguments: object,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    streams: tuple[str | Path, str | Path] = (os.devnull, os.devnull),
) -> BaseProcess:
    """Start ``python -m module``, which writes to the two files."""
    environment = {**os.environ, **(env or {})}
    texts = [str(argument) for argument in arguments]
    process = _CONTEXT.Process(
        target=_run, args=(module, texts, str(cwd), environment, [str(item) for item in streams])
    )
    process.start()
    return process


def _run(
    module: str, arguments: list[str], cwd: str, environment: dict[str, str], streams: list[str]
) -> None:
    """What the process does, as ``python -m`` would do it."""
    for number, path in enumerate(streams, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    # Tests that run in the background of a shell inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [module, *arguments]
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent))
        runpy.run_path(module, run_name="__main__")
    else:
        sys.path.insert(0, cwd)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
