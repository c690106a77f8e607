"""Credentials: how a platform registers, renews and leaves.

Purpose: the exchange of OCPI 2.2.1 "Credentials", receiver's side.
Theory: a POST with a registration token (token A, from the configuration) brings their token B;
the gateway asks their versions with it *before* it answers, keeps their endpoints, answers with
a fresh token C, and token A is dead for ever. PUT renews both. Tokens that others show to us are
kept as digests; the token we show to them must be kept as it is.
Limits: only 2.2.1 is spoken. A role (country, party) belongs to one platform at a time: who claims
another's would receive its sessions.
"""

from __future__ import annotations

import secrets
from typing import Any

import httpx
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from sqlalchemy import select

from tools.gateway import ocpi, outbox, whitelist
from tools.gateway.context import Context
from tools.gateway.store import DeadToken, Party
from tools.gateway.transport import (
    CLIENT_API_UNUSABLE,
    CLIENT_ERROR,
    INVALID,
    NO_MATCHING_ENDPOINTS,
    UNSUPPORTED_VERSION,
    Caller,
    OcpiError,
    envelope,
    json_body,
    token_hash,
    valid,
)

USEFUL = ("locations", "sessions", "cdrs", "commands", "tokens", "tariffs")


def router(context: Context) -> APIRouter:
    routes = APIRouter(prefix="/ocpi/2.2.1")

    def credentials(token: str) -> dict[str, Any]:
        party = context.config.party
        role = {
            "role": "CPO",
            "business_details": {"name": party.name},
            "party_id": party.party_id,
            "country_code": party.country_code,
        }
        return {"token": token, "url": f"{context.base_url}/ocpi/versions", "roles": [role]}

    @routes.get("/credentials")
    async def show(request: Request) -> Response:
        caller: Caller = request.state.caller
        return envelope(context.now_ms(), credentials(caller.token))

    @routes.post("/credentials")
    async def register(request: Request) -> Response:
        caller: Caller = request.state.caller
        if caller.party is not None:
            raise OcpiError(CLIENT_ERROR, "already registered: renew with PUT", 405)
        theirs = valid(ocpi.Credentials, await json_body(request))
        endpoints = await _endpoints(context, theirs)
        token = secrets.token_urlsafe(32)
        with context.store.begin() as db:
            if db.get(DeadToken, token_hash(caller.token)) is not None:
                raise OcpiError(INVALID, "Authorization: this registration token was used", 401)
            _check_roles(db, theirs, None)
            db.add(_fill(Party(), theirs, endpoints, token))
            db.add(DeadToken(token_hash=token_hash(caller.token)))
        return envelope(context.now_ms(), credentials(token))

    @routes.put("/credentials")
    async def renew(request: Request) -> Response:
        party = _registered(request)
        theirs = valid(ocpi.Credentials, await json_body(request))
        endpoints = await _endpoints(context, theirs)
        token = secrets.token_urlsafe(32)
        with context.store.begin() as db:
            _check_roles(db, theirs, party.id)
            _fill(db.get_one(Party, party.id), theirs, endpoints, token)
        context.wake()
        return envelope(context.now_ms(), credentials(token))

    @routes.delete("/credentials")
    async def leave(request: Request) -> Response:
        party = _registered(request)
        with context.store.begin() as db:
            outbox.forget_party(db, party.id)
            whitelist.forget(db, outbox.role_names(party), context.now_ms())
            db.delete(db.get_one(Party, party.id))
        return envelope(context.now_ms())

    return routes


def _registered(request: Request) -> Party:
    caller: Caller = request.state.caller
    if caller.party is None:
        raise OcpiError(CLIENT_ERROR, "not registered: register with POST", 405)
    return caller.party


def _fill(
    party: Party, theirs: ocpi.Credentials, endpoints: list[dict[str, Any]], token: str
) -> Party:
    party.token_hash = token_hash(token)
    party.token = theirs.token
    party.url = theirs.url
    party.roles = ocpi.dumps([role.dump() for role in theirs.roles])
    party.endpoints = ocpi.dumps(endpoints)
    return party


def _check_roles(db: Any, theirs: ocpi.Credentials, party_id: int | None) -> None:
    claimed = {f"{role.country_code}-{role.party_id}".upper() for role in theirs.roles}
    for other in db.scalars(select(Party)):
        taken = claimed & outbox.role_names(other)
        if other.id != party_id and taken:
            raise OcpiError(INVALID, f"roles: {min(taken)} is registered by another platform")


async def _endpoints(context: Context, theirs: ocpi.Credentials) -> list[dict[str, Any]]:
    """Their endpoints of 2.2.1, asked for with the token they just gave."""
    versions = await _get(context, theirs.url, theirs.token)
    try:
        offered = [ocpi.Version.model_validate(entry) for entry in versions]
        url = next((entry.url for entry in offered if entry.version == ocpi.VERSION), None)
        if url is None:
            names = ", ".join(entry.version for entry in offered)
            raise OcpiError(UNSUPPORTED_VERSION, f"url: offers {names}; this is {ocpi.VERSION}")
        details = ocpi.VersionDetails.model_validate(await _get(context, url, theirs.token))
    except (ValidationError, TypeError) as error:
        raise OcpiError(CLIENT_API_UNUSABLE, f"url: your versions are no OCPI: {error}") from None
    useful = [entry for entry in details.endpoints if entry.identifier in USEFUL]
    if not useful:
        raise OcpiError(NO_MATCHING_ENDPOINTS, f"url: none of {', '.join(USEFUL)} is offered")
    return [entry.dump() for entry in details.endpoints]


async def _get(context: Context, url: str, token: str) -> Any:
    try:
        reply = await context.client.get(url, headers=outbox.request_headers(token))
        body = ocpi.loads(reply.content)
        if reply.status_code != 200 or body["status_code"] != 1000:
            raise ValueError(f"HTTP {reply.status_code}, status {body.get('status_code')}")
        return body["data"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise OcpiError(CLIENT_API_UNUSABLE, f"GET {url}: {error!r:.200}") from None
