from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from monai_xtiny.bundled.checkpoints import BestWeights


def test_a_failed_write_leaves_the_former_file(monkeypatch, tmp_path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"trained for days")

    def fail(content, path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full, on purpose")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="on purpose"):
        BestWeights(nn.Linear(1, 1), str(file)).save()
    assert file.read_bytes() == b"trained for days"
