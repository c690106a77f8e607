"""``python -m tools.gateway conformance``: is a gateway, or a board, one by UPLINK.md?

    conformance gateway --station T-1 --secrets secrets.json --url http://127.0.0.1:8020
    conformance board   --station T-1 --secrets secrets.json --broker 127.0.0.1:1883

Purpose: whoever writes the other end runs this against it and reads what is wrong. Towards a
gateway it plays a board that is new each time; towards a board it plays the gateway, which must
not be connected meanwhile. Over MQTT (`--broker`) or HTTP (`--url` of a gateway, `--listen` for a
board), with `--ca` over TLS towards a broker or a gateway.

Theory: a check is a function that says by AssertionError what is wrong. Checks run in their order
and build on each other: each hears or says what it needs and leaves the other end well. What must
do nothing is followed by something that must do something, so that silence is never waited for
with a board, and only for `--patience-s` with a gateway. Everything that comes is held against the
schemas, the MAC and the chain, in every check.

Limits: the other end is a black box: that an acknowledgement means *durable* is not seen here, nor
what a board does with a retained message, which shows to who subscribes anew only. Use
a station of its own for it, without a car: a gateway keeps the records of this one for ever, and
with `--fork` puts it into quarantine.
"""

from __future__ import annotations

import argparse
import hmac
import json
import queue
import secrets
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import httpx
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tools.gateway import schema, uplink
from tools.gateway.messages import is_brief
from tools.gateway.mqtt import PREFIX

Json = dict[str, Any]
Ask = Callable[[bytes], bytes | None]
"""Send an up message; the answer, or None when there is none."""

FW = "conformance"
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Verdict:
    check: str
    ok: bool
    why: str = ""


class Deaf(Exception):
    """The other end says nothing any more: the checks that are left make no sense."""


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256").hex().encode()


def _run(checks: list[Callable[[], None]]) -> Iterator[Verdict]:
    for check in checks:
        name = (check.__doc__ or "").strip().split("\n")[0].rstrip(".")
        try:
            check()
        except AssertionError as error:
            yield Verdict(name, False, str(error) or "does not hold")
        except (schema.SchemaError, uplink.UplinkError, ValueError) as error:
            yield Verdict(name, False, str(error))
        except Deaf as error:
            yield Verdict(name, False, str(error))
            return
        else:
            yield Verdict(name, True)


# --- towards a gateway


class Board:
    """A board in memory, right in everything, that misbehaves where a check tells it to."""

    def __init__(self, station_id: str, kid: int, key: bytes) -> None:
        self.station_id = station_id
        self.kid = kid
        self.key = key
        self.chain = uplink.derive_key(key, "chain", station_id)
        self.journal = secrets.token_hex(4)
        self.bodies: list[bytes] = []
        self.links = [uplink.first_link(self.chain, self.journal)]
        self.first = 1
        self.boot = 0
        self.restart()

    def restart(self) -> None:
        self.boot += 1
        self.up_ms = 1000
        self.sid = secrets.token_hex(16)

    def write(self, t: str, **fields: Any) -> None:
        self.write_raw(_dumps({"boot": self.boot, "up_ms": self.up_ms, "t": t, **fields}))

    def write_raw(self, body: bytes) -> None:
        self.bodies.append(body)
        seq = len(self.bodies)
        self.links.append(uplink.next_link(self.chain, self.links[-1], seq, body))

    def hello(self) -> None:
        evse = {"evse": 1, "meter": "none", "phases": 3, "max_a": 16}
        more: Json = {"fw": FW, "cause": "power", "slot": "a", "board": FW, "evses": [evse]}
        self.write("boot", **more)
        self.write("time", unix_ms=now_ms(), err_ms=50)

    def message(self, after: int, limit: int = 6, /, **changes: Any) -> bytes:
        """What follows record `after`; `changes` to the header."""
        self.up_ms += 20
        bodies = self.bodies[after : after + limit]
        head: Json = {
            "v": 1, "kid": self.kid, "sid": self.sid, "boot": self.boot, "up_ms": self.up_ms,
            "clock": {"state": "unset"}, "journal": self.journal, "first": self.first,
            "prev": self.links[after].hex(), "seq": after + 1,
            "head": self.links[after + len(bodies)].hex(),
            "live": {"1": {"status": "AVAILABLE", "plugged": False}},
        }  # fmt: skip
        head = {name: value for name, value in (head | changes).items() if value is not ...}
        return uplink.build(self.key, "up", self.station_id, _dumps(head), bodies)

    def brief(self, **changes: Any) -> bytes:
        """A brief picture of an EVSE at rest, when everything is acknowledged."""
        self.up_ms += 20
        head: Json = {
            "v": 1, "kid": self.kid, "sid": self.sid, "up_ms": self.up_ms,
            "seq": len(self.bodies) + 1, "live": {},
        }  # fmt: skip
        return uplink.build(self.key, "up", self.station_id, _dumps(head | changes))


