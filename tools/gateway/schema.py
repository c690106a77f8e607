"""The JSON Schemas of uplink v1 and of the board's config, and checks against them.

Purpose: the machine-readable contract. `validate_up` and `validate_down` hold real traffic of
both ends against the files in ``schemas/``.
Theory: the files are written from the models in `messages` and `board_config`
(``python -m tools.gateway.schema`` writes them and ``asyncapi.json``, a test compares). The
published schemas allow unknown fields, because receivers ignore them; the checks here refuse them
unless told otherwise, because in a test an unknown field is a typing error.
Limits: the MAC's shape is checked, not its value; the chain is not followed.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from tools.gateway.board_config import BoardConfig
from tools.gateway.messages import (
    COMMANDS,
    RECORDS,
    BriefHeader,
    DownHeader,
    UpHeader,
    is_brief,
)
from tools.gateway.uplink import MESSAGE_MAX_BYTES, RECORD_MAX_BYTES

SCHEMAS = Path(__file__).parent / "schemas"
ASYNCAPI = Path(__file__).parent / "asyncapi.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class SchemaError(Exception):
    """Names the schema, the path within the object and the value."""


def _models() -> dict[str, TypeAdapter[Any]]:
    return {
        "up_header": TypeAdapter(UpHeader),
        "brief_header": TypeAdapter(BriefHeader),
        "down_header": TypeAdapter(DownHeader),
        "config": TypeAdapter(BoardConfig),
        **{f"record_{t}": model for t, model in RECORDS.items()},
        **{f"command_{name}": TypeAdapter(model) for name, model in COMMANDS.items()},
    }


def _without_null(node: Any) -> Any:
    """Optional fields are absent on this wire, never null, unless the field is required."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _without_null(value) for key, value in node.items() if key != "title"}
    required = node.get("required", [])
    for name, prop in node.get("properties", {}).items():
        kinds = prop.get("anyOf") if isinstance(prop, dict) else None
        if kinds and name not in required and {"type": "null"} in kinds:
            kinds = [kind for kind in kinds if kind != {"type": "null"}]
            rest = {key: prop[key] for key in prop if key not in ("anyOf", "default")}
            node["properties"][name] = rest | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
    return node


def generate() -> dict[str, str]:
    """File name -> text of every schema."""
    files = {}
    for name, adapter in _models().items():
        body = _without_null(adapter.json_schema(by_alias=True))
        schema = {"$schema": DIALECT, "title": name, **body}
        files[f"{name}.schema.json"] = json.dumps(schema, indent=1, sort_keys=True) + "\n"
    return files


_LINES = (
    "UTF-8 lines, separated by newlines: the MAC (64 hex digits), the header (one JSON object: "
    "{header}){records}. At most {size} bytes."
)
_RECORDS = ", then a line for each record (record_*), at most {size} bytes each"


def _message(way: str, records: list[str], commands: list[str]) -> dict[str, Any]:
    lines = _RECORDS.format(size=RECORD_MAX_BYTES) if records else ""
    header = f"{way}_header"
    if records:
        header += ", or brief_header alone"
    said = _LINES.format(header=header, records=lines, size=MESSAGE_MAX_BYTES)
    return {
        "name": way,
        "contentType": "text/plain; charset=utf-8",
        "payload": {
            "type": "string",
            "maxLength": MESSAGE_MAX_BYTES,
            "pattern": r"^[0-9a-f]{64}\n\{",
            "description": said,
        },
        "x-header": {"$ref": f"./schemas/{way}_header.schema.json"},
        "x-records": [{"$ref": f"./schemas/{name}.schema.json"} for name in records],
        "x-commands": [{"$ref": f"./schemas/{name}.schema.json"} for name in commands],
    }


