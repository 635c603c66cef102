from __future__ import annotations

import io
import sys

import pytest

from monai_xtiny.bundled.locks import hold_lock
from monai_xtiny.cli.job import Job, as_typed
from monai_xtiny.plan import planner as plan
from tests.cli.typed import run_main


def test_debug_shows_the_traceback(capsys, tmp_path) -> None:
    command = ("search", "--images", tmp_path, "--bundle", tmp_path / "x_segmentation")
    assert run_main(*command, "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["search", "plan"])
def test_an_interrupted_command_says_whether_it_goes_on(
    capsys, tmp_path, png_folder, monkeypatch, command
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "plan_images", interrupt)
    options = ["--bundle", tmp_path / "x_segmentation"] if command == "search" else []
    assert run_main(command, "--images", png_folder, *options) == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted")
    assert ("goes on from what it has finished" in error) == (command == "search")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("bad\ninput"), 2, "error: bad input"),
        (RuntimeError("odd"), 1, "failed: RuntimeError: odd (--debug shows where)"),
        (OSError(28, "No space left on device", "/x"), 2, "error: '/x': No space left on device"),
        (KeyError("k"), 1, "failed: KeyError: 'k' (--debug shows where)"),
    ],
    ids=["input", "unforeseen", "system", "key"],
)
def test_job_says_what_failed_in_one_line(capsys, error, status, said) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        Job(fail, debug=False).run()
    assert stop.value.code == status
    assert capsys.readouterr().err == said + "\n"


def test_as_typed_keeps_the_text_of_text_options_alone() -> None:
    @as_typed
    def command(path: str, name: str | None = None, count: int = 1) -> Job:
        return Job(lambda: None, debug=False)

    found = command.FIRE_METADATA["FIRE_PARSE_FNS"]["named"]
    assert found == {"path": str, "name": str}


def test_run_shows_names_that_the_terminal_has_no_letters_for(monkeypatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    Job(lambda: print("é_segmentation"), debug=False).run()
    assert buffer.getvalue() == b"\\xe9_segmentation\n"


def test_run_says_that_the_output_is_full(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    with pytest.raises(SystemExit, match="2"):
        Job(lambda: print("done"), debug=False).run()
    assert capsys.readouterr().err == "error: standard output: No space left on device\n"


def test_run_works_without_streams(monkeypatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit, match="2"):
        Job(lambda: int("no"), debug=False).run()


def test_run_releases_what_a_command_has_locked(tmp_path) -> None:
    Job(lambda: hold_lock(tmp_path / "x") or None, debug=False).run()
    assert not list(tmp_path.iterdir())
