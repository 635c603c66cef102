"""Raw data of nnU-Net: some cases of the real data sets, with labels.

usage: XTINY_DATA=DIR nnUNet_raw=DIR python scripts/nnunet/prepare.py
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

# Every tenth case of the one, every twentieth of the other.
DATA_SETS = {"Dataset004_Hippocampus": 10, "Dataset076_DSB2018Fluo": 20}
NUM_PREDICTED = 3


def prepare(source: Path, target: Path, step: int) -> None:
    """Copy cases, and the images that will be predicted to ``imagesTs``."""
    content = json.loads((source / "dataset.json").read_text())
    ending = content["file_ending"]
    names = sorted(path.name[: -len(ending)] for path in (source / "labelsTr").glob(f"*{ending}"))
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names[::step]):
        shutil.copy(source / "labelsTr" / f"{name}{ending}", target / "labelsTr")
        for image in (source / "imagesTr").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"):
            shutil.copy(image, target / "imagesTr")
            if index < NUM_PREDICTED:
                shutil.copy(image, target / "imagesTs")
    content["numTraining"] = len(names[::step])
    (target / "dataset.json").write_text(json.dumps(content))
    print(f"{target.name}: {len(names[::step])} cases")


if __name__ == "__main__":
    for data_set, every in DATA_SETS.items():
        prepare(
            Path(os.environ["XTINY_DATA"]) / data_set,
            Path(os.environ["nnUNet_raw"]) / data_set,
            every,
        )
