"""Push over OCPI, from a durable outbox.

Purpose: a party that was away misses nothing it needs, and never hears old news after new.
Theory
- Session and EVSE: one row per party and object, coalescing. It remembers the object as the party
  has it (`peer`); what is sent is the difference to the newest state: PUT when the party has
  nothing, else PATCH. A PATCH of `charging_periods` *adds* periods (2.2.1, Sessions, PATCH), so
  only new ones are PATCHed; when an old one changed, the whole Session is PUT.
- A request whose end is unknown (failure, timeout, a gateway that died in between) may have been
  applied: the row is marked `unsure` before it leaves, and a row found unsure is checked with GET
  first, then PATCHed with what is missing, or PUT if the object is absent.
- CDR: POSTed until accepted, the same bytes each time. CommandResult: until its deadline.
- Back-off is exponential with jitter. Results and state travel in two lanes per party, one
  request at a time in each, so that a slow Session never delays a result.
Limits: OCPI 2.2.1 says messages SHOULD NOT be queued; state that coalesces is the newest state
when it is sent, and a CDR is money. A party that refuses an object for ever is asked at the
longest back-off for ever; /admin/outbox shows the reason.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import delete, select
from sqlalchemy.orm import Session as Db
from sqlalchemy.orm import sessionmaker

from tools.gateway import ocpi, ocpi_bookings
from tools.gateway.catalog import Catalog
from tools.gateway.store import BookingRow, CdrRow, Command, Outbox, Party, SessionRow

log = logging.getLogger("gateway.outbox")

RECEIVING_ROLES = ("EMSP", "NSP", "OTHER", "HUB", "SCSP", "NAP")
LANES = {
    "command_result": "results",
    "session": "state",
    "evse": "state",
    "cdr": "state",
    "booking": "state",
    "booking_location": "state",
}


# --- who is to hear it


def roles(party: Party) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ocpi.loads(party.roles)
    return found


def role_names(party: Party) -> set[str]:
    """The party's roles as "NL-EMS"."""
    return {f"{role['country_code']}-{role['party_id']}".upper() for role in roles(party)}


def endpoint(party: Party, module: str, side: str) -> str | None:
    for entry in ocpi.loads(party.endpoints):
        if entry["identifier"] == module and entry["role"] == side:
            return str(entry["url"]).rstrip("/")
    return None


def party_of(db: Db, owner: str) -> Party | None:
    """The registered platform that has the role `owner` ("NL-EMS")."""
    return next((party for party in db.scalars(select(Party)) if owner in role_names(party)), None)


# --- put something in


def _row(db: Db, party_id: int, kind: str, key: str) -> Outbox:
    row = db.scalar(
        select(Outbox).where(Outbox.party_id == party_id, Outbox.kind == kind, Outbox.key == key)
    )
    if row is None:
        row = Outbox(party_id=party_id, kind=kind, key=key, revision=0, attempts=0, next_ms=0)
        db.add(row)
    return row


def _touch(db: Db, party: Party, kind: str, key: str, now_ms: int) -> Outbox:
    row = _row(db, party.id, kind, key)
    row.revision += 1
    row.pending = True
    if row.attempts == 0:
        row.next_ms = now_ms
    db.flush()
    return row


def tell_session(db: Db, session_id: str, owner: str, now_ms: int) -> None:
    party = party_of(db, owner)
    if party is not None and endpoint(party, "sessions", "RECEIVER"):
        _touch(db, party, "session", session_id, now_ms)


def tell_evse(db: Db, uid: str, now_ms: int) -> None:
    for party in db.scalars(select(Party)).all():
        if endpoint(party, "locations", "RECEIVER"):
            _touch(db, party, "evse", uid, now_ms)


def tell_cdr(db: Db, cdr_id: str, text: str, owner: str, now_ms: int) -> None:
    party = party_of(db, owner)
    if party is not None and endpoint(party, "cdrs", "RECEIVER"):
        _touch(db, party, "cdr", cdr_id, now_ms).body = text


def tell_booking(db: Db, booking_id: str, owner: str, now_ms: int) -> None:
    party = party_of(db, owner)
    if party is not None and endpoint(party, ocpi_bookings.MODULE, "RECEIVER"):
        _touch(db, party, "booking", booking_id, now_ms)


