"""Langfuse traces with scores: a trace is an interaction, a person's score a thumb, a corrected output a correction.

Takes traces as the public API and the interface export them: `input` and `output` as text or as messages, `scores` as
objects, `observations` as objects where they are there. Scores of evaluators (source EVAL) are no feedback of people
and are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from incremental_llm.feedback.events import Event, EventError
from incremental_llm.feedback.importers.shapes import Verdicts, event, messages_of, name_of, text_of, time_of

SOURCE = "langfuse"

_TEXTS_IN = ("question", "query", "prompt", "input", "text")
_TEXTS_OUT = ("answer", "response", "output", "text", "content", "completion")
_FALSE = "0"  # of a BOOLEAN score, whose values are 0 and 1


def looks_like(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of this shape."""
    return "output" in record and bool({"scores", "sessionId", "observations", "userId"} & record.keys())


def events_of(record: Mapping[str, Any], scores: Sequence[str], verdicts: Verdicts) -> Iterator[Event | EventError]:
    """The events of one trace: the interaction, then what people said of it; a score that says neither is an error.

    Args:
        scores: the names of the scores that are feedback; all of them where it is empty.

    Raises:
        EventError: no question or no answer, and so no interaction.
    """
    trace = name_of(record.get("id"), "id")
    spoken = _generation(record)
    user = name_of(record.get("userId"), "userId")
    served = event(
        SOURCE,
        "interaction",
        trace,
        time=time_of(record.get("timestamp")),
        conversation=name_of(record.get("sessionId") or trace, "sessionId"),
        user=user,
        messages=_question(_parsed(record.get("input")), spoken),
        reply=_answer(_parsed(record.get("output")), spoken),
        model=str(spoken.get("model") or record.get("release") or "unknown"),
        metadata={"sampling": dict(spoken["modelParameters"])} if spoken.get("modelParameters") else None,
    )
    yield served
    for score in _people(record.get("scores"), scores):
        try:
            yield from _said(score, served.id, user, record, verdicts)
        except EventError as problem:
            yield EventError(f"score {score.get('name')!r}: {problem}")


def _said(
    score: Mapping[str, Any], interaction: str, user: str, record: Mapping[str, Any], verdicts: Verdicts
) -> Iterator[Event]:
    key = name_of(score.get("id"), "id")
    told = time_of(score.get("updatedAt") or score.get("timestamp") or record.get("timestamp"))
    author = score.get("authorUserId")
    if score.get("dataType") == "CORRECTION":
        right = text_of(score.get("longStringValue") or score.get("stringValue"), "stringValue")
        reviewer = name_of(author, "authorUserId")
        yield event(SOURCE, "correction", key, time=told, interaction=interaction, reviewer=reviewer, content=right)
        return
    boolean = score.get("dataType") == "BOOLEAN"
    value = score.get("stringValue") if score.get("dataType") == "CATEGORICAL" else score.get("value")
    if boolean:
        verdicts = verdicts.model_copy(update={"down": (*verdicts.down, _FALSE)})
    verdict = verdicts.of(value)
    if verdict is not None:
        yield event(
            SOURCE,
            "thumb",
            key,
            time=told,
            interaction=interaction,
            user=name_of(author, "authorUserId") if author else user,
            value=verdict,
            comment=score.get("comment") or None,
        )


def _people(scores: Any, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    if scores is None:
        return
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise EventError(f"scores: expected a list of scores, found {type(scores).__name__}")
    for score in scores:
        if not isinstance(score, Mapping):
            raise EventError(
                f"scores: expected scores as objects, found {score!r}. Export traces with their scores, not their ids"
            )
        if score.get("source") != "EVAL" and (not names or score.get("name") in names):
            yield score


def _generation(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trace's last generation, which says what answered; empty where observations are not exported."""
    found = record.get("observations")
    if not isinstance(found, Sequence):
        return {}
    generations = [o for o in found if isinstance(o, Mapping) and o.get("type") == "GENERATION"]
    return max(generations, key=lambda o: str(o.get("startTime") or ""), default={})


def _parsed(value: Any) -> Any:
    """What a CSV or an SDK wrote as JSON in a text, as data again; any other text is what was said."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _question(value: Any, generation: Mapping[str, Any]) -> list[dict[str, str]]:
    if isinstance(value, str) and value:
        return [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        if "messages" in value:
            return messages_of(value["messages"])
        if found := _first(value, _TEXTS_IN):
            return [{"role": "user", "content": found}]
    if isinstance(value, Sequence) and value:
        return messages_of(value)
    if generation.get("input") is not None:
        return _question(_parsed(generation["input"]), {})
    raise EventError(f"input: expected text or messages, found {_kind(value)}")


def _answer(value: Any, generation: Mapping[str, Any]) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping):
        choices = value.get("choices")
        if isinstance(choices, Sequence) and choices and isinstance(choices[0], Mapping):
            return _answer(choices[0].get("message"), generation)
        if found := _first(value, _TEXTS_OUT):
            return found
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], Mapping):
        return _answer(value[0], generation)
    if generation.get("output") is not None:
        return _answer(_parsed(generation["output"]), {})
    raise EventError(f"output: expected text or a message, found {_kind(value)}")


def _first(value: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((value[name] for name in names if isinstance(value.get(name), str) and value[name]), "")


def _kind(value: Any) -> str:
    return f"an object with {', '.join(sorted(map(str, value)))}" if isinstance(value, Mapping) else repr(value)[:80]
