"""Records -> EVSE status, Sessions, CDRs.

Purpose: tell in OCPI's words what the boards wrote.
Theory: a Session is a pure function (`fold`) of the records that carry its id, then of the dates
its moments have (`Timeline`), then of what the gateway adds: party, location, currency, cost.
Whatever arrives, the Sessions it touches are folded anew and compared with what was said last;
a difference is a new `last_updated` and work for the outbox. So a replay changes nothing.

Rules
1. `reserve` makes RESERVATION, `start` ACTIVE, `stop` COMPLETED; `release` COMPLETED unless the
   Session was used, or its reservation holds elsewhere or is asked for there. One id throughout,
   also over boards. COMPLETED is never touched again. A board that has begun another journal
   knows nothing of it any more: it ends at the last moment on record, with what is on record.
2. kWh rises: the larger of the journal's total and the live picture's. At COMPLETED it is the
   journal's word alone. Live pictures never reach a CDR.
3. A Session whose start has no date is not sent; one whose end has none stays ACTIVE; a charging
   period without a date waits. A reservation without a date before a dated start is left out.
4. No token (free-vend): no OCPI Session. An unused reservation has a Session and a CDR with its
   RESERVATION_TIME and its end; one that the eMSP was told to have failed (TIMEOUT) and that
   nobody used has neither.
5. Where the meter signs, the CDR waits for the signed record, or the word that there is none.
6. Location, Tariff and contract are kept as they were when the Session first needed them.

Limits: tariffs are a price per kWh; periods are not cut at tariff boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session as Db

from tools.gateway import messages, ocpi, outbox, signatures
from tools.gateway.catalog import FIXED, Catalog, Place
from tools.gateway.config import energy_price
from tools.gateway.dating import Timeline, When
from tools.gateway.store import (
    CdrRow,
    Command,
    Evse,
    LocationRow,
    Record,
    Reservation,
    SessionRow,
    Station,
    TokenRow,
)

UNSURE_MS = 60_000  # a CDR whose times are less sure than that says so
Moment = tuple[str, str, int, int]  # station, journal, boot, up_ms


# --- records -> story


@dataclass
class Period:
    kind: str
    start: Moment
    end: Moment
    wh: int
    max_w: int | None


@dataclass
class Story:
    """What the records say about one Session."""

    session_id: str
    station_id: str  # where it is, and its EVSE there
    evse: int
    token: messages.Token | None = None
    auth_method: str | None = None
    authorization_reference: str | None = None
    booking_id: str | None = None
    meter_id: str | None = None
    reserved: Moment | None = None
    started: Moment | None = None
    ended: Moment | None = None
    end_cause: str | None = None
    total_wh: int = 0
    export_wh: int = 0
    periods: list[Period] = field(default_factory=list)
    command_id: str | None = None  # of the last RESERVE_NOW
    latest: dict[str, Moment] = field(default_factory=dict)  # word of each station
    signatures: signatures.Signatures = field(default_factory=signatures.Signatures)


def fold(records: Iterable[Record]) -> Story | None:
    """The Story of one session id's records in journal order; None if none of them begins it."""
    story: Story | None = None
    held: dict[tuple[str, int], messages.ReserveRecord] = {}  # while it moves: at two spots
    for record in records:
        body = read(record)
        at: Moment = (record.station_id, record.journal, record.boot or 0, record.up_ms or 0)
        if isinstance(body, (messages.ReserveRecord, messages.StartRecord)) and story is None:
            story = Story(body.session_id, record.station_id, body.evse)
        if story is not None:
            story.latest[record.station_id] = at
        if isinstance(body, messages.SignedRecord) and story is not None:
            story.signatures.take(body)
        if story is None or (story.ended and story.started):
            continue
        if isinstance(body, messages.ReserveRecord):
            spot = record.station_id, body.evse
            held.pop(spot, None)
            held[spot] = body
            story.auth_method = "COMMAND"
            story.reserved = story.reserved or at
            story.command_id = body.command_id
            story.ended = story.end_cause = None
            _stand(story, held)
        elif isinstance(body, messages.ReleaseRecord) and story.started is None:
            if held.pop((record.station_id, body.evse), None) is not None and held:
                _stand(story, held)
            elif not held and body.cause not in ("used", "replaced"):
                story.ended, story.end_cause = at, body.cause
        elif isinstance(body, messages.StartRecord):
            if story.started is not None:
                continue
            story.station_id, story.evse = record.station_id, body.evse
            story.started = at
            story.ended = story.end_cause = None
            story.token = body.token
            story.auth_method = body.auth_method or story.auth_method
            story.authorization_reference = (
                body.authorization_reference or story.authorization_reference
            )
            story.booking_id = body.booking_id
            story.meter_id = body.serial
            story.signatures.expected = body.signs
        elif isinstance(body, messages.PeriodRecord):
            story.periods.append(
                Period(
                    body.kind,
                    (*at[:2], body.from_[0], body.from_[1]),
                    (*at[:2], body.to[0], body.to[1]),
                    body.wh,
                    body.max_w,
                )
            )
            story.total_wh = body.total_wh
        elif isinstance(body, messages.ExportRecord):
            story.export_wh += body.wh
        elif isinstance(body, messages.StopRecord) and story.started is not None:
            story.ended = (*at[:2], body.at[0], body.at[1])
            story.end_cause = body.cause
            story.total_wh = body.total_wh
    return story