def tell_booking_location(db: Db, location_id: str, now_ms: int) -> None:
    for party in db.scalars(select(Party)).all():
        if endpoint(party, ocpi_bookings.MODULE, "RECEIVER"):
            _touch(db, party, "booking_location", location_id, now_ms)


def tell_result(
    db: Db, party_id: int, key: str, url: str, result: str, now_ms: int, deadline_ms: int
) -> None:
    party = db.get(Party, party_id)
    if party is not None:
        row = _touch(db, party, "command_result", key, now_ms)
        row.url = url
        row.body = ocpi.dumps({"result": result})
        row.deadline_ms = deadline_ms


def forget_party(db: Db, party_id: int) -> None:
    db.execute(delete(Outbox).where(Outbox.party_id == party_id))


# --- send it


class Refused(Exception):
    """The party did not take it; the text says what it said."""


class Absent(Exception):
    """The party does not have the object."""


@dataclass(frozen=True)
class Receiver:
    """A platform and the one of its parties that is meant."""

    party: Party
    country_code: str
    party_id: str


def _receiver(db: Db, row: Outbox, party: Party) -> Receiver:
    owner = None
    if row.kind == "session":
        owner = db.get_one(SessionRow, row.key).owner
    elif row.kind == "cdr":
        owner = db.get_one(CdrRow, row.key).owner
    elif row.kind == "booking":
        owner = db.get_one(BookingRow, row.key).owner
    elif row.kind == "command_result":
        command = db.get(Command, row.key.split("/")[0])
        owner = command.sender if command else None
    if owner is None:
        known = roles(party)
        role = next((role for role in known if role["role"] in RECEIVING_ROLES), known[0])
        return Receiver(party, role["country_code"], role["party_id"])
    country_code, _, party_id = owner.partition("-")
    return Receiver(party, country_code, party_id)


