"""What was typed on the command line, checked, and handed to MONAI's config parser."""

from __future__ import annotations

import os
from math import inf
from pathlib import Path
from typing import Any


def search_overrides(
    *,
    images: str,
    bundle: str,
    label_names: str | None,
    spatial_dims: int | None,
    method: str,
    num_images: str | None,
    seed: int,
    num_seeds: int | None,
    max_seconds: float | None,
    max_memory_gb: float | None,
    plans: str | None,
    configuration: str,
    device: str,
    overwrite: bool = False,
    unit_test: bool = False,
    torchscript: bool = False,
) -> dict[str, Any]:
    """Arguments as objects that MONAI's config parser takes as they are.

    It evaluates strings that start with ``$``, but looks into neither paths nor tuples.

    Args:
        images: what ``--images`` takes.
        bundle: folder to write; nothing is written there by a search that only scores.
        label_names: with commas; read from the data set without.
        spatial_dims: 2 or 3.
        method: rule that chooses.
        num_images: a number or ``all``; the config's own without.
        seed: of the first initialisation and of the draw of images.
        num_seeds: initialisations of every width.
        max_seconds: wall time after which no more initialisations are asked for, s.
        max_memory_gb: what the process may hold, 1e9 bytes.
        plans: nnU-Net's plans file.
        configuration: of the plans file.
        device: auto, cpu, cuda, ...
        overwrite: replace a bundle.
        unit_test: write the Model Zoo's unit test.
        torchscript: write models/model.ts.

    Raises:
        ValueError: a value is out of its range, or would be evaluated.
    """
    from monai_xtiny.data.labels import read_label_names
    from monai_xtiny.system.config_text import PlainPath, check_config_text

    for name, value in (("method", method), ("configuration", configuration), ("device", device)):
        check_config_text(value, f"--{name}")
    if spatial_dims is not None and (
        not isinstance(spatial_dims, int) or spatial_dims not in (2, 3)
    ):
        raise ValueError(f"--spatial_dims is {spatial_dims!r}: give 2 or 3")
    if num_seeds is not None:
        num_seeds = parse_int("num_seeds", num_seeds)
        if num_seeds < 1:
            raise ValueError(f"--num_seeds is {num_seeds}: give at least 1")
    if max_seconds is not None:
        parse_number("max_seconds", max_seconds, "seconds")
    if max_memory_gb is not None and parse_number("max_memory_gb", max_memory_gb, "gigabytes") <= 0:
        raise ValueError(f"--max_memory_gb is {max_memory_gb}: give more than 0")
    # Paths in, so that nothing typed here can be evaluated; the trailing slash of a glob stays.
    # Without a number the config's own default stands.
    scored = {} if num_images is None else {"num_images": parse_num_images(num_images)}
    return {
        **scored,
        "images": PlainPath(images),
        "bundle": PlainPath(bundle),
        "label_names": None if label_names is None else read_label_names(images, label_names),
        "spatial_dims": spatial_dims,
        "method": method,
        "seed": parse_int("seed", seed),
        "num_seeds": num_seeds,
        "max_seconds": max_seconds,
        "max_memory_gb": max_memory_gb,
        "plans": None if plans is None else PlainPath(plans),
        "configuration": configuration,
        "device": device,
        "overwrite": parse_flag("overwrite", overwrite),
        "unit_test": parse_flag("unit_test", unit_test),
        "torchscript": parse_flag("torchscript", torchscript),
    }


def make_workflow(
    config_file: str | None, overrides: dict[str, Any], init_id: str = "initialize"
) -> Any:
    """The search config with its overrides, initialised: the same that monai.bundle runs.

    Args:
        config_file: a changed copy of configs/search.json; the packaged one without.
        overrides: of :func:`search_overrides`.
        init_id: key of the config that is evaluated.

    Returns:
        A ``monai.bundle.ConfigWorkflow``, not yet run.

    Raises:
        FileNotFoundError: there is no such config file.
    """
    from monai.bundle import ConfigWorkflow

    from monai_xtiny.bundle.templates import configs_dir

    path = Path(config_file) if config_file is not None else configs_dir() / "search.json"
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r}: check --config_file")
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
    """Refuse, before any work, a file that cannot be written."""
    if output is None:
        return
    path = Path(output)
    if (path.exists() and not path.is_file()) or not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {output!r}: give a file in a folder that exists")


def emit(text: str, output: str | None) -> None:
    """Print, or write to a file by way of a temporary sibling."""
    if output is None:
        print(text)
        return
    from monai_xtiny.system.files import write_text

    check_output(output)
    write_text(output, text + "\n")
