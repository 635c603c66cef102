"""Commands that are killed at each of their writes lose nothing, and succeed the next time."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from monai_xtiny.bundle import measured, writer
from monai_xtiny.bundle import replace as swap
from monai_xtiny.bundle.archive import package_bundle
from monai_xtiny.bundle.figures import Plane
from monai_xtiny.bundle.folder import EVALUATION, LEARNING_CURVE, REPORT, Bundle
from monai_xtiny.bundle.measured import write_evaluation
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.bundled.checkpoints import BestWeights
from monai_xtiny.bundled.reports import METRIC_OF
from monai_xtiny.bundled.splits import Split, write_split
from monai_xtiny.cli.commands import main
from monai_xtiny.deploy import latency
from monai_xtiny.selection.choice import Selection
from monai_xtiny.system.files import atomic_write
from monai_xtiny.training import verify
from monai_xtiny.training.update import update_bundle
from tests.end_to_end.test_trainings import train as train_really
from tests.end_to_end.test_trainings import write_data
from tests.exports import exported
from tests.kills import kill_everywhere
from tests.training.test_update import MOVED, contents, train
from tests.training.test_verify import FakeTrainings, labeled

__all__ = ["labeled"]

pytestmark = pytest.mark.search


@pytest.fixture(autouse=True)
def _brief(monkeypatch) -> None:
    """What is drawn is not looked at here."""

    def draw(*arguments: object) -> Path:
        with atomic_write(Path(str(arguments[-1]))) as part:
            part.write_bytes(b"drawn")
        return Path(str(arguments[-1]))

    monkeypatch.setattr(writer, "plot_sensitivity", draw)
    monkeypatch.setattr(measured, "plot_overlay", draw)


@pytest.fixture(params=["exchange", "two renames"])
def swapping(request, monkeypatch) -> str:
    """Both ways in which folders change places."""
    if request.param == "two renames":
        monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    elif not swap._exchange:
        pytest.skip("no system call exchanges folders here")
    return request.param


@pytest.fixture
def bundle(tmp_path, selection) -> Path:
    """A bundle that looks trained, in a folder of its own."""
    root = tmp_path / "root" / "x_segmentation"
    export_bundle(selection, root)
    train(root)
    return root


def of_three_stages(selection: Selection) -> Selection:
    """The least network, which is exported soonest."""
    table = selection.table
    plan = replace(
        table.plan,
        kernel_size=table.plan.kernel_size[:3],
        strides=table.plan.strides[:3],
        features_per_stage=table.plan.features_per_stage[:3],
    )
    ladder = tuple(
        replace(rung, features_per_stage=rung.features_per_stage[:3]) for rung in table.ladder
    )
    return replace(selection, table=replace(table, plan=plan, ladder=ladder))


def one_of(path: Path, *wholes: dict[str, bytes]) -> Callable[[], None]:
    """A check that a bundle, once it is opened by whatever command comes next, is a whole one."""

    def check() -> None:
        Bundle.open(path)
        assert contents(path) in wholes

    return check


def test_export_that_is_killed_leaves_nothing_or_a_whole_bundle(tmp_path, selection) -> None:
    path = tmp_path / "root" / "x_segmentation"
    path.parent.mkdir()
    whole = contents(export_bundle(selection, tmp_path / "whole" / "x_segmentation"))

    def check() -> None:
        assert not path.exists() or contents(path) == whole

    def work() -> None:
        path.exists() or export_bundle(selection, path)  # there is a bundle: refused, rightly

    assert kill_everywhere(path.parent, work, check, tidy=False) > 3


def test_export_over_a_bundle_that_is_killed_leaves_the_one_or_the_other(
    bundle, selection, tmp_path, swapping
) -> None:
    new = contents(export_bundle(selection, tmp_path / "whole" / "x_segmentation"))
    check = one_of(bundle, contents(bundle), new)
    work = lambda: export_bundle(selection, bundle, overwrite=True)  # noqa: E731
    assert kill_everywhere(bundle.parent, work, check) > 3
    assert contents(bundle) == new


def test_update_that_is_killed_leaves_the_one_or_the_other(bundle, swapping) -> None:
    former = contents(bundle)

    def check() -> None:
        Bundle.open(bundle)
        found = contents(bundle)
        kept = {
            name.removeprefix("former_width8/"): found[name] for name in found if "former" in name
        }
        assert found == former or kept == former
        if kept:
            assert json.loads(found["docs/verification.json"])["recommended"] == 16
            assert "configs/datalist.json" not in found

    def work() -> None:
        if Bundle.open(bundle).selection.max_features == 8:
            update_bundle(bundle, MOVED)

    assert kill_everywhere(bundle.parent, work, check, tidy=False) > 3
    assert (bundle / "former_width8" / "models" / "model.pt").is_file()


@pytest.mark.slow
def test_evaluate_that_is_killed_leaves_each_result_whole(tmp_path, selection) -> None:
    bundle = Bundle.open(exported(selection, tmp_path / "root" / "x_segmentation"))
    data = write_data(tmp_path / "data")
    train_really(bundle, data)
    work = lambda: main(["evaluate", str(bundle.root), "--data", str(data)])  # noqa: E731
    work()
    after = contents(bundle.root)
    planes = [Plane("a", *(np.eye(4) for _ in range(3)))]
    write_evaluation(bundle, Evaluation(("a.png",), ((0.25,),), ((1.0,),)), planes)
    tables = sorted(set(bundle.path("eval").glob("*.csv")) - {bundle.path(LEARNING_CURVE)})
    assert len(tables) == 1 + 2 * len(METRIC_OF)  # metrics.csv; raw and summary of each
    tables.append(bundle.path("eval/summary.json"))
    for table in tables:
        table.write_text("former")
    former = contents(bundle.root)
    results = {name for name in former if former[name] != after[name]}
    assert len(results) > len(tables) + 1

    def check() -> None:
        found = contents(bundle.root)
        for name in results:
            assert found.pop(name) in (former[name], after[name])
        assert found.items() <= former.items()

    assert kill_everywhere(bundle.root.parent, work, check, every=12) > 3
    assert contents(bundle.root) == after


def test_package_that_is_killed_leaves_the_former_zip_or_the_new_one(bundle) -> None:
    target = bundle.parent / "x.zip"
    package_bundle(bundle, target)
    before, former = contents(bundle), target.read_bytes()
    (bundle / "docs" / "more.txt").write_text("more")

    def check() -> None:
        found = contents(bundle)
        assert found.pop("docs/more.txt") and found == before
        if target.read_bytes() != former:
            assert zipfile.ZipFile(target).testzip() is None

    assert kill_everywhere(bundle.parent, lambda: package_bundle(bundle, target), check) > 3
    assert target.read_bytes() != former


@pytest.mark.slow
def test_deploy_that_is_killed_leaves_the_former_files_or_the_new_ones(tmp_path, selection) -> None:
    bundle = tmp_path / "root" / "x_segmentation"
    export_bundle(of_three_stages(selection), bundle)
    train(bundle)
    work = ["deploy", str(bundle), "--nobenchmark"]
    names = ("models/model.onnx", "docs/deploy.json")
    former = contents(bundle)
    former.pop(REPORT)
    for name in names:
        (bundle / name).write_bytes(b"{}")

    def check() -> None:
        found = contents(bundle)
        model, record = (found.pop(name) for name in names)
        assert found.pop(REPORT).endswith(b"</html>\n")
        assert found == former
        if model != b"{}":
            onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
        assert record == b"{}" or json.loads(record)["opset"] == 18

    assert kill_everywhere(bundle.parent, work, check, every=5) > 3
    assert {contents(bundle)[name] for name in names}.isdisjoint({b"{}"})


@pytest.mark.slow
def test_training_that_is_killed_at_any_write_goes_on(tmp_path, selection) -> None:
    root = tmp_path / "root"
    bundle = Bundle.open(exported(selection, root / "x_segmentation"))
    data = write_data(tmp_path / "data")
    files = [bundle.path(name) for name in ("models/model.pt", "configs/datalist.json")]
    train_really(bundle, data)
    first = [file.read_bytes() for file in files]

    def check() -> None:
        folders = [bundle.root, *bundle.root.glob("former_training_*")]
        # What the first training left is in its place, or kept aside, weights and split together.
        held = [[folder / file.relative_to(bundle.root) for file in files] for folder in folders]
        assert first in [
            [path.read_bytes() if path.is_file() else None for path in paths] for paths in held
        ]
        torch.load(files[0], weights_only=True)
        state = bundle.path("eval/checkpoints/training_state.pt")
        if state.is_file():
            torch.load(state, weights_only=True)

    again = {"split_seed": 1, "output_dir": str(root / "again")}
    work = lambda: train_really(bundle, data, epochs=2, **again)  # noqa: E731
    assert kill_everywhere(root, work, check, tidy=False, every=12) > 3
    assert bundle.path("former_training_1/models/model.pt").read_bytes() == first[0]


@pytest.mark.slow
def test_auto_that_is_killed_at_any_write_goes_on_to_the_same_bundle(
    labeled, tmp_path, monkeypatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    bundle = root / "x_segmentation"
    levels = {f"w{2**power}": 0.8 for power in range(10)}
    monkeypatch.setattr(verify, "train_bundle", FakeTrainings(**levels))

    def check_latency(limit: float | None) -> None:  # deployment has its own test
        if limit is not None:
            raise ImportError("onnx cannot be imported")

    monkeypatch.setattr(latency, "check_latency", check_latency)
    ends = []

    def check() -> None:
        if bundle.exists():
            Bundle.open(bundle)
        if (bundle / EVALUATION).is_file():
            found = contents(bundle)
            choice = json.loads(found["docs/search.json"])["selected"]
            measured = json.loads(found[EVALUATION])
            configs = sorted(item for item in found.items() if item[0].startswith("configs/"))
            ends.append((choice, measured, configs, found["models/model.pt"]))

    words = ["auto", "--data", str(labeled), "--bundle", str(bundle), "--epochs", "1"]
    assert kill_everywhere(root, lambda: main(words), check, every=80) > 30
    assert len(ends) > 2 and all(end == ends[0] for end in ends)


def test_training_that_is_killed_while_it_writes_leaves_each_file_whole(tmp_path) -> None:
    root, network = tmp_path / "root", nn.Linear(2, 2)
    root.mkdir()
    weights, split = root / "model.pt", root / "datalist.json"
    case = {"image": ["a.png"], "label": "b.png"}
    BestWeights(network, str(weights)).save()
    write_split(Split([case], []), split, "")
    former = {name: value.clone() for name, value in network.state_dict().items()}

    def work() -> None:
        with torch.no_grad():
            network.weight.fill_(1.0)
        BestWeights(network, str(weights)).save()
        write_split(Split([case], [case]), split, "")

    def check() -> None:
        found = torch.load(weights, weights_only=True)["weight"]
        assert torch.equal(found, former["weight"]) or (found == 1).all()
        assert len(json.loads(split.read_text())["validation"]) in (0, 1)

    assert kill_everywhere(root, work, check) > 3
    assert len(json.loads(split.read_text())["validation"]) == 1
