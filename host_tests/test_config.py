"""The board's own check of config.json against the published JSON Schema, both ways.

What the board takes, the schema takes. What the schema takes, the board takes, unless it is one of
the reasons listed here: what this firmware does not do yet, or what only the board can know.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wattlock import config
from wattlock.errors import ConfigError

from tools import build
from tools.gateway import schema

BOARD = build.load_board("virtual")
METERS = build.meters()
PULSE = {"kind": "pulse", "pin": 27, "imp_per_kwh": 1000}
TCP = {"kind": "tcp", "host": "192.0.2.7", "port": 502}
WHOLE: dict[str, Any] = {
    "station_id": "DEMO-1",
    "board": "virtual",
    "link": {"kind": "mqtt", "host": "127.0.0.1", "port": 1883, "insecure": True},
    "buses": {"rs485": {"kind": "rtu", "uart": 1, "baud": 9600, "parity": "N", "stop": 1},
              "lan": TCP, "s0": PULSE},
    "evses": [
        {"n": 1, "meter": "eastron_sdm630_v2", "bus": "rs485", "unit": 1, "max_a": 32, "phases": 3,
         "require_meter": True, "on_power_return": "resume", "clock_lost": "hold",
         "free_vend": False, "plug_first": False, "overstay": "stop"},
    ],
    "live_s": 60,
    "bookings": False,
    "offline_cards": "whitelist",
}  # fmt: skip

# fields of which the board says no where the schema says yes: (field, why)
ONLY_THE_BOARD = {
    "config.board": "another board",
    "config.link.url": "http wants insecure, https does not",
    "config.buses": "names of buses, which the schema's pattern does not force",
    "config.buses.rs485.uart": "the board's UARTs",
    "config.buses.rs485.baud": "usual rates only",
    "config.evses[0].n": "the board's EVSEs",
    "config.evses[0].meter": "the meters that are there",
    "config.evses[0].bus": "the buses that are configured",
    "config.evses[0].max_a": "at most 80 A",
    "config.evses[0].phases": "1 or 3",
}
# and the other way round: the board fills these in, the schema wants them said
DEFAULTS = ("buses", "phases")

PATHS = [
    *(("station_id",), ("board",), ("link",), ("buses",), ("evses",), ("live_s",), ("bookings",)),
    ("offline_cards",),
    *(("link", key) for key in (*WHOLE["link"], "sntp", "hots")),
    *(("buses", "rs485", key) for key in (*WHOLE["buses"]["rs485"], "bauds")),
    *(("evses", 0, key) for key in (*WHOLE["evses"][0], "require_metre")),
    *(("buses", "lan", key) for key in (*TCP, "hots")),
    *(("buses", "s0", key) for key in (*PULSE, "hots")),
    *(("unknown",), ("buses", "rs485"), ("buses", "a b"), ("evses", 0)),
]
VALUES = [
    *(None, True, False, -1, 0, 1, 2, 3, 9, 60, 80, 81, 247, 248, 500, 1883, 3600, 3601, 9600),
    *(65535, 65536, 1.5, "", "x", "N", "E", "Y", "DEMO-2", "x" * 37, "ä", "mqtt", "http"),
    *("rtu", "tcp", "resume", "stop", "hold", "release", "virtual", "abb_b23", "rs485", [], {}),
    [WHOLE["evses"][0]],
    {"kind": "rtu", "uart": 1},
    *("10.0.0.1", "010.9.99.255", "1.2.3.256", "1.2.3", "1.2.3.4.5", "1..2.3", "a.b.c.d"),
    {"kind": "tcp", "host": "x"},
    {"kind": "tcp", "host": "192.0.2.7"},
    {"kind": "http", "url": "http://x"},
    {"kind": "http", "url": "https://x.example:8443/base"},
    {"kind": "http", "url": "https://x/a?b", "insecure": False},
]
GONE = object()


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    site = copy.deepcopy(WHOLE)
    where: Any = site
    for key in path[:-1]:
        where = where[key]
    if value is GONE:
        if path[-1] in where or isinstance(where, list):
            del where[path[-1]]
    else:
        where[path[-1]] = copy.deepcopy(value)
    return site


def board_says(site: dict[str, Any]) -> str | None:
    try:
        config.load(json.dumps(site), BOARD, METERS)
    except ConfigError as e:
        return str(e)
    return None


def schema_says(site: dict[str, Any]) -> str | None:
    try:
        schema.check("config", site)
    except schema.SchemaError as e:
        return str(e)
    return None


def agree(site: dict[str, Any]) -> None:
    board, published = board_says(site), schema_says(site)
    if board is None and published is not None:
        assert any(f"{name!r} is a required" in published for name in DEFAULTS), (site, published)
    elif board is not None and published is None:
        assert board.split(": ")[0] in ONLY_THE_BOARD, (site, board)


def test_the_whole_one() -> None:
    assert board_says(WHOLE) is None and schema_says(WHOLE) is None


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_both_say_the_same(path: tuple[Any, ...]) -> None:
    for value in (*VALUES, GONE):
        agree(changed(path, value))


@given(st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(VALUES)), max_size=3))
def test_an_error_names_a_field_and_says_something(changes: list[tuple[Any, Any]]) -> None:
    site = copy.deepcopy(WHOLE)
    for path, value in changes:
        where: Any = site
        for key in path[:-1]:
            try:
                where = where[key]
            except (KeyError, TypeError, IndexError):
                break
        if isinstance(where, dict):
            where[path[-1]] = copy.deepcopy(value)
    text = board_says(site)
    if text is not None:
        field, what = text.split(": ", 1)
        assert field.startswith("config") and len(what) > 10


def test_every_exception_of_the_board_is_a_real_one() -> None:
    """The list above holds nothing that is not needed."""
    seen = set()
    for path in PATHS:
        for value in VALUES:
            site = changed(path, value)
            board = board_says(site)
            if board is not None and schema_says(site) is None:
                seen.add(board.split(": ")[0])
    assert seen == set(ONLY_THE_BOARD)


def test_the_defaults_are_the_schema_s() -> None:
    site = copy.deepcopy(WHOLE)
    for key in ("baud", "parity", "stop"):
        del site["buses"]["rs485"][key]
    for key in ("require_meter", "on_power_return", "clock_lost", "free_vend"):
        del site["evses"][0][key]
    del site["live_s"], site["offline_cards"], site["link"]["port"]
    got = config.load(json.dumps(site), BOARD, METERS)
    published = json.loads((schema.SCHEMAS / "config.schema.json").read_text())
    props = published["properties"], published["$defs"]
    for key in ("live_s", "offline_cards"):
        assert got[key] == props[0][key]["default"]
    assert got["link"]["port"] == props[1]["MqttLink"]["properties"]["port"]["default"]
    for key in ("baud", "parity", "stop"):
        default = props[1]["RtuBus"]["properties"][key]["default"]
        assert got["buses"]["rs485"][key] == default
    for key in ("require_meter", "on_power_return", "clock_lost", "free_vend"):
        assert got["evses"][0][key] == props[1]["EvseConfig"]["properties"][key]["default"]
