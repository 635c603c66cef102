"""The search and its stages, one by one: search, plan, score, select, export, report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_xtiny.cli.bundles import opened_to_run, parse_minutes, race_bundle
from monai_xtiny.cli.job import Job, as_typed
from monai_xtiny.cli.options import (
    SearchOptions,
    check_output,
    emit,
    make_workflow,
    parse_flag,
    parse_int,
    parse_num_images,
)
from monai_xtiny.system.files import read_json
from monai_xtiny.system.startup import import_monai

if TYPE_CHECKING:
    from monai_xtiny.training.race_folder import RaceFolder


@as_typed
def search(
    images: str,
    bundle: str,
    label_names: str | None = None,
    spatial_dims: int | None = None,
    method: str = "bayes",
    num_images: str | None = None,
    seed: int = 369,
    num_seeds: int | None = None,
    max_seconds: float | None = None,
    max_memory_gb: float | None = None,
    max_parameters: int | None = None,
    max_gmacs: float | None = None,
    max_latency_ms: float | None = None,
    plans: str | None = None,
    configuration: str = "2d",
    device: str = "auto",
    overwrite: bool = False,
    unit_test: bool = False,
    torchscript: bool = False,
    with_labels: bool = False,
    max_minutes: float | None = None,
    group: str | None = None,
    config_file: str | None = None,
    debug: bool = False,
) -> Job:
    """Find the width from unlabeled images and write the MONAI bundle.

    Args:
        images: folder, nnU-Net data set, MSD dataset.json, DICOM tree or glob.
        bundle: folder to write, OUT/NAME_segmentation.
        label_names: names of the classes with commas, background first.
        spatial_dims: 2 or 3; default: 3 for volumes.
        method: rule that chooses the width.
        num_images: images to score, or 'all'; default: as many as the rule asks for.
        seed: of the first initialization and of the draw of images.
        num_seeds: initializations of every width; default: one for 'paper', and more of narrow
            widths for the other rules.
        max_seconds: time after which no further initializations are asked for.
        max_memory_gb: what the process may hold; with less, fewer networks and images at a time.
        max_parameters: of the network: the best width within the limits is chosen.
        max_gmacs: of one forward pass on one patch, in 1e9 multiply-accumulates.
        max_latency_ms: of one forward pass on one patch, measured here with ONNX Runtime on the
            CPU, ms.
        plans: nnU-Net's plans file to take the plan from.
        configuration: of the plans file.
        device: auto, cpu, cuda, cuda:1, ...
        overwrite: replace a bundle that is there, and its test.
        unit_test: write the Model Zoo's unit test too, OUT/test_NAME_segmentation.py.
        torchscript: write models/model.ts too; after training, 'package --torchscript' renews it.
        with_labels: read the labels too, and race the choice against other widths: what
            'verify BUNDLE --update' does.
        max_minutes: of the race: no training is begun that is expected to end after them.
        group: of the race, which cases are of one patient, as 'verify' takes it.
        config_file: a changed copy of configs/search.json.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.training.race_folder import RaceFolder

        minutes = parse_minutes(max_minutes)
        labeled = labeled_data(images) if parse_flag("with_labels", with_labels) else None
        if labeled is None and (group is not None or minutes is not None):
            raise ValueError("--group and --max_minutes are for the race: give --with_labels too")
        options = SearchOptions(
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
            max_parameters=max_parameters,
            max_gmacs=max_gmacs,
            max_latency_ms=max_latency_ms,
            overwrite=overwrite,
            unit_test=unit_test,
            torchscript=torchscript,
        )
        if labeled is None:
            workflow = make_workflow(config_file, options.overrides())
            workflow.run()
            workflow.finalize()
            RaceFolder(Path(bundle), {}).remove()  # of a former choice
        else:
            search_and_race(options, config_file, max_minutes=minutes, group=group, **labeled)

    return Job(run, debug, resumes=True)


def search_and_race(
    options: SearchOptions, config_file: str | None, *, max_minutes: float | None, **labeled: Any
) -> None:
    """Search, then race the choice on labels; the same again goes on with what was stopped.

    Args:
        options: of the search.
        config_file: a changed copy of configs/search.json.
        max_minutes: of the race.
        labeled: where the labels are, and ``group``, as the race takes them.
    """
    import_monai()
    from monai_xtiny.bundled.locks import write_lock

    overrides = options.overrides()
    kept = race_folder(options, config_file, labeled)
    if kept.is_searched():
        print(f"{options.bundle} is searched: going on with its race", flush=True)
    else:
        workflow = make_workflow(config_file, overrides)
        kept.begin()
        workflow.run()
        workflow.finalize()
    root = kept.bundle_root
    with write_lock(root), opened_to_run(str(root), trust=False, quiet=True) as bundle:
        if bundle.selection.race is None:
            labels = f"the labels of {options.images} are read now: the choice rests on them"
            print(labels, flush=True)
            work = {"work_dir": kept.trainings, "max_minutes": max_minutes}
            race_bundle(bundle, is_update=True, **work, **labeled)
        kept.remove()


