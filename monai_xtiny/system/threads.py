"""Work in threads that share the cores out among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int,
    *,
    threads_each: int | None = None,
) -> Iterator[Result]:
    """Results in the order of the items, from threads that share the cores out among them.

    The first error, in the order of the items, ends the work after what has begun.

    Args:
        work: on one item.
        items: to work on.
        num_workers: of them at a time.
        threads_each: intra-op threads of a worker; default: the cores are shared out.
    """
    num_threads = torch.get_num_threads()
    num_workers = max(1, min(num_workers, len(items)))
    if threads_each is None:
        threads_each = max(1, num_threads // num_workers)
    if num_workers == 1 and threads_each == num_threads:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(
        num_workers, initializer=torch.set_num_threads, initargs=(threads_each,)
    )
    try:
        for future in [pool.submit(work, item) for item in items]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # the workers' setting is the process's too
