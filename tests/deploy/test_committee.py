from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy.committee import Committee, trained_files
from monai_xtiny.deploy.engines import TorchEngine
from monai_xtiny.nnunet.importing import import_checkpoint
from tests.conftest import write_png
from tests.deploy.deployed import write_bundle
from tests.nnunet.models import write_model
from tests.shared import made_once

pytestmark = pytest.mark.search


@pytest.fixture
def pictures(tmp_path) -> Bundle:
    """A bundle that was trained without folds, to be changed."""
    made = made_once("committee", lambda folder: write_bundle("pictures", folder))
    name = "pictures_segmentation"
    return Bundle.open(shutil.copytree(made / name, tmp_path / name))


def add_fold(bundle: Bundle, number: int, scale: float) -> None:
    """Weights of another fold: those of fold 0 by a factor."""
    weights = {name: scale * value for name, value in bundle.weights().items()}
    torch.save(weights, bundle.path(f"models/model_fold{number}.pt"))


def set_mirroring(bundle: Bundle, share: float) -> None:
    path = bundle.path("configs/train.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "mirror_prob": share}))


def probabilities_of(bundle: Bundle, file: Path, axes: tuple[int, ...] = ()) -> np.ndarray:
    """Softmax of the bundle's own inference of an image that is flipped, flipped back."""
    engine = TorchEngine(bundle, device="cpu")
    network = engine._network
    if axes:
        places = [axis + 2 for axis in axes]
        engine._network = lambda images: network(images.flip(places)).flip(places)
    logits = next(engine([str(file)]).slabs).astype(np.float64)
    shares = np.exp(logits - logits.max(0))
    return shares / shares.sum(0)


def test_a_committee_of_one_is_its_softmax(pictures, tmp_path) -> None:
    set_mirroring(pictures, 0)
    image = write_png(tmp_path / "a.png", (32, 48))
    committee = Committee(pictures, device="cpu")
    verdict = committee([str(image)])
    assert committee.kind == "softmax"
    np.testing.assert_allclose(verdict.probabilities, probabilities_of(pictures, image), atol=1e-5)
    assert verdict.image.shape == (1, 48, 32) and torch.equal(verdict.affine, torch.eye(4))
    assert verdict.features.shape == (8,)


def test_a_committee_of_flips_is_the_mean_of_their_softmaxes(pictures, tmp_path) -> None:
    set_mirroring(pictures, 0.5)
    image = write_png(tmp_path / "a.png", (32, 48))
    committee = Committee(pictures, device="cpu")
    flips = [(), (0,), (1,), (0, 1)]
    expected = np.mean([probabilities_of(pictures, image, axes) for axes in flips], axis=0)
    assert committee.kind == "flips"
    verdict = committee([str(image)])
    np.testing.assert_allclose(verdict.probabilities, expected, atol=1e-5)
    mirrored = write_png(tmp_path / "b.png", (32, 48))
    from PIL import Image, ImageOps

    with Image.open(image) as opened:
        ImageOps.mirror(opened).save(mirrored)
    torch.testing.assert_close(committee([str(mirrored)]).features, verdict.features)


def test_a_committee_of_folds_is_the_mean_of_their_softmaxes(pictures, tmp_path) -> None:
    set_mirroring(pictures, 0.5)
    image = write_png(tmp_path / "a.png", (32, 48))
    for number, scale in ((2, 0.5), (10, 0.25)):
        add_fold(pictures, number, scale)
    committee = Committee(pictures, device="cpu")
    assert (committee.kind, len(committee.files)) == ("folds", 3)
    verdict = committee([str(image)])
    expected = np.zeros(verdict.probabilities.shape)
    for file in committee.files:
        shutil.copy(file, tmp_path / "kept.pt")
        shutil.copy(tmp_path / "kept.pt", pictures.path("models/model.pt"))
        expected += probabilities_of(pictures, image) / 3
    np.testing.assert_allclose(verdict.probabilities, expected, atol=1e-5)
    assert verdict.features.shape == (24,)


def test_a_committee_refuses_another_network_and_a_damaged_config_at_once(pictures) -> None:
    train = pictures.path("configs/train.json")
    kept = train.read_text()
    train.write_text(kept[:50])
    with pytest.raises(ValueError, match="train.json"):
        Committee(pictures, device="cpu")
    train.write_text(kept)
    path = pictures.path("configs/inference.json")
    network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    path.write_text(json.dumps({**json.loads(path.read_text()), "network_def": network}))
    torch.save(torch.nn.Conv2d(1, 2, 1).state_dict(), pictures.path("models/model.pt"))
    with pytest.raises(TypeError, match="the network is Conv2d, whose encoder is unknown"):
        Committee(pictures, device="cpu")


def test_a_committee_says_that_the_inferer_of_an_imported_bundle_flips(tmp_path) -> None:
    file = write_model(tmp_path / "x.pth")
    bundle = Bundle.open(import_checkpoint(file, tmp_path / "x_segmentation"))
    committee = Committee(bundle, device="cpu")
    assert committee.kind == "softmax"
    assert committee.description == (
        "the softmax of one network and its flips, whose logits are averaged"
    )


def test_trained_files_are_those_of_folds_that_were_trained(pictures) -> None:
    first, other = str(pictures.path("models/model.pt")), pictures.path("models/model_fold1.pt")
    assert trained_files(pictures) == [first]
    pictures.path("models/model_fold1.txt").touch()
    shutil.copy(first, other)
    assert trained_files(pictures) == [first, str(other)]
    weights = pictures.weights()
    plain = {
        name: value if value.ndim > 1 else torch.full_like(value, float("weight" in name))
        for name, value in weights.items()
    }
    torch.save(plain, first)
    assert trained_files(pictures) == [str(other)]
    other.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="model_fold1.pt is damaged"):
        trained_files(pictures)
