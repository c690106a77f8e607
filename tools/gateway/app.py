"""The gateway as one ASGI application: wiring, the HTTP link of boards, the operator's page."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sqlalchemy import func, select

from tools.gateway import messages, ocpi, whitelist
from tools.gateway.authorize import Cards
from tools.gateway.booking_routes import router as booking_router
from tools.gateway.bookings import Bookings
from tools.gateway.catalog import Catalog
from tools.gateway.config import Config
from tools.gateway.context import Context
from tools.gateway.dating import Timeline
from tools.gateway.desk import Desk
from tools.gateway.mqtt import MqttLink
from tools.gateway.northbound import (
    commands_router,
    sender_router,
    tokens_router,
    versions_router,
)
from tools.gateway.outbox import Sender, make_client
from tools.gateway.registration import router as registration_router
from tools.gateway.southbound import Southbound
from tools.gateway.store import (
    Alarm,
    BookingRow,
    Command,
    Evse,
    Journal,
    Outbox,
    Record,
    Reservation,
    SessionRow,
    Station,
    StationList,
    open_store,
)
from tools.gateway.transport import Transport
from tools.gateway.uplink import MESSAGE_MAX_BYTES

log = logging.getLogger("gateway")

TICK_S = 0.25
KEEP_ALIVE_S = 75
"""An idle connection stays so long: a board posts each minute at least, and a TLS handshake costs
more than a message."""


def system_now_ms() -> int:
    return time.time_ns() // 1_000_000


def create_app(
    config: Config,
    base_url: str,
    *,
    now_ms: Callable[[], int] = system_now_ms,
) -> FastAPI:
    """`base_url` is what others reach this gateway by, without a trailing slash."""
    store = open_store(config.database)
    catalog = Catalog(config)
    desk = Desk(catalog)
    bookings = Bookings(config, catalog, desk)
    with store.begin() as db:
        catalog.install(db, now_ms())
        bookings.install(db, now_ms())
        whitelist.install(db, now_ms())
    client = make_client(config.http_timeout_s)
    cards = Cards(store, catalog, client, now_ms)
    sender = Sender(store, catalog, now_ms, lambda db, key: bookings.show(db, key, now_ms()))
    southbound = Southbound(store, catalog, desk, bookings, cards, now_ms, on_commit=sender.wake)
    context = Context(
        config=config,
        base_url=base_url,
        store=store,
        catalog=catalog,
        desk=desk,
        bookings=bookings,
        southbound=southbound,
        client=client,
        now_ms=now_ms,
        wake=sender.wake,
    )
    mqtt = MqttLink(config.mqtt, southbound) if config.mqtt else None

    async def ticks() -> None:
        while True:
            try:
                southbound.tick()
            except Exception:
                log.exception("tick")
            await asyncio.sleep(TICK_S)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        works = [sender.run(), ticks()] + ([mqtt.run()] if mqtt else [])
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await cards.close()
            await client.aclose()

    app = FastAPI(
        title="Wattlock gateway",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    Transport(config, store, now_ms).install(app)
    app.include_router(versions_router(context))
    app.include_router(registration_router(context))
    app.include_router(sender_router(context))
    app.include_router(tokens_router(context))
    app.include_router(commands_router(context))
    app.include_router(booking_router(context))
    app.include_router(board_router(context))
    if config.admin_token is not None:
        app.include_router(admin_router(context, config.admin_token, mqtt))
    app.state.context = context
    return app


def board_router(context: Context) -> APIRouter:
    """The HTTP link of uplink v1."""
    routes = APIRouter()

    @routes.post("/wattlock/1/{station_id}")
    async def up(station_id: str, request: Request) -> Response:
        raw = b""
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > MESSAGE_MAX_BYTES:
                return Response(status_code=413)
        reply = context.southbound.handle(station_id, raw, "http")
        if reply is None:
            return Response(status_code=403)
        return Response(reply, media_type="application/octet-stream")

    return routes


def admin_router(context: Context, token: str, mqtt: MqttLink | None) -> APIRouter:
    """For operators, tests and the demo: what is going on. ``Authorization: Bearer <token>``."""
    routes = APIRouter(prefix="/admin")

    def denied(request: Request) -> Response | None:
        shown = request.headers.get("authorization", "")
        if hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
            return None
        return JSONResponse({"error": "admin token is missing or wrong"}, 401)

    @routes.get("/stations")
    async def stations(request: Request) -> Response:
        if answer := denied(request):
            return answer
        with context.store() as db:
            rows = db.scalars(select(Station)).all()
            found = {row.id: _show_station(context, db, row) for row in rows}
        return JSONResponse(
            {
                "stations": found,
                "strangers": context.southbound.refused.get("(unknown)", {}),
                "mqtt": mqtt.connected if mqtt else None,
            }
        )

    @routes.get("/stations/{station_id}/records")
    async def records(request: Request, station_id: str, after: int = 0) -> Response:
        """Stored records in order of arrival, for looking at a journal from the desk: when each
        was written, give or take `err_ms` (null: nothing tells), and when it came."""
        if answer := denied(request):
            return answer
        with context.store() as db:
            timeline = Timeline(db, station_id)
            rows = db.scalars(
                select(Record)
                .where(Record.station_id == station_id, Record.id > after)
                .order_by(Record.id)
                .limit(1000)
            )
            found = [
                {
                    "id": row.id,
                    "journal": row.journal,
                    "seq": row.seq,
                    "time": asdict(when) if (when := timeline.seen(row)) else None,
                    "received_ms": row.received_ms,
                    "body": row.body.decode("utf-8", "replace"),
                }
                for row in rows
            ]
        return JSONResponse(found)

    @routes.post("/stations/{station_id}/commands")
    async def command(request: Request, station_id: str) -> Response:
        """Queue an operator's command: ``{"type": "SET_AVAILABILITY", "data": {...}}``."""
        if answer := denied(request):
            return answer
        try:
            body = json.loads(await request.body())
            kind, data = body["type"], body.get("data", {})
            if station_id not in context.config.stations or kind not in messages.COMMANDS:
                return JSONResponse({"error": f"unknown station or type {kind!r}"}, 404)
            with context.store.begin() as db:
                row = context.desk.queue(db, station_id, kind, data, context.now_ms())
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            return JSONResponse({"error": f"body: {error}"}, 400)
        context.southbound.push(station_id)
        return JSONResponse({"id": row.id}, 202)

    @routes.get("/reservations")
    async def reservations(request: Request) -> Response:
        """What is reserved now, and by whom."""
        if answer := denied(request):
            return answer
        with context.store() as db:
            rows = db.scalars(
                select(Reservation).where(Reservation.accepted).order_by(Reservation.created_ms)
            )
            found = [
                {
                    "id": row.id,
                    "sender": row.sender,
                    "reservation_id": row.emsp_id,
                    "station_id": row.station_id,
                    "evse": row.evse,
                    "session_id": row.session_id,
                    "expiry_ms": ocpi.loads(row.wish or "{}").get("expiry_ms"),
                    "moving": row.moving,
                }
                for row in rows
            ]
        return JSONResponse(found)

    @routes.post("/reservations/{reservation_id}/cancel")
    async def cancel(request: Request, reservation_id: str) -> Response:
        """Cancel it as the CPO; its eMSP hears CANCELED_RESERVATION."""
        if answer := denied(request):
            return answer
        with context.store.begin() as db:
            row = db.get(Reservation, reservation_id)
            if row is None or not row.accepted:
                return JSONResponse({"error": f"no reservation {reservation_id} in force"}, 404)
            data = {"reservation_id": row.id, "by": "cpo"}
            asked = context.desk.queue(
                db, row.station_id, "CANCEL_RESERVATION", data, context.now_ms()
            )
        context.southbound.push(asked.station_id)
        return JSONResponse({"id": asked.id}, 202)

    @routes.get("/commands/{command_id}")
    async def command_state(request: Request, command_id: str) -> Response:
        if answer := denied(request):
            return answer
        with context.store() as db:
            row = db.get(Command, command_id)
        if row is None:
            return JSONResponse({"error": f"no command {command_id}"}, 404)
        return JSONResponse(
            {"id": row.id, "type": row.type, "state": row.state, "result": row.result}
        )

    @routes.post("/stations/{station_id}/release")
    async def release(request: Request, station_id: str) -> Response:
        """Lift a quarantine."""
        if answer := denied(request):
            return answer
        if station_id not in context.config.stations:
            return JSONResponse({"error": f"unknown station {station_id!r}"}, 404)
        context.southbound.release(station_id)
        return JSONResponse({"quarantine": None})

    @routes.get("/bookings")
    async def bookings(request: Request) -> Response:
        if answer := denied(request):
            return answer
        with context.store() as db:
            rows = db.scalars(select(BookingRow).order_by(BookingRow.number))
            return JSONResponse([ocpi.loads(row.object) for row in rows])

    @routes.post("/bookings/{booking_id}/cancel")
    async def cancel_booking(request: Request, booking_id: str) -> Response:
        """The operator's own cancellation: ``{"reason": "BLOCKED"}``, a CanceledReason."""
        if answer := denied(request):
            return answer
        try:
            reason = json.loads(await request.body())["reason"]
            with context.store.begin() as db:
                done = context.bookings.cancel(db, booking_id, reason, context.now_ms())
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            return JSONResponse({"error": f"body: {error}"}, 400)
        context.wake()
        return JSONResponse({"canceled": done}, 200 if done else 404)

    @routes.get("/outbox")
    async def outbox_state(request: Request) -> Response:
        if answer := denied(request):
            return answer
        with context.store() as db:
            rows = [
                {
                    "party": row.party_id,
                    "kind": row.kind,
                    "key": row.key,
                    "attempts": row.attempts,
                    "next_ms": row.next_ms,
                    "error": row.error,
                }
                for row in db.scalars(select(Outbox).where(Outbox.pending).order_by(Outbox.id))
            ]
        return JSONResponse(rows)

    return routes


