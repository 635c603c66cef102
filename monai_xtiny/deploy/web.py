"""A bundle as a static page that labels images in the browser, offline: ``monai_xtiny web``.

The page's own parts (its code, ONNX Runtime as WebAssembly, NiiVue, their licenses) are built of
``scripts/web`` into the folder ``web_assets`` of this package. A page is those parts, the network,
and what :class:`InputFormat` says; a policy in its head keeps it from asking anything of elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from monai_xtiny.bundle.folder import ONNX, Bundle
from monai_xtiny.bundle.imported import is_imported
from monai_xtiny.bundle.weights import weights_digest
from monai_xtiny.bundled.folds import is_initialization
from monai_xtiny.deploy.onnx_model import input_format, write_onnx
from monai_xtiny.deploy.segmenter import InputFormat, load_segmenter
from monai_xtiny.system.files import atomic_write, write_text

ASSETS = Path(__file__).parent.parent / "web_assets"
_PAGE, _SCRIPT, _RUNTIME, _NETWORK = "index.html", "page.js", "runtime.wasm", "model.onnx"
_STYLE, _LICENSES = "style.css", "licenses.txt"
_BUILT = (_PAGE, _SCRIPT, _STYLE, _RUNTIME, _LICENSES)
# Of a page of several files, the page itself last: without it the others do nothing.
_WRITTEN = (_RUNTIME, _SCRIPT, _LICENSES, _NETWORK, _PAGE)
_POLICY = (
    "default-src 'none'; script-src {script} 'wasm-unsafe-eval' blob:; worker-src blob:; "
    "connect-src 'self' blob: data:; img-src 'self' blob: data:; font-src data:; "
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
_ACCEPTED = {
    "images": "PNG or JPG",
    "slices": "NIfTI (.nii, .nii.gz)",
    "volumes": "NIfTI (.nii, .nii.gz)",
}


def write_site(
    bundle_dir: str | os.PathLike[str] | Bundle,
    output: str | os.PathLike[str],
    *,
    single_file: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a page that labels images as a bundle's ``inference.json`` does.

    Args:
        bundle_dir: a trained bundle; it stays as it is.
        output: folder of the page; it is made, or holds an earlier page.
        single_file: one HTML file of 22 MB that opens from disk, in place of several files, which
            need a server.
        progress: is told what is being done.

    Returns:
        The path of the page, ``index.html``.

    Raises:
        FileExistsError: there is something else in the folder.
        FileNotFoundError: there is no bundle, or the page's parts are not built.
        ImportError: the extra ``deploy`` is not installed.
        ValueError: the bundle was imported from nnU-Net, was not trained, or cannot be exported.
    """
    bundle = Bundle.open(bundle_dir)
    parts = _read_parts()
    folder = _check_site_folder(Path(output), bundle)
    if is_imported(bundle.selection):
        raise ValueError(
            f"{str(bundle.root)!r} was imported from nnU-Net, whose processing of images the page "
            "does not have: run configs/inference.json, or nnU-Net"
        )
    if is_initialization(bundle.weights()):
        raise ValueError(
            f"{str(bundle.root)!r} was not trained: its labels would mean nothing; train it first"
        )
    (progress or (lambda _: None))("exporting the network")
    form = input_format(bundle)
    parts[_NETWORK] = _network_bytes(bundle, form)
    folder.mkdir(parents=True, exist_ok=True)
    page = _fill_page(parts, bundle.name, form, single_file=single_file)
    if single_file:
        write_text(folder / _PAGE, page)
        for name in _WRITTEN[:-1]:
            (folder / name).unlink(missing_ok=True)
        return folder / _PAGE
    for name in _WRITTEN[:-1]:
        with atomic_write(folder / name) as part:
            part.write_bytes(parts[name])
    return write_text(folder / _PAGE, page)


def _read_parts() -> dict[str, bytes]:
    """What ``scripts/web/build.sh`` has built."""
    missing = [name for name in _BUILT if not (ASSETS / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"the page's parts are not built ({str(ASSETS / missing[0])!r} is missing): run bash "
            "scripts/web/build.sh in a checkout, which needs Node 18 or later, and install it"
        )
    return {name: (ASSETS / name).read_bytes() for name in _BUILT}


def _check_site_folder(folder: Path, bundle: Bundle) -> Path:
    """The folder to write to, which holds nothing but an earlier page."""
    if Path(os.path.realpath(folder)).is_relative_to(bundle.root):
        raise ValueError(f"{str(folder)!r} lies in the bundle: give another folder")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is no folder: give another one")
    others = sorted(set(os.listdir(folder)) - set(_WRITTEN)) if folder.is_dir() else []
    if others:
        raise FileExistsError(f"{str(folder)!r} holds {others[0]!r}: give a new folder")
    return folder


def _network_bytes(bundle: Bundle, form: InputFormat) -> bytes:
    """``models/model.onnx`` if it is of these weights, else the same made anew."""
    model = bundle.path(ONNX)
    if model.is_file() and weights_digest(bundle.weights()).encode() in model.read_bytes():
        if load_segmenter(model, num_threads=1).form == form:
            return model.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / _NETWORK
        write_onnx(bundle.network(), form, made)
        return made.read_bytes()


def _fill_page(parts: dict[str, bytes], name: str, form: InputFormat, *, single_file: bool) -> str:
    """The HTML, with everything else in it if it is to be the only file."""
    script = parts[_SCRIPT].decode("ascii")
    described = json.dumps(asdict(form)).replace("<", "\\u003c")
    inside, policy = "", "'self'"
    code = f'<script src="{_SCRIPT}"></script>'
    if single_file:
        for part, file in (("runtime", _RUNTIME), ("model", _NETWORK)):
            text = base64.b64encode(parts[file]).decode("ascii")
            inside += f'<script type="text/plain" id="part-{part}">{text}</script>\n'
        # The tokens that would end or nest a script; strings and patterns stay the same.
        script = script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        policy = f"'sha256-{digest}'"
        code = f"<script>{script}</script>"
    classes = ", ".join(form.labels[1:])
    filled = {
        "title": html.escape(name.removesuffix("_segmentation").replace("_", " ")),
        "purpose": html.escape(f"Finds {classes} in images."),
        "accepted": _ACCEPTED[form.kind],
        "policy": _POLICY.format(script=policy),
        "style": parts[_STYLE].decode("utf-8"),
        "licenses": html.escape(parts[_LICENSES].decode("utf-8")),
        "form": described,
        "parts": inside,
        "script": code,
    }
    pieces = parts[_PAGE].decode("utf-8").split("{{")
    page = [pieces[0]]
    for piece in pieces[1:]:  # one pass, so that no text that is filled in is filled in itself
        key, rest = piece.split("}}", 1)
        page += [filled[key], rest]
    return "".join(page)
