from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from monai.data import load_net_with_metadata

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.torchscript import check_torchscript, write_torchscript
from monai_xtiny.networks.dynunet import build_network
from tests.exports import exported

pytestmark = pytest.mark.search


@pytest.fixture
def bundle(tmp_path, selection) -> Path:
    return exported(selection, tmp_path / "it's a $ x_segmentation")


def test_write_torchscript_writes_or_replaces_the_file(bundle, script_in_forks) -> None:
    path = bundle / "models" / "model.ts"
    path.write_bytes(b"former")
    assert write_torchscript(Bundle.open(bundle)) == path
    assert sorted(item.name for item in path.parent.iterdir()) == ["model.pt", "model.ts"]
    check_torchscript(Bundle.open(bundle))


def test_export_bundle_writes_torchscript_on_request_with_outputs_and_metadata(
    scripted, selection
) -> None:
    bundle, path = scripted, scripted / "models" / "model.ts"
    assert sorted(item.name for item in path.parent.iterdir()) == ["model.pt", "model.ts"]
    network, metadata, extra = load_net_with_metadata(path, more_extra_files=("inference.json",))
    assert metadata == json.loads((bundle / "configs" / "metadata.json").read_text())
    assert json.loads(extra["inference.json"])["network_def"]["filters"] == [8, 8, 8, 8]
    expected = build_network(selection.table.plan, 8, seed=5).eval()
    for size in ((32, 48), (64, 32)):  # scripted, not traced: another size is as good
        image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(network(image), expected(image))
    check_torchscript(Bundle.open(bundle))


def test_write_torchscript_names_no_path_and_keeps_pytorchs_alignment(scripted) -> None:
    path = scripted / "models" / "model.ts"
    content = path.read_bytes()
    for text in (scripted.parent, Path(torch.__file__).parent, Path.home()):
        assert str(text).encode() not in content
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            start = entry.header_offset + 30
            name, extra = (
                int.from_bytes(content[entry.header_offset + at :][:2], "little") for at in (26, 28)
            )
            assert (start + name + extra) % 64 == 0


def test_check_torchscript_refuses_what_is_none(bundle) -> None:
    check_torchscript(Bundle.open(bundle))  # there is none
    (bundle / "models" / "model.ts").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be compared .* package with --torchscript"):
        check_torchscript(Bundle.open(bundle))
