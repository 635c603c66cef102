"""The command line. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
from fire.decorators import SetParseFns

from monai_xtiny.cli.options import (
    check_output,
    emit,
    make_workflow,
    parse_flag,
    parse_int,
    parse_num_images,
    search_overrides,
)
from monai_xtiny.system.errors import innermost


class _Job:
    """A command whose arguments are known but which has not run.

    Fire finds unknown flags only after it has called the command, so commands return this.
    """

    def __init__(self, run: Callable[[], None], debug: bool, *, resumes: bool = False) -> None:
        self._run = run
        self._debug = debug
        self._resumes = resumes

    def __str__(self) -> str:
        return ""


def _text(value: str) -> str:
    """Take an argument as it was typed; Fire would make numbers and tuples of some paths."""
    return value


@SetParseFns(images=_text, bundle=_text, label_names=_text, plans=_text, configuration=_text)
@SetParseFns(method=_text, device=_text, config_file=_text, num_images=_text)
def search(
    images: str,
    bundle: str,
    label_names: str | None = None,
    spatial_dims: int | None = None,
    method: str = "alignment",
    num_images: str | None = None,
    seed: int = 369,
    num_seeds: int | None = None,
    max_seconds: float | None = None,
    max_memory_gb: float | None = None,
    plans: str | None = None,
    configuration: str = "2d",
    device: str = "auto",
    overwrite: bool = False,
    unit_test: bool = False,
    torchscript: bool = False,
    config_file: str | None = None,
    debug: bool = False,
) -> _Job:
    """Find the width from unlabeled images and write the MONAI bundle.

    Args:
        images: folder, nnU-Net data set, MSD dataset.json, DICOM tree or glob.
        bundle: folder to write, OUT/NAME_segmentation.
        label_names: names of the classes with commas, background first.
        spatial_dims: 2 or 3; volumes are planned in 3D without.
        method: rule that chooses the width.
        num_images: images to score, or 'all'; without, 8 for 'alignment' and 16 for 'paper'.
        seed: of the first initialisation and of the draw of images.
        num_seeds: initialisations of every width; without, one for 'paper', and for 'alignment' as
            many of narrow widths as make the choice sure.
        max_seconds: time after which no further initialisations are asked for.
        max_memory_gb: what the process may hold; fewer networks and images at a time below it.
        plans: nnU-Net's plans file to take the plan from.
        configuration: of the plans file.
        device: auto, cpu, cuda, cuda:1, ...
        overwrite: replace a bundle that is there, and its test.
        unit_test: write the Model Zoo's unit test too, OUT/test_NAME_segmentation.py.
        torchscript: write models/model.ts too; after training, 'package --torchscript' renews it.
        config_file: a changed copy of configs/search.json.
        debug: show tracebacks.
    """

    def run() -> None:
        overrides = search_overrides(
            images=images,
            bundle=bundle,
            label_names=label_names,
            spatial_dims=spatial_dims,
            method=method,
            num_images=num_images,
            seed=seed,
            num_seeds=num_seeds,
            max_seconds=max_seconds,
            max_memory_gb=max_memory_gb,
            plans=plans,
            configuration=configuration,
            device=device,
            overwrite=overwrite,
            unit_test=unit_test,
            torchscript=torchscript,
        )
        workflow = make_workflow(config_file, overrides)
        workflow.run()
        workflow.finalize()

    return _Job(run, debug, resumes=True)


@SetParseFns(images=_text, label_names=_text, num_images=_text, output=_text)
def plan(
    images: str,
    label_names: str | None = None,
    spatial_dims: int | None = None,
    num_images: str = "16",
    seed: int = 369,
    output: str | None = None,
    debug: bool = False,
) -> _Job:
    """Plan the full U-Net of the images by nnU-Net's rules, as JSON.

    Args:
        images: folder, nnU-Net data set, MSD dataset.json, DICOM tree or glob.
        label_names: names of the classes with commas, background first.
        spatial_dims: 2 or 3; volumes are planned in 3D without.
        num_images: images to read in full, or 'all'; of the others headers are read.
        seed: of the draw of images.
        output: file to write; the terminal without.
        debug: show tracebacks.
    """

    def run() -> None:
        from dataclasses import asdict

        from monai_xtiny.data.labels import read_label_names
        from monai_xtiny.plan.planner import plan_images

        planned = plan_images(
            images,
            spatial_dims=spatial_dims,
            out_channels=len(read_label_names(images, label_names)),
            num_images=parse_num_images(num_images),
            seed=parse_int("seed", seed),
            progress=True,
        )
        emit(json.dumps(asdict(planned), indent=4), output)

    return _Job(run, debug)


@SetParseFns(images=_text, output=_text, label_names=_text, plans=_text, configuration=_text)
@SetParseFns(device=_text, config_file=_text, num_images=_text, method=_text)
def score(
    images: str,
    output: str,
    label_names: str | None = None,
    spatial_dims: int | None = None,
    num_images: str | None = None,
    seed: int = 369,
    method: str = "alignment",
    num_seeds: int | None = None,
    max_seconds: float | None = None,
    max_memory_gb: float | None = None,
    plans: str | None = None,
    configuration: str = "2d",
    device: str = "auto",
    config_file: str | None = None,
    debug: bool = False,
) -> _Job:
    """Score every width and write the table, without choosing.

    Args:
        images: folder, nnU-Net data set, MSD dataset.json, DICOM tree or glob.
        output: JSON file to write.
        label_names: names of the classes with commas, background first.
        spatial_dims: 2 or 3; volumes are planned in 3D without.
        num_images: images to score, or 'all'; without, 8 for 'alignment' and 16 for 'paper'.
        seed: of the first initialisation and of the draw of images.
        method: rule that the scores are for.
        num_seeds: initialisations of every width; without, one for 'paper', and for 'alignment' as
            many of narrow widths as make the choice sure.
        max_seconds: time after which no further initialisations are asked for.
        max_memory_gb: what the process may hold; fewer networks and images at a time below it.
        plans: nnU-Net's plans file to take the plan from.
        configuration: of the plans file.
        device: auto, cpu, cuda, cuda:1, ...
        config_file: a changed copy of configs/search.json.
        debug: show tracebacks.
    """

    def run() -> None:
        import ignite.distributed as idist

        from monai_xtiny.scores.table import table_to_dict
        from monai_xtiny.search.journal import journal_path, remove_journal

        overrides = search_overrides(
            images=images,
            bundle="unused",
            label_names=label_names,
            spatial_dims=spatial_dims,
            method=method,
            num_images=num_images,
            seed=seed,
            num_seeds=num_seeds,
            max_seconds=max_seconds,
            max_memory_gb=max_memory_gb,
            plans=plans,
            configuration=configuration,
            device=device,
        )
        check_output(output)
        journal = journal_path(output)
        overrides["journal"] = journal
        workflow = make_workflow(config_file, overrides, init_id="initialize_scores")
        table = workflow.parser.get_parsed_content("scores")
        if idist.get_rank() == 0:
            emit(json.dumps(table_to_dict(table), indent=4), output)
            remove_journal(journal)
        workflow.finalize()

    return _Job(run, debug, resumes=True)


@SetParseFns(scores=_text, output=_text, method=_text)
def select(
    scores: str, output: str | None = None, method: str | None = None, debug: bool = False
) -> _Job:
    """Choose a width from a table of scores.

    Args:
        scores: what 'score' wrote, or a bundle's docs/search.json.
        output: search.json to write; only the table is printed without.
        method: rule that chooses the width; without, the one that the table was scored for.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.folder import write_search
        from monai_xtiny.bundle.summary import ladder_table
        from monai_xtiny.scores.table import table_from_dict
        from monai_xtiny.selection.choice import select_width, suited_method
        from monai_xtiny.system.files import read_json

        check_output(output)
        table = table_from_dict(read_json(scores))
        selection = select_width(table, method or suited_method(table))
        if output is not None:
            write_search(selection, output)
        print(ladder_table(selection))

    return _Job(run, debug)


