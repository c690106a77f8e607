"""A reference board in CPython, written from UPLINK.md alone.

Purpose: the gateway's tests need a board that shares no line of code with the gateway or with
the firmware: MAC, chain and records are computed here once more. Theory: the script of a test
drives it (`reserve`, `start`, `period`...); it keeps a journal, sends what is not acknowledged,
remembers commands and can misbehave on request. Transport is a callable: bytes up, bytes down or
None.
Limits: no meter, no rules: it does what the test says.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Callable
from typing import Any

import httpx
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

KEY = "00112233445566778899aabbccddeeff" * 2


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


class Board:
    """One station. Time is the test's: `unix_ms` and `up_ms` move by `sleep` only."""

    def __init__(
        self,
        station_id: str = "DEMO-1",
        key: str = KEY,
        *,
        kid: int = 1,
        unix_ms: int = 1_790_000_000_000,
        journal: str | None = None,
    ) -> None:
        self.station_id = station_id
        self.key = bytes.fromhex(key)
        self.kid = kid
        self.unix_ms = unix_ms
        self.boot = 0
        self.journal = journal or secrets.token_hex(4)
        self.records: list[bytes] = []
        self.links = [_hmac(self._key("chain"), self.journal.encode())]
        self.acked = 0
        self.first = 1
        self.live: dict[str, Any] = {}
        self.authorize: dict[str, Any] | None = None
        self.health: dict[str, Any] | None = None
        self.down: list[dict[str, Any]] = []  # every down header accepted
        self.seen: list[str] = []  # ids of commands executed
        self.commands: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.last_up = b""
        self.power_up()

    # --- life

    def power_up(self) -> None:
        self.boot += 1
        self.up_ms = 1000
        self.sid = secrets.token_hex(16)
        self.last_n = 0
        self.clock = "unset"

    def sleep(self, ms: int) -> None:
        self.up_ms += ms
        self.unix_ms += ms

    def now(self) -> list[int]:
        return [self.boot, self.up_ms]

    # --- journal

    def _key(self, purpose: str) -> bytes:
        return _hmac(self.key, f"wattlock/1/{purpose}/{self.station_id}".encode())

    def write(self, t: str, **fields: Any) -> int:
        """Append a record; its sequence."""
        body = {"t": t, "boot": self.boot, "up_ms": self.up_ms}
        body |= {name.rstrip("_"): value for name, value in fields.items() if value is not None}
        if t == "start" and fields.get("token") is None:
            body["token"] = None
        return self.write_raw(json.dumps(body, separators=(",", ":")).encode())

    def write_raw(self, body: bytes) -> int:
        seq = len(self.records) + 1
        self.records.append(body)
        self.links.append(
            _hmac(self._key("chain"), self.links[-1] + seq.to_bytes(8, "big") + body)
        )
        return seq

    def anchor(self, step: bool | None = None) -> None:
        self.clock = "synced"
        self.write("time", unix_ms=self.unix_ms, err_ms=40, step=step)

    def hello(self) -> None:
        """What a board writes when it starts."""
        evse = {"evse": 1, "meter": "eastron_sdm630_v2", "phases": 3, "max_a": 32}
        self.write("boot", fw="0.1.0", cause="power", slot="a", board="virtual", evses=[evse])
        self.anchor()

    def status(self, status: str, plugged: bool = False, session_id: str | None = None) -> None:
        self.write("status", evse=1, status=status, plugged=plugged, session_id=session_id)
        self.live["1"] = {"status": status, "plugged": plugged}

    # --- up

    def message(self, *, after: int | None = None, limit: int = 4, **header: Any) -> bytes:
        """The next up message: what is not acknowledged, at most `limit` records."""
        self.sleep(1)
        done = max(self.acked if after is None else after, self.first - 1)
        bodies = self.records[done : done + limit]
        clock: dict[str, Any] = {"state": self.clock}
        if self.clock != "unset":
            clock |= {"unix_ms": self.unix_ms, "err_ms": 40}
        head: dict[str, Any] = {
            "v": 1,
            "kid": self.kid,
            "sid": self.sid,
            "boot": self.boot,
            "up_ms": self.up_ms,
            "clock": clock,
            "journal": self.journal,
            "first": self.first,
            "prev": self.links[done].hex(),
            "seq": done + 1,
            "head": self.links[done + len(bodies)].hex(),
            "live": self.live,
        }
        if self.authorize is not None:
            head["authorize"] = self.authorize
        if self.health is not None:
            head["health"] = self.health
        head |= header
        rest = b"\n".join([json.dumps(head, separators=(",", ":")).encode(), *bodies])
        self.last_up = _hmac(self._key("up"), rest).hex().encode() + b"\n" + rest
        return self.last_up

    def brief(self, **header: Any) -> bytes:
        """A brief picture: energy and power of what `live` says of sessions."""
        self.sleep(1)
        head: dict[str, Any] = {
            "v": 1,
            "kid": self.kid,
            "sid": self.sid,
            "up_ms": self.up_ms,
            "seq": self.acked + 1,
            "live": {
                n: {name: picture[name] for name in ("wh", "w") if name in picture}
                for n, picture in self.live.items()
                if "wh" in picture
            },
        }
        text = json.dumps(head | header, separators=(",", ":")).encode()
        self.last_up = _hmac(self._key("up"), text).hex().encode() + b"\n" + text
        return self.last_up

    # --- down

    def receive(self, raw: bytes, *, retained: bool = False) -> dict[str, Any] | None:
        """Check a down message as a board does; execute nothing, remember commands."""
        mac, _, rest = raw.partition(b"\n")
        if retained or not hmac.compare_digest(_hmac(self._key("down"), rest).hex().encode(), mac):
            self.refused.append("mac")
            return None
        head: dict[str, Any] = json.loads(rest)
        if head["sid"] != self.sid or head["kid"] != self.kid or head["n"] <= self.last_n:
            self.refused.append("stale")
            return None
        self.last_n = head["n"]
        self.down.append(head)
        if head.get("journal") == self.journal and head.get("ack", 0) <= len(self.records):
            self.acked = head.get("ack", self.acked)
        for command in head.get("commands", []):
            if command["id"] not in self.seen:
                self.seen.append(command["id"])
                self.commands.append(command)
        return head

    def result(self, command: dict[str, Any], result: str, **fields: Any) -> None:
        self.write(
            "result", command_id=command["id"], type=command["type"], result=result, **fields
        )

    def take(self, type: str) -> dict[str, Any]:
        """The oldest received command, which must be of `type`."""
        command = self.commands.pop(0)
        assert command["type"] == type, command
        return command

    # --- a charging session, in records

    def reserve(self, command: dict[str, Any], session_id: str) -> None:
        data = command["data"]
        self.write(
            "reserve",
            evse=data["evse"],
            reservation_id=data["reservation_id"],
            session_id=session_id,
            token=data["token"],
            expiry_ms=data["expiry_ms"],
            authorization_reference=data.get("authorization_reference"),
            command_id=command["id"],
        )
        self.result(command, "ACCEPTED", evse=data["evse"], session_id=session_id)
        self.status("RESERVED")

    def start(
        self,
        session_id: str,
        token: dict[str, Any] | None,
        *,
        auth_method: str = "COMMAND",
        source: str = "remote",
        register_wh: int = 1_000_000,
        reservation_id: str | None = None,
        authorization_reference: str | None = None,
        signs: bool | None = None,
    ) -> None:
        self.total_wh, self.register_wh = 0, register_wh
        self.begin = self.now()
        self.write(
            "start",
            evse=1,
            session_id=session_id,
            token=token,
            auth_method=auth_method,
            source=source,
            register_wh=register_wh,
            serial="SN-1",
            epoch=0,
            outside_wh=0,
            reservation_id=reservation_id,
            authorization_reference=authorization_reference,
            signs=signs,
        )
        self.status("CHARGING", plugged=True)

    def period(
        self,
        session_id: str,
        wh: int,
        ms: int,
        kind: str = "charging",
        *,
        begin: list[int] | None = None,
        max_w: int | None = None,
    ) -> None:
        """Let `ms` pass and write the period over it."""
        self.sleep(ms)
        self.total_wh += wh
        self.register_wh += wh
        self.write(
            "period",
            evse=1,
            session_id=session_id,
            kind=kind,
            from_=begin or self.begin,
            to=self.now(),
            wh=wh,
            total_wh=self.total_wh,
            register_wh=self.register_wh,
            max_w=max_w,
        )
        self.begin = self.now()

    def stop(self, session_id: str, cause: str = "remote") -> None:
        self.write(
            "stop",
            evse=1,
            session_id=session_id,
            cause=cause,
            at=self.now(),
            total_wh=self.total_wh,
            register_wh=self.register_wh,
            unobserved_wh=0,
        )
        self.status("AVAILABLE")


