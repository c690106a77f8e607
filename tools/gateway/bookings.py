"""Bookings: time slots in advance, from the eMSP's request to the board's own list.

Purpose: the OCPI 2.3.0 bookings extension (sender side), and what keeps the boards' slots as the
bookings are.
Theory: a booking is RESERVED when its board has written the slot down, not before: only then the
place is kept, whatever becomes of gateway and network. Until then it is PENDING, also while the
board is away; one that was still PENDING at its start has FAILED. What a board should hold (the
nearest `HELD` slots of each EVSE) is compared with what it said it holds; the difference travels
as SET_BOOKINGS from one version to the next. A board that does not know the version REJECTs, and
gets its list anew. What became of a booking is the board's word: FULFILLED with the start that
names it, NO_SHOW when it let the slot go.

Rules
1. A change or a cancellation is a new request under the same `request_id`. Later than the terms
   allow: the request is DECLINED, the booking stays RESERVED.
2. Two bookings of an EVSE keep at least the guard time between them; a slot is a whole number of
   `timeslot_increment`s, and not longer or shorter than the terms say.
3. With several EVSEs under one BookingLocation a booking is open: the first free EVSE is assigned.
   One that is out of order half an hour before the slot is exchanged for a free one, else the
   booking is CANCELED (BROKEN_CHARGER).
4. A booking makes no Session. Its `authorization_reference` reaches Session and CDR with the
   start.
5. Tokens are the sender's own, at most three; tokens of their group only where the terms say so
   and the group was told over the tokens module.

Limits: the module is offered among the endpoints of 2.2.1, to platforms that have it themselves;
fees (no-show, cancellation, overtime) are not billed, and terms that announce one are refused at
the start; `power_required` is kept and not acted on.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session as Db

from tools.gateway import ocpi, outbox, whitelist
from tools.gateway import ocpi_bookings as shapes
from tools.gateway.catalog import Catalog, Place
from tools.gateway.config import BookingLocationConfig, Config
from tools.gateway.desk import Desk
from tools.gateway.store import (
    BookingHeld,
    BookingLocationRow,
    BookingRow,
    BookingSync,
    Command,
    Evse,
    Reservation,
    Station,
    TokenRow,
)
from tools.gateway.transport import INVALID, UNKNOWN_LOCATION, Caller, OcpiError

HELD = 8
PUT_MAX = 2
DROP_MAX = 16
TOKENS_MAX = 3
OPEN = ("PENDING", "RESERVED")
MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS
EXCHANGE_MS = 30 * MINUTE_MS
OUT_OF_SERVICE = ("OUTOFORDER", "INOPERATIVE", "REMOVED")


class Bookings:
    """The rules; booking_routes.py is their OCPI face."""

    def __init__(self, config: Config, catalog: Catalog, desk: Desk) -> None:
        self._config = config
        self._catalog = catalog
        self._desk = desk
        self.locations = {entry.id.lower(): entry for entry in config.booking_locations}

    def install(self, db: Db, now_ms: int) -> None:
        for entry in self.locations.values():
            digest = hashlib.sha256(entry.model_dump_json().encode()).hexdigest()
            row = db.get(BookingLocationRow, entry.id)
            if row is None:
                row = BookingLocationRow(id=entry.id, digest="", last_updated_ms=0)
                db.add(row)
            if row.digest != digest:
                row.digest = digest
                row.last_updated_ms = max(now_ms, row.last_updated_ms + 1)
            for uid in entry.evse_uids:
                if db.get(BookingSync, self._place(uid).evse.uid) is None:
                    db.add(BookingSync(evse_uid=self._place(uid).evse.uid, version=0))

    def _place(self, uid: str) -> Place:
        place = self._catalog.place(uid)
        assert place is not None, f"{uid}: the configuration was checked"
        return place

    # --- what is free

    def _busy(self, db: Db, uid: str, but: str = "") -> list[BookingRow]:
        return list(
            db.scalars(
                select(BookingRow)
                .where(
                    BookingRow.evse_uid == uid,
                    BookingRow.status.in_(OPEN),
                    BookingRow.id != but,
                )
                .order_by(BookingRow.start_ms)
            )
        )

    def _free(
        self, db: Db, entry: BookingLocationConfig, uid: str, now_ms: int
    ) -> list[tuple[int, int]]:
        """Spans in which a booking of this EVSE can lie."""
        step_ms = entry.timeslot_increment_minutes * MINUTE_MS
        guard_ms = entry.guard_minutes * MINUTE_MS
        begin_ms = -(-now_ms // step_ms) * step_ms
        end_ms = now_ms // DAY_MS * DAY_MS + entry.horizon_days * DAY_MS
        spans = []
        for row in self._busy(db, uid):
            if row.start_ms - guard_ms - begin_ms >= step_ms:
                spans.append((begin_ms, (row.start_ms - guard_ms) // step_ms * step_ms))
            begin_ms = max(begin_ms, -(-(row.end_ms + guard_ms) // step_ms) * step_ms)
        if end_ms - begin_ms >= step_ms:
            spans.append((begin_ms, end_ms))
        return spans

    def _fits(
        self,
        db: Db,
        entry: BookingLocationConfig,
        uid: str,
        start_ms: int,
        end_ms: int,
        now_ms: int,
        but: str = "",
    ) -> bool:
        guard_ms = entry.guard_minutes * MINUTE_MS
        row = db.get_one(Evse, uid)
        soon = start_ms - guard_ms <= now_ms
        if soon and row.status not in ("AVAILABLE", "UNKNOWN") and not but:
            return False
        if row.status in OUT_OF_SERVICE and start_ms - now_ms < EXCHANGE_MS:
            return False
        if self._reserved_until(db, uid) > start_ms - guard_ms:
            return False
        return all(
            end_ms + guard_ms <= other.start_ms or other.end_ms + guard_ms <= start_ms
            for other in self._busy(db, uid, but)
        )

    def _reserved_until(self, db: Db, uid: str) -> int:
        """Expiry of the reservation that is in force at this EVSE, 0 without one."""
        board = self._place(uid).evse.board
        held = db.scalar(
            select(Reservation).where(
                Reservation.station_id == board.station_id,
                Reservation.evse == board.evse,
                Reservation.accepted,
            )
        )
        return 0 if held is None else int(ocpi.loads(held.wish or "{}").get("expiry_ms", 0))

    # --- as OCPI shows it

    def show_location(self, db: Db, entry: BookingLocationConfig, now_ms: int) -> dict[str, Any]:
        row = db.get_one(BookingLocationRow, entry.id)
        stamp = ocpi.format_datetime(row.last_updated_ms)
        uids = [self._place(uid).evse.uid for uid in entry.evse_uids]
        shown: dict[str, Any] = {
            "country_code": self._config.party.country_code,
            "party_id": self._config.party.party_id,
            "id": entry.id,
            "location_id": self._place(uids[0]).location.id,
            "booking_option": {"evse_uid": uids[0] if len(uids) == 1 else shapes.NOT_ASSIGNED},
            "policy": {"reservation_required": False},
            "booking_terms": entry.terms.dump(),
            "calendars": [],
            "last_updated": stamp,
        }
        if entry.tariff_ids:
            shown["tariff_ids"] = entry.tariff_ids
        for uid in uids:
            slots = [
                {
                    "start_date_time": ocpi.format_datetime(begin_ms),
                    "end_date_time": ocpi.format_datetime(end_ms),
                    "max_power": _power_w(self._place(uid)),
                }
                for begin_ms, end_ms in self._free(db, entry, uid, now_ms)
            ]
            if slots:
                shown["calendars"].append(
                    {
                        "id": uid,
                        "begin_from": ocpi.format_datetime(now_ms // DAY_MS * DAY_MS),
                        "end_before": ocpi.format_datetime(
                            now_ms // DAY_MS * DAY_MS + entry.horizon_days * DAY_MS
                        ),
                        "timeslot_increment": entry.timeslot_increment_minutes,
                        "available_timeslots": slots,
                        "last_updated": stamp,
                    }
                )
        return shown

    def show(self, db: Db, location_id: str, now_ms: int) -> dict[str, Any]:
        """As `show_location`, by id; empty where it is not configured any more."""
        entry = self.locations.get(location_id.lower())
        return {} if entry is None else self.show_location(db, entry, now_ms)

    # --- an eMSP asks

    def request(
        self, db: Db, caller: Caller, body: shapes.BookingRequest, now_ms: int
    ) -> tuple[dict[str, Any], str]:
        """The Booking after this request, and why where it is not granted."""
        if f"{body.country_code}-{body.party_id}".upper() != caller.sender:
            raise OcpiError(INVALID, f"party_id: {body.party_id} is not who asks")
        entry = self.locations.get(body.booking_location_id.lower())
        if entry is None:
            text = f"booking_location_id: {body.booking_location_id} is unknown"
            raise OcpiError(UNKNOWN_LOCATION, text)
        if entry.location_id.lower() != body.location_id.lower():
            raise OcpiError(INVALID, f"location_id: {entry.id} is at {entry.location_id}")
        row = db.scalar(
            select(BookingRow).where(
                BookingRow.owner == caller.sender,
                BookingRow.request_id == body.request_id.lower(),
            )
        )
        if row is None:
            if body.canceled is not None:
                raise OcpiError(INVALID, f"request_id: {body.request_id} was never booked")
            return self._book(db, caller, entry, body, now_ms)
        shown: dict[str, Any] = ocpi.loads(row.object)
        asked = ocpi.loads(ocpi.dumps(body.dump()))
        if shown["booking_requests"][-1]["booking_request"] == asked:
            return shown, ""  # the same again: its answer got lost
        if row.status not in OPEN:
            why = f"the booking is {row.status}"
        elif body.canceled is not None:
            why = self._cancel(db, row, entry, body.canceled, now_ms)
        else:
            why = self._change(db, row, entry, body, now_ms)
        status = "DECLINED" if why else "ACCEPTED"
        if not why and body.canceled is None:
            status = "PENDING"
        shown = ocpi.loads(row.object)
        shown["booking_requests"].append(_asked(asked, status, now_ms))
        self._keep(db, row, shown, now_ms)
        return shown, why

    def _book(
        self,
        db: Db,
        caller: Caller,
        entry: BookingLocationConfig,
        body: shapes.BookingRequest,
        now_ms: int,
    ) -> tuple[dict[str, Any], str]:
        start_ms, end_ms = _span(body)
        why = self._objection(db, caller.sender, entry, body, now_ms, "")
        uid = self._choose(db, entry, body, now_ms, "")
        if not why and uid is None:
            why = "period: no such time slot is free"
        uid = uid or self._place(entry.evse_uids[0]).evse.uid
        booking_id = str(uuid.uuid4())
        asked = ocpi.loads(ocpi.dumps(body.dump()))
        shown: dict[str, Any] = {
            "id": booking_id,
            "country_code": self._config.party.country_code,
            "party_id": self._config.party.party_id,
            "request_id": body.request_id,
            "booking_option": asked.get("booking_option", {})
            | {"evse_uid": shapes.NOT_ASSIGNED if why else uid},
            "location_id": self._place(uid).location.id,
            "booking_tokens": asked["tokens"],
            "period": asked["period"],
            "reservation_status": "REJECTED" if why else "PENDING",
            "authorization_reference": body.authorization_reference,
            "booking_terms": entry.terms.dump(),
            "booking_requests": [_asked(asked, "DECLINED" if why else "PENDING", now_ms)],
        }
        for name in ("tariff_ids", "access_information"):
            value = entry.tariff_ids if name == "tariff_ids" else asked.get(name)
            if value:
                shown[name] = value
        row = BookingRow(
            id=booking_id,
            number=1 + (db.scalar(select(func.max(BookingRow.number))) or 0),
            owner=caller.sender,
            request_id=body.request_id.lower(),
            booking_location_id=entry.id,
            evse_uid=uid,
            status="",
            start_ms=start_ms,
            end_ms=end_ms,
            slot=ocpi.dumps(self._slot(db, entry, booking_id, body)),
            object="",
            last_updated_ms=0,
        )
        db.add(row)
        self._keep(db, row, shown, now_ms)
        self.sync(db, now_ms)
        return shown, why

    def _objection(
        self,
        db: Db,
        sender: str,
        entry: BookingLocationConfig,
        body: shapes.BookingRequest,
        now_ms: int,
        but: str,
    ) -> str:
        """Why the terms do not allow this booking; empty where they do."""
        start_ms, end_ms = _span(body)
        terms, minutes = entry.terms, (end_ms - start_ms) // MINUTE_MS
        if start_ms < now_ms:
            return "period: begins in the past"
        if end_ms > now_ms // DAY_MS * DAY_MS + entry.horizon_days * DAY_MS:
            return f"period: at most {entry.horizon_days} days ahead can be booked"
        if (start_ms // MINUTE_MS) % entry.timeslot_increment_minutes or (
            minutes % entry.timeslot_increment_minutes
        ):
            return f"period: use steps of {entry.timeslot_increment_minutes} minutes"
        if minutes < (terms.min_booking_duration or 0):
            return f"period: is {minutes} minutes; at least {terms.min_booking_duration}"
        if terms.max_booking_duration is not None and minutes > terms.max_booking_duration:
            return f"period: is {minutes} minutes; at most {terms.max_booking_duration}"
        if not 1 <= len(body.tokens) <= TOKENS_MAX:
            return f"tokens: name 1 to {TOKENS_MAX}"
        for token in body.tokens:
            if f"{token.country_code}-{token.party_id}".upper() != sender:
                return f"tokens: {token.uid} is not yours"
        if not terms.overlapping_bookings_allowed and self._twice(db, sender, body, but):
            return "tokens: one of them has a booking at that time"
        return ""

    def _twice(self, db: Db, sender: str, body: shapes.BookingRequest, but: str) -> bool:
        start_ms, end_ms = _span(body)
        others = db.scalars(
            select(BookingRow).where(
                BookingRow.owner == sender,
                BookingRow.status.in_(OPEN),
                BookingRow.id != but,
                BookingRow.start_ms < end_ms,
                BookingRow.end_ms > start_ms,
            )
        )
        mine = {(token.type, token.uid.lower()) for token in body.tokens}
        return any(
            (token["type"], token["uid"].lower()) in mine
            for other in others
            for token in ocpi.loads(other.object)["booking_tokens"]
        )

    def _choose(
        self,
        db: Db,
        entry: BookingLocationConfig,
        body: shapes.BookingRequest,
        now_ms: int,
        but: str,
        first: str | None = None,
    ) -> str | None:
        """An EVSE that is free then: the one that is asked for, or `first`, or any."""
        start_ms, end_ms = _span(body)
        asked = body.booking_option.evse_uid if body.booking_option else None
        uids = [self._place(uid).evse.uid for uid in entry.evse_uids]
        if asked not in (None, shapes.NOT_ASSIGNED):
            uids = [uid for uid in uids if uid.lower() == str(asked).lower()]
        elif first in uids:
            uids.sort(key=lambda uid: uid != first)
        for uid in uids:
            if self._fits(db, entry, uid, start_ms, end_ms, now_ms, but):
                return uid
        return None

    def _change(
        self,
        db: Db,
        row: BookingRow,
        entry: BookingLocationConfig,
        body: shapes.BookingRequest,
        now_ms: int,
    ) -> str:
        terms = entry.terms
        if terms.change_not_allowed:
            return "booking_terms: a booking cannot be changed"
        if row.start_ms - now_ms < terms.change_until_minutes * MINUTE_MS:
            return f"booking_terms: changes until {terms.change_until_minutes} minutes before"
        if row.status == "PENDING" or self._pending_request(row):
            return "booking_requests: one is PENDING; wait for its end"
        why = self._objection(db, row.owner, entry, body, now_ms, row.id)
        uid = self._choose(db, entry, body, now_ms, row.id, row.evse_uid)
        if why or uid is None:
            return why or "period: no such time slot is free"
        row.evse_uid = uid
        row.start_ms, row.end_ms = _span(body)
        row.slot = ocpi.dumps(self._slot(db, entry, row.id, body))
        db.flush()
        self.sync(db, now_ms)
        return ""

    def _pending_request(self, row: BookingRow) -> bool:
        return ocpi.loads(row.object)["booking_requests"][-1]["request_status"] == "PENDING"

    def _cancel(
        self,
        db: Db,
        row: BookingRow,
        entry: BookingLocationConfig,
        canceled: shapes.Cancellation,
        now_ms: int,
    ) -> str:
        until = entry.terms.cancel_until_minutes
        if row.start_ms - now_ms < until * MINUTE_MS:
            return f"booking_terms: cancellation until {until} minutes before"
        self._end(db, row, "CANCELED", now_ms, canceled.dump())
        return ""

    def cancel(self, db: Db, booking_id: str, reason: str, now_ms: int) -> bool:
        """The operator's own cancellation. False: there is nothing to cancel."""
        row = db.get(BookingRow, booking_id)
        if row is None or row.status not in OPEN:
            return False
        canceled = shapes.Cancellation.model_validate(
            {"cancellation_reason": reason, "who_canceled": "CPO"}
        )
        self._end(db, row, "CANCELED", now_ms, canceled.dump())
        return True

    def _slot(
        self, db: Db, entry: BookingLocationConfig, booking_id: str, body: shapes.BookingRequest
    ) -> dict[str, Any]:
        terms = entry.terms
        start_ms, end_ms = _span(body)
        slot: dict[str, Any] = {
            "booking_id": booking_id,
            "start_ms": start_ms,
            "end_ms": end_ms,
            "guard_ms": entry.guard_minutes * MINUTE_MS,
            "tokens": [self._card(db, terms, token) for token in body.tokens],
            "authorization_reference": body.authorization_reference,
        }
        if terms.early_start_allowed:
            slot["early_ms"] = (terms.early_start_time or 0) * MINUTE_MS
        if terms.late_stop_allowed:
            slot["late_ms"] = (terms.late_stop_time or 0) * MINUTE_MS
        if terms.noshow_timeout:
            slot["noshow_ms"] = terms.noshow_timeout * MINUTE_MS
        if terms.remote_auth_supported:
            slot["remote"] = True
        return slot

    def _card(
        self, db: Db, terms: shapes.BookingTerms, token: shapes.BookingToken
    ) -> dict[str, Any]:
        card: dict[str, Any] = {
            "country_code": token.country_code,
            "party_id": token.party_id,
            "type": token.type,
            "uid": token.uid,
        }
        owner = f"{token.country_code}-{token.party_id}".upper()
        known = db.get(TokenRow, (owner, token.type, token.uid.lower()))
        if known is None:
            # Session and CDR name its contract
            db.add(
                TokenRow(
                    owner=owner,
                    type=token.type,
                    uid=token.uid.lower(),
                    contract_id=token.contract_id,
                    pushed=False,
                    object=ocpi.dumps(token.dump()),
                    last_updated_ms=0,
                )
            )
        elif terms.token_groups_supported and known.pushed:
            group = whitelist.group_name(owner, ocpi.loads(known.object).get("group_id"))
            if group:
                card["group_id"] = group
        return card

    # --- what becomes of them

    def _keep(self, db: Db, row: BookingRow, shown: dict[str, Any], now_ms: int) -> None:
        """Write the Booking and let its party and the readers of the calendar hear of it."""
        row.last_updated_ms = max(now_ms, row.last_updated_ms + 1)
        shown["last_updated"] = ocpi.format_datetime(row.last_updated_ms)
        row.status = shown["reservation_status"]
        row.object = ocpi.dumps(shown)
        place = db.get_one(BookingLocationRow, row.booking_location_id)
        place.last_updated_ms = max(now_ms, place.last_updated_ms + 1)
        db.flush()
        outbox.tell_booking(db, row.id, row.owner, now_ms)
        outbox.tell_booking_location(db, row.booking_location_id, now_ms)

    def _end(
        self,
        db: Db,
        row: BookingRow,
        status: str,
        now_ms: int,
        canceled: dict[str, Any] | None = None,
    ) -> None:
        shown = ocpi.loads(row.object)
        shown["reservation_status"] = status
        if canceled is not None:
            shown["canceled"] = canceled
        last = shown["booking_requests"][-1]
        if last["request_status"] == "PENDING":
            last["request_status"] = "FAILED" if status == "FAILED" else "DECLINED"
        self._keep(db, row, shown, now_ms)
        self.sync(db, now_ms)

    def on_start(self, db: Db, uid: str, booking_id: str, now_ms: int) -> None:
        """A session began under this booking; the board lets go of the slot with its end."""
        self._let_go(db, uid, booking_id)
        row = db.get(BookingRow, booking_id)
        if row is not None and row.status in OPEN:
            self._end(db, row, "FULFILLED", now_ms)

    def on_unbooked(self, db: Db, uid: str, booking_id: str, now_ms: int) -> None:
        """The board let the slot go: nobody came in time."""
        self._let_go(db, uid, booking_id)
        row = db.get(BookingRow, booking_id)
        if row is not None and row.status in OPEN and row.evse_uid == uid:
            self._end(db, row, "NO_SHOW", now_ms)

    def _let_go(self, db: Db, uid: str, booking_id: str) -> None:
        held = db.get(BookingHeld, (uid, booking_id))
        if held is not None:
            db.delete(held)
            db.flush()

    def on_result(self, db: Db, command: Command, now_ms: int) -> None:
        """The board took a SET_BOOKINGS, or did not."""
        sync = db.scalar(select(BookingSync).where(BookingSync.command_id == command.id))
        if sync is None:
            return
        sync.command_id = None
        data = ocpi.loads(command.data)
        if command.result != "ACCEPTED":
            sync.version = 0
            if not data["base"]:
                self._refused(db, [slot["booking_id"] for slot in data["put"]], now_ms)
        else:
            sync.version = data["version"]
            if not data["base"]:
                db.execute(delete(BookingHeld).where(BookingHeld.evse_uid == sync.evse_uid))
            for booking_id in data["drop"]:
                self._let_go(db, sync.evse_uid, booking_id)
            for slot in data["put"]:
                self._took(db, sync.evse_uid, slot, now_ms)
        self.sync(db, now_ms)

    def _took(self, db: Db, uid: str, slot: dict[str, Any], now_ms: int) -> None:
        text = ocpi.dumps(slot)
        db.merge(BookingHeld(evse_uid=uid, booking_id=slot["booking_id"], slot=text))
        row = db.get(BookingRow, slot["booking_id"])
        if row is None or row.status not in OPEN or row.evse_uid != uid or row.slot != text:
            return
        shown = ocpi.loads(row.object)
        last = shown["booking_requests"][-1]
        if last["request_status"] == "PENDING":
            asked = last["booking_request"]
            last["request_status"] = "ACCEPTED"
            shown["period"] = asked["period"]
            shown["booking_tokens"] = asked["tokens"]
            shown["authorization_reference"] = asked["authorization_reference"]
        elif row.status == "RESERVED" and shown["booking_option"]["evse_uid"] == uid:
            return
        shown["booking_option"]["evse_uid"] = uid
        shown["reservation_status"] = "RESERVED"
        self._keep(db, row, shown, now_ms)

    def _refused(self, db: Db, ids: list[str], now_ms: int) -> None:
        """The board does not take these at all."""
        for booking_id in ids:
            row = db.get(BookingRow, booking_id)
            if row is None:
                continue
            if row.status == "PENDING":
                self._end(db, row, "FAILED", now_ms)
            elif row.status == "RESERVED":
                self.cancel(db, booking_id, "UNKNOWN", now_ms)

    # --- the boards' lists

    def sync(self, db: Db, now_ms: int) -> None:
        """Queue what boards must learn: for each EVSE one SET_BOOKINGS at a time."""
        for sync in db.scalars(select(BookingSync)).all():
            place = self._catalog.place(sync.evse_uid)
            if place is None or sync.command_id is not None:
                continue
            station = db.get_one(Station, place.evse.board.station_id)
            if not station.online or station.quarantine is not None:
                continue
            self._sync_evse(db, sync, place, now_ms)

    def _sync_evse(self, db: Db, sync: BookingSync, place: Place, now_ms: int) -> None:
        uid = place.evse.uid
        open_rows = [row for row in self._busy(db, uid) if row.end_ms > now_ms]
        wanted = {row.id: row.slot for row in open_rows[:HELD]}
        held = {
            row.booking_id: row.slot
            for row in db.scalars(select(BookingHeld).where(BookingHeld.evse_uid == uid))
        }
        if not sync.version:
            if not wanted and not held:
                return  # nothing was ever said
            held = {}
        put = [ocpi.loads(slot) for key, slot in wanted.items() if held.get(key) != slot][:PUT_MAX]
        drop = [key for key in held if key not in wanted][:DROP_MAX]
        if sync.version and not put and not drop:
            return
        data: dict[str, Any] = {
            "evse": place.evse.board.evse,
            "base": sync.version,
            # also above what a lost database had given out
            "version": max(sync.version + 1, now_ms),
            "put": put,
            "drop": drop,
        }
        command = self._desk.queue(db, place.evse.board.station_id, "SET_BOOKINGS", data, now_ms)
        sync.command_id = command.id
        db.flush()

    def tick(self, db: Db, now_ms: int) -> None:
        """What time brings: commands that got no answer, starts that nobody confirmed, EVSEs that
        fail before a slot."""
        for sync in db.scalars(select(BookingSync).where(BookingSync.command_id.is_not(None))):
            command = db.get(Command, str(sync.command_id))
            if command is None or command.state == "timeout":
                sync.command_id = None
                sync.version = 0  # it may have been heard all the same
        near = db.scalars(
            select(BookingRow).where(
                BookingRow.status.in_(OPEN), BookingRow.start_ms < now_ms + EXCHANGE_MS
            )
        ).all()
        for row in near:
            if row.status == "PENDING" and row.start_ms <= now_ms:
                self._end(db, row, "FAILED", now_ms)
            elif row.start_ms > now_ms and db.get_one(Evse, row.evse_uid).status in OUT_OF_SERVICE:
                self._exchange(db, row, now_ms)
        self.sync(db, now_ms)

    def _exchange(self, db: Db, row: BookingRow, now_ms: int) -> None:
        entry = self.locations.get(row.booking_location_id.lower())
        uids = [] if entry is None else [self._place(uid).evse.uid for uid in entry.evse_uids]
        for uid in uids:
            assert entry is not None
            well = db.get_one(Evse, uid).status not in OUT_OF_SERVICE
            if well and self._fits(db, entry, uid, row.start_ms, row.end_ms, now_ms, row.id):
                row.evse_uid = uid
                db.flush()
                return
        canceled = {"cancellation_reason": "BROKEN_CHARGER", "who_canceled": "CPO"}
        self._end(db, row, "CANCELED", now_ms, canceled)


def _asked(asked: dict[str, Any], status: str, now_ms: int) -> dict[str, Any]:
    return {
        "request_status": status,
        "booking_request": asked,
        "request_received": ocpi.format_datetime(now_ms),
    }


def _span(body: shapes.BookingRequest) -> tuple[int, int]:
    period = body.period
    return ocpi.parse_datetime(period.start_date_time), ocpi.parse_datetime(period.end_date_time)


def _power_w(place: Place) -> int:
    connector = place.evse.connectors[0]
    phases = 3 if connector.power_type == "AC_3_PHASE" else 1
    # OCPI: max_voltage is line to neutral for three phases
    calculated = connector.max_voltage * connector.max_amperage * phases
    return connector.max_electric_power or calculated
