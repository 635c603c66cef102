"""What is on the disk at each write of a command, as if the command were killed there.

Python's audit hooks see every file that Python opens for writing, every rename, removal and new
folder. A forked process runs the command; before each of these it copies the folder aside, unless
nothing has changed since but what lies in temporary folders. A kill leaves just that: nothing of
the process goes on. Each state is then put back, looked at, and the command run again. A file that
is written in place could be half written, and is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from monai_xtiny.cli.commands import main
from tests.processes import run_module

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Journals and curves grow at their end, and are read without a half record there.
_GROWS = re.compile(r"[.]jsonl$|/events[.]out[.]")
# Temporary folders, by their random names; and those of the trainings of a race.
_TEMPORARY = re.compile(r"[.](part|tmp)[.][^/.]+|[.](race)/trainings/[^/]+_segmentation")


def kill_everywhere(
    root: Path,
    work: Callable[[], object] | Sequence[str],
    check: Callable[[], object],
    *,
    tidy: bool = True,
    every: int = 1,
) -> int:
    """Assert something of every state that a kill of some work can leave.

    Args:
        root: folder that the work writes to, as it is before; then as it is after.
        work: what is killed; run again it must succeed. Words of the command line are run by
            :mod:`tests.processes`, for what cannot run in a process forked from the test.
        check: asserts that nothing was lost, after a kill and after the work was run again.
        tidy: whether the work, run again, leaves nothing of the killed process.
        every: after how many of the states long work is run again.

    Returns:
        The number of states.
    """
    states = root.with_name(root.name + ".states")
    states.mkdir()
    _run(work, Watch(root, states))
    found = sorted(states.iterdir())
    for number, state in enumerate(found):
        shutil.rmtree(root)
        state.rename(root)
        check()
        if (number + 1) % every:
            continue
        _run(work)
        check()
        left = [path for path in root.rglob(".*") if re.search("[.](part|tmp|lock)", path.name)]
        assert not (tidy and left), f"{state.name}: {left}"
    return len(found)


class Watch:
    """An audit hook that copies a folder aside before each write to it.

    Args:
        root: the folder.
        states: where the copies go.
    """

    def __init__(self, root: Path, states: Path) -> None:
        self.root, self.states = root, states
        self.former: dict[str, tuple[int, object]] = {}
        self.is_busy = False
        self.pid = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        is_write = event in _CHANGES or event == "ctypes.dlsym"
        if event == "open":
            is_write = isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
        if is_write and not self.is_busy and os.getpid() == self.pid:  # no worker that was forked
            self.is_busy = True  # the copying is no work
            self.look()
            self.is_busy = False

    def look(self) -> None:
        """Copy the folder aside if it has changed; refuse what was written in place."""
        former, self.former = self.former, {}
        for path in self.root.rglob("*"):
            state = path.lstat()
            name = str(path.relative_to(self.root))
            if not _TEMPORARY.search(name):
                is_file = path.is_file()
                self.former[name] = state.st_ino, is_file and (state.st_size, state.st_mtime_ns)
            elif not _TEMPORARY.search(str(path.parent)):
                self.former[_TEMPORARY.sub(r"[.]\1", name)] = 0, False
        for name, (inode, content) in self.former.items():
            before = former.get(name, (inode, content))
            is_whole = before[0] != inode or before[1] == content
            assert is_whole or _GROWS.search(name), f"{name} was written in place"
        if self.former != former:
            number = len(list(self.states.iterdir()))
            shutil.copytree(self.root, self.states / f"{number:03d}", symlinks=True)


def _run(work: Callable[[], object] | Sequence[str], watch: Watch | None = None) -> None:
    """Do the work in a process of its own."""
    if not callable(work):
        folders = [] if watch is None else [str(watch.root), str(watch.states)]
        here = Path(__file__).parents[1]
        done = run_module("tests.kills", *folders, "--", *work, cwd=here)
        assert done.returncode == 0, done.stderr
        return
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _do(work, watch)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _do(work: Callable[[], object], watch: Watch | None) -> None:
    """Do the work while it is watched."""
    if watch is not None:
        watch.look()
        watch.pid = os.getpid()
        sys.addaudithook(watch)
    work()
    if watch is not None:
        watch.look()


if __name__ == "__main__":
    end = sys.argv.index("--")
    folders, words = map(Path, sys.argv[1:end]), sys.argv[end + 1 :]
    _do(lambda: main(words), Watch(*folders) if end > 1 else None)
