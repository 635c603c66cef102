"""Whether a bundle does with an image what this version writes into ``inference.json``.

What runs without that file (an ONNX file, the page in a browser, nnU-Net) does only this.
"""

from __future__ import annotations

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.templates import merged_template, templates_dir
from monai_xtiny.plan.preprocessing import preprocessing_fragment

# Numbers and paths that change no label, or that whoever asks takes from the file.
_SETTINGS = {
    "bundle_root", "output_dir", "dataset_dir", "device", "batch_size", "sw_batch_size", "overlap",
    "num_workers", "in_channels", "num_classes", "spacing", "patch_size", "slice_axis",
    "network_def", "file_endings",
}  # fmt: skip


def check_inference(bundle: Bundle, runner: str) -> None:
    """Refuse a bundle whose ``inference.json`` does what no other code does.

    Args:
        bundle: of anybody.
        runner: what would run in its place, for the message.

    Raises:
        ValueError: a key other than numbers and paths differs, or the bundle was imported from
            nnU-Net.
    """
    config = bundle.config("inference")
    if "nnunet_plans" in config:
        raise ValueError(
            f"it was imported from nnU-Net, whose processing of images {runner} does not have"
        )
    expected = merged_template("inference", bundle.kind, templates_dir())
    expected["preprocessing"]["transforms"] += preprocessing_fragment(bundle.kind)
    changed = [
        key
        for key in dict.fromkeys((*expected, *config))
        if key not in _SETTINGS and config.get(key) != expected.get(key)
    ]
    if changed:
        raise ValueError(
            "its configs/inference.json is not as this version writes it "
            f"({', '.join(changed[:3])}), and {runner} does only that"
        )
