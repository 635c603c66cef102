from __future__ import annotations

import json
import multiprocessing
import sys

import pytest

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundled.options import check_options, check_shared_memory
from monai_xtiny.system.config_text import PlainPath
from monai_xtiny.system.errors import innermost
from tests.exports import exported

RIGHT = {
    "epochs": 1, "val_interval": 301, "fold": 0, "num_workers": 0, "val_fraction": 0,
    "overlap": 0.5, "cache_rate": 1, "learning_rate": 1e-3, "weight_decay": 0, "resume": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", 0), ("epochs", -3), ("epochs", 1.5), ("epochs", True), ("epochs", "ten"),
        ("val_interval", 0), ("fold", -1), ("fold", 0.0), ("num_workers", None), ("seed", 2**32),
        ("val_fraction", 1), ("val_fraction", -0.1), ("val_fraction", "0,2"), ("overlap", 1.0),
        ("cache_rate", 1.1), ("learning_rate", 0), ("learning_rate", float("nan")),
        ("learning_rate", float("inf")), ("weight_decay", -1e-3), ("resume", "no"), ("resume", 1),
    ],
)  # fmt: skip
def test_check_options_says_what_an_option_may_be(name, value) -> None:
    check_options(RIGHT)
    with pytest.raises(ValueError, match=f"^--{name} is .*: give (a|True)"):
        check_options({**RIGHT, name: value})


@pytest.mark.parametrize(
    "options, unknown",
    [
        (["--epochs", "3", "--run_id=run", "--meta_file", "m", "--logging_file", "False"], None),
        (["--train#trainer#max_epochs", "3", "--other::key", "3"], None),
        (["--val-interval", "3", "--noresume", "--", "--trace"], None),
        (["--own", "3", "--epochs", "$@own + 1"], None),
        (["--tracking", "mlflow", "--experiment_name", "x"], None),
        (["--epoch", "3"], "epoch"),
        (["--epochs", "1", "--folder=x"], "folder"),
        (["--experiment_name", "x"], "experiment_name"),
    ],
    ids=str,
)
@pytest.mark.parametrize("files", ["{0}", "['{0}']", "{0},{0}"])
def test_check_options_names_unknown_ones(tmp_path, monkeypatch, options, unknown, files) -> None:
    config = tmp_path / "train.json"
    config.write_text(json.dumps({"epochs": 3, "fold": 0, "val_interval": 1, "resume": True}))
    given = ["--config_file", files.format(config), *options]
    monkeypatch.setattr(sys, "argv", ["/lib/monai/bundle/__main__.py", "run", *given])
    if unknown is None:
        check_options({})
    else:
        with pytest.raises(ValueError, match=f"no option --{unknown} in "):
            check_options({})
    monkeypatch.setattr(sys, "argv", ["own_script.py", "run", *given])
    check_options({})


@pytest.mark.parametrize("name", ["train", "inference"])
@pytest.mark.parametrize(
    ("path", "message"),
    [(123, "is 123, which is no path: write ./NAME"), ("a#b", "is 'a::b', and MONAI reads '#'")],
    ids=["digits", "hash"],
)
def test_check_paths_stops_a_workflow_before_it_reads_or_writes(
    tmp_path, selection, monkeypatch, name, path, message
) -> None:
    bundle = Bundle.open(exported(selection, tmp_path / "x_segmentation"))
    monkeypatch.chdir(tmp_path)
    file = "split_file" if name == "train" else "checkpoint"
    for option in ("dataset_dir", "output_dir", "ckpt_dir", file):
        with pytest.raises(RuntimeError) as stop:
            bundle.workflow((name,), {option: path})
        assert message in str(innermost(stop.value)) and f"--{option}" in str(innermost(stop.value))
    assert bundle.workflow((name,), {"dataset_dir": PlainPath("a#b")})
    assert [item.name for item in tmp_path.iterdir()] == ["x_segmentation"]


def test_check_options_wants_no_workers_that_are_not_forked(monkeypatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    check_options({"num_workers": 0})
    with pytest.raises(ValueError, match="--num_workers is 2: workers that are not forked"):
        check_options({"num_workers": 2})


def test_check_shared_memory_names_what_is_not_there(monkeypatch) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    check_shared_memory()
    monkeypatch.setattr(multiprocessing, "Lock", fail)
    with pytest.raises(OSError, match=r"no shared memory \(No space .*: give /dev/shm some room"):
        check_shared_memory()
