"""The book and the README: each command is run or marked, each message is one of the code's."""

from __future__ import annotations

import ast
import configparser
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

import monai_xtiny
from monai_xtiny.cli.arguments import read_words
from monai_xtiny.cli.commands import COMMANDS, GROUPS
from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.headers import read_headers
from tests.pages import FENCE, ROOT, RUN_BY, Block, Shell, blocks_of, first_of_their_kind, prepare
from tests.processes import run_module
from tests.shared import made_once

sys.path.append(str(ROOT / "docs"))

from from_code import NOUNS, api_page, commands_page  # noqa: E402

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
KINDS = ("bash", "python", "javascript", "cpp", "text", "json", "math", "{toctree}")
NODE_MODULES = ROOT / "scripts/web/node_modules"
VOLUMES = ("docs/howto/msd.md", "docs/howto/dicom.md")
BLOCKS = {page: blocks_of(page) for page in PAGES}
SHELL = [block for blocks in BLOCKS.values() for block in blocks if block.kind == "bash"]
RUN = {page: [b for b in blocks if not b.mark] for page, blocks in BLOCKS.items()}
RUN_SHELL = [block for blocks in RUN.values() for block in blocks if block.kind == "bash"]
LINES = [
    pair
    for of_volumes in (True, False)
    for blocks in [[block for block in RUN_SHELL if (block.page in VOLUMES) is of_volumes]]
    for pair in zip(blocks, first_of_their_kind(blocks), strict=True)
]
# These two take an ONNX file, which takes long to write: one test runs them.
ONNX_PAGES = ("docs/howto/deployment.md", "docs/segment.md")
RUN_PAGES = [page for page in dict.fromkeys(b.page for b in RUN_SHELL) if page not in ONNX_PAGES]
COMMANDS_BY_NAME = {
    **COMMANDS,
    **{f"{group} {name}": one for group, many in GROUPS.items() for name, one in many.items()},
}


def source_text() -> str:
    """What an option, a config's key or a script's argument may come from."""
    folders = ("monai_xtiny", "configs", "scripts")
    files = [file for name in folders for file in (ROOT / name).rglob("*.*")]
    kept = [file for file in files if file.suffix in (".py", ".json", ".sh", ".mjs")]
    return "\n".join(f.read_text(encoding="utf-8") for f in kept if "node_modules" not in f.parts)


def test_every_block_says_what_it_is() -> None:
    assert len(SHELL) > 25
    for blocks in BLOCKS.values():
        for block in blocks:
            assert block.kind in KINDS, f"{block.page}: ```{block.kind} before {block.text[:40]!r}"


@pytest.mark.parametrize("page", PAGES)
def test_marks_say_why_or_by_what(page) -> None:
    for block in BLOCKS[page]:
        assert not block.mark or block.mark.endswith("*"), block.mark
        if block.mark.startswith(RUN_BY):
            files = [f for f in re.findall(r"`([\w.][\w./]+)`", block.mark) if "/" in f]
            assert files, f"{page}: {block.mark} names no file"
            scripts = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
            for command in block.commands:
                for word in essentials(command):
                    assert word in scripts, f"{page}: {files} do not run {word!r} of {command!r}"
            ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
            for file in files:
                assert file.startswith(("tests/", ".ci/")) or f"bash {file}" in ci, file
        elif block.mark:
            reason = block.mark.partition(": ")[2]
            assert len(reason) > 10, f"{page}: give a reason: {block.mark}"


def essentials(command: str) -> list[str]:
    """What another text that runs this command has in it too."""
    words = shlex.split(command, comments=True)
    options = [word for word in words if word.startswith("--")]
    configs = [name for word in words for name in re.findall(r"configs/(\w+)\.json", word)]
    scripts = [word for word in words if word.startswith("scripts/")]
    return [*options, *configs, *scripts]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_those_of_the_code(page) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    inline = re.findall(r"`(python -m monai_xtiny [^`]+)`", FENCE.sub("", text).replace("\n", " "))
    typed = [line for b in BLOCKS[page] if b.kind == "bash" for line in b.commands]
    for line in [*inline, *typed]:
        words = shlex.split(line, comments=True)
        if words[:3] == ["python", "-m", "monai_xtiny"] and words[3] != "COMMAND":
            check_command(words[3:], line)
        for word in words:
            if word.startswith(("scripts/", "bundle/", "configs/")):
                assert (ROOT / word).exists() or word.startswith("configs/"), f"{page}: {line}"
        script = next((word for word in words if re.match(r"scripts/.*\.(py|sh)$", word)), None)
        if script is not None:
            known = (ROOT / script).read_text(encoding="utf-8")
            for option in (word for word in words if word.startswith("--")):
                # The benchmark of searches hands the options of a search on.
                is_search = option.lstrip("-") in read_names("search") and "search.py" in script
                name = option[2:] if script.endswith("quickstart.sh") else option
                assert name in known or is_search, f"{page}: {script} has no {option}"


