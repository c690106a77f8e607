"""The published JSON Schemas: up to date, strict, and true of real traffic."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from host_tests.gateway_kit import Gateway
from host_tests.uplink_peer import Board
from tools.gateway import messages, schema
from tools.gateway.schema import SchemaError, check, validate_down, validate_up

TOKEN = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04A1B2C3"}
UPLINK_MD = Path(schema.__file__).with_name("UPLINK.md").read_text()

# One record of each type, by hand from the table of UPLINK.md.
SLOT = {
    "booking_id": "B1",
    "start_ms": 1790000900000,
    "end_ms": 1790004500000,
    "guard_ms": 300000,
    "tokens": [TOKEN],
    "remote": True,
    "authorization_reference": "A1",
}
RECORDS: list[dict[str, Any]] = [
    {"t": "boot", "fw": "0.1.0", "cause": "watchdog", "slot": "a", "board": "virtual",
     "evses": [{"evse": 1, "meter": "eastron_sdm630_v2", "phases": 3, "max_a": 32},
               {"evse": 2, "meter": "pulse", "phases": 1, "max_a": 16, "lost_max_wh": 70}]},
    {"t": "time", "unix_ms": 1790000000123, "err_ms": 40, "step": True},
    {"t": "status", "evse": 1, "status": "CHARGING", "plugged": True, "session_id": "S1"},
    {"t": "reserve", "evse": 1, "reservation_id": "G1", "session_id": "S1", "token": TOKEN,
     "expiry_ms": 1790000900000, "authorization_reference": "A1", "command_id": "0" * 32},
    {"t": "release", "evse": 1, "reservation_id": "G1", "session_id": "S1", "cause": "used"},
    {"t": "start", "evse": 1, "session_id": "S1", "token": None, "auth_method": "WHITELIST",
     "source": "free_vend", "register_wh": 123456, "serial": "SN-1", "epoch": 0, "outside_wh": 7},
    {"t": "start", "evse": 1, "session_id": "S2", "token": TOKEN, "auth_method": "COMMAND",
     "source": "remote", "register_wh": None, "serial": None, "epoch": 0, "outside_wh": 0,
     "stale": True},
    {"t": "period", "evse": 1, "session_id": "S1", "kind": "not_requesting", "from": [17, 1000],
     "to": [17, 901000], "wh": 0, "total_wh": 12345, "register_wh": 135801, "max_w": 0},
    {"t": "period", "evse": 1, "session_id": "S2", "kind": "charging", "from": [17, 1000],
     "to": [17, 901000], "wh": 0, "total_wh": 0, "register_wh": None},
    {"t": "stop", "evse": 1, "session_id": "S1", "cause": "unplugged", "at": [17, 901000],
     "total_wh": 12345, "register_wh": 135801, "unobserved_wh": 0, "token": TOKEN},
    {"t": "stop", "evse": 1, "session_id": "S2", "cause": "local", "at": [17, 901000],
     "total_wh": 0, "register_wh": None, "unobserved_wh": 0},
    {"t": "result", "command_id": "f" * 32, "type": "RESERVE_NOW", "result": "EVSE_OCCUPIED"},
    {"t": "meter", "evse": 1, "what": "serial", "serial": "SN-2", "epoch": 1, "before_wh": 100,
     "after_wh": 3, "outside_wh": 0, "unobserved_wh": 0, "export_wh": 700},
    {"t": "meter", "evse": 1, "what": "frozen", "serial": "SN-2", "epoch": 1, "before_wh": 100,
     "after_wh": 100, "outside_wh": 0, "unobserved_wh": 0, "power_w": 11000},
    {"t": "meter", "evse": 1, "what": "glitch", "serial": None, "epoch": 1, "before_wh": 100,
     "after_wh": None, "outside_wh": 0, "unobserved_wh": 0, "count": 12},
    {"t": "export", "evse": 1, "what": "found", "session_id": None, "serial": None,
     "before_wh": None, "after_wh": 700, "wh": 0, "unobserved_wh": 0},
    {"t": "refused", "what": "card", "why": "reserved for another", "count": 2, "evse": 1},
    {"t": "event", "what": "resumed", "evse": 1, "session_id": "S1", "resumes": 1},
    {"t": "event", "what": "stopping", "evse": 1, "session_id": "S1", "cause": "remote"},
    {"t": "event", "what": "torn_tail", "bytes": 12},
    {"t": "event", "what": "availability", "evse": 1, "operative": False},
    {"t": "event", "what": "fault", "evse": 1, "fault": "welded"},
    {"t": "event", "what": "fault_cleared", "evse": 1, "fault": "welded"},
    {"t": "event", "what": "supervisor", "task": "meter"},
    {"t": "event", "what": "journal_new", "why": "empty"},
    {"t": "event", "what": "flash_slow", "ms": 804},
    {"t": "lost", "class": "rebuilt"},
    {"t": "lost", "class": "corrupt", "journal": "5f1c09aa", "last": 40},
    {"t": "event", "what": "restored", "file": "/secrets.json"},
    {"t": "event", "what": "bookings", "evse": 1, "base": 0, "version": 5, "drop": ["B2"]},
    {"t": "event", "what": "booked", "evse": 1, "slot": SLOT},
    {"t": "event", "what": "unbooked", "evse": 1, "booking_id": "B1", "cause": "no_show"},
    {"t": "event", "what": "config", "outcome": "refused", "why": "config.link.port: is missing"},
    {"t": "event", "what": "config", "outcome": "kept"},
    {"t": "event", "what": "alive"},
    {"t": "event", "what": "reader_lost"},
    {"t": "event", "what": "reader_back"},
    {"t": "lost", "class": "status", "count": 3, "journal": "5f1c09aa", "first": 4, "last": 9},
    {"t": "signed", "evse": 1, "session_id": "S1", "nature": "end", "piece": 1,
     "data": "T0NNRg=="},
    {"t": "signed", "evse": 1, "session_id": "S1", "nature": "end", "piece": 2, "of": 2,
     "data": "T0NNRg==", "public_key": "MFkw"},
    {"t": "signed", "evse": 1, "session_id": "S1", "nature": "start", "failed": "late"},
]

COMMANDS: dict[str, dict[str, Any]] = {
    "RESERVE_NOW": {"evse": 1, "reservation_id": "G1", "token": TOKEN, "expiry_ms": 1790000900000},
    "CANCEL_RESERVATION": {"reservation_id": "G1", "by": "cpo"},
    "START_SESSION": {"evse": 1, "token": TOKEN, "authorization_reference": "A1"},
    "STOP_SESSION": {"session_id": "S1"},
    "UNLOCK_CONNECTOR": {"evse": 1},
    "AUTHORIZE": {"evse": 1, "uid": "04A1B2C3", "allowed": "BLOCKED"},
    "SET_AVAILABILITY": {"evse": 1, "operative": False},
    "SET_BOOKINGS": {"evse": 1, "base": 0, "version": 5, "put": [SLOT], "drop": ["B2"]},
    "SYNC_TOKENS": {"from": 0, "to": 7, "after": "", "rows": "", "last": True},
    "GET_HEALTH": {},
    "RESET": {},
    "SET_CONFIG": {"secrets": {"wifi": {"ssid": "site", "password": "secret-1"}}},
    "ROTATE_KEY": {"kid": 2, "nonce": "0" * 64},
}


def test_the_files_are_what_the_models_say() -> None:
    """After a change of `messages`: python -m tools.gateway.schema."""
    files = {path.name: path.read_text() for path in schema.SCHEMAS.glob("*.schema.json")}
    assert files == schema.generate()
    for text in files.values():
        Draft202012Validator.check_schema(json.loads(text))


def test_the_asyncapi_document_agrees_with_schemas_and_contract() -> None:
    """Its form was held against AsyncAPI's own JSON Schema of 3.0.0 when it was made."""
    text = schema.ASYNCAPI.read_text()
    assert text == schema.asyncapi(), "python -m tools.gateway.schema"
    doc = json.loads(text)
    named = set()

    def follow(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                follow(item)
        elif isinstance(node, dict):
            if ref := node.get("$ref"):
                if ref.startswith("#/"):
                    at = doc
                    for part in ref[2:].split("/"):
                        at = at[part]
                else:
                    path = schema.ASYNCAPI.parent / ref
                    Draft202012Validator.check_schema(json.loads(path.read_text()))
                    named.add(path.name)
            for item in node.values():
                follow(item)

    follow(doc)
    assert named | {"config.schema.json"} == {path.name for path in schema.SCHEMAS.iterdir()}
    addresses = {channel["address"] for channel in doc["channels"].values()}
    assert addresses == set(re.findall(r"wattlock/1/\{station_id\}/[a-z]+", UPLINK_MD))
    retained = {n: o["bindings"]["mqtt"]["retain"] for n, o in doc["operations"].items()}
    assert retained == {"up": False, "down": False, "online": True}
    heard = {name for name, o in doc["operations"].items() if o["action"] == "receive"}
    assert heard == {"down"}
    for name, records in (("up", "record_"), ("down", "command_")):
        message = doc["components"]["messages"][name]
        refs = message["x-records" if name == "up" else "x-commands"]
        assert {r["$ref"].split("/")[-1].split(".")[0] for r in refs} == {
            f"{records}{word}" for word in (schema.RECORDS if name == "up" else schema.COMMANDS)
        }


def test_every_record_and_command_of_the_contract_has_a_schema() -> None:
    records = UPLINK_MD.split("## Records")[1].split("## Down header")[0]
    listed = set(re.findall(r"^\| `([a-z]+)` \|", records, re.M)) - {"t"}
    assert listed == set(messages.RECORDS) == {record["t"] for record in RECORDS}
    commands = set(re.findall(r"^\| `([A-Z_]+)` \|", UPLINK_MD.split("## Commands")[1], re.M))
    assert commands == set(messages.COMMANDS) == set(COMMANDS)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r['t']} {r.get('what', '')}")
