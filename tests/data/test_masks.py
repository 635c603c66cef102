from __future__ import annotations

import glob

import pytest

from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.masks import find_masks, pair_masks, suggest_glob

PAIRS = [
    *(("x", f"x_{word}") for word in ("mask", "seg", "label", "gt", "labels", "segmentation")),
    *(
        ("x", f"x_{word}")
        for word in ("Mask", "GT", "masks", "roi", "ground_truth", "manual1", "pred")
    ),
    ("x", "x-label"),
    ("x", "x.seg"),
    ("x 1", "x 1 mask"),
    ("x", "x_mask_1"),
    ("x", "x_mask_left"),
    ("x_0000", "x_seg"),
    ("x_0000", "x_mask_0000"),
    ("IMG_0001", "IMG_0001_mask"),
    ("x_flair", "x_seg"),
    ("x_img", "x_mask"),
    ("001", "mask_001"),
    ("img-001", "gt-001"),
    ("image", "seg"),
]


@pytest.mark.parametrize("image, mask", PAIRS, ids=" ".join)
def test_pair_masks_knows_a_mask_by_its_name(image, mask) -> None:
    assert pair_masks([image, mask, "other"]) == {mask: image}
    assert find_masks([f"{name}.png" for name in (image, mask)]) == {f"{mask}.png": f"{image}.png"}


@pytest.mark.parametrize(
    "names",
    [
        ["a_mask", "b_mask"],  # all of one kind: the user's choice
        ["img_label_free_01", "img_stained_01"],
        ["IMG_0000", "IMG_0001"],
        ["case_1", "case_2_masked"],
        ["segway", "gtx"],
    ],
    ids=" ".join,
)
def test_pair_masks_leaves_images_alone(names) -> None:
    assert pair_masks(names) == {}


def test_find_masks_pairs_within_a_folder() -> None:
    names = ["p1/image.png", "p1/seg.png", "p2/seg.png", "p3/b.png", "b_mask.png"]
    assert find_masks(names) == {"p1/seg.png": "p1/image.png"}


@pytest.mark.parametrize("folder", ["masks", "labelsTr", "train_labels", "gt", "Masks 2"])
def test_find_masks_knows_a_folder_of_labels(folder) -> None:
    assert find_masks(["images/a.png", f"{folder}/a.png"]) == {f"{folder}/a.png": "images/a.png"}
    assert find_masks([f"{folder}/a.png", f"{folder}/b.png"]) == {}


@pytest.mark.parametrize(
    "images, masks, pattern",
    [
        (["a.png", "b.png"], ["a_mask.png", "b_mask.png"], "*[!k].png"),
        (["a1.png", "b2.png"], ["a1_seg.png", "b2_gt.png"], "*[0-9].png"),
        (["a.jpg", "b.jpg"], ["a_seg.png", "b_seg.png"], "*.jpg"),
        (["a_img.nii.gz", "bk_img.nii.gz"], ["a_mag.nii.gz"], "*_img.nii.gz"),
        (["img_a.png", "img_b.png"], ["gt_a.png", "gt_b.png"], "img_*.png"),
        (["images/a.png", "images/b.png"], ["masks/a.png"], "images/*.png"),
        (["p1/images/a.png", "p2/images/b.png"], ["p1/masks/a.png"], "**/images/*.png"),
        (["p1/a.png", "p2/b.jpg"], ["p1/a_seg.png"], None),
        (["p1/a.png", "p2/b.png"], ["p1/a_seg.png"], None),
    ],
    ids=str,
)
def test_suggest_glob_takes_the_images_alone(tmp_path, images, masks, pattern) -> None:
    root = tmp_path / "a [1]"
    found = suggest_glob(str(root), images, masks)
    assert found == (None if pattern is None else f"{glob.escape(str(root))}/{pattern}")
    for name in [*images, *masks] if found else ():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert found is None or [case.images for case in find_cases(found)] == [
        (str(root / name),) for name in images
    ]
