"""The words after a command, read in one way: each option once, with its value, by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

from fire.parser import DefaultParseValue

from monai_xtiny.cli.options import parse_flag, parse_int

# Options that are files or folders, in which the shell expands ~ only where no = stands before it.
_PATHS = {
    "images", "bundle", "data", "datalist", "plans", "output", "work", "config_file", "scores",
    "search", "checkpoint", "labeled",
}  # fmt: skip


def read_words(words: Sequence[str], command: Callable[..., Any]) -> list[str]:
    """What was typed after a command as ``--name=value``, which Fire takes as it is.

    Args:
        words: options with ``--name value`` or ``--name=value``, flags, and values alone, which
            belong to the first parameters that are not named.
        command: whose parameters they are.

    Returns:
        One word per option; ``~`` at the beginning of a path is the home folder.

    Raises:
        ValueError: an option is unknown, is given twice, lacks a value or has one of another kind,
            or a parameter is missing.

    >>> def shrink(images: str, seed: int = 0, fast: bool = True) -> None: ...
    >>> read_words(["--seed", "7", "a.png", "--nofast"], shrink)
    ['--seed=7', '--fast=False', '--images=a.png']
    """
    parameters = signature(command).parameters
    values: dict[str, str] = {}
    alone: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not _is_option(word):
            alone.append(word)
            continue
        typed, has_value, value = word.lstrip("-").partition("=")
        name, says = _find_parameter(word, typed.replace("-", "_"), command)
        if name in values:
            raise ValueError(f"--{name} is given twice: give it once")
        if not has_value:
            value = _next_value(rest, name, says=says, kind=_kind(parameters[name]))
        values[name] = value
    for name in parameters:
        if alone and name not in values:
            values[name] = alone.pop(0)
    if alone:
        raise ValueError(f"{_typed(command)} takes no {alone[0]!r}: --help shows its options")
    for name, parameter in parameters.items():
        if name not in values and parameter.default is Parameter.empty:
            raise ValueError(f"{_typed(command)} needs --{name}: --help shows what it is")
    return [f"--{name}={_as_read(name, v, _kind(parameters[name]))}" for name, v in values.items()]


def _typed(command: Callable[..., Any]) -> str:
    """The name of a command as it is typed."""
    return command.__name__.replace("_", "-")


def _is_option(word: str) -> bool:
    """Whether a word is the name of an option, and no value: ``-1`` is one."""
    return re.match("--|-[a-zA-Z]", word) is not None


def _kind(parameter: Parameter) -> str:
    """The first type of a parameter: str, int, float or bool."""
    return str(parameter.annotation).split(" ", 1)[0]


def _find_parameter(word: str, typed: str, command: Callable[..., Any]) -> tuple[str, bool]:
    """The parameter that an option names, and what the option alone says of a flag."""
    parameters = signature(command).parameters
    if typed in parameters:
        return typed, True
    if typed.startswith("no") and typed[2:] in parameters and "=" not in word:
        if _kind(parameters[typed[2:]]) == "bool":
            return typed[2:], False
    short = [name for name in parameters if name[0] == typed]
    if len(short) == 1:
        return short[0], True
    raise ValueError(
        f"{_typed(command)} has no option {word.partition('=')[0]!r}: it has "
        + ", ".join(f"--{name}" for name in short or parameters)
    )


def _next_value(rest: list[str], name: str, *, says: bool, kind: str) -> str:
    """The value of an option without ``=``: the next word, or what a flag alone says."""
    if not says:
        return "False"
    if rest and not _is_option(rest[0]):
        return rest.pop(0)
    if kind == "bool":
        return "True"
    raise ValueError(f"--{name} has no value: give --{name} VALUE")


def _as_read(name: str, value: str, kind: str) -> str:
    """The value of an option, of its kind."""
    if kind == "bool":
        return str(parse_flag(name, {"True": True, "False": False}.get(value, value)))
    if kind == "int":
        return str(parse_int(name, DefaultParseValue(value)))
    if not value:
        raise ValueError(f"--{name} is empty: give a value, or leave it out")
    if name in _PATHS and value.startswith("~"):
        value = os.path.expanduser(value)
        if value.startswith("~"):
            raise ValueError(f"--{name} is {value!r}, and there is no such user: give ./{value}")
    return value
