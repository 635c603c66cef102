from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from monai_xtiny.cli import auto as module
from monai_xtiny.cli.stages import find_labels
from monai_xtiny.training import train, verify
from monai_xtiny.training.pace import Pace
from monai_xtiny.training.train import Training
from tests.cli.typed import refused, run_main
from tests.exports import exported
from tests.training.test_verify import FakeTrainings, labeled

__all__ = ["labeled"]

pytestmark = pytest.mark.search


def steps(printed: str) -> list[str]:
    """The steps that were announced, with what was found of them."""
    return [line[3:] for line in printed.splitlines() if line.startswith("== ")]


@pytest.mark.slow
def test_auto_goes_on_where_it_was_stopped_and_skips_what_is_done(
    capsys, monkeypatch, labeled, tmp_path
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(module, "BENCHMARK_SECONDS", float("inf"))  # exported, not timed
    bundle = tmp_path / "out" / "x_segmentation"
    command = ("auto", "--data", labeled, "--bundle", bundle, "--max_minutes", 2, "--epochs", 2)
    levels = {f"w{2**power}": 0.8 for power in range(10)}
    monkeypatch.setattr(verify, "train_bundle", FakeTrainings(**levels))

    with monkeypatch.context() as patch:

        def stop(*_: object) -> Training:
            raise KeyboardInterrupt

        patch.setattr(train, "run_training", stop)
        assert run_main(*command) == 130
    first = capsys.readouterr()
    assert first.out.startswith("steps: search 0.2, race 0.4, training 1.1, evaluation and")
    assert steps(first.out) == ["search and race", "training"]
    assert "the same command goes on" in first.err

    with monkeypatch.context() as patch:

        def fill(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device", str(bundle / "docs" / "evaluation.json"))

        patch.setattr("monai_xtiny.training.evaluate.evaluate_held_out", fill)
        assert run_main(*command) != 0
    second = capsys.readouterr()
    assert [step.partition(":")[0] for step in steps(second.out)] == [
        "search", "training", "evaluation",
    ]  # fmt: skip
    assert "epoch 2 of 2: Dice" in second.out
    assert len(second.err.strip().splitlines()) == 1 and "No space left" in second.err

    assert run_main(*command) == 0
    third = capsys.readouterr().out
    assert "training: done already" in third and "mean Dice" in third
    assert (bundle / "models" / "model.onnx").is_file() and "not timed for want of time" in third
    assert f"the report: {bundle}/docs/report.html" in third
    assert "Dice" in (bundle / "docs" / "report.html").read_text()
    assert not list(bundle.parent.glob(".x_*"))
    assert json.loads((bundle / "eval" / "auto.json").read_text())["epochs"] == 2

    assert run_main(*command) == 0
    last = steps(capsys.readouterr().out)
    assert [step.split(" ")[0] for step in last] == [
        "search:", "training:", "evaluation:", "deployment:",
    ]  # fmt: skip

    # Another number of epochs is a wish, and a case more is not covered by what is done.
    assert run_main(*command[:-1], 3) == 0
    longer = capsys.readouterr().out
    assert "epoch 3 of 3: Dice" in longer and "evaluation: done already" not in longer
    for folder, name in (("imagesTr", "{}_0000.png"), ("labelsTr", "{}.png")):
        shutil.copy(labeled / folder / name.format("c0"), labeled / folder / name.format("new"))
    line = refused(capsys, *command[:-1], 3)
    assert "was trained on other cases: 1 of" in line and "(new.png): give another --bundle" in line


def test_auto_goes_on_with_a_race_of_the_same_options_alone(
    capsys, monkeypatch, labeled, tmp_path
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    fake = FakeTrainings(**{f"w{2**power}": 0.8 for power in range(10)})
    fake.on_training = stop
    monkeypatch.setattr(verify, "train_bundle", fake)
    command = ("auto", "--data", labeled, "--bundle", tmp_path / "x_segmentation")
    assert run_main(*command) == 130
    line = refused(capsys, *command, "--group", "c(.)")
    assert "was begun with another --group (None): go on with the same command, or" in line
    assert run_main(*command) == 130
    assert "going on with its race" in capsys.readouterr().out


@pytest.mark.slow
def test_auto_takes_as_many_epochs_as_fit_the_time(capsys, monkeypatch, labeled, tmp_path) -> None:
    levels = {f"w{2**power}": 0.8 for power in range(10)}
    monkeypatch.setattr(verify, "train_bundle", FakeTrainings(**levels))
    monkeypatch.setattr("monai_xtiny.training.pace.measure_pace", lambda *_: Pace(1.0, 25.0, 0.0))
    command = ("auto", "--data", labeled, "--bundle", tmp_path / "x_segmentation")
    assert "an epoch takes 25 s after 1 s" in refused(capsys, *command, "--max_minutes", 0.5)
    asked = []
    monkeypatch.setattr(train, "run_training", lambda _, options, __: asked.append(options))
    run_main(*command, "--max_minutes", 3)
    out = capsys.readouterr().out
    assert "an epoch takes 25 s: " in out and "search: done already" in out
    # Of 180 s 27 are kept, and a second is over before the first epoch.
    assert asked[0]["epochs"] in (4, 5, 6) and asked[0]["val_interval"] <= 5


def test_auto_ends_after_the_search_without_labels(capsys, labeled, tmp_path) -> None:
    shutil.rmtree(labeled / "labelsTr")
    bundle = tmp_path / "x_segmentation"
    command = ("auto", "--data", labeled / "imagesTr", "--bundle", bundle)
    assert "--group is of trainings, and" in refused(capsys, *command, "--group", "c(.)")
    for expected in ("selected width", "search: done already"):
        assert run_main(*command) == 0
        out = capsys.readouterr().out
        assert expected in out and "has no labels: label some images" in out
    assert not (bundle / "eval").exists()
    # Another data set is not what the bundle was searched on; a case more is.
    first, second, *rest = sorted((labeled / "imagesTr").iterdir())
    shutil.copy(first, first.with_name("new_0000.png"))
    assert run_main(*command) == 0
    capsys.readouterr()
    for image in (first, second, *rest):
        image.unlink()
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    line = refused(capsys, *command)
    assert "was searched on other images, " in line and "give another --bundle" in line
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def test_auto_runs_no_code_of_a_bundle_that_somebody_else_wrote(
    capsys, selection, labeled, tmp_path
) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    train_json = bundle / "configs" / "train.json"
    config = json.loads(train_json.read_text())
    config["initialize"].insert(0, f"$open({str(tmp_path / 'pwned')!r}, 'w')")
    train_json.write_text(json.dumps(config))
    line = refused(capsys, "auto", "--data", labeled, "--bundle", bundle, "--epochs", 1)
    assert "would run code that this version of monai_xtiny does not write" in line
    assert not (tmp_path / "pwned").exists()


def test_auto_refuses_other_options_than_the_bundle_was_made_with(
    capsys, selection, labeled, tmp_path
) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    asked = {"--group": None, "--max_parameters": 900}
    (bundle / "eval").mkdir()
    (bundle / module.PACE_FILE).write_text(json.dumps({"epochs": 1, "asked": asked}))
    command = ("auto", "--data", labeled, "--bundle", bundle)
    line = refused(capsys, *command, "--max_parameters", 900, "--group", "c(.)")
    assert "--group is c(.), and " in line and "was made with None: give that" in line
    line = refused(capsys, *command)
    assert "--max_parameters is None, and " in line and "was made with 900" in line


@pytest.mark.parametrize(
    "option, value, former",
    [
        ("--max_parameters", 900, "None"),
        ("--label_names", "background,nucleus", "background,class 1"),
        ("--spatial_dims", 3, "2"),
    ],
)
@pytest.mark.parametrize("part", ["", "imagesTr"])
def test_auto_refuses_other_options_than_the_bundle_was_searched_with(
    capsys, selection, labeled, tmp_path, option, value, former, part
) -> None:
    # Of the search alone, before auto.
    names = [path.name for path in sorted((labeled / "imagesTr").iterdir())]
    images = tuple(names[: len(selection.table.images)])
    searched = replace(selection, table=replace(selection.table, images=images))
    bundle = exported(searched, tmp_path / "x_segmentation")
    if part:
        shutil.rmtree(labeled / "labelsTr")
    command = ("auto", "--data", labeled / part, "--bundle", bundle, option, value)
    line = refused(capsys, *command)
    assert f"{option} is {value}, and " in line and f"was made with {former}: give that" in line
    assert not (bundle / "eval").exists()


def test_auto_goes_on_with_a_training_that_was_stopped(
    capsys, monkeypatch, selection, labeled, tmp_path
) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    (bundle / "eval" / "checkpoints").mkdir(parents=True)
    asked = []
    monkeypatch.setattr(train, "run_training", lambda _, options, __: asked.append(options))
    monkeypatch.setattr(module, "_evaluate", lambda *_: None)
    monkeypatch.setattr(module, "_deploy", lambda *_: None)
    for epochs, is_over in ((3, False), (5, True)):
        trainer = {"iteration": 2 * epochs, "epoch_length": 2, "max_epochs": 5}
        state = bundle / "eval" / "checkpoints" / "training_state.pt"
        torch.save({"trainer": trainer}, state)
        assert run_main("auto", "--data", labeled, "--bundle", bundle) == 0
        assert ("training: done already" in capsys.readouterr().out) is is_over
        assert len(asked) == 1 and "asked" not in asked[0]
        (bundle / module.PACE_FILE).unlink(missing_ok=True)


@pytest.mark.parametrize("content", [{"channel_names": {"0": "x"}}, {"training": []}])
def test_labels_are_found_beside_a_dataset_json_that_lists_no_cases(labeled, content) -> None:
    listed = labeled / "dataset.json"
    listed.write_text(json.dumps(content))
    is_listed = "training" in content
    expected = {"datalist": str(listed)} if is_listed else {"data": str(labeled)}
    assert find_labels(str(listed)) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max_minutes", "0"], "--max_minutes is 0: give minutes above 0"),
        (["--max_minutes", "soon"], "--max_minutes is 'soon'"),
        (["--epochs", "0"], "--epochs is 0: give at least 1"),
        (["--images", "x"], "auto has no option '--images'"),
    ],
    ids=["no time", "no number", "no epochs", "another command's option"],
)
def test_auto_refuses_bad_input_before_the_search(
    capsys, labeled, tmp_path, options, message
) -> None:
    bundle = tmp_path / "x_segmentation"
    line = refused(capsys, "auto", "--data", labeled, "--bundle", bundle, *options)
    assert message in line
    assert not bundle.exists()


def test_auto_refuses_an_empty_folder_and_torchrun(capsys, monkeypatch, tmp_path) -> None:
    bundle = tmp_path / "x_segmentation"
    (tmp_path / "empty").mkdir()
    assert "no images in" in refused(
        capsys, "auto", "--data", tmp_path / "empty", "--bundle", bundle
    )
    line = refused(capsys, "auto", "--data", tmp_path / "none", "--bundle", bundle)
    assert line.endswith("none': check --data")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "auto runs in one process" in refused(
        capsys, "auto", "--data", tmp_path / "empty", "--bundle", bundle
    )
    assert not bundle.exists()


def test_a_result_counts_while_it_is_newer_than_the_weights(tmp_path) -> None:
    for name in ("models/model.pt", "docs/evaluation.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    assert module._is_newer(str(tmp_path), "docs/evaluation.json")
    assert not module._is_newer(str(tmp_path), "docs/deploy.json")
    now = os.stat(tmp_path / "docs").st_mtime_ns + 10**9
    os.utime(tmp_path / "models" / "model.pt", ns=(now, now))
    assert not module._is_newer(str(tmp_path), "docs/evaluation.json")