class GatewayChecks:
    def __init__(
        self, ask: Ask, station_id: str, kid: int, key: bytes, fork: bool,
        broker: Broker | None = None,
    ) -> None:  # fmt: skip
        self._ask = ask
        self._fork = fork
        self._broker = broker
        self.board = Board(station_id, kid, key)
        self._n = 0
        self._acked = 0
        self._last = b""

    def run(self) -> Iterator[Verdict]:
        checks = [
            self.answers, self.acknowledges, self.repeats, self.forged, self.reflected,
            self.other_key, self.replay, self.shape, self.broken_chain, self.beyond, self.novelty,
            self.unreadable, self.gap, self.authorize, self.brief, self.reboot,
        ]  # fmt: skip
        if self._broker:
            checks.append(self.unretained)
        yield from _run(checks + ([self.fork] if self._fork else []))

    def _say(self, raw: bytes) -> Json:
        """An honest message: it must be answered rightly."""
        self._last = raw
        came = self._ask(raw)
        if came is None:
            raise Deaf("no answer to an honest message; is the station with this key configured?")
        board = self.board
        head = schema.validate_down(came)
        uplink.parse(came, board.key, "down", board.station_id)
        assert head["kid"] == board.kid, f"kid {head['kid']}, {board.kid} expected"
        assert head["sid"] == board.sid, "the answer does not echo sid"
        assert head.get("re") == board.up_ms, f"re {head.get('re')}, up_ms was {board.up_ms}"
        assert head["n"] > self._n, f"n {head['n']} after {self._n}: it must rise"
        off_ms = abs(head["unix_ms"] - now_ms())
        assert off_ms < HOUR_MS, f"unix_ms is {off_ms // 1000} s off"
        self._n = head["n"]
        return head

    def _ack(self, head: Json, wanted: int) -> None:
        assert head.get("journal") == self.board.journal, "journal is not the board's"
        assert head.get("ack") == wanted, f"ack {head.get('ack')}, {wanted} expected"
        self._acked = wanted

    def _all(self) -> None:
        """Everything there is, acknowledged."""
        while self._acked < len(self.board.bodies):
            upto = min(self._acked + 6, len(self.board.bodies))
            self._ack(self._say(self.board.message(self._acked)), upto)

    def _nothing(self, raw: bytes, what: str) -> None:
        assert self._ask(raw) is None, f"{what} was answered"

    def answers(self) -> None:
        """Answers an honest message: MAC, schema, sid, re, n, time"""
        self.board.hello()
        self._say(self.board.message(0, 0))

    def acknowledges(self) -> None:
        """Acknowledges up to the last record of a message"""
        self._all()

    def repeats(self) -> None:
        """Takes records again that it has, and acknowledges the same"""
        self._ack(self._say(self.board.message(0)), len(self.board.bodies))
        self._ack(self._say(self.board.message(1)), len(self.board.bodies))

    def forged(self) -> None:
        """Does nothing with a message whose MAC is wrong"""
        raw = self.board.message(self._acked)
        self._nothing(raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:], "a changed byte")
        self._nothing(b"0" * 64 + raw[64:], "a MAC of zeros")
        self._nothing(raw[:64].upper() + raw[64:], "a MAC in capitals")
        self._say(self.board.message(self._acked))

    def reflected(self) -> None:
        """Does nothing with its own words, or another purpose's key"""
        came = self._ask(self.board.message(self._acked))
        assert came is not None, "no answer to an honest message"
        self._n = json.loads(came[65:])["n"]
        self._nothing(came, "its own answer, sent back,")
        text = self.board.message(self._acked)[65:]
        for purpose in ("down", "chain"):
            key = uplink.derive_key(self.board.key, purpose, self.board.station_id)
            self._nothing(_mac(key, text) + b"\n" + text, f"key {purpose}")

    def other_key(self) -> None:
        """Does nothing with a kid that is not the station's"""
        wrong = self.board.kid + 1000
        self._nothing(self.board.message(self._acked, kid=wrong), f"kid {wrong}")

    def replay(self) -> None:
        """Does not answer a message that came before"""
        old = self.board.message(self._acked)
        self._say(old)
        self._say(self.board.message(self._acked))
        self._nothing(old, "a repeated message")

    def shape(self) -> None:
        """Does nothing with what is no message: size, header, lines"""
        board = self.board
        head = board.message(self._acked)[65:]
        pad = "x" * (uplink.MESSAGE_MAX_BYTES - 64 - len(head))
        long = head[:-1] + f',"pad":"{pad}"}}'.encode()
        key = uplink.derive_key(board.key, "up", board.station_id)
        self._nothing(_mac(key, long) + b"\n" + long, f"{len(long)} bytes")
        wrong: list[Json] = [{"v": 2}, {"sid": "xyz"}, {"seq": 0}, {"boot": "1"}, {"prev": ...}]
        for changes in wrong:
            self._nothing(board.message(self._acked, **changes), f"{changes}")
        for raw in (b"", b"\n", b"0" * 64):
            self._nothing(raw, f"{raw[:8]!r}")
        self._say(board.message(self._acked))

    def broken_chain(self) -> None:
        """Does nothing where head does not follow from prev"""
        self.board.write("event", what="alive")
        wrong: list[Json] = [{"head": "0" * 64}, {"prev": "0" * 64}]
        for changes in wrong:
            self._nothing(self.board.message(self._acked, **changes), f"{changes}")
        self._all()

    def beyond(self) -> None:
        """Does not acknowledge beyond a record that it has not"""
        for _ in range(4):
            self.board.write("event", what="alive")
        self._ack(self._say(self.board.message(self._acked + 2)), self._acked)
        self._all()

    def novelty(self) -> None:
        """Takes record types, events and fields that it does not know"""
        self.board.write("novelty", colour="green")
        self.board.write("event", what="novelty")
        self.board.write("event", what="alive", colour="green")
        self._all()
        self._say(self.board.message(self._acked, colour="green"))

    def unreadable(self) -> None:
        """Is not blocked by a record that nobody can read"""
        self.board.write_raw(b"no JSON")
        self.board.write_raw(b'{"t":"status"}')
        self._all()

    def gap(self) -> None:
        """Moves on where the board no longer keeps a record"""
        for _ in range(5):
            self.board.write("event", what="alive")
        gone = self._acked + 3
        self.board.first = gone + 1
        self._ack(self._say(self.board.message(gone)), len(self.board.bodies))

    def authorize(self) -> None:
        """Answers authorize with AUTHORIZE, for the same EVSE and uid"""
        asked = {"evse": 1, "type": "RFID", "uid": "00C0FFEE"}
        head = self._say(self.board.message(self._acked, authorize=asked))
        words = [c for c in head.get("commands", []) if c["type"] == "AUTHORIZE"]
        assert len(words) == 1, f"{len(words)} AUTHORIZE in the answer"
        data = words[0]["data"]
        assert (data["evse"], data["uid"]) == (1, asked["uid"]), f"of another card: {data}"
        assert words[0]["exp"] > head["unix_ms"], "it is expired already"
        assert words[0]["exp"] <= head["unix_ms"] + HOUR_MS, "it is good for over an hour"

    def brief(self) -> None:
        """Takes brief pictures where it said so, and asks for what it misses"""
        head = self._say(self.board.message(self._acked))
        if "brief_s" not in head:
            return  # none will come
        old = self.board.brief()
        for raw in (old, self.board.brief(), old):
            self._nothing(raw, "a brief picture, to which there is nothing to say,")
        came = self._ask(self.board.brief(seq=self._acked + 2))
        assert came is not None, "a brief picture was not answered whose seq does not follow"
        uplink.parse(came, self.board.key, "down", self.board.station_id)
        head = schema.validate_down(came)
        assert head["sid"] == self.board.sid, "the answer does not echo sid"
        assert "re" not in head, "the answer to a brief picture has re"
        self._n = head["n"]
        self._ack(head, self._acked)
        self._say(self.board.message(self._acked))

    def reboot(self) -> None:
        """Follows the board into its next boot"""
        old = self.board.message(self._acked)
        self.board.restart()
        self.board.hello()
        self._all()
        self._nothing(old, "a message of the boot before")

    def unretained(self) -> None:
        """Retains nothing on `down`"""
        assert self._broker is not None
        self._broker.again()
        self._say(self.board.message(self._acked))
        self._broker.nothing_retained()

    def fork(self) -> None:
        """Acknowledges neither of two histories"""
        board = self.board
        kept = len(board.bodies)
        board.write("event", what="alive")
        self._all()
        del board.bodies[kept:], board.links[kept + 1 :]
        board.write("event", what="alive", other=True)
        head = self._say(board.message(kept))
        assert "ack" not in head, f"ack {head.get('ack')} for a second history"
        assert not head.get("commands"), "commands for a second history"


