"""One small example of each shape: records that are taken, what each gives, and records that are refused with why."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from incremental_llm.feedback.importers import Format

Rows = Sequence[dict[str, Any]]
QUESTION = 'How long can I return boots?\u2028Two  lines, \U0001f97e and <b>"quotes"</b>'
REPLY = "Within 30 days.\n\tKeep the receipt \\ box."


@dataclass(frozen=True)
class Shape:
    """`record(n)` is the n-th good record, `kinds` its events' types; `bad` has records and a part of their reason."""

    format: Format
    suffix: str
    write: Callable[[Path, Rows], None]
    record: Callable[[int], dict[str, Any]]
    kinds: tuple[str, ...]
    bad: tuple[tuple[Callable[[dict[str, Any]], None], str], ...]
    mapping: dict[str, str] = field(default_factory=dict)


def jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def array(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(list(rows), indent=1), encoding="utf-8")


def page(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps({"meta": {"page": 1}, "data": list(rows)}), encoding="utf-8")


def table(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)


def openwebui_record(n: int) -> dict[str, Any]:
    turns = [
        ("q", None, "user", QUESTION),
        ("a", "q", "assistant", REPLY),
        ("b", "q", "assistant", "No idea."),
        ("c", "q", "assistant", ""),
    ]
    messages = {
        f"{name}{n}": {
            "id": f"{name}{n}",
            "parentId": parent and f"{parent}{n}",
            "role": role,
            "content": text,
            "timestamp": 1_790_000_000 + n,
            "model": "shop",
        }
        for name, parent, role, text in turns
    }
    return {
        "id": f"f{n}",
        "user_id": f"u{n}",
        "type": "rating",
        "data": {"rating": 1, "model_id": "shop", "reason": "accurate_information", "comment": ""},
        "meta": {"message_id": f"a{n}", "chat_id": f"c{n}"},
        "snapshot": {"chat": {"id": f"c{n}"}, "params": {"system": "Be short."}, "history": {"messages": messages}},
        "created_at": 1_790_000_100 + n,
        "updated_at": 1_790_000_200 + n,
    }


def langfuse_record(n: int) -> dict[str, Any]:
    return {
        "id": f"trace{n}",
        "timestamp": f"2026-11-01T12:00:{n:02d}.000Z",
        "userId": f"u{n}",
        "sessionId": f"s{n}",
        "input": [{"role": "user", "content": QUESTION}],
        "output": {"role": "assistant", "content": REPLY},
        "observations": [
            {"type": "SPAN", "startTime": "2026-11-01T12:00:59Z"},
            {"type": "GENERATION", "startTime": "2026-11-01T12:00:01Z", "model": "shop", "modelParameters": {"t": "1"}},
        ],
        "scores": [
            {"id": f"x{n}", "name": "user-feedback", "value": 0, "dataType": "BOOLEAN", "source": "API"},
            {"id": f"y{n}", "name": "judge", "value": 0.3, "dataType": "NUMERIC", "source": "EVAL"},
            {
                "id": f"z{n}",
                "name": "output",
                "dataType": "CORRECTION",
                "stringValue": "45 days.",
                "source": "ANNOTATION",
                "authorUserId": "r1",
            },
        ],
    }


def chat_record(n: int) -> dict[str, Any]:
    turns = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": QUESTION}]
    return {
        "id": f"chatcmpl-{n}",
        "created": 1_790_000_000 + n,
        "model": "shop",
        "user": f"u{n}",
        "messages": [*turns, {"role": "assistant", "content": [{"type": "text", "text": REPLY}]}],
        "feedback": "down",
        "correction": "45 days.",
    }


