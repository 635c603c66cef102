from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monai_xtiny.bundle.folder import SEARCH, Bundle, data_kind, missing_file
from monai_xtiny.bundle.writer import check_destination
from monai_xtiny.networks.dynunet import build_network
from tests.exports import exported

REQUIRED = (
    "configs/metadata.json", "configs/train.json", "configs/inference.json",
    "configs/evaluate.json", "docs/search.json",
)  # fmt: skip


@pytest.fixture
def bundle(tmp_path, selection) -> Path:
    return exported(selection, tmp_path / "x_segmentation", label_names=("background", "cell"))


def test_bundle_open_knows_the_choice_the_plan_and_the_classes(bundle, selection) -> None:
    opened = Bundle.open(bundle)
    assert opened.root == bundle and opened.name == "x_segmentation"
    assert opened.selection == selection and opened.plan == selection.table.plan
    assert opened.kind == "images" and opened.label_names == ("background", "cell")
    assert opened.config("inference")["num_classes"] == 2
    assert Bundle.open(opened) is opened


@pytest.mark.parametrize("name", REQUIRED)
def test_bundle_open_and_overwrite_give_one_answer_to_what_a_bundle_is(bundle, name) -> None:
    assert missing_file(bundle) is None and check_destination(bundle, overwrite=True) == bundle
    (bundle / name).unlink()
    assert missing_file(bundle) == name
    with pytest.raises(FileNotFoundError, match=f"is no bundle: it has no {name}"):
        Bundle.open(bundle)
    with pytest.raises(FileExistsError, match="is no bundle: remove it yourself first"):
        check_destination(bundle, overwrite=True)


def test_bundle_open_follows_a_link(bundle, tmp_path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    assert Bundle.open(tmp_path / "link").root == bundle


def test_bundle_open_puts_back_what_a_kill_left_beside_its_place(bundle) -> None:
    former = bundle.with_name(".x_segmentation.part.abc.former")
    bundle.rename(former)
    assert Bundle.open(bundle).root == bundle and not former.exists()


def test_bundle_open_names_damaged_metadata(bundle) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps({"network_data_format": {}}))
    with pytest.raises(ValueError, match=r"metadata\.json' names no classes"):
        Bundle.open(bundle)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}])
def test_bundle_network_has_the_trained_weights_and_evaluates(bundle, selection, wrap) -> None:
    trained = build_network(selection.table.plan, 8, seed=77).eval()
    torch.save(wrap(trained.state_dict()), bundle / "models" / "model.pt")
    before = torch.get_rng_state()
    network = Bundle.open(bundle).network()
    assert torch.equal(torch.get_rng_state(), before) and not network.training
    image = torch.randn(2, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(image), trained(image), rtol=0, atol=0)


class _Pickled:
    """An object that no file of weights may hold."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": _Pickled()}, "holds no weights that can be read safely"),
        ({"model": {}}, "holds no state dict"),
        ({"a": 1}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
    ],
    ids=["pickle", "empty", "number", "list"],
)
def test_bundle_weights_refuses_what_are_none_in_one_line(bundle, content, message) -> None:
    torch.save(content, bundle / "models" / "model.pt")
    with pytest.raises(ValueError, match=message) as found:
        Bundle.open(bundle).weights()
    assert "weights_only" not in str(found.value) and "\n" not in str(found.value)


def test_bundle_weights_names_a_missing_file(bundle) -> None:
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.pt' is missing"):
        Bundle.open(bundle).weights()


def test_bundle_network_refuses_the_weights_of_another_width(bundle, selection) -> None:
    other = build_network(selection.table.plan, 16, seed=0)
    torch.save(other.state_dict(), bundle / "models" / "model.pt")
    with pytest.raises(ValueError, match="does not hold the network of configs/inference.json"):
        Bundle.open(bundle).network()


@pytest.mark.search
def test_bundle_open_imports_neither_torch_nor_monai(bundle) -> None:
    code = (
        f"import sys\nfrom monai_xtiny import Bundle\nprint(Bundle.open({str(bundle)!r}).kind)\n"
        "print(sorted({'torch', 'monai', 'nibabel'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["images", "[]"]


def test_bundle_workflow_runs_from_another_folder(bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    workflow = Bundle.open(bundle).workflow(("inference",), {"sw_batch_size": 2})
    assert workflow.parser.get_parsed_content("inferer").sw_batch_size == 2
    assert (Bundle.open(bundle).path(SEARCH)).is_file()


def test_bundle_workflow_leaves_no_garbage_to_workers(bundle) -> None:
    """A forked worker that destroys a session of ONNX Runtime waits for ever for its threads."""
    gc.disable()
    try:
        predictor = torch.nn.Identity()
        predictor.owner = [predictor]
        alive = weakref.ref(predictor)
        del predictor
        assert alive() is not None
        Bundle.open(bundle).workflow(("inference",))
        assert alive() is None
    finally:
        gc.enable()


def test_data_kind_tells_volumes_slices_and_images(plan_2d, plan_3d) -> None:
    assert data_kind(plan_3d) == "volumes"
    assert data_kind(plan_2d) == "images"
    assert data_kind(replace(plan_2d, slice_axis=2)) == "slices"


@pytest.mark.parametrize("name", ["$import os", "a\nb", "\x1b[2J", "@device", "\u202egnp"])
def test_open_refuses_names_of_classes_that_are_more_than_names(tmp_path, selection, name) -> None:
    path = exported(selection, tmp_path / "x_segmentation") / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] = name
    path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="label name in .*metadata.json"):
        Bundle.open(tmp_path / "x_segmentation")
