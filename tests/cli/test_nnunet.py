from __future__ import annotations

import json
import re

import pytest

from tests.cli.typed import refused, run_main
from tests.nnunet.planned import write_planned


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    return tmp_path


@pytest.mark.search
def test_configure_prints_the_ladder_the_choice_and_the_next_commands(preprocessed, capsys) -> None:
    folder = write_planned(preprocessed)
    assert run_main("nnunet", "configure", "4", "--method", "paper") == 0
    said = capsys.readouterr().out
    added = list(json.loads((folder / "nnUNetPlans.json").read_text())["configurations"])[-1]
    assert said.startswith("Dataset004_Hippocampus, configuration 2d: 3 preprocessed cases")
    assert "<- selected" in said
    assert f"configuration {added} added to '{folder / 'nnUNetPlans.json'}'" in said
    assert f"\n  nnUNetv2_train 4 {added} 0\n  nnUNetv2_predict -d 4 -c {added} -f 0 -i" in said


def test_configure_needs_the_environment_variable(preprocessed, capsys, monkeypatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    line = refused(capsys, "nnunet", "configure", "--dataset_id", "4")
    assert "nnUNet_preprocessed is not set: set it to" in line


@pytest.mark.parametrize(
    "options, message",
    [
        (["5"], "no data set 5 in nnUNet_preprocessed"),
        (["four"], "--dataset_id is 'four': give a number from 0 to 999"),
        (["4", "--configuration", "3d_lowres"], "there is no configuration '3d_lowres', only 2d"),
        (["4", "--plans_identifier", "mine"], "no such file: .*mine.json.*: plan with nnU-Net v2"),
        (["4", "--method", "guess"], "unknown method 'guess'"),
        (["4", "--num_images", "0"], "num_images is 0: give at least 1"),
        (["4", "--num_seeds", "0"], "--num_seeds is 0: give at least 1"),
        (["4", "--max_seconds", "-1"], "--max_seconds is -1: give a number of seconds"),
        (["4", "--device", "tpu"], "tpu"),
        ([], "configure needs --dataset_id"),
        (["4", "--images", "x"], "configure has no option '--images'"),
        (["4", "--max_gmacs", "0"], "--max_gmacs is 0: give a number above 0"),
    ],
    ids=[
        "no such data set", "no id", "no such configuration", "no such plans", "method",
        "no images", "no seeds", "seconds", "device", "nothing", "another command's option",
        "no budget",
    ],
)  # fmt: skip
def test_configure_refuses_in_one_line_and_writes_nothing(
    preprocessed, capsys, options, message
) -> None:
    folder = write_planned(preprocessed)
    before = sorted(folder.iterdir()), (folder / "nnUNetPlans.json").read_bytes()
    assert re.search(message, refused(capsys, "nnunet", "configure", *options))
    assert (sorted(folder.iterdir()), (folder / "nnUNetPlans.json").read_bytes()) == before


def test_configure_refuses_torchrun(preprocessed, capsys, monkeypatch) -> None:
    write_planned(preprocessed)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "runs in one process" in refused(capsys, "nnunet", "configure", "4")


@pytest.mark.parametrize("words", [["nnunet", "train"], ["nnunet", "configur", "4"]])
def test_an_unknown_second_word_names_those_there_are(capsys, words) -> None:
    line = refused(capsys, *words)
    assert f"no command '{' '.join(words[:2])}': give one of nnunet configure" in line


@pytest.mark.parametrize("words", [["nnunet"], ["nnunet", "--help"]], ids=["alone", "help"])
def test_the_group_alone_shows_its_commands(capsys, words) -> None:
    assert run_main(*words) == 0
    assert "configure" in "".join(capsys.readouterr())


def test_help_of_a_command_of_two_words_shows_its_options(capsys) -> None:
    assert run_main("nnunet", "configure", "--help") == 0
    assert "plans_identifier" in "".join(capsys.readouterr())
