from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from torch import nn

from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.scores.alignment import (
    explained_variance,
    image_features,
    sample_voxels,
    sampled_features,
)
from monai_xtiny.scores.handlers import AlignmentHandler, SensitivityHandler
from monai_xtiny.scores.sensitivity import jacobian_sensitivity
from tests import processes  # noqa: F401  its fork server holds MONAI


def idle(engine, batch) -> None:
    """An engine's step that does nothing."""


def meta_image(plan, index: int) -> MetaTensor:
    generator = torch.Generator().manual_seed(index)
    image = torch.randn(plan.in_channels, *plan.patch_size, generator=generator)
    return MetaTensor(image, meta={"filename_or_obj": f"case{index}.nii.gz"})


@pytest.fixture
def network(plan_2d):
    return build_network(plan_2d, 4, seed=0)


def expected_values(network, images) -> torch.Tensor:
    plain = (image.as_tensor() for image in images)
    return torch.cat([jacobian_sensitivity(network, image[None]) for image in plain]).double()


@pytest.mark.parametrize(
    "pack",
    [
        lambda image: {"image": image[None]},
        lambda image: image[None],
        lambda image: (image[None], torch.zeros(1)),
        lambda image: [{"image": image}],
    ],
    ids=["dictionary", "tensor", "tuple", "decollated list"],
)
def test_handler_scores_every_kind_of_batch(network, plan_2d, pack) -> None:
    images = [meta_image(plan_2d, index) for index in range(3)]
    engine = Engine(idle)
    SensitivityHandler(network).attach(engine)
    state = engine.run([pack(image) for image in images])
    torch.testing.assert_close(state.sensitivity, expected_values(network, images))
    assert state.metrics["sensitivity"] == pytest.approx(float(state.sensitivity.mean()))


def test_handler_works_in_a_supervised_evaluator_and_leaves_its_network(network, plan_2d) -> None:
    images = [meta_image(plan_2d, index) for index in range(4)]
    loader = DataLoader(Dataset([{"image": image} for image in images]), batch_size=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    evaluator = SupervisedEvaluator(torch.device("cpu"), loader, network)
    SensitivityHandler(network).attach(evaluator)
    modes = [module.training for module in network.modules()]
    evaluator.run()
    assert [module.training for module in network.modules()] == modes
    torch.testing.assert_close(
        evaluator.state.sensitivity, expected_values(network, images), rtol=1e-5, atol=0
    )
    assert evaluator.state.sensitivity_cases == [f"case{i}.nii.gz" for i in range(4)]
    assert "sensitivity" in evaluator.state.metrics
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    del generator  # the loader draws its base seed from the global generator, not the handler


def test_handler_leaves_the_global_generator(network, plan_2d) -> None:
    engine = Engine(idle)
    SensitivityHandler(network).attach(engine)
    before = torch.get_rng_state()
    engine.run([{"image": meta_image(plan_2d, 0)[None]}])
    assert torch.equal(torch.get_rng_state(), before)


def test_handler_names_results_and_takes_other_keys(network, plan_2d) -> None:
    engine = Engine(idle)
    SensitivityHandler(network, keys="scan", name="jacobian").attach(engine)
    state = engine.run([{"scan": meta_image(plan_2d, 0)[None]}])
    assert state.jacobian.shape == (1,)
    assert state.metrics["jacobian"] == float(state.jacobian[0])


def test_handler_attached_twice_scores_once(network, plan_2d) -> None:
    engine = Engine(idle)
    handler = SensitivityHandler(network, keys=["image", "label"])
    handler.attach(engine)
    handler.attach(engine)
    state = engine.run([{"image": meta_image(plan_2d, 0)[None].double()}])
    assert len(state.sensitivity) == 1


def test_handler_starts_afresh_with_each_epoch(network, plan_2d) -> None:
    engine = Engine(idle)
    SensitivityHandler(network).attach(engine)
    state = engine.run([{"image": meta_image(plan_2d, 0)[None]}] * 2, max_epochs=3)
    assert len(state.sensitivity) == 2


def test_handler_takes_images_through_a_batch_transform(network, plan_2d) -> None:
    engine = Engine(idle)
    SensitivityHandler(network, batch_transform=lambda batch: batch["a"]["b"]).attach(engine)
    state = engine.run([{"a": {"b": meta_image(plan_2d, 0)[None]}}])
    assert len(state.sensitivity) == 1


def test_handler_names_the_cases_of_non_finite_values_and_keeps_all(network, plan_2d) -> None:
    images = [meta_image(plan_2d, index) for index in range(3)]
    images[1][0, 0, 0] = float("nan")
    engine = Engine(idle)
    engine.logger.disabled = True
    SensitivityHandler(network).attach(engine)
    with pytest.raises(ValueError, match=r"not finite on 1 of 3 images: case1\.nii\.gz \(nan\)"):
        engine.run([{"image": image[None]} for image in images])
    assert torch.isnan(engine.state.sensitivity).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "batch, message",
    [({"label": torch.zeros(1)}, "has the keys"), ("text", "holds str")],
    ids=["no key", "no images"],
)
def test_handler_refuses_batches_without_images(network, batch, message) -> None:
    engine = Engine(idle)
    engine.logger.disabled = True
    SensitivityHandler(network).attach(engine)
    with pytest.raises(TypeError, match=message):
        engine.run([batch])


