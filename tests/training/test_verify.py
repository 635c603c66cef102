from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.utils import get_seed
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.cli.commands import main
from monai_xtiny.selection.choice import with_width
from monai_xtiny.selection.rule import Budget
from monai_xtiny.training import verify as verification
from monai_xtiny.training.batches import SharedBatches
from monai_xtiny.training.check import check_bundle
from monai_xtiny.training.labeled import data_options
from monai_xtiny.training.race import NothingToCompareError, brief_tolerance
from monai_xtiny.training.train import Training
from monai_xtiny.training.update import write_verification
from monai_xtiny.training.verify import brief_options, verify_bundle
from tests.conftest import texture, write_labeled_pictures, write_nifti
from tests.exports import exported

pytestmark = pytest.mark.search


@pytest.fixture
def labeled(tmp_path) -> Path:
    return write_labeled_pictures(tmp_path / "data#1 $x")


@pytest.fixture
def bundle(tmp_path, selection) -> Path:
    """A bundle of width 8."""
    return exported(selection, tmp_path / "x_segmentation")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class FakeTrainings:
    """In place of trainings: what was asked for, and Dice of the width's level on every case."""

    def __init__(self, **levels: float) -> None:
        self.levels = {int(width[1:]): level for width, level in levels.items()}
        self.asked: list[tuple[int, int]] = []
        self.options: dict = {}
        self.config: dict = {}
        self.stop_at: tuple[int, int] | None = None
        self.on_training: Callable[[], object] = lambda: None
        self.seconds = 1.0
        self.cases = tuple("abcdefgh")

    def __call__(self, bundle: Bundle, *, epochs, fold, seed, **options) -> Training:
        max_features = bundle.selection.max_features
        if (max_features, seed) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((max_features, seed))
        self.on_training()
        self.options = {"epochs": epochs, "fold": fold, **options}
        if bundle.path("configs").is_dir():
            self.config = bundle.config("train")
        random.random(), np.random.random(), torch.rand(1)
        level = self.levels[max_features] + 0.001 * seed
        evaluation = Evaluation(self.cases, ((level,),) * len(self.cases))
        return Training(max_features, fold, seed, epochs, (), evaluation, self.seconds)


@pytest.fixture
def fake(monkeypatch) -> FakeTrainings:
    """Width 16 is as good as 8, and 4 worse."""
    trainings = FakeTrainings(w32=0.8, w16=0.8, w8=0.8, w4=0.7, w2=0.7, w1=0.6)
    monkeypatch.setattr(verification, "train_bundle", trainings)
    return trainings


@pytest.fixture
def clock(fake, monkeypatch) -> list[float]:
    """The time in s, as races see it: each training takes 30."""
    now = [0.0]
    monkeypatch.setattr(verification.time, "monotonic", lambda: now[0])
    fake.on_training = lambda: now.__setitem__(0, now[0] + 30)
    fake.seconds = 30.0
    return now


@pytest.fixture
def empty_bundles(monkeypatch) -> None:
    """Nothing is exported for the trainings: most tests of theirs need no files."""

    def write(bundle: Bundle, width: int, copy: Path) -> Bundle:
        copy.mkdir(exist_ok=True)
        selection = replace(bundle.selection, max_features=width)
        return Bundle(copy, selection, bundle.label_names)

    monkeypatch.setattr(verification, "_write_width", write)


ALL = [(8, 0), (4, 0), (16, 0), (16, 1), (8, 1), (4, 1)]


def test_verify_bundle_races_the_width_and_its_neighbors_on_every_seed(
    fake, empty_bundles, bundle, labeled
) -> None:
    before = contents(bundle)
    seen = []
    found = verify_bundle(bundle, data=labeled, progress=seen.append)
    assert fake.asked == ALL
    assert (found.widths, found.selected, found.recommended) == ((16, 8, 4), 8, 8)
    assert found.is_on_plateau and found.is_decided and tuple(seen) == found.trainings
    assert contents(bundle) == before
    fake.asked.clear()
    verify_bundle(bundle, data=labeled, num_seeds=3, seed=5)
    assert [seed for _, seed in fake.asked] == [5] * 3 + [6] * 3  # decided after two