def _show_station(context: Context, db: Any, row: Station) -> dict[str, Any]:
    journal = db.scalar(
        select(Journal).where(Journal.station_id == row.id, Journal.journal == row.journal)
    )
    kinds = ("gap", "fork", "unreadable", "clock_step")
    alarms: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for alarm in db.scalars(select(Alarm).where(Alarm.station_id == row.id).order_by(Alarm.id)):
        alarms[alarm.kind].append(
            {
                "journal": alarm.journal,
                "first": alarm.first,
                "last": alarm.last or None,
                "why": alarm.text,
                "at": alarm.at_ms,
            }
        )
    undated = db.scalars(
        select(SessionRow.id).where(
            SessionRow.station_id == row.id,
            SessionRow.object.is_(None),
            SessionRow.owner.is_not(None),
        )
    ).all()
    evses = {
        str(evse.evse): {
            "uid": evse.uid,
            "status": evse.status,
            "board_status": evse.board_status,
            "time_unknown": evse.time_unknown,
            "meter": None,
            "export": None,
        }
        for evse in db.scalars(select(Evse).where(Evse.station_id == row.id))
    }
    told = (Record.station_id == row.id, Record.t.in_(("meter", "export")))
    for record in db.scalars(select(Record).where(*told).order_by(Record.id.desc()).limit(200)):
        body = json.loads(record.body)
        evse = evses.get(str(body.get("evse")), {})
        if evse and body.get("what") != "glitch":
            evse[body["t"]] = evse[body["t"]] or body
    return {
        "online": row.online,
        "last_seen_ms": row.last_seen_ms,
        "link": row.link,
        "boot": row.boot,
        "clock": ocpi.loads(row.clock) if row.clock else None,
        "health": ocpi.loads(row.health) if row.health else None,
        "journal": row.journal,
        "ack": journal.last if journal else 0,
        "records": db.scalar(
            select(func.count()).select_from(Record).where(Record.station_id == row.id)
        ),
        "gaps": alarms["gap"],
        "forks": alarms["fork"],
        "unreadable": alarms["unreadable"],
        "clock_steps": alarms["clock_step"],
        "quarantine": row.quarantine,
        "refused": context.southbound.refused.get(row.id, {}),
        "undated_sessions": list(undated),
        "whitelist": _show_list(db, row.id),
        "evses": evses,
    }


def _show_list(db: Any, station_id: str) -> dict[str, Any] | None:
    """The whitelist of a board that has one: what it told last, and what it should have."""
    state = db.get(StationList, station_id)
    if state is None:
        return None
    wanted = {"rows": whitelist.count(db), "version": whitelist.newest(db)}
    return {"version": state.version, "rows": state.rows, "wanted": wanted}
