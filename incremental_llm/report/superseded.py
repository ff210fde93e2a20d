"""Which suites a policy change has ended, for tables and pages: also where a suite's files are gone."""

from __future__ import annotations

from collections.abc import Callable

from incremental_llm.config import RunConfig
from incremental_llm.errors import SuiteError
from incremental_llm.evaluation import Suite, load_suites
from incremental_llm.feedback import FeedbackStore
from incremental_llm.pending import changes_in_effect
from incremental_llm.pending import superseded_suites as ended_by
from incremental_llm.registry import Registry, increments_in

Say = Callable[[str], None]


def superseded_suites(registry: Registry, store: FeedbackStore, config: RunConfig, say: Say) -> tuple[str, ...]:
    """Suites whose truth a policy change has ended, as far as production has seen.

    Of a suite that the recipe does not name, or whose files cannot be read, the decisions in the registry tell;
    `say` gets a line on those.
    """
    readable = _readable(config, say)
    known = {suite.name for suite in readable}
    found = ended_by(readable, changes_in_effect(registry, store, config))
    return (*found, *(name for name in _ended_when_judged(registry) if name not in known))


def _readable(config: RunConfig, say: Say) -> tuple[Suite, ...]:
    """The recipe's suites without those whose files are missing or wrong, of which `say` gets a line."""
    names = config.suites.names
    readable: list[Suite] = []
    problems: dict[str, str] = {}
    for name in names:
        try:
            readable += load_suites(config.suites.folder, [name])
        except SuiteError as error:
            problems[name] = str(error)
    if not names:
        say("the recipe names no suites: which of them are superseded is as the registry's decisions have it")
    if problems:
        say(
            f"not available: {', '.join(problems)} ({next(iter(problems.values()))}) "
            "Whether they are superseded is as the registry's decisions have it."
        )
    return tuple(readable)


def _ended_when_judged(registry: Registry) -> tuple[str, ...]:
    """The suites that an increment of production had as old ones, and that its gate did not guard."""
    snapshots = registry.list()
    names: dict[str, None] = {}
    for version in reversed(increments_in(snapshots, registry.head().version)):
        snapshot = snapshots[version]
        if snapshot.recipe and snapshot.decision:
            old = registry.get_json(snapshot.recipe)["suites"]["old"]
            checks = registry.get_json(snapshot.decision)["checks"]
            unguarded = {check["name"] for check in checks if check["kind"] == "unguarded"}
            names |= dict.fromkeys(name for name in old if name in unguarded)
    return tuple(names)
