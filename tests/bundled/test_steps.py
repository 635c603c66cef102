from __future__ import annotations

import signal
from types import SimpleNamespace

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader, StatsHandler
from torch import nn

from monai_xtiny.bundled.steps import GradientClipping, Interruption, check_loss, handlers_of_rank
from tests.bundled.labeled import Setup


def test_check_loss_stops_where_the_loss_is_not_a_number() -> None:
    def trainer(loss: float) -> SimpleNamespace:
        return SimpleNamespace(state=SimpleNamespace(output={"loss": torch.tensor(loss)}, epoch=7))

    check_loss(trainer(1e30))
    with pytest.raises(ValueError, match="the loss is not a number in epoch 7: lower --learning_r"):
        check_loss(trainer(float("nan")))


def test_handlers_of_rank_drops_logs_on_other_ranks(monkeypatch, tmp_path) -> None:
    handlers = [StatsHandler(), CheckpointLoader(str(tmp_path), {"a": nn.Linear(1, 1)})]
    assert handlers_of_rank(handlers) == handlers
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    assert handlers_of_rank(handlers) == handlers[1:]


class SignalingLoader:
    """What sends SIGINT from its destructor, where Python drops exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interruption_is_not_dropped_in_a_destructor(tmp_path, monkeypatch) -> None:
    setup = Setup(tmp_path, epochs=5)

    def destroy() -> None:
        if setup.trainer.state.iteration == 3:
            SignalingLoader()

    setup.trainer.add_event_handler(Events.ITERATION_COMPLETED, destroy)
    Interruption().attach(setup.trainer, setup.evaluator)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            setup.trainer.run()
    finally:
        signal.signal(signal.SIGINT, former)
    assert setup.trainer.state.iteration == 4


def seen_signal(seen: list) -> None:
    seen.append(signal.getsignal(signal.SIGINT))


def test_interruption_gives_the_signal_back(tmp_path) -> None:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(2):
            setup = Setup(tmp_path, epochs=1)
            interruption = Interruption()
            interruption.attach(setup.trainer, setup.evaluator)
            seen: list[object] = []
            setup.trainer.add_event_handler(Events.EPOCH_STARTED, seen_signal, seen)
            setup.trainer.run()
            assert seen == [interruption._remember]
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)


def test_gradient_clipping_scales_gradients_to_the_norm(tmp_path) -> None:
    setup = Setup(tmp_path, epochs=1)
    norms = []

    def norm() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in setup.network.parameters()]).norm()

    GradientClipping(setup.network, setup.optimizer, 1e-3).attach(setup.trainer)
    setup.trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED, lambda: norms.append(float(norm()))
    )
    setup.trainer.run()
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_gradient_clipping_takes_the_scale_of_mixed_precision_out_first(tmp_path) -> None:
    setup = Setup(tmp_path, epochs=1)
    seen = []

    class Scaler:
        def unscale_(self, optimizer) -> None:
            seen.append(optimizer)
            for parameter in setup.network.parameters():
                parameter.grad = torch.full_like(parameter, 1.0)

    setup.trainer.scaler = Scaler()
    GradientClipping(setup.network, setup.optimizer, 1.0)(setup.trainer)
    assert seen == [setup.optimizer]
    squares = [float((p.grad**2).sum()) for p in setup.network.parameters()]
    assert sum(squares) == pytest.approx(1.0, rel=1e-3)
