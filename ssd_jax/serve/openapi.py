"""The interface of the server in OpenAPI 3.1, https://spec.openapis.org/oas/v3.1.0."""

from typing import Any

from ssd_jax import __version__
from ssd_jax.answers import NORMALISED, PIXELS
from ssd_jax.serve.pictures import MULTIPART, Limits

_NUMBER = {"type": "number"}
_INTEGER = {"type": "integer"}
_ERROR = {"$ref": "#/components/schemas/Error"}
_READING = {
    "401": "The token is missing or wrong.",
    "503": "Not ready, or overloaded; `Retry-After` says when to try again.",
}
_DETECTING = _READING | {
    "400": "An image cannot be read or has too many pixels, or there are too many images.",
    "408": "The body arrived too slowly.",
    "413": "The body is too long.",
    "415": "The Content-Type is not that of an image.",
    "504": "No answer in time.",
}


def openapi_document(limits: Limits, *, with_token: bool) -> dict[str, Any]:
    """The document; it requires a token if the server does."""
    secured = [{"token": []}] if with_token else []
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "ssd_jax",
            "version": __version__,
            "description": "An SSD object detector: images in, boxes out.",
        },
        "paths": {
            "/ping": {
                "get": _operation(
                    "Whether the server is healthy.",
                    {"description": "The server is ready."},
                    errors={"503": "The detector is being compiled."},
                )
            },
            "/invocations": {"post": _invocations(limits) | {"security": secured}},
            "/metadata": {
                "get": _operation(
                    "Classes, engine and limits of the server, and a description of the model.",
                    _json({"$ref": "#/components/schemas/Metadata"}),
                    errors={"401": _READING["401"]},
                )
                | {"security": secured}
            },
            "/metrics": {
                "get": _operation(
                    "Counters and times, for Prometheus.",
                    {"description": "Text.", "content": {"text/plain": {"schema": _text()}}},
                    errors={"401": _READING["401"]},
                )
                | {"security": secured}
            },
            "/execution-parameters": {
                "get": _operation(
                    "How SageMaker's batch transform should call the server.",
                    _json({"$ref": "#/components/schemas/ExecutionParameters"}),
                )
            },
            "/openapi.json": {
                "get": _operation("This document.", _json({"type": "object"})),
            },
            "/docs": {"get": _operation("This document as a page.", _html())},
            "/": {"get": _operation("A page to try images on.", _html())},
        },
        "components": {"schemas": _SCHEMAS},
    }
    if with_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


def _invocations(limits: Limits) -> dict[str, Any]:
    picture = {"schema": {"type": "string", "format": "binary"}}
    pictures = {
        "type": "object",
        "properties": {
            "pictures": {
                "type": "array",
                "minItems": 1,
                "maxItems": limits.pictures,
                "items": {"type": "string", "format": "binary"},
            }
        },
        "required": ["pictures"],
    }
    operation = _operation(
        f"Detects objects in a JPEG or PNG of at most {limits.bytes:,} bytes and "
        f"{limits.pixels:,} pixels, rotated as its EXIF data says. In a multipart request every "
        "file is an image, and other fields are ignored. All detections are returned, including "
        "those with low scores.",
        _json(
            {
                "anyOf": [
                    {"$ref": f"#/components/schemas/{name}"}
                    for name in ("Normalised", "Pixels", "Several")
                ]
            }
        ),
        errors=_DETECTING,
    )
    return operation | {
        "parameters": [
            {
                "name": "Accept",
                "in": "header",
                "description": f"`{PIXELS}` for boxes in whole pixels; anything else for "
                "normalised boxes.",
                "schema": {"type": "string", "examples": [NORMALISED, PIXELS]},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/jpeg": picture,
                "image/png": picture,
                "application/x-image": picture,
                MULTIPART: {"schema": pictures},
            },
        },
    }


def _operation(summary, answer, *, errors=None) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {
            "200": answer,
            **{
                status: {
                    "description": description,
                    "content": {"application/json": {"schema": _ERROR}},
                }
                for status, description in sorted((errors or {}).items())
            },
        },
    }


def _json(schema):
    return {"description": "The result.", "content": {"application/json": {"schema": schema}}}


def _html():
    return {"description": "A page.", "content": {"text/html": {"schema": _text()}}}


def _text():
    return {"type": "string"}


def _object(properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_PREDICTION = {
    "type": "array",
    "description": "[class, score, xmin, ymin, xmax, ymax]; corners as fractions of the image "
    "width and height.",
    "items": {"type": "array", "minItems": 6, "maxItems": 6, "items": _NUMBER},
}
_SCHEMAS = {
    "Error": _object(
        {
            "error": {
                "type": "string",
                "description": "What was found, what was expected, and what to do.",
            }
        }
    ),
    "Normalised": _object({"prediction": _PREDICTION}),
    "Pixels": _object(
        {
            "image_size": {
                "type": "array",
                "items": _object(dict.fromkeys(("width", "height", "depth"), _INTEGER)),
            },
            "annotations": {
                "type": "array",
                "items": _object(
                    {"class_id": _INTEGER, "score": _NUMBER}
                    | dict.fromkeys(("left", "top", "width", "height"), _INTEGER)
                ),
            },
        }
    ),
    "Several": _object(
        {
            "results": {
                "type": "array",
                "description": "One per image, in order: the result that the image alone would "
                "have, or an `error`.",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {**_text(), "description": "Name of the file."},
                        "field": {**_text(), "description": "Form field of the file."},
                    },
                    "required": ["name", "field"],
                },
            }
        }
    ),
    "Metadata": {
        "type": "object",
        "properties": {
            "classes": {
                "type": "array",
                "description": "Class names in the order of their ids.",
                "items": {"type": "string"},
            },
            "engine": {**_text(), "description": "The engine that runs the network."},
            "why": {**_text(), "description": "The reason for this engine."},
        },
        "required": ["classes", "engine", "why"],
    },
    "ExecutionParameters": _object(
        {
            "MaxConcurrentTransforms": _INTEGER,
            "BatchStrategy": {"const": "SINGLE_RECORD"},
            "MaxPayloadInMB": _INTEGER,
        }
    ),
}
