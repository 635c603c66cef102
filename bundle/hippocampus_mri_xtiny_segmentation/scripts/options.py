# Written by monai_xtiny 0.2.0, which need not be installed.
"""What options may be, before anything is read."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.bundle import run as run_bundle

# What options may be: whole numbers from the least on, shares (and whether all is one), numbers
# from 0 on (and whether 0 is one), and switches.
_WHOLE = {
    **dict.fromkeys(("epochs", "val_interval", "batch_size", "patches_per_case"), 1),
    **dict.fromkeys(("sw_batch_size",), 1),
    **dict.fromkeys(("fold", "seed", "split_seed", "num_workers"), 0),
}
_SHARES = {"val_fraction": False, "overlap": False, "cache_rate": True}
_NUMBERS = {"learning_rate": False, "max_grad_norm": False, "weight_decay": True, "lr_power": True}
_SWITCHES = ("resume", "amp", "tensorboard")
# What --tracking adds to a config.
_TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a workflow that cannot be meant, and those that no config has.

    Args:
        options: by name.

    Raises:
        ValueError: what an option may be.
    """
    _check_names(sys.argv)
    for name, value in options.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _SWITCHES:
            is_right, allowed = isinstance(value, bool), "True or False"
        elif name in _WHOLE:
            least = _WHOLE[name]
            is_right = is_number and isinstance(value, int) and least <= value < 2**32
            allowed = f"a whole number, {least} or more"
        elif name in _SHARES:
            is_right = is_number and 0 <= value <= 1 and (value < 1 or _SHARES[name])
            allowed = f"a number from 0 to {'1' if _SHARES[name] else 'below 1'}"
        else:
            is_right = is_number and 0 <= value < math.inf and (value > 0 or _NUMBERS[name])
            allowed = f"a number, {'0 or more' if _NUMBERS[name] else 'more than 0'}"
        if not is_right:
            raise ValueError(f"--{name} is {value!r}: give {allowed}")
        if name == "num_workers" and value and multiprocessing.get_start_method() != "fork":
            raise ValueError(
                f"--num_workers is {value}: workers that are not forked cannot take this bundle's "
                "Python: give 0"
            )


def check_shared_memory() -> None:
    """Name what the locks of cached data sets and of workers need.

    Raises:
        OSError: there is no shared memory.
    """
    try:
        _ = [multiprocessing.Lock() for _ in range(64)]  # as a pool and its queues take
    except OSError as error:
        raise OSError(
            f"no shared memory ({error.strerror}): give /dev/shm some room, such as by docker's "
            "--shm-size 1g"
        ) from error


def check_paths(paths: Mapping[str, Any]) -> None:
    """Refuse paths that are not what was typed: MONAI makes numbers of digits, and ``::`` of ``#``.

    Args:
        paths: by the name of the option; ``None`` is not given.

    Raises:
        ValueError: with what to type.
    """
    for name, path in paths.items():
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ValueError(
                f"--{name} is {path!r}, which is no path: write ./NAME for a name of digits"
            )
        if isinstance(path, str) and "::" in path:
            raise ValueError(
                f"--{name} is {path!r}, and MONAI reads '#' as '::': rename the file or folder"
            )


def _check_names(arguments: Sequence[str]) -> None:
    """Refuse options of ``python -m monai.bundle run`` that its configs do not have.

    MONAI adds them to the config, where nothing reads them. What is not understood is let pass:
    paths of keys, configs that are no JSON, and options that others refer to.
    """
    if os.path.join("monai", "bundle") not in arguments[0] or arguments[1:2] != ["run"]:
        return
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    given: dict[str, str] = {}
    for number, argument in enumerate(arguments):
        match = re.fullmatch(r"--([^=#:]+)(?:=(.*))?", argument, re.DOTALL)
        if match is not None:
            # As Fire reads it.
            given[match[1].replace("-", "_")] = match[2] or "".join(
                arguments[number + 1 : number + 2]
            )
    text = given.get("config_file", "")
    try:
        files = ast.literal_eval(text) if text[:1] in ("[", "(") else text.split(",")
        contents = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
        configs = [key for content in contents for key in content]
    except (OSError, ValueError, SyntaxError, TypeError):
        return
    known = {*inspect.signature(run_bundle).parameters, *configs, "workflow_name"}
    known |= {*inspect.signature(ConfigWorkflow).parameters, "help"}
    known |= set(_TRACKING) if "tracking" in given else set()
    unknown = [
        name
        for name in given
        if name not in known
        and name.removeprefix("no") not in known
        and not any(f"@{name}" in argument for argument in arguments)
    ]
    if unknown:
        close = difflib.get_close_matches(unknown[0], configs, 1)
        hint = f" (--{close[0]}?)" if close else ""
        raise ValueError(
            f"no option --{unknown[0]} in {', '.join(map(str, files))}{hint}: its keys are the "
            "options"
        )
