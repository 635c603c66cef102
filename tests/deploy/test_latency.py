from __future__ import annotations

import pytest

from monai_xtiny.deploy import segmenter
from monai_xtiny.deploy.latency import check_latency, measure_latency


def test_check_latency_names_the_extra_to_install(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(segmenter, "import_module", missing)
    check_latency(None)
    with pytest.raises(ImportError, match=r"onnx cannot be imported: pip install .*\[deploy\]"):
        check_latency(5.0)


@pytest.mark.slow
def test_measure_latency_times_the_exported_network(plan_2d) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    said: list[str] = []
    narrow, wide = (measure_latency(plan_2d, width, progress=said.append) for width in (1, 256))
    assert 0 < narrow < wide < 10_000
    assert said == [f"measuring the latency of width {width}" for width in (1, 256)]
