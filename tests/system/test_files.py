from __future__ import annotations

import errno
import hashlib
import json
import os
import stat

import pytest

from monai_xtiny.system.files import (
    append_line,
    atomic_write,
    digest_file,
    names_file,
    read_json,
    read_lines,
    write_json,
    write_text,
)

LINE = {"set": "x", "values": [0.1, 2]}


def test_atomic_write_leaves_the_former_file_when_the_block_fails(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("former")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "former"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_write_is_not_led_elsewhere_by_a_file_that_waits_there(tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (".a.txt.part", "a.txt.part", ".a.txt"):
        (tmp_path / name).symlink_to(victim)
    with atomic_write(tmp_path / "a.txt") as part:
        assert part.name == "a.txt" and stat.S_IMODE(part.parent.stat().st_mode) == 0o700
        part.write_text("new")
    assert victim.read_text() == "mine" and (tmp_path / "a.txt").read_text() == "new"


def test_atomic_write_names_the_file_of_a_full_disk(tmp_path) -> None:
    with pytest.raises(OSError, match=r"\[Errno 28\] full: '.*a\.txt'"):
        with atomic_write(tmp_path / "a.txt"):
            raise OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match=r"a\.pt' cannot be written: is the disk full\?"):
        with names_file("a.pt"):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2")
    with pytest.raises(RuntimeError, match="other"), names_file("a.pt"):
        raise RuntimeError("other")
    assert not list(tmp_path.iterdir())


def test_atomic_write_clears_what_killed_processes_left_of_this_file_alone(tmp_path) -> None:
    names = (".a.txt.tmp.x1", ".b.txt.tmp.x1", ".a.txt.mine")
    for name in names:
        (tmp_path / name).mkdir()
    write_text(tmp_path / "a.txt", "new")
    assert listing(tmp_path) == [".a.txt.mine", ".b.txt.tmp.x1", "a.txt"]


def test_atomic_write_need_not_look_for_what_was_left(tmp_path) -> None:
    (tmp_path / ".a.txt.tmp.killed").mkdir()
    with atomic_write(tmp_path / "a.txt", clears=False) as part:
        part.write_text("new")
    assert sorted(item.name for item in tmp_path.iterdir()) == [".a.txt.tmp.killed", "a.txt"]


def test_digest_file_is_that_of_its_bytes(tmp_path) -> None:
    content = bytes(range(256)) * 9000  # more than is read at a time
    (tmp_path / "a").write_bytes(content)
    assert digest_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_atomic_write_gives_a_file_the_mode_that_open_would(tmp_path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "written", "")
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "written")}
    assert len(modes) == 1


def test_write_text_writes_through_a_link(tmp_path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("former")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_write_text_refuses_a_device() -> None:
    with pytest.raises(FileExistsError, match=f"{os.devnull}' is no file: give another name"):
        write_text(os.devnull, "text")


def test_write_json_refuses_what_json_has_no_word_for(tmp_path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())
    assert read_json(write_json(tmp_path / "a.json", LINE)) == LINE


def test_read_json_reads_what_windows_wrote(tmp_path) -> None:
    (tmp_path / "a.json").write_text('{"a": "é"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": "é"}


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_read_json_refuses_what_is_no_object(tmp_path, content) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json' (is not JSON|holds no JSON object)"):
        read_json(path)


def test_journal_gives_back_what_was_written_and_skips_a_line_cut_off(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_lines(path) == []
    append_line(path, LINE)
    append_line(path, LINE)
    line = json.dumps(LINE) + "\n"
    assert path.read_text(encoding="utf-8") == 2 * line
    path.write_text(2 * line + line[:20], encoding="utf-8")
    assert read_lines(path) == [LINE, LINE]
    append_line(path, LINE)
    assert path.read_text(encoding="utf-8") == 3 * line


@pytest.mark.parametrize("content", ["[1]\n", "no\n", '{"a": 1}\n{\n'], ids=["list", "text", "cut"])
def test_read_lines_refuses_a_file_that_is_no_journal(tmp_path, content) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"journal\.jsonl' is no journal: delete it"):
        read_lines(path)


def listing(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_write_text_replaces_a_file_but_nothing_else(tmp_path) -> None:
    write_text(tmp_path / "a", "one")
    write_text(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="is no file"):
        write_text(tmp_path / "pipe", "three")
    assert listing(tmp_path) == ["a", "pipe"]


@pytest.mark.parametrize(
    "number",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000],
    ids=lambda text: text[:9],
)
def test_read_json_refuses_numbers_that_are_not_finite_and_names_the_file(tmp_path, number) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": [{number}]}}')
    with pytest.raises(ValueError, match=r"a\.json' is not JSON: "):
        read_json(path)
