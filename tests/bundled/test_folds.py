from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_xtiny.bundled.folds import check_trained, check_weights, fold_files


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