def call_record(n: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": QUESTION}]
    return {
        "request": {"model": "shop", "messages": turns, "user": f"u{n}", "temperature": 0.7},
        "response": {"id": f"r{n}", "created": 1_790_000_000 + n, "choices": [{"message": {"content": REPLY}}]},
        "feedback": True,
    }


def table_record(n: int) -> dict[str, Any]:
    return {"question": QUESTION, "answer": REPLY, "stars": "5", "who": f"u{n}", "time": f"2026-11-01 12:00:{n:02d}"}


def pair_record(n: int) -> dict[str, Any]:
    return {"prompt": QUESTION, "chosen": REPLY, "rejected": f"No idea {n}.", "user": f"u{n}", "time": 1_790_000_000}


def event_record(n: int) -> dict[str, Any]:
    return {
        "type": "interaction",
        "id": f"i{n}",
        "time": "2026-11-01T12:00:00Z",
        "conversation": "c",
        "user": "u",
        "messages": [{"role": "user", "content": QUESTION}],
        "reply": REPLY,
        "model": "m",
    }


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    """Takes a field out of a record."""

    def change(record: dict[str, Any]) -> None:
        *outer, last = path
        for name in outer:
            record = record[name]
        del record[last]

    return change


def with_(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    """Puts another value into a record."""

    def change(record: Any) -> None:
        *outer, last = path
        for name in outer:
            record = record[name]
        record[last] = value

    return change


STARS = {"prompt": "question", "reply": "answer", "feedback": "stars", "user": "who", "up": "4,5", "down": "1,2"}
OPENWEBUI_BAD = (
    (with_(None, "data", "rating"), "data.rating: expected 1 or -1, found None"),
    (with_("gone", "meta", "message_id"), "expected a message of the snapshot, found 'gone'"),
    (without("snapshot", "history"), "snapshot.history.messages: expected the chat's messages"),
    (without("user_id"), "user_id: expected an id, found None"),
    (with_("q1", "meta", "message_id"), "expected a message of the snapshot"),
)
LANGFUSE_BAD = (
    (with_(None, "output"), "output: expected text or a message, found None"),
    (with_([{"role": "tool", "content": "x"}], "input"), "messages.0.role: expected system, user or assistant"),
    (without("userId"), "userId: expected an id, found None"),
    (with_("soon", "timestamp"), "time: expected ISO 8601"),
    (with_(["x1"], "scores"), "scores: expected scores as objects"),
)
CHAT_BAD = (
    (with_("maybe", "feedback"), "found 'maybe'. Say what it means, such as --map up=maybe"),
    (without("user"), "user: expected it in the column 'user', found none. --map user=COLUMN, --map default_user"),
    (without("created"), "time: expected it in the column 'time', found none"),
    (with_([], "messages"), "messages: expected a list of turns"),
    (with_([{"type": "image_url"}], "messages", 1, "content"), "expected text, found a part of type 'image_url'"),
)
CALL_BAD = (
    (with_([], "response", "choices"), "reply: expected it in the column 'reply', found none"),
    (with_([{"message": {"content": None, "tool_calls": [1]}}], "response", "choices"), "reply: expected text"),
)
TABLE_BAD = (
    (with_("3", "stars"), "found '3'. Say what it means"),
    (with_("", "question"), "prompt: expected it in the column 'question', found none"),
    (with_("", "who"), "user: expected it in the column 'who', found none"),
    (with_("yesterday", "time"), "time: expected ISO 8601 or seconds since 1970, found 'yesterday'"),
)
PAIR_BAD = ((with_(REPLY, "rejected"), "chosen and rejected: expected two replies, found the same one twice"),)
THUMB, PAIR = ("interaction", "thumb"), ("interaction", "interaction", "preference")

SHAPES = {
    "events": Shape("events", "jsonl", jsonl, event_record, ("interaction",), ((without("reply"), "reply: missing"),)),
    "openwebui array": Shape(
        "openwebui", "json", array, openwebui_record, (*THUMB, "interaction", "preference"), OPENWEBUI_BAD
    ),
    "langfuse lines": Shape("langfuse", "jsonl", jsonl, langfuse_record, (*THUMB, "correction"), LANGFUSE_BAD),
    "langfuse page": Shape("langfuse", "json", page, langfuse_record, (*THUMB, "correction"), LANGFUSE_BAD),
    "chat lines": Shape("chat", "jsonl", jsonl, chat_record, (*THUMB, "correction"), CHAT_BAD),
    "chat calls": Shape("chat", "jsonl", jsonl, call_record, THUMB, CALL_BAD),
    "csv": Shape("table", "csv", table, table_record, THUMB, TABLE_BAD, STARS),
    "parquet": Shape("table", "parquet", parquet, table_record, THUMB, TABLE_BAD, STARS),
    "parquet of pairs": Shape("table", "parquet", parquet, pair_record, PAIR, PAIR_BAD),
}
