"""Predict with nnU-Net, for nnunet_predictions.py: run by an environment that has nnunetv2.

usage: PYTHON_OF_NNUNET scripts/benchmarks/nnunet_reference.py JOBS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def predict(job: dict[str, Any]) -> None:
    """Write the labels of a folder of images, and the logits on the grid of the network."""
    predictor = nnUNetPredictor(
        use_mirroring=job["mirroring"], device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(job["model"], (0,))
    run, logits = predictor.predict_logits_from_preprocessed_data, []

    def noted(data: torch.Tensor) -> torch.Tensor:
        found = run(data)
        logits.append(found.numpy())
        return found

    predictor.predict_logits_from_preprocessed_data = noted
    output = Path(job["output"])
    output.mkdir(parents=True)
    predictor.predict_from_files_sequential(job["images"], str(output))
    np.savez(output / "logits.npz", *logits)


if __name__ == "__main__":
    for item in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        predict(item)