def test_verify_bundle_climbs_until_both_neighbors_of_the_leader_are_known(
    fake, empty_bundles, bundle, labeled, selection, tmp_path
) -> None:
    fake.levels = {32: 0.9, 16: 0.85, 8: 0.8, 4: 0.7, 2: 0.6, 1: 0.5}
    found = verify_bundle(bundle, data=labeled)
    assert [width for width, seed in fake.asked if seed == 0][:4] == [8, 4, 16, 32]
    assert found.recommended == 32 and found.is_on_plateau is False
    fake.asked, fake.levels = [], {32: 0.8, 16: 0.8, 8: 0.8, 4: 0.799, 2: 0.798, 1: 0.5}
    found = verify_bundle(bundle, data=labeled)
    assert [width for width, seed in fake.asked if seed == 0] == [8, 4, 2, 1]
    assert (found.recommended, found.is_decided) == (2, True)
    # A width passed on the way, here 8, need not run again.
    fake.asked, fake.levels = [], {32: 0.8, 16: 0.801, 8: 0.8, 4: 0.8, 2: 0.8, 1: 0.799}
    wide = exported(with_width(selection, 16), tmp_path / "wide_segmentation")
    found = verify_bundle(wide, data=labeled)
    assert [width for width, seed in fake.asked if seed == 0] == [16, 8, 4, 2, 1]
    assert (8, 1) not in fake.asked and (2, 1) in fake.asked and (1, 2) not in fake.asked
    assert (found.recommended, found.is_decided) == (1, True)


def test_verify_bundle_races_no_width_outside_of_the_budget(
    fake, empty_bundles, bundle, labeled
) -> None:
    opened = Bundle.open(bundle)
    budget = Budget(8, 0.0, 0.0, max_parameters=opened.selection.rung.num_parameters)
    limited = replace(opened, selection=replace(opened.selection, budget=budget))
    fake.levels = {32: 0.9, 16: 0.85, 8: 0.8, 4: 0.7, 2: 0.6, 1: 0.5}
    found = verify_bundle(limited, data=labeled)
    assert found.widths == (8, 4)
    assert (found.recommended, found.is_decided) == (8, True)


def test_verify_bundle_compares_the_leader_with_a_best_that_wider_ones_do_not_beat(
    fake, empty_bundles, bundle, labeled
) -> None:
    fake.levels = {**fake.levels, 32: 0.815, 16: 0.81}
    found = verify_bundle(bundle, data=labeled)
    assert fake.asked[:4] == [(8, 0), (4, 0), (16, 0), (32, 0)]  # 16 is better than 8
    assert sorted(fake.asked[4:]) == [(4, 1), (8, 1), (16, 1), (32, 1)]
    assert found.recommended == 8 and found.is_decided


def test_verify_bundle_runs_a_wider_one_that_later_seeds_ask_for(
    fake, empty_bundles, bundle, labeled
) -> None:
    def rise() -> None:
        fake.levels[16] = 0.83 if fake.asked[-1] == (16, 1) else 0.8

    fake.on_training = rise
    found = verify_bundle(bundle, data=labeled)
    assert fake.asked == [*ALL, (32, 0), (32, 1)]
    assert found.widths == (32, 16, 8, 4)


def test_verify_bundle_runs_undecided_widths_with_more_seeds(
    fake, empty_bundles, bundle, labeled
) -> None:
    fake.levels[16] = 0.8 + 0.99 * brief_tolerance(verification.NUM_UPDATES)
    found = verify_bundle(bundle, data=labeled, num_seeds=4)
    assert not found.is_decided
    assert {seed for _, seed in fake.asked} == {0, 1, 2, 3}
    fake.asked.clear()
    verify_bundle(bundle, data=labeled)
    assert {seed for _, seed in fake.asked} == {0, 1}  # by default


def test_verify_bundle_begins_no_training_that_would_not_end_in_time(
    fake, empty_bundles, bundle, labeled, clock
) -> None:
    found = verify_bundle(bundle, data=labeled, max_minutes=1.6)  # 96 s
    # A wider one takes longer; the time that is left goes to second seeds.
    assert fake.asked == [(8, 0), (4, 0), (8, 1)]
    assert not found.is_decided and found.recommended == 8
    clock[0], fake.asked = 0.0, []
    found = verify_bundle(bundle, data=labeled, max_minutes=60)
    assert fake.asked == ALL and found.is_decided
    fake.levels[16] = 0.8 + 0.99 * brief_tolerance(verification.NUM_UPDATES)
    clock[0], fake.asked = 0.0, []
    found = verify_bundle(bundle, data=labeled, max_minutes=8)
    assert 9 < len(fake.asked) < 17 and not found.is_decided


def test_verify_bundle_trains_near_widths_twice_before_a_far_one_that_leaves_no_time_for_it(
    fake, empty_bundles, bundle, labeled, clock
) -> None:
    fake.levels = {**fake.levels, 32: 0.815, 16: 0.81}
    first = [(8, 0), (4, 0), (16, 0)]
    # Enough for a training of width 32 in place of the second ones, which it is decided without.
    found = verify_bundle(bundle, data=labeled, max_minutes=3.5)
    assert fake.asked[:6] == [*first, (16, 1), (8, 1), (4, 1)]
    assert 32 not in found.widths and not found.is_decided
    clock[0], fake.asked = 0.0, []
    verify_bundle(bundle, data=labeled, max_minutes=4.5)
    assert fake.asked[:7] == [*first, (32, 0), (16, 1), (8, 1), (4, 1)]


