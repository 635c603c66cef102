from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.transforms import Compose, RandRotate
from torch import nn

from monai_xtiny.bundled.checkpoints import BestWeights
from monai_xtiny.bundled.splits import Split, write_split
from tests.bundled.labeled import Setup, labeled, of_patients


def test_training_state_goes_on_as_if_it_had_not_stopped(tmp_path) -> None:
    whole = Setup(tmp_path / "whole", epochs=3)
    whole.run()
    for epochs in (1, 3):
        parts = Setup(tmp_path / "parts", epochs=epochs)
        state = parts.run()
    assert state.former_epoch == 1
    assert parts.trainer.state.epoch == 3 and parts.trainer.state.iteration == 6
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, parts.network.state_dict()[name]), name
    assert vars(whole.evaluator.state)["best_metric"] == parts.evaluator.state.best_metric
    assert not list(tmp_path.rglob("*.part"))


def test_a_resumed_training_draws_otherwise_than_its_first_epoch(tmp_path, monkeypatch) -> None:
    def draw(folder, *, epochs: int, rank: int = 0) -> list[float]:
        """Angles of a loader without workers, whose transforms it seeds when it is made."""
        monkeypatch.setattr("ignite.distributed.get_rank", lambda: rank)
        setup = Setup(folder, epochs=epochs)
        drawn: list[float] = []
        rotate = RandRotate(range_x=3.0, prob=1.0)

        def turn(item: dict) -> dict:
            rotate(item["image"])
            drawn.append(rotate.x)
            return item

        transform = Compose([turn])
        transform.rotate = rotate  # found by whoever seeds what a data set holds
        torch.manual_seed(0)
        setup.trainer.data_loader = DataLoader(
            Dataset(setup.trainer.data_loader.dataset, transform), batch_size=2, num_workers=0
        )
        setup.run()
        return drawn

    first = draw(tmp_path, epochs=1)
    state = (tmp_path / "deep" / "state.pt").read_bytes()
    found = []
    for rank in (0, 1):
        (tmp_path / "deep" / "state.pt").write_bytes(state)
        found.append(draw(tmp_path, epochs=2, rank=rank))
    assert len(first) == len(found[0]) == 4
    assert not set(first) & set(found[0]) and not set(found[0]) & set(found[1])


def test_training_state_keeps_the_best_of_the_former_run(tmp_path) -> None:
    Setup(tmp_path, epochs=1).run()
    content = torch.load(tmp_path / "deep" / "state.pt", weights_only=True)
    content["best"] = {"best_metric": 1e9, "best_metric_epoch": 1}
    torch.save(content, tmp_path / "deep" / "state.pt")
    later = Setup(tmp_path, epochs=2)
    later.run()
    assert (later.evaluator.state.best_metric, later.evaluator.state.best_metric_epoch) == (1e9, 1)


def test_training_state_takes_the_settings_of_this_run(tmp_path) -> None:
    Setup(tmp_path, epochs=2).run()
    later = Setup(tmp_path, epochs=3, lr=0.7, decay=0.3)
    rates = []
    later.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: rates.append(later.optimizer.param_groups[0]["lr"])
    )
    later.run()
    group = later.optimizer.param_groups[0]
    assert rates == [0.7 / 3] * 2  # the factor of the third epoch
    assert (group["initial_lr"], group["weight_decay"]) == (0.7, 0.3)


def test_training_state_neither_reads_nor_writes_unless_asked_to(tmp_path) -> None:
    Setup(tmp_path, epochs=1).run(save=False)
    assert list(tmp_path.rglob("*")) == []
    Setup(tmp_path, epochs=1).run()
    anew = Setup(tmp_path, epochs=1)
    assert anew.run(resume=False).former == {}
    assert anew.trainer.state.iteration == 2


@pytest.mark.parametrize(
    "options, max_epochs, message",
    [
        (
            {"split": Split(labeled(2).cases, [])}, 9,
            "is of other cases or of another split: pass another --output_dir, or --resume False",
        ),
        ({"network": nn.Conv2d(1, 3, 1)}, 9, "is of another network: pass another --output_dir"),
        ({}, 1, "has 2 epochs already: give --epochs above that, or --resume False to start anew"),
    ],
    ids=["split", "network", "epochs"],
)  # fmt: skip
def test_training_state_refuses_another_training(tmp_path, options, max_epochs, message) -> None:
    setup = Setup(tmp_path, epochs=2)
    setup.state().check(0)  # nothing there
    setup.run()
    setup.state().check(2)
    with pytest.raises(ValueError, match=f"the training in .*state.pt {message}"):
        setup.state(**options).check(max_epochs)


def test_best_weights_are_those_of_the_best_validation(tmp_path) -> None:
    setup, file = Setup(tmp_path, epochs=4), tmp_path / "models" / "model.pt"
    # Without a metric of its own.
    setup.evaluator = SupervisedEvaluator(
        torch.device("cpu"), setup.trainer.data_loader, setup.network
    )
    scores = iter([0.5, 0.9, 0.7, 0.8])
    weights = {}

    def judge() -> None:
        state = setup.evaluator.state
        if (score := next(scores)) > state.best_metric:
            state.best_metric, state.best_metric_epoch = score, state.epoch
        weights[state.epoch] = {k: v.clone() for k, v in setup.network.state_dict().items()}

    setup.evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: judge())
    best = BestWeights(setup.network, str(file))
    best.attach(setup.evaluator)
    setup.trainer.run()
    found = torch.load(file, weights_only=True)
    assert all(torch.equal(found[name], weights[2][name]) for name in found)
    best.save_unless_validated(setup.evaluator)
    assert all(torch.equal(torch.load(file, weights_only=True)[k], found[k]) for k in found)
    assert [path.name for path in file.parent.iterdir()] == ["model.pt"]


