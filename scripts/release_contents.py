"""What a wheel and a source distribution hold: all that they must, and nothing of one machine.

usage: python scripts/release_contents.py WHEEL SDIST
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
ASSETS = ("index.html", "licenses.txt", "page.js", "runtime.wasm", "style.css")
# Neither a checkout nor a machine's own folders: of a repository, of a build and of a cache.
FOREIGN = (".git/", "__pycache__", "node_modules", ".venv", ".pytest_cache", ".DS_Store")
# Files that git has and no release needs; measured tables are of megabytes.
LEFT_OUT = (".gitignore", "docs/benchmarks/*.csv", "docs/benchmarks/*.jsonl")


def wheel_files(tracked: Sequence[str]) -> set[str]:
    """What the wheel must hold, of the files of the repository, its own records apart."""
    package = {name for name in tracked if name.startswith("monai_xtiny/")}
    configs = {f"monai_xtiny/{name}" for name in tracked if name.startswith("configs/")}
    return package | configs | {f"monai_xtiny/web_assets/{name}" for name in ASSETS}


def sdist_files(tracked: Sequence[str]) -> set[str]:
    """What the source distribution must hold, its own records apart."""
    kept = {name for name in tracked if not any(Path(name).match(item) for item in LEFT_OUT)}
    return kept | {f"monai_xtiny/web_assets/{name}" for name in ASSETS}


def problems(held: Mapping[str, bytes], needed: set[str], machine: Sequence[str]) -> list[str]:
    """What is wrong with the files of an archive, one line each.

    Args:
        held: files and their content, without the archive's own records.
        needed: the names that must be there, and no others.
        machine: texts that would tell where it was built.
    """
    found = [f"lacks {name}" for name in sorted(needed - set(held))]
    found += [f"holds {name}" for name in sorted(set(held) - needed)]
    found += [f"holds {name}" for name in sorted(held) if any(item in name for item in FOREIGN)]
    for name, content in sorted(held.items()):
        found += [f"{name} names {text}" for text in machine if text.encode() in content]
    return found


def read_wheel(path: Path) -> dict[str, bytes]:
    """Files of a wheel; of its records the license alone, by its name in the repository."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    (license_file,) = (name for name in held if name.endswith(".dist-info/licenses/LICENSE"))
    files = {name: content for name, content in held.items() if ".dist-info/" not in name}
    return {**files, "LICENSE": held[license_file]}


def read_sdist(path: Path) -> dict[str, bytes]:
    """Files of a source distribution, without what the build adds."""
    with tarfile.open(path) as archive:
        found = {
            item.name.partition("/")[2]: file.read()
            for item in archive.getmembers()
            if (file := archive.extractfile(item)) is not None
        }
    return {
        name: content
        for name, content in found.items()
        if name not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in name
    }


def main(arguments: Sequence[str]) -> int:
    """Print what each archive holds and what is wrong with it; 1 if anything is."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = [name for name in listed.stdout.split("\0") if name]
    machine = [str(place) for place in {ROOT, Path.home()} if place != Path("/")]
    # What the build may have named: a temporary folder, followed by a name.
    machine += [f"{tempfile.gettempdir()}/build-", f"{tempfile.gettempdir()}/pip-"]
    wheel, sdist = map(Path, arguments)
    wrong = 0
    for path, held, needed in (
        (wheel, read_wheel(wheel), wheel_files(tracked) | {"LICENSE"}),
        (sdist, read_sdist(sdist), sdist_files(tracked) - {"setup.cfg"}),
    ):
        size = path.stat().st_size / 1e6
        print(f"{path.name}: {len(held)} files, {size:.1f} MB")
        for line in problems(held, needed, machine):
            print(f"  {line}")
            wrong += 1
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
