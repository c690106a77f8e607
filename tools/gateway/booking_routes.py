"""The OCPI face of bookings: the module `Booking` of the 2.3.0 extension, sender side.

Purpose: `booking_locations` with their calendars, `bookings`, and the request for one. The rules
are in bookings.py.
Limits: the text has no GET of one Booking at the CPO, so there is none. A Calendar's id is the uid
of its EVSE.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from tools.gateway import ocpi
from tools.gateway import ocpi_bookings as shapes
from tools.gateway.config import BookingLocationConfig
from tools.gateway.context import Context
from tools.gateway.store import BookingLocationRow, BookingRow, Station
from tools.gateway.transport import (
    INVALID,
    UNKNOWN_LOCATION,
    Caller,
    OcpiError,
    envelope,
    json_body,
    page,
    page_of,
    valid,
)


def router(context: Context) -> APIRouter:
    routes = APIRouter(prefix="/ocpi/2.3.0/bookings")
    bookings, limit_max = context.bookings, context.config.page_limit

    def listed(request: Request, items: list[tuple[int, Any]]) -> Response:
        wanted = page_of(request, limit_max)
        inside = [item for stamp_ms, item in items if wanted.holds(stamp_ms)]
        part = inside[wanted.offset : wanted.offset + wanted.limit]
        url = f"{context.base_url}{request.url.path}"
        return page(context.now_ms(), url, wanted, limit_max, part, len(inside))

    def entry_of(location_id: str) -> BookingLocationConfig:
        found = bookings.locations.get(location_id.lower())
        if found is None:
            text = f"booking_location_id: {location_id} is unknown"
            raise OcpiError(UNKNOWN_LOCATION, text, 404)
        return found

    @routes.get("/booking_locations")
    async def locations(request: Request) -> Response:
        begin = _moment(request, "timeslot_from", 0)
        end = _moment(request, "timeslot_to", 1 << 62)
        items = []
        with context.store() as db:
            for entry in bookings.locations.values():
                shown = bookings.show_location(db, entry, context.now_ms())
                if _has_slot(shown, begin, end):
                    stamp_ms = db.get_one(BookingLocationRow, entry.id).last_updated_ms
                    items.append((stamp_ms, shown))
        return listed(request, items)

    @routes.get("/booking_locations/{location_id}")
    async def location(location_id: str) -> Response:
        with context.store() as db:
            shown = bookings.show_location(db, entry_of(location_id), context.now_ms())
        return envelope(context.now_ms(), shown)

    @routes.get("/booking_locations/{location_id}/{calendar_id}")
    async def calendar(location_id: str, calendar_id: str) -> Response:
        with context.store() as db:
            shown = bookings.show_location(db, entry_of(location_id), context.now_ms())
        for entry in shown["calendars"]:
            if entry["id"].lower() == calendar_id.lower():
                return envelope(context.now_ms(), entry)
        raise OcpiError(UNKNOWN_LOCATION, f"calendar_id: {calendar_id} is unknown", 404)

    @routes.get("")
    async def mine(request: Request) -> Response:
        caller: Caller = request.state.caller
        with context.store() as db:
            rows = db.scalars(
                select(BookingRow)
                .where(BookingRow.owner.in_(caller.roles))
                .order_by(BookingRow.number)
            )
            items = [(row.last_updated_ms, ocpi.loads(row.object)) for row in rows]
        return listed(request, items)

    @routes.post("")
    async def ask(request: Request) -> Response:
        caller: Caller = request.state.caller
        body = valid(shapes.BookingRequest, await json_body(request))
        with context.store.begin() as db:
            shown, why = bookings.request(db, caller, body, context.now_ms())
            station_ids = set(db.scalars(select(Station.id).where(Station.online)))
        for station_id in station_ids:
            context.southbound.push(station_id)
        context.wake()
        return envelope(context.now_ms(), shown, text=why)

    return routes


def _moment(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    try:
        return default if text is None else ocpi.parse_datetime(text)
    except ValueError as error:
        raise OcpiError(INVALID, f"{name}: {error}") from None


def _has_slot(shown: dict[str, Any], begin_ms: int, end_ms: int) -> bool:
    if not begin_ms and end_ms == 1 << 62:
        return True
    return any(
        begin_ms <= ocpi.parse_datetime(slot["end_date_time"])
        and ocpi.parse_datetime(slot["start_date_time"]) < end_ms
        for calendar in shown["calendars"]
        for slot in calendar["available_timeslots"]
    )
