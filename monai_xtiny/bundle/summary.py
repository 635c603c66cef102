"""A choice in words: the ladder as a table, and what to do about a doubtful one."""

from __future__ import annotations

import os

import numpy as np

from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.rule import Budget, Selection
from monai_xtiny.selection.rules import find_rule


def ladder_table(selection: Selection) -> str:
    """The ladder as text: width, parameters, GMACs, scores, votes, the choice."""
    table = selection.table
    is_aligned = any(rung.alignment for rung in table.ladder)
    header = ["width", "parameters", "GMACs", "sensitivity", "votes", ""]
    if is_aligned:
        header[4:4] = ["alignment", "seeds"]
    rows = [header]
    for rung in table.ladder:
        share = selection.votes.get(rung.max_features, 0.0)
        row = [
            str(rung.max_features),
            f"{rung.num_parameters:,}",
            f"{rung.gmacs:.3f}",
            f"{np.mean(table.compared(rung)):.4g}",
            f"{share:.0%}" if share else "",
            "<- selected" if rung.max_features == selection.max_features else "",
        ]
        if is_aligned:
            value = f"{np.mean(rung.alignment):.3f}" if rung.alignment else ""
            row[4:4] = [value, str(len(rung.alignment) or len(rung.sensitivity))]
        rows.append(row)
    sizes = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    lines = [
        "  ".join(
            [*(cell.rjust(size) for cell, size in zip(row, sizes, strict=False)), row[-1]]
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *filter(None, [comparison(table)])])


def compared_images(table: ScoreTable) -> str:
    """The images that every width was scored on, in words; empty where these are all."""
    count, total = table.num_compared, len(table.images)
    if count == total:
        return ""
    return f"the first of {total} images" if count == 1 else f"the first {count} of {total} images"


def comparison(table: ScoreTable) -> str:
    """On which images the sensitivities are compared; empty where these are all."""
    images = compared_images(table)
    if not images:
        return ""
    whole = max(
        rung.max_features
        for rung in table.ladder
        if all(len(row) == len(table.images) for row in rung.sensitivity)
    )
    return f"Sensitivity is that on {images}: widths over {whole} were scored on no more."


def advice(selection: Selection) -> str:
    """What to do about a choice of low or rough confidence; empty where there is nothing to do."""
    doubt = find_rule(selection.method).doubt(selection)
    if not doubt:
        return ""
    if _is_of_budget(selection):
        return ""  # the budget decided, and its sentence says what that costs
    widths = selection.table.widths
    index = widths.index(selection.max_features)
    has_wider = index > 0 and widths[index - 1] in selection.fitting_widths
    wider = f"take the next wider width, {widths[index - 1]}; " if has_wider else ""
    return (
        f"{doubt}: score more initializations (--num_seeds) or images (--num_images); {wider}or "
        "train the neighbors briefly on labeled cases: "
        "python -m monai_xtiny verify BUNDLE --data DIR"
    )


def description(selection: Selection) -> str:
    """How the width came about, as the card says it."""
    text = find_rule(selection.method).describe(selection.table)
    if selection.in_place_of is None:
        return text
    return (
        f"{text} The choice was width {selection.in_place_of}; width {selection.max_features} was "
        "asked for in its place."
    )


def budget_sentence(selection: Selection) -> str:
    """The limits of a choice, and what keeping to them is expected to cost; empty without any."""
    budget = selection.budget
    if budget is None:
        return ""
    chosen, lost = selection.max_features, f"{budget.expected_dice_lost:.3f} Dice beyond the"
    text = f"budget of at most {limits_text(budget)}: width {chosen}"
    if not _is_of_budget(selection):
        return f"{text} is within it, and expected to lose {lost} tolerance of 0.01"
    return (
        f"{text} in place of {budget.searched}, expected to lose {lost} tolerance of 0.01 "
        f"({budget.searched_dice_lost:.3f} with width {budget.searched})"
    )


def _is_of_budget(selection: Selection) -> bool:
    """Whether a budget excludes the width that the rule chose; a race may choose another too."""
    budget = selection.budget
    return budget is not None and budget.searched not in selection.fitting_widths


def orientation_sentence(table: ScoreTable) -> str:
    """How training augments images that share an orientation; empty where they do not."""
    if not table.is_oriented:
        return ""
    return (
        f"the images share an orientation ({table.shared_orientation:.2f}): training does not "
        "mirror them, and rotates them by 15 degrees at most"
    )


def limits_text(budget: Budget) -> str:
    """The limits in words, with the latencies that were measured."""
    measured = ", ".join(
        f"{value:.3g} ms with width {width}" for width, value in budget.latencies_ms.items()
    )
    limits = (
        (budget.max_parameters, "{:,} parameters"),
        (budget.max_gmacs, "{:.4g} GMACs"),
        (budget.max_latency_ms, "{:.4g} ms per patch in ONNX Runtime on the CPU"),
    )
    text = ", ".join(words.format(value) for value, words in limits if value is not None)
    return f"{text} (measured: {measured})" if measured else text


def search_summary(selection: Selection, bundle: str | os.PathLike[str]) -> str:
    """The choice in words, the time it took, and where the bundle is."""
    rung, full, table = selection.rung, selection.table.ladder[0], selection.table
    sure = "" if selection.confidence is None else f", confidence {selection.confidence:.0%}"
    seconds = table.seconds
    lines = [
        f"selected width {rung.max_features}: {rung.num_parameters:,} parameters, "
        f"{full.num_parameters / rung.num_parameters:.0f} times fewer than the full network's "
        f"{full.num_parameters:,} (method {selection.method}{sure})",
        budget_sentence(selection),
        advice(selection),
        orientation_sentence(table),
        f"{len(table.images)} images: loaded in {seconds['load']:.1f} s, "
        f"scored in {seconds['score']:.1f} s",
        f"bundle: {os.path.abspath(bundle)}",
    ]
    return "\n".join(line for line in lines if line)
