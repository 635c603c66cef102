"""Trainings of an emitted bundle: folds, second trainings, fine-tuning, interrupts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from PIL import Image

from monai_xtiny.bundle.folder import CARD, EVALUATION, Bundle
from monai_xtiny.selection.choice import with_width
from monai_xtiny.system.errors import innermost
from tests.conftest import texture
from tests.exports import exported
from tests.processes import run_module, start_module

pytestmark = pytest.mark.search
ROOT = Path(__file__).parents[2]
# A training of one epoch with one validation.
SHORT = {"num_workers": 0, "epochs": 1, "val_interval": 1, "tensorboard": False}


def write_data(root: Path, *, foreground: Callable[[int], bool] = lambda index: True) -> Path:
    """Five images whose label, where there is one, is a threshold of the image."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for index in range(5):
        field = texture((48, 32), index)
        Image.fromarray(field).save(root / "imagesTr" / f"c{index}_0000.png")
        label = (field > field.mean()) & foreground(index)
        Image.fromarray(label.astype(np.uint8)).save(root / "labelsTr" / f"c{index}.png")
    return root


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def bundle(tmp_path, selection) -> Bundle:
    return Bundle.open(exported(selection, tmp_path / "x_segmentation"))


def train(bundle: Bundle, data: Path, **options: Any) -> None:
    bundle.workflow(("train",), {"dataset_dir": str(data), **SHORT, **options}).run()


def refusal(bundle: Bundle, data: Path, **options: Any) -> str:
    """What a training is refused with; the whole traceback gives no advice of torch's."""
    before = bundle.path("models/model.pt").read_bytes()
    with pytest.raises(RuntimeError) as error:
        train(bundle, data, **options)
    assert "weights_only" not in "".join(traceback.format_exception(error.value)).replace(
        "weights_only=True", ""
    )
    assert bundle.path("models/model.pt").read_bytes() == before
    return str(innermost(error.value))


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def are_equal(state: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(state[name], other[name]) for name in other)


def held_out(path: Path) -> list[str]:
    return [case["label"] for case in json.loads(path.read_text())["validation"]]


def test_folds_lie_beside_each_other_and_are_used_together(bundle, data) -> None:
    train(bundle, data)
    first = bundle.path("models/model.pt").read_bytes()
    train(bundle, data, fold=1)
    assert bundle.path("models/model.pt").read_bytes() == first
    assert bundle.path("eval/checkpoints/training_state.pt").is_file()
    assert bundle.path("eval/fold1/checkpoints/training_state.pt").is_file()
    parts = [held_out(bundle.path(f"configs/datalist{name}.json")) for name in ("", "_fold1")]
    assert len(parts[0]) == len(parts[1]) == 1 and parts[0] != parts[1]
    assert not list(bundle.root.glob("former*"))

    options = {"dataset_dir": str(data), "num_workers": 0}
    workflow = bundle.workflow(("train", "evaluate"), {**options, "fold": 1})
    workflow.run()
    table = bundle.path("eval/fold1/val_mean_dice_raw.csv").read_text()
    assert Path(parts[1][0]).stem in table
    weights = [load(bundle.path(f"models/model{name}.pt")) for name in ("", "_fold1")]
    assert are_equal(workflow.parser.get_parsed_content("network_def").state_dict(), weights[1])

    # All of them are one network: the mean of the logits.
    options["output_dir"] = str(data / "labels")
    both = bundle.workflow(("inference",), {**options, "folds": [0, 1]})
    both.run()
    assert len(list((data / "labels").iterdir())) == 5
    network, image = both.parser.get_parsed_content("network").eval(), torch.randn(1, 1, 32, 48)
    alone = bundle.network().eval()
    with torch.no_grad():
        logits = []
        for state in weights:
            alone.load_state_dict(state)
            logits.append(alone(image))
        torch.testing.assert_close(network(image), (logits[0] + logits[1]) / 2)
    with pytest.raises(RuntimeError) as error:
        bundle.workflow(("inference",), {**options, "folds": [0, 2]}).run()
    assert "there is no file" in str(innermost(error.value))
    # Held out by the one, trained on by the other.
    with pytest.raises(RuntimeError) as error:
        bundle.workflow(("train", "evaluate"), {**options, "folds": [0, 1]}).run()
    assert "the network was trained on" in str(innermost(error.value))