# --- towards a board


class Link(Protocol):
    """Where a board is heard and answered."""

    def hear(self) -> bytes:
        """The next up message. Raises Deaf."""
        ...

    def reply(self, raw: bytes) -> None:
        """Answer the message that was heard last."""
        ...


class BoardChecks:
    def __init__(
        self,
        link: Link,
        station_id: str,
        kid: int,
        key: bytes,
        clock: Callable[[], int] = now_ms,
        broker: Broker | None = None,
    ) -> None:
        self._link = link
        self._broker = broker
        self._clock = clock
        self._station_id = station_id
        self._kid = kid
        self._key = key
        self._chain = uplink.derive_key(key, "chain", station_id)
        self._links: dict[str, dict[int, bytes]] = {}
        self._lines: dict[str, dict[int, bytes]] = {}
        self._ups: set[tuple[str, int]] = set()
        self._n = 0
        self.head: Json = {}  # of the last whole message
        self.records: list[Json] = []  # every one, once
        self._acked = 0
        self._was_brief = False  # what was heard last
        self._may_be_brief = False

    def run(self) -> Iterator[Verdict]:
        checks = [
            self.speaks, self.insists, self.strange_acks, self.moves_on, self.obeys, self.forged,
            self.other_boot, self.old_n, self.stale, self.once, self.other_body, self.oversize,
            self.cancel, self.health, self.picture, self.peace, self.brief,
        ]  # fmt: skip
        yield from _run(checks + ([self.unretained] if self._broker else []))

    # hearing

    def _hear(self) -> list[tuple[int, Json]]:
        """The next message: its new records, with their sequences."""
        raw = self._link.hear()
        message = uplink.parse(raw, self._key, "up", self._station_id)
        head, bodies = schema.validate_up(raw, closed=False)
        assert head["kid"] == self._kid, f"kid {head['kid']}, {self._kid} expected"
        assert (head["sid"], head["up_ms"]) not in self._ups, f"up_ms {head['up_ms']} used twice"
        self._ups.add((head["sid"], head["up_ms"]))
        self._was_brief = is_brief(head)
        if self._was_brief:
            self._glance(head)
            return []
        self.head = head
        return self._follow(head, message.records, bodies)

    def _glance(self, head: Json) -> None:
        assert self._may_be_brief, "a brief picture, and no answer had brief_s"
        assert head["sid"] == self.head["sid"], "a brief picture with another sid"
        assert head["up_ms"] > self.head["up_ms"], f"up_ms {head['up_ms']} is not above the last"
        assert head["seq"] == self._acked + 1, f"brief with seq {head['seq']}: acked {self._acked}"
        strange = set(head["live"]) - set(self.head["live"])
        assert not strange, f"brief about {sorted(strange)}, of which no whole message told"

    def _follow(
        self, head: Json, lines: list[bytes], bodies: list[Json]
    ) -> list[tuple[int, Json]]:
        first = uplink.first_link(self._chain, head["journal"])
        links = self._links.setdefault(head["journal"], {0: first})
        kept = self._lines.setdefault(head["journal"], {})
        begin = head["seq"] - 1
        chain = uplink.links(self._chain, bytes.fromhex(head["prev"]), head["seq"], lines)
        assert chain[-1].hex() == head["head"], f"head does not follow from prev at {head['seq']}"
        for offset, link in enumerate(chain):
            assert links.setdefault(begin + offset, link) == link, f"link {begin + offset} changed"
        new = []
        for offset, (line, body) in enumerate(zip(lines, bodies, strict=True)):
            seq = head["seq"] + offset
            assert kept.get(seq, line) == line, f"record {seq} changed"
            if seq not in kept:
                kept[seq] = line
                new.append((seq, body))
                self.records.append(body)
        return new

    # speaking

    def _header(self, **changes: Any) -> Json:
        if not self.head:
            raise Deaf("it has not said anything right yet")
        self._n = max(self._n + 1, self._clock())
        head: Json = {
            "v": 1, "kid": self._kid, "sid": self.head["sid"], "n": self._n,
            "re": ... if self._was_brief else self.head["up_ms"], "unix_ms": self._clock(),
            "journal": self.head["journal"], "ack": self._acked,
        }  # fmt: skip
        return {name: value for name, value in (head | changes).items() if value is not ...}

    def _seal(self, head: Json, key: bytes | None = None) -> bytes:
        return uplink.build(key or self._key, "down", self._station_id, _dumps(head))

    def _reply(self, *commands: Json, **changes: Any) -> None:
        more: Json = {"commands": list(commands)} if commands else {}
        if not self._was_brief:
            self._may_be_brief = "brief_s" in changes
        self._link.reply(self._seal(self._header(**more, **changes)))

    def _exchange(self, *commands: Json, **changes: Any) -> None:
        """Hear a message, acknowledge all of it, say something."""
        self._hear()
        self._acked = max(self._lines[self.head["journal"]], default=0)
        self._reply(*commands, **changes)

    def _order(
        self, kind: str = "X_CONFORMANCE", life_ms: int = HOUR_MS // 2, **data: Any
    ) -> Json:
        """A command; of the default kind, one that no board knows."""
        exp = self._clock() + life_ms
        return {"id": secrets.token_hex(16), "type": kind, "exp": exp, "data": data}

    def _results(self, command: Json) -> list[str]:
        return [
            r["result"]
            for r in self.records
            if r["t"] == "result" and r["command_id"] == command["id"]
        ]

    def _result(self, command: Json, rounds: int = 8) -> str:
        """The result of a command that is said with every answer until it comes."""
        for _ in range(rounds):
            if words := self._results(command):
                return words[-1]
            self._exchange(command)
        raise AssertionError(f"no result of {command['type']} in {rounds} messages")

    def _still_obeys(self) -> None:
        order = self._order()
        word = self._result(order)
        assert word == "NOT_SUPPORTED", f"{word} for an unknown type"

    def _ignored(self, order: Json, raw: bytes, what: str) -> None:
        """It must do nothing: what comes after it does something, and its result is not there."""
        self._hear()
        self._link.reply(raw)
        self._still_obeys()
        assert not self._results(order), f"{what}: the command in it was answered"

    # checks

    def speaks(self) -> None:
        """Speaks: MAC, schema, chain, kid"""
        self._hear()

    def insists(self) -> None:
        """Sends records again, byte for byte, while they are not acknowledged"""
        for _ in range(3):
            if self.records:
                break
            self._reply(ack=0)
            self._hear()
        assert self.records, "it has told no record, not even its boot"
        first = self.head["seq"]
        self._reply(ack=self._acked)
        self._hear()
        assert self.head["seq"] <= first, f"goes on at {self.head['seq']}, {first} is not acked"

    def moves_on(self) -> None:
        """Goes on behind what is acknowledged"""
        self._acked = max(self._lines[self.head["journal"]])
        self._reply()
        self._hear()
        seq = self.head["seq"]
        assert seq == self._acked + 1, f"goes on at {seq}, {self._acked} is acknowledged"

    def strange_acks(self) -> None:
        """Ignores an ack of another journal or beyond its head"""
        last = max(self._lines[self.head["journal"]])
        journal = secrets.token_hex(4)
        for changes in ({"journal": journal, "ack": last}, {"ack": last + 1_000_000}):
            self._reply(**changes)
            self._hear()
            assert self.head["seq"] <= last, f"it believed {changes}"

    def obeys(self) -> None:
        """Answers an unknown type of command with NOT_SUPPORTED"""
        self._still_obeys()

    def forged(self) -> None:
        """Does nothing with a message whose MAC is wrong"""
        order = self._order()
        head = self._header(commands=[order])
        self._ignored(order, self._seal(head, bytes(32)), "another key")
        text = _dumps(self._header(commands=[order]))
        up = uplink.build(self._key, "up", self._station_id, text)
        self._ignored(order, up, "the up key")

    def other_boot(self) -> None:
        """Does nothing with a sid that is not of this boot"""
        order = self._order()
        head = self._header(commands=[order], sid=secrets.token_hex(16))
        self._ignored(order, self._seal(head), "another sid")

    def old_n(self) -> None:
        """Does nothing where n is not above the last"""
        order = self._order()
        for n in (self._n, 1):
            head = self._header(commands=[order], n=n)
            self._ignored(order, self._seal(head), f"n {n} after {self._n}")

    def stale(self) -> None:
        """Does nothing with a command that expired, or is good for over an hour"""
        for life_ms in (-60_000, 2 * HOUR_MS):
            order = self._order(life_ms=life_ms)
            head = self._header(commands=[order], re=...)
            self._ignored(order, self._seal(head), f"exp {life_ms // 1000} s from now")

    def once(self) -> None:
        """Obeys a command once, however often it comes"""
        order = self._order()
        self._result(order)
        for _ in range(2):
            self._exchange(order)
        self._still_obeys()
        words = self._results(order)
        assert len(words) == 1, f"{len(words)} results of one command"

    def other_body(self) -> None:
        """REJECTED for an id that was another command's"""
        order = self._order()
        self._result(order)
        for _ in range(8):
            if len(self._results(order)) > 1:
                break
            self._exchange(order | {"data": {"other": True}})
        self._still_obeys()
        words = self._results(order)
        assert len(words) > 1 and set(words[1:]) == {"REJECTED"}, f"results: {words}"

    def oversize(self) -> None:
        """Does nothing with more than 4,096 bytes, and is still there"""
        order = self._order()
        text = _dumps(self._header(commands=[order], pad="x" * uplink.MESSAGE_MAX_BYTES))
        key = uplink.derive_key(self._key, "down", self._station_id)
        mac = _mac(key, text)
        self._ignored(order, mac + b"\n" + text, f"{len(text)} bytes")

    def cancel(self) -> None:
        """UNKNOWN_RESERVATION for one that nobody made"""
        order = self._order("CANCEL_RESERVATION", reservation_id="conformance-none")
        word = self._result(order)
        assert word == "UNKNOWN_RESERVATION", f"{word}"

    def health(self) -> None:
        """Answers GET_HEALTH with health in the header"""
        order = self._order("GET_HEALTH")
        for _ in range(4):
            self._exchange(order)
            if "health" in self.head:
                return
        raise AssertionError("no health in three messages")

    def picture(self) -> None:
        """Shows the picture of every EVSE that its boot record names"""
        boots = [r for r in self.records if r["t"] == "boot"]
        assert boots, "no boot record"
        named = {str(evse["evse"]) for evse in boots[-1]["evses"]}
        assert set(self.head["live"]) == named, f"live of {sorted(self.head['live'])}"

    def peace(self) -> None:
        """Is quiet when everything is acknowledged"""
        for _ in range(12):
            begun = len(self.records)
            self._exchange()
            if len(self.records) == begun and self.head["seq"] == self._acked + 1:
                return
        raise AssertionError("it has news in every message, or sends old ones for ever")

    def brief(self) -> None:
        """Hears what it is told between brief pictures, if it sends any"""
        order = self._order()
        for _ in range(3):  # a board may be busy writing something else
            for _ in range(4):
                self._hear()
                if self._was_brief:
                    break
                self._acked = max(self._lines[self.head["journal"]])
                self._reply(brief_s=900)
            else:
                return  # nobody must
            self._reply(order)
            for _ in range(4):
                self._exchange(brief_s=900)
            words = self._results(order)
            if words:
                break
        assert words == ["NOT_SUPPORTED"], f"results of an unknown type: {words}"


    def unretained(self) -> None:
        """Retains nothing on `up`"""
        assert self._broker is not None
        self._broker.again()
        self._exchange()
        self._broker.nothing_retained()


