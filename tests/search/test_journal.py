from __future__ import annotations

import json

import pytest

from monai_xtiny.search.journal import Journal, UnitScore, journal_path, remove_journal

SUBJECT = {"images": "abc", "version of torch": "2"}


def test_journal_gives_back_bit_for_bit_what_was_added(tmp_path) -> None:
    path = tmp_path / "sub" / "j.jsonl"
    first = Journal(path, SUBJECT)
    score = UnitScore((0.1 + 0.2, 1e-300, 3.0), (1 / 3, 0.25, 0.5))
    first.add((8, 369), score)
    first.add((1, 4), UnitScore((2.0, 2.0, 2.0)))
    assert Journal(path, SUBJECT).scores == first.scores
    assert first.scores[8, 369] == score


def test_journal_leaves_out_a_line_that_a_kill_cut_off(tmp_path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, SUBJECT)
    for seed in range(3):
        journal.add((8, seed), UnitScore((float(seed),)))
    whole = path.read_bytes()
    starts = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        resumed = Journal(path, SUBJECT)
        assert len(resumed.scores) == max(sum(start <= size for start in starts) - 1, 0)
        resumed.add((2, 9), UnitScore((5.0,)))
        assert Journal(path, SUBJECT).scores == resumed.scores


def test_journal_reads_what_two_processes_began_together(tmp_path) -> None:
    path = tmp_path / "j.jsonl"
    first, second = Journal(path, SUBJECT), Journal(path, SUBJECT)
    first.add((8, 0), UnitScore((1.0,)))
    content = path.read_bytes()
    path.unlink()
    second.add((4, 0), UnitScore((2.0,)))
    path.write_bytes(content + path.read_bytes())
    assert Journal(path, SUBJECT).scores == {**first.scores, **second.scores}


def test_journal_reads_the_files_of_all_ranks_and_writes_its_own(tmp_path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, SUBJECT).add((8, 0), UnitScore((1.0,)))
    Journal(path, SUBJECT, rank=1).add((4, 0), UnitScore((2.0,)))
    Journal(path, SUBJECT, rank=12).add((2, 0), UnitScore((3.0,)))
    assert set(Journal(path, SUBJECT, rank=3).scores) == {(8, 0), (4, 0), (2, 0)}
    remove_journal(path)
    assert not list(tmp_path.iterdir())


def test_journal_of_one_rank_leaves_what_another_writes_alone(tmp_path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, SUBJECT).add((8, 0), UnitScore((1.0,)))
    with open(path, "a") as file:
        file.write('{"max_features": 4, "se')
    before = path.read_bytes()
    Journal(path, SUBJECT, rank=1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("changed", SUBJECT)
def test_journal_of_another_search_is_refused_and_says_what_differs(tmp_path, changed) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, SUBJECT).add((8, 0), UnitScore((1.0,)))
    with pytest.raises(ValueError, match=f"j.jsonl.* differs in its {changed}"):
        Journal(path, {**SUBJECT, changed: "new"})


@pytest.mark.parametrize(
    "content",
    ["not JSON\n", json.dumps(SUBJECT) + '\n{"seed": 1}\n', "[1]\n[2]\n", "3\n"],
    ids=["text", "a unit without scores", "lists", "a number"],
)
def test_journal_refuses_a_file_that_is_none(tmp_path, content) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"j.jsonl.* (is no|is the) journal"):
        Journal(path, SUBJECT)


def test_journal_path_is_hidden_beside_the_bundle(tmp_path) -> None:
    path = journal_path(tmp_path / "a_segmentation")
    assert path.parent == tmp_path.resolve()
    assert path.name.startswith(".a_segmentation")


def test_remove_journal_of_nothing_is_no_error(tmp_path) -> None:
    other = tmp_path / "j.jsonl.bak"
    other.write_text("mine")
    remove_journal(tmp_path / "j.jsonl")
    assert other.read_text() == "mine"
