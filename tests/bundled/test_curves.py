from __future__ import annotations

from pathlib import Path

import pytest
from ignite.engine import Engine, Events

from monai_xtiny.bundled.curves import CurveWriter


def train(folder: Path, losses: list[float], dice: dict[int, float], former: int = 0) -> list[str]:
    """Epochs of two steps with a loss each, and validations after some; the table's lines."""
    evaluator = Engine(lambda engine, batch: None)
    trainer = Engine(lambda engine, batch: [{"loss": losses[engine.state.epoch - 1]}])
    CurveWriter(str(folder), "dice", former).attach(trainer, evaluator)

    @trainer.on(Events.EPOCH_STARTED)
    def validate() -> None:
        if trainer.state.epoch in dice:
            evaluator.state.metrics["dice"] = dice[trainer.state.epoch]
            evaluator.run([0])

    if former:
        counts = {"iteration": 2 * former, "epoch_length": 2, "max_epochs": len(losses)}
        trainer.load_state_dict(counts)
        trainer.run([0, 0])
    else:
        trainer.run([0, 0], max_epochs=len(losses))
    return (folder / "learning_curve.csv").read_text().splitlines()


def test_curve_writer_writes_each_epoch_and_a_validation_where_there_was_one(tmp_path) -> None:
    lines = train(tmp_path / "eval", [0.5, 0.25, 0.125], {2: 0.75, 3: float("nan")})
    assert lines == ["epoch,train_loss,val_mean_dice", "1,0.5,", "2,0.25,0.75", "3,0.125,"]
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["learning_curve.csv"]


def test_curve_writer_goes_on_from_the_epochs_of_the_training_it_resumes(tmp_path) -> None:
    train(tmp_path, [0.5, 0.25, 0.125], {})
    lines = train(tmp_path, [1.0, 1.0, 1.0, 1.0], {}, former=2)  # killed before it was saved
    assert lines[1:] == ["1,0.5,", "2,0.25,", "3,1.0,", "4,1.0,"]
    assert train(tmp_path, [2.0], {})[1:] == ["1,2.0,"]  # anew


@pytest.mark.parametrize("table", ["", "a,b\n1,2\n", "epoch,train_loss,val_mean_dice\nx\n"])
def test_curve_writer_does_not_go_on_with_another_table(tmp_path, table) -> None:
    (tmp_path / "learning_curve.csv").write_text(table)
    assert train(tmp_path, [1.0, 1.0], {}, former=1)[1:] == ["2,1.0,"]