def test_verify_bundle_counts_what_goes_before_and_after_a_training(
    fake, empty_bundles, bundle, labeled, monkeypatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(verification.time, "monotonic", lambda: now[0])
    fake.on_training = lambda: now.__setitem__(0, now[0] + 100)  # 30 of them the training
    fake.seconds = 30.0
    verify_bundle(bundle, data=labeled, max_minutes=4)
    assert fake.asked == [(8, 0), (4, 0)] and now[0] <= 240


def test_verify_bundle_runs_once_where_a_budget_leaves_one_width(
    fake, empty_bundles, bundle, labeled
) -> None:
    opened = Bundle.open(bundle)
    rung = next(item for item in opened.selection.table.ladder if item.max_features == 1)
    budget = Budget(1, 0.0, 0.0, max_parameters=rung.num_parameters)
    selection = replace(opened.selection, max_features=1, budget=budget)
    found = verify_bundle(replace(opened, selection=selection), data=labeled)
    assert (fake.asked, found.recommended, found.is_decided) == ([(1, 0)], 1, True)


def test_verify_bundle_ends_after_two_seeds_where_few_cases_are_held_out(
    fake, empty_bundles, bundle, labeled
) -> None:
    fake.cases = tuple("abcdefg")
    found = verify_bundle(bundle, data=labeled, max_minutes=60)
    assert fake.asked == ALL and (found.recommended, found.is_decided) == (8, False)


def test_verify_bundle_refuses_to_hold_out_a_single_patient(
    fake, bundle, labeled, tmp_path
) -> None:
    group = tmp_path / "patients.json"
    group.write_text(json.dumps({f"c{number}": f"p{number // 5}" for number in range(10)}))
    with pytest.raises(NothingToCompareError, match="fold 0 holds out cases of one patient"):
        verify_bundle(bundle, data=labeled, group=str(group))
    assert fake.asked == []


def test_verify_bundle_knows_patients_by_their_folders(
    fake, empty_bundles, bundle, labeled
) -> None:
    entries: dict[str, list] = {"training": [], "validation": []}
    for number in range(10):
        name = f"labelsTr/p{number // 2}/{'ab'[number % 2]}.png"
        (labeled / name).parent.mkdir(exist_ok=True)
        (labeled / f"labelsTr/c{number}.png").rename(labeled / name)
        case = {"image": f"imagesTr/c{number}_0000.png", "label": name}
        entries["validation" if number > 5 else "training"].append(case)
    datalist = labeled / "list.json"
    datalist.write_text(json.dumps(entries))
    verify_bundle(bundle, datalist=datalist, group="^([^/]+)/")
    assert fake.asked == ALL
    entries["training"] += entries["validation"][:2]
    entries["validation"] = entries["validation"][2:]
    datalist.write_text(json.dumps(entries))
    with pytest.raises(NothingToCompareError, match="fold 0 holds out cases of one patient"):
        verify_bundle(bundle, datalist=datalist, group="^([^/]+)")


def test_brief_options_measure_cases_of_all_patients(bundle, labeled) -> None:
    parser = ConfigParser(Bundle.open(bundle).config("train"))
    names = [f"p{number // 12}_{number}.png" for number in range(36)]
    cases = [{"image": [name], "label": name} for name in names]
    parser.update({"bundle_root": str(bundle), "val_cases": cases, "group": "p[0-9]"})
    parser.update(brief_options(parser, Bundle.open(bundle).plan, epochs=1))
    shown = parser.get_parsed_content("validate#dataset#data")
    assert len(shown) == verification.MAX_HELD_OUT
    assert [case["label"][:2] for case in shown[:4]] == ["p0", "p1", "p2", "p0"]
    parser["group"] = None
    parser.update(brief_options(parser, Bundle.open(bundle).plan, epochs=1))
    assert parser.get_parsed_content("validate#dataset#data") == cases[:16]


def test_verify_bundle_holds_out_whole_patients(fake, empty_bundles, bundle, labeled) -> None:
    verify_bundle(bundle, data=labeled, group="c[0-9]")
    assert fake.options["overrides"]["group"] == "c[0-9]"
    with pytest.raises(ValueError, match="holds out 0 of 10 labeled cases"):
        verify_bundle(bundle, data=labeled, group="c")  # all of one patient


def test_verify_bundle_trains_by_the_bundles_own_recipe(fake, bundle, labeled) -> None:
    path = bundle / "configs" / "train.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "learning_rate": 0.125}))
    fake.stop_at = (4, 0)
    with pytest.raises(KeyboardInterrupt):
        verify_bundle(bundle, data=labeled)
    assert fake.config.pop("network_def") == config.pop("network_def")  # width 8 was the last
    assert fake.config == {**config, "learning_rate": 0.125}
    fake.stop_at = (16, 0)
    with pytest.raises(KeyboardInterrupt):
        verify_bundle(bundle, data=labeled)
    assert fake.config["network_def"]["filters"] == [4] * 4


def test_verify_bundle_makes_brief_trainings_of_as_many_updates_on_any_data(
    fake, empty_bundles, bundle, labeled
) -> None:
    found = verify_bundle(bundle, data=labeled)
    overrides = fake.options["overrides"]
    assert fake.options["epochs"] * overrides["train#trainer#epoch_length"] == found.num_updates
    assert overrides["val_interval"] > fake.options["epochs"]
    found = verify_bundle(bundle, data=labeled, epochs=7, overrides={"batch_size": 3})
    assert fake.options["epochs"] == 7 and found.num_updates == 7 * 3  # 8 cases in batches of 3
    assert "train#trainer#epoch_length" not in fake.options["overrides"]
    assert fake.options["overrides"]["batch_size"] == 3


def test_verify_bundle_loads_the_batches_of_a_seed_once(
    fake, empty_bundles, bundle, labeled
) -> None:
    def loader() -> object:
        return fake.options["overrides"].get("train#dataloader")

    verify_bundle(bundle, data=labeled)
    assert loader()["loader"]["_target_"] == "DataLoader" and loader()["seed"] == 1
    # Not where that may be many, nor where the caller's keys load otherwise.
    verify_bundle(bundle, data=labeled, epochs=2)
    assert loader() is None
    for keys in ({"epochs": 3}, {"train#dataloader#num_workers": 0}, {"train::dataset::x": 0}):
        verify_bundle(bundle, data=labeled, overrides=keys)
        assert loader() is None
    # Nor where the bundle's own config loads otherwise.
    file = bundle / "configs" / "train.json"
    content = json.loads(file.read_text())
    content["train"]["dataloader"]["drop_last"] = True
    file.write_text(json.dumps(content))
    verify_bundle(bundle, data=labeled)
    assert loader() is None


def test_races_of_slices_crop_in_the_plane_of_the_slices(plan_2d) -> None:
    values = {"batch_size": 2, "cache_rate": 1.0, "trained_size": [256, 192], "train_cases": [1]}
    values |= {"val_cases": [], "labeled_cases": None}
    keys = {"initialize": []}
    parser = SimpleNamespace(get=keys.get, get_parsed_content=values.__getitem__)
    flat, slices = (
        brief_options(parser, replace(plan_2d, slice_axis=axis))["crop_size"] for axis in (None, 1)
    )
    assert flat[0] * flat[1] <= 128 * 128
    assert slices == [flat[0], 1, flat[1]]


def test_verify_bundle_reads_no_more_cases_than_it_trains_on(
    fake, empty_bundles, bundle, labeled
) -> None:
    verify_bundle(bundle, data=labeled)
    assert fake.options["overrides"]["cache_rate"] == 1
    few = {"batch_size": 2 / verification.NUM_UPDATES}
    verify_bundle(bundle, data=labeled, overrides=few)
    assert fake.options["overrides"]["cache_rate"] == 2 / 8


def test_verify_bundle_goes_on_where_it_was_stopped(
    fake, empty_bundles, bundle, labeled, tmp_path
) -> None:
    work = tmp_path / "work"
    fake.stop_at = (16, 1)
    with pytest.raises(KeyboardInterrupt):
        verify_bundle(bundle, data=labeled, work_dir=work)
    fake.stop_at, fake.asked = None, []
    found = verify_bundle(bundle, data=labeled, work_dir=work)
    assert fake.asked == ALL[3:]
    assert [(item.max_features, item.seed) for item in found.trainings] == ALL
    fake.asked = []
    assert verify_bundle(bundle, data=labeled, work_dir=work) == found
    assert fake.asked == []
    verify_bundle(bundle, data=labeled, work_dir=work, seed=1)
    assert fake.asked == [(16, 2), (8, 2), (4, 2)]
    assert [path.name for path in work.iterdir()] == [verification.JOURNAL_FILE]


def test_verify_bundle_goes_on_after_a_kill_while_it_removed_a_training(
    fake, bundle, labeled, tmp_path, monkeypatch
) -> None:
    work = tmp_path / "work"

    def begin(folder: Path, **_: object) -> None:
        if folder.is_dir():
            (folder / "configs" / "metadata.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verification, "rmtree", begin)
        with pytest.raises(KeyboardInterrupt):
            verify_bundle(bundle, data=labeled, work_dir=work)
    fake.asked = []
    verify_bundle(bundle, data=labeled, work_dir=work)
    assert fake.asked == ALL[1:]
    assert [path.name for path in work.iterdir()] == [verification.JOURNAL_FILE]


def test_verify_bundle_leaves_trainings_of_others_in_its_journal_alone(
    fake, empty_bundles, bundle, labeled, tmp_path
) -> None:
    journal = tmp_path / "work" / verification.JOURNAL_FILE
    journal.parent.mkdir()
    journal.write_text('{"max_features": 8, "seed": 0}\n')
    verify_bundle(bundle, data=labeled, work_dir=journal.parent)
    assert fake.asked == ALL
    assert journal.read_text().startswith('{"max_features": 8, "seed": 0}\n')


def other_epochs(bundle: Path, data: Path) -> dict:
    return {"epochs": 3}


def other_fold(bundle: Path, data: Path) -> dict:
    return {"fold": 1}


def other_overrides(bundle: Path, data: Path) -> dict:
    return {"overrides": {"learning_rate": 0.5}}


def other_label(bundle: Path, data: Path) -> dict:
    os.utime(data / "labelsTr" / "c3.png", ns=(1, 1))
    return {}


def other_recipe(bundle: Path, data: Path) -> dict:
    path = bundle / "configs" / "train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "learning_rate": 0.5}))
    return {}


@pytest.mark.parametrize(
    "change",
    [other_epochs, other_fold, other_overrides, other_label, other_recipe],
    ids=lambda change: change.__name__,
)
def test_verify_bundle_repeats_trainings_of_anything_else(
    fake, empty_bundles, bundle, labeled, tmp_path, change
) -> None:
    verify_bundle(bundle, data=labeled, work_dir=tmp_path / "work")
    fake.asked = []
    verify_bundle(bundle, data=labeled, work_dir=tmp_path / "work", **change(bundle, labeled))
    assert fake.asked == ALL


def test_verify_bundle_leaves_the_global_generators_as_they_were(
    fake, empty_bundles, bundle, labeled
) -> None:
    def state() -> tuple:
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            get_seed(),
        )

    before = state()
    verify_bundle(bundle, data=labeled)
    assert state() == before
    fake.stop_at = (8, 1)
    with pytest.raises(KeyboardInterrupt):
        verify_bundle(bundle, data=labeled)
    assert state() == before


def no_label(root: Path) -> None:
    (root / "labelsTr" / "c2.png").unlink()


def unknown_class(root: Path) -> None:
    label = np.full((48, 32), 7, dtype=np.uint8)
    Image.fromarray(label).save(root / "labelsTr" / "c2.png")


def no_labels(root: Path) -> None:
    for path in (root / "labelsTr").iterdir():
        path.unlink()


def five_cases(root: Path) -> None:
    for path in [*root.glob("*/c[5-9]*")]:
        path.unlink()


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    "spoil, options, message",
    [
        (no_label, [], "1 problems with 9 labeled cases, which check lists: image"),
        (unknown_class, [], "the label holds 7.0, and the classes are 0 to 1"),
        (no_labels, [], "no labeled case in"),
        (five_cases, [], "fold 0 holds out 1 of 5 labeled cases, and an interval needs 2"),
        (nothing, ["--fold", "5"], "fold 5 holds out 0 of 10 labeled cases"),
        (nothing, ["--num_seeds", "1"], "num_seeds is 1: give at least 2"),
        (nothing, ["--num_seeds", "1000000000"], "num_seeds is 1000000000: give at most 1000"),
        (nothing, ["--max_minutes", "0"], "max_minutes is 0: give minutes above 0"),
        (nothing, ["--epochs", "0"], "epochs is 0: give at least 1"),
        (nothing, ["--epochs", "few"], "--epochs is 'few': give a whole number"),
        (nothing, ["--seed", "-1"], "--seed is -1"),
        (nothing, ["--update", "no"], "--update is 'no'"),
        (nothing, ["--work", "a#b"], "work folder"),
        (nothing, ["--data", "nowhere"], "no such data: 'nowhere'"),
    ],
    ids=lambda value: (
        " ".join(value) if isinstance(value, list) else getattr(value, "__name__", "")
    ),
)
def test_verify_command_refuses_bad_input_in_one_line(
    capsys, monkeypatch, fake, bundle, labeled, tmp_path, spoil, options, message
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(labeled)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as stop:
        data = [] if "--data" in options else ["--data", str(labeled)]
        main(["verify", str(bundle), *data, *options])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err and len(printed.err.strip().splitlines()) == 1
    assert printed.out == "" and fake.asked == []
    assert contents(tmp_path) == before


def test_verify_command_needs_a_bundle_and_data(capsys, fake, bundle, labeled) -> None:
    for options, message in (
        ([str(bundle.parent), "--data", str(labeled)], "is no bundle"),
        ([str(bundle)], "no labeled data: give --data DIR or --datalist FILE"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["verify", *options])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_verify_command_moves_the_bundle_only_when_told(capsys, fake, bundle, labeled) -> None:
    fake.levels[16] = 0.9
    before = contents(bundle)
    main(["verify", str(bundle), "--data", str(labeled)])
    out = capsys.readouterr().out
    assert "width 16, seed 1: Dice 0.9010" in out
    assert "width 8 is too narrow: width 16 gains +0.0986 Dice at least" in out
    assert "recommended: width 16" in out and "train it" not in out
    assert f"--update moves {bundle} to width 16" in out
    assert contents(bundle) == before
    main(["verify", str(bundle), "--data", str(labeled), "--update"])
    out = capsys.readouterr().out
    assert "width 16 now, at its initialization: train it" in out and "--update" not in out
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    parser.get_parsed_content("network_def").load_state_dict(weights)
    assert parser["network_def"]["filters"] == [16] * 4
    assert check_bundle(bundle, data=labeled).problems == ()
    written = json.loads((bundle / "docs" / "verification.json").read_text())
    assert (written["selected"], written["recommended"], len(written["trainings"])) == (8, 16, 7)
    race = json.loads((bundle / "docs" / "search.json").read_text())["race"]
    assert (race["searched"], race["is_decided"], len(race["widths"])) == (8, True, 4)
    # Where it is now, the wider is no better.
    fake.levels[32], fake.asked = 0.9, []
    main(["verify", str(bundle), "--data", str(labeled), "--update"])
    assert "recommended: width 16, as it is" in capsys.readouterr().out
    assert fake.asked[:3] == [(16, 0), (8, 0), (32, 0)]


def test_a_bundle_that_a_race_chose_races_widths_that_had_no_part_in_it(
    fake, bundle, labeled
) -> None:
    fake.levels[16] = 0.9
    main(["verify", str(bundle), "--data", str(labeled), "--update"])
    race = json.loads((bundle / "docs" / "search.json").read_text())["race"]
    assert {row["max_features"] for row in race["widths"]} == {32, 16, 8, 4}
    fake.levels |= {8: 0.9, 4: 0.9, 2: 0.9}
    found = verify_bundle(bundle, data=labeled)
    assert found.selected == 16 and {2, 1} < set(found.widths)


def test_verify_command_says_where_a_trained_bundle_went(capsys, fake, bundle, labeled) -> None:
    fake.levels[16] = 0.9
    (bundle / "configs" / "datalist.json").write_text('{"training": [], "validation": []}')
    main(["verify", str(bundle), "--data", str(labeled), "--update"])
    out = capsys.readouterr().out
    assert f"what was trained at width 8 is in {bundle / 'former_width8'}" in out


def test_write_verification_writes_every_case(fake, bundle, labeled) -> None:
    found = verify_bundle(bundle, data=labeled)
    path = write_verification(Bundle.open(bundle), found)
    assert path == bundle / "docs" / "verification.json"
    content = json.loads(path.read_text())
    assert content["trainings"][0]["evaluation"]["dice"] == [[0.8]] * 8
    assert content["num_updates"] == found.num_updates


@pytest.mark.slow
def test_widths_of_a_race_see_the_same_crops(bundle, labeled, tmp_path) -> None:
    shared = SharedBatches(6)

    def crops(width: int, seed: int, **keys: object) -> tuple[list[float], dict[str, torch.Tensor]]:
        copy = verification._write_width(
            Bundle.open(bundle), width, tmp_path / f"w{width}_{seed}_segmentation"
        )
        options = {**data_options(labeled, None), "num_workers": 0, "seed": seed}
        parser = ConfigParser(copy.config("train"))
        parser.update({"bundle_root": str(copy.root), **options})
        brief = brief_options(parser, copy.plan, num_updates=20)
        brief = {**brief, "train#trainer#epoch_length": 3, "epochs": 2, **keys}
        workflow = copy.workflow(("train",), {**options, **brief})
        trainer = workflow.parser.get_parsed_content("train#trainer")
        seen = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: seen.append(trainer.state.batch[0]["image"].sum())
        )
        workflow.run()
        weights = workflow.parser.get_parsed_content("network_def").state_dict()
        return [float(value) for value in seen], weights

    def loader(seed: int, **changes: object) -> dict[str, object]:
        definition = Bundle.open(bundle).config("train")["train"]["dataloader"]
        return {"train#dataloader": shared.dataloader(seed, {**definition, **changes})}

    narrow, weights = crops(4, 0)
    assert len(narrow) == 6 and len(set(narrow)) == 6
    wide, wide_weights = crops(16, 0)
    assert wide == narrow
    assert crops(4, 1)[0] != narrow
    again, others = crops(4, 0)
    assert again == narrow and equal(weights, others)
    # Batches that are shared change nothing, and are loaded once.
    first, others = crops(4, 0, **loader(0))
    assert first == narrow and equal(weights, others)
    later, others = crops(16, 0, **loader(0, _target_="loads.nothing"))
    assert later == narrow and equal(wide_weights, others)


@pytest.mark.slow
@pytest.mark.parametrize(
    "epochs, updates_per_epoch", [(None, 20), (5, 4)], ids=["updates of crops", "whole epochs"]
)
def test_a_training_of_a_race_is_annealed(bundle, labeled, epochs, updates_per_epoch) -> None:
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    small = {"batch_size": 2, "patches_per_case": 1}
    try:  # of the race's trainings the first alone, for which there is always time
        found = verify_bundle(
            bundle, data=labeled, epochs=epochs, max_minutes=1e-6, overrides=small
        )
    finally:
        hook.remove()
    assert len(found.trainings) == 1 and len(rates) == found.num_updates
    assert found.num_updates == (epochs * updates_per_epoch if epochs else 120)
    # The template's (1 - epoch / epochs) ** 0.9, over the epochs that a race has.
    steps = found.num_updates // updates_per_epoch
    expected = [0.01 * (1 - epoch / steps) ** 0.9 for epoch in range(steps)]
    assert rates == pytest.approx(np.repeat(expected, updates_per_epoch))
    assert rates[-1] < 0.25 * rates[0]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether the weights of two networks are the same."""
    return first.keys() == second.keys() and all(map(torch.equal, first.values(), second.values()))


@pytest.mark.slow
def test_search_with_labels_searches_and_races(capsys, labeled, tmp_path) -> None:
    bundle = tmp_path / "x_segmentation"
    words = ["search", "--images", str(labeled), "--bundle", str(bundle), "--num_images", "2"]
    main([*words, "--method", "paper", "--with_labels", "--max_minutes", "0.01"])
    out = capsys.readouterr().out
    assert f"the labels of {labeled} are read now: the choice rests on them" in out
    content = json.loads((bundle / "docs" / "search.json").read_text())
    assert content["race"]["searched"] == content["selected"]["max_features"]
    assert content["race"]["is_decided"] is False
    assert "no other width than" in out


@pytest.mark.slow
def test_search_with_labels_goes_on_with_a_race_that_was_stopped(
    capsys, fake, labeled, tmp_path
) -> None:
    bundle = tmp_path / "x_segmentation"
    words = ["search", "--images", str(labeled), "--bundle", str(bundle), "--num_images", "1"]
    words += ["--method", "paper", "--with_labels"]
    fake.levels = {**fake.levels, **{width: 0.8 for width in (512, 256, 128, 64)}}
    fake.on_training = lambda: (_ for _ in ()).throw(OSError(28, "No space left", "x"))
    with pytest.raises(SystemExit):
        main(words)
    chosen = json.loads((bundle / "docs" / "search.json").read_text())
    fake.on_training = lambda: None
    fake.stop_at = (2 * chosen["selected"]["max_features"], 0)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(words)
    done = list(fake.asked)
    fake.asked.clear()
    fake.stop_at = None
    capsys.readouterr()
    main([words[0], *(f"{word}/" if os.path.isdir(word) else word for word in words[1:])])
    assert "is searched: going on with its race" in capsys.readouterr().out  # typed otherwise
    assert done and not set(done[1:]) & set(fake.asked)
    raced = json.loads((bundle / "docs" / "search.json").read_text())
    assert raced["race"]["searched"] == chosen["selected"]["max_features"]
    assert raced["ladder"] == chosen["ladder"]
    assert not list(tmp_path.glob(".x_segmentation*"))
    # The same once more is a search of a bundle that is there.
    with pytest.raises(SystemExit):
        main(words)
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "second, patients, words",
    [
        (None, (), "none of the 2 cases"),
        (0.8, (), "1 of the 2 cases"),
        (0.8, ("p", "p"), "1 of the 1 cases"),
    ],
    ids=["nothing", "one case", "one patient"],
)
def test_a_race_without_labeled_voxels_says_so_after_one_training(
    bundle, labeled, monkeypatch, empty_bundles, second, patients, words
) -> None:
    def train(bundle: Bundle, *, epochs, fold, seed, **_: object) -> Training:
        nothing = Evaluation(("a", "b"), ((None,), (second,)), patients=patients)
        return Training(bundle.selection.max_features, fold, seed, epochs, (), nothing, 1.0)

    monkeypatch.setattr(verification, "train_bundle", train)
    with pytest.raises(NothingToCompareError, match=words + r" or patients .* \(a, b\), and"):
        verify_bundle(bundle, data=labeled)


def test_verify_update_looks_at_the_card_before_it_trains(bundle, labeled, fake, capsys) -> None:
    card = bundle / "docs" / "README.md"
    card.write_text(card.read_text().replace("<!-- xtiny:", "<!-- "))
    with pytest.raises(SystemExit):
        main(["verify", str(bundle), "--data", str(labeled), "--update"])
    assert "<!-- xtiny:" in capsys.readouterr().err and not fake.asked


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--images", "IMAGES", "--with_labels"],
            "has no labels for --with_labels: give an nnU-Net",
        ),
        (["--images", "DATA", "--max_minutes", "3"], "are for the race: give --with_labels too"),
        (["--images", "DATA", "--with_labels", "--max_minutes", "x"], "--max_minutes is 'x'"),
    ],
    ids=["no labels", "no race", "no number"],
)
def test_search_with_labels_refuses_bad_input_before_the_search(
    capsys, labeled, tmp_path, options, message
) -> None:
    places = {"IMAGES": str(labeled / "imagesTr"), "DATA": str(labeled)}
    words = [places.get(word, word) for word in options]
    with pytest.raises(SystemExit) as stop:
        main(["search", "--bundle", str(tmp_path / "x_segmentation"), *words])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err and len(printed.err.strip().splitlines()) == 1
    assert not (tmp_path / "x_segmentation").exists()


@pytest.mark.slow
def test_verify_bundle_measures_real_trainings(bundle, labeled, tmp_path) -> None:
    before = contents(bundle)
    options = {"data": labeled, "epochs": 2, "work_dir": tmp_path / "work"}
    options["overrides"] = {"num_workers": 0}
    found = verify_bundle(bundle, **options)
    assert contents(bundle) == before
    assert [path.name for path in (tmp_path / "work").iterdir()] == [verification.JOURNAL_FILE]
    assert found.num_updates == 2 and {item.epochs for item in found.trainings} == {2}
    (cases,) = {item.evaluation.cases for item in found.trainings}
    assert len(cases) == 2
    dice = [item.evaluation.mean_dice for item in found.trainings]
    assert len(set(dice)) > 1 and all(0 <= value <= 1 for value in dice)
    for item in found.differences:
        assert item.low <= item.mean <= item.high
    # The same trainings again, from the journal and anew.
    assert verify_bundle(bundle, **options) == found
    again = verify_bundle(bundle, **{**options, "work_dir": None})
    assert [item.evaluation for item in again.trainings] == [
        item.evaluation for item in found.trainings
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3], ids=["slices", "volumes"])
def test_verify_command_takes_volumes_and_a_datalist(capsys, tmp_path, dims) -> None:
    root, bundle = tmp_path / "data", tmp_path / "v_segmentation"
    for index in range(4):
        values = texture((20, 24, 18), index).astype(np.float32)
        write_nifti(root / "imagesTr" / f"v{index}_0000.nii.gz", values=values)
        label = np.digitize(values, [100, 170]).astype(np.uint8)
        write_nifti(root / "labelsTr" / f"v{index}.nii.gz", values=label)
    main(
        ["search", "--images", str(root), "--bundle", str(bundle), "--num_images", "2"]
        + ["--label_names", "background,gray,white", "--spatial_dims", str(dims)]
        + ["--method", "paper"]
    )
    entries = [
        {"image": f"imagesTr/v{i}_0000.nii.gz", "label": f"labelsTr/v{i}.nii.gz"} for i in range(4)
    ]
    content = {"training": entries[:2], "validation": entries[2:]}
    (root / "list.json").write_text(json.dumps(content))
    capsys.readouterr()
    main(["verify", str(bundle), "--datalist", str(root / "list.json"), "--epochs", "1"])
    out = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("width ") and ", seed " in line for line in out) >= 4
    assert "1 updates a training, 2 cases held out" in out
    assert any("(tolerance 0.0283)" in line for line in out)
    assert any(line.startswith("recommended: width ") for line in out)
