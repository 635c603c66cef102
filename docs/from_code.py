"""Two pages of the book, written from the code: every command, and every public name."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

import monai_xtiny
from monai_xtiny.cli.commands import COMMANDS, GROUPS

# The layers of docs/architecture.md, first those that a search goes through.
LAYERS = {
    "data": "Cases and images",
    "plan": "Plan",
    "networks": "Networks",
    "scores": "Scores",
    "search": "Search",
    "selection": "Choice",
    "bundle": "Bundles",
    "bundled": "What travels in a bundle",
    "training": "Training and measuring",
    "deploy": "Deployment",
    "system": "Processes and devices",
}
# Nouns of docs/architecture.md that the package itself does not name.
NOUNS = {
    "Sample": "data.case",
    "Rung": "scores.table",
    "Budget": "selection.rule",
    "Evaluation": "bundle.results",
    "Training": "training.train",
    "Verification": "training.compare",
    "Deployment": "deploy.pipeline",
}


def commands_page() -> str:
    """All commands in Markdown: what each does, how it is typed, and a table of its options."""
    commands = dict(COMMANDS)
    for group, members in GROUPS.items():
        commands |= {f"{group} {name}": command for name, command in members.items()}
    return "\n".join(_command_section(name, command) for name, command in commands.items())


def _command_section(name: str, command: Callable[..., Any]) -> str:
    """One command."""
    text, meanings = _split_docstring(command)
    parameters = inspect.signature(command).parameters.values()
    needed = [item for item in parameters if item.default is inspect.Parameter.empty]
    words = " ".join(f"--{item.name} {item.name.upper()}" for item in needed)
    rest = " [OPTIONS]" if len(needed) < len(parameters) else ""
    lines = [
        f"## {name}",
        "",
        _code_options(text),
        "",
        "```text",
        f"python -m monai_xtiny {name} {words}{rest}",
        "```",
        "",
        "| option | value | default | meaning |",
        "|---|---|---|---|",
    ]
    for item in parameters:
        kind = str(item.annotation).split(" ", 1)[0]
        value = {"bool": "flag", "str": "text", "int": "whole number", "float": "number"}[kind]
        default = ""
        if item.default not in (inspect.Parameter.empty, None, False):
            default = f"`{'on' if item.default is True else item.default}`"
        meaning = _code_options(meanings[item.name]).replace("|", "\\|")
        lines.append(f"| `--{item.name}` | {value} | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def _split_docstring(command: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What is said of a command, and of each of its parameters."""
    text, _, arguments = (inspect.getdoc(command) or "").partition("\nArgs:\n")
    entries = re.split(r"^(\w+):", dedent(arguments), flags=re.MULTILINE)[1:]
    names, meanings = entries[::2], entries[1::2]
    return text.strip(), {
        name: " ".join(meaning.split()) for name, meaning in zip(names, meanings, strict=True)
    }


def _code_options(text: str) -> str:
    """Options, file names and placeholders of a docstring as code."""
    return re.sub(r"(?<![\w`-])(--\w+|[\w/]+\.(?:json|html|onnx|png|pt|ts|py)\b)", r"`\1`", text)


def api_page() -> str:
    """All public names by layer, for autodoc."""
    homes = {**monai_xtiny._HOMES, **NOUNS}
    lines: list[str] = []
    for layer, title in LAYERS.items():
        names = [name for name, home in homes.items() if home.split(".")[0] == layer]
        lines += [f"## {title}", "", "```{eval-rst}"]
        for name in names:
            lines += _directive(name, homes[name])
        lines += ["```", ""]
    return "\n".join(lines)


def _directive(name: str, home: str) -> Iterator[str]:
    """What tells autodoc to describe one name."""
    item = getattr(importlib.import_module(f"monai_xtiny.{home}"), name)
    shown = f"monai_xtiny.{name}" if name in monai_xtiny.__all__ else f"monai_xtiny.{home}.{name}"
    yield from ("", f".. auto{'class' if inspect.isclass(item) else 'function'}:: {shown}")
    if inspect.isclass(item):
        yield "   :members:"
