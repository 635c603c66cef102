from __future__ import annotations

import math

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from monai_xtiny.bundled.teaching import TeachersLoss, _TeachersInferer


class Logits(nn.Module):
    """A network of one number: the logit of class 1, that of class 0 being 0."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(image), self.value.expand_as(image)], dim=1)


def loss_of(student: Logits, teacher: Logits, own: float = 0.0) -> torch.Tensor:
    """Loss of a batch, where the loss on the labels is a number."""
    loss = TeachersLoss(lambda pred, label: torch.tensor(own))
    image = torch.zeros(2, 1, 4, 4)
    pred = _TeachersInferer(SimpleInferer(), teacher, loss)(image, student)
    return loss(pred, image)


def test_the_loss_is_the_mean_divergence_of_softened_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    loss = TeachersLoss(lambda pred, label: torch.tensor(7.0))
    loss.logits = teacher
    p, q = ((item / 2).softmax(dim=1) for item in (teacher, student))
    gap = (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(loss(student, torch.zeros(2, 1, 4, 5)), 3.5 + 2 * gap)


def test_the_loss_is_half_the_labels_and_half_the_divergence_from_the_teacher() -> None:
    student, teacher = Logits(0.5), Logits(2.0)
    own, wanted = (1 / (1 + math.exp(-value / 2)) for value in (0.5, 2.0))
    divergence = wanted * math.log(wanted / own) + (1 - wanted) * math.log((1 - wanted) / (1 - own))
    found = loss_of(student, teacher, own=0.3)
    assert found.item() == pytest.approx(0.5 * 0.3 + 0.5 * 4 * divergence, rel=1e-5)


def test_logits_of_another_shape_are_refused() -> None:
    loss = TeachersLoss(lambda pred, label: pred.sum())
    loss.logits = torch.zeros(2, 2, 4, 4)
    with pytest.raises(ValueError, match="leave --teacher or the deep supervision out"):
        loss(torch.zeros(2, 2, 2, 4, 4), torch.zeros(2, 1, 4, 4))


def test_the_student_is_pulled_to_the_teacher_which_stays() -> None:
    student, teacher = Logits(0.5), Logits(2.0)
    loss_of(student, teacher).backward()
    assert student.value.grad < 0 and teacher.value.grad is None
    assert loss_of(Logits(2.0), teacher).item() == pytest.approx(0, abs=1e-6)