def _stand(story: Story, held: dict[tuple[str, int], messages.ReserveRecord]) -> None:
    """The reservation is where it was placed last of those that still hold."""
    (story.station_id, story.evse), body = list(held.items())[-1]
    story.token = body.token
    story.authorization_reference = (
        body.authorization_reference or story.authorization_reference
    )


def read(record: Record) -> Any:
    """The record as a model, or None if this version cannot read it."""
    adapter = messages.RECORDS.get(record.t or "")
    if adapter is None:
        return None
    try:
        return adapter.validate_json(record.body)
    except ValidationError:
        return None


# --- story -> OCPI


@dataclass
class Told:
    """A Session as far as it can be told."""

    session: dict[str, Any]  # without last_updated
    end_ms: int | None
    start_ms: int  # of the charging
    reserved_ms: int | None
    parking_ms: int
    err_ms: int  # of its start and end, the larger


def owner_of(token: messages.Token) -> str:
    return f"{token.country_code}-{token.party_id}".upper()


def price(amount: Decimal, vat: Decimal | None) -> dict[str, Decimal]:
    cent4 = Decimal("0.0001")
    cost = {"excl_vat": amount.quantize(cent4, ROUND_HALF_UP)}
    if vat is not None:
        cost["incl_vat"] = (amount * (100 + vat) / 100).quantize(cent4, ROUND_HALF_UP)
    return cost


def cost_of(tariff: dict[str, Any] | None, wh: int) -> dict[str, Decimal] | None:
    """Cost of `wh` under a tariff with one ENERGY price; None without a tariff.

    The Session's total is rounded up to the tariff's `step_size` (in Wh) once.
    """
    if tariff is None:
        return None
    per_kwh, vat, step_wh = energy_price(tariff)
    billed_wh = -(-wh // step_wh) * step_wh
    return price(ocpi.kwh(billed_wh) * per_kwh, vat)


def dimensions(period: Period, duration_ms: int) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"type": "ENERGY", "volume": ocpi.kwh(period.wh)}]
    if period.kind == "charging":
        volumes.append({"type": "TIME", "volume": ocpi.hours(duration_ms)})
        if period.max_w is not None:
            volumes.append({"type": "MAX_POWER", "volume": Decimal(period.max_w).scaleb(-3)})
    elif period.kind == "not_requesting":
        volumes.append({"type": "PARKING_TIME", "volume": ocpi.hours(duration_ms)})
    return volumes