def test_records(record: dict[str, Any]) -> None:
    whole = {"boot": 17, "up_ms": 93000} | record
    check(f"record_{record['t']}", whole)
    messages.RECORDS[record["t"]].validate_json(json.dumps(whole))
    with pytest.raises(SchemaError):
        check(f"record_{record['t']}", whole | {"up_ms": "93000"})
    with pytest.raises(SchemaError):
        check(f"record_{record['t']}", whole | {"kwh": 1.5})
    check(f"record_{record['t']}", whole | {"later": 1}, closed=False)  # receivers ignore it


@pytest.mark.parametrize(
    ("t", "field", "value"),
    [
        ("time", "unix_ms", -1),
        ("status", "status", "FAULTED"),
        ("status", "plugged", 1),
        ("start", "token", {"uid": "x"}),
        ("start", "register_wh", 1.5),
        ("start", "source", "magic"),
        ("start", "stale", 1),
        ("start", "outside_wh", None),
        ("period", "from", [1]),
        ("period", "kind", "parking"),
        ("stop", "cause", "because"),
        ("stop", "session_id", "x" * 37),
        ("result", "result", "OK"),
        ("meter", "what", "unknown"),
        ("boot", "evses", [{"evse": 1}]),
        ("lost", "count", 0),
    ],
)
def test_wrong_values_are_refused(t: str, field: str, value: Any) -> None:
    record = next(record for record in RECORDS if record["t"] == t)
    with pytest.raises(SchemaError, match=f"record_{t}"):
        check(f"record_{t}", {"boot": 1, "up_ms": 1} | record | {field: value})


