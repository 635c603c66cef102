"""The commands by name, and reading what was typed. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import fire

from monai_xtiny.cli.arguments import read_words
from monai_xtiny.cli.auto import auto
from monai_xtiny.cli.bundles import check, deploy, evaluate, package, verify, web
from monai_xtiny.cli.job import Job
from monai_xtiny.cli.nnunet import COMMANDS_OF_NNUNET
from monai_xtiny.cli.segmenting import label_next, segment
from monai_xtiny.cli.stages import export, plan, report, score, search, select

COMMANDS = {
    command.__name__.replace("_", "-"): command
    for command in (
        auto, search, plan, score, select, export, report, check, evaluate, package, verify, deploy,
        segment, label_next, web,
    )
}  # fmt: skip
# Commands of two words, by the first.
GROUPS = {"nnunet": COMMANDS_OF_NNUNET}


def main(command: list[str] | None = None) -> None:
    """Run the command line: exit status 0 done, 2 bad input in one line, 1 anything else."""
    words = sys.argv[1:] if command is None else command
    try:
        # Fire would take the methods of a dictionary for commands, and a flag for every value.
        words = _read_command(words)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    job = fire.Fire({**COMMANDS, **GROUPS}, command=words, name="monai-xtiny", serialize=_hide_job)
    if isinstance(job, Job):
        job.run()


def _read_command(words: Sequence[str]) -> list[str]:
    """A command with its options, or a question for help."""
    name, *rest = words or ["--help"]
    if name in ("-h", "--help", "--"):
        return ["--help"]
    if name in GROUPS:
        return [name, *_read_in_group(name, rest)]
    if name not in COMMANDS:
        names = ", ".join([*COMMANDS, *GROUPS])
        raise ValueError(f"no command {name!r}: give one of {names}, or --help")
    return _read_options(name, rest, COMMANDS[name])


def _read_in_group(group: str, words: Sequence[str]) -> list[str]:
    """The second word of a command with its options, or a question for help."""
    name, *rest = words or ["--help"]
    if name in ("-h", "--help", "--"):
        return ["--help"]
    commands = GROUPS[group]
    if name not in commands:
        names = ", ".join(f"{group} {known}" for known in commands)
        raise ValueError(f"no command '{group} {name}': give one of {names}, or --help")
    return _read_options(name, rest, commands[name])


def _read_options(name: str, words: Sequence[str], command: Callable[..., Job]) -> list[str]:
    """A command's name with its options, or with a question for help."""
    if {"-h", "--help"} & set(words):
        return [name, "--help"]
    return [name, *read_words(words, command)]


def _hide_job(result: Any) -> Any:
    """Keep Fire from printing a job as if it were a result."""
    return None if isinstance(result, Job) else result
