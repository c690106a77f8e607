"""The test eMSP as an ASGI application.

Purpose: the other end of OCPI 2.2.1 for the demo and the tests: a real process that registers,
commands, receives, and distrusts.
Theory: each request is checked three times: transport (token, message ids, routing headers), shape
(`models`), and story: a kWh that falls, an object that changes after COMPLETED, a second
CommandResult, a CDR that comes twice with different bytes are violations. They are kept, and where
the standard has an answer for them, given it.
Real-time authorisation goes by the driver's Token, or as `/admin/authorize/{driver}` scripts it.
Limits: one CPO; state in one JSON file.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from tools.emsp import models
from tools.emsp.book import Book, dumps, loads

log = logging.getLogger("emsp")

VERSION = "2.2.1"
RECEIVERS = ("locations", "sessions", "cdrs", "Booking")
FINAL = ("CANCELED", "FAILED", "NO_SHOW", "FULFILLED", "REJECTED")  # of a Booking


def stamp(ahead_s: float = 0) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=ahead_s)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


class Fault(Exception):
    """An answer other than success."""

    def __init__(self, code: int, text: str, http: int = 200) -> None:
        super().__init__(text)
        self.code = code
        self.http = http


def envelope(data: Any = None, code: int = 1000, text: str = "", http: int = 200) -> Response:
    body: dict[str, Any] = {"status_code": code, "timestamp": stamp()}
    if text:
        body["status_message"] = text
    if data is not None:
        body["data"] = data
    return Response(dumps(body), status_code=http, media_type="application/json")


class Emsp:
    """The party, its drivers and its view of one CPO."""

    def __init__(
        self, book: Book, base_url: str, config: dict[str, Any], versions_url: str, token_a: str
    ) -> None:
        self.book = book
        self.base_url = base_url
        self.country_code = config["country_code"]
        self.party_id = config["party_id"]
        self.name = config["name"]
        self.versions_url = versions_url
        self.token_a = token_a
        self.client = httpx.AsyncClient(timeout=15, trust_env=False)
        self.answers: dict[str, Any] = {}  # driver -> how to answer `authorize`
        for driver, token in config["tokens"].items():
            self.state.tokens.setdefault(
                driver,
                {
                    "country_code": self.country_code,
                    "party_id": self.party_id,
                    "issuer": self.name,
                    "valid": True,
                    "whitelist": "ALLOWED",
                    "last_updated": stamp(),
                    **token,
                },
            )
        book.save()

    def driver_of(self, type: str, uid: str) -> str | None:
        for driver, token in self.state.tokens.items():
            if (token["type"], token["uid"].upper()) == (type, uid.upper()):
                return str(driver)
        return None

    @property
    def state(self) -> Any:
        return self.book.state

    # --- out

    def endpoint(self, module: str, role: str) -> str:
        for entry in self.state.endpoints:
            if entry["identifier"] == module and entry["role"] == role:
                return str(entry["url"]).rstrip("/")
        raise Fault(3003, f"the CPO offers no {module} {role}")

    async def call(
        self, method: str, url: str, body: Any = None, *, token: str | None = None
    ) -> tuple[models.Envelope, httpx.Response]:
        """A request to the CPO; its answer must be an OCPI envelope."""
        shown = token or self.state.token_c or self.token_a
        headers = {
            "Authorization": "Token " + base64.b64encode(shown.encode()).decode(),
            "X-Request-ID": str(uuid.uuid4()),
            "X-Correlation-ID": str(uuid.uuid4()),
        }
        functional = self.state.cpo and not re.search(r"/(versions|credentials|2\.2\.1)$", url)
        if functional:
            headers |= {
                "OCPI-from-country-code": self.country_code,
                "OCPI-from-party-id": self.party_id,
                "OCPI-to-country-code": self.state.cpo["country_code"],
                "OCPI-to-party-id": self.state.cpo["party_id"],
            }
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = dumps(body).encode()
        reply = await self.client.request(method, url, content=content, headers=headers)
        where = f"reply to {method} {url}"
        for name in ("X-Request-ID", "X-Correlation-ID"):
            if reply.headers.get(name) != headers[name]:
                self.book.violation(where, f"{name} is not echoed")
        if functional and reply.headers.get("OCPI-to-party-id") != self.party_id:
            self.book.violation(where, "routing headers are not swapped")
        try:
            answer = models.Envelope.model_validate(loads(reply.content))
        except (ValueError, ValidationError) as error:
            self.book.violation(where, f"HTTP {reply.status_code}, no envelope: {error}")
            raise Fault(3001, f"{where}: no envelope") from None
        self.book.log(
            "call",
            method=method,
            url=url,
            body=body,
            http=reply.status_code,
            answer=loads(reply.content),
        )
        return answer, reply

    async def fetch(self, method: str, url: str, body: Any = None, **kw: Any) -> Any:
        answer, reply = await self.call(method, url, body, **kw)
        if reply.status_code >= 400 or answer.status_code >= 2000:
            text = f"{method} {url}: HTTP {reply.status_code}, {answer.status_code}"
            raise Fault(3001, f"{text} {answer.status_message}")
        return answer.data

    async def register(self, method: str) -> None:
        """Versions, details, POST (to renew: PUT) credentials. Keeps token C and endpoints."""
        shown = self.state.token_c or self.token_a
        versions = [
            models.Version.model_validate(entry)
            for entry in await self.fetch("GET", self.versions_url, token=shown)
        ]
        url = next(entry.url for entry in versions if entry.version == VERSION)
        details = models.VersionDetails.model_validate(await self.fetch("GET", url, token=shown))
        self.state.endpoints = [entry.model_dump() for entry in details.endpoints]
        self.state.token_b = self.state.token_b or secrets.token_urlsafe(24)
        self.book.save()
        target = next(e.url for e in details.endpoints if e.identifier == "credentials")
        data = await self.fetch(method, target, self.credentials(), token=shown)
        theirs = models.Credentials.model_validate(data)
        role = next(role for role in theirs.roles if role.role == "CPO")
        self.state.token_c = theirs.token
        # a CPO shows its custom modules once it has seen ours
        details = models.VersionDetails.model_validate(await self.fetch("GET", url))
        self.state.endpoints = [entry.model_dump() for entry in details.endpoints]
        self.state.base_url = self.base_url
        self.state.cpo = {"country_code": role.country_code, "party_id": role.party_id}
        self.book.save()

    def credentials(self) -> dict[str, Any]:
        role = {
            "role": "EMSP",
            "business_details": {"name": self.name},
            "party_id": self.party_id,
            "country_code": self.country_code,
        }
        url = f"{self.base_url}/ocpi/emsp/versions"
        return {"token": self.state.token_b, "url": url, "roles": [role]}

    async def begin(self) -> None:
        """Register if need be, then get in sync: pull locations, push tokens."""
        pause_s = 0.3
        while True:
            try:
                if self.state.token_c is None:
                    await self.register("POST")
                elif self.state.base_url != self.base_url:
                    await self.register("PUT")
                for location in await self.pull("locations"):
                    self.state.locations[location["id"]] = location
                for driver in list(self.state.tokens):
                    await self.put_token(driver)
                self.state.error = None
                self.book.save()
                return
            except (httpx.HTTPError, Fault, ValidationError, StopIteration) as error:
                self.state.error = f"{type(error).__name__}: {error}"
                self.book.log("begin", error=self.state.error)
            await asyncio.sleep(pause_s)
            pause_s = min(10, pause_s * 1.5)

    async def put_token(self, driver: str) -> None:
        token = self.state.tokens[driver]
        url = f"{self.endpoint('tokens', 'RECEIVER')}/{self.country_code}/{self.party_id}"
        await self.fetch("PUT", f"{url}/{token['uid']}?type={token['type']}", token)

    async def pull(self, module: str, query: str = "date_from=2020-01-01T00:00:00Z") -> list[Any]:
        """All pages of a module's sender interface, checked."""
        kinds: dict[str, type[BaseModel]] = {
            "locations": models.Location,
            "sessions": models.Session,
            "cdrs": models.Cdr,
            "tariffs": models.Tariff,
        }
        url: str | None = f"{self.endpoint(module, 'SENDER')}?{query}"
        items: list[Any] = []
        while url is not None:
            answer, reply = await self.call("GET", url)
            for name in ("X-Total-Count", "X-Limit"):
                if not reply.headers.get(name, "").isdigit():
                    self.book.violation(f"GET {url}", f"{name} is missing")
            for item in answer.data or []:
                self.check(kinds[module], item, f"GET {module}")
                items.append(item)
            link = re.fullmatch(r'<(.+)>; rel="next"', reply.headers.get("Link", ""))
            url = link.group(1) if link else None
        return items

    async def command(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a command; `driver` and `expiry_s` are turned into OCPI's fields."""
        command_id = secrets.token_hex(8)
        body = dict(body)
        driver = body.pop("driver", None)
        expiry_s = body.pop("expiry_s", None)
        if driver is not None:
            if driver not in self.state.tokens:
                raise Fault(2004, f"driver {driver!r} is unknown; {sorted(self.state.tokens)}")
            body.setdefault("token", self.state.tokens[driver])
        if expiry_s is not None:
            body.setdefault("expiry_date", stamp(expiry_s))
        body["response_url"] = f"{self.base_url}/ocpi/emsp/{VERSION}/commands/{kind}/{command_id}"
        entry: dict[str, Any] = {
            "type": kind,
            "sent_ms": time.time_ns() // 1_000_000,
            "request": body,
            "response": None,
            "results": [],
        }
        self.state.commands[command_id] = entry
        answer, reply = await self.call(
            "POST", f"{self.endpoint('commands', 'RECEIVER')}/{kind}", body
        )
        entry["http"], entry["status_code"] = reply.status_code, answer.status_code
        entry["response"] = answer.data
        if answer.status_code < 2000:
            self.check(models.CommandResponse, answer.data, f"response to {kind}")
        self.book.save()
        return {"id": command_id, **entry}

    async def book_slot(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask for a booking, or change one: a BookingRequest without what this eMSP knows itself;
        `driver` is turned into a BookingToken."""
        token = self.state.tokens[body.pop("driver")]
        names = ("country_code", "party_id", "uid", "type", "contract_id")
        asked = {
            "country_code": self.country_code,
            "party_id": self.party_id,
            "tokens": [{name: token[name] for name in names}],
        }
        booking: dict[str, Any] = await self.fetch(
            "POST", self.endpoint("Booking", "SENDER"), asked | body
        )
        self.check(models.Booking, booking, "response to a BookingRequest")
        # what was pushed meanwhile is newer
        self.state.bookings.setdefault(booking["id"], booking)
        self.book.save()
        return booking

    # --- in

    def check(self, model: type[BaseModel], data: Any, where: str) -> bool:
        try:
            model.model_validate(data)
            return True
        except ValidationError as error:
            for fault in error.errors():
                path = ".".join(str(part) for part in fault["loc"])
                self.book.violation(where, f"{model.__name__}: {path}: {fault['msg']}")
            return False

    def admit(self, request: Request) -> None:
        """Transport: the token, the ids, the routing headers."""
        where = f"{request.method} {request.url.path}"
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        try:
            shown = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            shown = ""
        if scheme != "Token" or self.state.token_b is None or shown != self.state.token_b:
            raise Fault(2001, "Authorization: no valid credentials token in base64", 401)
        for name in ("X-Request-ID", "X-Correlation-ID"):
            if not request.headers.get(name):
                self.book.violation(where, f"{name} is missing")
        module = request.url.path.split("/")[4] if request.url.path.count("/") >= 4 else ""
        routing = [
            request.headers.get(f"OCPI-{side}-{part}")
            for side in ("from", "to")
            for part in ("country-code", "party-id")
        ]
        if module in (*RECEIVERS, "commands", "tokens"):
            cpo = self.state.cpo
            wanted = [
                cpo.get("country_code"),
                cpo.get("party_id"),
                self.country_code,
                self.party_id,
            ]
            if routing != wanted:
                self.book.violation(where, f"routing headers are {routing}, not {wanted}")
        elif any(routing):
            self.book.violation(where, "routing headers on a configuration module")

    def at_cpo(self, country_code: str, party_id: str) -> None:
        mine = {"country_code": country_code, "party_id": party_id}
        if mine != self.state.cpo:
            raise Fault(2000, f"{country_code}/{party_id} is not the CPO that registered", 404)

    def booking(self, booking_id: str, new: dict[str, Any], where: str) -> None:
        """Store a booking's new state, if it is one."""
        if not self.check(models.Booking, new, where):
            raise Fault(2001, "no valid Booking, see the log")
        if new["id"] != booking_id:
            raise Fault(2001, f"id {new['id']} is not the URL's {booking_id}")
        old = self.state.bookings.get(booking_id)
        if old is not None:
            if old["reservation_status"] in FINAL and (
                new["reservation_status"] != old["reservation_status"]
            ):
                self.book.violation(where, f"{old['reservation_status']} is final")
            if models.when(new["last_updated"]) < models.when(old["last_updated"]):
                self.book.violation(where, "last_updated goes back")
        self.state.bookings[booking_id] = new
        self.book.save()

    def session(self, session_id: str, new: dict[str, Any], where: str) -> None:
        """Store a session's new state, if it is one."""
        if not self.check(models.Session, new, where):
            raise Fault(2001, "no valid Session, see the log")
        if new["id"] != session_id:
            raise Fault(2001, f"id {new['id']} is not the URL's {session_id}")
        old = self.state.sessions.get(session_id)
        if old is not None:
            if new["kwh"] < old["kwh"] and new["status"] != "COMPLETED":
                self.book.violation(where, f"kwh falls from {old['kwh']} to {new['kwh']}")
            if models.when(new["last_updated"]) < models.when(old["last_updated"]):
                self.book.violation(where, "last_updated goes back")
            if old["status"] == "COMPLETED" and new != old:
                self.book.violation(where, "a COMPLETED session changes")
            if (old["status"], new["status"]) in (
                ("ACTIVE", "RESERVATION"),
                ("ACTIVE", "PENDING"),
            ):
                self.book.violation(where, f"{old['status']} becomes {new['status']}")
        owner = (new["cdr_token"]["country_code"], new["cdr_token"]["party_id"])
        if owner != (self.country_code, self.party_id):
            self.book.violation(where, f"a session of {owner} was sent to us")
        self.state.sessions[session_id] = new
        self.book.save()


def create_app(emsp: Emsp) -> FastAPI:
    book, state = emsp.book, emsp.book.state

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(emsp.begin())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await emsp.client.aclose()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def transport(request: Request, call_next: Any) -> Response:
        if not request.url.path.startswith("/ocpi"):
            return await call_next(request)
        body = (await request.body()).decode("utf-8", "replace")
        before = len(state.violations)
        response: Response
        try:
            emsp.admit(request)
            response = await call_next(request)
        except Fault as fault:
            response = envelope(None, fault.code, str(fault), fault.http)
        book.log(
            "request",
            method=request.method,
            path=request.url.path,
            body=body,
            http=response.status_code,
            violations=len(state.violations) - before,
        )
        for name in ("X-Request-ID", "X-Correlation-ID"):
            if name in request.headers:
                response.headers[name] = request.headers[name]
        return response

    @app.exception_handler(Fault)
    async def fault(_request: Request, error: Fault) -> Response:
        return envelope(None, error.code, str(error), error.http)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        return envelope(None, 2000, str(error.detail), error.status_code)

    async def body_of(request: Request) -> Any:
        where = f"{request.method} {request.url.path}"
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            book.violation(where, "Content-Type is not application/json")
        try:
            return loads(await request.body())
        except ValueError:
            book.violation(where, "body is no JSON")
            raise Fault(2001, "body: no valid JSON", 400) from None

    # --- configuration modules

    @app.get("/ocpi/emsp/versions")
    async def versions() -> Response:
        return envelope([{"version": VERSION, "url": f"{emsp.base_url}/ocpi/emsp/{VERSION}"}])

    @app.get("/ocpi/emsp/2.2.1")
    async def details() -> Response:
        base = f"{emsp.base_url}/ocpi/emsp/{VERSION}"
        pairs = [
            ("credentials", "SENDER"),
            *((name, "RECEIVER") for name in RECEIVERS),
            ("commands", "SENDER"),
            ("tokens", "SENDER"),
        ]
        endpoints = [{"identifier": n, "role": r, "url": f"{base}/{n}"} for n, r in pairs]
        return envelope({"version": VERSION, "endpoints": endpoints})

    @app.get("/ocpi/emsp/2.2.1/credentials")
    async def credentials() -> Response:
        return envelope(emsp.credentials())

    @app.get("/ocpi/emsp/2.2.1/tokens")
    async def tokens() -> Response:
        response = envelope(list(state.tokens.values()))
        response.headers["X-Total-Count"] = str(len(state.tokens))
        response.headers["X-Limit"] = "1000"
        return response

    @app.post("/ocpi/emsp/2.2.1/tokens/{uid}/authorize")
    async def authorize(request: Request, uid: str, type: str = "RFID") -> Response:
        where = f"authorize {uid}"
        asked = await body_of(request) if await request.body() else None
        if asked is not None and not emsp.check(models.LocationReferences, asked, where):
            raise Fault(2001, "no valid LocationReferences, see the log")
        if type in ("APP_USER", "AD_HOC_USER"):
            book.violation(where, f"a {type} is authorised by its command, never in real time")
        driver = emsp.driver_of(type, uid)
        if driver is None:
            raise Fault(2004, f"token {uid} is unknown", 404)
        token = state.tokens[driver]
        if token["whitelist"] == "ALWAYS":
            book.violation(where, "whitelist ALWAYS: real-time authorization is not allowed")
        if asked is None:
            raise Fault(2002, "LocationReferences: needed to decide")
        script = emsp.answers.get(driver, {})
        await asyncio.sleep(script.get("delay_s", 0))
        if "fault" in script:
            raise Fault(*script["fault"])
        info = {
            "allowed": "ALLOWED" if token["valid"] else "BLOCKED",
            "token": token,
            "location": asked,
            "authorization_reference": f"auth-{secrets.token_hex(8)}",
        }
        info |= script.get("info", {})
        state.authorized.append({"driver": driver, "asked": asked, "answer": info})
        book.save()
        return envelope(info)

    # --- receivers

    sessions_url = "/ocpi/emsp/2.2.1/sessions/{country_code}/{party_id}/{session_id}"

    @app.get(sessions_url)
    async def get_session(country_code: str, party_id: str, session_id: str) -> Response:
        emsp.at_cpo(country_code, party_id)
        if session_id not in state.sessions:
            raise Fault(2000, f"session {session_id} is unknown", 404)
        return envelope(state.sessions[session_id])

    @app.put(sessions_url)
    async def put_session(
        request: Request, country_code: str, party_id: str, session_id: str
    ) -> Response:
        emsp.at_cpo(country_code, party_id)
        new = session_id not in state.sessions
        emsp.session(session_id, await body_of(request), f"PUT session {session_id}")
        return envelope(http=201 if new else 200)

    @app.patch(sessions_url)
    async def patch_session(
        request: Request, country_code: str, party_id: str, session_id: str
    ) -> Response:
        emsp.at_cpo(country_code, party_id)
        change = await body_of(request)
        old = state.sessions.get(session_id)
        if old is None:
            raise Fault(2000, f"session {session_id} is unknown", 404)
        if not isinstance(change, dict) or "last_updated" not in change:
            book.violation(f"PATCH session {session_id}", "last_updated is missing")
            raise Fault(2001, "last_updated: is missing")
        merged = old | change
        merged["charging_periods"] = old.get("charging_periods", []) + change.get(
            "charging_periods", []
        )
        emsp.session(session_id, merged, f"PATCH session {session_id}")
        return envelope()

    location_url = "/ocpi/emsp/2.2.1/locations/{country_code}/{party_id}/{location_id}"

    def location_of(location_id: str) -> dict[str, Any]:
        if location_id not in state.locations:
            raise Fault(2003, f"location {location_id} is unknown", 404)
        found: dict[str, Any] = state.locations[location_id]
        return found

    def evse_of(location_id: str, uid: str) -> dict[str, Any]:
        for evse in location_of(location_id).get("evses", []):
            if evse["uid"] == uid:
                found: dict[str, Any] = evse
                return found
        raise Fault(2003, f"EVSE {uid} is unknown", 404)

    @app.get(location_url)
    async def get_location(country_code: str, party_id: str, location_id: str) -> Response:
        emsp.at_cpo(country_code, party_id)
        return envelope(location_of(location_id))

    @app.put(location_url)
    async def put_location(
        request: Request, country_code: str, party_id: str, location_id: str
    ) -> Response:
        emsp.at_cpo(country_code, party_id)
        new = await body_of(request)
        if not emsp.check(models.Location, new, f"PUT location {location_id}"):
            raise Fault(2001, "no valid Location, see the log")
        state.locations[location_id] = new
        book.save()
        return envelope(http=201)

    @app.get(location_url + "/{uid}")
    async def get_evse(country_code: str, party_id: str, location_id: str, uid: str) -> Response:
        emsp.at_cpo(country_code, party_id)
        return envelope(evse_of(location_id, uid))

    @app.patch(location_url + "/{uid}")
    async def patch_evse(
        request: Request, country_code: str, party_id: str, location_id: str, uid: str
    ) -> Response:
        emsp.at_cpo(country_code, party_id)
        change = await body_of(request)
        if not emsp.check(models.EvsePatch, change, f"PATCH EVSE {uid}"):
            raise Fault(2001, "no valid part of an EVSE, see the log")
        evse = evse_of(location_id, uid)
        if models.when(change["last_updated"]) < models.when(evse["last_updated"]):
            book.violation(f"PATCH EVSE {uid}", "last_updated goes back")
        evse |= change
        state.locations[location_id]["last_updated"] = change["last_updated"]
        book.save()
        return envelope()

    @app.post("/ocpi/emsp/2.2.1/cdrs")
    async def post_cdr(request: Request) -> Response:
        cdr = await body_of(request)
        if not emsp.check(models.Cdr, cdr, "POST cdr"):
            raise Fault(2001, "no valid CDR, see the log")
        text = (await request.body()).decode()
        known = state.cdr_texts.get(cdr["id"])
        if known is not None and known != text:
            book.violation(f"POST cdr {cdr['id']}", "the same CDR comes with other bytes")
            raise Fault(2001, f"CDR {cdr['id']} is known with another content")
        session = state.sessions.get(cdr.get("session_id"))
        if (
            session is not None
            and session["status"] == "COMPLETED"
            and (session["kwh"] != cdr["total_energy"])
        ):
            book.violation(f"POST cdr {cdr['id']}", "total_energy is not the session's kwh")
        state.cdrs[cdr["id"]] = cdr
        state.cdr_texts[cdr["id"]] = text
        book.save()
        response = envelope(http=200 if known else 201)
        response.headers["Location"] = f"{emsp.base_url}/ocpi/emsp/2.2.1/cdrs/{cdr['id']}"
        return response

    @app.get("/ocpi/emsp/2.2.1/cdrs/{cdr_id}")
    async def get_cdr(cdr_id: str) -> Response:
        if cdr_id not in state.cdrs:
            raise Fault(2000, f"CDR {cdr_id} is unknown", 404)
        return envelope(state.cdrs[cdr_id])

    places_url = "/ocpi/emsp/2.2.1/Booking/{country_code}/{party_id}/booking_locations/{place_id}"

    @app.put(places_url)
    @app.patch(places_url)
    async def booking_location(
        request: Request, country_code: str, party_id: str, place_id: str
    ) -> Response:
        emsp.at_cpo(country_code, party_id)
        place = await body_of(request)
        if request.method == "PATCH":
            place = state.booking_locations.get(place_id, {}) | place
        where = f"{request.method} booking_location {place_id}"
        if not emsp.check(models.BookingLocation, place, where):
            raise Fault(2001, "no valid BookingLocation, see the log")
        state.booking_locations[place_id] = place
        book.save()
        return envelope()

    bookings_url = "/ocpi/emsp/2.2.1/Booking/{country_code}/{party_id}/{booking_id}"

    @app.get(bookings_url)
    async def get_booking(country_code: str, party_id: str, booking_id: str) -> Response:
        emsp.at_cpo(country_code, party_id)
        if booking_id not in state.bookings:
            raise Fault(2000, f"booking {booking_id} is unknown", 404)
        return envelope(state.bookings[booking_id])

    @app.put(bookings_url)
    @app.patch(bookings_url)
    async def push_booking(
        request: Request, country_code: str, party_id: str, booking_id: str
    ) -> Response:
        emsp.at_cpo(country_code, party_id)
        new = await body_of(request)
        where = f"{request.method} booking {booking_id}"
        if request.method == "PATCH":
            if "last_updated" not in new:
                book.violation(where, "last_updated is missing")
                raise Fault(2001, "last_updated: is missing")
            new = state.bookings.get(booking_id, {}) | new
        emsp.booking(booking_id, new, where)
        return envelope()

    @app.post("/ocpi/emsp/2.2.1/commands/{kind}/{command_id}")
    async def command_result(request: Request, kind: str, command_id: str) -> Response:
        result = await body_of(request)
        where = f"CommandResult {kind}"
        entry = state.commands.get(command_id)
        if entry is None or entry["type"] != kind:
            book.violation(where, f"for an unknown command {command_id}")
            raise Fault(2001, f"command {command_id} is unknown")
        if not emsp.check(models.CommandResult, result, where):
            raise Fault(2001, "no valid CommandResult, see the log")
        answered = [known["result"] for known in entry["results"]]
        if answered and result["result"] != "CANCELED_RESERVATION":
            book.violation(where, f"a second result {result['result']} after {answered}")
        if entry["response"] is not None and entry["response"].get("result") != "ACCEPTED":
            book.violation(where, "a result although the response was not ACCEPTED")
        entry["results"].append({"at_ms": time.time_ns() // 1_000_000, **result})
        book.save()
        return envelope()

    # --- admin

    @app.get("/admin/state")
    async def admin_state() -> Response:
        shown = asdict(state)
        registered = shown.pop("token_c") is not None
        for name in ("token_b", "cdr_texts", "endpoints", "base_url"):
            del shown[name]
        evses = {
            evse["uid"]: evse
            for location in state.locations.values()
            for evse in location.get("evses", [])
        }
        ready = registered and state.error is None and bool(state.locations)
        shown |= {"registered": registered, "ready": ready, "evses": evses}
        return Response(dumps(shown), media_type="application/json")

    @app.post("/admin/commands")
    async def admin_command(request: Request) -> Response:
        body = loads(await request.body())
        entry = await emsp.command(body.pop("type"), body)
        return Response(dumps(entry), media_type="application/json")

    @app.post("/admin/bookings")
    async def admin_booking(request: Request) -> Response:
        booking = await emsp.book_slot(loads(await request.body()))
        return Response(dumps(booking), media_type="application/json")

    @app.post("/admin/pull/{module}")
    async def admin_pull(module: str, request: Request) -> Response:
        items = await emsp.pull(module, request.url.query or "date_from=2020-01-01T00:00:00Z")
        return Response(dumps(items), media_type="application/json")

    @app.post("/admin/authorize/{driver}")
    async def admin_authorize(driver: str, request: Request) -> Response:
        """Script the answers about a driver: `info` over the usual AuthorizationInfo, `delay_s`,
        `fault` ([status code, text, HTTP status])."""
        emsp.answers[driver] = loads(await request.body())
        return Response(dumps(emsp.answers[driver]), media_type="application/json")

    @app.post("/admin/tokens/{driver}")
    async def admin_token(driver: str, request: Request) -> Response:
        """Change a driver's Token and push it."""
        state.tokens[driver] |= loads(await request.body()) | {"last_updated": stamp()}
        await emsp.put_token(driver)
        book.save()
        return Response(dumps(state.tokens[driver]), media_type="application/json")

    return app
