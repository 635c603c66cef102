"""What a user types, in this process."""

from __future__ import annotations

from monai_xtiny.cli.commands import main


def run_main(*arguments: object) -> int:
    """Exit status of the command line, in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(capsys, *arguments: object) -> str:
    """The one line on stderr of a command that must end with status 2."""
    capsys.readouterr()
    assert run_main(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
