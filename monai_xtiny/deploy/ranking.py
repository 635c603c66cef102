"""Which images to label next: the most uncertain, no two alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy.already_labeled import without_labeled
from monai_xtiny.deploy.committee import Committee, trained_files
from monai_xtiny.deploy.segment import check_result_folder, describe_problem, readable_files
from monai_xtiny.deploy.targets import Target, find_targets
from monai_xtiny.scores.diversity import rank_diverse
from monai_xtiny.scores.uncertainty import image_uncertainty
from monai_xtiny.system.files import atomic_write, digest_file, write_json

LIST, SHEET = "label_next.json", "label_next.png"
# Cases that are drawn at most.
MAX_DRAWN = 100
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class RankedCase:
    """A case in its place.

    Args:
        rank: from 1.
        case: what was found.
        uncertainty: 0 where the committee is sure of the labels, 1 at most.
        score: uncertainty times distance to the cases before, as
            :func:`monai_xtiny.scores.diversity.rank_diverse` has it.
    """

    rank: int
    case: Target
    uncertainty: float
    score: float


@dataclass(frozen=True)
class Ranking:
    """The cases in the order in which to label them.

    Args:
        cases: all that could be read.
        num: of them to label next.
        left_out: cases with labels, by where these are known from.
        problems: one line for each case that could not be ranked.
        committee: what was uncertain, ``folds``, ``flips`` or ``softmax``.
        files: that were written.
    """

    cases: tuple[RankedCase, ...]
    num: int
    left_out: Mapping[str, tuple[Target, ...]]
    problems: tuple[str, ...]
    committee: str
    files: tuple[Path, ...] = ()

    @property
    def next(self) -> tuple[RankedCase, ...]:
        """Those to label next."""
        return self.cases[: self.num]

    @property
    def summary(self) -> str:
        """In a line."""
        failed = f", {len(self.problems)} not" if self.problems else ""
        written = ": " + " and ".join(map(str, self.files)) if self.files else ""
        return f"{len(self.cases)} ranked{failed}{written}"

    @property
    def table(self) -> str:
        """Those to label next, a line each."""
        wide = max(map(len, ("case", *(item.case.name for item in self.next))))
        lines = [f"rank  {'case':{wide}}  score  uncertainty"]
        lines += [
            f"{item.rank:4}  {item.case.name:{wide}}  {item.score:5.3f}  {item.uncertainty:11.3f}"
            for item in self.next
        ]
        return "\n".join(lines)


def rank_images(
    bundle: Bundle,
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    num: int = 10,
    labeled: str | os.PathLike[str] | None = None,
    device: str | None = None,
    untrained: bool = False,
    before_run: Callable[[Bundle], None] = lambda bundle: None,
    say: Callable[[str], None] = print,
) -> Ranking:
    """Rank the unlabeled images, and write the list and a sheet of those to label next.

    The files are written at the end, each whole, one right after the other; the same images and
    weights give the same list.

    Args:
        bundle: a trained one.
        images: as :func:`monai_xtiny.deploy.segment.segment_images` takes them.
        output: folder of ``label_next.json`` and ``label_next.png``.
        num: of images to label next.
        labeled: a folder of labels: cases with a file of their name there are left out.
        device: of PyTorch; default: that of the bundle.
        untrained: rank with a network at its initialization, whose uncertainty means nothing.
        before_run: called before anything in the bundle's configs and scripts is run.
        say: is told what is noteworthy.

    Returns:
        The order of all unlabeled images.

    Raises:
        FileExistsError: the folder holds something else.
        FileNotFoundError: there are no images, or no such folder of labels.
        PermissionError: the folder cannot be written to.
        ValueError: all images have labels, masks lie among them, or the bundle was not trained.
    """
    if num < 1:
        raise ValueError(f"--num is {num}: give at least 1")
    folder = Path(os.path.realpath(output))
    check_result_folder(folder, bundle, LIST, "label-next")
    found = find_targets(
        images, reads=bundle.kind, in_channels=bundle.plan.in_channels, without=folder
    )
    unlabeled = without_labeled(found.cases, bundle, labeled)
    for place, cases in unlabeled.left_out.items():
        say(f"left out: {len(cases)} with a label in {place}")
    if found.cases and not unlabeled.cases:
        raise ValueError(
            f"each of the {len(found.cases)} images in {os.fspath(images)!r} has a label: give "
            "others"
        )
    if not trained_files(bundle) and not untrained:
        raise ValueError(
            f"{str(bundle.root)!r} was never trained, so that its uncertainty means nothing: train "
            "it, or give --untrained to rank all the same"
        )
    _check_writable(folder)
    before_run(bundle)
    committee = Committee(bundle, device=device)
    say(f"uncertainty of {committee.description}")
    judged, problems = _judge(committee, unlabeled.cases)
    ranking = Ranking(
        _in_order(judged),
        num,
        unlabeled.left_out,
        (*found.problems, *problems),
        committee.kind,
    )
    if not ranking.cases:
        return ranking
    return _write_ranking(ranking, folder, bundle, committee)


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, before any work."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{str(there)!r} cannot be written to: give another --output")


def _judge(
    committee: Committee, cases: Sequence[Target]
) -> tuple[list[tuple[Target, float, np.ndarray]], list[str]]:
    """Uncertainty and features of each case, and a line for each that could not be read."""
    judged: list[tuple[Target, float, np.ndarray]] = []
    problems = []
    for case in tqdm(cases, desc="ranking", unit="image", disable=None, leave=False):
        try:
            with readable_files(case) as files:
                verdict = committee(files)
            uncertainty = image_uncertainty(verdict.probabilities)
        except Exception as error:
            problems.append(describe_problem(case, error))
        else:
            judged.append((case, uncertainty, verdict.features.double().numpy()))
    return judged, problems


def _in_order(judged: Sequence[tuple[Target, float, np.ndarray]]) -> tuple[RankedCase, ...]:
    """The cases in the order in which to label them."""
    if not judged:
        return ()
    uncertainty = np.array([item[1] for item in judged])
    ranked = rank_diverse(uncertainty, np.stack([item[2] for item in judged]))
    return tuple(
        RankedCase(rank, judged[item.index][0], float(uncertainty[item.index]), item.score)
        for rank, item in enumerate(ranked, start=1)
    )


def _write_ranking(ranking: Ranking, folder: Path, bundle: Bundle, committee: Committee) -> Ranking:
    """Write the list and the sheet, each whole, one right after the other."""
    from monai_xtiny.deploy.contact_sheet import draw_contact_sheet, view_case  # matplotlib

    views = []
    for item in ranking.next[:MAX_DRAWN]:
        with readable_files(item.case) as files:
            verdict = committee(files)
        title = f"{item.rank}   {item.case.name}   {item.score:.3f}"
        views.append(view_case(verdict, title, bundle.plan.slice_axis))
    folder.mkdir(parents=True, exist_ok=True)
    content = _ranking_content(ranking, bundle, committee)
    with atomic_write(folder / SHEET) as sheet:
        draw_contact_sheet(views, bundle.label_names, sheet)
        write_json(folder / LIST, content)
    return replace(ranking, files=(folder / LIST, folder / SHEET))


def _ranking_content(ranking: Ranking, bundle: Bundle, committee: Committee) -> dict[str, Any]:
    """What the list holds."""
    return {
        "format_version": _FORMAT_VERSION,
        "bundle": bundle.name,
        "weights_sha256": {Path(file).name: digest_file(file) for file in committee.files},
        "committee": committee.kind,
        "num": ranking.num,
        "cases": [
            {
                "rank": item.rank,
                "case": item.case.name,
                "score": round(item.score, 6),
                "uncertainty": round(item.uncertainty, 6),
                "files": list(item.case.files),
            }
            for item in ranking.cases
        ],
        "left_out": {
            place: [case.name for case in cases] for place, cases in ranking.left_out.items()
        },
        "problems": list(ranking.problems),
    }
