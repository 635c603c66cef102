from __future__ import annotations

import re

import pytest

from monai_xtiny.bundled.cases import find_images
from monai_xtiny.bundled.checks import check_images
from tests.bundled.labeled import PNG, find, touch
from tests.data.test_masks import PAIRS


@pytest.mark.parametrize("image, mask", PAIRS, ids=" ".join)
def test_masks_beside_images_are_refused(tmp_path, image, mask) -> None:
    root = touch(tmp_path, f"imagesTr/{image}.png", f"imagesTr/{mask}.png", "imagesTr/other.png")
    message = re.escape(f"{mask}.png looks like a mask beside the image {image}.png: move the")
    with pytest.raises(ValueError, match=message):
        find(root, PNG)
    found = find_images(root, **PNG)
    with pytest.raises(ValueError, match=message):
        check_images(found, found.data, file_endings=["png"])
    (root / "imagesTr" / f"{mask}.png").unlink()
    found = find_images(root, **PNG)
    check_images(found, found.data, file_endings=["png"])
