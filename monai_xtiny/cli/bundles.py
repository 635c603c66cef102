"""What works on a bundle: check, verify, evaluate, deploy, web, package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from monai_xtiny.cli.job import Job, as_typed
from monai_xtiny.cli.options import check_output, parse_flag, parse_int, parse_number
from monai_xtiny.system.errors import innermost, is_bad_input, plain_words

if TYPE_CHECKING:
    from monai_xtiny.bundle.folder import Bundle


@as_typed
def check(
    bundle: str,
    data: str | None = None,
    datalist: str | None = None,
    group: str | None = None,
    fold: int = 0,
    trust: bool = False,
    debug: bool = False,
) -> Job:
    """Check labeled data and weights against a bundle before training.

    This runs the bundle's configs and scripts: those that monai_xtiny writes, or any with --trust.

    Args:
        bundle: the bundle.
        data: nnU-Net data set root with imagesTr and labelsTr.
        datalist: MSD dataset.json.
        group: regular expression whose first group in the name of a case is the patient, or a
            JSON file of cases and their patients; training takes it too.
        fold: of the split that is looked at, which is to hold cases out.
        trust: run a bundle whose code differs from what monai_xtiny writes: read it first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.training.check import check_bundle

        number = parse_int("fold", fold)
        with opened_to_run(bundle, trust) as opened:
            found = check_bundle(opened, data=data, datalist=datalist, group=group, fold=number)
            print(found.summary)
            for problem in found.problems:
                print(problem)
            for warning in found.warnings:
                print(f"warning: {warning}")
            if found.problems:
                raise ValueError(
                    f"{len(found.problems)} problems with {found.num_cases} labeled cases: "
                    f"{found.problems[0]}"
                )
            small = f"; {found.num_padded} are smaller than the patch and padded"
            padded = small if found.num_padded else ""
            print(f"{found.num_cases} labeled cases fit the bundle{padded}")

    return Job(run, debug)


