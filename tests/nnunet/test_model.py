from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.nnunet.checkpoint import read_checkpoint
from monai_xtiny.nnunet.importing import import_checkpoint
from monai_xtiny.nnunet.model import read_source
from tests.nnunet.models import DATASET, small_plans, write_model


def model_folder(tmp_path: Path) -> Path:
    """A checkpoint in a model folder, whose plans and labels are not those in the checkpoint."""
    folder = tmp_path / "model" / "fold_0"
    folder.mkdir(parents=True)
    plans = small_plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 0.5]
    dataset = {**DATASET, "labels": {"background": 0, "Here": 1, "There": 2}}
    for name, content in (("plans", plans), ("dataset", dataset)):
        (tmp_path / "model" / f"{name}.json").write_text(json.dumps(content))
    return write_model(folder / "checkpoint_final.pth")


def test_read_source_takes_the_folder_of_a_link(tmp_path) -> None:
    link = model_folder(tmp_path)
    link.rename(tmp_path / "stored.pth")
    link.symlink_to(tmp_path / "stored.pth")
    bundle = Bundle.open(import_checkpoint(link, tmp_path / "x_segmentation"))
    assert bundle.plan.spacing == (0.5, 1.0, 2.0)


def test_read_source_with_other_plans_keeps_the_labels_of_the_folder(tmp_path) -> None:
    file = model_folder(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps(small_plans()))
    made = import_checkpoint(file, tmp_path / "x_segmentation", plans=tmp_path / "other.json")
    bundle = Bundle.open(made)
    assert bundle.label_names == ("background", "Here", "There")
    assert bundle.plan.spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", ["plans", "dataset"])
def test_read_source_refuses_half_a_model_folder(tmp_path, name) -> None:
    file = model_folder(tmp_path)
    (tmp_path / "model" / f"{name}.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"no such file: .*{name}.json"):
        import_checkpoint(file, tmp_path / "x_segmentation")
    assert not (tmp_path / "x_segmentation").exists()


@pytest.mark.parametrize(
    "trainer",
    ["nnUNetTrainer_250epochs", "nnUNetTrainerDA5", "nnUNetTrainer_onlyMirror01_DASegOrd0",
     "nnUNetTrainer_4000epochs_NoMirroring", "nnUNetTrainerVanillaAdam3en4",
     "nnUNetTrainerDiceCELoss_noSmooth", "nnUNetTrainerNoDeepSupervision"],
)  # fmt: skip
def test_read_source_takes_trainers_of_the_same_network(tmp_path, trainer) -> None:
    file = write_model(tmp_path / "x.pth", trainer_name=trainer)
    source = read_source(read_checkpoint(file), None)
    assert source.checkpoint.trainer_name == trainer
    assert source.label_names == ("background", "Anterior", "Posterior")
