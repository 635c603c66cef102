"""The zip that the MONAI Model Zoo distributes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from monai_xtiny.bundle.large_files import read_large_files, write_large_files
from monai_xtiny.bundle.torchscript import check_torchscript, write_torchscript
from monai_xtiny.bundle.weights import check_onnx
from monai_xtiny.system.files import read_json

# What a bundle consists of; results of training and inference in it are left out. So is
# large_files.yml, as in the Zoo's own zips: the files themselves are in.
_PARTS = ("LICENSE", "configs", "docs", "models", "scripts")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def package_bundle(
    bundle_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    torchscript: bool = False,
) -> Path:
    """Zip a bundle so that the same bundle always gives the same bytes.

    Files are sorted, and carry neither times nor the modes of the machine. The zip holds one
    folder, the bundle's, with ``LICENSE``, ``configs``, ``docs``, ``models`` and, where there are
    any, ``scripts``. The bundle's ``large_files.yml`` is brought up to date.

    Args:
        bundle_dir: the bundle.
        output: the zip to write; ``NAME_vVERSION.zip`` beside the bundle without.
        torchscript: write ``models/model.ts`` from ``models/model.pt`` first.

    Returns:
        The zip's path.

    Raises:
        FileNotFoundError: a file that the Zoo demands or ``large_files.yml`` lists is missing.
        ValueError: ``models/model.ts`` or an ONNX file holds other weights than
            ``models/model.pt``, or cannot be made.
    """
    bundle = Path(bundle_dir)
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt"):
        if not (bundle / name).is_file():
            raise FileNotFoundError(f"{str(bundle)!r} is no bundle: it has no {name}")
    if torchscript:
        write_torchscript(bundle)
    else:
        check_torchscript(bundle)
    check_onnx(bundle)
    write_large_files(bundle)
    for listed in read_large_files(bundle):
        if not (bundle / listed["path"]).is_file():
            raise FileNotFoundError(
                f"{str(bundle)!r} has no {listed['path']}, which large_files.yml lists: download it"
            )
    version = read_json(bundle / "configs" / "metadata.json")["version"]
    name = bundle.resolve().name
    target = (
        Path(output) if output is not None else bundle.resolve().parent / f"{name}_v{version}.zip"
    )
    files = sorted(
        path
        for part in _PARTS
        for path in [bundle / part, *(bundle / part).rglob("*")]
        if path.is_file()
        and path.suffix != ".part"  # what a killed training was writing
        and not any(piece.startswith((".", "__")) for piece in path.parts[-2:])
    )
    temporary = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in files:
                entry = zipfile.ZipInfo(f"{name}/{path.relative_to(bundle).as_posix()}", _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
