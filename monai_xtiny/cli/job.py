"""A command whose arguments are known, and running it."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from inspect import signature

from fire.decorators import SetParseFns

from monai_xtiny.system.errors import innermost, is_bad_input, plain_words


class Job:
    """A command that has not run.

    Fire finds unknown flags only after it has called the command, so commands return this.

    Args:
        run: what the command does; as ``work`` another command can do it as one of its steps.
        debug: whether tracebacks are shown.
        resumes: whether the same command goes on where it was interrupted.
    """

    def __init__(self, run: Callable[[], None], debug: bool, *, resumes: bool = False) -> None:
        self.work = run
        self._debug = debug
        self._resumes = resumes

    def __str__(self) -> str:
        return ""

    def run(self) -> None:
        """Run the command.

        Raises:
            SystemExit: with status 2 for bad input, said in one line; 1 for any other failure; 130
                after an interrupt.
        """
        warnings.filterwarnings("ignore")
        # MONAI and ignite log what is said here in one line.
        logging.disable(logging.CRITICAL)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # no name that a terminal cannot show is fatal
                stream.reconfigure(errors="backslashreplace")
        try:
            self.work()
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt:
            resumes = ": the same command goes on from what it has finished"
            print(f"interrupted{resumes if self._resumes else ''}", file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            if self._debug:
                traceback.print_exc()
            raise SystemExit(_report(error)) from None
        finally:
            logging.disable(logging.NOTSET)
            locks = sys.modules.get("monai_xtiny.bundled.locks")
            if locks is not None:  # a command that wrote nothing has not imported it
                locks.release_locks()


def _report(error: Exception) -> int:
    """Say what failed in one line on stderr; the exit status."""
    cause = innermost(error)
    text = " ".join(plain_words(cause).split()) or type(cause).__name__
    if isinstance(cause, OSError) and cause.strerror and cause.filename is not None:
        text = f"{os.fspath(cause.filename)!r}: {cause.strerror}"
    elif isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
        # Errors of files carry their names.
        text = f"standard output: {cause.strerror}"
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left cannot be written at exit
    if is_bad_input(cause):
        print(f"error: {text}", file=sys.stderr)
        return 2
    print(f"failed: {type(cause).__name__}: {text} (--debug shows where)", file=sys.stderr)
    return 1


def as_typed(command: Callable[..., Job]) -> Callable[..., Job]:
    """Let Fire take the text options of a command as they were typed.

    It would make numbers, tuples and dictionaries of some paths.
    """
    parameters = signature(command).parameters.values()
    texts = [item.name for item in parameters if str(item.annotation).startswith("str")]
    return SetParseFns(**dict.fromkeys(texts, str))(command)
