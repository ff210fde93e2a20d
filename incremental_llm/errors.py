"""Every error the project raises on purpose.

    IncrementalError                exit code 1: the work failed
    ├── InputError                  exit code 2: what you gave is wrong; nothing was changed
    │   ├── ConfigError             an unknown key, a wrong value (all problems are listed at once)
    │   ├── BaseModelError          a base model that cannot be found, or is not the one that was pinned
    │   ├── SuiteError              a suite that is missing, mistyped, or changed without a new version
    │   └── UnknownRefError         a ref or version that the registry does not hold
    ├── NothingToTrainError         exit code 10: an increment with no examples is never a success
    ├── TrainingInterrupted         exit code 40: told to end (SIGTERM); the same command continues
    ├── TrainingError               training broke one of its own invariants (non-finite, frozen weight moved, ...)
    ├── StreamError                 brokers or database kept failing: nothing was skipped, the same command continues
    ├── IntegrityError              an artifact is damaged, or differs from its digest
    ├── WorkspaceBusyError          exit code 75: another run holds the workspace; try again later
    └── CommitError                 the registry refused a commit; nothing was changed
        ├── PreconditionFailed      someone else moved the ref, or the decision is not for this stack
        │   └── PendingErasureError an erasure has not ended: nothing reads or moves what may hold the person
        └── CommitStateUnknown      the database broke while committing: look before you retry

A message says what was expected, what was found, and what to do.
"""

from __future__ import annotations


class IncrementalError(Exception):
    """Root of the tree; `exit_code` is what the command line returns for it."""

    exit_code = 1


class InputError(IncrementalError):
    """The caller's input is wrong; nothing was changed."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration with problems, all of them listed in the message."""


class BaseModelError(InputError):
    """A base model that cannot be found, or differs from the pinned one."""


class SuiteError(InputError):
    """A suite that is missing, malformed, or changed without a new version."""


class UnknownRefError(InputError):
    """A ref or version that the registry does not hold."""


class NothingToTrainError(IncrementalError):
    """An increment with nothing to train."""

    exit_code = 10


class TrainingInterrupted(IncrementalError):
    """Training was told to end and left a checkpoint; the same command continues from it."""

    exit_code = 40


class TrainingError(IncrementalError):
    """Training broke one of its own invariants and was stopped."""


class StreamError(IncrementalError):
    """Brokers or the database kept failing; what was not stored is read again by the same command."""


class IntegrityError(IncrementalError):
    """An artifact is damaged or is not what its digest says."""


class CommitError(IncrementalError):
    """The registry refused a commit; nothing was changed."""


class PreconditionFailed(CommitError):
    """A precondition of a commit does not hold any more."""


class PendingErasureError(PreconditionFailed):
    """An erasure was begun and has not ended."""


class CommitStateUnknown(CommitError):
    """The database failed while committing: the commit may or may not have happened."""


class WorkspaceBusyError(IncrementalError):
    """Another run holds the workspace; nothing was changed, and a later try may work (EX_TEMPFAIL)."""

    exit_code = 75