# --- links


def ask_http(url: str, station_id: str, timeout_s: float, ca: Path | None = None) -> Ask:
    """Up messages by POST."""
    verify = ssl.create_default_context(cafile=ca)
    client = httpx.Client(timeout=timeout_s, trust_env=False, verify=verify)
    target = f"{url.rstrip('/')}/wattlock/1/{station_id}"

    def ask(raw: bytes) -> bytes | None:
        reply = client.post(target, content=raw)
        return reply.content or None if reply.status_code == 200 else None

    return ask


class Broker:
    """One end of a station's topics."""

    def __init__(
        self, address: str, station_id: str, speaks: str, user: str = "", password: str = "",
        ca: Path | None = None,
    ) -> None:  # fmt: skip
        host, _, port = address.rpartition(":")
        self._topic = f"{PREFIX}/{station_id}/{speaks}"
        self._hears = f"{PREFIX}/{station_id}/{'down' if speaks == 'up' else 'up'}"
        self._came: queue.Queue[bytes] = queue.Queue()
        self._retained = 0
        self._ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        if user:
            self._client.username_pw_set(user, password)
        if ca is not None:
            self._client.tls_set(str(ca))
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._message
        self._client.connect(host, int(port))
        self._client.loop_start()
        self._subscribed()

    def _subscribed(self) -> None:
        if not self._ready.wait(15):
            raise Deaf(f"no subscription to {self._hears}: account, password, access rules?")

    def _connected(self, *_: Any) -> None:
        self._client.subscribe(self._hears)

    def _message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        if message.retain:
            self._retained += 1
        else:
            self._came.put(bytes(message.payload))

    def again(self) -> None:
        """Subscribe anew: what is retained comes again (MQTT 3.1.1, 3.8.4), before what is said
        from now on."""
        self._ready.clear()
        self._connected()
        self._subscribed()

    def nothing_retained(self) -> None:
        assert not self._retained, f"a retained message on {self._hears}"

    def say(self, raw: bytes) -> None:
        self._client.publish(self._topic, raw)

    def heard(self, timeout_s: float) -> bytes | None:
        try:
            return self._came.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def drain(self) -> None:
        """Only what comes from now on counts."""
        while not self._came.empty():
            self._came.get_nowait()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def ask_mqtt(broker: Broker, timeout_s: float) -> Ask:
    """Up messages by publishing; what is not an answer (`re`) is not waited for. A brief message
    is answered by such."""

    def ask(raw: bytes) -> bytes | None:
        brief = b'"journal":' not in raw
        broker.drain()
        broker.say(raw)
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            came = broker.heard(left)
            if came is not None and (brief or b'"re":' in came):
                return came
        return None

    return ask


