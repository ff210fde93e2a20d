"""The workspace that faults are injected into, and what can be read from one, without what differs from run to run.

Two nights that learnt from six users, one refused candidate, a ref beside production. It is built once, and copied for
each fault. Nothing here needs a model: an adapter is two small matrices in a safetensors file.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from sqlalchemy import Table, select

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.config import RunConfig, parse_config
from incremental_llm.dataset import CompileSettings, compile_dataset
from incremental_llm.feedback import FeedbackStore, parse_event
from incremental_llm.registry import Registry, Snapshot, event_uses, schema
from incremental_llm.registry.objects import Failpoint, no_failpoint
from incremental_llm.replay import ReplayBuffer

BASE = Stack(base=BaseRef(name="tiny", digest="ba" * 32, template_digest="7e" * 32))
PERSON = "zilpzalp"
"""The user who is erased; everything that he writes has `HIS` in it."""
HIS = "kanari"


def open_registry(root: Path, failpoint: Failpoint = no_failpoint) -> Registry:
    """The registry of the workspace at `root`, on the server whose address lies beside it if there is one."""
    return Registry.open(root / "registry", url=url_of(root), failpoint=failpoint)


def url_of(root: Path) -> str | None:
    """The database of the workspace; None is the SQLite file in the registry's own folder."""
    address = root / "database.url"
    return address.read_text(encoding="utf-8") if address.is_file() else None


def open_store(root: Path) -> FeedbackStore:
    """The feedback of the workspace."""
    return FeedbackStore(f"sqlite:///{root / 'feedback.db'}")


def recipe_of(root: Path) -> RunConfig:
    """A recipe that names the workspace."""
    suites = {"folder": str(root / "suites"), "old": ["tiny"]}
    return parse_config({"workspace": str(root), "base": "tiny", "suites": suites}, source="tests/faults")


def adapter(folder: Path, number: int) -> Path:
    """A folder with an adapter's two files; the weights say which it is."""
    folder.mkdir(parents=True, exist_ok=True)
    factors = {
        name: np.full((4, 8), number, dtype=np.float32) for name in ("layer.lora_A.weight", "layer.lora_B.weight")
    }
    (folder / "adapter_model.safetensors").write_bytes(save(factors))
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}), encoding="utf-8")
    return folder


def passing(registry: Registry, stack: Stack) -> str:
    """A decision that lets this stack through."""
    return registry.put_json({"passed": True, "stack_digest": stack.digest, "reasons": ["measured"]})


def night(registry: Registry, number: int, made: Path, *, events: int = 5, **fields: Any) -> Snapshot:
    """Promote one more adapter, which is written to `made` first."""
    head = registry.head()
    stack = head.stack.plus(registry.put_object(adapter(made, number)))
    fields = {
        "decision": passing(registry, stack),
        "cursor": head.cursor + events,
        "attempt": f"night {number}",
        **fields,
    }
    return registry.commit_increment(parent=head.version, stack=stack, **fields)


def build(root: Path, url: str | None = None) -> None:
    """Make the workspace below `root`."""
    root.mkdir(parents=True)
    if url is not None:
        (root / "database.url").write_text(url, encoding="utf-8")
    with open_store(root) as store, Registry.create(root / "registry", BASE, url=url) as registry:
        for number in (1, 2):
            _learn(registry, store, root / "made", number)
        stack = registry.head().stack.plus(registry.put_object(adapter(root / "made" / "refused", 9)))
        worse = registry.put_json({"passed": False, "stack_digest": stack.digest, "reasons": ["worse"]})
        registry.record_attempt(
            parent=2, seqs=[13, 14, 15], reason=f"worse for '{PERSON}'", stack_digest=stack.digest, decision=worse
        )
        registry.promote(1, ref="canary", reason="a try")
        registry.record_suite("tiny", 1, "5e" * 32)
    shutil.rmtree(root / "made")
    (root / "illm-crash-1.txt").write_text(f"ValueError: {HIS}", encoding="utf-8")


def _learn(registry: Registry, store: FeedbackStore, made: Path, number: int) -> None:
    """A night's feedback, compiled and committed with all that a snapshot can name."""
    store.append([parse_event(event) for event in _feedback(number)])
    cursor = registry.head().cursor
    events = list(store.read(after=cursor))
    compiled = compile_dataset(events, CompileSettings())
    people = {
        stored.event.id: tuple(filter(None, (getattr(stored.event, key, None) for key in ("user", "reviewer"))))
        for stored in events
    }
    data, replay = made / f"data{number}", made / f"replay{number}"
    data.mkdir(parents=True)
    compiled.write(data)
    replay.mkdir()
    ReplayBuffer().write(replay / "buffer.json")
    night(
        registry,
        number,
        made / f"adapter{number}",
        events=store.head() - cursor,
        dataset=registry.put_object(data),
        replay=registry.put_object(replay),
        corrections=registry.put_json([one.model_dump(mode="json") for one in compiled.corrections]),
        report=registry.put_json({"night": number, "scores": {"tiny": 0.5}}),
        uses=event_uses(compiled.account, {stored.event.id: stored.seq for stored in events}, people),
    )


def _feedback(number: int) -> list[dict[str, Any]]:
    """Three questions a night with a correction each, the first of them by the person."""
    events: list[dict[str, Any]] = []
    for index, user in enumerate((PERSON, f"u{number}", "u9")):
        clock, said = f"2026-11-{number:02d}T12:{index:02d}", HIS if user == PERSON else "boots"
        asked = {"role": "user", "content": f"How long can I return {said} of kind {number}{index}?"}
        served = {"type": "interaction", "id": f"{said}-i{number}{index}", "time": f"{clock}:00Z", "user": user}
        served |= {"conversation": f"c{number}{index}", "messages": [asked], "reply": "never", "model": "production"}
        fixed = {"type": "correction", "id": f"{said}-k{number}{index}", "time": f"{clock}:30Z", "reviewer": "r1"}
        events += [served, fixed | {"interaction": served["id"], "content": f"Return {said} in {30 + index} days."}]
    return events


State = str
"""Everything that the database holds, as text in which times and what hangs on them are left out."""

_VARYING = {"time", "hash", "previous_hash", "begun", "finished"}
_DRAWN = {"erasures": {"id", "person"}, "erased_objects": {"erasure", "successor"}}


def observe(registry: Registry) -> State:
    """The state of a registry, read in one transaction."""
    with schema.reading(registry._engine) as connection:
        tables = {
            table.name: [
                _row(table, row._asdict())
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in schema.metadata.sorted_tables
        }
    return re.sub(r"erased-[0-9a-f]+", "erased", json.dumps(tables, sort_keys=True))


def _row(of: Table, row: dict[str, Any]) -> dict[str, Any]:
    """A row without what varies: a number that the database counts up has gaps where a transaction was undone."""
    table = of.name
    if of.autoincrement_column is not None:
        row.pop(of.autoincrement_column.name)
    if "body" in row:
        row |= {"body": _steady(json.loads(row["body"]), _VARYING | _DRAWN.get(table, set()))}
    return _steady(row, _VARYING | _DRAWN.get(table, set()))


def _steady(fields: dict[str, Any], without: set[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in without}


def fingerprint(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
