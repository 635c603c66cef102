"""Weights of one fold or of several: where they lie, whether they fit, and their mean."""

from __future__ import annotations

import copy
import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .cases import name_some


def check_weights(file: str, network: nn.Module) -> None:
    """Refuse weights of another network.

    Args:
        file: a state dict, or one under ``model``.
        network: that the weights are for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or names or shapes differ.
    """
    read_matching(file, network)


def load_weights(file: str, network: nn.Module) -> None:
    """Put the weights of a file into a network.

    Args:
        file: as :func:`check_weights` takes it.
        network: on any device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: they are not the network's.
    """
    network.load_state_dict(read_matching(file, network))


class MeanNetwork(nn.Module):
    """Networks of one shape as one: the mean of their logits.

    Args:
        networks: from images (B, C, *spatial) to logits.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Mean logits of an image (B, C, *spatial)."""
        return torch.stack([network(image) for network in self.networks]).mean(dim=0)


def join_networks(network: nn.Module, files: Sequence[str]) -> nn.Module:
    """The network of several files of weights; of one file, the network itself, not loaded.

    Args:
        network: which is loaded with the weights of the first file.
        files: as :func:`check_weights` takes them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: weights are not the network's.
    """
    if len(files) == 1:
        return network
    networks = [network, *(copy.deepcopy(network) for _ in files[1:])]
    for member, file in zip(networks, files, strict=True):
        load_weights(file, member)
    return MeanNetwork(networks)


def check_trained(files: Sequence[str]) -> None:
    """Say that weights are those of an initialization, and refuse them beside trained folds.

    Args:
        files: as :func:`check_weights` takes them.

    Raises:
        ValueError: one is untrained, and other folds lie beside it.
    """
    for file in files:
        if not is_initialization(load_tensors(file, "train it, or give other weights")):
            continue
        root, ending = os.path.splitext(file)
        folds = sorted(glob.glob(f"{glob.escape(root)}_fold*{glob.escape(ending)}"))
        if folds:
            raise ValueError(
                f"{file} was not trained, but {name_some(map(os.path.basename, folds))} beside it: "
                "pass --folds '[1]', say, or --checkpoint FILE"
            )
        print(f"warning: {file} was not trained: its labels mean nothing", flush=True)


def fold_file(file: str, fold: int) -> str:
    """Where a fold keeps a file of its own.

    >>> fold_file("models/model.pt", 0), fold_file("models/model.pt", 2)
    ('models/model.pt', 'models/model_fold2.pt')
    """
    root, ending = os.path.splitext(file)
    return file if fold == 0 else f"{root}_fold{fold}{ending}"


def fold_files(file: str, folds: Sequence[int] | None, given: str) -> list[str]:
    """Files of several folds; without folds, the one that is given.

    Args:
        file: of fold 0.
        folds: their numbers.
        given: the file in use where there are no folds.

    Raises:
        ValueError: ``folds`` are no numbers of folds, or come with another file.
    """
    if folds is None:
        return [given]
    numbers: list[Any] = list(folds) if isinstance(folds, (list, tuple)) else [folds]
    if not numbers or len(set(numbers)) < len(numbers) or not all(map(_is_fold, numbers)):
        raise ValueError(f"--folds is {folds!r}: give numbers of folds, such as '[0, 1, 2]'")
    if given not in map(lambda fold: fold_file(file, fold), [0, *numbers]):
        raise ValueError(f"--folds {folds} and {given} are given: give one of them")
    return [fold_file(file, fold) for fold in numbers]


def split_beside(folder: str, root: str) -> str:
    """Where a training that writes its weights to a folder writes what it held out.

    Args:
        folder: of the weights.
        root: of the bundle, whose split lies among its configs: that of weights elsewhere, of a
            trial for example, must not take its place.
    """
    if os.path.realpath(folder) == os.path.realpath(os.path.join(root, "models")):
        return f"{root}/configs/datalist.json"
    return f"{folder}/datalist.json"


def splits_of(files: Sequence[str], model_file: str = "", split_file: str = "") -> list[str]:
    """What the trainings of weights held out, as far as a file says so.

    Args:
        files: of the weights, of this bundle or of any other.
        model_file: of the training that the configs describe.
        split_file: of the same training.

    Returns:
        Datalists that are there: beside the weights, or among the configs of their bundle.
    """
    found = []
    for file in map(os.path.realpath, files):
        folder, name = os.path.split(file)
        places = [split_file] if model_file and file == os.path.realpath(model_file) else []
        match = re.fullmatch(r"model(_fold[0-9]+)?\.pt", name)
        if match:
            split = f"datalist{match[1] or ''}.json"
            places += [f"{folder}/{split}", f"{os.path.dirname(folder)}/configs/{split}"]
        found += [place for place in places if os.path.isfile(place)][:1]
    return found


def fold_folder(folder: str, fold: int) -> str:
    """Folder of a fold's results: that of fold 0 holds those of the others."""
    return folder if fold == 0 else f"{folder}/fold{fold}"


def load_tensors(file: str, advice: str) -> dict[str, Any]:
    """What a file of PyTorch holds, which is a dictionary.

    Args:
        file: written by ``torch.save``.
        advice: what to do about a file that cannot be read.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"there is no file {file}: {advice}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:
        # torch advises to load with weights_only=False, which would run code of the file.
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged, or of another kind: {advice}")
    return content


def read_matching(file: str, network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a network in a file: a state dict, or one under ``model``."""
    content = load_tensors(file, "train it, or give other weights")
    state = content.get("model", content)
    if not isinstance(state, dict) or shapes_of(state) != shapes_of(network.state_dict()):
        raise ValueError(
            f"the weights in {file} are of another network than network_def: use models/model.pt "
            "of this bundle, or emit the bundle again"
        )
    return state


def is_initialization(state: Mapping[str, Any]) -> bool:
    """Whether norms and biases are the ones and zeros that they start as."""
    values = state.get("model", state).values()
    return all(set(value.tolist()) in ({0.0}, {1.0}) for value in values if value.ndim == 1)


def are_equal(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor] | None) -> bool:
    """Whether two state dicts of one network are the same, bit for bit."""
    return bool(state) and other is not None and all(torch.equal(state[k], other[k]) for k in state)


def _is_fold(value: Any) -> bool:
    """Whether a value is the number of a fold."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a state dict."""
    return {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
