"""What was typed on the command line, checked, and handed to MONAI's config parser."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from monai_xtiny.system.config_text import PlainPath, check_config_text
from monai_xtiny.system.startup import import_monai

# What every report holds, and no other page.
_REPORT_MARK = '<meta name="generator" content="monai_xtiny">'


@dataclass(frozen=True)
class SearchOptions:
    """What was typed for a search, as Fire gives it: not yet checked.

    Args:
        images: what ``--images`` takes.
        bundle: folder to write; ``None`` for a search that only scores.
        label_names: with commas; default: read from the data set.
        spatial_dims: 2 or 3.
        method: rule that chooses.
        num_images: a number or ``all``; default: the config's own.
        seed: of the first initialization and of the draw of images.
        num_seeds: initializations of every width.
        max_seconds: wall time after which no more initializations are asked for, s.
        max_memory_gb: what the process may hold, 1e9 bytes.
        max_parameters: of the chosen network; likewise the next two.
        max_gmacs: of one forward pass on one patch, in 1e9 multiply-accumulates.
        max_latency_ms: of one forward pass on one patch, ms.
        plans: nnU-Net's plans file.
        configuration: of the plans file.
        device: auto, cpu, cuda, ...
        overwrite: replace a bundle.
        unit_test: write the Model Zoo's unit test.
        torchscript: write models/model.ts.
    """

    images: str
    bundle: str | None
    label_names: str | None
    spatial_dims: int | None
    method: str
    num_images: str | None
    seed: int
    num_seeds: int | None
    max_seconds: float | None
    max_memory_gb: float | None
    plans: str | None
    configuration: str
    device: str
    max_parameters: int | None = None
    max_gmacs: float | None = None
    max_latency_ms: float | None = None
    overwrite: bool = False
    unit_test: bool = False
    torchscript: bool = False

    def overrides(self) -> dict[str, Any]:
        """Keys of configs/search.json, checked, as objects that MONAI's parser takes as they are.

        It evaluates strings that start with ``$``, but looks into neither paths nor tuples: paths
        are :class:`PlainPath`, so that nothing typed here can be evaluated, and the trailing slash
        of a glob stays.

        Raises:
            ValueError: a value is out of its range, or would be evaluated.
        """
        from monai_xtiny.data.labels import read_label_names
        from monai_xtiny.selection.limits import checked_limits

        self._check()
        names = self.label_names
        # Without a number the config's own default stands; likewise with the limits.
        scored = (
            {} if self.num_images is None else {"num_images": parse_num_images(self.num_images)}
        )
        return {
            **scored,
            **checked_limits(self.max_parameters, self.max_gmacs, self.max_latency_ms),
            "images": PlainPath(self.images),
            "bundle": None if self.bundle is None else PlainPath(self.bundle),
            "label_names": None if names is None else read_label_names(self.images, names),
            "spatial_dims": self.spatial_dims,
            "method": self.method,
            "seed": parse_int("seed", self.seed),
            "num_seeds": None if self.num_seeds is None else parse_int("num_seeds", self.num_seeds),
            "max_seconds": self.max_seconds,
            "max_memory_gb": self.max_memory_gb,
            "plans": None if self.plans is None else PlainPath(self.plans),
            "configuration": self.configuration,
            "device": self.device,
            "overwrite": parse_flag("overwrite", self.overwrite),
            "unit_test": parse_flag("unit_test", self.unit_test),
            "torchscript": parse_flag("torchscript", self.torchscript),
        }

    def _check(self) -> None:
        """Refuse values out of their range."""
        for name in ("method", "configuration", "device"):
            check_config_text(getattr(self, name), f"--{name}")
        if self.spatial_dims not in (None, 2, 3) or isinstance(self.spatial_dims, float):
            raise ValueError(f"--spatial_dims is {self.spatial_dims!r}: give 2 or 3")
        check_limits(self.num_seeds, self.max_seconds, self.max_memory_gb)


def check_limits(num_seeds: Any, max_seconds: Any, max_memory_gb: Any) -> None:
    """Refuse limits of a search out of their range; ``None`` is none.

    Raises:
        ValueError: the message names the option.
    """
    if num_seeds is not None:
        import_monai()
        from monai_xtiny.search.run import MAX_SEEDS

        if not 1 <= parse_int("num_seeds", num_seeds) <= MAX_SEEDS:
            raise ValueError(f"--num_seeds is {num_seeds}: give at least 1 and at most {MAX_SEEDS}")
    if max_seconds is not None:
        parse_number("max_seconds", max_seconds, "seconds")
    memory = max_memory_gb
    if memory is not None and parse_number("max_memory_gb", memory, "gigabytes") <= 0:
        raise ValueError(f"--max_memory_gb is {memory}: give more than 0")


def make_workflow(
    config_file: str | None, overrides: Mapping[str, Any], init_id: str = "initialize"
) -> Any:
    """The search config with its overrides, initialized: the same that monai.bundle runs.

    Args:
        config_file: a changed copy of configs/search.json; default: the packaged one.
        overrides: of :meth:`SearchOptions.overrides`.
        init_id: key of the config that is evaluated.

    Returns:
        A ``monai.bundle.ConfigWorkflow``, not yet run.

    Raises:
        FileNotFoundError: there is no such config file.
        ValueError: it is from before there were limits, and one is given.
    """
    import_monai()
    from monai.bundle import ConfigWorkflow

    from monai_xtiny.bundle.templates import configs_dir

    path = Path(config_file) if config_file is not None else configs_dir() / "search.json"
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r}: check --config_file")
    for name in ("max_parameters", "max_gmacs", "max_latency_ms"):
        if overrides.get(name) is not None and f"@{name}" not in path.read_text("utf-8"):
            raise ValueError(
                f"{str(path)!r} makes nothing of --{name}: change a newer copy of "
                "configs/search.json, or leave the limit out"
            )
    files = [str(path)]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # under torchrun
        files.append(str(configs_dir() / "multi_gpu_search.json"))
    workflow = ConfigWorkflow(
        config_file=files,
        meta_file=str(configs_dir() / "metadata.json"),
        logging_file=False,
        init_id=init_id,
        workflow_type=None,
        **overrides,
    )
    workflow.initialize()
    return workflow


def parse_num_images(value: str) -> int | None:
    """A number of images, or ``None`` for 'all'.

    >>> parse_num_images("8"), parse_num_images("all")
    (8, None)
    """
    return None if value == "all" else parse_int("num_images", value)


def parse_int(name: str, value: Any) -> int:
    """A whole number, or an error that names the option."""
    try:
        number = int(str(value))
    except ValueError:
        raise ValueError(f"--{name} is {value!r}: give a whole number") from None
    if not 0 <= number < 2**63:
        raise ValueError(f"--{name} is {value}: give a number from 0 to 2**63 - 1")
    return number


def parse_number(name: str, value: Any, unit: str) -> float:
    """A number from 0 on, or an error that names the option; a flag without a number is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < inf:
        raise ValueError(f"--{name} is {value!r}: give a number of {unit}")
    return value


