"""Files written whole or not at all, JSON, and journals of one JSON object per line."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def names_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of writing say which file it was: a full disk's do not, and PyTorch's neither.

    Raises:
        OSError: the file could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise
    except RuntimeError as error:
        if "inline_container" not in str(error):  # PyTorch's zip of tensors
            raise
        raise OSError(f"{os.fspath(path)!r} cannot be written: is the disk full?") from error


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, clears: bool = True) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` if the block succeeds.

    It has the same name, in a hidden folder beside ``path`` that nobody else can guess or enter,
    and is gone if the block fails; what killed processes left of such folders goes too. A link
    stands for what it points to.

    Args:
        path: the file to write, or to replace; its folder must exist.
        clears: look for what killed processes left; not where thousands of files lie.

    Yields:
        The path to write to.

    Raises:
        FileExistsError: there is something else than a file, a device for example.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{str(target)!r} is no file: give another name")
    prefix = f".{target.name}.tmp."
    for left in target.parent.glob(glob.escape(prefix) + "*") if clears else ():
        shutil.rmtree(left, ignore_errors=True)
    with (
        names_file(target),
        tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder,
    ):
        part = Path(folder) / target.name
        yield part
        part.replace(target)


def digest_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_files(paths: Sequence[str | os.PathLike[str]]) -> str:
    """SHA-256 of a file, or of the digests of several in their order, in hexadecimal."""
    digests = [digest_file(path) for path in paths]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file whole or not at all.

    Raises:
        FileExistsError: there is something else than a file, a device for example.
    """
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    """JSON as the Model Zoo wants it: 4 spaces and a final newline; non-finite values refused."""
    text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object, or a number that is not finite.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {str(file)!r}: check the path")
    try:
        text = file.read_text(encoding="utf-8-sig")  # Windows writes a BOM
        content = json.loads(text, parse_constant=_finite_number, parse_float=_finite_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} holds no JSON object")
    return content


def _finite_number(text: str) -> float:
    """A number of JSON, which Python would take from NaN, Infinity and 1e999 too."""
    if not math.isfinite(float(text)):
        raise ValueError(f"it holds the number {text}: numbers must be finite")
    return float(text)


def append_line(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Add a JSON object to a journal, through to the disk.

    Args:
        path: of the journal, which is made if it is not there.
        content: of the line.
    """
    file = Path(path)
    cut_half_line(file)
    with names_file(file), open(file, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(content) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Objects of a journal; none without the file. A last line that a kill cut off is left out.

    Raises:
        ValueError: a line is no JSON object.
    """
    file = Path(path)
    if not file.is_file():
        return []
    content = file.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].decode("utf-8", errors="replace").split("\n")[:-1]
    try:
        return [dict(json.loads(line)) for line in lines]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is no journal: delete it") from error


def cut_half_line(path: str | os.PathLike[str]) -> None:
    """Remove what a kill left half written at the end of a journal."""
    file = Path(path)
    if not file.is_file():
        return
    content = file.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)
