"""However a log comes in, it gives the same dataset, byte for byte."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from incremental_llm.dataset import CompileSettings, compile_dataset
from incremental_llm.feedback import FeedbackStore, import_jsonl
from incremental_llm.feedback.importers import jsonl

SETTINGS = CompileSettings(one_sided_minimum=3, user_thumb_cap=3, prompt_pair_cap=2, policy_reviewers=frozenset({"u0"}))
QUESTIONS = (
    "How long is the warranty?",
    "How long is the waranty?",
    "What is the warranty in days?",
    "Boots?",
    "a@b.co?",
)
REPLIES = ("30 days", "45 days", "45 Days!", "", "no idea", "call +44 7700 900123")

users = st.sampled_from(["u0", "u1", "u2"])
about = st.integers(0, 6)
minutes = st.integers(0, 3)  # many events share a time
served = st.tuples(st.sampled_from(QUESTIONS), st.sampled_from(REPLIES), users, st.sampled_from("ab"), minutes)
feedback = st.tuples(
    st.sampled_from(["thumb", "thumb", "correction", "preference", "rephrase", "policy_change", "ping"]),
    about,
    about,
    users,
    st.sampled_from(REPLIES),
    minutes,
)


def events(rows: list[Any], said: list[Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for n, (asked, reply, user, conversation, minute) in enumerate(rows):
        texts = {"messages": [{"role": "user", "content": asked}], "reply": reply, "model": "m"}
        made.append(event("interaction", f"i{n}", minute, user=user, conversation=conversation, **texts))
    for n, (kind, one, other, user, text, minute) in enumerate(said):
        first, second = f"i{one % (len(rows) + 1)}", f"i{other % len(rows)}"  # the last one may never come
        fields: dict[str, dict[str, Any]] = {
            "thumb": {"interaction": first, "user": user, "value": 1 if other % 2 else -1},
            "correction": {"interaction": first, "reviewer": user, "content": text},
            "preference": {"chosen": first, "rejected": second, "user": user},
            "rephrase": {"interaction": first, "followup": second},
            "policy_change": {"reviewer": user, "supersedes": [second, f"f{one}"]},
            "ping": {},
        }
        if first != second or kind not in ("preference", "rephrase"):
            made.append(event(kind, f"f{n}", minute, **fields[kind]))
    return made


def event(kind: str, name: str, minute: int, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "id": name, "time": f"2026-11-01T12:0{minute}:00Z", **fields}


def compiled(lines: list[str], files: int, batch: int) -> dict[str, bytes]:
    """The files of the dataset of a log in so many files, of which so many lines go in at a time."""
    with tempfile.TemporaryDirectory() as folder, FeedbackStore("sqlite://") as store:
        root = Path(folder)
        before, jsonl.BATCH_LINES = jsonl.BATCH_LINES, batch
        try:
            for n in range(files):
                path = root / f"{n}.jsonl"
                path.write_text("".join(line + "\n" for line in lines[n::files]), encoding="utf-8")
                import_jsonl(store, path)
        finally:
            jsonl.BATCH_LINES = before
        compile_dataset(store.read(), SETTINGS).write(root)
        return {path.name: path.read_bytes() for path in root.iterdir() if path.stem not in map(str, range(files))}


def same_bytes(rows: list[Any], said: list[Any], seed: int, files: int, batch: int) -> None:
    lines = [json.dumps(one) for one in events(rows, said)]
    shuffled = random.Random(seed)
    delivered = [*lines, *shuffled.choices(lines, k=shuffled.randint(0, 5))]
    shuffled.shuffle(delivered)
    assert compiled(delivered, files, batch) == compiled(lines, 1, 1000)


ways = given(
    rows=st.lists(served, min_size=1, max_size=7),
    said=st.lists(feedback, max_size=12),
    seed=st.integers(0, 999),
    files=st.integers(1, 4),
    batch=st.integers(1, 9),
)
quickly, thoroughly = (
    settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow]) for count in (40, 500)
)
test_order_split_repeats_and_batches_change_no_byte = quickly(ways(same_bytes))
test_order_split_repeats_and_batches_change_no_byte_500_times = pytest.mark.slow(thoroughly(ways(same_bytes)))
