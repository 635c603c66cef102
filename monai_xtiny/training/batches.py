"""Batches that several trainings see: loaded and augmented once."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import Any, Protocol

from torch import Tensor

Batch = Mapping[str, Any]
# Of all batches that are kept.
MAX_BYTES = 2**30


class _Loader(Sized, Iterable[Batch], Protocol):
    """A data loader: batches of one pass over the cases."""


@dataclass
class _Kept:
    """Batches of a training, and how many its loader gives in a pass."""

    per_pass: int
    batches: list[dict[str, Any]] = field(default_factory=list)


class SharedBatches:
    """Batches of the first training with a seed, for the later ones with that seed.

    Trainings that differ in the network alone see the same crops, augmented alike: a race need not
    make them anew for each width.

    Args:
        num_batches: of a training.
        max_bytes: of memory for all batches that are kept; those of further seeds are loaded each
            time.
    """

    def __init__(self, num_batches: int, *, max_bytes: int = MAX_BYTES) -> None:
        self.num_batches = num_batches
        self.max_bytes = max_bytes
        self._kept: dict[int, _Kept] = {}

    def dataloader(self, seed: int, definition: Any) -> dict[str, Any]:
        """In place of the data loader of a config: nothing is loaded once the batches are kept.

        Args:
            seed: of the training.
            definition: of the data loader.
        """
        if seed in self._kept:
            return {"_target_": _Again, "kept": self._kept[seed]}
        return {"_target_": _First, "shared": self, "seed": seed, "loader": definition}

    def left(self) -> float:
        """Bytes of memory that further batches may have."""
        kept = (batch for item in self._kept.values() for batch in item.batches)
        return self.max_bytes - sum(map(_num_bytes, kept))

    def keep(self, seed: int, kept: _Kept) -> None:
        """Keep the batches of a training that has seen all of its own."""
        self._kept[seed] = kept


@dataclass
class _First:
    """The loader of a training whose batches are kept: pass after pass, as an engine draws them."""

    shared: SharedBatches
    seed: int
    loader: _Loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        kept, left = _Kept(len(self.loader)), self.shared.left()
        passes = _passes(self.loader)
        for number, batch in enumerate(islice(passes, self.shared.num_batches), start=1):
            left -= _num_bytes(batch)
            if left >= 0:
                kept.batches.append({name: _own(item) for name, item in batch.items()})
            else:
                kept.batches.clear()
            if number == self.shared.num_batches:
                # Its workers end now: those that the garbage collector finds may wait for seconds.
                passes.close()
                if len(kept.batches) == number:
                    self.shared.keep(self.seed, kept)
            yield batch


@dataclass
class _Again:
    """In place of a loader: batches that were kept, each a dictionary of its own."""

    kept: _Kept

    def __len__(self) -> int:
        return self.kept.per_pass

    def __iter__(self) -> Iterator[Batch]:
        return map(dict, self.kept.batches)


def _passes(loader: _Loader) -> Generator[Batch, None, None]:
    """Batches of one pass over the cases after another."""
    while len(loader) > 0:
        yield from loader


def _own(item: Any) -> Any:
    """A copy of what lies in memory that is shared with a worker, of which there is little."""
    return item.clone() if isinstance(item, Tensor) and item.is_shared() else item


def _num_bytes(batch: Batch) -> float:
    """Memory of the tensors of a batch; without end where it is no dictionary, to be kept."""
    if not isinstance(batch, Mapping):
        return inf
    return sum(item.nbytes for item in batch.values() if isinstance(item, Tensor))