@SetParseFns(search=_text, bundle=_text, label_names=_text)
def export(
    search: str,
    bundle: str,
    label_names: str | None = None,
    overwrite: bool = False,
    unit_test: bool = False,
    torchscript: bool = False,
    debug: bool = False,
) -> _Job:
    """Write the bundle of a choice.

    Args:
        search: what 'select' wrote, or a bundle's docs/search.json.
        bundle: folder to write, OUT/NAME_segmentation.
        label_names: names of the classes with commas, background first.
        overwrite: replace a bundle that is there, and its test.
        unit_test: write the Model Zoo's unit test too, OUT/test_NAME_segmentation.py.
        torchscript: write models/model.ts too; after training, 'package --torchscript' renews it.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.folder import read_search
        from monai_xtiny.bundle.writer import export_bundle
        from monai_xtiny.data.labels import read_label_names

        names = None if label_names is None else read_label_names(search, label_names)
        path = export_bundle(
            read_search(search),
            bundle,
            label_names=names,
            overwrite=parse_flag("overwrite", overwrite),
            unit_test=parse_flag("unit_test", unit_test),
            torchscript=parse_flag("torchscript", torchscript),
        )
        print(path)

    return _Job(run, debug)


@SetParseFns(search=_text, output=_text)
def report(search: str, output: str, debug: bool = False) -> _Job:
    """Print the ladder of a choice and draw its curve.

    Args:
        search: a bundle, its docs/search.json, or what 'select' wrote.
        output: PNG file to write.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.figures import plot_sensitivity
        from monai_xtiny.bundle.folder import read_search
        from monai_xtiny.bundle.summary import ladder_table

        path = Path(search)
        check_output(output)
        selection = read_search(path / "docs" / "search.json" if path.is_dir() else path)
        print(ladder_table(selection))
        print(plot_sensitivity(selection, output))

    return _Job(run, debug)


