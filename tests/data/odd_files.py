"""Image files of kinds that programs in the field write and readers take wrongly."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

_TIFF_KINDS = {"u": 1, "i": 2, "f": 3, "c": 6}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSET, _SAMPLES, _ROWS, _SIZE, _EXTRA, _FORMAT = 273, 277, 278, 279, 338, 339
_SHORT, _LONG = 3, 4


def write_tiff(path: Path, pixels: np.ndarray, *, byteorder: str = "<") -> Path:
    """Write a TIFF file of one strip.

    Args:
        path: of the file.
        pixels: (rows, columns[, samples]) of any type.
        byteorder: of the file, ``<`` or ``>``.
    """
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    bits = 8 * pixels.dtype.itemsize
    data = pixels.astype(pixels.dtype.newbyteorder(byteorder)).tobytes()
    entries = [
        (_WIDTH, _LONG, [pixels.shape[1]]),
        (_HEIGHT, _LONG, [pixels.shape[0]]),
        (_BITS, _SHORT, [bits] * samples),
        (_COMPRESSION, _SHORT, [1]),
        (_PHOTOMETRIC, _SHORT, [2 if samples >= 3 else 1]),
        (_OFFSET, _LONG, [0]),
        (_SAMPLES, _SHORT, [samples]),
        (_ROWS, _LONG, [pixels.shape[0]]),
        (_SIZE, _LONG, [len(data)]),
        (_FORMAT, _SHORT, [_TIFF_KINDS[pixels.dtype.kind]] * samples),
    ]
    extra = samples - (3 if samples >= 3 else 1)
    if extra:
        entries.insert(-1, (_EXTRA, _SHORT, [0] * extra))
    first_value = 8 + 2 + 12 * len(entries) + 4
    long_values = sum(2 * len(values) for _, kind, values in entries if len(values) > 2)
    table, outside = b"", b""
    for tag, kind, values in entries:
        if tag == _OFFSET:
            values = [first_value + long_values]
        packed = struct.pack(byteorder + ("H" if kind == _SHORT else "I") * len(values), *values)
        if len(packed) > 4:
            packed, outside = (
                struct.pack(byteorder + "I", first_value + len(outside)),
                outside + packed,
            )
        table += struct.pack(byteorder + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if byteorder == "<" else b"MM\0*") + struct.pack(byteorder + "I", 8)
    count = struct.pack(byteorder + "H", len(entries))
    path.write_bytes(head + count + table + bytes(4) + outside + data)
    return path


def write_png_of_16_bits(path: Path, pixels: np.ndarray) -> Path:
    """Write a color PNG of 16 bits, which Pillow cannot write; ``pixels`` (rows, columns, 3)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path
