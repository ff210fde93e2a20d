"""The command line: `illm`, or `incremental-llm`. Every command is one call of the Python API.

    illm init                         a commented recipe and an empty workspace
    illm feedback import log.jsonl    take a log in, line by line accounted for
    illm serve-ingest                 the same over HTTP, with keys of illm api-key create
    illm dataset show                 what the next increment would train on
    illm review next -r NAME          what is unclear, to be decided; also as a page of illm serve-ingest
    illm run                          train, measure, judge, and promote or reject
    illm nightly                      the same for a scheduler: one at a time, exit codes that mean something
    illm patch EVENT_ID               a minimal adapter for one correction, and what else it moves
    illm evaluate production          measure any version
    illm registry list                versions, refs and rejected attempts
    illm check-adapter FOLDER         whether an adapter of somebody else fits, and what it holds
    illm export production out        a plain PEFT folder, or a merged model
    illm report · illm chat · illm doctor

Exit codes: 0 done (of a run: promoted), 1 failed, 2 wrong input, 10 nothing to train, 20 rejected by the gate,
30 rejected and quarantined, 75 another run holds the workspace, 130 interrupted.

    >>> from incremental_llm.cli.console import progress_reporter
    >>> with progress_reporter() as progress:       # doctest: +SKIP
    ...     workspace.run(progress)

The one design fact: importing this package costs typer and nothing else. A command imports what it needs when it runs,
so `--help` answers in a fifth of a second on a machine without torch.
"""

from incremental_llm.cli.commands import app, main

__all__ = ["app", "main"]
