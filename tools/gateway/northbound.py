"""OCPI 2.2.1, CPO side: what eMSPs may read and write.

Purpose: versions, locations, sessions, cdrs, tariffs (sender) and tokens, commands (receiver).
Theory: a party sees its own: Sessions and CDRs whose token carries a (country_code, party_id) of
its credentials. Commands are checked here for what the CPO knows (place, owner, reachability) and
answered at once; the charge point's word follows to the `response_url`.
Limits: `date_from` of GET sessions may be left out (the standard requires it). Charging
preferences are not supported: no EVSE has the capability.
"""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session as Db

from tools.gateway import ocpi, ocpi_bookings
from tools.gateway.authorize import board_token, keep
from tools.gateway.catalog import Place
from tools.gateway.context import Context
from tools.gateway.placing import able, choose, reachable, spot
from tools.gateway.store import (
    CdrRow,
    Command,
    Record,
    Reservation,
    SessionRow,
    TariffRow,
    TokenRow,
)
from tools.gateway.transport import (
    CLIENT_ERROR,
    INVALID,
    UNKNOWN_LOCATION,
    Caller,
    OcpiError,
    Page,
    envelope,
    json_body,
    page,
    page_of,
    valid,
)

UNKNOWN_TOKEN = 2004
MODULES = (
    ("credentials", "SENDER"),
    ("locations", "SENDER"),
    ("sessions", "SENDER"),
    ("cdrs", "SENDER"),
    ("tariffs", "SENDER"),
    ("tokens", "RECEIVER"),
    ("commands", "RECEIVER"),
)


