"""Only `monai_xtiny.networks` knows what a network is made of."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import monai_xtiny
from monai_xtiny import networks

PACKAGE = Path(monai_xtiny.__file__).parent
OUTSIDE = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "networks"
)
# DynUNet, its arguments and its parts; `filters` as an attribute is jinja's too.
OF_THE_FAMILY = {
    "DynUNet", "UnetBasicBlock", "UnetUpBlock", "skip_layers", "output_block", "input_block",
    "downsamples", "upsamples", "bottleneck", "upsample_kernel_size", "deep_supervision_heads",
}  # fmt: skip
MODULES_OF_NETWORKS = ("monai.networks.nets", "monai.networks.blocks")
# It builds the network of a file by itself.
NOT_YET: set[str] = set()


def names_of(source: str) -> set[str]:
    """Names, attributes, keyword arguments, imports and whole strings of a module, no prose."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def knows_the_family(source: str) -> set[str]:
    """What a module names of the networks' family."""
    found = names_of(source)
    modules = {name for name in found if name.startswith(MODULES_OF_NETWORKS)}
    return (found & OF_THE_FAMILY) | modules


@pytest.mark.parametrize(
    "source",
    [
        "from monai.networks.nets import DynUNet",
        "import monai.networks.nets as nets",
        "network.skip_layers(images)",
        "config = {'_target_': 'DynUNet'}",
        "def f(network: DynUNet) -> None: ...",
    ],
)
def test_knows_the_family_sees(source) -> None:
    assert knows_the_family(f"from __future__ import annotations\n{source}")


def test_knows_the_family_lets_prose_be() -> None:
    assert not knows_the_family('"""Each DynUNet is in a cycle of references."""')


@pytest.mark.parametrize("module", [name for name in OUTSIDE if name not in NOT_YET])
def test_modules_outside_networks_do_not_know_the_family(module) -> None:
    assert knows_the_family((PACKAGE / module).read_text(encoding="utf-8")) == set()


def test_modules_outside_take_only_the_names_that_networks_lists() -> None:
    taken = set()
    for module in OUTSIDE:
        for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                networks.__name__
            ):
                home = (node.module or "").removeprefix(f"{networks.__name__}.")
                taken |= {(alias.name, home) for alias in node.names}
    assert len(taken) > 8
    assert taken <= set(networks._HOMES.items())
