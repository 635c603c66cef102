from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from monai_xtiny.bundle.archive import package_bundle
from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.measured import write_evaluation
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.bundle.search_file import read_search
from monai_xtiny.bundle.torchscript import check_torchscript
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.selection.choice import with_width
from monai_xtiny.selection.limits import renewed_budget
from monai_xtiny.selection.posterior import Belief
from monai_xtiny.selection.rule import Budget
from monai_xtiny.training.compare import Difference, Verification, compare_trainings
from monai_xtiny.training.train import Training
from monai_xtiny.training.update import update_bundle
from tests.exports import exported

pytestmark = pytest.mark.search

LABELS = ("background", "cell wall")
MOVED = Verification(8, 16, False, (Difference(16, 0.05, 0.04, 0.06),), (), 200, 0.01, 0.95)
STAYS = replace(MOVED, recommended=8, is_on_plateau=True)


@pytest.fixture
def bundle(tmp_path, selection) -> Path:
    """A bundle of width 8."""
    return exported(selection, tmp_path / "x_segmentation", label_names=LABELS, report=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read(bundle: Path, name: str) -> dict:
    return json.loads((bundle / name).read_text(encoding="utf-8"))


def write(bundle: Path, name: str, content: dict) -> None:
    (bundle / name).write_text(json.dumps(content), encoding="utf-8")


def train(bundle: Path) -> dict[str, bytes]:
    """Make a bundle look trained and evaluated."""
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({name: value + 1 for name, value in weights.items()}, bundle / "models" / "model.pt")
    write(bundle, "configs/datalist.json", {"training": [], "validation": []})
    (bundle / "eval" / "checkpoints").mkdir(parents=True)
    (bundle / "eval" / "checkpoints" / "training_state.txt").write_text("epoch 3")
    return contents(bundle)


def test_update_bundle_gives_what_an_export_of_the_width_gives(bundle, selection, tmp_path) -> None:
    assert update_bundle(bundle, MOVED) is None
    moved = replace(selection, max_features=16)
    expected = contents(
        export_bundle(moved, tmp_path / "other" / "x_segmentation", label_names=LABELS)
    )
    found = contents(bundle)
    assert json.loads(found.pop("docs/verification.json"))["recommended"] == 16
    card = found.pop("docs/README.md").decode().splitlines()
    lines = expected.pop("docs/README.md").decode().splitlines()
    assert found == expected
    # The card says besides who chose.
    assert [line for line in lines if line not in card] == [
        line for line in lines if "rests on images alone" in line
    ]
    assert [line for line in card if line not in lines and "Only training" not in line] == [
        "Brief trainings on labeled cases then moved the choice from width 8 to width 16: "
        "`verification.json` has them."
    ]
    assert [path.name for path in tmp_path.iterdir()].count("x_segmentation") == 1


def raced(width: int) -> Verification:
    """Brief trainings in which width 16 leads, or 8."""

    def training(trained: int, seed: int) -> Training:
        level = 0.9 - 0.1 * (trained < width) + 0.001 * seed
        evaluation = Evaluation(("a", "b"), ((level,), (level,)), ((1.0,), (1.0,)))
        return Training(trained, 0, seed, 6, (), evaluation, 1.0)

    items = [training(item, seed) for item in (32, 16, 8, 4) for seed in range(2)]
    ladder = (256, 128, 64, 32, 16, 8, 4, 2, 1)
    return compare_trainings(8, items, ladder=ladder, belief=Belief(3.0, 1.0), num_updates=480)


def test_update_bundle_writes_the_race_into_choice_card_and_curve(bundle) -> None:
    curve = (bundle / "docs" / "sensitivity.png").read_bytes()
    update_bundle(Bundle.open(bundle), raced(16))
    choice = read_search(bundle / "docs" / "search.json")
    assert choice.max_features == 16 and choice.race is not None and choice.race.searched == 8
    assert choice.confidence == choice.votes[16] > 0.5
    text = (bundle / "docs" / "README.md").read_text()
    assert "moved the choice from width 8 to width 16" in text
    assert (bundle / "docs" / "sensitivity.png").read_bytes() != curve


def test_update_bundle_keeps_the_budget_and_renews_what_it_costs(tmp_path, selection) -> None:
    budget = Budget(16, 0.5, 0.4, max_parameters=1600)
    limited = replace(selection, budget=budget)
    bundle = exported(limited, tmp_path / "x_segmentation", label_names=LABELS)
    found = raced(16)
    update_bundle(Bundle.open(bundle), found)
    choice = read_search(bundle / "docs" / "search.json")
    assert choice.max_features == 16
    assert choice.budget == renewed_budget(budget, found.probabilities, 16)
    assert choice.budget.expected_dice_lost < 0.4
    assert "budget of at most 1,600 parameters: width 16 is" in (
        bundle / "docs" / "README.md"
    ).read_text("utf-8")


def test_update_bundle_refuses_a_width_outside_of_the_budget(tmp_path, selection) -> None:
    limited = replace(selection, budget=Budget(8, 0.0, 0.0, max_parameters=800))
    bundle = exported(limited, tmp_path / "x_segmentation", label_names=LABELS)
    before = contents(bundle)
    with pytest.raises(ValueError, match=r"recommends 16, .* of \(8, 4, 2, 1\): verify this"):
        update_bundle(bundle, MOVED)
    assert contents(bundle) == before


def test_update_bundle_that_keeps_the_width_keeps_what_was_trained(bundle) -> None:
    before = train(bundle)
    assert update_bundle(Bundle.open(bundle), raced(8)) is None
    found = contents(bundle)
    assert json.loads(found["docs/search.json"])["race"]["searched"] == 8
    assert "then kept width 8" in found["docs/README.md"].decode()
    names = ("search.json", "README.md", "report.html", "sensitivity.png", "verification.json")
    written = {f"docs/{name}" for name in names}
    assert {name: value for name, value in found.items() if name not in written} == {
        name: value for name, value in before.items() if name not in written
    }


def test_update_bundle_gives_weights_that_load_strictly(bundle) -> None:
    update_bundle(bundle, MOVED)
    for name in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config(str(bundle / "configs" / f"{name}.json"))
        network = parser.get_parsed_content("network_def")
        network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
        assert network.filters[0] == 16


def test_update_bundle_leaves_what_its_owner_wrote(bundle) -> None:
    metadata = {**read(bundle, "configs/metadata.json"), "authors": "We", "eval_metrics": {"d": 1}}
    write(bundle, "configs/metadata.json", metadata)
    config = {**read(bundle, "configs/train.json"), "learning_rate": 0.5, "own_key": [1]}
    write(bundle, "configs/train.json", config)
    card = bundle / "docs" / "README.md"
    card.write_text(card.read_text().replace("The owners of this bundle.", "We did."))
    for name in ("docs/data_license.txt", "LICENSE", "configs/logging.conf", "dataset/a/b.txt"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("ours")
    update_bundle(bundle, MOVED)
    found = read(bundle, "configs/metadata.json")
    assert found["authors"] == "We" and found["eval_metrics"] == {}
    assert "width cap 16" in found["description"]
    trained = read(bundle, "configs/train.json")
    assert trained["learning_rate"] == 0.5 and trained["own_key"] == [1]
    assert trained["network_def"]["filters"] == [16, 16, 16, 16]
    assert "We did." in card.read_text() and "capped at **16**" in card.read_text()
    for name in ("docs/data_license.txt", "LICENSE", "configs/logging.conf", "dataset/a/b.txt"):
        assert (bundle / name).read_text() == "ours"


def test_update_bundle_keeps_a_description_that_its_owner_wrote(bundle) -> None:
    write(
        bundle,
        "configs/metadata.json",
        {**read(bundle, "configs/metadata.json"), "description": "Ours"},
    )
    update_bundle(bundle, MOVED)
    assert read(bundle, "configs/metadata.json")["description"] == "Ours"


def test_update_bundle_keeps_a_trained_bundle_whole_in_a_folder_of_its_own(bundle) -> None:
    (bundle / "models" / "model.onnx").write_text("made of these weights")
    before = train(bundle)
    former = update_bundle(bundle, MOVED)
    assert former == bundle / "former_width8"
    assert contents(former) == before
    after = contents(bundle)
    gone = {"configs/datalist.json", "eval/checkpoints/training_state.txt", "models/model.onnx"}
    assert not gone & after.keys()
    assert read_search(bundle / "docs" / "search.json").max_features == 16
    # A second time, under another name; and it is not what the Model Zoo gets.
    write(bundle, "configs/datalist.json", {"training": [], "validation": []})
    update_bundle(bundle, replace(MOVED, selected=16, recommended=8))
    before = train(bundle)
    assert update_bundle(bundle, MOVED) == bundle / "former_width8_2"
    assert b"former" not in package_bundle(bundle).read_bytes()


def test_update_bundle_notices_weights_that_were_trained_elsewhere(bundle) -> None:
    train(bundle)
    (bundle / "configs" / "datalist.json").unlink()
    assert update_bundle(bundle, MOVED) is not None


@pytest.mark.parametrize(
    "made", ["models/model_fold1.pt", "configs/datalist_fold1.json", "eval/checkpoints/state.pt"]
)
def test_update_bundle_keeps_what_was_made_of_the_former_width_aside(bundle, made) -> None:
    # Of another fold, or of a training that was stopped before its first validation.
    (bundle / made).parent.mkdir(parents=True, exist_ok=True)
    (bundle / made).write_text("of width 8")
    former = update_bundle(bundle, MOVED)
    assert former == bundle / "former_width8"
    assert (former / made).read_text() == "of width 8" and not (bundle / made).exists()
    assert Bundle.open(bundle).weights().keys() == Bundle.open(former).weights().keys()


def test_update_bundle_remembers_what_was_chosen_without_labels(tmp_path, selection) -> None:
    bundle = exported(with_width(selection, 16), tmp_path / "x_segmentation")
    assert read_search(bundle / "docs" / "search.json").in_place_of == 8
    update_bundle(bundle, replace(raced(16), selected=16))
    assert read_search(bundle / "docs" / "search.json").race.searched == 8
    assert "moved the choice from width 8 to width 16" in (bundle / "docs/README.md").read_text()
    update_bundle(bundle, replace(raced(32), selected=16))
    choice = read_search(bundle / "docs" / "search.json")
    assert (choice.max_features, choice.race.searched, choice.in_place_of) == (32, 8, None)


def test_update_bundle_takes_networks_that_are_gone_off_the_list_of_large_files(bundle) -> None:
    train(bundle)
    paths = ("models/model.onnx", "models/model_fold2.pt", "models/atlas.bin")
    entries = [{"path": path, "url": "https://example.org/x", "hash_val": "x"} for path in paths]
    (bundle / "large_files.yml").write_text(yaml.safe_dump({"large_files": entries}))
    update_bundle(bundle, MOVED)
    left = yaml.safe_load((bundle / "large_files.yml").read_text())["large_files"]
    assert left == [entries[2]]


def test_update_bundle_takes_measurements_off_the_card(bundle) -> None:
    evaluation = Evaluation(("a",), ((0.987,),), ((2.0,),))
    untrained = (bundle / "docs" / "README.md").read_text()
    train(bundle)
    write_evaluation(Bundle.open(bundle), evaluation, [_plane()])
    assert "| 0.987" in (bundle / "docs" / "README.md").read_text()
    update_bundle(bundle, MOVED)
    card = (bundle / "docs" / "README.md").read_text()
    assert "0.987" not in card and "Not measured yet" in card
    assert "at its initialization until it is trained" in card
    assert not (bundle / "docs" / "overlay.png").exists()
    headings = [line for line in untrained.splitlines() if line.startswith("#")]
    assert [line for line in card.splitlines() if line.startswith("#")] == headings


def _plane():
    import numpy as np

    from monai_xtiny.bundle.figures import Plane

    return Plane("a", *(np.eye(4) for _ in range(3)))


def test_update_bundle_there_and_back_is_where_it_was(bundle) -> None:
    before = contents(bundle)
    update_bundle(bundle, MOVED)
    update_bundle(bundle, replace(MOVED, selected=16, recommended=8))
    after = contents(bundle)
    assert json.loads(after.pop("docs/verification.json"))["selected"] == 16
    card = after.pop("docs/README.md").decode()
    assert card.count("Brief trainings on labeled cases then moved") == 1
    assert "from width 16 to width 8" in card
    before.pop("docs/README.md")
    assert after == before


def test_update_bundle_states_the_rules_confidence_in_the_new_width(tmp_path, selection) -> None:
    sure = replace(selection, confidence=0.9, votes={8: 0.9, 16: 0.1})
    bundle = exported(sure, tmp_path / "y_segmentation")
    update_bundle(bundle, MOVED)
    found = read_search(bundle / "docs" / "search.json")
    assert (found.method, found.max_features) == (selection.method, 16)
    assert found.confidence == 0.1 and found.votes == sure.votes
    card = (bundle / "docs" / "README.md").read_text()
    assert "Of the rule's votes, 10 % were for this width: labeled cases decided." in card
    update_bundle(bundle, replace(MOVED, selected=16, recommended=8))
    card = (bundle / "docs" / "README.md").read_text()
    assert card.count("Of the rule's votes, ") == 1 and "votes, 90 % were" in card
    assert "Confidence: " not in card


def test_update_bundle_writes_only_the_verification_of_a_choice_that_stays(bundle) -> None:
    before = train(bundle)
    assert update_bundle(bundle, STAYS) is None
    after = contents(bundle)
    written = json.loads(after.pop("docs/verification.json"))
    assert written["is_on_plateau"] is True
    assert written["differences"] == [{"max_features": 16, "mean": 0.05, "low": 0.04, "high": 0.06}]
    assert after == before


@pytest.mark.slow
def test_update_bundle_renews_torchscript_and_the_list_of_large_files(
    tmp_path, scripted, script_in_forks
) -> None:
    bundle = Path(shutil.copytree(scripted, tmp_path / scripted.name))
    entry = {"path": "models/model.pt", "url": "https://example.org/8.pt", "hash_val": "x"}
    (bundle / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))
    before = (bundle / "models" / "model.ts").read_bytes()
    update_bundle(bundle, MOVED)
    check_torchscript(Bundle.open(bundle))
    assert (bundle / "models" / "model.ts").read_bytes() != before
    assert not (bundle / "large_files.yml").exists()


def test_update_bundle_changes_nothing_when_it_fails(bundle, monkeypatch) -> None:
    from monai_xtiny.training import update

    before = train(bundle)

    def fail(*arguments, **options):
        raise OSError("disk full, on purpose")

    monkeypatch.setattr(update, "write_verification", fail)
    with pytest.raises(OSError, match="disk full"):
        update_bundle(bundle, MOVED)
    assert contents(bundle) == before


def test_update_bundle_refuses_the_verification_of_another_choice(bundle) -> None:
    for other in (replace(MOVED, selected=4), replace(MOVED, recommended=7)):
        with pytest.raises(ValueError, match="and the bundle has width 8 of"):
            update_bundle(bundle, other)
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        update_bundle(bundle.parent, MOVED)