@as_typed
def verify(
    bundle: str,
    data: str | None = None,
    datalist: str | None = None,
    epochs: int | None = None,
    num_seeds: int | None = None,
    max_minutes: float | None = None,
    fold: int = 0,
    group: str | None = None,
    seed: int = 0,
    work: str | None = None,
    update: bool = False,
    trust: bool = False,
    debug: bool = False,
) -> Job:
    """Race a bundle's width against others on labeled cases: brief trainings, all alike.

    This runs the bundle's configs and scripts: those that monai_xtiny writes, or any with --trust.

    Args:
        bundle: the bundle; it stays as it is without --update.
        data: nnU-Net data set root with imagesTr and labelsTr.
        datalist: MSD dataset.json.
        epochs: over all cases; default: 120 updates, whatever the number of cases.
        num_seeds: trainings of a width at most, at least 2; default: 2, or with --max_minutes as
            many as decide.
        max_minutes: no training is begun that is expected to end after them.
        fold: of the split.
        group: regular expression whose first group in the name of a case is the patient, or a
            JSON file of cases and their patients; default: each case is one.
        seed: of the first training.
        work: folder that keeps finished trainings, so that they are not repeated.
        update: write the outcome into the bundle, and move it to the width recommended; what was
            trained is copied to former_widthN in the bundle's folder first.
        trust: run a bundle whose code differs from what monai_xtiny writes: read it first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.card import check_marks
        from monai_xtiny.bundle.folder import CARD
        from monai_xtiny.bundled.locks import hold_lock

        with opened_to_run(bundle, trust) as opened:
            is_update = parse_flag("update", update)
            if is_update:  # not only once all is trained
                hold_lock(opened.root)
                check_marks(opened.path(CARD).read_text(encoding="utf-8"))
            race_bundle(
                opened,
                is_update=is_update,
                data=data,
                datalist=datalist,
                epochs=None if epochs is None else parse_int("epochs", epochs),
                num_seeds=None if num_seeds is None else parse_int("num_seeds", num_seeds),
                max_minutes=parse_minutes(max_minutes),
                fold=parse_int("fold", fold),
                group=group,
                seed=parse_int("seed", seed),
                work_dir=work,
            )

    return Job(run, debug, resumes=work is not None)


def parse_minutes(minutes: float | None) -> float | None:
    """What ``--max_minutes`` takes; ``None`` is no limit."""
    return None if minutes is None else parse_number("max_minutes", minutes, "minutes")


def race_bundle(bundle: Bundle, *, is_update: bool, **options: Any) -> None:
    """Race the widths of a bundle, say what came out, and write it into the bundle if asked to.

    Args:
        bundle: the bundle.
        is_update: write the outcome into the bundle.
        options: of :func:`monai_xtiny.training.verify.verify_bundle`.
    """
    from monai_xtiny.bundle.folder import VERIFICATION
    from monai_xtiny.bundle.summary import limits_text
    from monai_xtiny.training.compare import verification_summary
    from monai_xtiny.training.update import update_bundle
    from monai_xtiny.training.verify import verify_bundle

    found = verify_bundle(
        bundle,
        **options,
        progress=lambda training: print(
            f"width {training.max_features}, seed {training.seed}: Dice "
            f"{training.evaluation.mean_dice:.4f}, trained in {training.seconds:.0f} s",
            flush=True,
        ),
    )
    ladder, budget = bundle.selection.table.ladder, bundle.selection.budget
    print(verification_summary(found, {rung.max_features: rung.num_parameters for rung in ladder}))
    if budget is not None:
        widths = ", ".join(map(str, bundle.selection.fitting_widths))
        print(f"widths within the budget of at most {limits_text(budget)}: {widths}")
    is_other = found.recommended != found.selected
    if is_update:
        former = update_bundle(bundle, found)
        print(bundle.path(VERIFICATION))
        if is_other:
            print(f"{bundle.root}: width {found.recommended} now, at its initialization: train it")
        if former is not None:
            print(f"what was trained at width {found.selected} is in {former}")
    elif is_other:
        print(f"--update moves {bundle.root} to width {found.recommended}")


@as_typed
def evaluate(
    bundle: str,
    data: str | None = None,
    datalist: str | None = None,
    group: str | None = None,
    nsd_tolerance: float | None = None,
    external: bool = False,
    fold: int = 0,
    trust: bool = False,
    debug: bool = False,
) -> Job:
    """Measure a trained bundle on the cases held out, and write that into its model card.

    This runs the bundle's configs and scripts: those that monai_xtiny writes, or any with --trust.

    Args:
        bundle: the bundle.
        data: nnU-Net data set root with imagesTr and labelsTr.
        datalist: MSD datalist whose validation section to evaluate, or whose test section where it
            has labels and no other is held out; default: what training held out.
        group: regular expression whose first group in the name of a case is the patient, or a
            JSON file of cases and their patients; the intervals are over patients then.
        nsd_tolerance: distance that the surface Dice (NSD) takes for near, in mm, or in pixels of
            images without a spacing; default: the longest edge of the plan's voxel, or a pixel.
        external: evaluate all labeled cases of data from elsewhere, whatever their section; the
            tables lie in eval/external, and the model card stays as it is.
        fold: whose weights and held-out cases; the model card tells of fold 0 alone.
        trust: run a bundle whose code differs from what monai_xtiny writes: read it first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.measured import write_evaluation
        from monai_xtiny.bundle.report import write_report
        from monai_xtiny.bundled.summaries import summary_table
        from monai_xtiny.training.evaluate import evaluate_held_out

        number = parse_int("fold", fold)
        tolerance = nsd_tolerance and parse_number("nsd_tolerance", nsd_tolerance, "mm or pixels")
        is_external = parse_flag("external", external)
        with opened_to_run(bundle, trust) as opened:
            found, planes = evaluate_held_out(
                opened,
                data=data,
                datalist=datalist,
                group=group,
                nsd_tolerance=tolerance,
                external=is_external,
                fold=number,
            )
            is_told = number == 0 and not is_external
            card = ""
            if is_told:
                card = f"\n{write_evaluation(opened, found, planes)}\n{write_report(opened)}"
            print(summary_table(found.summary(opened.label_names[1:])))
            kind = "external cases" if is_external else "cases held out"
            print(f"mean Dice {found.mean_dice:.4f} over {len(found.cases)} {kind}{card}")

    return Job(run, debug)


