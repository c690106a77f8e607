"""A gateway, written from `tools/gateway/UPLINK.md` and from nothing else.

It keeps records durably, acknowledges, dates nothing, and sends commands again and again until it
has their result. `db` is what a restored backup brings back in an older form; what was ever sent
or received is the checker's to remember.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .world import World

Json = dict[str, Any]


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


@dataclass
class Life:
    """One journal, as far as it has come in."""

    lines: dict[int, bytes] = field(default_factory=dict)
    links: dict[int, bytes] = field(default_factory=dict)
    acked: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Calendar:
    """The slots of one EVSE: what there should be, and what the board has said that it holds."""

    version: int = 0  # 0: not known
    wanted: dict[str, Json] = field(default_factory=dict)
    held: dict[str, Json] = field(default_factory=dict)
    command: str | None = None


@dataclass
class Database:
    lives: dict[str, Life] = field(default_factory=dict)
    journal: str | None = None
    pending: dict[str, Json] = field(default_factory=dict)  # commands without a result
    results: dict[str, str] = field(default_factory=dict)
    open_sessions: dict[str, int] = field(default_factory=dict)  # id -> evse
    calendars: dict[int, Calendar] = field(default_factory=dict)  # by evse


class Gateway:
    def __init__(self, world: World, key: bytes, station_id: str, rng: Random) -> None:
        self.world = world
        self.rng = rng
        purpose = "wattlock/1/%s/" + station_id
        self._up = _mac(key, (purpose % "up").encode())
        self._down = _mac(key, (purpose % "down").encode())
        self._chain = _mac(key, (purpose % "chain").encode())
        self.db = Database()
        self.sid: str | None = None
        self.numbers: dict[str, int] = {}  # last n of each sid
        self.cards: dict[str, Json] = {}  # uid -> token of those who may charge
        self.running = True
        self._asked_at: dict[tuple[int, str], int] = {}
        self._changes: dict[str, tuple[int, list[Json], list[str]]] = {}  # of SET_BOOKINGS

    @property
    def unix_ms(self) -> int:
        return self.world.unix_ms

    # -- up ------------------------------------------------------------------------------------

    def receive(self, raw: bytes) -> None:
        if not self.running:
            return
        mac, _, rest = raw.partition(b"\n")
        if mac != _mac(self._up, rest).hex().encode():
            return
        first, *lines = rest.split(b"\n")
        head = json.loads(first)
        self.world.checker.up_message(raw, head, lines)
        if "journal" not in head:  # a brief picture
            life = self.db.lives.get(self.db.journal or "")
            followed = self.sid == head["sid"] and life and life.acked + 1 == head["seq"]
            if not followed or self.db.pending:
                self._answer(head["sid"], None)
            return
        self.sid = head["sid"]
        self._keep(head, lines)
        if "authorize" in head:
            self._authorize(head["authorize"])
        self._answer(head["sid"], head["up_ms"])

    def _keep(self, head: Json, lines: list[bytes]) -> None:
        db = self.db
        name = head["journal"]
        life = db.lives.get(name)
        if life is None:
            life = db.lives[name] = Life()
            life.links[0] = _mac(self._chain, name.encode())
        db.journal = name
        if head["first"] > life.acked + 1 and head["seq"] <= head["first"]:
            life.gaps.append((life.acked + 1, head["first"] - 1))
            life.acked = head["first"] - 1
            life.links[life.acked] = bytes.fromhex(head["prev"])
        link = bytes.fromhex(head["prev"])
        known = life.links.get(head["seq"] - 1)
        if known is not None and known != link:
            self.world.broken("P2", f"fork: link before record {head['seq']} changed")
        for seq, line in enumerate(lines, head["seq"]):
            link = _mac(self._chain, link + seq.to_bytes(8, "big") + line)
            if seq in life.lines and life.links[seq] != link:
                self.world.broken("P2", f"fork: record {seq} came with another link")
            if seq == life.acked + 1:
                life.lines[seq] = line
                life.links[seq] = link
                life.acked = seq
                self._take(json.loads(line))
                self.world.checker.at_gateway(name, seq, line)
        if link != bytes.fromhex(head["head"]):
            self.world.broken("P2", f"head does not follow from {head['seq']} + {len(lines)}")

    def _take(self, record: Json) -> None:
        t = record["t"]
        if t == "result":
            self.db.pending.pop(record["command_id"], None)
            self.db.results.setdefault(record["command_id"], record["result"])
            if record["type"] == "SET_BOOKINGS":
                self._booked(record)
        elif t == "start":
            self.db.open_sessions[record["session_id"]] = record["evse"]
            self._used_up(record)
        elif t == "event" and record["what"] == "unbooked":
            self._used_up(record)
        elif t == "stop":
            self.db.open_sessions.pop(record["session_id"], None)

    # -- bookings ------------------------------------------------------------------------------

    def book(self, evse: int, slot: Json) -> None:
        """Put a slot on the EVSE's list, or change it."""
        calendar = self.db.calendars.setdefault(evse, Calendar())
        calendar.wanted[slot["booking_id"]] = slot
        self._sync(evse, calendar)

    def unbook(self, evse: int, booking_id: str) -> None:
        calendar = self.db.calendars.setdefault(evse, Calendar())
        calendar.wanted.pop(booking_id, None)
        self._sync(evse, calendar)

    def slots(self, evse: int) -> list[Json]:
        calendar = self.db.calendars.get(evse)
        return [] if calendar is None else list(calendar.wanted.values())

    def _sync(self, evse: int, calendar: Calendar) -> None:
        """What the board has to learn, two slots at a time, from one version to the next."""
        if calendar.command in self.db.pending:
            return
        calendar.command = None
        for id in [i for i, s in calendar.wanted.items() if s["end_ms"] <= self.unix_ms]:
            del calendar.wanted[id]
        held = calendar.held if calendar.version else {}
        put = [slot for id, slot in calendar.wanted.items() if held.get(id) != slot][:2]
        drop = [id for id in held if id not in calendar.wanted]
        if put or drop or not calendar.version:
            version = max(calendar.version + 1, self.unix_ms)
            calendar.command = self.command(
                "SET_BOOKINGS", 60_000, None, evse=evse, base=calendar.version, version=version,
                put=put, drop=drop,
            )  # fmt: skip
            self._changes[calendar.command] = version, put, drop

    def _booked(self, result: Json) -> None:
        for evse, calendar in self.db.calendars.items():
            if calendar.command != result["command_id"]:
                continue
            version, put, drop = self._changes[result["command_id"]]
            calendar.command = None
            if result["result"] == "ACCEPTED":
                if not calendar.version:
                    calendar.held.clear()
                calendar.held.update((slot["booking_id"], slot) for slot in put)
                for id in drop:
                    calendar.held.pop(id, None)
                calendar.version = version
            elif calendar.version:
                calendar.version = 0
            else:  # not even from the beginning: it does not fit
                for slot in put:
                    calendar.wanted.pop(slot["booking_id"], None)
            self._sync(evse, calendar)

    def _used_up(self, record: Json) -> None:
        calendar = self.db.calendars.get(record["evse"])
        if calendar is not None and "booking_id" in record:
            calendar.wanted.pop(record["booking_id"], None)
            calendar.held.pop(record["booking_id"], None)

    def _authorize(self, asked: Json) -> None:
        key = (asked["evse"], asked["uid"])
        if self.world.now - self._asked_at.get(key, -60_000) < 4000:
            return
        self._asked_at[key] = self.world.now
        token = self.cards.get(asked["uid"].upper())
        data = {"evse": asked["evse"], "uid": asked["uid"]}
        if token is None:
            self.command("AUTHORIZE", 20_000, allowed="BLOCKED", **data)
        else:
            self.command("AUTHORIZE", 20_000, allowed="ALLOWED", token=token, **data)

    # -- down ----------------------------------------------------------------------------------

    def _answer(self, sid: str, re: int | None) -> None:
        db = self.db
        life = db.lives.get(db.journal) if db.journal is not None else None
        for id in [i for i, c in db.pending.items() if c["exp"] <= self.unix_ms]:
            del db.pending[id]
        for evse, calendar in db.calendars.items():
            if calendar.command is not None and calendar.command not in db.pending:
                calendar.version = 0  # it may have been heard all the same
                self._sync(evse, calendar)
        commands = list(db.pending.values())[:4]
        for command in commands:
            self.world.checker.sent(command)
            if command["type"] in ("AUTHORIZE", "GET_HEALTH"):  # they have no result
                del db.pending[command["id"]]
        # a restored database would fall back behind the board: the clock does not
        n = self.numbers[sid] = max(self.numbers.get(sid, 0) + 1, self.unix_ms)
        head: Json = {
            "v": 1,
            "kid": 1,
            "sid": sid,
            "n": n,
            "unix_ms": self.unix_ms,
            "journal": db.journal,
            "ack": life.acked if life else 0,
            "commands": commands,
        }
        if re is not None:
            head["re"] = re
            head["brief_s"] = 900
        text = json.dumps(head, separators=(",", ":")).encode()
        self.world.link.carry_down(_mac(self._down, text).hex().encode() + b"\n" + text)

    def push(self) -> None:
        """A down message that nobody asked for."""
        if self.sid is not None and self.running:
            self._answer(self.sid, None)

    def command(self, type: str, valid_ms: int, id: str | None = None, **data: Any) -> str:
        """Queue a command; it goes out at once and with every message until it has a result."""
        if id is None:
            id = self.rng.randbytes(16).hex()
        command = {"id": id, "type": type, "exp": self.unix_ms + valid_ms, "data": data}
        self.db.pending[id] = command
        self.world.note("gateway: %s %s %s", type, id[:6], data)
        self.world.after(1, self.push)
        self._again(id, 2000)
        return id

    def _again(self, id: str, wait_ms: int) -> None:
        def again() -> None:
            if id in self.db.pending and self.db.pending[id]["exp"] > self.unix_ms:
                self.push()
                self._again(id, min(wait_ms * 2, 60_000))

        self.world.after(wait_ms, again)

    # -- backups -------------------------------------------------------------------------------

    def backup(self) -> Database:
        return copy.deepcopy(self.db)

    def restore(self, db: Database) -> None:
        self.db = db
        self.world.note("gateway: an older database was restored")
        self.world.checker.restored()
