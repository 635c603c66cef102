"""One initialised network on the images of a sample, scored through an ignite engine."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import version

import torch
from ignite.engine import Engine

import monai_xtiny
from monai_xtiny.data import Sample
from monai_xtiny.handlers import AlignmentHandler, SensitivityHandler
from monai_xtiny.journal import Unit, UnitScore
from monai_xtiny.networks import build_network, width_ladder
from monai_xtiny.plan import UNetPlan
from monai_xtiny.representation import ReferenceFeatures, reference_features, sample_voxels

# Alignment: against that many networks of that width (or the widest there is), at that many voxels
# of each image. Wider networks have no more features at full resolution.
REFERENCE_WIDTH = 32
NUM_REFERENCES = 8
NUM_VOXELS = 2048
# Images of one batch do not act on each other, so batches change the time only: small images share
# the overhead of a call, while from 128 x 128 on batches leave the cache and take longer.
BATCH_VOXELS = 128 * 128


class Scorer:
    """Scores initialised networks on the images of a sample.

    Args:
        sample: preprocessed images.
        plan: of the full network.
        seeds: of the initialisations whose sensitivity is asked for; others are aligned alone. The
            first is that of the sampled voxels, and the base of the reference networks' seeds.
        device: that computes.
        align: measure the alignment too.
    """

    def __init__(
        self,
        sample: Sample,
        plan: UNetPlan,
        seeds: Sequence[int],
        device: torch.device,
        *,
        align: bool,
    ) -> None:
        self.sample = sample
        self.plan = plan
        self.seed = seeds[0]
        self.seeds = tuple(seeds)
        self.device = device
        self.align = align
        self._batches = _make_batches(sample.images)
        self._references: list[ReferenceFeatures] = []
        self.known: dict[Unit, UnitScore] = {}

    def subject(self) -> dict[str, str]:
        """What the scores depend on, for the journal."""
        digest = hashlib.sha256()
        for name, image in zip(self.sample.names, self.sample.images, strict=True):
            digest.update(name.encode())
            digest.update(image.contiguous().numpy().tobytes())
        plan = hashlib.sha256(repr(self.plan).encode())
        environment = describe_environment(self.device)
        return {
            "images": digest.hexdigest(),
            "plan": plan.hexdigest(),
            "seeds of sensitivity": " ".join(map(str, self.seeds)),
            "alignment": str(self.align),
            "version of monai_xtiny": environment["monai_xtiny"],
            "version of torch": environment["torch"],
            "device": environment["device"],
        }

    def score(self, width: int, seed: int) -> UnitScore:
        """Sensitivity, alignment or both of one initialised network on each image."""
        network = build_network(self.plan, width, seed=seed, device=self.device)
        engine = Engine(lambda engine, batch: None)
        # Ranks score different networks: nothing to gather inside a unit.
        handlers: list[SensitivityHandler] = []
        is_aligned = self.align and width <= max_aligned_width(self.plan)
        if seed in self.seeds:
            handlers.append(SensitivityHandler(network, gather=False))
        if is_aligned:
            handlers.append(AlignmentHandler(network, self.references(), gather=False))
        for handler in handlers:
            handler.attach(engine)
        try:
            state = engine.run(self._batches)
        except ValueError as error:
            for handler in handlers:
                values = getattr(engine.state, handler.name, None)
                finite = [True] if values is None else torch.isfinite(values).tolist()
                bad = [name for name, is_good in zip(self.sample.names, finite, strict=False)
                       if not is_good]  # fmt: skip
                if bad:
                    raise ValueError(
                        f"width {width}, seed {seed}: the {handler.name} is not finite on "
                        f"{', '.join(bad)}: check the intensities"
                    ) from error
            raise
        scores = {
            handler.name: tuple(getattr(state, handler.name).tolist()) for handler in handlers
        }
        return UnitScore(scores.get("sensitivity", ()), scores.get("alignment", ()))

    def references(self) -> list[ReferenceFeatures]:
        """Features of the wide networks on every image; computed when first needed."""
        if not self._references:
            width = min(REFERENCE_WIDTH, self.plan.features_per_stage[-1])
            networks = [
                build_network(self.plan, width, seed=seed, device=self.device)
                for seed in reference_seeds(self.seed)
            ]
            num_voxels = self.sample.images[0][0].numel()
            for index, image in enumerate(self.sample.images):
                voxels = sample_voxels(num_voxels, NUM_VOXELS, seed=self.seed + index)
                self._references.append(reference_features(networks, image.to(self.device), voxels))
        return self._references


def max_aligned_width(plan: UNetPlan) -> int:
    """The smallest width that leaves the features at full resolution uncapped.

    >>> max_aligned_width(UNetPlan(3, 1, 2, (1, 1, 1), (64, 64, 64), ((3, 3, 3),) * 5,
    ...     ((1, 1, 1),) + ((2, 2, 2),) * 4, (32, 64, 128, 256, 320)))
    40
    """
    return min(width for width in width_ladder(plan) if width >= plan.features_per_stage[0])


def reference_seeds(seed: int) -> tuple[int, ...]:
    """Seeds of the wide networks, apart from those that are scored.

    >>> reference_seeds(369)[:2]
    (1000369, 1000370)
    """
    return tuple(seed + 1_000_000 + index for index in range(NUM_REFERENCES))


def describe_environment(device: torch.device) -> dict[str, str]:
    """Versions and device that the scores depend on."""
    packages = {
        name: version(name) for name in ("torch", "monai", "pytorch-ignite", "nibabel", "numpy")
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "monai_xtiny": monai_xtiny.__version__,
        **packages,
        "python": platform.python_version(),
        "device": name,
    }


def _make_batches(images: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Images in batches of at most ``BATCH_VOXELS`` voxels, or one by one if they are larger.

    A list and no DataLoader, which would draw its seed from the global generator.
    """
    size = max(1, BATCH_VOXELS // images[0][0].numel())
    return [
        {"image": torch.stack(list(images[start : start + size]))}
        for start in range(0, len(images), size)
    ]
