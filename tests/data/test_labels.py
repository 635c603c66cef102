from __future__ import annotations

import json

import pytest

from monai_xtiny.data.labels import read_label_names


@pytest.mark.parametrize(
    "labels, expected",
    [
        ({"background": 0, "Anterior": 1, "Posterior": 2}, ("background", "Anterior", "Posterior")),
        ({"0": "background", "1": "liver"}, ("background", "liver")),
        ({}, ("background", "foreground")),
    ],
    ids=["nnU-Net", "MSD", "none"],
)
def test_read_label_names_of_a_data_set(tmp_path, labels, expected) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert read_label_names(tmp_path) == expected


def test_read_label_names_reads_what_windows_wrote(tmp_path) -> None:
    content = json.dumps({"labels": {"background": 0, "Größe": 1}}, ensure_ascii=False)
    (tmp_path / "dataset.json").write_text(content, encoding="utf-8-sig")
    assert read_label_names(tmp_path) == ("background", "Größe")


@pytest.mark.parametrize(
    "labels, message",
    [({"background": 0, "a": 2}, "not 0, 1, 2"),
     ({"background": 0, "a": [1, 2]}, "no plain labels"),
     ({"background": 0, "a": 1, "ignore": 2}, "ignore label"),
     ({"background": 0, "$import os": 1}, "which MONAI's configs evaluate")],
)  # fmt: skip
def test_read_label_names_refuses_a_data_sets_labels(tmp_path, labels, message) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(ValueError, match=message):
        read_label_names(tmp_path)


@pytest.mark.parametrize("given", ["one", "a,a", "a,,b", ""])
def test_read_label_names_needs_two_different_names(tmp_path, given) -> None:
    with pytest.raises(ValueError, match="two or more different ones"):
        read_label_names(tmp_path, given)