@pytest.mark.parametrize("type", COMMANDS)
def test_commands(type: str) -> None:
    check(f"command_{type}", COMMANDS[type])
    messages.COMMANDS[type].model_validate(COMMANDS[type])
    for field in COMMANDS[type]:
        with pytest.raises(SchemaError):
            check(f"command_{type}", COMMANDS[type] | {field: [1]})


def test_headers_of_the_contract() -> None:
    """The examples of UPLINK.md are valid once their placeholders are filled."""
    blocks = re.findall(r"```json\n(.*?)```", UPLINK_MD, re.S)
    text = "\0".join(blocks)
    for hole, filling in (("<32 hex>", "0" * 32), ("<echo>", "0" * 32), ("<64 hex>", "a" * 64)):
        text = text.replace(hole, filling)
    up, brief, down = (json.loads(block) for block in text.split("\0"))
    check("up_header", up)
    check("brief_header", brief)
    check("down_header", down)
    for field in ("v", "kid", "sid", "boot", "up_ms", "clock", "journal", "first", "prev", "seq"):
        with pytest.raises(SchemaError):
            check("up_header", {name: up[name] for name in up if name != field})
    with pytest.raises(SchemaError):
        check("up_header", up | {"sid": "A" * 32})
    with pytest.raises(SchemaError):
        check("down_header", down | {"commands": down["commands"] * 5})


