from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from distillation import DistillationLoss, TeacherInferer, write_datalist  # noqa: E402

BUNDLE = Path(__file__).parents[2] / "bundle" / "nuclei_fluorescence_xtiny_segmentation"


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


class Constant(nn.Module):
    def forward(self, pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.tensor(7.0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_mean_divergence_of_softened_probabilities(temperature: float) -> None:
    student, teacher = random_logits(0), random_logits(1)
    inferer = SimpleNamespace(logits=teacher)
    loss = DistillationLoss(Constant(), inferer, weight=0.25, temperature=temperature)
    p, q = ((item / temperature).softmax(dim=1) for item in (teacher, student))
    gap = (p * (p / q).log()).sum(dim=1).mean()
    expected = 0.75 * 7 + 0.25 * temperature**2 * gap
    torch.testing.assert_close(loss(student, torch.zeros(2, 1, 4, 5)), expected)
    # Of the teacher's own logits nothing but the labels' part is left.
    assert float(loss(teacher, teacher)) == pytest.approx(0.75 * 7)


@pytest.mark.search
def test_the_teacher_sees_the_images_of_the_student_and_takes_no_gradient() -> None:
    inferer = TeacherInferer(str(BUNDLE), torch.device("cpu"))
    image = torch.rand(1, 1, 128, 128)
    student = nn.Conv2d(1, 2, kernel_size=1)
    torch.testing.assert_close(inferer(image, student), student(image))
    assert inferer.logits is not None and not inferer.logits.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(inferer.logits, inferer.teacher(image))


def test_write_datalist_names_files_relative_to_a_common_folder(tmp_path: Path) -> None:
    case = {"image": [str(tmp_path / "a" / "c_0000.png")], "label": str(tmp_path / "a" / "c.png")}
    other = {"image": [str(tmp_path / "b" / "d_0000.png")], "label": str(tmp_path / "w" / "d.png")}
    file, root = write_datalist([case, other], [case], tmp_path / "w" / "datalist.json")
    content = json.loads(file.read_text())
    assert root == tmp_path
    assert content["training"][1] == {"image": ["b/d_0000.png"], "label": "w/d.png"}
    assert content["validation"] == [{"image": ["a/c_0000.png"], "label": "a/c.png"}]