@SetParseFns(bundle=_text, data=_text, datalist=_text)
def check(
    bundle: str, data: str | None = None, datalist: str | None = None, debug: bool = False
) -> _Job:
    """Check labelled data and weights against a bundle before training.

    Args:
        bundle: the bundle.
        data: nnU-Net data set root with imagesTr and labelsTr.
        datalist: MSD dataset.json.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.training.check import check_bundle

        found = check_bundle(bundle, data=data, datalist=datalist)
        for problem in found.problems:
            print(problem)
        if found.problems:
            raise ValueError(
                f"{len(found.problems)} problems with {found.num_cases} labelled cases: "
                f"{found.problems[0]}"
            )
        padded = f"; {found.num_padded} are smaller than the patch and padded"
        print(
            f"{found.num_cases} labelled cases fit the bundle{padded if found.num_padded else ''}"
        )

    return _Job(run, debug)


@SetParseFns(bundle=_text, data=_text, datalist=_text)
def evaluate(
    bundle: str, data: str | None = None, datalist: str | None = None, debug: bool = False
) -> _Job:
    """Measure a trained bundle on the cases held out, and write that into its model card.

    Args:
        bundle: the bundle.
        data: nnU-Net data set root with imagesTr and labelsTr.
        datalist: MSD datalist whose validation section to evaluate; that of training without.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.card import write_evaluation
        from monai_xtiny.bundle.folder import label_names
        from monai_xtiny.training.evaluate import evaluate_held_out

        found, planes = evaluate_held_out(bundle, data=data, datalist=datalist)
        card = write_evaluation(bundle, found, planes)
        for name, dice, distance in zip(
            label_names(bundle)[1:], found.class_dice, found.class_hd95, strict=True
        ):
            print(f"{name}: Dice {dice:.4f}, HD95 {distance:.2f}")
        print(f"mean Dice {found.mean_dice:.4f} over {len(found.cases)} cases held out\n{card}")

    return _Job(run, debug)


@SetParseFns(bundle=_text, output=_text)
def package(
    bundle: str, output: str | None = None, torchscript: bool = False, debug: bool = False
) -> _Job:
    """Zip a bundle as the Model Zoo distributes it; the same bundle gives the same bytes.

    Args:
        bundle: the bundle.
        output: zip to write; NAME_vVERSION.zip beside the bundle without.
        torchscript: write models/model.ts, the network as TorchScript with its weights, first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.archive import package_bundle

        check_output(output)
        flag = parse_flag("torchscript", torchscript)
        print(package_bundle(bundle, output, torchscript=flag))

    return _Job(run, debug)


@SetParseFns(bundle=_text, data=_text, datalist=_text, work=_text)
def verify(
    bundle: str,
    data: str | None = None,
    datalist: str | None = None,
    epochs: int | None = None,
    num_seeds: int = 2,
    fold: int = 0,
    seed: int = 0,
    work: str | None = None,
    update: bool = False,
    debug: bool = False,
) -> _Job:
    """Train the width of a bundle and its neighbours briefly: is it on the plateau?

    Args:
        bundle: the bundle; it stays as it is without --update.
        data: nnU-Net data set root with imagesTr and labelsTr.
        datalist: MSD dataset.json.
        epochs: over all cases; 400 updates without, whatever the number of cases.
        num_seeds: trainings of each width, at least 2.
        fold: of the split by case.
        seed: of the first training.
        work: folder that keeps finished trainings, so that they are not repeated.
        update: write docs/verification.json, and move the bundle to the width recommended; what
            was trained is copied to former_widthN in the bundle's folder first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.folder import read_search
        from monai_xtiny.training.compare import verification_summary
        from monai_xtiny.training.update import update_bundle
        from monai_xtiny.training.verify import verify_bundle

        is_update = parse_flag("update", update)
        found = verify_bundle(
            bundle,
            data=data,
            datalist=datalist,
            epochs=None if epochs is None else parse_int("epochs", epochs),
            num_seeds=parse_int("num_seeds", num_seeds),
            fold=parse_int("fold", fold),
            seed=parse_int("seed", seed),
            work_dir=work,
            progress=lambda training: print(
                f"width {training.max_features}, seed {training.seed}: Dice "
                f"{training.evaluation.mean_dice:.4f}, trained in {training.seconds:.0f} s",
                flush=True,
            ),
        )
        ladder = read_search(Path(bundle, "docs", "search.json")).table.ladder
        parameters = {rung.max_features: rung.num_parameters for rung in ladder}
        print(verification_summary(found, parameters))
        is_other = found.recommended != found.selected
        if is_update:
            former = update_bundle(bundle, found)
            print(Path(bundle, "docs", "verification.json"))
            if is_other:
                print(f"{bundle}: width {found.recommended} now, at its initialisation: train it")
            if former is not None:
                print(f"what was trained at width {found.selected} is in {former}")
        elif is_other:
            print(f"--update moves {bundle} to width {found.recommended}")

    return _Job(run, debug, resumes=work is not None)


