"""Invented tables of alignments."""

from __future__ import annotations

import numpy as np

from monai_xtiny.scores.table import Rung, ScoreTable

WIDTHS = (64, 32, 16, 8, 4, 2, 1)
IMAGES = ("a", "b", "c")


def noisy_table(plan, means, spread: float, counts: dict[int, int], seed: int = 0) -> ScoreTable:
    """Alignments around a mean of each width up to 32; sensitivities of no interest."""
    rng = np.random.default_rng(seed)
    ladder = []
    for width in WIDTHS:
        rows = counts.get(width, 1)
        values = ()
        if width in means:
            noise = rng.normal(0, spread, (rows, 1)) + rng.normal(0, spread / 10, (rows, 3))
            values = tuple(map(tuple, (means[width] + noise).tolist()))
        ladder.append(Rung(width, (width,), width, width, 0.1, ((1.0,) * 3,), values))
    seeds = tuple(range(max(counts.values(), default=1)))
    return ScoreTable(plan, tuple(ladder), (0,), IMAGES, {"total": 5.0}, {}, seeds)


MEANS = {32: 0.5, 16: 0.4, 8: 0.3, 4: 0.22, 2: 0.1, 1: 0.05}
