from __future__ import annotations

import pytest
import torch

from monai_xtiny.system.processes import start_processes


def test_start_processes_refuses_more_of_them_than_gpus(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match=r"2 processes on a machine of 1 GPUs: start .*=1, or hide"
    ):
        start_processes()