@pytest.mark.parametrize(
    "again",
    [{"resume": False, "seed": 1}, {"output_dir": "elsewhere", "seed": 1}, {"split_seed": 1}],
    ids=["no_resume", "output_dir", "no_state"],
)
def test_a_second_training_keeps_the_first_aside(bundle, data, tmp_path, capsys, again) -> None:
    train(bundle, data)
    if "split_seed" in again:
        shutil.rmtree(bundle.path("eval"))
    if "output_dir" in again:
        again = {**again, "output_dir": str(tmp_path / again["output_dir"])}
    names = ("models/model.pt", "configs/datalist.json")
    first = [bundle.path(name).read_bytes() for name in names]
    card = bundle.path("docs/README.md").read_bytes()
    bundle.path(EVALUATION).write_text("{}")
    train(bundle, data, **again)
    former = bundle.path("former_training_1")
    assert [(former / name).read_bytes() for name in names] == first
    assert (former / "docs/README.md").read_bytes() == card
    # What was measured is not true of the new weights.
    assert "Not measured since the network was trained anew" in bundle.path(CARD).read_text()
    assert not bundle.path(EVALUATION).exists()
    assert (former / EVALUATION).read_text() == "{}"
    assert bundle.path("models/model.pt").read_bytes() != first[0]
    assert f"the weights of the former training are in {former}" in capsys.readouterr().out
    # What goes on keeps nothing aside.
    train(bundle, data, **{**again, "resume": True, "epochs": 2})
    assert [path.name for path in bundle.root.glob("former*")] == [former.name]
    if "output_dir" in again:  # back to the first, whose best weights its state holds
        train(bundle, data)
        assert are_equal(load(bundle.path("models/model.pt")), load(former / "models/model.pt"))
        assert bundle.path("former_training_2/models/model.pt").is_file()


def test_a_training_elsewhere_leaves_the_bundle_as_it_is(bundle, data, tmp_path) -> None:
    train(bundle, data)
    names = ("models/model.pt", "configs/datalist.json", "eval/checkpoints/training_state.pt")
    before = [bundle.path(name).read_bytes() for name in names]
    elsewhere = {"ckpt_dir": str(tmp_path / "trial"), "output_dir": str(tmp_path / "results")}
    train(bundle, data, split_seed=3, **elsewhere)
    train(bundle, data, split_seed=3, resume=False, **elsewhere)
    assert [bundle.path(name).read_bytes() for name in names] == before
    assert not list(bundle.root.glob("former*"))
    own, other = held_out(bundle.path(names[1])), held_out(tmp_path / "trial" / "datalist.json")
    assert own != other
    # Its weights were trained on what the bundle's hold out.
    options = {"dataset_dir": str(data), "num_workers": 0}
    trial = {**options, "checkpoint": str(tmp_path / "trial" / "model.pt")}
    with pytest.raises(RuntimeError) as error:
        bundle.workflow(("train", "evaluate"), trial).run()
    assert "trial/datalist.json says" in str(innermost(error.value))
    bundle.workflow(("train", "evaluate"), {**trial, "split_seed": 3}).run()


def test_another_fold_does_not_start_from_weights_that_have_seen_it(bundle, data) -> None:
    train(bundle, data)
    first = str(bundle.path("models/model.pt"))
    message = refusal(bundle, data, fold=1, checkpoint=first)
    assert "the network was trained on" in message and "give --checkpoint FILE" in message
    assert not bundle.path("models/model_fold1.pt").exists()
    train(bundle, data, resume=False, checkpoint=first)  # the same cases


@pytest.mark.parametrize(("epochs", "interval"), [(5, 2), (4, 2), (3, 5)])
def test_the_last_epoch_is_validated(bundle, data, epochs, interval) -> None:
    # But where there is no validation at all.
    train(bundle, data, epochs=epochs, val_interval=interval)
    table = bundle.path("eval/learning_curve.csv").read_text().split()
    measured = [int(row.split(",")[0]) for row in table[1:] if row.split(",")[2]]
    assert measured == {5: [2, 4, 5], 4: [2, 4], 3: []}[epochs]


