from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_xtiny.networks.cost import network_cost
from tests.conftest import write_labeled_pictures

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from case_measures import count_instances, surface_dice  # noqa: E402
from comparison import (  # noqa: E402
    LIGHT,
    TASKS,
    Comparison,
    cost,
    definition,
    export_networks,
    missing,
    networks_of,
    time_networks,
    train_network,
)
from light_networks import CMUNeXt  # noqa: E402
from trainings import InBfloat16  # noqa: E402

from tests.exports import exported

UNIT = Comparison("fluorescence", "cmunext_s", 0, 4, 0.01, whole=False, bfloat16=False)


@pytest.fixture
def search(selection, tmp_path) -> Path:
    """The search.json of a 2D choice."""
    return exported(selection, tmp_path / "x_segmentation") / "docs" / "search.json"


def test_in_bfloat16_computes_in_it_while_training_alone() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3)
    dtypes: list[torch.dtype] = []
    network.register_forward_hook(lambda _module, _inputs, output: dtypes.append(output.dtype))
    wrapped, image = InBfloat16(network), torch.rand(1, 1, 8, 8)
    output = wrapped(image)
    output.mean().backward()
    assert (dtypes, output.dtype) == ([torch.bfloat16], torch.float32)
    assert network.weight.grad.dtype == network.weight.dtype == torch.float32
    assert torch.equal(wrapped.eval()(image), network(image)) and dtypes[1:] == [torch.float32] * 2


def one_hot(mask: list[list[int]]) -> MetaTensor:
    labels = torch.tensor(mask)
    return MetaTensor(torch.stack([labels == 0, labels == 1]).float(), affine=torch.eye(3))


def test_missing_leaves_out_what_the_journal_holds() -> None:
    other = Comparison("fluorescence", "cmunext_s", 1, 4, 0.01, whole=False, bfloat16=False)
    line = json.loads(json.dumps({**UNIT.names, "dice": [[0.5]]}))
    assert missing([UNIT, other], [line]) == [other]
    assert missing([UNIT, other], []) == [UNIT, other]
    # Longer, with another learning rate, of whole patches or in bfloat16 it is another training.
    for change in ({"updates": 8}, {"learning_rate": 0.001}, {"whole": True}, {"bfloat16": True}):
        assert missing([UNIT], [{**line, **change}]) == [UNIT]


def test_the_pick_is_trained_once(search, selection) -> None:
    pick = f"width_{selection.max_features}"
    assert networks_of(search, ["full", "pick", pick, "unext"]) == ["full", pick, "unext"]


@pytest.mark.slow
def test_networks_are_exported_once_and_timed_at_a_size_that_their_stride_divides(
    search, tmp_path, monkeypatch
) -> None:
    network, _, is_3d = LIGHT["basicunet_small"]
    monkeypatch.setitem(LIGHT, "basicunet_small", (network, 48, is_3d))
    monkeypatch.setattr("comparison.search_task", lambda _arguments, _task: search)
    arguments = Namespace(work=tmp_path)
    ((model, form),) = export_networks(arguments, "stain", ["basicunet_small"])
    assert all(edge % 48 == 0 for edge in form.patch_size)
    written = model.path.stat().st_mtime_ns
    models = export_networks(arguments, "stain", ["basicunet_small"])
    assert models == [(model, form)] and model.path.stat().st_mtime_ns == written
    ((name, size, timing),) = time_networks(models, 1)
    assert (name, tuple(size)) == ("basicunet_small", form.patch_size) and timing.network_ms > 0


@pytest.mark.search
def test_cost_counts_what_the_search_counts(selection) -> None:
    plan = selection.table.plan
    for width in (8, None):
        found = cost(definition("full" if width is None else f"width_{width}", plan), plan)
        expected = network_cost(plan, width)
        assert found == {
            "num_parameters": expected.num_parameters,
            "gmacs": pytest.approx(expected.gmacs),
        }
    light = cost(definition("cmunext_s", plan), plan)
    built = CMUNeXt(plan.in_channels, plan.out_channels)
    assert light["num_parameters"] == sum(item.numel() for item in built.parameters())


def test_surface_dice_is_none_without_label_and_zero_without_prediction() -> None:
    empty, square = np.zeros((12, 12), int), np.zeros((12, 12), int)
    square[2:8, 2:8] = 1
    moved = np.roll(square, 1, axis=0)
    far = np.roll(square, 4, axis=0)
    label = one_hot(square.tolist())
    assert surface_dice(one_hot(moved.tolist()), label, 1.0) == [1.0]
    assert 0 < surface_dice(one_hot(far.tolist()), label, 1.0)[0] < 1
    assert surface_dice(one_hot(empty.tolist()), label, 1.0) == [0.0]
    assert surface_dice(label, one_hot(empty.tolist()), 1.0) == [None]


def test_count_instances_pairs_parts_by_their_overlap() -> None:
    label = one_hot([[1, 1, 0, 1, 1, 0, 0]] * 4)
    # One of two found with an IoU of 1/1, the other by half of it alone, one more is wrong.
    found = one_hot([[1, 1, 0, 1, 0, 0, 1]] * 4)
    assert count_instances(found, label) == [1, 2, 1, 1.0]


@pytest.mark.search
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_a_light_network_trains_by_the_recipe_and_a_stopped_training_goes_on(
    search, selection, tmp_path, bfloat16
) -> None:
    unit = replace(UNIT, bfloat16=bfloat16)
    write_labeled_pictures(tmp_path / "data" / TASKS["fluorescence"].folder)
    options = {
        "work": tmp_path / "work", "data": tmp_path / "data", "device": "cpu", "num_workers": 0,
        "validations": 2,
    }  # fmt: skip
    line = train_network(unit, search, options, threads=1)
    assert [update for update, _ in line["curve"]] == [2, 4]
    assert (line["num_updates"], line["pick"]) == (4, selection.max_features)
    assert line["num_parameters"] == sum(p.numel() for p in CMUNeXt(1, 2).parameters())
    weights = torch.load(tmp_path / "work" / unit.folder / "models" / "model.pt")
    assert ("network." if bfloat16 else "") + "stem.0.weight" in weights
    assert (
        len(line["cases"]) == len(line["dice"]) == len(line["nsd"]) == len(line["instances"]) == 2
    )
    # The last weights are measured, as the last validation did.
    assert np.mean(line["dice"]) == pytest.approx(line["curve"][-1][1], abs=1e-4)
    # All epochs are behind it: nothing is trained anew, and nothing is lost.
    again = train_network(unit, search, options, threads=1)
    same = ("curve", "dice", "nsd", "hd95", "instances")
    assert [again[name] for name in same] == [line[name] for name in same]