@SetParseFns(bundle=_text, images=_text, data=_text, device=_text, size=_text, output=_text)
def deploy(
    bundle: str,
    images: str | None = None,
    data: str | None = None,
    int8: bool = False,
    benchmark: bool = True,
    device: str = "cpu",
    size: str | None = None,
    output: str | None = None,
    debug: bool = False,
) -> _Job:
    """Export a bundle's network to ONNX, and time it in four engines beside the full width.

    Args:
        bundle: the bundle; models/model.onnx and docs/deploy.json are written.
        images: unlabeled images as 'search' takes them, to compare outputs and calibrate int8 on.
        data: nnU-Net data set root with imagesTr and labelsTr, to measure Dice on held-out cases.
        int8: write models/model_int8.onnx too; needs --images.
        benchmark: time the engines; --nobenchmark only exports.
        device: to time them on: cpu, cuda, cuda:1, ...
        size: of the image to time, with commas, for a picture WIDTH,HEIGHT; the patch without.
        output: JSON file to write in place of docs/deploy.json.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.deploy.pipeline import deploy_bundle, deployment_table

        check_output(output)
        made = deploy_bundle(
            bundle,
            images=images,
            data=data,
            int8=parse_flag("int8", int8),
            benchmark=parse_flag("benchmark", benchmark),
            device=device,
            size=None if size is None else [parse_int("size", edge) for edge in size.split(",")],
            output=output,
            progress=lambda text: print(text, flush=True),
        )
        for file in made.files:
            print(file)
        print(f"logits differ from PyTorch's by {made.max_difference:.1e} at most")
        for name, dice in (("float32", made.dice), ("int8", made.dice_int8)):
            if dice is not None:
                print(f"{name}: mean Dice {dice:.4f} over {made.num_cases} cases held out")
        if made.timings:
            print(deployment_table(made))

    return _Job(run, debug)


def main(command: list[str] | None = None) -> None:
    """Run the command line: exit status 0 done, 2 bad input in one line, 1 anything else."""
    commands = {
        "search": search,
        "plan": plan,
        "score": score,
        "select": select,
        "export": export,
        "report": report,
        "check": check,
        "evaluate": evaluate,
        "package": package,
        "verify": verify,
        "deploy": deploy,
    }
    job = fire.Fire(commands, command=command, name="monai-xtiny", serialize=_hide_job)
    if not isinstance(job, _Job):
        return
    warnings.filterwarnings("ignore")
    # MONAI and ignite log what is said here in one line.
    logging.disable(logging.CRITICAL)
    try:
        job._run()
    except KeyboardInterrupt:
        resumes = ": the same command goes on from what it has finished" if job._resumes else ""
        print(f"interrupted{resumes}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if job._debug:
            traceback.print_exc()
        cause = innermost(error)
        text = " ".join(str(cause).split()) or type(cause).__name__
        if isinstance(cause, OSError) and cause.strerror and cause.filename is not None:
            text = f"{os.fspath(cause.filename)!r}: {cause.strerror}"
        if isinstance(cause, (ValueError, TypeError, OSError, ImportError, MemoryError)):
            print(f"error: {text}", file=sys.stderr)
            raise SystemExit(2) from None
        print(f"failed: {type(cause).__name__}: {text} (--debug shows where)", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        logging.disable(logging.NOTSET)


def _hide_job(result: Any) -> Any:
    """Keep Fire from printing a job as if it were a result."""
    return None if isinstance(result, _Job) else result
