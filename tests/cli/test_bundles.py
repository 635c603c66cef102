from __future__ import annotations

import pytest

from tests.cli.typed import refused, run_main

COMMANDS = ("check", "verify", "evaluate", "deploy", "package", "web")
OPTIONS = {"deploy": (), "package": (), "web": ("--output", "page")}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_on_a_bundle_refuse_what_is_none_in_one_line(capsys, tmp_path, command) -> None:
    data = OPTIONS.get(command, ("--data", tmp_path))
    line = refused(capsys, command, tmp_path, *data)
    assert f"{str(tmp_path)!r} is no bundle: it has no configs/metadata.json" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_on_a_bundle_take_it_by_name_too(capsys, tmp_path, command) -> None:
    data = OPTIONS.get(command, ("--data", tmp_path))
    assert "is no bundle" in refused(capsys, command, "--bundle", tmp_path, *data)


def test_commands_on_a_bundle_have_help(capsys) -> None:
    assert run_main("verify", "--help") == 0
    shown = capsys.readouterr()
    assert "Race a bundle's width against others on labeled cases" in shown.out + shown.err