def caller_of(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


# --- versions


def versions_router(context: Context) -> APIRouter:
    routes = APIRouter(prefix="/ocpi")

    @routes.get("/versions")
    async def versions() -> Response:
        entry = {"version": ocpi.VERSION, "url": f"{context.base_url}/ocpi/{ocpi.VERSION}"}
        return envelope(context.now_ms(), [entry])

    @routes.get("/2.2.1")
    async def details(request: Request) -> Response:
        base = f"{context.base_url}/ocpi/{ocpi.VERSION}"
        # `{commands_endpoint_url}{command}`: this one URL is extended without a slash between.
        tail = {"commands": "commands/"}
        endpoints = [
            {"identifier": name, "role": role, "url": f"{base}/{tail.get(name, name)}"}
            for name, role in MODULES
        ]
        if context.config.booking_locations and _speaks_bookings(request.state.caller):
            url = f"{context.base_url}/ocpi/{ocpi_bookings.VERSION}/bookings"
            endpoints.append(
                {"identifier": ocpi_bookings.MODULE, "role": "SENDER", "url": url}
            )
        return envelope(context.now_ms(), {"version": ocpi.VERSION, "endpoints": endpoints})

    return routes


def _speaks_bookings(caller: Caller) -> bool:
    """To 2.2.1 the module is a custom one, which is shown to nobody who may not understand it
    (version_information_endpoint, Custom Modules): who has it among the own endpoints does."""
    known = [] if caller.party is None else ocpi.loads(caller.party.endpoints)
    return any(entry["identifier"] == ocpi_bookings.MODULE for entry in known)


# --- what the CPO owns


def sender_router(context: Context) -> APIRouter:
    routes = APIRouter(prefix="/ocpi/2.2.1")
    catalog, limit_max = context.catalog, context.config.page_limit

    def listed(request: Request, items: list[tuple[int, Any]]) -> Response:
        wanted = page_of(request, limit_max)
        inside = [item for stamp_ms, item in items if wanted.holds(stamp_ms)]
        part = inside[wanted.offset : wanted.offset + wanted.limit]
        return respond(request, wanted, part, len(inside))

    def respond(request: Request, wanted: Page, part: list[Any], total: int) -> Response:
        url = f"{context.base_url}{request.url.path}"
        return page(context.now_ms(), url, wanted, limit_max, part, total)

    def owned(request: Request, table: type[SessionRow] | type[CdrRow]) -> Response:
        wanted = page_of(request, limit_max)
        mine: list[ColumnElement[bool]] = [
            table.owner.in_(caller_of(request).roles),
            table.object.is_not(None),
        ]
        if wanted.from_ms is not None:
            mine.append(table.last_updated_ms >= wanted.from_ms)
        if wanted.to_ms is not None:
            mine.append(table.last_updated_ms < wanted.to_ms)
        with context.store() as db:
            total = db.scalar(select(func.count()).select_from(table).where(*mine)) or 0
            rows = db.scalars(
                select(table)
                .where(*mine)
                .order_by(table.number)
                .offset(wanted.offset)
                .limit(wanted.limit)
            )
            part = [ocpi.loads(row.object or "{}") for row in rows]
        return respond(request, wanted, part, total)

    @routes.get("/locations")
    async def locations(request: Request) -> Response:
        with context.store() as db:
            stamps = {row.id: row.last_updated_ms for row in catalog.location_rows(db)}
            items = [
                (stamps[location.id], catalog.show_location(db, location))
                for location in catalog.locations.values()
            ]
        return listed(request, items)

    @routes.get("/locations/{location_id}")
    async def location(location_id: str) -> Response:
        with context.store() as db:
            return envelope(
                context.now_ms(), catalog.show_location(db, _location(context, location_id))
            )

    @routes.get("/locations/{location_id}/{evse_uid}")
    async def evse(location_id: str, evse_uid: str) -> Response:
        with context.store() as db:
            place = _place(context, location_id, evse_uid)
            return envelope(context.now_ms(), catalog.show_evse(db, place))

    @routes.get("/locations/{location_id}/{evse_uid}/{connector_id}")
    async def connector(location_id: str, evse_uid: str, connector_id: str) -> Response:
        with context.store() as db:
            shown = catalog.show_evse(db, _place(context, location_id, evse_uid))
        for entry in shown["connectors"]:
            if entry["id"].lower() == connector_id.lower():
                return envelope(context.now_ms(), entry)
        raise OcpiError(UNKNOWN_LOCATION, f"connector_id: {connector_id} is unknown", 404)

    @routes.get("/sessions")
    async def sessions(request: Request) -> Response:
        return owned(request, SessionRow)

    @routes.get("/cdrs")
    async def cdrs(request: Request) -> Response:
        return owned(request, CdrRow)

    @routes.get("/tariffs")
    async def tariffs(request: Request) -> Response:
        with context.store() as db:
            items = [
                (db.get_one(TariffRow, tariff.id).last_updated_ms, catalog.show_tariff(db, key))
                for key, tariff in catalog.tariffs.items()
            ]
        return listed(request, items)

    return routes


def _location(context: Context, location_id: str, http: int = 404, data: Any = None) -> Any:
    found = context.catalog.location(location_id)
    if found is None:
        raise OcpiError(UNKNOWN_LOCATION, f"location_id: {location_id} is unknown", http, data)
    return found


def _place(
    context: Context, location_id: str, uid: str, http: int = 404, data: Any = None
) -> Place:
    location = _location(context, location_id, http, data)
    place = context.catalog.place(uid)
    if place is None or place.location is not location:
        code = UNKNOWN_LOCATION if http == 404 else INVALID
        raise OcpiError(code, f"evse_uid: {uid} is unknown at {location.id}", http, data)
    return place


# --- tokens


def tokens_router(context: Context) -> APIRouter:
    routes = APIRouter(prefix="/ocpi/2.2.1/tokens")

    def key_of(request: Request, country_code: str, party_id: str, uid: str) -> tuple[str, ...]:
        owner = f"{country_code}-{party_id}".upper()
        if owner not in caller_of(request).roles:
            raise OcpiError(CLIENT_ERROR, f"{owner} is no role of your platform", 404)
        kind = request.query_params.get("type", "RFID")
        if kind not in ocpi.TokenType.__args__:  # type: ignore[attr-defined]
            raise OcpiError(INVALID, f"type: {kind!r} is no TokenType")
        return owner, kind, uid.lower()

    @routes.get("/{country_code}/{party_id}/{uid}")
    async def show(request: Request, country_code: str, party_id: str, uid: str) -> Response:
        with context.store() as db:
            row = db.get(TokenRow, key_of(request, country_code, party_id, uid))
        if row is None or not row.pushed:
            raise OcpiError(UNKNOWN_TOKEN, f"token_uid: {uid} is unknown", 404)
        return envelope(context.now_ms(), ocpi.loads(row.object))

    @routes.put("/{country_code}/{party_id}/{uid}")
    async def put(request: Request, country_code: str, party_id: str, uid: str) -> Response:
        key = key_of(request, country_code, party_id, uid)
        token = valid(ocpi.Token, await json_body(request))
        new = _store_token(context, key, token)
        return envelope(context.now_ms(), http=201 if new else 200)

    @routes.patch("/{country_code}/{party_id}/{uid}")
    async def patch(request: Request, country_code: str, party_id: str, uid: str) -> Response:
        key = key_of(request, country_code, party_id, uid)
        change = await json_body(request)
        if not isinstance(change, dict) or "last_updated" not in change:
            raise OcpiError(INVALID, "last_updated: is required in a PATCH")
        with context.store() as db:
            row = db.get(TokenRow, key)
        if row is None or not row.pushed:
            raise OcpiError(UNKNOWN_TOKEN, f"token_uid: {uid} is unknown, PUT it first", 404)
        _store_token(context, key, valid(ocpi.Token, ocpi.loads(row.object) | change))
        return envelope(context.now_ms())

    return routes


def _store_token(context: Context, key: tuple[str, ...], token: ocpi.Token) -> bool:
    """True if it is new. The object must be what its URL says."""
    named = (f"{token.country_code}-{token.party_id}".upper(), token.type, token.uid.lower())
    if named != key:
        raise OcpiError(INVALID, f"token: body says {'/'.join(named)}, URL {'/'.join(key)}")
    with context.store.begin() as db:
        return keep(db, token, context.now_ms(), pushed=True)


# --- commands


def commands_router(context: Context) -> APIRouter:
    routes = APIRouter(prefix="/ocpi/2.2.1/commands")
    config = context.config

    def response(result: str, text: str = "") -> dict[str, Any]:
        answer: dict[str, Any] = {"result": result, "timeout": config.command_timeout_s}
        if text:
            answer["message"] = [{"language": "en", "text": text}]
        return answer

    rejected = response("REJECTED")

    def own(caller: Caller, token: ocpi.Token) -> bool:
        return f"{token.country_code}-{token.party_id}".upper() == caller.sender

    def find(db: Db, location_id: str, uid: str | None, capability: str) -> Place | None:
        """The EVSE that is named, else the best one; None where nobody can be asked. One that
        cannot do it at all ends the request."""
        location = _location(context, location_id, 200, rejected)
        if uid is None:
            if not any(able(evse, capability) for evse in location.evses):
                raise _Answered(response("NOT_SUPPORTED", f"no EVSE there is {capability}"))
            return choose(db, location, capability)
        place = _place(context, location_id, uid, 200, rejected)
        if not able(place.evse, capability):
            raise _Answered(response("NOT_SUPPORTED", f"{place.evse.uid} is not {capability}"))
        return place if reachable(db, place.evse.board.station_id) else None

    def remember(db: Db, token: ocpi.Token) -> None:
        """The contract of a token that came with a command: Session and CDR name it."""
        key = (f"{token.country_code}-{token.party_id}".upper(), token.type, token.uid.lower())
        if db.get(TokenRow, key) is None:
            keep(db, token, context.now_ms())

    def send(
        db: Db,
        caller: Caller,
        station_id: str,
        type: str,
        data: dict[str, Any],
        url: str,
        reservation_id: str | None = None,
    ) -> Command:
        return context.desk.queue(
            db,
            station_id,
            type,
            data,
            context.now_ms(),
            party_id=caller.party_id,
            sender=caller.sender,
            response_url=url,
            reservation_id=reservation_id,
        )

    def finish(answer: dict[str, Any], station_id: str | None = None) -> Response:
        if station_id is not None:
            context.southbound.push(station_id)
        context.wake()
        return envelope(context.now_ms(), answer)

    @routes.post("/RESERVE_NOW")
    async def reserve_now(request: Request) -> Response:
        caller = caller_of(request)
        body = valid(ocpi.ReserveNow, await json_body(request))
        expiry_ms = ocpi.parse_datetime(body.expiry_date)
        now_ms = context.now_ms()
        with context.store.begin() as db:
            _location(context, body.location_id, 200, rejected)
            key = reservation_key(caller.sender, body.location_id, body.reservation_id)
            row = db.get(Reservation, key)
            held = row is not None and context.desk.in_force(db, row)
            uid = body.evse_uid
            if row is not None and held and uid is None:
                at = context.catalog.at_board(row.station_id, row.evse)
                uid = at.evse.uid if at else None
            try:
                place = find(db, body.location_id, uid, "RESERVABLE")
            except _Answered as answer:
                return finish(answer.data)
            if expiry_ms <= now_ms:
                return finish(response("REJECTED", "expiry_date is past"))
            if not own(caller, body.token):
                return finish(response("REJECTED", "the token is not yours"))
            if place is None:
                return finish(response("REJECTED", "the charge point is offline"))
            station_id, evse = spot(place)
            away = row if held and row is not None and row.station_id != station_id else None
            if away is not None and not (away.accepted and reachable(db, away.station_id)):
                text = "the charge point that holds it cannot be asked to let go of it"
                return finish(response("REJECTED", text))
            if row is None:
                row = Reservation(id=key)
                db.add(row)
            row.sender = caller.sender
            row.emsp_id = body.reservation_id.lower()
            row.location_id = body.location_id.lower()
            if not held:
                row.station_id, row.evse = station_id, evse
                row.response_url = body.response_url
                row.created_ms = now_ms
                row.session_id = row.wish = None
            row.party_id = caller.party_id
            if not row.accepted or (row.station_id, row.evse) == (station_id, evse):
                row.named = body.evse_uid is not None  # else once it is placed there
            remember(db, body.token)
            wish: dict[str, Any] = {
                "reservation_id": row.id,
                "token": board_token(body.token),
                "expiry_ms": expiry_ms,
            }
            if body.authorization_reference:
                wish["authorization_reference"] = body.authorization_reference
            asker = {"party_id": caller.party_id, "sender": caller.sender}
            url = body.response_url
            db.flush()
            context.desk.place(db, row, place, wish, now_ms, response_url=url, **asker)
        return finish(response("ACCEPTED"), station_id)

    @routes.post("/CANCEL_RESERVATION")
    async def cancel_reservation(request: Request) -> Response:
        caller = caller_of(request)
        body = valid(ocpi.CancelReservation, await json_body(request))
        with context.store.begin() as db:
            keys = [
                reservation_key(caller.sender, location_id, body.reservation_id)
                for location_id in context.catalog.locations
            ]
            row = db.scalar(
                select(Reservation)
                .where(Reservation.id.in_(keys))
                .order_by(Reservation.accepted.desc(), Reservation.created_ms.desc())
            )
            if row is None:
                context.desk.answer_unknown(db, caller, body.response_url, context.now_ms())
                return finish(response("ACCEPTED"))
            station_id = context.desk.holder(db, row)
            if not reachable(db, station_id):
                return finish(response("REJECTED", "the charge point is offline"))
            data = {"reservation_id": row.id, "by": "emsp"}
            url = body.response_url
            send(db, caller, station_id, "CANCEL_RESERVATION", data, url, row.id)
        return finish(response("ACCEPTED"), station_id)

    @routes.post("/START_SESSION")
    async def start_session(request: Request) -> Response:
        caller = caller_of(request)
        body = valid(ocpi.StartSession, await json_body(request))
        with context.store.begin() as db:
            _location(context, body.location_id, 200, rejected)
            if body.connector_id is not None and body.evse_uid is None:
                raise OcpiError(INVALID, "evse_uid: is required with connector_id", data=rejected)
            uid = body.evse_uid or _reserved_for(context, db, body)
            try:
                place = find(db, body.location_id, uid, "REMOTE_START_STOP_CAPABLE")
            except _Answered as answer:
                return finish(answer.data)
            if place is not None and body.connector_id is not None:
                _check_connector(place, body.connector_id, rejected)
            elif place is not None and body.evse_uid is not None and able(
                place.evse, "START_SESSION_CONNECTOR_REQUIRED"
            ):
                text = f"connector_id: is required at {place.evse.uid}"
                raise OcpiError(INVALID, text, data=rejected)
            if not own(caller, body.token):
                return finish(response("REJECTED", "the token is not yours"))
            if place is None:
                return finish(response("REJECTED", "the charge point is offline"))
            board = place.evse.board
            remember(db, body.token)
            data: dict[str, Any] = {"evse": board.evse, "token": board_token(body.token)}
            if body.authorization_reference:
                data["authorization_reference"] = body.authorization_reference
            send(db, caller, board.station_id, "START_SESSION", data, body.response_url)
        return finish(response("ACCEPTED"), board.station_id)

    @routes.post("/STOP_SESSION")
    async def stop_session(request: Request) -> Response:
        caller = caller_of(request)
        body = valid(ocpi.StopSession, await json_body(request))
        with context.store.begin() as db:
            row = db.scalar(
                select(SessionRow).where(func.lower(SessionRow.id) == body.session_id.lower())
            )
            if row is None or row.owner is None:
                return finish(response("UNKNOWN_SESSION"))
            if row.owner != caller.sender:
                return finish(response("REJECTED", "the session is not yours"))
            if row.status == "COMPLETED":
                return finish(response("REJECTED", "the session has ended"))
            if not reachable(db, row.station_id):
                return finish(response("REJECTED", "the charge point is offline"))
            data = {"session_id": row.id}
            send(db, caller, row.station_id, "STOP_SESSION", data, body.response_url)
        return finish(response("ACCEPTED"), row.station_id)

    @routes.post("/UNLOCK_CONNECTOR")
    async def unlock_connector(request: Request) -> Response:
        caller = caller_of(request)
        body = valid(ocpi.UnlockConnector, await json_body(request))
        with context.store.begin() as db:
            place = _place(context, body.location_id, body.evse_uid, 200, rejected)
            _check_connector(place, body.connector_id, rejected)
            board = place.evse.board
            newest = db.scalar(  # the board's newest word: a reservation may have moved here
                select(SessionRow)
                .join(Record, Record.session_id == SessionRow.id)
                .where(
                    SessionRow.evse_uid == place.evse.uid, Record.station_id == board.station_id
                )
                .order_by(Record.id.desc())
                .limit(1)
            )
            if newest is None or newest.owner != caller.sender:
                return finish(response("REJECTED", "the last session there is not yours"))
            if not reachable(db, board.station_id):
                return finish(response("REJECTED", "the charge point is offline"))
            data = {"evse": board.evse}
            send(db, caller, board.station_id, "UNLOCK_CONNECTOR", data, body.response_url)
        return finish(response("ACCEPTED"), board.station_id)

    return routes


def reservation_key(sender: str, location_id: str, reservation_id: str) -> str:
    """What boards know an eMSP's reservation by: made from what names it, so that a gateway that
    was restored from a backup knows again what it has forgotten."""
    name = "/".join((sender, location_id, reservation_id)).lower()
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"wattlock reservation {name}"))


class _Answered(Exception):
    """A command that goes no further; `data` is its CommandResponse."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.data = data


def _reserved_for(context: Context, db: Db, body: ocpi.StartSession) -> str | None:
    """The EVSE of this location that is reserved for this very token."""
    token = body.token
    rows = db.scalars(
        select(SessionRow).where(SessionRow.status == "RESERVATION").order_by(SessionRow.number)
    )
    for row in rows:
        session = ocpi.loads(row.object or "{}")
        card = session.get("cdr_token", {})
        if (
            session.get("location_id", "").lower() == body.location_id.lower()
            and row.owner == f"{token.country_code}-{token.party_id}".upper()
            and card.get("type") == token.type
            and card.get("uid", "").lower() == token.uid.lower()
        ):
            return row.evse_uid
    return None


def _check_connector(place: Place, connector_id: str, data: Any) -> None:
    known = [connector.id.lower() for connector in place.evse.connectors]
    if connector_id.lower() not in known:
        raise OcpiError(
            INVALID, f"connector_id: {connector_id} is unknown at {place.evse.uid}", data=data
        )
