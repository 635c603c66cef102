"""Work in a process that is forked from the test: it shares all imports, and may die."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def forked(work: Callable[[], object]) -> Any:
    """What the work returns in a process of its own, which ends without cleaning up.

    Returns:
        The result, or the exception.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _work_and_tell(work, writing)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return pickle.loads(told)


@contextmanager
def held_elsewhere(work: Callable[[], object]) -> Iterator[None]:
    """A process that has done the work, and is killed at the end of the block."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _work_and_tell(work, writing)
        os.close(writing)
        signal.pause()
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = pickle.loads(stream.read())
    try:
        assert not isinstance(told, BaseException), told
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _work_and_tell(work: Callable[[], object], writing: int) -> None:
    """Do the work, and write what came of it."""
    try:
        result = pickle.dumps(work())
    except BaseException as error:
        result = pickle.dumps(error)
    os.write(writing, result)