class Teller:
    """Writes what changed into sessions, EVSEs and CDRs, and hands it to the outbox."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.config = catalog.config

    # --- EVSE

    def picture(
        self,
        db: Db,
        station_id: str,
        evse: int,
        at: tuple[int, int],
        status: str,
        plugged: bool | None,
        power_w: int | None,
        now_ms: int,
        time_unknown: bool = False,
    ) -> None:
        """Take a board's word about an EVSE, if it is not older than the last one taken."""
        place = self.catalog.at_board(station_id, evse)
        if place is None:
            return
        row = db.get_one(Evse, place.evse.uid)
        if at < (row.boot, row.up_ms):
            return
        row.boot, row.up_ms = at
        row.board_status = status
        row.power_w = power_w
        row.time_unknown = time_unknown
        if plugged is not None:
            row.plugged = plugged
        self.refresh_evse(db, place, now_ms)

    def flow(
        self,
        db: Db,
        station_id: str,
        evse: int,
        at: tuple[int, int],
        wh: int,
        power_w: int | None,
        now_ms: int,
    ) -> None:
        """Take a board's word about the session that runs at an EVSE; all else is as it was."""
        place = self.catalog.at_board(station_id, evse)
        if place is None:
            return
        row = db.get_one(Evse, place.evse.uid)
        row.boot, row.up_ms = at
        row.power_w = power_w
        running = db.scalar(
            select(SessionRow.id)
            .where(
                SessionRow.station_id == station_id,
                SessionRow.evse_uid == row.uid,
                SessionRow.status.in_(("ACTIVE", "PENDING")),
            )
            .order_by(SessionRow.number.desc())
            .limit(1)
        )
        if running is not None:
            self.live(db, station_id, running, wh, now_ms)

    def forget_order(self, db: Db, station_id: str) -> None:
        """A new life of the journal may count its boots from the beginning."""
        for row in db.scalars(select(Evse).where(Evse.station_id == station_id)):
            row.boot, row.up_ms = 0, -1

    def refresh_station(self, db: Db, station_id: str, now_ms: int) -> None:
        for row in db.scalars(select(Evse).where(Evse.station_id == station_id)):
            place = self.catalog.place(row.uid)
            if place is not None:
                self.refresh_evse(db, place, now_ms)

    def refresh_evse(self, db: Db, place: Place, now_ms: int) -> None:
        row = db.get_one(Evse, place.evse.uid)
        station = db.get_one(Station, row.station_id)
        if place.evse.status in FIXED:
            status: str = place.evse.status
        elif station.online and station.quarantine is None:
            status = row.board_status
        else:
            status = "UNKNOWN"
        if status == row.status:
            return
        row.status = status
        row.last_updated_ms = max(now_ms, row.last_updated_ms + 1)
        location = db.get_one(LocationRow, row.location_id)
        location.last_updated_ms = max(row.last_updated_ms, location.last_updated_ms + 1)
        outbox.tell_evse(db, row.uid, now_ms)

    # --- Session and CDR

    def live(self, db: Db, station_id: str, session_id: str, wh: int, now_ms: int) -> None:
        row = db.get(SessionRow, session_id)
        if row is None or row.station_id != station_id or row.status == "COMPLETED":
            return
        if wh > row.live_wh:
            row.live_wh = wh
            self.tell(db, session_id, now_ms)

    def open_sessions(self, db: Db, station_id: str) -> Sequence[str]:
        """Those of the station that are not finished."""
        return db.scalars(
            select(SessionRow.id)
            .where(SessionRow.stations.contains(station_id), SessionRow.status != "COMPLETED")
            .order_by(SessionRow.number)
        ).all()

    def tell_open(self, db: Db, station_id: str, now_ms: int) -> None:
        """Sessions that may have got a date."""
        for session_id in self.open_sessions(db, station_id):
            self.tell(db, session_id, now_ms)

    def tell(self, db: Db, session_id: str, now_ms: int) -> None:
        """Fold the session anew; store and push it if it reads differently."""
        records = db.scalars(
            select(Record).where(Record.session_id == session_id).order_by(Record.id)
        ).all()
        row = db.get(SessionRow, session_id)
        # A board speaks of its own sessions only: whoever began one goes on with it, or whoever
        # was given it with a reservation that moves.
        stations = row.stations if row else (records[0].station_id if records else "")
        mine = stations.split(",")
        story = fold(record for record in records if record.station_id in mine)
        if story is None:
            return
        if story.ended is None and self._forgotten(db, story):
            story.ended, story.end_cause = story.latest[story.station_id], "journal_lost"
        if story.started is None and (story.ended and self._moves(db, session_id)):
            story.ended = story.end_cause = None
        place = self.catalog.at_board(story.station_id, story.evse)
        if row is None:
            row = SessionRow(
                id=session_id,
                number=1 + (db.scalar(select(func.max(SessionRow.number))) or 0),
                station_id=story.station_id,
                stations=story.station_id,
                status="PENDING",
                live_wh=0,
                snapshot="{}",
                last_updated_ms=0,
            )
            db.add(row)
        if row.status == "COMPLETED":
            if db.get(signatures.AwaitedSignature, session_id) is not None:
                self._late_cdr(db, row, story, now_ms)
            return
        row.station_id = story.station_id
        row.evse_uid = place.evse.uid if place else None
        row.owner = None if story.token is None else owner_of(story.token)
        row.end_cause = story.end_cause
        if story.token is None:  # free-vend: kept, never told
            row.status = "COMPLETED" if story.ended else "ACTIVE"
            return
        if place is None or self._undone(db, row, story):
            return
        snapshot = self._snapshot(db, row, place, story.token)
        told = self._render(db, story, place, snapshot, row.live_wh)
        if told is None:
            return
        before = None if row.object is None else ocpi.loads(row.object)
        if before is not None and _same(before, told.session):
            return
        row.last_updated_ms = max(now_ms, row.last_updated_ms + 1)
        stamp = ocpi.format_datetime(row.last_updated_ms)
        row.object = ocpi.dumps(told.session | {"last_updated": stamp})
        row.status = told.session["status"]
        db.flush()
        outbox.tell_session(db, row.id, row.owner or "", now_ms)
        if row.status == "COMPLETED":
            self._make_cdr(db, story, told, snapshot, row.owner or "", now_ms)

    def _forgotten(self, db: Db, story: Story) -> bool:
        """Has its board begun another journal since?"""
        station = db.get(Station, story.station_id)
        return station is not None and station.journal != story.latest[story.station_id][1]

    def _moves(self, db: Db, session_id: str) -> bool:
        """Is its reservation asked for elsewhere?"""
        moving = select(Reservation.id).where(
            Reservation.session_id == session_id, Reservation.moving
        )
        return db.scalar(moving) is not None

    def _undone(self, db: Db, row: SessionRow, story: Story) -> bool:
        """The eMSP was told that this reservation did not come about, and nobody has used it."""
        if story.started is not None or row.object is not None or story.command_id is None:
            return False
        command = db.get(Command, story.command_id)
        return command is not None and command.state == "timeout"

    def _late_cdr(self, db: Db, row: SessionRow, story: Story, now_ms: int) -> None:
        """The CDR of a finished Session, once its signature is there or given up."""
        place = self.catalog.at_board(story.station_id, story.evse)
        if place is None or story.token is None:
            return
        snapshot = self._snapshot(db, row, place, story.token)
        told = self._render(db, story, place, snapshot, row.live_wh)
        if told is not None:
            self._make_cdr(db, story, told, snapshot, row.owner or "", now_ms)

    def _snapshot(
        self, db: Db, row: SessionRow, place: Place, token: messages.Token
    ) -> dict[str, Any]:
        snapshot: dict[str, Any] = ocpi.loads(row.snapshot)
        uid, card = place.evse.uid, f"{owner_of(token)}/{token.type}/{token.uid}".lower()
        places, contracts = snapshot.setdefault("places", {}), snapshot.setdefault("contracts", {})
        if uid not in places:
            tariff_ids = place.evse.connectors[0].tariff_ids or []
            tariff = self.catalog.show_tariff(db, tariff_ids[0]) if tariff_ids else None
            places[uid] = {"cdr_location": _cdr_location(place), "tariff": tariff}
        if card not in contracts:
            known = db.get(TokenRow, (owner_of(token), token.type, token.uid.lower()))
            contracts[card] = known.contract_id if known else "#NA"
        row.snapshot = ocpi.dumps(snapshot)
        here: dict[str, Any] = places[uid]
        return here | {"contract_id": contracts[card]}

    def _render(
        self, db: Db, story: Story, place: Place, snapshot: dict[str, Any], live_wh: int
    ) -> Told | None:
        when = _dates(db)

        def date(moment: Moment) -> int | None:
            found = when(moment)
            return None if found is None else found.unix_ms

        reserved_ms = date(story.reserved) if story.reserved else None
        started_ms = date(story.started) if story.started else None
        begin_ms = started_ms if story.started else reserved_ms
        if begin_ms is None:
            return None
        end_ms = date(story.ended) if story.ended else None
        if end_ms is not None:
            end_ms = max(end_ms, begin_ms)
        ends = [when(m) for m in (story.reserved, story.started, story.ended) if m]
        err_ms = max(found.err_ms for found in ends if found)
        tariff = snapshot["tariff"]
        periods: list[dict[str, Any]] = []
        if reserved_ms is not None and (story.started or end_ms is not None):
            until_ms = begin_ms if story.started else end_ms
            span_ms = max(0, (until_ms or reserved_ms) - reserved_ms)
            periods.append(
                {
                    "start_date_time": ocpi.format_datetime(reserved_ms),
                    "dimensions": [{"type": "RESERVATION_TIME", "volume": ocpi.hours(span_ms)}],
                }
            )
        parking_ms, floor_ms, complete = 0, begin_ms, True
        for period in story.periods:
            from_ms, to_ms = date(period.start), date(period.end)
            if from_ms is None or to_ms is None:
                complete = False
                break
            duration_ms = max(0, to_ms - from_ms)
            floor_ms = max(floor_ms, from_ms)
            if period.kind != "charging":
                parking_ms += duration_ms
            shown = {
                "start_date_time": ocpi.format_datetime(floor_ms),
                "dimensions": dimensions(period, duration_ms),
            }
            periods.append(shown | ({"tariff_id": tariff["id"]} if tariff else {}))
        ended = end_ms is not None and complete
        wh = story.total_wh if ended else max(story.total_wh, live_wh if story.started else 0)
        status = "COMPLETED" if ended else ("ACTIVE" if story.started else "RESERVATION")
        token = story.token
        assert token is not None
        session: dict[str, Any] = {
            "country_code": self.config.party.country_code,
            "party_id": self.config.party.party_id,
            "id": story.session_id,
            "start_date_time": ocpi.format_datetime(begin_ms),
            "kwh": ocpi.kwh(wh),
            "cdr_token": {
                "country_code": token.country_code,
                "party_id": token.party_id,
                "uid": token.uid,
                "type": token.type,
                "contract_id": snapshot["contract_id"],
            },
            "auth_method": story.auth_method or "WHITELIST",
            "location_id": place.location.id,
            "evse_uid": place.evse.uid,
            "connector_id": place.evse.connectors[0].id,
            "currency": tariff["currency"] if tariff else self.config.currency,
            "charging_periods": periods,
            "status": status,
        }
        if ended and end_ms is not None:
            session["end_date_time"] = ocpi.format_datetime(end_ms)
        if story.authorization_reference:
            session["authorization_reference"] = story.authorization_reference
        if story.meter_id:
            session["meter_id"] = story.meter_id
        cost = cost_of(tariff, wh)
        if cost is not None:
            session["total_cost"] = cost
        return Told(session, end_ms if ended else None, begin_ms, reserved_ms, parking_ms, err_ms)

    def _make_cdr(
        self, db: Db, story: Story, told: Told, snapshot: dict[str, Any], owner: str, now_ms: int
    ) -> None:
        if db.get(CdrRow, story.session_id) is not None or told.end_ms is None:
            return
        if signatures.awaited(db, story.session_id, story.signatures, now_ms):
            return
        session = told.session
        tariff = snapshot["tariff"]
        zero = {"excl_vat": Decimal(0)}
        cost = cost_of(tariff, story.total_wh) or zero
        start_ms = told.start_ms if told.reserved_ms is None else told.reserved_ms
        # A session that ended before its first period was cut still has one, as OCPI asks.
        periods = session["charging_periods"] or [
            {
                "start_date_time": session["start_date_time"],
                "dimensions": [{"type": "ENERGY", "volume": ocpi.kwh(story.total_wh)}],
            }
        ]
        kept = ("country_code", "party_id", "cdr_token", "auth_method", "currency")
        optional = ("authorization_reference", "meter_id")
        cdr: dict[str, Any] = {
            **{name: session[name] for name in kept},
            **{name: session[name] for name in optional if name in session},
            "id": story.session_id,
            "start_date_time": ocpi.format_datetime(start_ms),
            "end_date_time": session["end_date_time"],
            "session_id": story.session_id,
            "cdr_location": snapshot["cdr_location"],
            "charging_periods": periods,
            "total_cost": cost,
            "total_energy": ocpi.kwh(story.total_wh),
            "total_energy_cost": cost,
            "total_time": ocpi.hours(told.end_ms - told.start_ms if story.started else 0),
            "total_parking_time": ocpi.hours(told.parking_ms),
            "remark": _remark(story, told.err_ms),
            "last_updated": ocpi.format_datetime(now_ms),
        }
        if story.booking_id is not None:
            cdr["booking_id"] = story.booking_id  # of the 2.3.0 extension
        if tariff:
            cdr["tariffs"] = [tariff]
        signed_data = story.signatures.signed_data()
        if signed_data is not None:
            cdr["signed_data"] = signed_data
        text = ocpi.dumps(cdr)
        number = 1 + (db.scalar(select(func.max(CdrRow.number))) or 0)
        db.add(
            CdrRow(
                id=story.session_id,
                number=number,
                session_id=story.session_id,
                owner=owner,
                object=text,
                last_updated_ms=now_ms,
            )
        )
        outbox.tell_cdr(db, story.session_id, text, owner, now_ms)


