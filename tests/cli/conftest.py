"""A workspace that only remembers what it was asked for: commands are tested without a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.chat import Message
from incremental_llm.cli import app
from incremental_llm.consolidate_run import Consolidation, ConsolidationPlan, ServingCost
from incremental_llm.dataset import (
    CompiledDataset,
    CompileSettings,
    Drop,
    DropReason,
    HeldOutReply,
    PairExample,
    Representation,
    SftExample,
    UnpairedExample,
    represent,
)
from incremental_llm.errors import InputError, UnknownRefError
from incremental_llm.evaluation import EvaluationReport, ItemResult, SuiteResult
from incremental_llm.feedback import ImportReport, RefusedRow
from incremental_llm.gate import Check, Decision
from incremental_llm.registry import Comparison, Quarantined, Snapshot, SnapshotSummary, diff
from incremental_llm.registry.ancestry import Node, lineage_tree
from incremental_llm.registry.compare import LayerChange

BASE = BaseRef(name="tiny", digest="b" * 64, template_digest="t" * 64)
STACK = Stack(base=BASE)
TIME = datetime(2026, 11, 1, 3, 0, tzinfo=UTC)


def example_report(*, measured: bool = True) -> EvaluationReport:
    """One suite of which half the answers are right, and one that could not be measured if told so."""
    outcomes = [ItemResult(id=f"g{i}", answer=f"answer {i}", correct=i % 2 == 0) for i in range(4)]
    suites = {"general": SuiteResult.of("general", 1, "d" * 64, outcomes)}
    if not measured:
        item = ItemResult(id="o1", answer="", correct=None, note="too long")
        suites["odd"] = SuiteResult.of("odd", 1, "e" * 64, [item])
    return EvaluationReport(stack_digest="s" * 64, suites=suites, seconds=3.5, tokens=120)


def ask(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def example_dataset() -> CompiledDataset:
    """One record of each kind, one drop, five events."""
    origin: dict[str, Any] = {"sources": ("i1", "k1"), "users": ("u1",)}
    prompt = ask("How long?")
    return CompiledDataset(
        sft=(SftExample(prompt=prompt, completion="45 days.", **origin),),
        pairs=(PairExample(prompt=prompt, chosen="45 days.", rejected="No idea.", weight=0.5, **origin),),
        unpaired=(UnpairedExample(prompt=ask("Hi"), completion="Hello!", desirable=False, **origin),),
        drops=(Drop(kind="sft", reason=DropReason.PERSONAL_DATA, sources=("k2",), users=("r1",)),),
        corrections=(),
        account={"i1": "used", "k1": "used", "i2": "used", "t1": "used", "k2": "personal_data"},
        outcomes={
            "interaction": {"used": 2},
            "thumb": {"used": 1},
            "correction": {"used": 1, "personal_data": 1},
        },
        first_seq=4,
        last_seq=8,
        superseded=frozenset(),
        settings=CompileSettings(),
    )


def example_decision() -> Decision:
    """One new suite that got better, and one item lost."""
    check = Check(
        name="shop_night1",
        kind="new",
        passed=True,
        reason="shop_night1 went from 20 % to 90 %",
        before=0.2,
        after=0.9,
        difference=0.7,
        low=0.55,
        high=0.85,
        n=40,
        lost=("n7",),
        lost_total=3,
    )
    return Decision(
        passed=True,
        stack_digest="s" * 64,
        production_digest="p" * 64,
        checks=(check,),
        reasons=(check.reason,),
        negative_flips=("shop_night1/n7",),
        policy_digest="0" * 64,
    )


@dataclass(frozen=True)
class PatchRecord:
    """What the command line reads of `training.patch.PatchRecord`, which imports torch."""

    adapter: Path
    answer_before: str
    answer_after: str
    nll_before: float
    nll_after: float
    steps: int
    tokens: int
    scale: float
    parameters: int
    neighbours: Any
    unrelated: Any
    seconds: float


@dataclass
class Outcome:
    """What the command line reads of `pipeline.RunOutcome`."""

    decision: str = "promoted"
    version: int | None = 2
    attempt: str | None = None
    checks: Decision = field(default_factory=example_decision)
    candidate: EvaluationReport = field(default_factory=example_report)
    production: EvaluationReport = field(default_factory=example_report)
    dataset: CompiledDataset = field(default_factory=example_dataset)
    replay: str = "Replay: +3 old rows interleaved (10.0 % of 30)."
    notes: tuple[str, ...] = ()
    tokens: int = 3400
    seconds: float = 12.0
    stage_seconds: dict[str, float] = field(default_factory=lambda: {"train": 9.0})
    folder: Path = Path("illm/runs/v2-abc")

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.checks.reasons


@dataclass
class Export:
    """What the command line reads of `handoff.ExportReport`."""

    folder: Path
    kind: str
    check: dict[str, float]
    dtype: str = "float32"
    stack_rank: int | None = 11
    rank: int | None = 16
    error: float | None = 0.0
    commands: tuple[str, ...] = ("vllm serve base --enable-lora",)


class FakeRegistry:
    """Two versions, production on the second."""

    def __init__(self) -> None:
        first = Snapshot.sealed(version=0, kind="init", time=TIME, stack=STACK)
        second = Snapshot.after(
            first, parent=0, kind="increment", time=TIME, stack=STACK.plus("a" * 64), cursor=5, note="night 1"
        )
        self.snapshots = [first, second]
        self.problems: list[str] = []

    def list(self) -> tuple[Snapshot, ...]:
        return tuple(self.snapshots)

    def summaries(self, last: int) -> tuple[SnapshotSummary, ...]:
        return tuple(SnapshotSummary.of(snapshot) for snapshot in self.snapshots[-last:])

    def ancestry(self) -> tuple[Node, ...]:
        return lineage_tree(self.summaries(2), {"production": 1})

    def refs(self) -> dict[str, int]:
        return {"production": 1}

    def tags(self) -> dict[str, int]:
        return {"first": 0}

    def attempts(self) -> tuple[Any, ...]:
        return (SimpleNamespace(id="c" * 64, parent=1, time=TIME, seqs=(6, 7), reason="general fell by 9 points"),)

    def quarantined(self) -> frozenset[int]:
        return frozenset({6})

    def quarantine(self) -> tuple[Quarantined, ...]:
        attempts = [Quarantined(seq=seq, reason="general fell", attempt="c" * 64, time=TIME) for seq in (6, 7)]
        return (*attempts, Quarantined(seq=9, reason="increment 2 was rolled back: bad", version=3, time=TIME))

    def head(self, ref: str) -> Snapshot:
        assert ref == "production"
        return self.snapshots[1]

    def get(self, ref: int | str) -> Snapshot:
        known = {"production": 1, "0": 0, "1": 1, "v0": 0, "v1": 1}
        if str(ref) not in known:
            raise UnknownRefError(f"unknown ref {ref!r}, did you mean 'production'?")
        return self.snapshots[known[str(ref)]]

    def erased_parts(self) -> dict[int, str]:
        return {}

    def verify(self) -> list[str]:
        return self.problems


class FakeStore:
    def counts(self) -> dict[str, int]:
        return {"interaction": 5, "thumb": 3}

    def head(self) -> int:
        return 8

    def waiting(self) -> list[Any]:
        return [SimpleNamespace(type="thumb", id="t9")]


class FakeWorkspace:
    """Every call is kept in `calls`; `fail` is raised by the next one."""

    def __init__(self) -> None:
        self.config: Any = None
        self.registry = FakeRegistry()
        self.store = FakeStore()
        self.calls: list[tuple[Any, ...]] = []
        self.fail: BaseException | None = None
        self.missing = False
        self.closed = 0
        self.outcome = Outcome()
        self.dataset = example_dataset()
        self.measured = example_report()
        self.heard = represent([])
        self.unavailable = ""  # what the report has to do without

    example_report = staticmethod(example_report)

    def remember(self, *call: Any) -> None:
        self.calls.append(call)
        if self.fail is not None:
            raise self.fail

    def create(self, config: Any, *, say: Callable[[str], None]) -> FakeWorkspace:
        self.config = config
        config.workspace.mkdir(parents=True, exist_ok=True)
        self.remember("create", config.base)
        say("fetching the base model")
        return self

    def open(self, config: Any) -> FakeWorkspace:
        if self.missing:
            raise InputError("illm: expected a workspace, found none: make one with `illm init`")
        self.config = config
        config.workspace.mkdir(parents=True, exist_ok=True)
        return self

    def close(self) -> None:
        self.closed += 1

    def import_feedback(
        self, path: Path, progress: Any = None, *, format: str | None = None, mapping: Any = None, processes: int = 0
    ) -> ImportReport:
        self.remember("import", path.name, *([format] if format else []), *sorted((mapping or {}).items()))
        progress(4, 4)
        refused = (RefusedRow(3, "expected JSON, found 'oops'"),)
        return ImportReport(
            rows=5,
            taken=3,
            added=2,
            duplicates=1,
            waiting=0,
            unknown_types={"page_view": 1},
            refused=refused,
            blank=1,
            resumed=7,
        )

    def compile_preview(self) -> CompiledDataset:
        self.remember("compile")
        return self.dataset

    def run(self, progress: Any, train: Any = None) -> Outcome:
        self.remember("run")
        progress("training sft", 1, 2, 0.5)
        progress("training sft", 2, 2, 0.25)
        return self.outcome

    def representation(self) -> Representation:
        self.remember("representation")
        return self.heard

    def held_out(self, out: Path) -> tuple[HeldOutReply, ...]:
        self.remember("held out", out.name)
        told: dict[str, Any] = {"id": "i1", "conversation": "c1", "user": "u1", "reply": "45 days.", "model": "m"}
        judged = HeldOutReply(messages=ask("How long?"), up=2, down=1, corrections=(), **told)
        return (judged, judged.model_copy(update={"up": 0, "down": 0}))

    def plan(self) -> Any:
        self.remember("plan")
        return SimpleNamespace(lines=("train on 3 records", "measure 2 suites"))

    def patch(self, event: str, out: Path | None, *, prompts: Sequence[str], settings: Any, progress: Any) -> Any:
        self.remember("patch", event, out, tuple(prompts), settings.neighbours_may_move)
        moved = SimpleNamespace(prompt="where?", before="here", after="there", kl=0.2)
        near = SimpleNamespace(count=8, moved=(moved,), changed=3, mean_kl=0.01, max_kl=0.2)
        far = SimpleNamespace(count=16, moved=(), changed=0, mean_kl=0.001, max_kl=0.002)
        return PatchRecord(Path("patches/k1"), "no", "yes", 4.5, 0.25, 12, 900, 0.5, 1000, near, far, 9.5)

    def plan_consolidation(self, last: int | None = None) -> ConsolidationPlan:
        told = self.config.consolidation
        self.remember("plan consolidation", last, told.method, told.rank, told.error, told.scales)
        costs = (ServingCost(3, 48, 3 * 2**20), ServingCost(1, told.rank or 48, 2**20))
        return ConsolidationPlan(3, told.method, 1.0, (16, 16, 16), *costs, 0.125, ("model.layers.0.q_proj", 0.25))

    def consolidate(self, last: int | None = None, *, progress: Any) -> Consolidation:
        self.remember("consolidate", last)
        progress("measuring", 1, 1, None)
        plan, outcome = self.plan_consolidation(last), self.outcome
        version = outcome.version if outcome.decision == "promoted" else None
        reports = (outcome.production, outcome.candidate)
        return Consolidation(plan, {1.0: 0.5}, STACK, outcome.checks, *reports, version)

    def evaluate(self, ref: str, suites: Sequence[str] | None, progress: Any) -> EvaluationReport:
        self.remember("evaluate", ref, suites)
        return self.measured

    def promote(self, version: int, reason: str = "", expected: int | None = None) -> Snapshot:
        self.remember("promote", version, expected)
        return self.registry.snapshots[version]

    def rollback(self, to: int, reason: str, expected: int | None = None) -> Snapshot:
        self.remember("rollback", to, reason, expected)
        return self.registry.snapshots[to]

    def diff(self, before: str, after: str) -> Comparison:
        self.remember("diff", before, after)
        same = diff(self.registry.get(before), self.registry.get(after)).model_dump()
        moved = LayerChange(layer="layer 0", before=0.0, after=0.5, moved=0.5, relative=None)
        empty: dict[str, Any] = {"settings": (), "counts": (), "scores": ()}
        return Comparison(**same, **empty, layers=(moved,), absent=("version 0 has no recipe",))

    def export(
        self,
        ref: str,
        out: Path,
        form: str,
        *,
        dtype: str | None,
        max_error: float,
        say: Callable[[str], None],
    ) -> Export:
        self.remember("export", ref, out, form, dtype, max_error)
        say("loading it back")
        return Export(out, form, {"max_abs_logit": 0.25, "mean_kl": 0.001}, error=max_error)

    def report(self, out: Path, *, say: Callable[[str], None]) -> Path:
        self.remember("report", out)
        if self.unavailable:
            say(self.unavailable)
        out.write_text("<html></html>", encoding="utf-8")
        return out

    def chat(self, ref: str, messages: list[Message], max_new_tokens: int) -> str:
        self.remember("chat", ref, [m.content for m in messages], max_new_tokens)
        return f"answer {len(messages)}"


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeWorkspace]:
    """The workspace that every command opens; the test runs in an empty folder."""
    fake = FakeWorkspace()
    module: Any = ModuleType("incremental_llm.workspace")
    module.Workspace = fake
    monkeypatch.setitem(sys.modules, "incremental_llm.workspace", module)
    monkeypatch.chdir(tmp_path)
    torch_was_there = "torch" in sys.modules
    yield fake
    assert torch_was_there or "torch" not in sys.modules


Illm = Callable[..., Result]


@pytest.fixture
def illm() -> Illm:
    """Run one command line."""

    def invoke(*args: str, input: str | None = None) -> Result:
        return CliRunner().invoke(app, list(args), input=input)

    return invoke
