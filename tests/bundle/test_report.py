from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.report import report_page, write_report
from tests.bundle.choices import RACE, aligned

SHIPPED = Path(__file__).parents[2] / "bundle" / "nuclei_fluorescence_xtiny_segmentation"
# Names as files, patients and classes may have them.
HOSTILE = "<script>alert(1)</script>\"' onload=x {{ 7*7 }} \u202egnp.exe \udcff\n"
VOID = ("meta", "link", "img", "br", "wbr", "hr")


class Page(HTMLParser):
    """Elements and attributes of a page, whose tags must match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A copy of a shipped bundle, without its weights."""
    ignored = shutil.ignore_patterns("*.pt", "scripts", "report.html")
    return Path(shutil.copytree(SHIPPED, tmp_path / SHIPPED.name, ignore=ignored))


def checked(text: str) -> Page:
    """A page that needs no other file and runs nothing."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and not {"script", "link", "iframe"} & {
        tag for tag, _ in page.tags
    }
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        links = [attributes[name] for name in ("href", "src") if name in attributes]
        assert all(str(link).startswith(("#", "data:image/png;base64,")) for link in links)
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in re.findall(r'href="(#[^"]*)"', text)} <= targets
    return page


def test_write_report_gives_the_same_bytes_for_the_same_bundle(bundle, tmp_path) -> None:
    first = write_report(bundle).read_bytes()
    assert write_report(bundle).read_bytes() == first
    moved = shutil.move(bundle, tmp_path / "elsewhere" / bundle.name)
    assert write_report(moved, tmp_path / "other.html").read_bytes() == first
    checked(first.decode())


def test_report_page_says_at_each_stage_what_brings_the_rest(bundle) -> None:
    text = report_page(Bundle.open(bundle))
    assert "0.921" in text and "48 cases that were not trained on" in text
    for command in (
        "verify BUNDLE --data DATA --update",
        "deploy BUNDLE",
        "report BUNDLE --images",
    ):
        assert command in text
    (bundle / "docs" / "evaluation.json").unlink()
    (bundle / "configs" / "datalist.json").unlink()
    text = report_page(Bundle.open(bundle))
    assert "Not measured yet: <code>evaluate BUNDLE --data DATA</code>" in text
    assert "The network is at its initialization" in text


def test_report_page_tells_of_a_race_with_intervals(bundle, plan_2d) -> None:
    choice = replace(aligned(plan_2d, {16: 0.71, 8: 0.29}, 0.71), max_features=16, race=RACE)
    opened = Bundle(bundle, choice, ("background", "cell"))
    text = report_page(opened)
    assert "moved the choice from width 8 to width 16" in text
    assert "<td>\u22120.0500</td><td>\u22120.0700 to \u22120.0300</td>" in text
    assert "threshold 0.25" in text and "71 %" in text
    checked(text)


@pytest.mark.parametrize("private", [False, True])
def test_report_page_makes_hostile_names_harmless(bundle, private) -> None:
    opened = Bundle.open(bundle)
    table = replace(opened.selection.table, images=(HOSTILE,) * len(opened.selection.table.images))
    hostile = Bundle(opened.root, replace(opened.selection, table=table), ("background", HOSTILE))
    text = report_page(hostile, name=HOSTILE, private=private)
    text.encode("utf-8")
    page = checked(text)
    assert "alert(1)" in text and "<script" not in text and "\u202e" not in text
    assert "49" not in re.findall(r"onload=x (\S+)", text)
    shells = re.findall(r"--conf models (.*) --conf zoo_source", text)
    assert shells and shells[0].startswith("&#39;&lt;script&gt;")  # quoted for a shell
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]


def test_report_page_is_private_when_told(bundle) -> None:
    opened = Bundle.open(bundle)
    case = opened.selection.table.images[0]
    text, private = (report_page(opened, private=flag) for flag in (False, True))
    name = case.rpartition("/")[2].replace("_", "_<wbr>").replace(".", ".<wbr>")
    assert name in text and "This page holds" in text
    assert name not in private and "This page holds" not in private
    assert "data:image" not in private
    for held in re.findall(r'"label": "([^"]*)"', (bundle / "configs/datalist.json").read_text()):
        assert Path(held).stem not in private


def test_report_page_leaves_out_a_sheet_that_is_none(bundle) -> None:
    (bundle / "docs" / "panels.png").write_text('"><script>alert(1)</script>')
    text = report_page(Bundle.open(bundle))
    assert "data:image" not in text and "evaluate BUNDLE --data DATA</code> brings them" in text


def test_write_report_refuses_damage_and_keeps_the_former_page(bundle) -> None:
    former = write_report(bundle).read_bytes()
    (bundle / "docs" / "deploy.json").write_text('{"timings": 3}')
    with pytest.raises(ValueError, match="is no table of deploy"):
        write_report(bundle)
    assert (bundle / "docs" / "report.html").read_bytes() == former
