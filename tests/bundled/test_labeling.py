from __future__ import annotations

from types import SimpleNamespace

import torch
from monai.data import MetaTensor

from monai_xtiny.bundled.cases import find_images
from monai_xtiny.bundled.labeling import CaseByCase
from tests.bundled.labeled import PNG


def test_case_by_case_names_every_image_of_a_batch_that_fails(tmp_path) -> None:
    labeling = CaseByCase(find_images(tmp_path, **PNG), 1)

    def fail(*_arguments: object) -> None:
        raise RuntimeError("out of memory")

    meta = {"filename_or_obj": ["a.png", "b.png"]}
    batch = {"image": SimpleNamespace(meta=meta)}
    assert labeling(SimpleNamespace(_iteration=fail), batch) == {}
    assert labeling.problems == ["'a.png': out of memory", "'b.png': out of memory"]
    sizes = [
        {"image": MetaTensor(torch.zeros(1, 4, size), meta={"filename_or_obj": f"{size}.png"})}
        for size in (4, 5)
    ]
    assert len(labeling.collate(sizes)["problems"]) == 2
