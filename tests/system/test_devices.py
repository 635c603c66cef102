from __future__ import annotations

import pytest
import torch

from monai_xtiny.system.devices import exact_kernels, select_device


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "$import os", ""])
def test_select_device_refuses(name) -> None:
    with pytest.raises(ValueError, match="unknown or not available"):
        select_device(name)


def test_select_device_auto_takes_what_there_is() -> None:
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


CPU = torch.device("cpu")


def test_scorer_on_cuda_asks_for_kernels_that_repeat_in_float32() -> None:
    cudnn = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):
        pytest.skip("this PyTorch has no fp32_precision")

    def settings() -> tuple[bool, bool, str]:
        return cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision

    before = settings()
    with exact_kernels(CPU):
        assert settings() == before
    with pytest.raises(KeyError), exact_kernels(torch.device("cuda")):
        assert settings() == (True, False, "ieee")
        raise KeyError
    assert settings() == before != (True, False, "ieee")
