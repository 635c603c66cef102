"""Cut the MNI152 template that nilearn carries into labeled axial slices, in nnU-Net's layout.

usage: python scripts/make_demo_data.py --output DIR

The T1 template is the image, the larger of its gray and white matter maps the label. Every fifth
slice is held out (imagesTs, labelsTs). Nothing is downloaded. The template is the ICBM 152 2009a
atlas, copyright 1993-2009 Louis Collins, McConnell Brain Imaging Centre, McGill University; its
license permits use, copying and distribution with that notice.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel
import nilearn
import numpy as np
from PIL import Image

LABELS = {"background": 0, "gray matter": 1, "white matter": 2}


def load_map(name: str) -> np.ndarray:
    """One of the template's maps, (x, y, z), values 0 to 255."""
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)


def main() -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    image, gray, white = (load_map(name) for name in ("t1", "gm", "wm"))
    matter = np.maximum(gray, white) >= 128
    label = (matter * (1 + (white > gray))).astype(np.uint8)
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    slices = range(40, 152, 2)
    for index, position in enumerate(slices):
        part = "Ts" if index % 5 == 2 else "Tr"
        # Rows from anterior to posterior, so that a viewer shows the face upwards.
        for name, volume in ((f"images{part}/mni_{position:03d}_0000", image),
                             (f"labels{part}/mni_{position:03d}", label)):  # fmt: skip
            Image.fromarray(volume[:, ::-1, position].T.copy()).save(output / f"{name}.png")
    content = {
        "name": output.name,
        "channel_names": {"0": "T1"},
        "labels": LABELS,
        "numTraining": sum(index % 5 != 2 for index in range(len(slices))),
        "file_ending": ".png",
    }
    (output / "dataset.json").write_text(json.dumps(content, indent=4) + "\n")


if __name__ == "__main__":
    main()