def test_weights_of_unknown_origin_are_kept_aside_and_an_initialization_is_not(
    bundle, data
) -> None:
    train(bundle, data)
    assert not list(bundle.root.glob("former*"))
    shutil.rmtree(bundle.path("eval"))
    bundle.path("configs/datalist.json").unlink()
    train(bundle, data, seed=1)
    assert bundle.path("former_training_1/models/model.pt").is_file()


def test_a_failed_training_leaves_the_former_in_its_place(bundle, data) -> None:
    train(bundle, data)
    names = ("models/model.pt", "configs/datalist.json")
    first = [bundle.path(name).read_bytes() for name in names]
    workflow = bundle.workflow(
        ("train",), {"dataset_dir": str(data), **SHORT, "resume": False, "split_seed": 1}
    )
    workflow.parser["train#trainer#loss_function"] = "$lambda *_: 1 / 0"
    with pytest.raises(RuntimeError):
        workflow.run()
    assert [bundle.path(name).read_bytes() for name in names] == first


def test_a_training_starts_from_the_weights_of_checkpoint(bundle, data, tmp_path) -> None:
    train(bundle, data)
    trained = load(bundle.path("models/model.pt"))
    for number, content in enumerate((trained, {"model": trained})):
        torch.save(content, tmp_path / "own.pt")
        options = {"resume": False, "learning_rate": 1e-12, "weight_decay": 0, "seed": number}
        train(bundle, data, checkpoint=str(tmp_path / "own.pt"), **options)
        found = load(bundle.path("models/model.pt"))
        for name, value in trained.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)
    # A training that started from it goes on; of other weights it is told.
    train(bundle, data, epochs=2, checkpoint=str(tmp_path / "own.pt"))
    message = refusal(bundle, data, epochs=3, checkpoint=str(bundle.path("docs/README.md")))
    assert "did not start from" in message and "README.md" in message
    torch.save({name: value[..., :1] for name, value in trained.items()}, tmp_path / "own.pt")
    message = refusal(bundle, data, resume=False, checkpoint=str(tmp_path / "own.pt"))
    assert "own.pt are of another network than network_def" in message
    message = refusal(bundle, data, resume=False, checkpoint=str(tmp_path / "none.pt"))
    assert "there is no file" in message and "none.pt" in message


@pytest.fixture
def teacher(tmp_path, selection, data) -> Bundle:
    """A trained bundle of width 16."""
    wide = with_width(selection, 16)
    teacher = Bundle.open(exported(wide, tmp_path / "teacher_segmentation"))
    train(teacher, data)
    return teacher


def test_a_teacher_changes_the_loss_and_nothing_else(bundle, data, teacher, tmp_path) -> None:
    def run(name: str, **options: Any) -> tuple[list[float], dict[str, Any]]:
        copy = Bundle.open(shutil.copytree(bundle.root, tmp_path / f"{name}_segmentation"))
        workflow = copy.workflow(("train",), {"dataset_dir": str(data), **SHORT, **options})
        trainer = workflow.parser.get_parsed_content("train#trainer")
        images: list[float] = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda: images.append(float(trainer.state.batch[0]["image"].sum())),
        )
        workflow.run()
        return images, load(copy.path("eval/checkpoints/training_state.pt"))

    images, state = run("alone")
    taught_images, taught = run("taught", teacher=str(teacher.root))
    assert images == taught_images
    assert not are_equal(state["network"], taught["network"])
    assert state["teacher"] is None and len(taught["teacher"]) == 64
    train(teacher, data, fold=1)
    train(bundle, data, fold=1, teacher=str(teacher.root))