Link = Callable[[bytes], bytes | None]


def talk(board: Board, link: Link, *, rounds: int = 50) -> None:
    """Send until everything is acknowledged. Raises AssertionError if it never is."""
    for _ in range(rounds):
        reply = link(board.message())
        if reply is not None:
            board.receive(reply)
        if board.acked == len(board.records):
            return
    raise AssertionError(f"{len(board.records) - board.acked} records are not acknowledged")


def http_link(board: Board, base_url: str) -> Link:
    def send(raw: bytes) -> bytes | None:
        reply = httpx.post(f"{base_url}/wattlock/1/{board.station_id}", content=raw, timeout=10)
        return reply.content if reply.status_code == 200 else None

    return send


class MqttBoard:
    """Puts a Board on a broker: birth, will, subscribe down, publish up; all QoS 0."""

    def __init__(self, board: Board, port: int) -> None:
        self.board = board
        self.topic = f"wattlock/1/{board.station_id}"
        self.news = threading.Condition()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311, clean_session=True
        )
        self.client.will_set(f"{self.topic}/online", b"0", retain=True)
        self.client.on_connect = self._connected
        self.client.on_message = self._message
        self.subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.subscribed.wait(10)

    def _connected(self, client: paho.Client, *_: Any) -> None:
        client.subscribe(f"{self.topic}/down")
        client.publish(f"{self.topic}/online", b"1", retain=True)

    def _message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        with self.news:
            self.board.receive(bytes(message.payload), retained=message.retain)
            self.news.notify_all()

    def send(self) -> None:
        with self.news:
            raw = self.board.message()
        self.client.publish(f"{self.topic}/up", raw)

    def until(self, condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
        """Send again each half second, as a board does, until the condition holds."""
        tries = max(1, int(deadline_s / 0.5))
        for _ in range(tries):
            self.send()
            with self.news:
                if self.news.wait_for(condition, 0.5):
                    return
        raise AssertionError("condition did not come true at the board")

    def vanish(self) -> None:
        """Break the connection without a goodbye: the broker publishes the will."""
        sock = self.client.socket()
        self.client.on_disconnect = None
        self.client.loop_stop()
        if sock is not None:
            sock.close()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