@as_typed
def deploy(
    bundle: str,
    images: str | None = None,
    data: str | None = None,
    int8: bool = False,
    standalone: bool = False,
    dtype: str = "uint8",
    layout: str = "NHWC",
    benchmark: bool = True,
    device: str = "cpu",
    size: str | None = None,
    output: str | None = None,
    trust: bool = False,
    debug: bool = False,
) -> Job:
    """Export a bundle's network to ONNX, and time it in four engines beside the full width.

    This runs the bundle's configs and scripts: those that monai_xtiny writes, or any with --trust.

    Args:
        bundle: the bundle; models/model.onnx and docs/deploy.json are written.
        images: unlabeled images as 'search' takes them, to compare outputs and calibrate int8 on.
        data: nnU-Net data set root with imagesTr and labelsTr, to measure Dice on held-out cases.
        int8: write models/model_int8.onnx too; needs --images.
        standalone: write models/model_standalone.onnx too, from raw pixels of 2D images to labels
            and probabilities; with --images, its labels of large ones are compared.
        dtype: of the pixels that it takes: uint8, uint16 or float32.
        layout: of its image and probabilities, NHWC or NCHW.
        benchmark: time the engines; --nobenchmark only exports.
        device: to time them on: cpu, cuda, cuda:1, ...
        size: of the image to time, with commas, WIDTH,HEIGHT in 2D; default: the patch.
        output: JSON file to write in place of docs/deploy.json.
        trust: run a bundle whose code differs from what monai_xtiny writes: read it first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.report import write_report
        from monai_xtiny.deploy.pipeline import deploy_bundle, deployment_table

        check_output(output)
        with opened_to_run(bundle, trust) as opened:
            made = deploy_bundle(
                opened,
                images=images,
                data=data,
                int8=parse_flag("int8", int8),
                standalone=parse_flag("standalone", standalone),
                dtype=dtype,
                layout=layout,
                benchmark=parse_flag("benchmark", benchmark),
                device=device,
                size=None
                if size is None
                else [parse_int("size", edge) for edge in size.split(",")],
                output=output,
                progress=lambda text: print(text, flush=True),
            )
            for file in made.files:
                print(file)
            if output is None:
                print(write_report(opened))
            print(f"logits differ from PyTorch's by {made.max_difference:.1e} at most")
            for name, dice in (("float32", made.dice), ("int8", made.dice_int8)):
                if dice is not None:
                    print(f"{name}: mean Dice {dice:.4f} over {made.num_cases} cases held out")
            if made.large_difference is not None:
                print(
                    f"model_standalone.onnx: {made.num_large} images are larger than the patch; "
                    f"{made.large_difference:.2%} of their pixels get another label than with "
                    "sliding windows"
                )
            if made.timings:
                print(deployment_table(made))

    return Job(run, debug)


@as_typed
def web(
    bundle: str,
    output: str,
    single_file: bool = False,
    trust: bool = False,
    debug: bool = False,
) -> Job:
    """Make a page that labels images in the browser, offline; images stay on the user's computer.

    This runs the bundle's configs and scripts: those that monai_xtiny writes, or any with --trust.

    Args:
        bundle: the trained bundle; it stays as it is.
        output: folder for the page, new or with an earlier page; any web server can serve it.
        single_file: write one HTML file of 22 MB, which opens from disk without a server.
        trust: run a bundle whose code differs from what monai_xtiny writes: read it first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.deploy.web import write_site

        with opened_to_run(bundle, trust) as opened:
            page = write_site(
                opened,
                output,
                single_file=parse_flag("single_file", single_file),
                progress=lambda text: print(text, flush=True),
            )
            print(page)

    return Job(run, debug)