class MqttLink:
    def __init__(self, broker: Broker, patience_s: float) -> None:
        self._broker = broker
        self._patience_s = patience_s

    def hear(self) -> bytes:
        came = self._broker.heard(self._patience_s)
        if came is None:
            raise Deaf(f"nothing on `up` in {self._patience_s:g} s")
        return came

    def reply(self, raw: bytes) -> None:
        self._broker.say(raw)


class HttpLink:
    """A server that a board posts to. What is not answered gets 403."""

    def __init__(self, address: str, station_id: str, patience_s: float) -> None:
        self._patience_s = patience_s
        self._ups: queue.Queue[bytes] = queue.Queue()
        self._downs: queue.Queue[bytes] = queue.Queue()
        link = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.path.rstrip("/").endswith(f"/wattlock/1/{station_id}"):
                    while not link._downs.empty():
                        link._downs.get_nowait()  # nobody waits for it any more
                    link._ups.put(raw)
                    try:
                        answer = link._downs.get(timeout=5)
                    except queue.Empty:
                        answer = b""
                else:
                    answer = b""
                self.send_response(200 if answer else 403)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        host, _, port = address.rpartition(":")
        self.server = ThreadingHTTPServer((host, int(port)), Handler)
        self.port: int = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def hear(self) -> bytes:
        try:
            return self._ups.get(timeout=self._patience_s)
        except queue.Empty:
            raise Deaf(f"nobody posted in {self._patience_s:g} s") from None

    def reply(self, raw: bytes) -> None:
        self._downs.put(raw)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