def test_best_weights_are_the_last_without_a_validation(tmp_path) -> None:
    network, file = nn.Linear(2, 2), tmp_path / "model.pt"
    evaluator = SimpleNamespace(state=SimpleNamespace(best_metric_epoch=-1))
    BestWeights(network, str(file)).save_unless_validated(evaluator)
    assert torch.equal(torch.load(file, weights_only=True)["weight"], network.weight)


def test_best_weights_are_the_last_where_nothing_can_be_measured(tmp_path) -> None:
    setup, file = Setup(tmp_path, epochs=3), tmp_path / "models" / "model.pt"
    for item in setup.evaluator.data_loader.dataset:
        item["label"].zero_()
    metric = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    setup.evaluator = SupervisedEvaluator(
        torch.device("cpu"), setup.trainer.data_loader, setup.network,
        key_val_metric={"dice": metric},
    )  # fmt: skip
    BestWeights(setup.network, str(file)).attach(setup.evaluator)
    setup.trainer.run()
    assert setup.evaluator.state.best_metric_epoch == -1
    found = torch.load(file, weights_only=True)
    assert all(torch.equal(found[k], value) for k, value in setup.network.state_dict().items())


def test_a_kill_between_two_writes_loses_no_trained_weights(tmp_path, monkeypatch) -> None:
    class Killed(BaseException):
        pass

    writes = {
        (shutil, "copy2"), (torch, "save"), (os, "replace"),
        (Path, "unlink"), (Path, "write_text"), (Path, "replace"), (Path, "mkdir"),
    }  # fmt: skip
    split = Split(of_patients("a"), of_patients("b"))

    def train(root: Path, value: float, kill_at: int) -> int:
        """A training that dies before a write; the number of writes."""
        network = nn.Linear(1, 3)
        nn.init.uniform_(network.weight, value, value)
        nn.init.uniform_(network.bias, value, value)
        number = 0
        with monkeypatch.context() as patch:

            def count(write, *args, **options) -> object:
                nonlocal number
                number += 1
                if number == kill_at:
                    raise Killed
                return write(*args, **options)

            def counted(write) -> Callable[..., object]:
                return lambda *args, **options: count(write, *args, **options)

            for owner, name in writes:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            BestWeights(
                network, str(root / "models" / "model.pt"), split=split,
                split_file=str(root / "configs" / "datalist.json"),
            ).save()  # fmt: skip
        return number

    def kept(root: Path) -> set[float]:
        """Trained weights that lie beside the split that they were trained on."""
        folders = [root, *root.glob("former_training_*")]
        files = [(item / "models/model.pt", item / "configs/datalist.json") for item in folders]
        return {
            float(torch.load(weights, weights_only=True)["bias"][0])
            for weights, names in files
            if weights.is_file() and names.is_file()
        }

    for kill_at in range(1, 100):
        root = tmp_path / str(kill_at)
        for folder in ("models", "configs"):
            (root / folder).mkdir(parents=True)
        train(root, 0.25, 0)
        try:
            train(root, 0.5, kill_at)
        except Killed:
            assert 0.25 in kept(root), kill_at
            train(root, 0.75, 0)
            assert {0.25, 0.75} <= kept(root), kill_at
        else:
            break
    assert kept(root) == {0.25, 0.5} and kill_at > 6


@pytest.mark.parametrize("is_better", [True, False])
def test_a_training_that_goes_on_takes_away_what_was_measured_before(tmp_path, is_better) -> None:
    for folder in ("models", "configs", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    card = tmp_path / "docs" / "README.md"
    card.write_text("<!-- xtiny:performance -->\nDice 0.9\n<!-- /xtiny:performance -->")
    for name in ("evaluation.json", "overlay.png", "report.html", "search.json"):
        (tmp_path / "docs" / name).write_text("measured")
    network, file = nn.Linear(1, 1), str(tmp_path / "models" / "model.pt")
    best = BestWeights(network, file)
    best.save()
    state = {"best_weights": best.written, "network": network.state_dict()}
    resumed = BestWeights(network, file)
    resumed.go_on(state)
    assert len(list((tmp_path / "docs").iterdir())) == 5
    if is_better:
        nn.init.ones_(network.weight)
        resumed.save()
    left = {path.name for path in (tmp_path / "docs").iterdir()}
    assert left == ({"search.json", "README.md"} if is_better else left) and len(left) in (2, 5)
    assert ("Not measured since" in card.read_text()) is is_better
    assert not list(tmp_path.glob("former_training_*"))


def test_files_are_written_by_rank_0_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("ignite.distributed.utils.get_rank", lambda: 1)
    BestWeights(nn.Linear(1, 1), str(tmp_path / "model.pt")).save()
    write_split(Split([], []), tmp_path / "split.json", tmp_path)
    assert list(tmp_path.iterdir()) == []