@as_typed
def package(
    bundle: str,
    output: str | None = None,
    torchscript: bool = False,
    trust: bool = False,
    debug: bool = False,
) -> Job:
    """Zip a bundle as the Model Zoo distributes it; the same bundle gives the same bytes.

    Nothing of the bundle is run but, with --torchscript, its configs.

    Args:
        bundle: the bundle.
        output: zip to write; default: NAME_vVERSION.zip beside the bundle.
        torchscript: write models/model.ts, the network as TorchScript with its weights, first.
        trust: run a bundle whose code differs from what monai_xtiny writes: read it first.
        debug: show tracebacks.
    """

    def run() -> None:
        from monai_xtiny.bundle.archive import package_bundle

        check_output(output)
        is_run = parse_flag("torchscript", torchscript)
        if not is_run:
            print(package_bundle(bundle, output))
            return
        with opened_to_run(bundle, trust, quiet=True) as opened:  # the zip is all it prints
            print(package_bundle(opened, output, torchscript=True))

    return Job(run, debug)


@contextmanager
def opened_to_run(bundle: str, trust: bool, *, quiet: bool = False) -> Iterator[Bundle]:
    """Open a bundle whose configs are run, and say at the end that they were, unless ``quiet``.

    A bundle is a program: its code is compared before any of it runs.

    Raises:
        ValueError: the bundle holds code that this version does not write, and is not trusted; or
            running its configs failed, and they were edited.
    """
    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.bundle.foreign import edited_places

    is_trusted = parse_flag("trust", trust)
    opened = Bundle.open(bundle)
    refuse_foreign(opened, is_trusted)
    places = edited_places(opened)  # before anything of it changes
    try:
        yield opened
    except Exception as error:
        cause = innermost(error)
        if not places or isinstance(cause, (OSError, MemoryError)) or _is_ours(cause, opened):
            raise
        kind = "" if is_bad_input(error) else f"{type(cause).__name__}: "
        shown = "; ".join(places[:3]) + (", ..." if len(places) > 3 else "")
        raise ValueError(
            f"{kind}{plain_words(cause)}; {str(opened.root)!r} was edited or is of another "
            f"version, which may be why ({shown}): export its docs/search.json anew and copy "
            "models/model.pt to have it as it was"
        ) from error
    if not quiet:
        print(f"this ran the configs and scripts of {str(opened.root)!r}")


def refuse_foreign(bundle: Bundle, is_trusted: bool) -> None:
    """List code in a bundle that this version does not write, before any of it runs.

    Raises:
        ValueError: there is some, and it is not trusted.
    """
    from monai_xtiny.bundle.foreign import foreign_code

    found = foreign_code(bundle)
    for line in found:
        print(f"warning: {line}")
    if found and not is_trusted:
        raise ValueError(
            f"{str(bundle.root)!r} would run code that this version of monai_xtiny does not write "
            f"({len(found)} places, {found[0]}): it was edited, is of another version or of "
            "somebody else; read the places listed, then give --trust, or export its "
            "docs/search.json anew and copy models/model.pt"
        )


def _is_ours(error: BaseException, bundle: Bundle) -> bool:
    """Whether bad input was refused by this package or the bundle's scripts, or memory ran out.

    Such a one says itself what to do.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = "" if trace is None else os.path.realpath(trace.tb_frame.f_code.co_filename)
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    folders = (package, os.path.realpath(bundle.path("scripts")))
    is_inside = file.startswith(tuple(folder + os.sep for folder in folders))
    return type(error).__name__ == "OutOfMemoryError" or (is_bad_input(error) and is_inside)
