"""What a plain ESP32's heap takes: features together, the longest configuration from afar.

The deployed firmware in the 32-bit VM, on the bench of `tools.rig`. Each case has a session, as
many results of commands as a board keeps, the longest SET_CONFIG that the gateway sends, and a new
key; nothing is refused for want of heap and no part fails. The table in firmware/README.md says
what is held here, and what is not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.gateway.desk import SET_CONFIG_MAX_BYTES
from tools.rig import Rig
from tools.stage import METER

SIGNING = "bauer_bsm_ws36a"
RESULTS = 16  # that a board keeps
PER_MESSAGE = 4
TOGETHER = [
    ("96k", ()),
    ("112k", ("tls", "four")),
    ("112k", ("tls", "bookings", "whitelist")),
    ("112k", ("bookings", "whitelist", "signing")),
    ("112k", ("four", "signing")),
    ("112k", ("four", "bookings")),
    ("112k", ("four", "whitelist")),
]


def bench(heap: str, features: tuple[str, ...], **more: Any) -> Rig:
    """A board that has these."""
    config: dict[str, Any] = {}
    meter = SIGNING if "signing" in features else METER
    count = 4 if "four" in features else 1
    row = {"bus": "rs485", "max_a": 32, "phases": 3, "require_meter": count == 1}
    if count > 1:
        config["board"] = "virtual4"
    config["evses"] = [
        row | {"n": n, "unit": n, "meter": meter if n == 1 else METER}
        for n in range(1, count + 1)
    ]
    if "bookings" in features:
        config["bookings"] = True
    if "whitelist" in features:
        config["offline_cards"] = "whitelist"
    link = "mqtts" if "tls" in features else "mqtt"
    return Rig(heap=heap, link=link, **more, **config)


def outcome(rig: Rig, kind: str, data: dict[str, Any]) -> str:
    rig.command(kind, data)
    told = [r["result"] for r in rig.gateway.records if r.get("type") == kind]
    return told[-1]


def remember(rig: Rig) -> None:
    """So many commands that the board has no room for the result of another one."""
    for _ in range(RESULTS // PER_MESSAGE):
        asked = [
            rig.gateway.command("SET_AVAILABILITY", {"evse": 9, "operative": True})
            for _ in range(PER_MESSAGE)
        ]
        rig.gateway.commands += asked
        rig.settle()
        while not rig.gateway.seen("result", command_id=asked[-1]["id"]):
            rig.skip(12_000)


def well(rig: Rig) -> None:
    wrong = [
        r for r in rig.gateway.records
        if r.get("what") in ("supervisor", "message") or r["t"] == "lost"
    ]  # fmt: skip
    assert wrong == [] and "trouble" not in rig.board.console(), rig.board.console()


def named(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else "+".join(value) or "plain"


def size(data: dict[str, Any]) -> int:
    return len(json.dumps(data, separators=(",", ":")))


def longest(rig: Rig) -> dict[str, Any]:
    """A SET_CONFIG of all that this board can be sent in one piece."""
    secrets: dict[str, Any] = {"mqtt": {"user": "u" * 64, "password": "p" * 64}}
    if "tls" in rig.identity:
        return {"secrets": secrets | {"tls": {"ca": rig.identity["tls"]["ca"]}}}
    return {"config": rig.site | {"live_s": 50}, "secrets": secrets}


@pytest.mark.parametrize(("heap", "features"), TOGETHER, ids=named)
def test_features_together(micropython: Path, heap: str, features: tuple[str, ...]) -> None:
    with bench(heap, features) as rig:
        rig.online()
        rig.plug("C")
        rig.show_card()
        rig.charging()
        rig.pass_time(300)
        rig.show_card()
        rig.stopped()
        rig.plug("A")
        remember(rig)
        assert rig.board.boot() == 1
        well(rig)
        data = longest(rig)
        assert 450 < size(data) <= SET_CONFIG_MAX_BYTES
        assert outcome(rig, "SET_CONFIG", data) == "ACCEPTED"
        rig.until("the boot after the trial", lambda: rig.board.boot() == 3)
        assert outcome(rig, "ROTATE_KEY", {"kid": 2, "nonce": "ab" * 32}) == "ACCEPTED"
        well(rig)


def test_certificates_and_four_evses_at_once(micropython: Path) -> None:
    """More than the gateway sends in one piece: a CA, a certificate of the board's own and the
    configuration of four EVSEs."""
    with bench("112k", ("four",), identity={"tls": {"key": "K" * 184, "cert": "B" * 600}}) as rig:
        rig.online()
        remember(rig)
        data = {
            "config": rig.site | {"live_s": 50},
            "secrets": {"tls": {"ca": "A" * 600, "cert": "C" * 600}},
        }
        assert size(data) > 1800
        assert outcome(rig, "SET_CONFIG", data) == "ACCEPTED"
        rig.until("the boot after the trial", lambda: rig.board.boot() == 3)
        assert outcome(rig, "ROTATE_KEY", {"kid": 2, "nonce": "ab" * 32}) == "ACCEPTED"
        well(rig)