def asyncapi() -> str:
    """The AsyncAPI document of the MQTT link and, by `x-http`, of the HTTP link."""
    names = sorted(_models())
    records = [name for name in names if name.startswith("record_")]
    commands = [name for name in names if name.startswith("command_")]
    online = {
        "name": "online",
        "contentType": "text/plain",
        "payload": {"type": "string", "enum": ["0", "1"]},
        "summary": "Birth and last will, retained. A hint: not authenticated.",
    }
    up = _message("up", records, [])
    up["x-brief-header"] = {"$ref": "./schemas/brief_header.schema.json"}
    messages = {
        "up": up,
        "down": _message("down", [], commands),
        "online": online,
    }
    station = {"description": "1 to 36 of A-Z a-z 0-9 - _"}
    doc = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Wattlock uplink",
            "version": "1",
            "description": "What a board and a gateway say to each other; UPLINK.md explains it.",
        },
        "defaultContentType": "text/plain",
        "channels": {
            name: {
                "address": f"wattlock/1/{{station_id}}/{name}",
                "parameters": {"station_id": station},
                "messages": {name: {"$ref": f"#/components/messages/{name}"}},
                "bindings": {"mqtt": {}},
            }
            for name in messages
        },
        "operations": {
            name: {
                "action": "receive" if name == "down" else "send",
                "channel": {"$ref": f"#/channels/{name}"},
                "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
                "summary": f"The board {'hears' if name == 'down' else 'says'} {name}.",
                "bindings": {"mqtt": {"qos": 0, "retain": name == "online"}},
            }
            for name in messages
        },
        "components": {"messages": messages},
        "x-http": {
            "request": "POST {base}/wattlock/1/{station_id}, body: up",
            "reply": "200, body: down, or nothing to a brief message; anything else is no answer",
        },
    }
    return json.dumps(doc, indent=1) + "\n"


def _closed(node: Any) -> Any:
    """The same schema with unknown fields refused."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _closed(value) for key, value in node.items()}
    if "properties" in node:
        node.setdefault("additionalProperties", False)
    return node


@cache
def _validator(name: str, closed: bool) -> Draft202012Validator:
    path = SCHEMAS / f"{name}.schema.json"
    if not path.exists():
        raise SchemaError(f"{name}: no such schema; known are {sorted(_models())}")
    schema = json.loads(path.read_text())
    return Draft202012Validator(_closed(schema) if closed else schema)


def check(name: str, value: Any, *, closed: bool = True) -> None:
    """Raise SchemaError if `value` does not satisfy ``schemas/{name}.schema.json``."""
    error = next(iter(_validator(name, closed).iter_errors(value)), None)
    if error is not None:
        where = "/".join(str(part) for part in error.absolute_path) or "(whole object)"
        raise SchemaError(f"{name}: {where}: {error.message}")


def _lines(raw: bytes) -> list[str]:
    if len(raw) > MESSAGE_MAX_BYTES:
        raise SchemaError(f"message of {len(raw)} bytes, at most {MESSAGE_MAX_BYTES}")
    mac, *lines = raw.decode("utf-8").split("\n")
    if re.fullmatch("[0-9a-f]{64}", mac) is None:
        raise SchemaError(f"first line {mac[:20]!r}... is not 64 lower-case hex digits")
    if not lines:
        raise SchemaError("message without a header line")
    return lines


def validate_up(raw: bytes, *, closed: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and records of an up message that satisfies the schemas, else SchemaError."""
    head, *bodies = _lines(raw)
    header = json.loads(head)
    if is_brief(header):
        check("brief_header", header, closed=closed)
        if bodies:
            raise SchemaError(f"brief_header: {len(bodies)} record lines, none allowed")
        return header, []
    check("up_header", header, closed=closed)
    if (header["clock"]["state"] == "unset") == ("unix_ms" in header["clock"]):
        raise SchemaError("up_header: clock: unix_ms belongs to holdover and synced, not to unset")
    records = []
    for body in bodies:
        if len(body.encode()) > RECORD_MAX_BYTES:
            raise SchemaError(f"record line of {len(body.encode())} bytes, at most 1024")
        record = json.loads(body)
        if record.get("t") not in RECORDS:
            raise SchemaError(f"record type {record.get('t')!r} is not in UPLINK.md")
        check(f"record_{record['t']}", record, closed=closed)
        records.append(record)
    return header, records


def validate_down(raw: bytes, *, closed: bool = True) -> dict[str, Any]:
    """Header of a down message that satisfies the schemas, else SchemaError."""
    lines = _lines(raw)
    if len(lines) != 1:
        raise SchemaError(f"down message has {len(lines)} lines after the MAC, 1 allowed")
    header = json.loads(lines[0])
    check("down_header", header, closed=closed)
    for command in header.get("commands", []):
        if command["type"] in COMMANDS:
            check(f"command_{command['type']}", command["data"], closed=closed)
    return header


def main() -> None:
    SCHEMAS.mkdir(exist_ok=True)
    files = generate()
    for path in SCHEMAS.glob("*.schema.json"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (SCHEMAS / name).write_text(text)
    ASYNCAPI.write_text(asyncapi())
    print(f"{len(files)} schemas in {SCHEMAS}, and {ASYNCAPI.name}")


if __name__ == "__main__":
    main()
