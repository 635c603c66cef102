"""Let torchvision's CUDA wheel be imported beside torch's CPU wheel.

usage: python scripts/monailabel/torchvision_shim.py

torchvision registers fake kernels for two operators that only its compiled library declares, and
that library does not load without CUDA. They are declared at the head of the installed package.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

MARK = "# operators declared for the CPU wheel of torch\n"
DECLARATION = f"""{MARK}import torch

_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> None:
    """Put the declaration into the installed torchvision, once."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise SystemExit("error: torchvision is not installed: install it with --no-deps first")
    path = Path(spec.origin)
    text = path.read_text(encoding="utf-8")
    if not text.startswith(MARK):
        path.write_text(DECLARATION + text, encoding="utf-8")


if __name__ == "__main__":
    main()
