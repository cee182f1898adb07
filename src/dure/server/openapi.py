"""The server's OpenAPI description, /openapi.json: every route with the schema of its body."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}


def publish(app: FastAPI, described: Sequence[tuple[str, str, type[BaseModel] | None]]) -> None:
    """Add the schemas of request bodies to the app's /openapi.json.

    described: (method, path, schema) of each route.
    """

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app, described)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _schema(
    app: FastAPI, described: Sequence[tuple[str, str, type[BaseModel] | None]]
) -> dict[str, Any]:
    whole = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    shapes = {shape for _, _, shape in described if shape is not None}
    references, definitions = models_json_schema(
        [(shape, "validation") for shape in sorted(shapes, key=lambda shape: shape.__name__)],
        ref_template=_REFERENCE,
    )
    components = whole.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions.get("$defs", {}))
    components["schemas"]["Error"] = _ERROR
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    whole["security"] = [{"key": []}, {}]
    for method, written, shape in described:
        path = written.replace(":path}", "}")
        operation = whole["paths"][path][method.lower()]
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ]
        operation["responses"] = {
            "200": {"description": "The answer."},
            "default": {
                "description": "What was wrong.",
                "content": {
                    "application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}
                },
            },
        }
        if shape is not None:
            schema = references[(shape, "validation")]
            content = {"application/json": {"schema": schema}}
            operation["requestBody"] = {"required": True, "content": content}
    return whole