def test_networks_of_the_comparison_see_the_same_crops_in_the_same_order(
    bundle, data, tmp_path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "benchmarks"))
    from comparison import Comparison, training_keys

    def crops(network: str, seed: int) -> list[torch.Tensor]:
        copy = tmp_path / f"{network}_{seed}_segmentation"
        opened = Bundle.open(shutil.copytree(bundle.root, copy))
        unit = Comparison("fluorescence", network, seed, 4, 0.01, whole=False, bfloat16=False)
        keys = training_keys(opened, unit, {"device": "cpu", "num_workers": 0})
        # Two epochs of two updates: the order of the cases is drawn anew for the second.
        small = {"batch_size": 2, "crop_size": [32, 32], "epochs": 2, "seed": seed}
        options = {"dataset_dir": str(data), **SHORT, **keys, **small}
        workflow = opened.workflow(("train",), options)
        trainer = workflow.parser.get_parsed_content("train#trainer")
        assert trainer.optimizer.defaults["fused"]
        seen: list[torch.Tensor] = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda: seen.extend(item["image"] for item in trainer.state.batch),
        )
        workflow.run()
        return seen

    one, other = crops("width_4", 0), crops("basicunet_small", 0)
    assert len(one) == len(other) > 4 and not torch.equal(one[0], one[-1])
    assert all(map(torch.equal, one, other))
    assert not any(map(torch.equal, one, crops("width_4", 1)))


def test_a_teacher_is_kept_to_and_must_suit(bundle, data, teacher, tmp_path, selection) -> None:
    folder = str(teacher.root)
    train(bundle, data, teacher=folder)
    train(bundle, data, teacher=folder, epochs=2)
    assert "had a teacher: give --teacher as before" in refusal(bundle, data, epochs=3)
    # Without a state to go on with.
    options = {"resume": False, "teacher": folder}
    message = refusal(bundle, data, **options, val_fraction=0.6)
    assert "was trained on c" in message and "teacher_segmentation" in message
    message = refusal(bundle, data, **options, fold=1)
    assert "there is no file" in message and "datalist_fold1.json" in message
    config = teacher.path("configs/train.json")
    content = json.loads(config.read_text())
    for key, value in (("preprocessing_transforms", []), ("num_classes", 9)):
        config.write_text(json.dumps({**content, key: value}))
        message = refusal(bundle, data, **options)
        assert f"has other {key} than this bundle: export one" in message
    for definition in (
        {**content["network_def"], "_target_": "os.system"},
        {**content["network_def"], "filters": "$print('no')"},
        {**content["network_def"], "filters": [16]},
        {**content["network_def"], "filters": [10**30] * len(content["network_def"]["filters"])},
    ):
        config.write_text(json.dumps({**content, "network_def": definition}))
        assert "has other network_def" in refusal(bundle, data, **options)
    larger = {"filters": [512] * len(content["network_def"]["filters"])}
    config.write_text(json.dumps({**content, "network_def": content["network_def"] | larger}))
    assert "is smaller than the weights" in refusal(bundle, data, **options)
    for text in ("[]", "[" * 100_000):
        config.write_text(text)
        assert "is no config of a training" in refusal(bundle, data, **options)
    config.write_text(json.dumps(content))
    untrained = exported(with_width(selection, 16), tmp_path / "u_segmentation")
    message = refusal(bundle, data, resume=False, teacher=str(untrained))
    assert "there is no file" in message and "datalist.json" in message
    shutil.copy(teacher.path("configs/datalist.json"), untrained / "configs")
    assert "were not trained" in refusal(bundle, data, resume=False, teacher=str(untrained))
    message = refusal(bundle, data, resume=False, teacher=str(bundle.root))
    assert "is the bundle that is trained" in message
    missing = str(tmp_path / "none")
    assert "give --teacher FOLDER" in refusal(bundle, data, resume=False, teacher=missing)
    assert "give --teacher FOLDER" in refusal(bundle, data, resume=False, teacher="")
    assert "--teacher is 7, which is no path" in refusal(bundle, data, resume=False, teacher=7)