def race_folder(
    options: SearchOptions, config_file: str | None, labeled: Mapping[str, Any]
) -> RaceFolder:
    """What is kept of a search and race until it ends; the arguments of :func:`search_and_race`."""
    from monai_xtiny.training.race_folder import RaceFolder

    # Neither how long and where it may take nor how a path is typed makes another command; the
    # bundle is where this is kept.
    limits = dict.fromkeys(("max_seconds", "max_memory_gb", "device"))
    given = {"config_file": config_file, "group": None, **labeled, "bundle": None}
    asked = {**asdict(options), **limits, **given}
    asked = {name: _resolved(value) for name, value in asked.items()}
    return RaceFolder(Path(str(options.bundle)), json.loads(json.dumps(asked, default=str)))


def _resolved(value: Any) -> Any:
    """A path that exists as it is without links, whichever way it was typed; else the value."""
    is_path = isinstance(value, str) and os.path.exists(value)
    return os.path.realpath(value) if is_path else value


def labeled_data(images: str) -> dict[str, str]:
    """Where the labels of images are: ``data`` or ``datalist`` of a race.

    Raises:
        ValueError: there are none, or several processes search.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "--with_labels trains in one process: search without it, then run "
            "'python -m monai_xtiny verify BUNDLE --data DATA --update' alone"
        )
    found = find_labels(images)
    if found is None:
        raise ValueError(
            f"{images!r} has no labels for --with_labels: give an nnU-Net data set (imagesTr, "
            "labelsTr) or an MSD dataset.json"
        )
    return found


def find_labels(images: str) -> dict[str, str] | None:
    """Where the labels of images are, ``data`` or ``datalist``; ``None`` without any."""
    path = Path(images)
    if (path / "labelsTr").is_dir():
        return {"data": images}
    if path.is_file() and path.suffix == ".json":
        # nnU-Net's dataset.json lists no cases: its folders have them.
        is_nnunet = "training" not in read_json(path) and (path.parent / "labelsTr").is_dir()
        return {"data": str(path.parent)} if is_nnunet else {"datalist": images}
    return None


@as_typed
def plan(
    images: str,
    label_names: str | None = None,
    spatial_dims: int | None = None,
    num_images: str = "16",
    seed: int = 369,
    output: str | None = None,
    debug: bool = False,
) -> Job:
    """Plan the full U-Net of the images by nnU-Net's rules, as JSON.

    Args:
        images: folder, nnU-Net data set, MSD dataset.json, DICOM tree or glob.
        label_names: names of the classes with commas, background first.
        spatial_dims: 2 or 3; default: 3 for volumes.
        num_images: images to read in full, or 'all'; of the others headers are read.
        seed: of the draw of images.
        output: file to write; default: the terminal.
        debug: show tracebacks.
    """

    def run() -> None:
        import_monai()
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

    return Job(run, debug)


@as_typed
def score(
    images: str,
    output: str,
    label_names: str | None = None,
    spatial_dims: int | None = None,
    num_images: str | None = None,
    seed: int = 369,
    method: str = "bayes",
    num_seeds: int | None = None,
    max_seconds: float | None = None,
    max_memory_gb: float | None = None,
    plans: str | None = None,
    configuration: str = "2d",
    device: str = "auto",
    config_file: str | None = None,
    debug: bool = False,
) -> Job:
    """Score every width and write the table, without choosing.

    Args:
        images: folder, nnU-Net data set, MSD dataset.json, DICOM tree or glob.
        output: JSON file to write.
        label_names: names of the classes with commas, background first.
        spatial_dims: 2 or 3; default: 3 for volumes.
        num_images: images to score, or 'all'; default: as many as the rule asks for.
        seed: of the first initialization and of the draw of images.
        method: rule that the scores are for.
        num_seeds: initializations of every width; default: one for 'paper', and more of narrow
            widths for the other rules.
        max_seconds: time after which no further initializations are asked for.
        max_memory_gb: what the process may hold; with less, fewer networks and images at a time.
        plans: nnU-Net's plans file to take the plan from.
        configuration: of the plans file.
        device: auto, cpu, cuda, cuda:1, ...
        config_file: a changed copy of configs/search.json.
        debug: show tracebacks.
    """

    def run() -> None:
        import ignite.distributed as idist

        from monai_xtiny.bundled.locks import write_lock
        from monai_xtiny.scores.table import table_to_dict
        from monai_xtiny.search.journal import journal_path, remove_journal

        options = SearchOptions(
            images=images,
            bundle=None,
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
        overrides = {**options.overrides(), "journal": journal}
        workflow = make_workflow(config_file, overrides, init_id="initialize_scores")
        with write_lock(output):
            table = workflow.parser.get_parsed_content("scores")
            if idist.get_rank() == 0:
                emit(json.dumps(table_to_dict(table), indent=4), output)
                remove_journal(journal)
        workflow.finalize()

    return Job(run, debug, resumes=True)


@as_typed
def select(
    scores: str,
    output: str | None = None,
    method: str | None = None,
    max_parameters: int | None = None,
    max_gmacs: float | None = None,
    debug: bool = False,
) -> Job:
    """Choose a width from a table of scores.

    Args:
        scores: what 'score' wrote, or a bundle's docs/search.json.
        output: search.json to write; default: only the table is printed.
        method: rule that chooses the width; default: the one that the table was scored for.
        max_parameters: of the network: the best width within the limits is chosen.
        max_gmacs: of one forward pass on one patch, in 1e9 multiply-accumulates.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.search_file import write_search
        from monai_xtiny.bundle.summary import budget_sentence, ladder_table
        from monai_xtiny.scores.table import table_from_dict
        from monai_xtiny.selection.limits import select_within
        from monai_xtiny.selection.rules import suited_method

        check_output(output)
        table = table_from_dict(read_json(scores))
        selection = select_within(
            table,
            method or suited_method(table),
            max_parameters=max_parameters,
            max_gmacs=max_gmacs,
        )
        if output is not None:
            write_search(selection, output)
        print(ladder_table(selection))
        if selection.budget is not None:
            print(budget_sentence(selection))

    return Job(run, debug)