# --- the command line


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools.gateway conformance", description="Is the other end one by UPLINK.md?"
    )
    parser.add_argument("end", choices=("gateway", "board"), help="what is to be checked")
    parser.add_argument("--station", required=True, help="station_id, best one of its own")
    shape = '{"kid": 1, "key": "<64 hex>"}'
    parser.add_argument("--secrets", type=Path, required=True, help=f"a file: {shape}")
    parser.add_argument("--broker", metavar="HOST:PORT", help="MQTT; over TLS with --ca")
    parser.add_argument("--user", default="", help="the account at the broker")
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("--url", help="HTTP: the gateway's")
    parser.add_argument("--ca", type=Path, help="PEM: who issued the broker's or the url's server")
    parser.add_argument("--listen", metavar="HOST:PORT", help="HTTP: where the board posts to")
    parser.add_argument("--patience-s", type=float, help="what is silence (gateway 2, board 130)")
    parser.add_argument("--fork", action="store_true", help="two histories, too: quarantine")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = parser.parse_args(arguments)
    other = args.url if args.end == "gateway" else args.listen
    if bool(args.broker) == bool(other):
        word = "--url" if args.end == "gateway" else "--listen"
        parser.error(f"give --broker or {word}, one of them")
    return args


def verdicts(args: argparse.Namespace) -> Iterator[Verdict]:
    identity = json.loads(args.secrets.read_text())
    kid, key = identity["kid"], bytes.fromhex(identity["key"])
    password = args.password_file.read_text().strip() if args.password_file else ""
    broker = None
    if args.broker:
        speaks = "up" if args.end == "gateway" else "down"
        broker = Broker(args.broker, args.station, speaks, args.user, password, args.ca)
    try:
        if args.end == "gateway":
            patience_s = args.patience_s or 2.0
            ask = (
                ask_mqtt(broker, patience_s)
                if broker
                else ask_http(args.url, args.station, patience_s + 8, args.ca)
            )
            yield from GatewayChecks(ask, args.station, kid, key, args.fork, broker).run()
        else:
            patience_s = args.patience_s or 130.0
            link: MqttLink | HttpLink
            if broker:
                link = MqttLink(broker, patience_s)
            else:
                link = HttpLink(args.listen, args.station, patience_s)
            yield from BoardChecks(link, args.station, kid, key, broker=broker).run()
            if isinstance(link, HttpLink):
                link.close()
    finally:
        if broker:
            broker.close()


def main(arguments: list[str]) -> int:
    args = _options(arguments)
    found = []
    try:
        for verdict in verdicts(args):
            found.append(verdict)
            if not args.json:
                print(f"{'pass' if verdict.ok else 'FAIL'}  {verdict.check}", flush=True)
                if verdict.why:
                    print(f"      {verdict.why}")
    except (OSError, Deaf, KeyError, ValueError, httpx.HTTPError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps([asdict(verdict) for verdict in found], indent=1))
    failed = [verdict for verdict in found if not verdict.ok]
    if not args.json:
        print(f"{len(found) - len(failed)} hold, {len(failed)} do not")
    return 1 if failed else 0