def test_without_foreground_the_last_weights_are_kept_and_that_is_said(
    bundle, tmp_path, capsys
) -> None:
    data = write_data(tmp_path / "empty", foreground=lambda index: False)
    train(bundle, data, epochs=3)
    state = load(bundle.path("eval/checkpoints/training_state.pt"))
    assert are_equal(load(bundle.path("models/model.pt")), state["network"])
    assert "none of the 1 held-out cases has any foreground" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resume": "no"}, "--resume is 'no': give True or False"),
        ({"val_fraction": 2}, "--val_fraction is 2: give a number from 0 to below 1"),
        ({"epochs": 1.5}, "--epochs is 1.5: give a whole number, 1 or more"),
        ({"crop_size": [8, 8]}, "--crop_size is [8, 8]: give multiples of [8, 8], above that"),
        ({"crop_size": [20, 16]}, "--crop_size is [20, 16]: give multiples of [8, 8]"),
        ({"group": "(p)"}, "--group (p) finds no patient for the cases c0, c1, c2, c3, c4"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_options_that_cannot_be_meant_are_refused(bundle, data, options, message) -> None:
    assert message in refusal(bundle, data, **options)
    assert not bundle.path("eval").exists()


def test_inference_refuses_a_patch_that_the_strides_do_not_divide(bundle, data) -> None:
    with pytest.raises(RuntimeError) as error:
        bundle.workflow(
            ("inference",), {"dataset_dir": str(data), "patch_size": [8, 8], "num_workers": 0}
        ).run()
    assert "--patch_size is [8, 8]: give multiples" in str(innermost(error.value))


@pytest.mark.parametrize("content", [b"", b"PK half a zip", b"\x80\x02cos\nsystem\n."], ids=str)
def test_a_damaged_state_is_named_with_what_to_do(bundle, data, content) -> None:
    state = bundle.path("eval/checkpoints/training_state.pt")
    state.parent.mkdir(parents=True)
    state.write_bytes(content)
    message = refusal(bundle, data)
    assert message == (
        f"{state} is damaged, or of another kind: remove it, or pass --resume False, to start anew"
    )


def arguments(bundle: Bundle, data: Path, *options: object, root: bool = True) -> list[str]:
    """Of ``python -m monai.bundle``."""
    command = ["run", "--config_file", str(bundle.path("configs/train.json"))]
    command += ["--bundle_root", str(bundle.root)] if root else []
    return [*command, "--dataset_dir", str(data), *map(str, options)]


def test_a_forgotten_bundle_root_and_unknown_options_are_named(bundle, data, tmp_path) -> None:
    command = arguments(bundle, data, "--epochs", 1, root=False)
    done = run_module("monai.bundle", *command, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "no scripts/workflow.py in the bundle root: run in the bundle's folder, or pass "
        "--bundle_root FOLDER"
    )
    command = arguments(bundle, data, "--epoch", 1)
    done = run_module("monai.bundle", *command, cwd=tmp_path)
    assert done.returncode == 1 and not bundle.path("eval").exists()
    assert "no option --epoch in" in done.stderr and "(--epochs?)" in done.stderr


def test_sigint_stops_a_training_with_workers_and_it_goes_on(bundle, data, tmp_path) -> None:
    state = bundle.path("eval/checkpoints/training_state.pt")
    command = arguments(bundle, data, "--epochs", 4000, "--num_workers", 2, "--val_interval", 1)
    # Workers are forked, as in a process of its own.
    script = tmp_path / "run.py"
    script.write_text(
        "import faulthandler, multiprocessing, runpy, signal\n"
        "faulthandler.register(signal.SIGUSR1)\n"
        "multiprocessing.set_start_method('fork', force=True)\n"
        "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)\n"
    )
    epoch = 0
    for delay in (0.0, 0.35):
        former = state.stat().st_mtime_ns if state.exists() else 0
        process = start_module(
            str(script), *command, cwd=tmp_path,
            env={"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            streams=(tmp_path / "out", tmp_path / "err"),
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while (state.stat().st_mtime_ns if state.exists() else 0) == former:
            assert process.is_alive(), (tmp_path / "err").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGINT)
        process.join(120)
        if process.is_alive():  # where it hangs
            os.kill(process.pid, signal.SIGUSR1)
            process.join(5)
        assert process.exitcode not in (None, 0), (tmp_path / "err").read_text()[-3000:]
        trainer = load(state)["trainer"]
        assert trainer["iteration"] // trainer["epoch_length"] > epoch
        epoch = trainer["iteration"] // trainer["epoch_length"]
    assert not list(bundle.root.glob("former*"))
