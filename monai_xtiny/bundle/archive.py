"""The zip that the MONAI Model Zoo distributes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.folder import LICENSE, ONNX, ONNX_INT8, PARTS, WEIGHTS, Bundle
from monai_xtiny.bundle.large_files import read_large_files, write_large_files
from monai_xtiny.bundle.torchscript import check_torchscript, write_torchscript
from monai_xtiny.bundle.weights import weights_digest
from monai_xtiny.system.files import atomic_write

_EPOCH = (1980, 1, 1, 0, 0, 0)


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
            ``models/model.pt``, or cannot be made.
    """
    for name in (LICENSE, WEIGHTS):
        if not bundle.path(name).is_file():
            raise FileNotFoundError(
                f"{str(bundle.root)!r} is incomplete: it has no {name}, which the Model Zoo demands"
            )
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
    version = bundle.config("metadata")["version"]
    beside = bundle.root.with_name(f"{bundle.name}_v{version}.zip")
    target = Path(output) if output is not None else beside
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
    files = [bundle.path(name) for name in (ONNX, ONNX_INT8) if bundle.path(name).is_file()]
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
    return sorted(
        path
        for part in PARTS
        for path in [bundle.path(part), *bundle.path(part).rglob("*")]
        if path.is_file()
        and path.suffix != ".part"
        and not any(piece.startswith((".", "__")) for piece in path.relative_to(bundle.root).parts)
    )