def test_the_config_of_the_design() -> None:
    config: dict[str, Any] = {
        "station_id": "DEMO-1",
        "board": "virtual",
        "link": {"kind": "mqtt", "host": "127.0.0.1", "port": 1883, "insecure": True},
        "buses": {"rs485": {"kind": "rtu", "uart": 1, "baud": 9600, "parity": "N", "stop": 1}},
        "evses": [
            {"n": 1, "meter": "eastron_sdm630_v2", "bus": "rs485", "unit": 1, "max_a": 32,
             "phases": 3, "require_meter": True, "on_power_return": "resume",
             "clock_lost": "hold", "free_vend": False}
        ],
        "live_s": 60,
    }  # fmt: skip
    check("config", config)
    wrong: list[dict[str, Any]] = [
        config | {"station_id": "a b"},
        config | {"live_s": "60"},
        config | {"evses": []},
        config | {"link": {"kind": "ocpp"}},
        config | {"extra": 1},
        {name: config[name] for name in config if name != "board"},
    ]
    for case in wrong:
        with pytest.raises(SchemaError):
            check("config", case)


def test_traffic_of_both_ends(tmp_path: Path) -> None:
    """Reference board and gateway over HTTP: every message of a session satisfies the schemas."""
    downs: list[bytes] = []
    messages = json.loads(schema.ASYNCAPI.read_text())["components"]["messages"]
    with Gateway(tmp_path) as gateway:
        board = Board()
        board.hello()
        board.status("AVAILABLE")
        board.authorize = {"evse": 1, "type": "RFID", "uid": "04A1B2C3"}
        board.health = {"heap_free": 51000, "fw": "0.1.0"}
        link = gateway.link(board)
        context = gateway.context
        with context.store.begin() as db:
            for type, data in COMMANDS.items():
                context.desk.queue(db, "DEMO-1", type, data, gateway.clock())
        board.start("S1", TOKEN)
        board.period("S1", 10, 1000)
        board.stop("S1")
        while board.acked < len(board.records):
            raw = board.message()
            validate_up(raw)
            reply = link(raw)
            assert reply is not None
            for name, text in (("up", raw), ("down", reply)):
                Draft202012Validator(messages[name]["payload"]).validate(text.decode())
            downs.append(reply)
            board.receive(reply)
    heads = [validate_down(raw) for raw in downs]
    sent = {command["type"] for head in heads for command in head.get("commands", [])}
    assert "AUTHORIZE" in sent and len(sent) >= 4


def test_messages_that_are_none() -> None:
    for raw, why in (
        (b"x" * 5000, "at most 4096"),
        (b"0" * 64, "without a header"),
        (b"A" * 64 + b"\n{}", "64 lower-case hex"),
        (b"0" * 64 + b'\n{"v":1}', "required"),
    ):
        with pytest.raises(SchemaError, match=why):
            validate_up(raw)
    with pytest.raises(SchemaError, match="1 allowed"):
        validate_down(b"0" * 64 + b"\n{}\n{}")
