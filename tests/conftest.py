from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from monai_xtiny.system.startup import import_monai

import_monai()  # in less time than whatever imports it next would take

from monai_xtiny.bundle import torchscript
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.cli.commands import main
from monai_xtiny.data.case import Sample
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.choice import Selection
from tests import shared
from tests.processes import run_code
from tests.tiers import is_fast, mark_search, refuse_long, share_out

DATA = Path(__file__).parent / "golden"


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    mark_search(items)  # before pytest leaves out what other tiers hold
    result = yield
    num_workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if num_workers > 1:
        items[:] = share_out(items, num_workers)
    return result


def pytest_collection_finish() -> None:
    """What is alive now stays: no test looks for garbage in it."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not is_fast(item):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        refuse_long(patch)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def shared_root(tmp_path_factory) -> None:
    """Workers have folders of their own in that of the test run."""
    root = tmp_path_factory.getbasetemp()
    shared.root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture(scope="session")
def made_once(shared_root) -> Callable[[str, Callable[[Path], object]], Path]:
    """:func:`tests.shared.made_once`; whatever uses it is not in the fast tier."""
    return shared.made_once


@pytest.fixture(scope="session")
def searched(made_once) -> Path:
    """The bundle of a search on six small PNGs; to be read only."""

    def make(folder: Path) -> None:
        for index in range(6):
            write_png(folder / "images" / f"case{index}.png", seed=index)
        bundle = folder / "x_segmentation"
        command = ["search", "--images", str(folder / "images"), "--bundle", str(bundle)]
        main([*command, "--label_names", "background,cell"])

    return made_once("searched", make) / "x_segmentation"


@pytest.fixture
def searched_copy(searched, tmp_path) -> Path:
    """A copy of the bundle of :func:`searched`, to be changed."""
    return Path(shutil.copytree(searched, tmp_path / searched.name))


@pytest.fixture
def scripted(made_once, selection) -> Path:
    """A bundle that was exported with its TorchScript; to be read only."""
    name = "it's a $ x_segmentation"
    made = made_once(
        "scripted", lambda folder: export_bundle(selection, folder / name, torchscript=True)
    )
    return made / name


@pytest.fixture
def script_in_forks(monkeypatch) -> None:
    """TorchScript is made by forked processes: the same network sooner, in other bytes."""
    forks = SimpleNamespace(run=run_code, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(torchscript, "subprocess", forks)


@pytest.fixture(scope="session")
def golden() -> dict:
    """Facts to match: selections of the published rule, and plans of nnU-Net."""
    return {path.stem: json.loads(path.read_text()) for path in DATA.glob("*.json")}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the data sets of docs/evidence.md; a test without them says so."""
    root = os.environ.get("XTINY_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("XTINY_DATA does not name the folder of the real data sets")
    return Path(root)


@pytest.fixture
def without_gpus(monkeypatch) -> None:
    """Processes that the test starts compute on the cores: ranks may not share a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def plan_2d() -> UNetPlan:
    """A small 2D plan of four stages."""
    return UNetPlan(
        2, 1, 2, (1, 1), (32, 48), ((3, 3),) * 4, ((1, 1), *((2, 2),) * 3), (32, 64, 128, 256)
    )


@pytest.fixture
def plan_3d() -> UNetPlan:
    """A small anisotropic 3D plan of three stages."""
    return UNetPlan(
        3,
        2,
        3,
        (1.5, 1.5, 5.0),
        (24, 16, 6),
        ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
        ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        (32, 64, 128),
    )


@pytest.fixture
def sample_2d(plan_2d: UNetPlan) -> Sample:
    """Three random images of the 2D plan."""
    generator = torch.Generator().manual_seed(0)
    shape = (plan_2d.in_channels, *plan_2d.patch_size)
    images = tuple(torch.randn(shape, generator=generator) for _ in range(3))
    return Sample(("a.png", "b.png", "c.png"), images)


@pytest.fixture
def selection(plan_2d) -> Selection:
    """A choice of width 8 among six, made of invented scores."""
    ladder = tuple(
        Rung(width, (width,) * 4, 100 * width, 101 * width, width / 10, ((2.0, 1.0 + width),))
        for width in (32, 16, 8, 4, 2, 1)
    )
    table = ScoreTable(
        plan_2d, ladder, (5,), ("a.png", "b.png"), {"load": 1.0, "score": 2.0, "total": 3.0}, {}
    )
    return Selection("paper", 8, {8: 1.0}, None, table)


def texture(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth random field in 0..255, of the given shape."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    field -= field.min()
    return (1 + 254 * field / field.max()).astype(np.uint8)


def write_labeled_pictures(root: Path) -> Path:
    """Ten pictures of 48 x 32 in an nnU-Net folder, whose label is a threshold of the image."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for index in range(10):
        field = texture((48, 32), index)
        Image.fromarray(field).save(root / "imagesTr" / f"c{index}_0000.png")
        mask = (field > field.mean()).astype(np.uint8)
        Image.fromarray(mask).save(root / "labelsTr" / f"c{index}.png")
    return root


def write_png(path: Path, shape: tuple[int, ...] = (20, 24), seed: int = 0) -> Path:
    """A PNG of (height, width[, 3])."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(texture(shape, seed)).save(path)
    return path


def write_nifti(
    path: Path,
    shape: tuple[int, ...] = (20, 24, 18),
    seed: int = 0,
    affine: np.ndarray | None = None,
    values: np.ndarray | None = None,
) -> Path:
    """A NIfTI volume of the given shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = texture(shape, seed).astype(np.float32) if values is None else values
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def png_folder(tmp_path: Path) -> Path:
    """A folder of six small PNGs."""
    folder = tmp_path / "images"
    for index in range(6):
        write_png(folder / f"case{index}.png", seed=index)
    return folder


def write_dicom_series(
    folder: Path, slices: int = 5, series: str = "1.2.3", shape: tuple[int, int] = (12, 16)
) -> Path:
    """An axial CT series: (rows, columns), 0.5 x 0.75 mm, slices 3 mm apart."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{index}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, f"{series}.{index}"
        item.SeriesInstanceUID, item.Modality = series, "CT"
        item.StudyInstanceUID, item.FrameOfReferenceUID = "1.2.840.1", f"{series}.9999"
        item.InstanceNumber = index + 1
        item.ImagePositionPatient = [0, 0, 3 * index]
        item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        item.PixelSpacing = [0.75, 0.5]
        item.Rows, item.Columns, item.SamplesPerPixel = *shape, 1
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.PhotometricInterpretation = "MONOCHROME2"
        voxels = np.random.default_rng(index).integers(0, 900, shape, dtype=np.uint16)
        item.PixelData = voxels.tobytes()
        pydicom.dcmwrite(folder / f"slice{slices - index}.dcm", item)
    return folder
