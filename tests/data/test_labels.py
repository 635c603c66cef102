from __future__ import annotations

import json

import pytest

from monai_xtiny.data.labels import read_label_names
from monai_xtiny.system.config_text import check_config_text


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


@pytest.mark.parametrize("text", ["$a", "@a", "%a", "a#b", "a::b", "a\nb", "a\x00b"])
def test_check_config_text_refuses_code(text) -> None:
    with pytest.raises(ValueError, match="rename it"):
        check_config_text(text, "label name")


@pytest.mark.parametrize("text", ["nucleus", "Größe 1", "a$b", "50%", "a@b", "a:b", "脳"])
def test_check_config_text_passes_text_on(text) -> None:
    assert check_config_text(text, "label name") == text
