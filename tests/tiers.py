"""Which tests are in the fast tier, and in which order workers take them.

The fast tier is what is marked neither ``search`` nor ``slow``. It stays fast because its tests
cannot do what takes long: where one starts a process, scores a network or runs a config, it fails
and says which mark it lacks. What uses :func:`made_once` is marked by that alone.
"""

from __future__ import annotations

import multiprocessing.process
import subprocess
from collections import defaultdict
from collections.abc import Sequence

import pytest
from monai.bundle import ConfigWorkflow

from monai_xtiny.search.scorer import Scorer

LONG = (
    (subprocess.Popen, "__init__"),
    (multiprocessing.process.BaseProcess, "start"),
    (Scorer, "score"),
    (ConfigWorkflow, "run"),
)
# A test's part of the time of all, roughly: to begin with the long ones and share them out.
WEIGHTS = {"slow": 8, "search": 2}


def mark_search(items: Sequence[pytest.Item]) -> None:
    """Mark the tests that use what a search, an export or a training has made."""
    for item in items:
        if "made_once" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.search)


def is_fast(item: pytest.Item) -> bool:
    """Whether the test is in the fast tier."""
    return not any(item.get_closest_marker(name) for name in WEIGHTS)


def weight(item: pytest.Item) -> int:
    """How long a test takes, in no particular unit; 0 in the fast tier."""
    return max(
        (value for name, value in WEIGHTS.items() if item.get_closest_marker(name)), default=0
    )


def share_out(items: Sequence[pytest.Item], num_workers: int) -> list[pytest.Item]:
    """The order that gives each worker as much to do, long tests first.

    ``--dist worksteal`` gives each worker an equal number of successive tests; those of a module
    stay together, since they may share its fixtures.
    """
    groups: dict[tuple[int, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        groups[weight(item), item.nodeid.partition("::")[0]].append(item)
    of_workers: list[list[pytest.Item]] = [[] for _ in range(num_workers)]
    fast: list[pytest.Item] = []
    for (value, _), group in sorted(groups.items(), key=lambda entry: -entry[0][0] * len(entry[1])):
        if value:
            min(of_workers, key=lambda own: sum(map(weight, own))).extend(group)
        else:
            fast += group
    size = -(-len(items) // num_workers)
    for own in of_workers:
        own.sort(key=weight, reverse=True)
        room = max(size - len(own), 0)
        own += fast[:room]
        del fast[:room]
    return [item for own in of_workers for item in own] + fast


def refuse_long(patch: pytest.MonkeyPatch) -> None:
    """Let everything fail that takes long."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(
            "this test scores a network, runs a config or starts a process, which none of the "
            "fast tier does: mark it with pytest.mark.search"
        )

    for holder, name in LONG:
        patch.setattr(holder, name, refuse)
