from __future__ import annotations

import pytest

from monai_xtiny.nnunet.folders import find_data_set


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    for folder in ("raw/Dataset004_A", "raw/Dataset005_B", "preprocessed/Dataset004_A"):
        (tmp_path / folder).mkdir(parents=True)
    return {
        "nnUNet_raw": str(tmp_path / "raw"),
        "nnUNet_preprocessed": str(tmp_path / "preprocessed"),
    }


@pytest.mark.parametrize("dataset_id", [4, "4", "004", "Dataset004_A"])
def test_find_data_set_takes_ids_and_names(environment, tmp_path, dataset_id) -> None:
    found = find_data_set(dataset_id, environment)
    assert (found.name, found.number) == ("Dataset004_A", 4)
    assert found.preprocessed == tmp_path / "preprocessed" / "Dataset004_A"
    assert found.raw == tmp_path / "raw" / "Dataset004_A"


def test_find_data_set_does_without_raw_data(environment) -> None:
    del environment["nnUNet_raw"]
    assert find_data_set(4, environment).raw is None


@pytest.mark.parametrize(
    "dataset_id, error, message",
    [
        (
            5,
            FileNotFoundError,
            "Dataset005_B is in nnUNet_raw and not in nnUNet_preprocessed: plan",
        ),
        (
            6,
            FileNotFoundError,
            r"no data set 6 in nnUNet_preprocessed \(.* has Dataset004_A\): che",
        ),
        ("Dataset004", ValueError, "--dataset_id is 'Dataset004': give a number from 0 to 999"),
        ("-1", ValueError, "--dataset_id is '-1': give a number"),
        ("Dataset004_A/../Dataset004_A", ValueError, "--dataset_id is 'Dataset004_A/.*: give"),
    ],
    ids=["not planned", "not there", "no name", "negative", "a path"],
)
def test_find_data_set_refuses(environment, dataset_id, error, message) -> None:
    with pytest.raises(error, match=f"^{message}"):
        find_data_set(dataset_id, environment)


def test_find_data_set_refuses_an_id_of_two_data_sets(environment, tmp_path) -> None:
    (tmp_path / "raw" / "Dataset004_Other").mkdir()
    with pytest.raises(ValueError, match="Dataset004_A, Dataset004_Other have the same ID 4: rena"):
        find_data_set(4, environment)


def test_find_data_set_needs_the_environment_variable(environment) -> None:
    with pytest.raises(ValueError, match="variable nnUNet_preprocessed is not set: set it to"):
        find_data_set(4, {})
    environment["nnUNet_preprocessed"] += "/none"
    with pytest.raises(
        FileNotFoundError, match="nnUNet_preprocessed is '.*/none', and there is no"
    ):
        find_data_set(4, environment)


def test_plans_path_says_what_to_do_without_plans(environment, tmp_path) -> None:
    found = find_data_set(4, environment)
    with pytest.raises(FileNotFoundError, match="nnUNetPlans.json': plan with nnU-Net v2 .*-d 4"):
        found.plans_path("nnUNetPlans")
    with pytest.raises(ValueError, match="--plans_identifier is '../nnUNetPlans': give the name"):
        found.plans_path("../nnUNetPlans")
    (found.preprocessed / "nnUNetPlansv2.1_plans_2D.pkl").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="holds plans of nnU-Net v1, .*: plan with nnU-Net v2"):
        found.plans_path("nnUNetPlans")
    (found.preprocessed / "nnUNetPlans.json").write_text("{}")
    assert found.plans_path("nnUNetPlans") == found.preprocessed / "nnUNetPlans.json"
