"""Images kept in memory between planning, which measures them, and scoring."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from monai.transforms import Transform

from monai_xtiny.data.case import Case


class LoadOnced(Transform):
    """Dictionary transform: read each image from its files once, though two stages want it.

    Planning asks first, with :meth:`peek`, and what it reads of ``cases`` is kept; the call, as the
    first step of the preprocessing, takes it out again. So the memory is free once all images are
    preprocessed. An image that does not fit is read again.

    Args:
        transform: MONAI dictionary transform that reads: ``{"image": files}`` becomes
            ``{"image": tensor of shape (C, *spatial)}``.
        cases: images to keep; others are only passed on.
        max_gb: memory of all images kept, in gigabytes of 1e9 bytes, per process.

    Raises:
        ValueError: ``max_gb`` is negative.
    """

    def __init__(
        self,
        transform: Callable[[Mapping[Hashable, Any]], Any],
        cases: Sequence[Case] = (),
        *,
        max_gb: float = 1.0,
    ) -> None:
        if not max_gb >= 0:
            raise ValueError(f"max_gb is {max_gb}: give the gigabytes that may be kept, 0 for none")
        self.transform = transform
        self.max_bytes = int(max_gb * 1e9)
        self._wanted = {case.images for case in cases}
        self._kept: dict[tuple[str, ...], dict[Hashable, Any]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of the images that are kept now."""
        return sum(loaded["image"].nbytes for loaded in self._kept.values())

    def peek(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read an image and keep it for the call, if it is wanted and fits.

        The caller must not write into the tensor, which is the one that is kept.
        """
        files = tuple(data["image"])
        if files in self._kept:
            return dict(self._kept[files])
        loaded = self.transform(data)
        if files in self._wanted and self.num_bytes + loaded["image"].nbytes <= self.max_bytes:
            self._kept[files] = loaded
        return dict(loaded)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Give away the image if it is kept, and read it if not."""
        kept = self._kept.pop(tuple(data["image"]), None)
        return {**data, **(self.transform(data) if kept is None else kept)}
