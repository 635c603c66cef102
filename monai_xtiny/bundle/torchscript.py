"""A bundle's network as TorchScript: ``models/model.ts``, the same bytes for the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from monai_xtiny.bundle.folder import INFERENCE, TORCHSCRIPT, Bundle
from monai_xtiny.bundle.weights import check_network_size, hold_same
from monai_xtiny.system.files import atomic_write

# A process of its own, with fixed seeds: TorchScript orders constants by their hashes, numbers
# classes by what was scripted before, and stores an unused random tensor of DynUNet.
_EXPORT = """
import sys
import torch
from monai.bundle import ckpt_export
target, bundle = sys.argv[1:]
torch.manual_seed(0)
ckpt_export(
    net_id="network_def",
    filepath=target,
    ckpt_file=bundle + "/models/model.pt",
    meta_file=bundle + "/configs/metadata.json",
    config_file=bundle + "/configs/inference.json",
)
"""
# Where each line of code came from, as paths on the machine; and a checksum over that too.
_LEFT_OUT = (".debug_pkl", "/.data/serialization_id")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ALIGNMENT = 64


def write_torchscript(bundle: Bundle) -> Path:
    """Script the network of a bundle with the weights of ``models/model.pt``.

    MONAI's ``ckpt_export`` does the work: ``metadata.json`` and ``inference.json`` are stored in
    the file, for ``monai.data.load_net_with_metadata``. The file names no path of this machine, and
    the same bundle gives the same bytes in the same environment.

    Args:
        bundle: its ``models/model.ts`` is written, or replaced.

    Returns:
        The path of ``models/model.ts``.

    Raises:
        ValueError: the network cannot be scripted, or the weights are not its own.
    """
    check_network_size(bundle.config("inference"), bundle.path(INFERENCE))
    target = bundle.path(TORCHSCRIPT)
    with atomic_write(target) as clean:
        raw = clean.with_name("raw.ts")
        done = subprocess.run(
            [sys.executable, "-c", _EXPORT, str(raw), str(bundle.root)],
            cwd=clean.parent,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0 or not raw.is_file():
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ValueError(
                f"{str(bundle.root)!r} cannot be exported as TorchScript ({lines[-1].strip()}): "
                "check network_def in configs/inference.json against models/model.pt"
            )
        _strip(raw, clean)
    return target


def check_torchscript(bundle: Bundle) -> None:
    """Refuse a ``models/model.ts`` whose weights are not those of ``models/model.pt``.

    Raises:
        ValueError: the weights differ, or the file is no TorchScript.
    """
    path = bundle.path(TORCHSCRIPT)
    if not path.is_file():
        return
    weights = bundle.weights()
    try:
        scripted = torch.jit.load(path, map_location="cpu").state_dict()
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} cannot be compared with model.pt ({error}): package with --torchscript"
        ) from error
    if not hold_same(scripted, weights):
        raise ValueError(
            f"{str(path)!r} does not hold the weights of model.pt, which was trained since: "
            "package with --torchscript, or remove it"
        )


def _strip(source: Path, target: Path) -> None:
    """Copy a TorchScript archive without debug records, every record where a storage may start."""
    with (
        zipfile.ZipFile(source) as reader,
        open(target, "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as writer,
    ):
        for name in reader.namelist():
            if name.endswith(_LEFT_OUT):
                continue
            entry = zipfile.ZipInfo(name, _EPOCH)
            # PyTorch starts each record at a multiple of 64 bytes, by a field of zeros before it.
            header = file.tell() + 30 + len(name.encode()) + 4
            padding = -header % _ALIGNMENT
            entry.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
            writer.writestr(entry, reader.read(name))
