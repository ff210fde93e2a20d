"""What /openapi.json says of bodies that are parsed by hand: the events' own schemas, and what may be left out."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from incremental_llm.feedback.api.intake import TOKENS
from incremental_llm.feedback.events import EVENT_MODELS, MAX_RANKED

_REFS = "#/components/schemas/{model}"
_WITH_TOKENS = ("thumb", "preference", "rephrase", "ranking", "copy", "abandon")


def event_body(*types: str, batch: bool = False) -> dict[str, Any]:
    """`openapi_extra` of a route that takes one event of `types`, or a batch of them."""
    one: dict[str, Any] = {"oneOf": [{"$ref": _REFS.format(model=EVENT_MODELS[kind].__name__)} for kind in types]}
    if batch:
        events = {"type": "array", "items": one, "minItems": 1}
        one = {
            "type": "object",
            "required": ["events"],
            "properties": {"events": events},
            "additionalProperties": False,
        }
    key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 200}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": one}}},
        "parameters": [{**key, "description": "The same request with the same key gets the same answer."}],
        "security": [{"api_key": []}],
    }


def describe(app: FastAPI) -> None:
    """Add the events' schemas and the API key to the application's description."""
    inner = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            components = inner().setdefault("components", {})
            components.setdefault("schemas", {}).update(_event_schemas())
            components["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
        schema: dict[str, Any] = inner()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _event_schemas() -> dict[str, Any]:
    _, tree = models_json_schema([(model, "validation") for model in EVENT_MODELS.values()], ref_template=_REFS)
    schemas: dict[str, Any] = tree["$defs"]
    for kind, model in EVENT_MODELS.items():
        schema = schemas[model.__name__]
        schema["required"] = [name for name in schema["required"] if name not in ("id", "time")]
        schema["properties"]["type"] = {"const": kind}
        if kind != "interaction":
            schema["required"].append("type")
        if kind in _WITH_TOKENS:
            tokens = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_RANKED}
            schema["properties"][TOKENS] = {**tokens, "description": "reply_token of each interaction that is named"}
            schema["required"].append(TOKENS)
    return schemas
