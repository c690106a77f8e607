"""Boards: an up message in, a down message out.

Purpose: store every record once, acknowledge what is durable, deliver commands.
Theory
1. A message counts if size, MAC, header and `kid` are right; everything else is counted and
   dropped.
2. Its chain must be whole. Where it overlaps what is stored, the links must agree; else two
   boards speak with one identity: fork. The station is quarantined: no ack, no commands, until
   an operator lifts it. A superseded journal that says something new is a fork as well.
3. Records are stored in sequence. Those the board no longer keeps (`first`) are a gap, recorded
   once. A message that starts beyond what is stored and kept is not taken: the ack says from
   where. A board that begins another journal has forgotten what the last one said: what was not
   stored of it is a gap, as far as the board knows, with its reason; what was in force under it
   ends (projection.py, desk.py).
4. A message not newer than the last one of its boot (`boot`, `up_ms`) is a repetition or a
   replay: its records are welcome, its picture and its sid are not, and it gets no answer. A
   brief one counts for the boot that spoke last only, and where its `seq` follows what is stored;
   any other is answered with the ack, from which the board goes on with whole ones.
5. The ack is what is committed: the answer is made in the transaction and leaves after it.
6. `n` rises over all sids of a station, in the database, and is no less than the unix ms: one
   restored from a backup does not fall behind what its boards have heard.
Limits: one process per database. The `online` topic is a hint: `0` takes a station offline until
its next message, `1` means nothing. A database restored while the clock is set back lets `n`
fall: a board is then deaf until the clock has caught up, or its next boot.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select, true
from sqlalchemy.orm import Session as Db
from sqlalchemy.orm import sessionmaker

from tools.gateway import messages, ocpi, signatures, uplink, whitelist
from tools.gateway.authorize import Authorizer
from tools.gateway.bookings import Bookings
from tools.gateway.catalog import Catalog
from tools.gateway.desk import LIFE_MAX_MS, PER_MESSAGE, Desk, out_of_service
from tools.gateway.projection import Teller, read
from tools.gateway.store import (
    Alarm,
    Command,
    Journal,
    Record,
    Station,
    StationList,
    put_right,
)

log = logging.getLogger("gateway.southbound")

UNKEPT_LIFE_MS = 30_000
LIVES = ("corrupt", "version", "rebuilt", "empty")  # `lost`, class: a whole journal is gone


class Fork(Exception):
    def __init__(self, seq: int, text: str) -> None:
        super().__init__(text)
        self.seq = seq


@dataclass
class _Touched:
    sessions: dict[str, None] = field(default_factory=dict)
    dates: bool = False


class Southbound:
    def __init__(
        self,
        store: sessionmaker[Db],
        catalog: Catalog,
        desk: Desk,
        bookings: Bookings,
        authorizer: Authorizer,
        now_ms: Callable[[], int],
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._config = catalog.config
        self._desk = desk
        self._bookings = bookings
        self._keys = desk.keys
        self._authorizer = authorizer
        self._teller = Teller(catalog)
        self._now_ms = now_ms
        self._on_commit = on_commit
        authorizer.deliver = self._authorized
        self.publish: Callable[[str, bytes], bool] = lambda station_id, raw: False
        self.refused: dict[str, Counter[str]] = {}
        self._ticked_ms = 1 << 62  # nobody knows how the clock went before the start

    # --- in

    def handle(self, station_id: str, raw: bytes, link: str) -> bytes | None:
        """The answer to an up message, b"" if there is nothing to say, or None if it deserves
        none."""
        if station_id not in self._config.stations:
            self._refuse("(unknown)", "station", station_id[:36])
            return None
        try:
            with self._store.begin() as db:
                message, header = self._open(db, station_id, raw)
                if isinstance(header, messages.BriefHeader):
                    if message.records:
                        raise uplink.UplinkError("shape", "a brief message with records")
                    reply = self._take_brief(db, station_id, header, link)
                else:
                    reply = self._take(db, station_id, header, message.records, link)
        except uplink.UplinkError as error:
            self._refuse(station_id, error.why, str(error))
            return None
        except ValidationError as error:
            self._refuse(station_id, "header", str(error.errors()[0]["loc"]))
            return None
        self._on_commit()
        self._desk.news.discard(station_id)  # the answer has it
        self._push_news()
        return reply

    def _push_news(self) -> None:
        for station_id in sorted(self._desk.news):
            self.push(station_id)

    def _open(
        self, db: Db, station_id: str, raw: bytes
    ) -> tuple[uplink.Message, messages.UpHeader | messages.BriefHeader]:
        """What the message says, under the key of now or the one that follows. Raises
        UplinkError, ValidationError."""
        key = self._keys.current(db, station_id)
        following = self._keys.following(db, station_id)
        try:
            message = uplink.parse(raw, key.secret, "up", station_id)
        except uplink.UplinkError as error:
            if error.why != "mac" or following is None:
                raise
            message = uplink.parse(raw, following.secret, "up", station_id)
            key = following
        header = messages.UP.validate_json(message.header)
        if header.kid != key.kid:
            raise uplink.UplinkError("kid", f"kid {header.kid}, the key here is {key.kid}")
        if key is following:
            self._keys.confirm(db, station_id, key)
            log.info("%s: speaks under key %d", station_id, key.kid)
        return message, header

    def offline_hint(self, station_id: str) -> None:
        """The broker says the board's connection is gone."""
        if station_id in self._config.stations:
            with self._store.begin() as db:
                self._set_online(db, db.get_one(Station, station_id), False)
            self._on_commit()

    def _refuse(self, station_id: str, why: str, text: str) -> None:
        self.refused.setdefault(station_id, Counter())[why] += 1
        log.info("%s: message refused: %s: %s", station_id, why, text)

    def _take(
        self,
        db: Db,
        station_id: str,
        header: messages.UpHeader,
        bodies: list[bytes],
        link: str,
    ) -> bytes | None:
        now_ms = self._now_ms()
        station = db.get_one(Station, station_id)
        chain_key = self._keys.chain(station_id)
        chain = uplink.links(chain_key, bytes.fromhex(header.prev), header.seq, bodies)
        if chain[-1].hex() != header.head:
            raise uplink.UplinkError("chain", f"head does not follow from prev at {header.seq}")
        if header.seq == 1 and chain[0] != uplink.first_link(chain_key, header.journal):
            raise uplink.UplinkError("chain", f"prev is not link(0) of journal {header.journal}")
        journal = db.scalar(
            select(Journal).where(
                Journal.station_id == station_id, Journal.journal == header.journal
            )
        )
        superseded = journal is not None and station.journal != header.journal
        before = (station.boot, station.up_ms)
        overtaken = station.journal == header.journal and (
            header.boot < station.boot
            or (header.sid == station.sid and (header.boot, header.up_ms) <= before)
        )
        stale = superseded or overtaken
        # The first answer of a boot has the time, one after an ack that was not heard has that:
        # neither may be too long for a full heap.
        short = header.sid != station.sid or (
            journal is not None and bool(bodies) and header.seq <= journal.last
        )
        try:
            if journal is not None:
                self._compare(db, journal, header, chain)
                if superseded and header.seq + len(bodies) - 1 > journal.last:
                    text = f"superseded journal {header.journal} speaks again"
                    raise Fork(journal.last + 1, text)
        except Fork as fork:
            self._alarm(db, station, "fork", header.journal, fork.seq, fork.seq, str(fork), now_ms)
            station.quarantine = str(fork)
            self._teller.refresh_station(db, station_id, now_ms)
            return None if stale else self._answer(db, station, header, None, [], now_ms)
        if stale:
            self._refuse(station_id, "repeated", f"boot {header.boot}, up_ms {header.up_ms}")
        else:
            self._meet(db, station, header, link, now_ms)
        if station.quarantine is not None:
            return None if stale else self._answer(db, station, header, None, [], now_ms)
        if journal is None:
            journal = Journal(
                station_id=station_id, journal=header.journal, last=0, first_seen_ms=now_ms
            )
            db.add(journal)
        if not stale and header.first > journal.last + 1:
            self._gap(db, station, journal, header.first, now_ms)
        touched = self._append(db, station, journal, header, bodies, chain, now_ms)
        if not stale:
            self._pictures(db, station_id, header, now_ms)
            self._desk.rescue(db, station_id, out_of_service(header.live), now_ms)
        if touched.dates:
            self._teller.tell_open(db, station_id, now_ms)
        for session_id in touched.sessions:
            self._teller.tell(db, session_id, now_ms)
        if stale:
            return None
        self._live_sessions(db, station_id, header, now_ms)
        commands = self._authorize(db, station_id, header, now_ms)
        if header.tokens is not None and not commands and not short:
            commands = self._whitelist(db, station_id, header.tokens, now_ms)
        sid = header.sid if short else None
        return self._answer(db, station, header, journal, commands, now_ms, sid)

    def _take_brief(
        self, db: Db, station_id: str, header: messages.BriefHeader, link: str
    ) -> bytes | None:
        now_ms = self._now_ms()
        station = db.get_one(Station, station_id)
        known = header.sid == station.sid
        if known and header.up_ms <= station.up_ms:
            self._refuse(station_id, "repeated", f"brief, up_ms {header.up_ms}")
            return None
        if station.quarantine is not None:
            return b""
        journal = db.scalar(
            select(Journal).where(
                Journal.station_id == station_id, Journal.journal == station.journal
            )
        )
        if not known or journal is None or header.seq != journal.last + 1:
            return self._answer(db, station, None, journal, [], now_ms, header.sid)
        station.up_ms = header.up_ms
        station.link = link
        station.last_seen_ms = now_ms
        self._set_online(db, station, True)
        at = (station.boot, header.up_ms)
        for evse, flow in header.live.items():
            self._teller.flow(db, station_id, int(evse), at, flow.wh, flow.w, now_ms)
        commands = self._first_part(db, station_id, now_ms) if link == "http" else []
        if commands or self._desk.pending(db, station_id, now_ms):
            return self._answer(db, station, None, journal, commands, now_ms)
        return b""

    def _compare(
        self, db: Db, journal: Journal, header: messages.UpHeader, chain: list[bytes]
    ) -> None:
        """Raise Fork where the message and the store tell two histories."""
        begin = header.seq - 1
        stored = dict(
            db.execute(
                select(Record.seq, Record.link).where(
                    Record.station_id == journal.station_id,
                    Record.journal == journal.journal,
                    Record.seq >= begin,
                    Record.seq < begin + len(chain),
                )
            ).all()
        )
        for offset, link in enumerate(chain):
            known = stored.get(begin + offset)
            if known is not None and known != link:
                raise Fork(begin + offset, f"two histories of record {begin + offset}")

    def _meet(
        self, db: Db, station: Station, header: messages.UpHeader, link: str, now_ms: int
    ) -> None:
        if station.journal != header.journal:
            self._teller.forget_order(db, station.id)
        station.journal = header.journal
        station.sid = header.sid
        station.boot = header.boot
        station.up_ms = header.up_ms
        station.link = link
        station.clock = header.clock.model_dump_json(exclude_none=True)
        station.last_seen_ms = now_ms
        if header.health is not None:
            station.health = ocpi.dumps(header.health)
            self._desk.on_health(db, station.id)
        self._set_online(db, station, True)

    def _set_online(self, db: Db, station: Station, online: bool) -> None:
        if station.online != online:
            station.online = online
            self._teller.refresh_station(db, station.id, self._now_ms())

    def _gap(self, db: Db, station: Station, journal: Journal, first: int, now_ms: int) -> None:
        text = f"records {journal.last + 1} to {first - 1} were gone before they arrived"
        self._alarm(db, station, "gap", journal.journal, journal.last + 1, first - 1, text, now_ms)
        journal.last = first - 1
        journal.link = None

    def _another_life(
        self, db: Db, station: Station, row: Record, touched: _Touched, now_ms: int
    ) -> None:
        """The board has begun another journal: of what it knew, nothing is in force any more."""
        self._desk.forgotten(db, station.id, now_ms)
        for session_id in self._teller.open_sessions(db, station.id):
            touched.sessions[session_id] = None

    def _lost_life(
        self, db: Db, station: Station, row: Record, body: messages.LostRecord, now_ms: int
    ) -> None:
        """What a journal had that the gateway has not."""
        old = db.scalar(
            select(Journal)
            .where(Journal.station_id == station.id, Journal.journal != row.journal)
            .where(Journal.journal == body.journal if body.journal else true())
            .order_by(Journal.id.desc())
        )
        if old is None or (body.last is not None and body.journal and body.last <= old.last):
            return  # nothing of it was ever here, or all of it is
        first = old.last + 1
        last = body.last if body.last is not None and body.last >= first else 0
        until = f" to {last}" if last else " and what followed"
        text = f"records {first}{until} were lost with their journal: {body.class_}"
        self._alarm(db, station, "gap", old.journal, first, last, text, now_ms)

    def _alarm(
        self,
        db: Db,
        station: Station,
        kind: str,
        journal: str,
        first: int,
        last: int,
        text: str,
        now_ms: int,
    ) -> None:
        known = db.scalar(
            select(Alarm).where(
                Alarm.station_id == station.id,
                Alarm.kind == kind,
                Alarm.journal == journal,
                Alarm.first == first,
            )
        )
        if known is None:
            log.error("%s: %s: %s", station.id, kind, text)
            db.add(
                Alarm(
                    station_id=station.id,
                    kind=kind,
                    journal=journal,
                    first=first,
                    last=last,
                    text=text,
                    at_ms=now_ms,
                )
            )

    def _append(
        self,
        db: Db,
        station: Station,
        journal: Journal,
        header: messages.UpHeader,
        bodies: list[bytes],
        chain: list[bytes],
        now_ms: int,
    ) -> _Touched:
        touched = _Touched()
        for offset, body in enumerate(bodies):
            seq = header.seq + offset
            if seq <= journal.last:
                continue
            if seq > journal.last + 1:
                break
            if journal.link is not None and chain[offset] != journal.link:
                raise uplink.UplinkError("chain", f"record {seq} does not follow the stored one")
            row = _record(station.id, journal.journal, seq, chain[offset + 1], body, now_ms)
            db.add(row)
            db.flush()
            journal.last = seq
            journal.link = row.link
            self._react(db, station, row, touched, now_ms)
        return touched

    def _react(
        self, db: Db, station: Station, row: Record, touched: _Touched, now_ms: int
    ) -> None:
        """What a record does the one time it is stored."""
        body = read(row)
        if body is None:
            # Types and events of later versions are kept and not read; a broken one is an alarm.
            if row.t is None or (row.t in messages.RECORDS and row.t != "event"):
                text = f"record {row.seq} cannot be read: {row.body[:80]!r}"
                self._alarm(db, station, "unreadable", row.journal, row.seq, row.seq, text, now_ms)
            return
        if row.session_id is not None:
            touched.sessions[row.session_id] = None
        if isinstance(body, messages.TimeRecord):
            touched.dates = True
            if body.step:
                text = f"record {row.seq}: the clock was wrong; it is {body.unix_ms} ms"
                self._alarm(db, station, "clock_step", row.journal, row.seq, row.seq, text, now_ms)
        elif isinstance(body, messages.StatusRecord):
            at = (body.boot, body.up_ms)
            self._teller.picture(
                db, station.id, body.evse, at, body.status, body.plugged, None, now_ms
            )
        elif isinstance(body, messages.JournalNewEvent):
            self._another_life(db, station, row, touched, now_ms)
        elif isinstance(body, messages.LostRecord):
            if body.class_ in LIVES:
                self._lost_life(db, station, row, body, now_ms)
        elif isinstance(body, messages.ResultRecord):
            changed = self._desk.on_result(db, station.id, body, now_ms)
            if changed is not None:
                touched.sessions[changed] = None
            command = db.get(Command, body.command_id)
            if command is not None and command.station_id == station.id:
                self._bookings.on_result(db, command, now_ms)
        elif isinstance(body, messages.ReserveRecord):
            self._desk.on_reserve(db, station.id, body, now_ms)
        elif isinstance(body, messages.ReleaseRecord):
            self._desk.on_release(db, station.id, body, now_ms)
        elif isinstance(body, messages.StartRecord) and body.booking_id is not None:
            place = self._catalog.at_board(station.id, body.evse)
            if place is not None:
                self._bookings.on_start(db, place.evse.uid, body.booking_id, now_ms)
        elif isinstance(body, messages.UnbookedEvent):
            place = self._catalog.at_board(station.id, body.evse)
            if place is not None:
                self._bookings.on_unbooked(db, place.evse.uid, body.booking_id, now_ms)

    def _pictures(self, db: Db, station_id: str, header: messages.UpHeader, now_ms: int) -> None:
        at = (header.boot, header.up_ms)
        for evse, live in header.live.items():
            self._teller.picture(
                db, station_id, int(evse), at, live.status, live.plugged, live.w, now_ms,
                time_unknown=bool(live.time_unknown),
            )  # fmt: skip

    def _live_sessions(
        self, db: Db, station_id: str, header: messages.UpHeader, now_ms: int
    ) -> None:
        for live in header.live.values():
            if live.session is not None and live.wh is not None:
                self._teller.live(db, station_id, live.session, live.wh, now_ms)

    def _authorize(
        self, db: Db, station_id: str, header: messages.UpHeader, now_ms: int
    ) -> list[dict[str, Any]]:
        if header.authorize is None:
            return []
        data = self._authorizer.answer(db, station_id, header.authorize)
        return [] if data is None else [_unkept("AUTHORIZE", data, now_ms)]

    def _authorized(self, station_id: str, data: dict[str, Any]) -> None:
        """An eMSP's word on a card: to the board, if it can be reached unasked."""
        self.push(station_id, [_unkept("AUTHORIZE", data, self._now_ms())])

    def _whitelist(
        self,
        db: Db,
        station_id: str,
        told: messages.Tokens,
        now_ms: int,
    ) -> list[dict[str, Any]]:
        """The next part of a sync. It fills a message: it goes when nothing else does."""
        if self._desk.pending(db, station_id, now_ms):
            return []
        key, every_ms = self._row_key(station_id), self._config.whitelist_every_s * 1000
        data = whitelist.answer(db, station_id, key, told, every_ms, now_ms)
        return [] if data is None else [_unkept("SYNC_TOKENS", data, now_ms)]

    def _row_key(self, station_id: str) -> bytes:
        return whitelist.row_key(self._keys.chain(station_id))

    # --- out

    def _answer(
        self,
        db: Db,
        station: Station,
        header: messages.UpHeader | None,
        journal: Journal | None,
        first_commands: list[dict[str, Any]],
        now_ms: int,
        sid: str | None = None,
    ) -> bytes:
        """A down message. Without `header` it answers none; without `journal`, no ack. With `sid`
        it goes to that one, whoever it is, and has no commands but `first_commands`."""
        station.n = max(station.n + 1, now_ms)  # also above what a lost database had allocated
        key = self._keys.signing(db, station.id)
        down: dict[str, Any] = {"v": 1, "kid": key.kid, "sid": sid or station.sid, "n": station.n}
        if header is not None:
            down["sid"] = header.sid
            down["re"] = header.up_ms
        down["unix_ms"] = now_ms
        if journal is not None:
            down["journal"] = journal.journal
            down["ack"] = journal.last
        brief_s = self._config.brief_s
        if header is not None and brief_s and self._keys.following(db, station.id) is None:
            down["brief_s"] = brief_s
        commands = list(first_commands)
        if station.quarantine is None and sid is None:
            commands += [_wire(row) for row in self._desk.pending(db, station.id, now_ms)]
            station.pushed_ms = now_ms
        commands = commands[:PER_MESSAGE]
        while True:
            if commands:
                down["commands"] = commands
            text = json.dumps(down, separators=(",", ":")).encode()
            try:
                return uplink.build(key.secret, "down", station.id, text)
            except uplink.UplinkError:
                commands = commands[:-1]  # four long commands do not fit: the rest comes next
                down.pop("commands")

    def push(self, station_id: str, first: Sequence[dict[str, Any]] = ()) -> None:
        """Send `first` and what is pending at once, if the station can be reached unasked
        (MQTT)."""
        now_ms = self._now_ms()
        self._desk.news.discard(station_id)
        with self._store.begin() as db:
            station = db.get_one(Station, station_id)
            if not (station.online and station.sid and station.link == "mqtt"):
                return
            if station.quarantine is not None:
                return
            if not first and not self._desk.pending(db, station_id, now_ms):
                return
            journal = db.scalar(
                select(Journal).where(
                    Journal.station_id == station_id, Journal.journal == station.journal
                )
            )
            raw = self._answer(db, station, None, journal, list(first), now_ms)
        self.publish(station_id, raw)

    def tick(self) -> None:
        """What time alone brings: expiry, repetition, silence."""
        now_ms = self._now_ms()
        repeat_ms = int(self._config.command_repeat_s * 1000)
        back = now_ms < self._ticked_ms
        self._ticked_ms = now_ms
        with self._store.begin() as db:
            if back:
                retry_ms = int(self._config.retry_max_s * 1000)
                put_right(db, now_ms, LIFE_MAX_MS, retry_ms)
            expired, changed = self._desk.expire(db, now_ms)
            for session_id in changed:
                self._teller.tell(db, session_id, now_ms)
            for session_id in signatures.given_up(db, now_ms):
                self._teller.tell(db, session_id, now_ms)
                expired = True
            self._bookings.tick(db, now_ms)
            silent_ms = now_ms - self._config.offline_after_s * 1000
            for station in db.scalars(select(Station).where(Station.online)).all():
                if (station.last_seen_ms or 0) < silent_ms:
                    self._set_online(db, station, False)
                    expired = True
            again = [
                station_id
                for station_id in self._desk.waiting_stations(db)
                if station_id in self._config.stations
                and db.get_one(Station, station_id).pushed_ms + repeat_ms <= now_ms
            ]
            lists = self._lists(db, now_ms)
        if expired:
            self._on_commit()
        self._desk.news.update(again)
        self._push_news()
        for station_id, command in lists:
            self.push(station_id, [command])

    def _lists(self, db: Db, now_ms: int) -> list[tuple[str, dict[str, Any]]]:
        """First parts for boards whose whitelist is not the newest any more."""
        found = []
        for station in db.scalars(
            select(Station).where(Station.online, Station.link == "mqtt")
        ).all():
            if station.id in self._config.stations:
                found += [(station.id, c) for c in self._first_part(db, station.id, now_ms)]
        return found

    def _first_part(self, db: Db, station_id: str, now_ms: int) -> list[dict[str, Any]]:
        """For a board whose whitelist is not the newest any more, and has told which it has."""
        told = db.get(StationList, station_id)
        if told is None or told.version < 0 or self._desk.pending(db, station_id, now_ms):
            return []
        every_ms = self._config.whitelist_every_s * 1000
        data = whitelist.begin(db, station_id, self._row_key(station_id), every_ms, now_ms)
        return [] if data is None else [_unkept("SYNC_TOKENS", data, now_ms)]

    def release(self, station_id: str) -> None:
        """An operator has found out which board is the real one."""
        with self._store.begin() as db:
            station = db.get_one(Station, station_id)
            station.quarantine = None
            self._teller.refresh_station(db, station_id, self._now_ms())
        self._on_commit()


def _record(
    station_id: str, journal: str, seq: int, link: bytes, body: bytes, now_ms: int
) -> Record:
    try:
        fields = json.loads(body)
    except ValueError:
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    names = ("t", "boot", "up_ms", "session_id")
    t, boot, up_ms, session_id = (fields.get(name) for name in names)
    return Record(
        station_id=station_id,
        journal=journal,
        seq=seq,
        link=link,
        body=body,
        t=t if isinstance(t, str) else None,
        boot=boot if isinstance(boot, int) else None,
        up_ms=up_ms if isinstance(up_ms, int) else None,
        session_id=session_id if isinstance(session_id, str) and len(session_id) <= 36 else None,
        received_ms=now_ms,
    )


def _unkept(type: str, data: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """A command that is not kept: what gets lost is asked for again."""
    messages.COMMANDS[type].model_validate(data)
    exp_ms = now_ms + UNKEPT_LIFE_MS
    return {"id": secrets.token_hex(16), "type": type, "exp": exp_ms, "data": data}


def _wire(row: Command) -> dict[str, Any]:
    return {"id": row.id, "type": row.type, "exp": row.exp_ms, "data": json.loads(row.data)}