def read_names(command: str) -> list[str]:
    """The options of a command."""
    return list(inspect.signature(COMMANDS_BY_NAME[command]).parameters)


def check_command(words: list[str], line: str) -> None:
    """A command of ours has the options that are typed, and what it needs where it is whole."""
    name = " ".join(words[:2]) if words[0] in GROUPS else words[0]
    assert name in COMMANDS_BY_NAME, line
    rest = words[len(name.split()) :]
    try:
        read_words(rest, COMMANDS_BY_NAME[name])
    except ValueError as error:
        if " needs --" not in str(error):  # a command that is only mentioned
            raise AssertionError(f"{line}: {error}") from error


def test_options_that_are_mentioned_exist() -> None:
    known = source_text()
    # Of docker, torchrun, pip, git, Slurm, nnU-Net and MONAI Label.
    others = {"shm-size", "nproc_per_node", "rdzv_endpoint", "disable_tta", "extra-index-url"}
    others |= {"find-links", "no-index"}
    others |= {"c", "name", "noNAME"}
    for page in PAGES:
        text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
        for name in re.findall(r"`(?:[^`]* )?--([a-zA-Z][\w-]*)", text):
            plain = name.removeprefix("no") if name.startswith("no") else name
            found = name in others or re.search(rf"\b({name}|{plain})\b", known)
            assert found, f"{page}: --{name} is no option of anything here"


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)]+)\)", text):
            file, _, anchor = link.partition("#")
            assert link.startswith("https:") or (ROOT / file).exists(), f"{page}: {link}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", (ROOT / file).read_text("utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"\W+", "-", head.lower()) for head in heads], link


def test_readme_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50
    assert text.count("|---|") == 1 and text.count("![") == 1


def templates_of(path: Path) -> list[str]:
    """Every text of a module, with an ellipsis where a value is put in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            found.append(re.sub("…+", "…", "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^- `(.+)`$", page, re.MULTILINE)
    assert len(messages) > 25
    known = [text for path in (ROOT / "monai_xtiny").rglob("*.py") for text in templates_of(path)]
    for message in messages:
        assert any(message in text for text in known), f"no error says: {message}"


def test_commands_page_has_every_command_and_option() -> None:
    page = commands_page()
    for name in COMMANDS_BY_NAME:
        assert f"\n## {name}\n" in f"\n{page}"
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        for option in read_names(name):
            (row,) = [line for line in section.splitlines() if line.startswith(f"| `--{option}` |")]
            assert len(row.split(" | ")[-1]) > 5, f"{name}: nothing is said of --{option}"


def test_api_page_has_every_public_name() -> None:
    page = api_page()
    for name in {*monai_xtiny.__all__, *NOUNS} - {"__version__"}:
        assert len(re.findall(rf":: monai_xtiny\.(\w+\.)*{name}\n", page)) == 1, name


def test_drawing_of_layers_is_the_import_contract() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    contract = setup["importlinter:contract:layers"]["layers"].split("\n")
    rows = [row.replace("monai_xtiny.", "").split(" | ") for row in contract if row]
    drawing = (ROOT / "docs/images/layers.svg").read_text(encoding="utf-8")
    drawn = re.findall(r'<tspan font-weight="bold">(\w+)</tspan>', drawing)
    assert drawn == [name for row in rows[1:] for name in row]


@pytest.fixture
def shell(page, real_data, tmp_path) -> Shell:
    """A copy of what a reader of the page has."""
    is_3d = page in VOLUMES
    kind = "volumes" if is_3d else "images"
    source = real_data / ("Dataset004_Hippocampus" if is_3d else "Dataset076_DSB2018Fluo")
    made = made_once(f"docs_{kind}", lambda folder: prepare(kind, source, folder))
    return Shell(Path(shutil.copytree(made, tmp_path / "page", symlinks=True)))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES)
def test_commands_of_a_page_run(shell, page) -> None:
    run_page(shell, page)


def run_page(shell: Shell, page: str) -> None:
    """Run the commands of a page, each block from where the reader begins."""
    for block, lines in LINES:
        shell.cwd = shell.folder
        for line in lines if block.page == page else ():
            shell.run(line)


def run_code(folder: Path, block: Block, *arguments: object) -> None:
    """Run a program of a page in a folder."""
    script = folder / "program.py"
    script.write_text(block.text, encoding="utf-8")
    done = run_module(str(script), *arguments, cwd=folder, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, f"{block.text}\n{done.stderr[-3000:]}"


def programs(page: str, kind: str = "python") -> list[Block]:
    """The programs of a page."""
    return [block for block in RUN[page] if block.kind == kind]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/howto/images.md"])
def test_python_makes_labels_of_masks(shell, page) -> None:
    labels = shell.folder / "DATA" / "labelsTr"
    expected = {path.name: np.asarray(Image.open(path)) for path in labels.iterdir()}
    shutil.rmtree(labels)
    (block,) = programs(page)
    run_code(shell.folder, block)
    assert {path.name for path in labels.iterdir()} == set(expected)
    for name, label in expected.items():
        np.testing.assert_array_equal(np.asarray(Image.open(labels / name)), label)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/howto/dicom.md"])
def test_python_converts_dicom_as_the_search_reads_it(shell, page) -> None:
    (block,) = programs(page)
    run_code(shell.folder, block)
    for case in find_cases(shell.folder / "DICOM"):
        volume = nibabel.load(shell.folder / "DATA" / "imagesTr" / f"{case.name}_0000.nii.gz")
        (header,) = read_headers([case])
        assert volume.shape == header.shape
        np.testing.assert_allclose(volume.header.get_zooms(), header.spacing, atol=1e-5)
        voxels = pydicom.dcmread(shell.folder / "DICOM" / case.name / "slice24.dcm").pixel_array
        np.testing.assert_array_equal(np.asarray(volume.dataobj)[..., 0], voxels.T)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/howto/python.md"])
def test_python_of_the_page_on_python_runs(shell, page) -> None:
    for block in programs(page):
        run_code(shell.folder, block)


@pytest.mark.slow
@pytest.mark.parametrize("page", [ONNX_PAGES[0]])
def test_programs_label_an_image_as_segment_does(shell, page) -> None:
    folder, image = shell.folder, sorted((shell.folder / "IMAGES").iterdir())[0]
    for each in ONNX_PAGES:
        run_page(shell, each)
    shell.run("python -m monai_xtiny segment B IMAGES --output LABELS --engine onnx")  # no --tta
    expected = np.asarray(Image.open(folder / "LABELS" / image.name.replace("_0000", "")))
    model = folder / "B" / "models" / "model_standalone.onnx"
    alone, windows = programs(page)
    run_code(folder, alone, model, image, folder / "python.png")
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "python.png")), expected)
    shutil.copy(ROOT / "monai_xtiny/deploy/segmenter.py", folder)
    shutil.copy(image, folder / "IMAGES" / "CASE1_0000.png")
    check = "\nimport numpy\nnumpy.save('labels.npy', labels)\n"
    run_code(folder, replace(windows, text=windows.text + check))
    np.testing.assert_array_equal(np.load(folder / "labels.npy").T, expected)
    shutil.copy(model, folder)
    shutil.copy(image, folder / "image.png")
    (block,) = programs("docs/web.md")
    run_code(folder, block)
    missing = []
    if "ORT" in os.environ:
        label_in_cpp(folder, page, Path(os.environ["ORT"]))
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "label.pgm")), expected)
    else:
        missing.append("the C++ needs ORT, the folder of a release of ONNX Runtime")
    if shutil.which("node") and NODE_MODULES.is_dir():
        label_in_javascript(folder, page, model, image)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "javascript.png")), expected)
    else:
        missing.append("the JavaScript needs Node and scripts/web/node_modules (web/build.sh)")
    if missing:
        pytest.skip("; ".join(missing))


def label_in_cpp(folder: Path, page: str, release: Path) -> None:
    (folder / "ORT").symlink_to(release)
    (program,) = programs(page, "cpp")
    (folder / "label.cpp").write_text(program.text, encoding="utf-8")
    Image.open(folder / "image.png").save(folder / "image.pgm")
    (block,) = [block for block in BLOCKS[page] if "g++" in block.text]
    done = subprocess.run(
        ["bash", "-ec", block.text], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def label_in_javascript(folder: Path, page: str, model: Path, image: Path) -> None:
    (folder / "node_modules").symlink_to(NODE_MODULES)
    (program,) = programs(page, "javascript")
    (folder / "label.mjs").write_text(program.text, encoding="utf-8")
    command = ["node", "label.mjs", str(model), str(image), "javascript.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
