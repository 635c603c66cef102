"""The zip that the MONAI Model Zoo distributes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import torch

from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.folder import (
    LICENSE,
    ONNX,
    ONNX_INT8,
    ONNX_STANDALONE,
    PARTS,
    WEIGHTS,
    Bundle,
)
from monai_xtiny.bundle.large_files import read_large_files, write_large_files
from monai_xtiny.bundle.metadata import check_version
from monai_xtiny.bundle.torchscript import check_torchscript, write_torchscript
from monai_xtiny.bundle.weights import check_shapes, read_weights, weights_digest
from monai_xtiny.networks.dynunet import network_definition, network_from_config
from monai_xtiny.system.files import atomic_write

_EPOCH = (1980, 1, 1, 0, 0, 0)
_WEIGHTS = (".pt", ".pth", ".ckpt")
_PICKLES = (".pkl", ".pickle", ".joblib")


@exclusive
def package_bundle(
    bundle: Bundle,
    output: str | os.PathLike[str] | None = None,
    *,
    torchscript: bool = False,
) -> Path:
    """Zip a bundle so that the same bundle always gives the same bytes.

    Files are sorted, and carry neither times nor the modes of the machine. The zip holds one
    folder, the bundle's, with ``LICENSE``, ``configs``, ``docs``, ``models`` and ``scripts``. The
    bundle's ``large_files.yml`` is brought up to date but, as in the Zoo's own zips, is not among
    them: the files themselves are.

    Args:
        bundle: the bundle, or its folder.
        output: the zip to write; default: ``NAME_vVERSION.zip`` beside the bundle.
        torchscript: write ``models/model.ts`` from ``models/model.pt`` first.

    Returns:
        The zip's path.

    Raises:
        BlockingIOError: another process writes the bundle.
        FileNotFoundError: a file that the Zoo demands or ``large_files.yml`` lists is missing.
        ValueError: ``models/model.ts`` or an ONNX file holds other weights than
            ``models/model.pt``, or cannot be made; weights are empty, or more than tensors; a link
            leaves the bundle; the zip would lie in it; or the metadata's version is none.
    """
    for name in (LICENSE, WEIGHTS):
        if not bundle.path(name).is_file():
            raise FileNotFoundError(
                f"{str(bundle.root)!r} is incomplete: it has no {name}, which the Model Zoo demands"
            )
    version = check_version(bundle.config("metadata"))
    beside = bundle.root.with_name(f"{bundle.name}_v{version}.zip")
    target = Path(output) if output is not None else beside
    if Path(os.path.realpath(target)).is_relative_to(bundle.root):
        raise ValueError(f"{str(target)!r} lies in the bundle that it would hold: give another")
    _packed_files(bundle)
    _check_models(bundle)
    if torchscript:
        write_torchscript(bundle)
    else:
        check_torchscript(bundle)
    check_onnx(bundle)
    write_large_files(bundle)
    for listed in read_large_files(bundle):
        if not bundle.path(listed["path"]).is_file():
            raise FileNotFoundError(
                f"{str(bundle.root)!r} has no {listed['path']}, which large_files.yml lists: "
                "download it"
            )
    with atomic_write(target) as part, zipfile.ZipFile(part, "w", compresslevel=9) as archive:
        for path in _packed_files(bundle):
            name = f"{bundle.name}/{path.relative_to(bundle.root).as_posix()}"
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), compresslevel=9)
    return target


def check_onnx(bundle: Bundle) -> None:
    """Refuse ONNX files whose weights are not those of ``models/model.pt``.

    Raises:
        ValueError: the weights differ.
    """
    paths = [bundle.path(name) for name in (ONNX, ONNX_INT8, ONNX_STANDALONE)]
    files = [path for path in paths if path.is_file()]
    if not files:
        return
    digest = weights_digest(bundle.weights())
    for file in files:  # the digest stands in the file as it is: onnx need not be installed
        if digest.encode() not in file.read_bytes():
            raise ValueError(
                f"{str(file)!r} does not hold the weights of model.pt, which was trained since: "
                "run python -m monai_xtiny deploy again, or remove it"
            )


def _packed_files(bundle: Bundle) -> list[Path]:
    """What the zip holds, without hidden files and what a killed training was writing."""
    files = []
    for part in PARTS:
        for path in [bundle.path(part), *bundle.path(part).rglob("*")]:
            pieces = path.relative_to(bundle.root).parts
            if path.suffix == ".part" or any(piece.startswith((".", "__")) for piece in pieces):
                continue
            is_inside = Path(os.path.realpath(path)).is_relative_to(bundle.root)
            if not is_inside or (path.is_symlink() and not path.is_file()):
                raise ValueError(
                    f"{str(path)!r} is a link to {os.path.realpath(path)!r}: put the files "
                    "themselves into the bundle, or remove the link"
                )
            if path.is_file():
                files.append(path)
    return sorted(files)


def _check_models(bundle: Bundle) -> None:
    """Refuse weights that are empty, of another network than the bundle's, or could be code."""
    for path in sorted(bundle.path("models").glob("*")):
        if path.name.startswith(".") or path.suffix == ".part" or not path.is_file():
            continue
        if path.suffix.lower() in _PICKLES:
            raise ValueError(f"{str(path)!r} is a pickle, which is code: remove it")
        if path.stat().st_size == 0:
            raise ValueError(f"{str(path)!r} is empty: write it again, or remove it")
        if path.suffix.lower() in _WEIGHTS:
            read_weights(path)
    plan, width = bundle.selection.table.plan, bundle.selection.max_features
    definition = network_definition(plan, width)
    if bundle.config("inference").get("network_def") == definition:  # else its owner knows
        with torch.device("meta"):
            network = network_from_config(definition)
        for path in (bundle.path(WEIGHTS), *sorted(bundle.path("models").glob("model_fold*.pt"))):
            check_shapes(network, read_weights(path), path)
