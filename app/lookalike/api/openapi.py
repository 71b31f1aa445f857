"""Completes what FastAPI says of the calls in `/openapi.json`, for Swagger UI and for clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from lookalike.api.deps import FILTER_SCHEMAS
from lookalike.api.errors import Problem
from lookalike.api.routers.search import BatchIn

Described = dict[str, Any]
"""A part of the document, as JSON."""

_NULL, _EMPTY = {"type": "null"}, {"type": "string", "maxLength": 0}


def complete(app: FastAPI) -> None:
    """Adds to an application's OpenAPI what FastAPI leaves out.

    The shape of errors, to which `errors.responses` refers; filters, which are recursive; what
    bodies are filled in with; and `format: binary` for uploads, without which Swagger UI shows a
    list of files as a list of texts.
    """
    make = app.openapi

    def openapi() -> Described:
        document = make()
        schemas = document["components"]["schemas"]
        schemas.setdefault("Problem", Problem.model_json_schema())
        schemas |= FILTER_SCHEMAS
        template = "#/components/schemas/{model}"
        _, batch = models_json_schema([(BatchIn, "validation")], ref_template=template)
        schemas |= batch["$defs"]
        for schema in schemas.values():
            for field in schema.get("properties", {}).values():
                upload = field.get("items", field)
                if "contentMediaType" in upload:
                    upload["format"] = "binary"
        for methods in document["paths"].values():
            for call in methods.values():
                body = call.get("requestBody", {"content": ()})
                if "multipart/form-data" in body["content"]:
                    body["required"] = True  # also if none of its fields is
        for name in ("QueryIn", "PartIn"):  # parts of a body
            _fill_in(schemas[name], is_form=False)
        for name, kind in set(_bodies(document)):
            _fill_in(schemas[name], is_form=kind != "application/json")
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _bodies(document: Described) -> Iterator[tuple[str, str]]:
    """The schemas that calls take as their bodies: their names, and the kinds of content."""
    for methods in document["paths"].values():
        for call in methods.values():
            for kind, content in call.get("requestBody", {}).get("content", {}).items():
                for schema in (content["schema"], *content["schema"].get("anyOf", ())):
                    if "$ref" in schema:
                        yield schema["$ref"].rpartition("/")[2], kind


def _fill_in(body: Described, *, is_form: bool) -> None:
    """Gives a body and its fields examples that change nothing, which Swagger UI fills in.

    A field's default becomes its example, and a part of its description: generators of clients
    take a field with a default for one that must be sent. A field that may be null gets null: else
    Swagger UI sends the smallest number, or any text.
    """
    required = body.get("required", [])
    fields = body["properties"]
    for field in fields.values():
        if "default" in field:
            default = field.pop("default")
            field["examples"] = [default]
            if default not in ("", []):
                text = f"{field.get('description', '')}; default: {json.dumps(default)}"
                field["description"] = text.removeprefix("; ")
        elif _NULL in field.get("anyOf", ()):
            if is_form:  # which cannot say null: an empty text counts as not sent
                field["anyOf"][field["anyOf"].index(_NULL)] = _EMPTY
            field["examples"] = ["" if is_form else None]
    if (required or not is_form) and all("examples" in fields[name] for name in required):
        filled = {name: fields[name]["examples"][0] for name in required}
        body.setdefault("examples", [filled])
