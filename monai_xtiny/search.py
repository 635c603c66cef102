"""The (width, seed) units of a search, each scored through an ignite engine."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, cast

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from tqdm import tqdm

import monai_xtiny
from monai_xtiny.data import Sample
from monai_xtiny.handlers import SensitivityHandler
from monai_xtiny.networks import build_network, cap_features, network_cost, width_ladder
from monai_xtiny.plan import UNetPlan

MIN_LADDER = 5
# Images of one batch do not act on each other, so batches change the time only: small images share
# the overhead of a call, while from 128 x 128 on batches leave the cache and take longer.
BATCH_VOXELS = 128 * 128


@dataclass(frozen=True)
class Rung:
    """One width of the ladder with its cost and scores.

    Args:
        max_features: the width cap.
        features_per_stage: channels of each stage under the cap.
        num_parameters: of the DynUNet.
        num_parameters_nnunet: of nnU-Net's network of these widths, biases included.
        gmacs: multiply-accumulates of one forward pass on one patch, in 1e9.
        sensitivity: one row a seed, one value an image.
    """

    max_features: int
    features_per_stage: tuple[int, ...]
    num_parameters: int
    num_parameters_nnunet: int
    gmacs: float
    sensitivity: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ScoreTable:
    """Every score of a search.

    Args:
        plan: of the full network.
        ladder: one rung a width, widest first.
        seeds: of the initialisations, in the order of the rungs' rows.
        images: names of the images, in the order of the rows' values.
        seconds: wall time of loading, scoring and both.
        environment: versions, and the device that computed the scores.
    """

    plan: UNetPlan
    ladder: tuple[Rung, ...]
    seeds: tuple[int, ...]
    images: tuple[str, ...]
    seconds: Mapping[str, float]
    environment: Mapping[str, str]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width caps, widest first."""
        return tuple(rung.max_features for rung in self.ladder)

    def curve(self, seed_index: int) -> tuple[float, ...]:
        """Mean sensitivity over the images at each width, for one initialisation."""
        rows = [rung.sensitivity[seed_index] for rung in self.ladder]
        return tuple(sum(row) / len(row) for row in rows)


def select_device(device: str = "auto") -> torch.device:
    """Resolve a device name; ``auto`` takes CUDA where there is one, a GPU a rank of a machine.

    Raises:
        ValueError: the name is unknown, or the machine has no such device.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", idist.get_local_rank() if idist.get_world_size() > 1 else 0)
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {device!r} is unknown or not available here: give auto, cpu or cuda"
        ) from error
    return resolved


def run_search(
    sample: Sample,
    plan: UNetPlan,
    *,
    seeds: Sequence[int] = (369,),
    device: str = "auto",
    progress: bool = True,
) -> ScoreTable:
    """Score every width of the plan's ladder at initialisation.

    A unit is one width with one seed, reset before each width as published; its network sees the
    images through an ignite engine. Under ``torchrun`` the units are shared out over
    the ranks, and every rank returns the whole table.

    Args:
        sample: preprocessed images, each of shape (in_channels, *patch_size).
        plan: of the full network.
        seeds: of the initialisations.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        progress: show a bar on stderr.

    Returns:
        The table of scores.

    Raises:
        ValueError: there are no images or seeds, an image does not fit the plan, the ladder has
            fewer than 5 widths, the device is unknown, or a score is not finite.
    """
    check_ladder(plan)
    _check_sample(sample, plan, seeds)
    target = select_device(device)
    start = time.perf_counter()
    widths = width_ladder(plan)
    units = [(width, seed) for width in widths for seed in seeds]
    mine = units[idist.get_rank() :: idist.get_world_size()]
    batches = _make_batches(sample.images)
    scored: dict[tuple[int, int], tuple[float, ...]] = {}
    show = progress and idist.get_rank() == 0
    for width, seed in tqdm(
        mine, desc="scoring", unit="network", disable=None if show else True, leave=False
    ):
        scored[width, seed] = _score_unit(batches, plan, width, seed, target, sample.names)
    if idist.get_world_size() > 1:
        parts = cast(list[dict[tuple[int, int], tuple[float, ...]]], idist.all_gather(scored))
        for part in parts:
            scored.update(part)
    ladder = tuple(
        _make_rung(plan, width, tuple(scored[width, seed] for seed in seeds)) for width in widths
    )
    seconds = time.perf_counter() - start
    return ScoreTable(
        plan=plan,
        ladder=ladder,
        seeds=tuple(seeds),
        images=sample.names,
        seconds={
            "load": sample.seconds,
            "score": seconds,
            "total": sample.seconds + seconds,
        },
        environment=_environment(target),
    )


def check_ladder(plan: UNetPlan) -> None:
    """Refuse a plan whose ladder is too short to choose from.

    Raises:
        ValueError: the ladder has fewer than 5 widths.
    """
    widths = width_ladder(plan)
    if len(widths) < MIN_LADDER:
        raise ValueError(
            f"the ladder {', '.join(map(str, widths))} has {len(widths)} widths, and a choice "
            f"needs {MIN_LADDER}: the full network must have at least 16 features"
        )


def table_to_dict(table: ScoreTable) -> dict[str, Any]:
    """A table in JSON's types, as ``docs/search.json`` holds it."""
    return {
        "plan": asdict(table.plan),
        "images": list(table.images),
        "seeds": list(table.seeds),
        "ladder": [asdict(rung) for rung in table.ladder],
        "seconds": dict(table.seconds),
        "environment": dict(table.environment),
    }