class Sender:
    """Works through the outbox until cancelled."""

    def __init__(
        self,
        store: sessionmaker[Db],
        catalog: Catalog,
        now_ms: Callable[[], int],
        show_booking_location: Callable[[Db, str], dict[str, Any]],
        client: httpx.AsyncClient | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._config = catalog.config
        self._now_ms = now_ms
        self._show_booking_location = show_booking_location
        self._jitter = jitter
        self._client = client or make_client(self._config.http_timeout_s)
        self._news = asyncio.Event()
        self._busy: set[tuple[int, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        self._news.set()

    async def run(self) -> None:
        try:
            while True:
                self._news.clear()
                for row_id, lane in self._due():
                    self._busy.add(lane)
                    task = asyncio.create_task(self._send_one(row_id, lane))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                # not wait_for: in 3.11 it can swallow the cancellation, and run would not end
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        await self._news.wait()
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._client.aclose()

    def _pause_s(self) -> float:
        with self._store() as db:
            waiting = db.execute(
                select(Outbox.next_ms, Outbox.party_id, Outbox.kind).where(Outbox.pending)
            )
            times = [
                next_ms
                for next_ms, party_id, kind in waiting
                if (party_id, LANES[kind]) not in self._busy
            ]
        if not times:
            return 60.0
        return min(60.0, max(0.005, (min(times) - self._now_ms()) / 1000))

    def _due(self) -> list[tuple[int, tuple[int, str]]]:
        """At most one due row per free lane, oldest first."""
        chosen: dict[tuple[int, str], int] = {}
        with self._store() as db:
            rows = db.scalars(
                select(Outbox)
                .where(Outbox.pending, Outbox.next_ms <= self._now_ms())
                .order_by(Outbox.next_ms, Outbox.id)
            )
            for row in rows:
                lane = (row.party_id, LANES[row.kind])
                if lane not in self._busy:
                    chosen.setdefault(lane, row.id)
        return [(row_id, lane) for lane, row_id in chosen.items()]

    async def _send_one(self, row_id: int, lane: tuple[int, str]) -> None:
        try:
            await self._attempt(row_id)
        except Exception:  # a fault of ours must not stop the lane; it is tried again
            log.exception("outbox row %d", row_id)
            self._failed(row_id, "internal error, see the log")
        finally:
            self._busy.discard(lane)
            self._news.set()

    async def _attempt(self, row_id: int) -> None:
        with self._store.begin() as db:
            row = db.get(Outbox, row_id)
            if row is None:
                return
            party = db.get(Party, row.party_id)
            late = row.deadline_ms is not None and row.deadline_ms < self._now_ms()
            if party is None or (late and row.attempts > 0):
                db.delete(row)
                return
            kind, revision, unsure = row.kind, row.revision, row.unsure
            to = _receiver(db, row, party)
            peer = None if row.peer is None else ocpi.loads(row.peer)
            wanted = self._wanted(db, row)
            row.unsure = True
        try:
            if kind in ("cdr", "command_result"):
                await self._post(to, kind, str(row.url or ""), str(row.body))
            elif kind == "session":
                peer = await self._sync_session(to, wanted, peer, unsure)
            elif kind in ("booking", "booking_location"):
                peer = await self._sync_booking(to, kind, wanted, None if unsure else peer)
            else:
                peer = await self._sync_evse(to, row.key, wanted, peer, unsure)
        except (Refused, httpx.HTTPError, ValueError) as error:
            self._failed(row_id, f"{type(error).__name__}: {error}")
            return
        with self._store.begin() as db:
            row = db.get(Outbox, row_id)
            if row is None:
                return
            row.unsure = False
            row.attempts = 0
            row.error = None
            row.peer = None if peer is None else ocpi.dumps(peer)
            row.pending = row.revision != revision
            row.next_ms = self._now_ms()
            if kind == "command_result":
                db.delete(row)

    def _wanted(self, db: Db, row: Outbox) -> dict[str, Any]:
        if row.kind == "session":
            found: dict[str, Any] = ocpi.loads(db.get_one(SessionRow, row.key).object or "{}")
            return found
        if row.kind == "evse":
            place = self._catalog.place(row.key)
            return {} if place is None else self._catalog.show_evse(db, place)
        if row.kind == "booking":
            booking: dict[str, Any] = ocpi.loads(db.get_one(BookingRow, row.key).object)
            return booking
        if row.kind == "booking_location":
            return self._show_booking_location(db, row.key)
        return {}

    def _failed(self, row_id: int, error: str) -> None:
        with self._store.begin() as db:
            row = db.get(Outbox, row_id)
            if row is None:
                return
            row.attempts += 1
            row.error = error[:500]
            doubled = 2 ** min(row.attempts - 1, 20)
            span_s = min(self._config.retry_max_s, self._config.retry_first_s * doubled)
            row.next_ms = self._now_ms() + int(span_s * 1000 * (0.5 + self._jitter() / 2))
            log.info("%s %s: attempt %d: %s", row.kind, row.key, row.attempts, row.error)

    # --- one kind each

    async def _post(self, to: Receiver, kind: str, url: str, body: str) -> None:
        target = url if kind == "command_result" else str(endpoint(to.party, "cdrs", "RECEIVER"))
        await self._call(to, "POST", target, body)

    async def _sync_session(
        self, to: Receiver, wanted: dict[str, Any], peer: dict[str, Any] | None, unsure: bool
    ) -> dict[str, Any] | None:
        if not wanted:
            return peer
        base = endpoint(to.party, "sessions", "RECEIVER")
        mine = self._config.party
        url = f"{base}/{mine.country_code}/{mine.party_id}/{wanted['id']}"
        if unsure:
            peer = await self._ask(to, url)
        had = (peer or {}).get("charging_periods") or []
        periods = wanted["charging_periods"]
        gone = peer is not None and any(
            name not in wanted and name != "charging_periods" and peer[name] is not None
            for name in peer
        )
        if peer is None or gone or periods[: len(had)] != had:
            await self._call(to, "PUT", url, ocpi.dumps(wanted))
            return wanted
        change = {
            name: value
            for name, value in wanted.items()
            if name != "charging_periods" and peer.get(name) != value
        }
        if periods[len(had) :]:
            change["charging_periods"] = periods[len(had) :]
        if change:
            change["last_updated"] = wanted["last_updated"]
            await self._call(to, "PATCH", url, ocpi.dumps(change))
        return wanted

    async def _sync_booking(
        self, to: Receiver, kind: str, wanted: dict[str, Any], peer: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """PUT of the whole, or a PATCH of what changed. PUT is idempotent: nobody asks first."""
        if not wanted:
            return peer
        mine = self._config.party
        base = endpoint(to.party, ocpi_bookings.MODULE, "RECEIVER")
        under = "booking_locations/" if kind == "booking_location" else ""
        url = f"{base}/{mine.country_code}/{mine.party_id}/{under}{wanted['id']}"
        if peer is None or set(peer) - set(wanted):
            await self._call(to, "PUT", url, ocpi.dumps(wanted))
            return wanted
        change = {name: value for name, value in wanted.items() if peer.get(name) != value}
        if change:
            change["last_updated"] = wanted["last_updated"]
            await self._call(to, "PATCH", url, ocpi.dumps(change))
        return wanted

    async def _sync_evse(
        self,
        to: Receiver,
        uid: str,
        wanted: dict[str, Any],
        peer: dict[str, Any] | None,
        unsure: bool,
    ) -> dict[str, Any] | None:
        place = self._catalog.place(uid)
        if place is None:
            return peer
        mine = self._config.party
        base = endpoint(to.party, "locations", "RECEIVER")
        at_location = f"{base}/{mine.country_code}/{mine.party_id}/{place.location.id}"
        url = f"{at_location}/{place.evse.uid}"
        if unsure and await self._ask(to, url) is None:
            with self._store() as db:
                whole = self._catalog.show_location(db, place.location)
            await self._call(to, "PUT", at_location, ocpi.dumps(whole))
        else:
            change = {name: wanted[name] for name in ("status", "last_updated")}
            await self._call(to, "PATCH", url, ocpi.dumps(change))
        return {name: wanted[name] for name in ("status", "last_updated")}

    async def _ask(self, to: Receiver, url: str) -> dict[str, Any] | None:
        """The object as the party has it, None if it has none."""
        try:
            found = await self._call(to, "GET", url)
        except Absent:
            return None
        return found if isinstance(found, dict) else None

    async def _call(self, to: Receiver, method: str, url: str, body: str | None = None) -> Any:
        headers = request_headers(to.party.token) | self._routing(to)
        if body is not None:
            headers["Content-Type"] = "application/json"
        reply = await self._client.request(
            method, url, content=None if body is None else body.encode(), headers=headers
        )
        if method == "GET" and reply.status_code == 404:
            raise Absent
        try:
            envelope = ocpi.loads(reply.content)
            code = int(envelope["status_code"])
        except (ValueError, KeyError, TypeError):
            raise Refused(f"{method} {url}: HTTP {reply.status_code} without envelope") from None
        if reply.status_code >= 400 or not 1000 <= code < 2000:
            if method == "GET" and 2000 <= code < 3000:
                raise Absent
            text = str(envelope.get("status_message", ""))[:200]
            raise Refused(f"{method} {url}: HTTP {reply.status_code}, {code} {text}")
        return envelope.get("data")

    def _routing(self, to: Receiver) -> dict[str, str]:
        mine = self._config.party
        return {
            "OCPI-from-country-code": mine.country_code,
            "OCPI-from-party-id": mine.party_id,
            "OCPI-to-country-code": to.country_code,
            "OCPI-to-party-id": to.party_id,
        }


def make_client(timeout_s: float) -> httpx.AsyncClient:
    """Proxies of the environment are used, but never towards this machine."""
    direct = {f"all://{host}": httpx.AsyncHTTPTransport() for host in ("127.0.0.1", "localhost")}
    return httpx.AsyncClient(timeout=timeout_s, mounts=direct)


def request_headers(token: str) -> dict[str, str]:
    """What every request carries: the token in base64 and fresh message ids."""
    return {
        "Authorization": "Token " + base64.b64encode(token.encode()).decode(),
        "X-Request-ID": str(uuid.uuid4()),
        "X-Correlation-ID": str(uuid.uuid4()),
    }
