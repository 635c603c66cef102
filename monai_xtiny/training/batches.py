"""Batches that several trainings see: loaded and augmented once."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any, Protocol

from torch import Tensor

# Of all batches that are kept.
MAX_BYTES = 2**30


class _Loader(Sized, Iterable[Mapping[str, Any]], Protocol):
    """A data loader: batches of one pass over the cases."""


class SharedBatches:
    """Batches of the first training with a seed, for the later ones with that seed.

    Trainings that differ in the network alone see the same crops, augmented alike: a race need not
    make them anew for each width.

    Args:
        num_batches: of a training.
        max_bytes: of all batches that are kept; those of further seeds are loaded each time.
    """

    def __init__(self, num_batches: int, *, max_bytes: int = MAX_BYTES) -> None:
        self.num_batches = num_batches
        self.max_bytes = max_bytes
        self._kept: dict[int, list[dict[str, Any]]] = {}

    def dataloader(self, seed: int, definition: Any) -> dict[str, Any]:
        """In place of the data loader of a config: nothing is loaded once the batches are kept.

        Args:
            seed: of the training.
            definition: of the data loader.
        """
        if seed in self._kept:
            return {"_target_": self._later, "seed": seed}
        return {"_target_": self._first, "seed": seed, "loader": definition}

    def _first(self, seed: int, loader: _Loader) -> Iterator[Mapping[str, Any]]:
        """Batches of a loader, pass after pass; they are kept once the training has seen all."""
        left = self.max_bytes - sum(map(_num_bytes, sum(self._kept.values(), [])))
        batches: list[dict[str, Any]] = []
        passes = _passes(loader)
        for number, batch in enumerate(islice(passes, self.num_batches), start=1):
            left -= _num_bytes(batch)
            if left >= 0:
                batches.append(dict(batch))
            if number == self.num_batches:
                # Its workers end now: those that the garbage collector finds may wait for seconds.
                passes.close()
                if len(batches) == number:
                    self._kept[seed] = batches
            yield batch

    def _later(self, seed: int) -> Iterator[Mapping[str, Any]]:
        """Batches that were kept, each a dictionary of its own."""
        return map(dict, self._kept[seed])


def _passes(loader: _Loader) -> Generator[Mapping[str, Any], None, None]:
    """Batches of one pass over the cases after another, as an engine draws them."""
    while len(loader) > 0:
        yield from loader


def _num_bytes(batch: Mapping[str, Any]) -> int:
    """Memory of the tensors of a batch."""
    return sum(item.nbytes for item in batch.values() if isinstance(item, Tensor))
