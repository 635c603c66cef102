"""The commands by name, and reading what was typed. Heavy imports happen inside the commands."""

from __future__ import annotations

from typing import Any

import fire

from monai_xtiny.cli.bundles import check, deploy, evaluate, package, verify
from monai_xtiny.cli.job import Job
from monai_xtiny.cli.stages import export, plan, report, score, search, select

COMMANDS = {
    command.__name__: command
    for command in (
        search, plan, score, select, export, report, check, evaluate, package, verify, deploy,
    )
}  # fmt: skip


def main(command: list[str] | None = None) -> None:
    """Run the command line: exit status 0 done, 2 bad input in one line, 1 anything else."""
    job = fire.Fire(COMMANDS, command=command, name="monai-xtiny", serialize=_hide_job)
    if isinstance(job, Job):
        job.run()


def _hide_job(result: Any) -> Any:
    """Keep Fire from printing a job as if it were a result."""
    return None if isinstance(result, Job) else result
