"""One run for a scheduler: one at a time, a summary, and an exit code that says what happened.

code, summary = run_nightly(config, say=print, progress=progress)

0  promoted      10  nothing to train      20  rejected      30  rejected, its events quarantined
40 told to end while training: the same command continues    75 another run holds the workspace: try again later
anything else is an error and raises
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from incremental_llm.errors import IncrementalError, NothingToTrainError, WorkspaceBusyError

if TYPE_CHECKING:
    from incremental_llm.config import RunConfig
    from incremental_llm.consolidate_run import Consolidation
    from incremental_llm.pipeline import RunOutcome
    from incremental_llm.workspace import Workspace

Progress = Callable[[str, int, int, float | None], None]

EXIT_CODES = {"promoted": 0, "rejected": 20, "quarantined": 30}
"""What a run's decision is as an exit code."""

LOADING = "loading torch and the trainers"
"""What a run does first: seconds in which nothing else could be said."""


def run_nightly(
    config: RunConfig, say: Callable[[str], None], progress: Progress, train: Callable[..., Any] | None = None
) -> tuple[int, str]:
    """Run the increment that is due, if there is one and nobody else is at it.

    `train` stands in for `train_increment`, such as one that other processes take part in.

    Returns:
        The exit code (see the top of this file) and a summary of a few lines.

    Raises:
        IncrementalError: the run failed; production is untouched and the next run continues.
    """
    from incremental_llm.workspace import Workspace

    workspace = Workspace.open(config)
    try:
        say(f"nightly run in {config.workspace}, base {config.base}")
        progress(LOADING, 0, 0, None)
        outcome = workspace.run(progress, train)
        told = summary(outcome)
        if outcome.decision == "promoted" and config.consolidation.automatic:
            told = (*told, *_consolidated(workspace, say, progress))
    except WorkspaceBusyError as busy:
        return busy.exit_code, str(busy)
    except NothingToTrainError as nothing:
        return nothing.exit_code, str(nothing)
    finally:
        workspace.close()
    return EXIT_CODES[outcome.decision], "\n".join(told)


def _consolidated(workspace: Workspace, say: Callable[[str], None], progress: Progress) -> tuple[str, ...]:
    """One adapter of several where the recipe has it, in words; whatever comes of it, the night's increment stands."""
    try:
        if not (why := workspace.consolidation_due()):
            return ()
        say(f"consolidating {why}")
        return consolidation_summary(workspace.consolidate(progress=progress))
    except IncrementalError as error:
        return (f"not consolidated, production stays on its stack: {error}",)


def consolidation_summary(found: Consolidation) -> tuple[str, ...]:
    """What a consolidation decided and why, a fact a line."""
    if found.version is None:
        return (
            f"not consolidated, production stays on its stack: {found.plan.sentence}",
            *(f"  because {reason}" for reason in found.checks.reasons),
        )
    before, after = found.plan.before, found.plan.after
    return (
        f"consolidated: production is now version {found.version}, {found.plan.sentence}",
        f"  rank {before.rank} -> {after.rank}, {before.bytes / 2**20:.1f} -> {after.bytes / 2**20:.1f} MiB",
    )


def summary(outcome: RunOutcome) -> tuple[str, ...]:
    """What a run decided and why, a fact a line."""
    verdict = {
        "promoted": f"promoted: production is now version {outcome.version}",
        "rejected": "rejected: production is unchanged; the batch is tried once more when new feedback has come",
        "quarantined": "rejected and quarantined: production is unchanged; events refused twice are not used again",
    }[outcome.decision]
    return (
        verdict,
        *(f"  because {reason}" for reason in outcome.reasons),
        f"  {outcome.replay}",
        *(f"  {note}" for note in outcome.notes),
        f"  {outcome.tokens} tokens trained, {outcome.seconds:.0f} s; all results in {outcome.folder}",
    )