def parse_flag(name: str, value: Any) -> bool:
    """A flag that is given or not; '--overwrite no' must not overwrite."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"--{name} is {value!r}: give the flag alone, True or False")


def check_output(output: str | None) -> None:
    """Refuse, before any work, a file that cannot be written, or that no command has written.

    Raises:
        FileNotFoundError: there is no such folder, or no file but something else.
        FileExistsError: the file may be an image, or a data set's ``dataset.json``.
    """
    if output is None:
        return
    path = Path(output)
    if (path.exists() and not path.is_file()) or not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {output!r}: give a file in a folder that exists")
    if path.is_file() and not _is_result(path):
        raise FileExistsError(
            f"{output!r} exists, and is no earlier result: give another --output, or remove it"
        )


def _is_result(path: Path) -> bool:
    """Whether a file looks like one that a command has written: JSON, zip, curve or report."""
    with suppress(ValueError, OSError):
        if path.stat().st_size == 0:
            return True
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("/configs/metadata.json") for name in archive.namelist())
        if path.read_bytes()[:4] == b"\x89PNG":
            from PIL import Image

            with Image.open(path) as image:  # as matplotlib writes it, and no camera
                return image.mode == "RGBA" and round(image.info.get("dpi", (0, 0))[0]) == 120
        if path.suffix.lower() in (".html", ".htm"):
            return _REPORT_MARK in path.read_text("utf-8")
        return not {"plan", "patch_size", "opset"}.isdisjoint(json.loads(path.read_text("utf-8")))
    return False


def emit(text: str, output: str | None) -> None:
    """Print, or write to a file by way of a temporary sibling."""
    if output is None:
        print(text)
        return
    from monai_xtiny.system.files import write_text

    check_output(output)
    write_text(output, text + "\n")
