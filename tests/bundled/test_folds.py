from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_xtiny.bundled.folds import (
    check_trained,
    check_weights,
    fold_files,
    split_beside,
    splits_of,
)


def test_check_weights_takes_a_bare_state_dict_and_one_under_model(tmp_path) -> None:
    network, file = nn.Linear(2, 3), str(tmp_path / "model.pt")
    for content in (network.state_dict(), {"model": network.state_dict()}):
        torch.save(content, file)
        check_weights(file, nn.Linear(2, 3))
        with pytest.raises(ValueError, match="are of another network than network_def"):
            check_weights(file, nn.Linear(2, 4))


def test_fold_files_are_those_of_the_folds_or_the_one_given() -> None:
    assert fold_files("m.pt", None, "own.pt") == ["own.pt"]
    assert fold_files("m.pt", [0, 2], "m.pt") == ["m.pt", "m_fold2.pt"]
    assert fold_files("m.pt", 1, "m_fold1.pt") == ["m_fold1.pt"]
    for folds in ([], [0, 0], [-1], "all", [True]):
        with pytest.raises(ValueError, match="give numbers of folds"):
            fold_files("m.pt", folds, "m.pt")
    with pytest.raises(ValueError, match="and own.pt are given: give one of them"):
        fold_files("m.pt", [0, 1], "own.pt")


def test_check_trained_refuses_an_initialization_beside_trained_folds(tmp_path, capsys) -> None:
    file = str(tmp_path / "model.pt")
    torch.save(nn.InstanceNorm2d(2, affine=True).state_dict(), file)
    check_trained([file])
    assert f"warning: {file} was not trained" in capsys.readouterr().out
    torch.save({"model": {"weight": torch.rand(2)}}, tmp_path / "model_fold1.pt")
    check_trained([str(tmp_path / "model_fold1.pt")])
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"was not trained, but model_fold1\.pt beside it"):
        check_trained([file])


def test_the_split_of_weights_elsewhere_lies_beside_them(tmp_path) -> None:
    root, trial = str(tmp_path / "bundle"), str(tmp_path / "trial")
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "bundle" / "models")
    for own in (f"{root}/models", f"{root}/./models/", str(tmp_path / "link")):
        assert split_beside(own, root) == f"{root}/configs/datalist.json"
    assert split_beside(trial, root) == f"{trial}/datalist.json"


def test_splits_of_weights_are_those_of_their_fold(tmp_path) -> None:
    for name in ("b/configs/datalist.json", "b/configs/datalist_fold2.json", "trial/datalist.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = [
        str(tmp_path / name)
        for name in ("b/models/model.pt", "b/models/model_fold2.pt", "trial/model.pt")
    ]
    expected = ["b/configs/datalist.json", "b/configs/datalist_fold2.json", "trial/datalist.json"]
    assert splits_of(files) == [str(tmp_path / name) for name in expected]
    unknown = [str(tmp_path / name) for name in ("b/models/model_fold1.pt", "b/models/best.pt")]
    assert splits_of(unknown) == []
    own = str(tmp_path / "trial" / "datalist.json")
    assert splits_of(unknown, unknown[1], own) == [own]
