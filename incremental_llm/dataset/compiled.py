"""A compiled dataset: the examples of one increment, what was left out and why, and where every event went."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from incremental_llm.artifacts import write_atomic
from incremental_llm.chat import canonical_json, json_digest
from incremental_llm.dataset.corrections import AcceptedCorrection
from incremental_llm.dataset.examples import KINDS, Example, Kind, PairExample, SftExample, UnpairedExample
from incremental_llm.dataset.propensity import Weighting
from incremental_llm.dataset.reasons import Drop
from incremental_llm.dataset.settings import CompileSettings
from incremental_llm.dataset.trust_report import TrustReport
from incremental_llm.dataset.trust_settings import TrustSettings
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.feedback.serving import absent

USED = "used"
"""What `account` says of an event that an example came from, and of a policy change that counts."""

_OFF = TrustSettings(enabled=False)
_HEAD = "dataset.json"
_FILES: dict[str, type[BaseModel]] = {
    "sft": SftExample,
    "pairs": PairExample,
    "unpaired": UnpairedExample,
    "drops": Drop,
    "corrections": AcceptedCorrection,
}
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class AccountRow:
    """One kind of example: how many were made, and how many were left out for each reason."""

    kind: Kind
    made: int
    dropped: dict[str, int]


class CompiledDataset(BaseModel):
    """The data of one increment.

    `account` gives every event of the batch `"used"` or the reason why not, exactly once. `outcomes` counts the same by
    event type. `redacted` counts the personal data and secrets of the batch that placeholders stand for, by kind.
    `first_seq` and `last_seq` bound the batch, both 0 for an empty one. `superseded` are the ids that this
    batch's policy changes name. `trust` says what the trust controls found and scaled; without them neither it nor
    `settings.trust` is written, as in datasets of before there were any, and what is missing reads as off: so these
    keep their bytes and digests, and a dataset that was made under them always says under which. `weighting` says how
    records were weighed by how their replies were served, None where nothing of it was logged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sft: tuple[SftExample, ...]
    pairs: tuple[PairExample, ...]
    unpaired: tuple[UnpairedExample, ...]
    drops: tuple[Drop, ...]
    corrections: tuple[AcceptedCorrection, ...]
    account: dict[str, str]
    redacted: dict[str, int] = {}
    outcomes: dict[str, dict[str, int]]
    first_seq: int
    last_seq: int
    superseded: frozenset[str]
    trust: TrustReport = TrustReport()
    settings: CompileSettings
    weighting: Weighting | None = Field(None, exclude_if=absent)

    @model_validator(mode="before")
    @classmethod
    def _untold_trust_is_off(cls, given: Any) -> Any:
        settings = given.get("settings") if isinstance(given, dict) else None
        if not isinstance(settings, dict) or "trust" in settings:
            return given
        return given | {"settings": settings | {"trust": _OFF}}

    @property
    def examples(self) -> tuple[Example, ...]:
        """All examples: SFT, pairs, unpaired."""
        return (*self.sft, *self.pairs, *self.unpaired)

    @property
    def counts(self) -> dict[str, int]:
        """Sizes: events, used events, examples by kind, and drops."""
        return {
            "events": len(self.account),
            "used": sum(outcome == USED for outcome in self.account.values()),
            **{kind: len(examples) for kind, examples in self._by_kind().items()},
            "dropped": len(self.drops),
        }

    @property
    def digest(self) -> str:
        """Equal for equal examples, drops, account and settings."""
        return json_digest([self._head(), *({name: self._rows(name)} for name in _FILES)])

    def account_table(self) -> tuple[AccountRow, ...]:
        """What was made and left out, a row for each kind of example."""
        made = self._by_kind()
        reasons = {kind: Counter(drop.reason.value for drop in self.drops if drop.kind == kind) for kind in KINDS}
        return tuple(AccountRow(kind, len(made[kind]), dict(sorted(reasons[kind].items()))) for kind in KINDS)

    def drop_counts(self) -> dict[str, int]:
        """How many examples each reason left out, over all kinds."""
        return dict(sorted(Counter(drop.reason.value for drop in self.drops).items()))

    def write(self, folder: Path) -> None:
        """Write the dataset into an existing folder, as JSON lines by kind; `dataset.json` comes last."""
        for name in _FILES:
            lines = "".join(canonical_json(row) + "\n" for row in self._rows(name))
            write_atomic(folder / f"{name}.jsonl", lines.encode("utf-8", "surrogatepass"))
        write_atomic(folder / _HEAD, json.dumps(self._head(), indent=2, ensure_ascii=True, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> CompiledDataset:
        """The dataset that `write` left in `folder`.

        Raises:
            InputError: there is none.
            IntegrityError: it is damaged.
        """
        try:
            head = json.loads((folder / _HEAD).read_text(encoding="utf-8"))
            rows: dict[str, Any] = {name: _read_rows(folder / f"{name}.jsonl", model) for name, model in _FILES.items()}
            return cls(**rows, **head)
        except FileNotFoundError as error:
            raise InputError(
                f"{folder}: expected a compiled dataset, found no {Path(error.filename).name}. Compile it again."
            ) from error
        except (ValueError, ValidationError, TypeError) as error:
            raise IntegrityError(
                f"{folder}: expected a compiled dataset, found one that cannot be read ({error}). "
                "It is damaged or of another version: compile it again."
            ) from error

    def _by_kind(self) -> dict[Kind, tuple[Example, ...]]:
        return {"sft": self.sft, "pair": self.pairs, "unpaired": self.unpaired}

    def _rows(self, name: str) -> list[dict[str, Any]]:
        records: Iterable[BaseModel] = getattr(self, name)
        return [record.model_dump(mode="json") for record in records]

    def _head(self) -> dict[str, Any]:
        head = self.model_dump(mode="json", exclude=set(_FILES))
        head["superseded"] = sorted(self.superseded)
        head["settings"]["policy_reviewers"] = sorted(self.settings.policy_reviewers)
        if self.settings.trust == _OFF:
            del head["settings"]["trust"]
            if self.trust == TrustReport():
                del head["trust"]
        return head


def _read_rows(path: Path, model: type[M]) -> tuple[M, ...]:
    lines = path.read_bytes().decode("utf-8", "surrogatepass").split("\n")
    return tuple(model.model_validate(json.loads(line)) for line in lines if line)
