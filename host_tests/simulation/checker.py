"""The checker: promises P1 to P8 (and the rate of P9) from physical truth and from the records.

It shares no code and no state with the firmware. It knows the plant (contactor, plug, lock, energy
in W·ms), what people showed, what the gateway ever sent, and every record with the moment at which
the store said that it is durable. From these it keeps a small picture of its own, and says
`world.broken` with the numbers as soon as they contradict.

Live checks hang on events (a contactor closed, a record became durable, a second has passed since
an emergency stop). `finish` audits the records as the gateway has them at the end.

What is asked
    P1  per EVSE, each record moves the register by exactly what it attributes; a session's Wh are
        what its contactor let through and the standby load drew meanwhile, up to the resolution,
        and what a frozen register hid before. What flows back has an account of its own.
    P2  what was durable reaches the gateway, the same bytes, gapless, in one chain; what began,
        ends.
    P3  no closing without a durable start; none after a reset of what was not seen energised; no
        time outside its own error bound; a start has a card, a command or free-vend behind it.
    P4  no start but the reservation's own while it holds; no expiry before its time.
    P5  a reservation is released within 1 s + 2 err (and two turns) where the time is known; else
        when the time it is at least, carried over boots by their records, has passed its expiry.
        Its own start that is under way at that moment has START_MS to use it or to leave it.
        What is asked of reservations is asked of booked slots, from their guard time to their end.
    P6  each effect goes back to one genuine, fresh command, once.
    P7  a closed contactor opens within OPEN_MS of its reason; a cable is free soon after the end;
        a turn of the loop writes to the journal once at most.
    P8  each boot reaches its boot record; nothing but a flash that fails lets an exception escape.
    P9  refusals of one cause are at most RATE in an hour; no contactor is called welded that is
        not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wattlock import journal

from .plant import WMS_PER_WH, Outlet

if TYPE_CHECKING:
    from .world import Board, World

Json = dict[str, Any]

OPEN_MS = 1200  # a turn of 250 ms, the contactor's own time, and as much again
FREE_MS = 20_000  # from a session's end to an open lock
BOOT_MS = 20_000
RATE = 6  # records an hour and cause: 4, and one more at each end of the window
CARD_MS = 170_000  # 15 s for the gateway's word, 120 s for the plug, 10 s for the baseline
FRESH_MS = 12_000
START_MS = 5000  # for the baseline of a start that is under way
DAY_MS = 86_400_000


@dataclass
class Session:
    id: str
    token: Json | None
    boot: int
    began: int  # world ms
    energised_boot: int | None = None
    ended: int | None = None
    hidden_wms: int = 0  # what the meter had counted at its start and did not show


@dataclass
class Evse:
    session: Session | None = None
    reservation: Json | None = None
    slots: dict[str, Json] = field(default_factory=dict)
    version: int = 0  # of the slots
    used: str | None = None  # the slot under which the open session runs
    disturbances: list[tuple[int, int | None]] = field(default_factory=list)
    closings: int = 0


@dataclass
class Group:
    """Records of one append, and when it was asked for."""

    when: int
    seq: int
    lines: list[bytes]

    def has(self, seq: int) -> bool:
        return self.seq <= seq < self.seq + len(self.lines)


@dataclass
class Sent:
    bodies: list[Json]
    first: int
    exp: int
    reserves: int = 0
    starts: int = 0
    results: list[str] = field(default_factory=list)


def same_token(a: Json, b: Json) -> bool:
    keys = ("country_code", "party_id", "type", "uid")
    return all(a[k].casefold() == b[k].casefold() for k in keys)


def same_group(a: Json, b: Json) -> bool:
    keys = ("country_code", "party_id", "group_id")
    return "group_id" in a and "group_id" in b and all(a[k] == b[k] for k in keys)


def _guarded(slot: Json) -> int:
    """When nobody else may start any more, and has to be away."""
    begins: int = slot["start_ms"] - slot.get("guard_ms", 0)
    return begins


def _covers(slot: Json, given: Json) -> bool:
    """Is this the slot that was given? What is 0 may be left out."""
    return all(slot.get(k) == v for k, v in given.items() if v) and slot.keys() <= given.keys()


class Checker:
    def __init__(self, world: World) -> None:
        self.world = world
        self.evses = {n: Evse() for n in range(1, world.plan.evses + 1)}
        self.log: dict[int, tuple[int, list[bytes]]] = {}  # seq -> when, what it may be
        self.next = 1  # sequence of the next durable record
        self.wrote_in = -1  # the turn of the last write
        self.unsure: list[Group] = []  # appends that did not return
        self.when = 0  # world ms at which the record that is looked at was written
        self.sessions: dict[str, Session] = {}
        self.commands: dict[str, Sent] = {}
        self.starts = 0  # starts, and commands that may be about to start
        self.armed: dict[int, int] = {}  # evse -> remote starts accepted without a session yet
        self.cards: list[tuple[int, str]] = []
        self.boot = 0
        self.time: tuple[int, int] | None = None  # when this boot learnt the time, its error
        self.floor: tuple[int, int] | None = None  # unix ms that it was at least, at world ms
        self.last_record = 0  # world ms of the newest durable record
        self.ever: dict[str, dict[int, bytes]] = {}  # what a gateway has received, by journal
        self.sids: dict[str, int] = {}
        self.flash_well_at = 0
        self.flash_full = False
        self.was_unreadable = False
        self.was_welded: set[int] = set()
        self.was_lock_stuck: set[int] = set()
        self.gateway_forgot = False
        self._estop_at = -(10**9)

    def broken(self, promise: str, text: str) -> None:
        self.world.broken(promise, text)

    @property
    def unix_ms(self) -> int:
        """True time when the record that is looked at was written."""
        return self.world.unix_ms - self.world.now + self.when

    # -- durable records -----------------------------------------------------------------------

    def writes(self) -> None:
        """The store is asked for something that the journal's files wait for."""
        turn = self.world.counts["turns"]
        if turn == self.wrote_in:
            self.broken("P7", f"a second write in turn {turn}")
        self.wrote_in = turn

    def written(self, seq: int, lines: list[bytes], sure: bool) -> None:
        """The store was asked to append; `sure`: it returned well."""
        if not sure:
            self.unsure.append(Group(self.world.now, seq, lines))
            return
        if seq < self.next:
            self.broken("P2", f"record {seq} is written anew; {self.next - 1} were durable")
        position = seq
        taken: list[Group] = []
        for group in reversed(self.unsure):
            if position > self.next and group.seq + len(group.lines) == position:
                taken.insert(0, group)
                position = group.seq
        if position != self.next:
            self._hole(seq, lines)
        for group in taken:
            self._group(group.when, group.seq, group.lines)
        self.unsure.clear()
        self._group(self.world.now, seq, lines)

    def _hole(self, seq: int, lines: list[bytes]) -> None:
        """Sequences were skipped: only what the flash could not read, and told at once."""
        for line in lines:
            record = json.loads(line)
            if record["t"] == "lost" and record.get("last") == seq - 1 and self.was_unreadable:
                self.next = seq
                return
        self.broken("P2", f"record {seq} follows {self.next - 1}")

    def _group(self, now: int, seq: int, lines: list[bytes]) -> None:
        self.when = now
        records = []
        for i, line in enumerate(lines):
            may_be = [line]
            may_be += [g.lines[seq + i - g.seq] for g in self.unsure if g.has(seq + i)]
            self.log[seq + i] = (now, may_be)
            records.append(json.loads(line))
            self.world.note("record %d %s", seq + i, line.decode())
        before, self.last_record = self.last_record, now
        if records[0]["t"] == "boot" and self.floor is not None:
            self.floor = (self.floor[0] + before - self.floor[1], now)
        self.next = seq + len(lines)
        self.world.counts["records"] += len(lines)
        self.world.touch()
        for record in records:
            handler = getattr(self, "_on_" + record["t"], None)
            if handler is not None:
                handler(record, records)

    def _on_boot(self, record: Json, group: list[Json]) -> None:
        if record["boot"] != self.boot + 1:
            self.broken("P2", f"boot {record['boot']} follows boot {self.boot}")
        self.boot = record["boot"]
        self.time = None
        self.armed.clear()
        board = self.world.board
        kept = board.recall_time() if board is not None else None
        if kept is not None:
            self.time = (self.world.now, kept[1])
        self._watch_expiries()

    def _on_time(self, record: Json, group: list[Json]) -> None:
        off = record["unix_ms"] - self.unix_ms
        if abs(off) > record["err_ms"]:
            self.broken("P3", f"time is off by {off} ms, said to be within {record['err_ms']}")
        self.time = (self.when, record["err_ms"])
        self.floor = (record["unix_ms"] - record["err_ms"], self.when)
        self._watch_expiries()

    def _on_event(self, record: Json, group: list[Json]) -> None:
        what = record["what"]
        if what == "resumed":
            self.world.counts["resumed"] += 1
        if what == "journal_new" and self.next - len(group) > 1:
            self.broken("P2", f"the journal is new after {self.next - 1 - len(group)} records")
        elif what == "stopping":
            self.must_open(self.world.outlets[record["evse"]], "stopping is on record")
        elif what == "availability":
            self._backed(record, group, "SET_AVAILABILITY", operative=record["operative"])
        elif what in ("bookings", "booked", "unbooked"):
            self._slots_change(record, group)
        elif what == "fault" and record["fault"] == "contactor_welded":
            self.world.counts["contactor welded"] += 1
            if record["evse"] not in self.was_welded:
                self.broken("P9", f"welded, and it never was: {record}")

    def _on_status(self, record: Json, group: list[Json]) -> None:
        session = self.evses[record["evse"]].session
        if session is not None and record.get("session_id") == session.id:
            session.energised_boot = session.energised_boot or record["boot"]

    # -- sessions ------------------------------------------------------------------------------

    def _on_start(self, record: Json, group: list[Json]) -> None:
        n = record["evse"]
        evse = self.evses[n]
        id = record["session_id"]
        if evse.session is not None:
            self.broken("P3", f"{id} starts at EVSE {n} while {evse.session.id} is open")
        if id in self.sessions:
            self.broken("P3", f"session id {id} starts twice")
        held = evse.reservation
        used = [r for r in group if r["t"] == "release" and r["cause"] == "used"]
        if used:
            held = used[0]["was"]
        elif held is not None:
            self.broken("P4", f"{id} starts while {held['reservation_id']} holds EVSE {n}")
        token = record["token"]
        if held is not None:
            mine = token is not None and (
                same_token(token, held["token"]) or same_group(token, held["token"])
            )
            if not mine:
                self.broken("P4", f"{token} starts on the reservation of {held['token']}")
            if id != held["session_id"]:
                self.broken("P2", f"reserved session {held['session_id']} starts as {id}")
        self._slot_of_start(record, bool(used))
        self._cause_of_start(record, group)
        self.starts += 1
        session = evse.session = Session(id, token, record["boot"], self.world.now)
        self.sessions[id] = session
        outlet = self.world.outlets[n]
        outlet.settle()
        session.hidden_wms = min(outlet.meter.hidden_wms(), self._most_wms(n))
        outlet.open_session = id
        self.world.counts["sessions"] += 1

    def _cause_of_start(self, record: Json, group: list[Json]) -> None:
        n, source, token = record["evse"], record["source"], record["token"]
        if source == "card":
            after = self.when - CARD_MS
            if not any(t >= after and u.upper() == token["uid"].upper() for t, u in self.cards):
                self.broken("P3", f"start by card {token['uid']}, which nobody showed")
        elif source == "remote":
            if "command_id" in record:
                self._backed(record, group, "START_SESSION", evse=n, token=token)
            elif self.armed.get(n, 0) < 1:
                self.broken("P6", f"remote start at EVSE {n} without a command")
            else:
                self.armed[n] -= 1
        elif source != "free_vend" or not self.world.plan.config["evses"][n - 1]["free_vend"]:
            self.broken("P3", f"start by {source}")

    def _on_stop(self, record: Json, group: list[Json]) -> None:
        n = record["evse"]
        session = self.evses[n].session
        if session is None or session.id != record["session_id"]:
            self.broken("P2", f"stop of {record['session_id']}, open is {session}")
            return
        self.evses[n].session = None
        session.ended = self.world.now
        self.world.counts[record["cause"]] += record["cause"] == "booking_ended"
        self.evses[n].slots.pop(self.evses[n].used or "", None)
        self.evses[n].used = None
        outlet = self.world.outlets[n]
        self.must_open(outlet, "stop is on record")
        outlet.settle()
        outlet.open_session = None
        if n in self.was_welded:
            outlet.owner = None  # what still flows is nobody's
        if record["cause"] == "emergency" and self._estop_at < session.began:
            self.broken("P3", f"{session.id} ends by an emergency that was none")
        self.must_free(outlet, "the stop is on record")

    def must_free(self, outlet: Outlet, why: str) -> None:
        """A reason to let the cable go: it has to be free FREE_MS from now, flash or no flash,
        unless something has happened that may lock it again."""
        world = self.world
        evse = self.evses[outlet.n]
        now, board, car = world.now, world.board, outlet.car
        before = evse.closings, len(self.cards), self.starts

        def look() -> None:
            after = evse.closings, len(self.cards), self.starts
            if before != after or world.board is not board or outlet.car is not car:
                return
            if not outlet.locked or outlet.n in self.was_welded | self.was_lock_stuck:
                return
            wait_ms = self._claims_ms(outlet)
            if wait_ms and world.now - now < wait_ms:
                world.after(wait_ms, look)
                return
            self.broken("P7", f"cable {outlet.n} is locked {world.now - now} ms after: {why}")

        world.touch(FREE_MS)
        world.after(FREE_MS, look)

    def _most_wms(self, n: int) -> int:
        """The most that may be taken for energy of the time between two readings, which is a turn
        or two: what the connection gives in it and a quarter more, 20 Wh, a step."""
        plan = self.world.plan
        site = plan.config["evses"][n - 1]
        rating_w = site["max_a"] * site["phases"] * 230
        step_wh = self.world.outlets[n].meter.resolution_wh
        return rating_w * (2 * plan.coarse_ms + 5000) * 5 // 4 + (20 + step_wh) * WMS_PER_WH

    def _on_meter(self, record: Json, group: list[Json]) -> None:
        """No fact out of nothing: what is wrong with a meter was made wrong before."""
        n, what = record["evse"], record["what"]
        self.world.counts[f"meter {what}"] += 1
        touched = self.evses[n].disturbances or n in self.was_welded
        if what in ("rollback", "jump", "serial", "frozen", "glitch") and not touched:
            self.broken("P1", f"{what} of a meter that nobody has touched: {record}")

    def _claims_ms(self, outlet: Outlet) -> int:
        """How long a frozen meter may claim that current flows, after which it is none: until
        20 Wh and a step and a quarter of its register would have come, and 15 s; with FREE_MS to
        act upon it. One that answers slowly besides may take twice as long."""
        meter = outlet.meter
        if meter.frozen is None or not meter.frozen_power or abs(meter.frozen[3]) < 200:
            return 0
        wms = (80 + 5 * meter.resolution_wh) * WMS_PER_WH // 4
        return 2 * wms // abs(meter.frozen[3]) + 15_000 + FREE_MS

    # -- reservations --------------------------------------------------------------------------

    def _on_reserve(self, record: Json, group: list[Json]) -> None:
        evse = self.evses[record["evse"]]
        held = evse.reservation
        id = record["reservation_id"].casefold()
        if held is not None and held["reservation_id"].casefold() != id:
            self.broken("P4", f"{id} takes the place of {held['reservation_id']}")
        if evse.session is not None:
            self.broken("P4", f"{id} reserves an EVSE in use")
        for slot in evse.slots.values():
            if self.unix_ms < slot["end_ms"] and _guarded(slot) < record["expiry_ms"]:
                self.broken("P4", f"{id} reserves into {slot}")
        self._backed(
            record,
            group,
            "RESERVE_NOW",
            evse=record["evse"],
            reservation_id=record["reservation_id"],
            token=record["token"],
            expiry_ms=record["expiry_ms"],
        )
        evse.reservation = record
        self.world.counts["reservations"] += 1
        self._watch_expiries()

    def _on_release(self, record: Json, group: list[Json]) -> None:
        evse = self.evses[record["evse"]]
        held = evse.reservation
        if held is None or held["reservation_id"] != record["reservation_id"]:
            self.broken("P2", f"release of {record['reservation_id']}, held is {held}")
            return
        evse.reservation = None
        record["was"] = held
        cause = record["cause"]
        self.world.counts[cause.partition("_")[0]] += 1
        if cause == "expired":
            early = held["expiry_ms"] - self.unix_ms
            if early > 0:
                self.broken("P4", f"{held['reservation_id']} expires {early} ms too early")
        elif cause == "used":
            if not any(r["t"] == "start" for r in group):
                self.broken("P4", "a reservation is used up without a start")
        elif cause == "cancelled_by_emsp":
            self._backed(
                record, group, "CANCEL_RESERVATION", reservation_id=record["reservation_id"]
            )
        elif cause == "replaced":
            self._backed(record, group, "RESERVE_NOW", reservation_id=record["reservation_id"])

    def _watch_expiries(self) -> None:
        """Look again when each right has to be over, by the time that is known now."""
        for n, evse in self.evses.items():
            if evse.reservation is not None:
                self._watch_expiry(n, evse.reservation)
            self._watch_slots(n)

    def _due(self, unix_ms: int, act: Callable[[str], None]) -> None:
        """`act(how late)` when this boot has to have noticed that it is `unix_ms`: 1 s + 2 err
        and two turns after it where the time is known, else when the least that it can be is."""
        world, board = self.world, self.world.board
        at = unix_ms - world.unix_ms + world.now
        if self.time is not None:
            since, err = self.time
        elif self.floor is not None:  # only how late it is at least
            since = world.now
            at = self.floor[1] + unix_ms - self.floor[0]
            err = 1000
        else:
            return
        err += max(at - since, 0) // 10_000 + 1
        due = max(at, world.now) + 1000 + 2 * err + 2 * world.plan.fine_ms + 100
        world.at(at - 200, lambda: world.touch(2 * err + START_MS + 4000))

        def look() -> None:
            if world.board is board:
                act(f"{world.now - at} ms after its time")

        world.at(due, look)

    def _watch_expiry(self, n: int, held: Json) -> None:
        def look(late: str, again: bool = True) -> None:
            if self.evses[n].reservation is not held:
                return
            if again and self._arriving(n):
                self._after_start(lambda: look(f"{START_MS} ms and {late}", False))
            elif self.flash_well(5000):
                self.broken("P5", f"{held['reservation_id']} still holds {late}")

        self._due(held["expiry_ms"], look)

    def _after_start(self, look: Callable[[], None]) -> None:
        """Who came in time waits for a reading at most START_MS."""
        board = self.world.board
        self.world.after(
            START_MS + 2 * self.world.plan.fine_ms,
            lambda: look() if self.world.board is board else None,
        )

    def _arriving(self, n: int) -> bool:
        """May a start be under way? A cable is in, and a card or a command has come."""
        since = self.world.now - CARD_MS
        starts = [s for s in self.commands.values() if s.bodies[0]["type"] == "START_SESSION"]
        asked = [t for t, _ in self.cards] + [s.first for s in starts]
        return self.world.outlets[n].car is not None and max(asked, default=-1) >= since

    # -- bookings ------------------------------------------------------------------------------

    def _slots_change(self, record: Json, group: list[Json]) -> None:
        n = record["evse"]
        evse = self.evses[n]
        what = record["what"]
        if what == "bookings":
            base, version = record["base"], record["version"]
            self._backed(record, group, "SET_BOOKINGS", evse=n, base=base, version=version)
            if base not in (0, evse.version) and not self.was_unreadable:
                self.broken("P6", f"slots of version {evse.version} change from {base}")
            evse.version = version
            gone = evse.slots if not base else record.get("drop", ())
            for id in list(gone):
                evse.slots.pop(id, None)
        elif what == "booked":
            slot = record["slot"]
            self.world.counts["booked"] += 1
            sent = [
                body["data"]["put"]
                for r in group
                if r["t"] == "result" and r["command_id"] in self.commands
                for body in self.commands[r["command_id"]].bodies
            ]
            if not any(_covers(slot, given) for put in sent for given in put):
                self.broken("P6", f"no SET_BOOKINGS says {slot}")
            evse.slots[slot["booking_id"]] = slot
        else:
            id, cause = record["booking_id"], record["cause"]
            self.world.counts[cause] += 1
            slot = evse.slots.pop(id, {})
            if not slot or id == evse.used:
                self.broken("P2", f"EVSE {n} lets go of {id}, used is {evse.used}")
            end = slot["end_ms"]
            if cause == "no_show":
                end = slot["start_ms"] + slot["noshow_ms"]
            if self.unix_ms < end:
                self.broken("P4", f"{id} is let go {end - self.unix_ms} ms too early: {cause}")
        self._watch_slots(n)

    def _slot_of_start(self, record: Json, reserved: bool) -> None:
        """Has this start a right to the slot that runs, and does it say so?"""
        n, now, token = record["evse"], self.unix_ms, record["token"]
        evse = self.evses[n]
        own = record.get("booking_id")
        lost = self.time is None and self._releases(n)
        for id, slot in evse.slots.items():
            # with the time unknown the driver of any slot that may be running gets in
            if id == own or reserved or lost or (self.time is None and own is not None):
                continue
            if _guarded(slot) <= now < slot["end_ms"]:
                self.broken("P4", f"{token} starts in {slot}")
        if own is None:
            return
        evse.used = own
        self.world.counts["booking used"] += 1
        slot = evse.slots.get(own, {})
        known = slot.get("tokens", [])
        if not any(same_token(token, t) or same_group(token, t) for t in known):
            self.broken("P4", f"{token} starts in {slot}")
        if record["source"] == "remote" and not slot.get("remote"):
            self.broken("P4", f"a remote start in {slot}")
        if "authorization_reference" not in record:
            self.broken("P2", f"{record} says nothing of {slot['authorization_reference']}")
        if self.time is not None:
            since, err = self.time
            err += (self.world.now - since) // 10_000 + 1
            first = slot["start_ms"] - slot.get("early_ms", 0)
            if now + 2 * err + 100 < first or now - 2 * err - 100 > slot["end_ms"]:
                self.broken("P4", f"{own} starts at {now}: {slot}")

    def _releases(self, n: int) -> bool:
        return self.world.plan.config["evses"][n - 1]["clock_lost"] == "release"

    def _watch_slots(self, n: int) -> None:
        for slot in self.evses[n].slots.values():
            self._watch_slot(n, slot)

    def _watch_slot(self, n: int, slot: Json) -> None:
        """Nobody stays into a slot or beyond the own; what nobody uses is let go."""
        evse = self.evses[n]
        id = slot["booking_id"]

        def left(late: str) -> None:
            runs = evse.slots.get(id) is slot and self.world.unix_ms < slot["end_ms"]
            if runs and evse.used != id and charges():
                self.broken("P4", f"{evse.session} stays into {slot} {late}")

        def ended(late: str) -> None:
            if evse.slots.get(id) is slot and evse.used == id and charges():
                self.broken("P4", f"{evse.session} stays beyond {slot} {late}")

        def charges() -> bool:
            stops = self.world.plan.config["evses"][n - 1]["overstay"] == "stop"
            return stops and self.world.outlets[n].coil

        def gone(late: str, again: bool = True) -> None:
            if evse.slots.get(id) is not slot or evse.used == id:
                return
            if again:  # one record a second; and somebody may have come in time
                more = START_MS + 1000 * len(evse.slots)
                self._after_start(lambda: gone(f"{more} ms and {late}", False))
            elif self.flash_well(9000):
                self.broken("P5", f"{id} is still on the list {late}")

        self._due(_guarded(slot), left)
        self._due(slot["end_ms"] + slot.get("late_ms", 0), ended)
        self._due(slot["end_ms"], gone)
        if "noshow_ms" in slot:
            self._due(slot["start_ms"] + slot["noshow_ms"], gone)

    # -- commands ------------------------------------------------------------------------------

    def sent(self, command: Json) -> None:
        """The gateway puts this command into a message."""
        known = self.commands.get(command["id"])
        self.starts += command["type"] == "START_SESSION"
        if known is None:
            self.commands[command["id"]] = Sent([command], self.world.now, command["exp"])
        elif command not in known.bodies:
            known.bodies.append(command)
            known.exp = max(known.exp, command["exp"])

    def _backed(self, record: Json, group: list[Json], kind: str, **data: Any) -> None:
        """This record is the effect of a genuine command that says `data`."""
        results = [r for r in group if r["t"] == "result" and r["type"] == kind]
        ids = [r["command_id"] for r in results]
        if "command_id" in record:
            ids = [id for id in ids if id == record["command_id"]]
        for id in ids:
            known = self.commands.get(id)
            if known is None:
                continue
            for body in known.bodies:
                if body["type"] == kind and all(body["data"].get(k) == v for k, v in data.items()):
                    return
        self.broken("P6", f"no {kind} of the gateway says {data}: {record}")

    def _on_result(self, record: Json, group: list[Json]) -> None:
        id, word = record["command_id"], record["result"]
        known = self.commands.get(id)
        if known is None:
            self.broken("P6", f"result of a command that the gateway never sent: {record}")
            return
        if record["type"] not in [body["type"] for body in known.bodies]:
            self.broken("P6", f"result of {known.bodies[0]['type']} as {record['type']}")
        if known.results and not (len(known.bodies) > 1 and word == "REJECTED"):
            self.broken("P6", f"{record['type']} {id} has a second result {word}")
        known.results.append(word)
        if record["type"] == "SET_BOOKINGS":
            self._list_stands(known.bodies[0]["data"], word)
        late = self.unix_ms - known.exp
        waits = 12_000 if record["type"] in ("START_SESSION", "UNLOCK_CONNECTOR") else 0
        if self.flash_well(60_000) and late > FRESH_MS + waits:
            self.broken("P6", f"{record['type']} {id} acts {late} ms after its exp")
        if word == "ACCEPTED":
            started = any(r["t"] == "start" for r in group)
            if record["type"] == "START_SESSION" and not started:
                n = record["evse"]
                self.armed[n] = self.armed.get(n, 0) + 1
            if record["type"] == "RESERVE_NOW" and not any(r["t"] == "reserve" for r in group):
                self.broken("P6", "RESERVE_NOW is accepted without a reservation")
        self.world.counts["results"] += 1

    def _list_stands(self, data: Json, word: str) -> None:
        """A change that begins where the list is is taken, and no other. (Called when the records
        of the change, if any, have been looked at.)"""
        if "version" not in data or self.was_unreadable or self.gateway_forgot:
            return
        fits = self.evses[data["evse"]].version == data["version"]
        if fits != (word == "ACCEPTED"):
            version = self.evses[data["evse"]].version
            self.broken("P2", f"{word} to {data}, the list is at {version}")

    # -- what is seen --------------------------------------------------------------------------

    def card(self, uid: str) -> None:
        self.cards.append((self.world.now, uid))
        held = [e.reservation for e in self.evses.values() if e.reservation is not None]
        if any(reservation["token"]["uid"] == uid for reservation in held):
            return
        own = [
            n
            for n, e in self.evses.items()
            if e.session is not None and e.session.token and e.session.token["uid"] == uid
        ]
        if len(own) == 1:
            self.must_open(self.world.outlets[own[0]], "its own card was shown")
            self.must_free(self.world.outlets[own[0]], "its own card was shown")

    def estop_pressed(self) -> None:
        self._estop_at = self.world.now
        for outlet in self.world.outlets.values():
            self.must_open(outlet, "emergency stop")

    def must_open(self, outlet: Outlet, why: str) -> None:
        """A reason to open: it has to be open OPEN_MS from now."""
        if not outlet.closed:
            return
        since = self.world.now
        closing = self.evses[outlet.n].closings
        self.world.touch()

        def look() -> None:
            evse = self.evses[outlet.n]
            if outlet.closed and evse.closings == closing and not outlet.welded:
                late = self.world.now - since
                self.broken("P7", f"EVSE {outlet.n} is closed {late} ms after: {why}")

        self.world.after(OPEN_MS, look)

    def closed(self, outlet: Outlet) -> None:
        """A contactor has closed."""
        evse = self.evses[outlet.n]
        evse.closings += 1
        session = evse.session
        outlet.owner = None
        if not outlet.coil or self.world.board is None:
            return  # let go again while it moved
        if session is None:
            self.broken("P3", f"contactor {outlet.n} closes without a durable start")
            return
        outlet.owner = session.id
        fresh = session.boot == self.boot
        if not fresh and (session.energised_boot is None or session.energised_boot >= self.boot):
            self.broken(
                "P3",
                f"{session.id} of boot {session.boot}, not seen energised, is in boot {self.boot}",
            )
        if evse.reservation is not None:
            self.broken("P4", f"contactor {outlet.n} closes under {evse.reservation}")
        if outlet.car is not None:
            self.lock_moved(outlet)

    def opened(self, outlet: Outlet) -> None:
        outlet.owner = None

    def lock_moved(self, outlet: Outlet) -> None:
        """The lock holds while the contactor is closed."""
        if outlet.lock_kind == "none" or outlet.locked or not outlet.closed:
            return
        if outlet.welded or not outlet.sees_lock or self.world.board is None:
            return
        self.broken("P7", f"EVSE {outlet.n} is energised while the connector is not locked")

    def disturbed(self, n: int, begun: int, ended: int | None) -> None:
        """The meter of EVSE `n` cannot be believed in this time."""
        known = self.evses[n].disturbances
        known[:] = [d for d in known if d != (begun, None)]
        known.append((begun, ended))

    # -- boots ---------------------------------------------------------------------------------

    def booted(self, board: Board) -> None:
        def look() -> None:
            agent = self.world.agent
            if self.world.board is not board or agent is None or agent.booted:
                return
            if self.flash_well(BOOT_MS) and not self._full():
                self.broken("P8", f"no boot record {BOOT_MS} ms after power came")

        self.world.after(BOOT_MS, look)

    def _full(self) -> bool:
        """Is the journal full of records that nobody has acknowledged to this boot?"""
        files = self.world.files
        size = sum(files.stat(f"/journal/{name}")[6] for name in files.listdir("/journal"))
        return size > journal.LIMIT + journal.RESERVED - 2 * journal.SEGMENT

    def flash_well(self, for_ms: int) -> bool:
        well = self.world.device.failing is None and not self.flash_full
        return well and self.world.now - self.flash_well_at >= for_ms

    # -- the gateway's side --------------------------------------------------------------------

    def up_message(self, raw: bytes, head: Json, lines: list[bytes]) -> None:
        """A message reached the gateway: does it report only what is durable?"""
        if len(raw) > 4096:
            self.broken("P2", f"up message of {len(raw)} bytes")
        for seq, line in enumerate(lines, head["seq"]):
            known = seq in self.log and line in self.log[seq][1]
            if not known and not any(
                g.has(seq) and g.lines[seq - g.seq] == line for g in self.unsure
            ):
                self.broken("P2", f"record {seq} is reported but not durable: {line!r}")

    def at_gateway(self, journal: str, seq: int, line: bytes) -> None:
        self.ever.setdefault(journal, {})[seq] = line

    def restored(self) -> None:
        self.gateway_forgot = True

    # -- the end -------------------------------------------------------------------------------

    def settled(self) -> bool:
        return not self.unsettled()

    def unsettled(self) -> str:
        """What is not at rest yet, "" when all is."""
        world = self.world
        if world.board is None:
            return "the board is without power"
        for n, evse in self.evses.items():
            if evse.session is not None:
                return f"session {evse.session.id} is open"
            if world.outlets[n].car is not None:
                return f"a car is plugged in at {n}"
            if evse.reservation is not None:
                return f"reservation {evse.reservation['reservation_id']} holds"
        db = world.gateway.db
        if db.journal is None or db.lives[db.journal].acked != self.next - 1:
            return f"the gateway has not all of {self.next - 1} records"
        return ""

    def finish(self) -> None:
        """Audit the records as the gateways have them."""
        journals = [name for name, lines in self.ever.items() if lines]
        if len(journals) != 1:
            self.broken("P2", f"{len(journals)} journals")
        lines = self.ever[journals[0]]
        records = []
        holes: set[int] = set()
        for line in lines.values():
            record = json.loads(line)
            if record["t"] == "lost" and record["class"] == "unreadable":
                holes.update(range(record["first"], record["last"] + 1))
        for seq in range(1, self.next):
            if seq not in lines and seq in holes and self.was_unreadable:
                continue
            if seq not in lines:
                self.broken("P2", f"record {seq} never reached the gateway: {self.log[seq][1]}")
            if lines[seq] not in self.log[seq][1]:
                self.broken("P2", f"record {seq} reached the gateway as {lines[seq]!r}")
            records.append(json.loads(lines[seq]))
        life = self.world.gateway.db.lives[journals[0]]
        if life.gaps and not self.gateway_forgot and not holes:
            self.broken("P2", f"gaps {life.gaps}")
        if holes - lines.keys():
            self.world.counts["stories with holes"] += 1
        else:
            self._conserved(records)
            self._fed_back(records)
            self._complete(records)
        self._rates(records)
        for n, outlet in self.world.outlets.items():
            outlet.settle()
            if outlet.through_wms[None] and n not in self.was_welded:
                self.broken("P3", f"{outlet.through_wms[None]} W·ms through {n} for nobody")

    def _conserved(self, records: list[Json]) -> None:
        """P1, exact: each record attributes just what it moves the register by."""
        for n in self.evses:
            register: int | None = None
            serial, epoch = None, 0
            for r in records:
                if r.get("evse") != n:
                    continue
                t = r["t"]
                moved = 0
                if t == "meter":
                    if r["what"] in ("lost", "back", "frozen", "glitch"):
                        continue
                    moved = r["outside_wh"] + r["unobserved_wh"]
                    to, what = r["after_wh"], r["what"]
                    if what == "found":
                        register, serial, epoch = to, r["serial"], r["epoch"]
                    elif what in ("serial", "rollback", "rollover"):
                        self._attributed(n, register, r["before_wh"], moved, r)
                        span_wh = self.world.outlets[n].meter.span_wh
                        if what == "rollover" and r["before_wh"] - to != span_wh:
                            self.broken("P1", f"a register of {span_wh} Wh begins again: {r}")
                        if (r["serial"], r["epoch"]) == (serial, epoch):
                            self.broken("P1", f"{what} without a new epoch: {r}")
                        register, serial, epoch = to, r["serial"], r["epoch"]
                        continue
                elif t == "start":
                    to, moved = r["register_wh"], r["outside_wh"]
                    if to is not None and (r["epoch"] != epoch):
                        self.broken("P1", f"start in epoch {r['epoch']}, register in {epoch}")
                elif t == "period":
                    to, moved = r["register_wh"], r["wh"]
                elif t == "stop":
                    to = r["register_wh"]
                else:
                    continue
                if moved < 0 or (to is None and moved):
                    self.broken("P3", f"impossible energy {moved} Wh: {r}")
                if to is None:
                    continue
                if t != "meter" or r["what"] != "found":
                    self._attributed(n, register, to, moved, r)
                register = to

    def _attributed(self, n: int, at: int | None, to: int, moved: int, record: Json) -> None:
        if at is None or to - at != moved:
            self.broken("P1", f"EVSE {n}: from {at} to {to} Wh, attributed {moved}: {record}")

    def _fed_back(self, records: list[Json]) -> None:
        """P1 for the export register: each record goes on where the last one ended, and says where
        all of it went; a session's is what its car gave."""
        for n, outlet in self.world.outlets.items():
            at: int | None = None
            given: dict[str | None, int] = {}
            for r in records:
                if r.get("evse") != n:
                    continue
                if r["t"] == "meter" and r["what"] in ("found", "serial"):
                    at = r.get("export_wh")
                elif r["t"] == "export":
                    self.world.counts["export"] += 1
                    wh = r["wh"]
                    moved = 0 if r["what"] in ("found", "rollback") else r["after_wh"] - at
                    if r["before_wh"] != at or wh < 0 or moved != wh + r["unobserved_wh"]:
                        self.broken("P1", f"EVSE {n} fed back to {at} Wh before {r}")
                    at = r["after_wh"]
                    given[r["session_id"]] = given.get(r["session_id"], 0) + wh
            slack = (2 * outlet.meter.resolution_wh + 2) * WMS_PER_WH
            for id, wh in given.items():
                true = outlet.back_wms[id]
                if id is not None and wh * WMS_PER_WH - true > slack:
                    self.broken("P1", f"{id} gave {true / WMS_PER_WH:.3f} Wh, on record {wh}")

    def _complete(self, records: list[Json]) -> None:
        """P2: one start, one stop, periods without holes; and P1 against physical truth."""
        for id, session in self.sessions.items():
            own = [r for r in records if r.get("session_id") == id]
            kinds = [r["t"] for r in own]
            if kinds.count("start") != 1 or kinds.count("stop") != 1:
                self.broken("P2", f"{id} has {kinds}")
            start = next(r for r in own if r["t"] == "start")
            stop = next(r for r in own if r["t"] == "stop")
            periods = [r for r in own if r["t"] == "period"]
            total, at = 0, [start["boot"], start["up_ms"]]
            for period in periods:
                total += period["wh"]
                if period["from"] != at or period["to"] < at or period["total_wh"] != total:
                    self.broken("P2", f"{id}: {period} does not go on from {at} with {total} Wh")
                at = period["to"]
            if stop["total_wh"] != total or stop["at"] != at:
                self.broken("P1", f"{id} stops at {stop['at']} with {stop['total_wh']} Wh, "
                                  f"its periods at {at} with {total}")
            first, last = records.index(start), records.index(stop)
            unobserved = sum(
                r["unobserved_wh"]
                for r in records[first:last]
                if r["t"] == "meter" and r["evse"] == start["evse"]
            )
            if unobserved != stop["unobserved_wh"]:
                self.broken("P1", f"{id} misses {stop['unobserved_wh']} Wh, not {unobserved}")
            self._physical(id, session, start["evse"], total)

    def _physical(self, id: str, session: Session, n: int, total_wh: int) -> None:
        outlet = self.world.outlets[n]
        outlet.settle()
        true = outlet.through_wms[id] + outlet.standby_wms[id]
        slack = (2 * outlet.meter.resolution_wh + 2) * WMS_PER_WH + outlet.standby_w * 150_000
        off = total_wh * WMS_PER_WH - true
        self.world.counts["Wh"] += total_wh
        text = f"{id}: {total_wh} Wh on record, {true / WMS_PER_WH:.3f} Wh delivered"
        if off > slack + session.hidden_wms:
            self.broken("P1", text)
        ended = session.ended or self.world.now
        blind = n in self.was_welded or any(
            begun < ended + 120_000 and (over is None or over > session.began - 120_000)
            for begun, over in self.evses[n].disturbances
        )
        if -off > slack and not blind:
            self.broken("P1", text)

    def _rates(self, records: list[Json]) -> None:
        times: dict[tuple[Any, ...], list[int]] = {}
        for r in records:
            if r["t"] == "refused":
                key = (r["boot"], r["what"], r["why"], r.get("evse"))
                times.setdefault(key, []).append(r["up_ms"])
        for key, ups in times.items():
            for i in range(len(ups) - RATE):
                if ups[i + RATE] - ups[i] < 3_600_000:
                    self.broken("P9", f"{RATE + 1} records of {key} within an hour")
