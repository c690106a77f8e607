"""Down messages of any shape: nothing but an authentic, fresh, whole one does anything, and none
brings the agent to fall."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from portable.bench import KEY, STATION, World
from wattlock import commands, mac, ocpi

SID = "00112233445566778899aabbccddeeff"
REASONS = {
    *(commands.FORGED, commands.MALFORMED, commands.RETAINED),
    *(commands.OTHER_BOOT, commands.REPEATED),
}


def sign(text: bytes, what: str = "down") -> bytes:
    key = hmac.new(KEY, f"wattlock/1/{what}/{STATION}".encode(), hashlib.sha256).digest()
    return hmac.new(key, text, hashlib.sha256).hexdigest().encode() + b"\n" + text


def inbox() -> commands.Inbox:
    return commands.Inbox(mac.purpose(KEY, "down", STATION), 1, SID)


@given(st.binary(max_size=200), st.booleans())
def test_what_is_not_signed_does_nothing(message: bytes, retained: bool) -> None:
    box = inbox()
    head, why = box.open(message, retained)
    assert head is None and why in REASONS and box.n == 0


@given(st.binary(max_size=100), st.integers(0, 164), st.integers(1, 255))
def test_any_changed_byte_is_forged(text: bytes, at: int, bits: int) -> None:
    good = sign(b'{"v":1,"kid":1,"sid":"%s","n":1}' % SID.encode() + text)
    bad = bytearray(good)
    bad[at % len(bad)] ^= bits
    assert inbox().open(bytes(bad))[1] in (commands.FORGED, commands.MALFORMED)


scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40)),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
FIELDS = ("v", "kid", "sid", "n", "re", "unix_ms", "journal", "ack", "commands")
DATA = (
    *("evse", "reservation_id", "session_id", "token", "expiry_ms", "uid", "allowed", "by"),
    *("operative", "authorization_reference", "auth_method"),
)
KINDS = (
    ocpi.RESERVE_NOW,
    ocpi.CANCEL_RESERVATION,
    ocpi.START_SESSION,
    ocpi.STOP_SESSION,
    ocpi.UNLOCK_CONNECTOR,
    ocpi.AUTHORIZE,
    ocpi.SET_AVAILABILITY,
    ocpi.GET_HEALTH,
    ocpi.RESET,
    "SYNC_TOKENS",
    "",
)


def some(fields: tuple[str, ...], **honest: Any) -> st.SearchStrategy[dict[str, Any]]:
    """An object with honest fields, of which a few are replaced by anything or left out."""

    def build(wrong: dict[str, Any], gone: set[str], base: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in (base | wrong).items() if k not in gone}

    return st.builds(
        build,
        st.dictionaries(st.sampled_from(fields), anything, max_size=2),
        st.sets(st.sampled_from(fields), max_size=1),
        st.fixed_dictionaries(honest),
    )


TOKEN = some(
    ("country_code", "party_id", "type", "uid", "group_id"),
    country_code=st.just("NL"),
    party_id=st.just("EMS"),
    type=st.just("RFID"),
    uid=st.sampled_from(["04A1", "04FF"]),
)
COMMAND = some(
    ("id", "type", "exp", "data"),
    id=st.sampled_from(["a" * 32, "b" * 32, "c" * 32]),
    type=st.sampled_from(KINDS),
    exp=st.just(1790000020000),
    data=some(
        DATA,
        evse=st.just(1),
        reservation_id=st.sampled_from(["R1", "R2"]),
        session_id=st.just("S1"),
        token=TOKEN,
        expiry_ms=st.just(1790000900000),
        uid=st.just("04A1"),
        allowed=st.just("ALLOWED"),
        operative=st.booleans(),
    ),
)


@settings(max_examples=300, deadline=None)
@given(some(FIELDS, v=st.just(1), kid=st.just(1), sid=st.just(SID), n=st.integers(0, 3)))
@example({"v": 1, "kid": 1, "sid": SID, "n": 10**400})
def test_authentic_messages_of_any_shape(head: dict[str, Any]) -> None:
    box = inbox()
    text = json.dumps(head).encode()[:4031]
    opened, why = box.open(sign(text))
    assert (opened is None) == (why is not None)
    honest = isinstance(head.get("n"), int) and head["n"] > 0
    if opened is None:
        assert why in REASONS and box.n == 0
    else:
        assert honest and opened["sid"] == SID and isinstance(opened.get("commands", []), list)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.lists(st.lists(COMMAND, max_size=3), min_size=1, max_size=4), st.booleans())
def test_authentic_commands_of_any_shape_do_not_bring_the_agent_to_fall(
    messages: list[list[dict[str, Any]]], plugged: bool
) -> None:
    w = World()
    w.boot()
    w.run(3000)
    if plugged:
        w.pins[1].car = "C"
    for rows in messages:
        head = w.gateway.header(w.gateway.headers[-1], rows)
        raw = sign(json.dumps(head).encode())
        if len(raw) <= 4096:
            w.board.link.down.append((raw, False))
        w.run(600)
    assert not w.troubles, w.troubles
    words: dict[str, list[str]] = {}
    for r in w.records("result"):
        words.setdefault(r["command_id"], []).append(r["result"])
    for row in words.values():
        assert row[1:] == ["REJECTED"] * (len(row) - 1), "a command was obeyed twice"
    # and it still works
    w.run(1000)
    sent = len(w.gateway.headers)
    w.app.uplink.hurry = True
    w.run(300)
    assert len(w.gateway.headers) > sent
