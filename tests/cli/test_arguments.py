from __future__ import annotations

import os
from inspect import signature

import pytest

from monai_xtiny.cli.arguments import read_words
from monai_xtiny.cli.commands import COMMANDS
from monai_xtiny.cli.job import Job
from tests.cli.typed import refused, run_main


def shrink(
    images: str, output: str | None = None, seed: int = 0, fast: bool = True, debug: bool = False
) -> Job:
    """Whatever."""
    return Job(lambda: None, debug)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["a"], ["--images=a"]),
        (["a", "b", "--seed", "3"], ["--seed=3", "--images=a", "--output=b"]),
        (["--output", "b", "a"], ["--output=b", "--images=a"]),
        (["--images=a=b"], ["--images=a=b"]),
        (["-i", "a", "-s=3"], ["--images=a", "--seed=3"]),
        (["--images", "a", "--debug", "--nofast"], None),
        (["a", "--fast", "False"], ["--fast=False", "--images=a"]),
        (["--output=--odd", "a"], ["--output=--odd", "--images=a"]),
    ],
    ids=lambda item: "_".join(item) if item else "flags",
)
def test_read_words_names_every_value(words, read) -> None:
    flags = ["--images=a", "--debug=True", "--fast=False"]
    assert read_words(words, shrink) == (read or flags)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "shrink needs --images"),
        (["--images"], "--images has no value: give --images VALUE"),
        (["--images", "--debug"], "--images has no value"),
        (["a", "--output"], "--output has no value"),
        (["--images="], "--images is empty"),
        (["a", "--output", ""], "--output is empty"),
        (["a", "--seed", "--debug"], "--seed has no value"),
        (["a", "--seed="], "--seed is '': give a whole number"),
        (["a", "--seed", "1e99"], "--seed is 1e+99: give a whole number"),
        (["a", "--seed", "-1"], "--seed is -1: give a number from 0"),
        (["a", "--fast", "no"], "--fast is 'no': give the flag alone"),
        (["a", "--debug", "no"], "--debug is 'no': give the flag alone"),
        (["a", "--sed", "1"], "shrink has no option '--sed': it has --images, --output, --seed"),
        (["a", "--seed", "1", "--seed=2"], "--seed is given twice"),
        (["a", "b", "1", "True", "False", "run"], "shrink takes no 'run'"),
        (["a", "--", "--interactive"], "shrink has no option '--'"),
        (["--images=~nobody-is-called-so/x"], "there is no such user"),
    ],
    ids=lambda item: "_".join(item) if isinstance(item, list) else "",
)
def test_read_words_refuses_what_it_would_have_to_guess(words, message) -> None:
    with pytest.raises(ValueError) as stop:
        read_words(words, shrink)
    assert str(stop.value).startswith(message) or message in str(stop.value)


@pytest.mark.parametrize("words", [["--output=~/b", "a"], ["--output", "~/b", "a"]])
def test_read_words_expands_the_home_folder_in_both_spellings(monkeypatch, words) -> None:
    monkeypatch.setenv("HOME", "/own")
    assert read_words(words, shrink) == ["--output=/own/b", "--images=a"]


@pytest.mark.parametrize("name", ["keys", "pop", "clear", "items", "__class__", "serch", "help"])
def test_only_commands_are_commands(capsys, name) -> None:
    assert f"no command {name!r}: give one of auto, search, plan" in refused(capsys, name)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["search", "--help"], ["search", "-h"]])
def test_help_is_shown_where_it_is_asked_for(capsys, words) -> None:
    assert run_main(*words) == 0
    assert "search" in capsys.readouterr().err


def test_an_option_without_its_value_writes_nothing(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--bundle has no value" in refused(capsys, "search", "--images", "x", "--bundle")
    assert "--output has no value" in refused(capsys, "plan", "--images", tmp_path, "--output")
    assert "--bundle is empty" in refused(capsys, "search", "--images", "x", "--bundle=")
    assert not os.listdir(tmp_path)


ODD = ("", "nan", "-1", "1e99", "True", "None", ".", "/nowhere/x", "a\nb", "~", "[]", "{1:2}", "#")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("value", ODD)
def test_odd_values_of_any_option_end_in_one_line(
    capsys, tmp_path, monkeypatch, command, value
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    parameters = signature(COMMANDS[command]).parameters
    needed = {
        name: "/nowhere/needed" for name, item in parameters.items() if item.default is item.empty
    }
    for name in parameters:
        if name == "debug":
            continue
        given = {**needed, name: value}
        refused(capsys, command, *(f"--{key}={text}" for key, text in given.items()))
        assert not os.listdir(tmp_path)
