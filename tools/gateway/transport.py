"""OCPI's transport: who is calling, the envelope, pages, message ids, routing headers.

Purpose: everything that is the same for all modules, once.
Theory: the middleware `authenticate` runs before any route: the credentials token finds the party
(raw or base64: both are met in the field), ids are echoed, routing headers are checked and
swapped on functional modules. An HTTP error is only for what never reached the OCPI layer
(401, 404, 405, broken JSON 400); the rest is HTTP 200 with an OCPI status code.
Limits: no hub: a request routed to another party is refused, not forwarded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session as Db
from starlette.exceptions import HTTPException

from tools.gateway import ocpi, outbox
from tools.gateway.config import Config
from tools.gateway.store import DeadToken, Party

log = logging.getLogger("gateway.ocpi")

OK = 1000
CLIENT_ERROR = 2000
INVALID = 2001
UNKNOWN_LOCATION = 2003
SERVER_ERROR = 3000
CLIENT_API_UNUSABLE = 3001
UNSUPPORTED_VERSION = 3002
NO_MATCHING_ENDPOINTS = 3003

FUNCTIONAL = ("locations", "sessions", "cdrs", "tariffs", "tokens", "commands", "bookings")
ROUTING = (
    "ocpi-to-country-code",
    "ocpi-to-party-id",
    "ocpi-from-country-code",
    "ocpi-from-party-id",
)

Model = TypeVar("Model", bound=BaseModel)


class OcpiError(Exception):
    """Answered with an envelope: an OCPI status code and, mostly, HTTP 200."""

    def __init__(self, code: int, text: str, http: int = 200, data: Any = None) -> None:
        super().__init__(text)
        self.code = code
        self.http = http
        self.data = data


@dataclass(frozen=True)
class Caller:
    """The platform behind a request. `party` is None while it registers with token A."""

    party: Party | None
    token: str
    sender: str = ""  # "NL-EMS": routing headers, else the first role of the credentials

    @property
    def roles(self) -> set[str]:
        return set() if self.party is None else outbox.role_names(self.party)

    @property
    def party_id(self) -> int:
        assert self.party is not None
        return self.party.id


def envelope(
    now_ms: int, data: Any = None, code: int = OK, text: str = "", http: int = 200
) -> Response:
    body: dict[str, Any] = {"status_code": code, "timestamp": ocpi.format_datetime(now_ms)}
    if text:
        body["status_message"] = text
    if data is not None:
        body["data"] = data
    return Response(ocpi.dumps(body), status_code=http, media_type="application/json")


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def presented_tokens(header: str | None) -> list[str]:
    """What an Authorization header may mean: the token as written, and decoded from base64."""
    scheme, _, value = (header or "").strip().partition(" ")
    value = value.strip()
    if scheme.lower() != "token" or not value:
        return []
    found = [value]
    try:
        decoded = base64.b64decode(value, validate=True).decode("ascii").strip()
        if decoded:
            found.insert(0, decoded)
    except (binascii.Error, ValueError):
        pass
    return found


def module_of(path: str) -> str:
    """``locations`` of ``/ocpi/2.2.1/locations/LOC1``; empty for versions and details."""
    parts = path.strip("/").split("/")
    return parts[2] if len(parts) > 2 else ""


class Transport:
    def __init__(self, config: Config, store: Any, now_ms: Callable[[], int]) -> None:
        self._config = config
        self._store = store
        self._now_ms = now_ms

    def install(self, app: FastAPI) -> None:
        app.middleware("http")(self.authenticate)
        app.add_exception_handler(OcpiError, self._ocpi_error)
        app.add_exception_handler(RequestValidationError, self._parameters)
        app.add_exception_handler(HTTPException, self._http_error)

    # --- before and after a route

    async def authenticate(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if not request.url.path.startswith("/ocpi"):
            return await call_next(request)
        # The standard writes `{locations_endpoint_url}/LOC1`, `{commands_endpoint_url}{command}`,
        # `locations/?offset=50`: how many slashes come together is up to the client.
        request.scope["path"] = re.sub("/+", "/", request.scope["path"]).rstrip("/")
        functional = module_of(request.scope["path"]) in FUNCTIONAL
        try:
            with self._store() as db:
                caller = self._caller(db, request, functional)
            request.state.caller = caller
            response = await call_next(request)
        except OcpiError as error:
            response = self._error(error)
        except Exception:
            log.exception("%s %s", request.method, request.url.path)
            response = self._error(OcpiError(SERVER_ERROR, "internal error", 500))
        for name in ("X-Request-ID", "X-Correlation-ID"):
            response.headers[name] = request.headers.get(name) or str(uuid.uuid4())
        if functional:
            response.headers.update(self._swapped(request))
        return response

    def _caller(self, db: Db, request: Request, functional: bool) -> Caller:
        for token in presented_tokens(request.headers.get("authorization")):
            digest = token_hash(token)
            party = db.scalar(select(Party).where(Party.token_hash == digest))
            if party is not None:
                sender = self._sender(request, party) if functional else ""
                return Caller(party, token, sender)
            dead = db.get(DeadToken, digest) is not None
            if token in self._config.registration_tokens and not dead and not functional:
                return Caller(None, token)
        raise OcpiError(
            INVALID, "Authorization: send 'Token ' and a valid credentials token in base64", 401
        )

    def _sender(self, request: Request, party: Party) -> str:
        """The party that speaks. Raises OcpiError if it is none of the platform's."""
        to = _routed(request, "to")
        mine = f"{self._config.party.country_code}-{self._config.party.party_id}".upper()
        if to is not None and to != mine:
            raise OcpiError(INVALID, f"OCPI-to headers name {to}; this is {mine}")
        known = outbox.roles(party)
        sender = _routed(request, "from")
        if sender is None:
            role = next((role for role in known if role["role"] == "EMSP"), known[0])
            return f"{role['country_code']}-{role['party_id']}".upper()
        is_hub = any(role["role"] == "HUB" for role in known)
        if sender not in outbox.role_names(party) and not is_hub:
            raise OcpiError(INVALID, f"OCPI-from headers name {sender}, no role of your platform")
        return sender

    def _swapped(self, request: Request) -> dict[str, str]:
        mine = self._config.party
        to = _routed(request, "to") or f"{mine.country_code}-{mine.party_id}"
        caller: Caller | None = getattr(request.state, "caller", None)
        sender = _routed(request, "from") or (caller.sender if caller else "")
        headers = {}
        for side, name in (("from", to), ("to", sender)):
            country_code, dash, party_id = name.partition("-")
            if dash:
                headers[f"OCPI-{side}-country-code"] = country_code
                headers[f"OCPI-{side}-party-id"] = party_id
        return headers

    # --- errors

    def _error(self, error: OcpiError) -> Response:
        return envelope(self._now_ms(), error.data, error.code, str(error), error.http)

    async def _ocpi_error(self, _request: Request, error: Exception) -> Response:
        assert isinstance(error, OcpiError)
        return self._error(error)

    async def _parameters(self, _request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        return self._error(OcpiError(INVALID, f"{where}: {fault['msg']}"))

    async def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = CLIENT_ERROR if error.status_code < 500 else SERVER_ERROR
        text = f"{request.method} {request.url.path}: {error.detail}"
        response = self._error(OcpiError(code, text, error.status_code))
        response.headers.update(error.headers or {})
        return response


def _routed(request: Request, side: str) -> str | None:
    country_code = request.headers.get(f"OCPI-{side}-country-code")
    party_id = request.headers.get(f"OCPI-{side}-party-id")
    return f"{country_code}-{party_id}".upper() if country_code and party_id else None


async def json_body(request: Request) -> Any:
    """The body as JSON with exact decimals. Broken JSON is the one HTTP 400."""
    try:
        return ocpi.loads(await request.body())
    except ValueError as error:
        raise OcpiError(INVALID, f"body: no valid JSON: {error}", 400) from None


def valid(model: type[Model], data: Any) -> Model:
    """`data` as an OCPI object, else status 2001 that names the field."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "body"
        raise OcpiError(INVALID, f"{where}: {fault['msg']}") from None


@dataclass(frozen=True)
class Page:
    """Pagination and the window on `last_updated` of one request."""

    from_ms: int | None
    to_ms: int | None
    offset: int
    limit: int
    query: dict[str, str]

    def holds(self, stamp_ms: int) -> bool:
        after = self.from_ms is None or stamp_ms >= self.from_ms
        return after and (self.to_ms is None or stamp_ms < self.to_ms)


def page_of(request: Request, limit_max: int) -> Page:
    query = dict(request.query_params)

    def moment(name: str) -> int | None:
        try:
            return ocpi.parse_datetime(query[name]) if name in query else None
        except ValueError as error:
            raise OcpiError(INVALID, f"{name}: {error}") from None

    def number(name: str, default: int, least: int) -> int:
        text = query.get(name, str(default))
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise OcpiError(INVALID, f"{name}: {text!r} is no integer of at least {least}")
        return int(text)

    limit = min(number("limit", limit_max, 1), limit_max)
    return Page(moment("date_from"), moment("date_to"), number("offset", 0, 0), limit, query)


def page(
    now_ms: int, url: str, wanted: Page, limit_max: int, part: list[Any], total: int
) -> Response:
    """The envelope of one page: `part` of the `total` objects inside the window."""
    response = envelope(now_ms, part)
    response.headers["X-Total-Count"] = str(total)
    response.headers["X-Limit"] = str(limit_max)
    following = wanted.offset + wanted.limit
    if following < total:
        query = wanted.query | {"offset": str(following), "limit": str(wanted.limit)}
        response.headers["Link"] = f'<{url}?{urlencode(query, safe=":")}>; rel="next"'
    return response