def _dates(db: Db) -> Callable[[Moment], When | None]:
    """When a moment of whichever station was, within one transaction."""
    timelines: dict[str, Timeline] = {}

    def date(moment: Moment) -> When | None:
        station_id = moment[0]
        if station_id not in timelines:
            timelines[station_id] = Timeline(db, station_id)
        return timelines[station_id].when(*moment[1:])

    return date


def _same(before: dict[str, Any], session: dict[str, Any]) -> bool:
    return {name: before[name] for name in before if name != "last_updated"} == session


def _remark(story: Story, err_ms: int) -> str:
    text = f"ended by: {story.end_cause}"
    if err_ms >= UNSURE_MS:
        text += f"; start and end are known to within {-(-err_ms // 60_000)} minutes"
    if sum(period.wh for period in story.periods) != story.total_wh and story.periods:
        text += "; charging periods are incomplete, total_energy is the meter's"
    if story.export_wh:
        text += f"; fed back: {ocpi.kwh(story.export_wh)} kWh, not part of total_energy"
    return (text + story.signatures.remark())[:255]


def _cdr_location(place: Place) -> dict[str, Any]:
    location, evse, connector = place.location, place.evse, place.evse.connectors[0]
    shown = {
        "id": location.id,
        "name": location.name,
        "address": location.address[:45],
        "city": location.city,
        "postal_code": location.postal_code,
        "state": location.state[:20] if location.state else None,
        "country": location.country,
        "coordinates": location.coordinates.dump(),
        "evse_uid": evse.uid,
        "evse_id": evse.evse_id or "#NA",
        "connector_id": connector.id,
        "connector_standard": connector.standard,
        "connector_format": connector.format,
        "connector_power_type": connector.power_type,
    }
    return {name: value for name, value in shown.items() if value is not None}