def test_handler_leaves_the_network_after_an_error_in_it() -> None:
    class Failing(nn.Conv2d):
        def forward(self, x):
            raise RuntimeError("on purpose")

    network = Failing(1, 1, 1).train()
    engine = Engine(idle)
    engine.logger.disabled = True
    SensitivityHandler(network).attach(engine)
    with pytest.raises(RuntimeError, match="on purpose"):
        engine.run([torch.zeros(1, 1, 4, 4)])
    assert network.training
    assert network.weight.requires_grad


def score_on_rank(rank: int, plan, folder) -> None:
    """One of two ranks: rank 0 sees two images, rank 1 one."""
    import ignite.distributed as idist

    network = build_network(plan, 4, seed=0)
    images = [[0, 1], [2]][idist.get_rank()]
    engine = Engine(idle)
    SensitivityHandler(network).attach(engine)
    state = engine.run([{"image": meta_image(plan, index)[None]} for index in images])
    torch.save(
        {"values": state.sensitivity, "cases": state.sensitivity_cases},
        folder / f"rank{idist.get_rank()}.pt",
    )


@pytest.mark.slow
@pytest.mark.usefixtures("without_gpus")
def test_handler_gathers_over_ranks(network, plan_2d, tmp_path) -> None:
    import ignite.distributed as idist

    with idist.Parallel(backend="gloo", nproc_per_node=2, start_method="forkserver") as parallel:
        parallel.run(score_on_rank, plan_2d, tmp_path)
    expected = expected_values(network, [meta_image(plan_2d, index) for index in range(3)])
    for rank in range(2):
        result = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(result["values"], expected)
        assert result["cases"] == [f"case{i}.nii.gz" for i in range(3)]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_alignment_handler_compares_each_image_with_its_own_features(
    network, plan_2d, batch_size
) -> None:
    images = [meta_image(plan_2d, index).as_tensor() for index in range(4)]
    voxels = [sample_voxels(images[0][0].numel(), 64, seed=index) for index in range(4)]
    targets = [image_features(image, index) for image, index in zip(images, voxels, strict=True)]
    engine = Engine(idle)
    AlignmentHandler(network, targets).attach(engine)
    batches = [torch.stack(images[i : i + batch_size]) for i in range(0, 4, batch_size)]
    for _ in range(2):  # each epoch starts afresh
        state = engine.run(batches)
    expected = [
        explained_variance(sampled_features(network, image[None], [item.voxels])[0], item.values)
        for image, item in zip(images, targets, strict=True)
    ]
    torch.testing.assert_close(state.alignment, torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert state.metrics["alignment"] == pytest.approx(float(state.alignment.mean()))


def test_alignment_handler_refuses_more_images_than_features(network, plan_2d) -> None:
    image = meta_image(plan_2d, 0)[None]
    engine = Engine(idle)
    AlignmentHandler(network, []).attach(engine)
    with pytest.raises(ValueError, match="1 images and features of 0: give one each"):
        engine.run([image])