@as_typed
def export(
    search: str,
    bundle: str,
    label_names: str | None = None,
    max_features: int | None = None,
    overwrite: bool = False,
    unit_test: bool = False,
    torchscript: bool = False,
    debug: bool = False,
) -> Job:
    """Write the bundle of a choice.

    Args:
        search: what 'select' wrote, or a bundle's docs/search.json.
        bundle: folder to write, OUT/NAME_segmentation.
        label_names: names of the classes with commas, background first; default: those of the
            bundle, for its docs/search.json.
        max_features: another width of the ladder than the chosen one, of a teacher, say.
        overwrite: replace a bundle that is there, and its test.
        unit_test: write the Model Zoo's unit test too, OUT/test_NAME_segmentation.py.
        torchscript: write models/model.ts too; after training, 'package --torchscript' renews it.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.folder import label_names_beside
        from monai_xtiny.bundle.search_file import read_search
        from monai_xtiny.bundle.writer import export_bundle
        from monai_xtiny.data.labels import read_label_names
        from monai_xtiny.selection.choice import with_width

        selection = read_search(search)
        names = label_names_beside(search)
        if label_names is not None:
            names = read_label_names(search, label_names)
        if max_features is not None:
            selection = with_width(selection, parse_int("max_features", max_features))
        path = export_bundle(
            selection,
            bundle,
            label_names=names,
            overwrite=parse_flag("overwrite", overwrite),
            unit_test=parse_flag("unit_test", unit_test),
            torchscript=parse_flag("torchscript", torchscript),
        )
        print(path)

    return Job(run, debug)


@as_typed
def report(
    bundle: str | None = None,
    output: str | None = None,
    images: str | None = None,
    private: bool = False,
    search: str | None = None,
    debug: bool = False,
) -> Job:
    """Renew a bundle's report, docs/report.html: one page of all that the stages left in it.

    With --output FILE.png the ladder of a choice is printed and its curve drawn instead.

    Args:
        bundle: the bundle; for a curve alone a search.json too.
        output: HTML file to write in place of docs/report.html, or PNG file of the curve.
        images: what the search took its images from: small views of those that were scored are
            kept in the bundle, docs/thumbnails.png, and shown.
        private: leave out images and the names of cases.
        search: in place of a bundle, its docs/search.json, or what 'select' wrote.
        debug: show tracebacks.
    """

    def run() -> None:
        source = search if bundle is None else bundle
        if source is None or (bundle is not None and search is not None):
            raise ValueError("report needs a bundle, or --search FILE alone: give one")
        check_output(output)
        is_private = parse_flag("private", private)
        if output is not None and output.lower().endswith(".png"):
            if images is not None or is_private:
                raise ValueError("--images and --private are for the page: leave --output out")
            _draw_curve(source, output)
            return
        from monai_xtiny.bundle.report import write_report

        if not Path(source).is_dir():
            raise FileNotFoundError(
                f"{source!r} is no bundle: give one, or --output FILE.png for a curve alone"
            )
        if images is not None:
            from monai_xtiny.bundle.sheets import write_thumbnails

            print(write_thumbnails(source, images))
        print(write_report(source, output, private=is_private))

    return Job(run, debug)


def _draw_curve(search: str, output: str) -> None:
    """Print the ladder of a bundle or a search.json, and draw its curve."""
    from monai_xtiny.bundle.figures import plot_sensitivity
    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.bundle.search_file import read_search
    from monai_xtiny.bundle.summary import ladder_table

    is_bundle = Path(search).is_dir()
    selection = Bundle.open(search).selection if is_bundle else read_search(search)
    print(ladder_table(selection))
    print(plot_sensitivity(selection, output))
