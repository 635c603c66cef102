"""A rule is one file and one line in the table: shown with a toy."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from monai_xtiny.__main__ import main
from monai_xtiny.bundle.summary import advice, search_summary
from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.choice import select_width
from monai_xtiny.selection.rule import Rule, Selection
from monai_xtiny.selection.rules import RULES, check_method, find_rule, refinement, suited_method

CONFIGS = Path(__file__).parents[2] / "configs"

WIDEST = Rule(
    "widest",
    choose=lambda table: Selection("widest", table.widths[0], {table.widths[0]: 0.7}, 0.7, table),
    describe=lambda table: f"The widest of {len(table.ladder)} widths was taken, unseen.",
    voters=lambda table: "all who were asked",
    num_images=2,
    needs_alignment=True,
    refine=lambda table, unit_cost: {table.widths[-1]: 3},
    doubt=lambda selection: "Nobody has looked",
)


@pytest.fixture
def widest(monkeypatch) -> Rule:
    """The toy, in the table of rules for the time of a test."""
    monkeypatch.setitem(RULES, WIDEST.name, WIDEST)
    return WIDEST


def test_select_width_and_advice_ask_a_registered_rule(widest, selection) -> None:
    chosen = select_width(selection.table, "widest")
    assert (chosen.method, chosen.max_features) == ("widest", 32)
    assert check_method("widest") == "widest"
    assert advice(chosen).startswith("Nobody has looked: score more initializations")
    assert "(method widest, confidence 70%)" in search_summary(chosen, "x")


@pytest.mark.search
def test_search_runs_a_registered_rule_to_its_bundle(widest, tmp_path, png_folder, capsys) -> None:
    bundle = tmp_path / "x_segmentation"
    command = ["search", "--images", str(png_folder), "--bundle", str(bundle), "--method", "widest"]
    main(command)
    search = json.loads((bundle / "docs" / "search.json").read_text())
    assert search["method"] == "widest"
    assert search["selected"]["max_features"] == search["ladder"][0]["max_features"]
    # The images, the alignment and the initializations that it asked for.
    assert len(search["images"]) == 2
    narrowest = search["ladder"][-1]
    assert (len(narrowest["sensitivity"]), len(narrowest["alignment"])) == (1, 3)
    card = (bundle / "docs" / "README.md").read_text()
    assert "The widest of 8 widths was taken, unseen." in card
    assert "Confidence: 70 % of all who were asked agree. Nobody has looked: score more" in card
    assert "Nobody has looked" in capsys.readouterr().out


def test_a_rule_leaves_nothing_behind() -> None:
    assert list(RULES) == ["paper", "bayes", "alignment"]
    names = "paper, bayes, alignment"
    with pytest.raises(ValueError, match=f"unknown method 'widest': give one of {names}"):
        find_rule("widest")


@pytest.mark.parametrize("name", list(RULES))
def test_rules_choose_and_are_listed_under_their_own_name(name, selection) -> None:
    rungs = [replace(rung, alignment=rung.sensitivity) for rung in selection.table.ladder]
    table = replace(selection.table, ladder=tuple(rungs), alignment_seeds=(5,))
    rule = find_rule(name)
    assert rule.name == name == rule.choose(table).method
    assert f"`{name}`" in rule.describe(table)


def test_suited_method_is_that_of_the_first_rule(widest, selection) -> None:
    assert suited_method(selection.table) == "paper"
    rungs = [replace(rung, alignment=rung.sensitivity) for rung in selection.table.ladder]
    assert suited_method(replace(selection.table, ladder=tuple(rungs))) == "bayes"


def test_refinement_asks_the_rule_within_its_limits(widest, selection) -> None:
    table: ScoreTable = selection.table  # 3 s old
    ask = refinement("widest", max_seconds=3.5, unit_cost=float)
    assert ask is not None
    assert ask(table) == {1: 3}
    late = refinement("widest", max_seconds=3.0, unit_cost=float)
    assert late is not None
    assert late(table) == {}
    assert refinement("widest", num_seeds=2, unit_cost=float) is None
    assert refinement("paper", unit_cost=float) is None


def test_rule_refuses_to_refine_what_it_does_not_measure() -> None:
    with pytest.raises(ValueError, match="'widest' refines the alignment and does not need it"):
        replace(WIDEST, needs_alignment=False)


@pytest.mark.parametrize(
    "key", ["rule", "num_images", "num_wide_images", "refine", "seeds", "plan", "sample"]
)
def test_search_config_resolves_each_key_alone(key, png_folder) -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "search.json"))
    parser.update({"images": str(png_folder), "progress": False})
    assert parser.get_parsed_content(key) is not None


@pytest.mark.parametrize("name", ["search.json", "multi_gpu_search.json"])
def test_search_config_has_no_long_expression(name) -> None:
    lines = (CONFIGS / name).read_text().splitlines()
    long = [line.strip() for line in lines if len(line.strip()) > 160 and "$" in line]
    assert [line for line in long if not line.startswith('"plan"')] == []


@pytest.mark.search
def test_selection_imports_no_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, monai_xtiny.selection as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'{package.__name__}.{module.name}')\n"
        "print(len([n for n in sys.modules if n.startswith(package.__name__ + '.')]))\n"
        "print(sorted({'torch', 'monai', 'ignite', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, heavy = done.stdout.split("\n")[:2]
    assert int(count) >= 6
    assert heavy == "[]"