def table_from_dict(content: Mapping[str, Any]) -> ScoreTable:
    """The table that :func:`table_to_dict` wrote.

    Raises:
        ValueError: a field is missing or has another form.
    """
    try:
        ladder = tuple(
            Rung(
                max_features=int(row["max_features"]),
                features_per_stage=tuple(int(width) for width in row["features_per_stage"]),
                num_parameters=int(row["num_parameters"]),
                num_parameters_nnunet=int(row["num_parameters_nnunet"]),
                gmacs=float(row["gmacs"]),
                sensitivity=tuple(tuple(map(float, values)) for values in row["sensitivity"]),
            )
            for row in content["ladder"]
        )
        table = ScoreTable(
            plan=UNetPlan(**content["plan"]),
            ladder=ladder,
            seeds=tuple(int(seed) for seed in content["seeds"]),
            images=tuple(str(name) for name in content["images"]),
            seconds=dict(content["seconds"]),
            environment=dict(content["environment"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"no table of scores ({error}): write it with monai_xtiny score"
        ) from error
    shape = (len(table.seeds), len(table.images))
    for rung in table.ladder:
        if [len(row) for row in rung.sensitivity] != [shape[1]] * shape[0] or 0 in shape:
            raise ValueError(
                f"width {rung.max_features} lacks scores: expected {shape[0]} seeds of "
                f"{shape[1]} images"
            )
    return table


def _make_batches(images: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Images in batches of at most ``BATCH_VOXELS`` voxels, or one by one if they are larger.

    A list and no DataLoader, which would draw its seed from the global generator.
    """
    size = max(1, BATCH_VOXELS // images[0][0].numel())
    return [
        {"image": torch.stack(list(images[start : start + size]))}
        for start in range(0, len(images), size)
    ]


def _check_sample(sample: Sample, plan: UNetPlan, seeds: Sequence[int]) -> None:
    """Refuse a sample that does not fit the plan, before any network is made."""
    if not sample.images or not seeds:
        raise ValueError(
            f"{len(sample.images)} images and {len(seeds)} seeds: give at least one of each"
        )
    expected = (plan.in_channels, *plan.patch_size)
    for name, image in zip(sample.names, sample.images, strict=True):
        if tuple(image.shape) != expected:
            raise ValueError(
                f"{name}: shape {tuple(image.shape)} after the transforms, the plan needs "
                f"{expected}: crop and pad to the patch size"
            )


def _score_unit(
    batches: Sequence[Mapping[str, torch.Tensor]],
    plan: UNetPlan,
    width: int,
    seed: int,
    device: torch.device,
    names: Sequence[str],
) -> tuple[float, ...]:
    """Sensitivity of one initialised network on each image."""
    network = build_network(plan, width, seed=seed, device=device)
    engine = Engine(lambda engine, batch: None)
    # Ranks score different networks: nothing to gather inside a unit.
    handler = SensitivityHandler(network, gather=False)
    handler.attach(engine)
    try:
        state = engine.run(batches)
    except ValueError as error:
        values = getattr(engine.state, handler.name, None)
        if values is None:
            raise
        bad = [name for name, value in zip(names, values, strict=True) if not torch.isfinite(value)]
        raise ValueError(
            f"width {width}, seed {seed}: the sensitivity is not finite on {', '.join(bad)}: "
            "check the intensities"
        ) from error
    return tuple(getattr(state, handler.name).tolist())


def _make_rung(plan: UNetPlan, width: int, sensitivity: tuple[tuple[float, ...], ...]) -> Rung:
    """Join scores and costs of a width."""
    cost = network_cost(plan, width)
    return Rung(
        max_features=width,
        features_per_stage=cap_features(plan, width),
        num_parameters=cost.num_parameters,
        num_parameters_nnunet=cost.num_parameters_nnunet,
        gmacs=cost.gmacs,
        sensitivity=sensitivity,
    )


def _environment(device: torch.device) -> dict[str, str]:
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
