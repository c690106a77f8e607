"""May this card charge? The gateway's answer to a board's `authorize`.

Purpose: one place that turns a presented card into an OCPI AllowedType, with the eMSP's word where
the standard wants it (2.2.1, mod_tokens; mod_commands for rule 1).
Rules
1. A card whose Token came with RESERVE_NOW or START_SESSION for this charge point within 15
   minutes is authorised by that: its eMSP is not asked. Unless it was pushed as not valid since.
2. `whitelist` of the Tokens that eMSPs pushed says who decides. ALWAYS and ALLOWED: we do, by
   `valid`. ALLOWED_OFFLINE: its eMSP in real time, and we when it gives no answer. NEVER: its eMSP
   only.
3. A card that no eMSP pushed is asked for at all of them at once.
4. Tokens of type APP_USER and AD_HOC_USER are never asked for.
5. All questions about a card share one deadline. The first ALLOWED ends them. No answer (nobody
   there, an error, not OCPI) is never a yes.
6. The eMSP answers for its own Tokens, for the Location that was asked about, and where it returns
   `evse_uids`, for those only.
Theory: rules 1 and 2 are answered at once, a question to an eMSP makes a task; its outcome goes to
the board by `deliver`, and for ANSWER_MS with each message that still asks. The Token that an eMSP
returned is kept, so that Session and CDR name its contract.
Limits: a Token that came in an answer alone goes on no whitelist: nobody would tell us of its end.
A hub's parties are not asked one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import httpx
from sqlalchemy import select
from sqlalchemy.orm import Session as Db
from sqlalchemy.orm import sessionmaker

from tools.gateway import messages, ocpi, outbox, whitelist
from tools.gateway.catalog import Catalog
from tools.gateway.store import Command, Party, TokenRow

log = logging.getLogger("gateway.authorize")

FRESH_MS = 15 * 60_000
ANSWER_MS = 15_000
UNKNOWN_TOKEN = 2004
Data = dict[str, Any]


class Authorizer(Protocol):
    deliver: Callable[[str, Data], None]

    def answer(self, db: Db, station_id: str, asked: messages.Authorize) -> Data | None:
        """`data` of the AUTHORIZE command, or None if it comes later by `deliver`."""


def board_token(token: ocpi.Token) -> dict[str, str]:
    """The part of a Token that a board needs."""
    data = {
        "country_code": token.country_code,
        "party_id": token.party_id,
        "type": token.type,
        "uid": token.uid,
    }
    group = whitelist.group_name(whitelist.owner_of(token), token.group_id)
    return data | ({"group_id": group} if group else {})


def keep(db: Db, token: ocpi.Token, now_ms: int, pushed: bool = False) -> bool:
    """Store a Token. True if it is the first push of it. What did not come by push stays out of
    the tokens module and of whitelists, but an answer in real time may be newer than a push."""
    key = (whitelist.owner_of(token), token.type, token.uid.lower())
    row = db.get(TokenRow, key)
    new = row is None or not row.pushed
    if row is None:
        row = TokenRow(owner=key[0], type=key[1], uid=key[2], pushed=pushed)
        db.add(row)
    row.pushed = row.pushed or pushed
    row.contract_id = token.contract_id
    row.object = ocpi.dumps(token.dump())
    row.last_updated_ms = ocpi.parse_datetime(token.last_updated)
    if row.pushed:
        whitelist.note(db, token, now_ms)
    return new


@dataclass(frozen=True)
class Role:
    """A party of a platform that can be asked."""

    url: str
    token: str
    country_code: str
    party_id: str
    owners: frozenset[str]  # whose Tokens the platform may answer for

    @property
    def name(self) -> str:
        return f"{self.country_code}-{self.party_id}".upper()


@dataclass
class _Question:
    task: asyncio.Task[None] | None = None
    data: Data | None = None
    done_ms: int = 0


class Cards:
    """The rules above, for one running gateway."""

    def __init__(
        self,
        store: sessionmaker[Db],
        catalog: Catalog,
        client: httpx.AsyncClient | None,
        now_ms: Callable[[], int],
    ) -> None:
        """Without `client` nobody is asked."""
        self._store = store
        self._catalog = catalog
        self._client = client
        self._now_ms = now_ms
        self._questions: dict[tuple[str, int, str, str], _Question] = {}
        self.deliver: Callable[[str, Data], None] = lambda station_id, data: None

    def answer(self, db: Db, station_id: str, asked: messages.Authorize) -> Data | None:
        now_ms = self._now_ms()
        key = (station_id, asked.evse, asked.type, asked.uid.upper())
        for old in [k for k, q in self._questions.items() if q.data and _over(q, now_ms)]:
            del self._questions[old]
        known = self._questions.get(key)
        if known is not None:
            return known.data
        no = _say(asked, "NOT_ALLOWED")
        if asked.type in ("APP_USER", "AD_HOC_USER"):
            return no
        pushed = _pushed(db, asked)
        command = self._by_command(db, station_id, asked, pushed, now_ms)
        if command is not None:
            return command
        asks = [t for t in pushed if t.whitelist in ("NEVER", "ALLOWED_OFFLINE")]
        ours = [t for t in pushed if t.whitelist != "NEVER"]
        for token in ours:
            if token not in asks and token.valid:
                return _say(asked, "ALLOWED", token, "WHITELIST")
        owners = {whitelist.owner_of(token) for token in asks}
        roles = self._roles(db, owners) if owners or not pushed else []
        valid = [token for token in ours if token.valid]
        alone = _say(asked, "BLOCKED") if ours else no
        if valid:
            alone = _say(asked, "ALLOWED", valid[0], "WHITELIST")
        place = self._catalog.at_board(station_id, asked.evse)
        if not roles or place is None:
            return alone
        where = ocpi.LocationReferences(location_id=place.location.id, evse_uids=[place.evse.uid])
        question = self._questions[key] = _Question()
        question.task = asyncio.get_running_loop().create_task(
            self._ask(question, station_id, asked, roles, where, alone, valid)
        )
        return None

    async def close(self) -> None:
        tasks = [q.task for q in self._questions.values() if q.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _by_command(
        self,
        db: Db,
        station_id: str,
        asked: messages.Authorize,
        pushed: list[ocpi.Token],
        now_ms: int,
    ) -> Data | None:
        """Rule 1."""
        commands = db.scalars(
            select(Command)
            .where(
                Command.station_id == station_id,
                Command.type.in_(("RESERVE_NOW", "START_SESSION")),
                Command.created_ms > now_ms - FRESH_MS,
            )
            .order_by(Command.number.desc())
        )
        for command in commands:
            data = ocpi.loads(command.data)
            token = data["token"]
            if (token["type"], token["uid"].upper()) != (asked.type, asked.uid.upper()):
                continue
            owner = f"{token['country_code']}-{token['party_id']}".upper()
            for known in pushed:
                since_ms = ocpi.parse_datetime(known.last_updated)
                ended = not known.valid and since_ms > command.created_ms
                if whitelist.owner_of(known) == owner and ended:
                    return None
            said: Data = {"evse": asked.evse, "uid": asked.uid, "allowed": "ALLOWED"}
            said |= {"token": token, "auth_method": "COMMAND"}
            if data.get("authorization_reference"):
                said["authorization_reference"] = data["authorization_reference"]
            return said
        return None

    def _roles(self, db: Db, owners: set[str]) -> list[Role]:
        """Who is asked: `owners`, or all eMSPs if it is empty."""
        if self._client is None:
            return []
        found = []
        for party in db.scalars(select(Party)):
            url = outbox.endpoint(party, "tokens", "SENDER")
            for role in outbox.roles(party) if url else []:
                one = Role(
                    str(url),
                    party.token,
                    role["country_code"],
                    role["party_id"],
                    frozenset(outbox.role_names(party)),
                )
                if one.name in owners or (not owners and role["role"] == "EMSP"):
                    found.append(one)
        return found

    # --- in real time

    async def _ask(
        self,
        question: _Question,
        station_id: str,
        asked: messages.Authorize,
        roles: list[Role],
        where: ocpi.LocationReferences,
        alone: Data,
        valid: list[ocpi.Token],
    ) -> None:
        data = alone
        try:
            answers = await self._all(asked, roles, where)
            heard = {role.name for role, _ in answers}
            words = [info for _, info in answers if info is not None]
            yes = next((info for info in words if info.allowed == "ALLOWED"), None)
            if yes is not None:
                with self._store.begin() as db:
                    self._remember(db, yes.token)
                data = _say(asked, "ALLOWED", yes.token, "AUTH_REQUEST")
                if yes.authorization_reference:
                    data["authorization_reference"] = yes.authorization_reference
            elif heard:
                # who has answered is not overruled; who has not, and may be decided for here
                rest = [token for token in valid if whitelist.owner_of(token) not in heard]
                word = words[0].allowed if words else "NOT_ALLOWED"
                data = _say(asked, "ALLOWED", rest[0], "WHITELIST") if rest else _say(asked, word)
        except Exception:  # a fault of ours is no yes, and no silence
            log.exception("authorize %s", asked.uid)
        question.data = data
        question.done_ms = self._now_ms()
        self.deliver(station_id, data)

    async def _all(
        self, asked: messages.Authorize, roles: list[Role], where: ocpi.LocationReferences
    ) -> list[tuple[Role, ocpi.AuthorizationInfo | None]]:
        """The answers that come within the deadline, an ALLOWED ends it; None: knows no such
        Token."""
        tasks = {asyncio.create_task(self._one(asked, role, where)): role for role in roles}
        answers: list[tuple[Role, ocpi.AuthorizationInfo | None]] = []
        loop = asyncio.get_running_loop()
        end = loop.time() + self._catalog.config.authorize_timeout_s
        waiting: Iterable[asyncio.Task[Any]] = tasks
        try:
            while waiting and not any(info and info.allowed == "ALLOWED" for _, info in answers):
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=max(0.0, end - loop.time()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                for task in done:
                    role = tasks[task]
                    try:
                        answers.append((role, task.result()))
                    except (httpx.HTTPError, ValueError) as error:
                        log.warning("authorize at %s: %s", role.name, f"{error!r:.200}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return answers

    async def _one(
        self, asked: messages.Authorize, role: Role, where: ocpi.LocationReferences
    ) -> ocpi.AuthorizationInfo | None:
        """One eMSP's answer. Raises httpx.HTTPError or ValueError where it gives none."""
        assert self._client is not None
        mine = self._catalog.config.party
        headers = outbox.request_headers(role.token) | {
            "Content-Type": "application/json",
            "OCPI-from-country-code": mine.country_code,
            "OCPI-from-party-id": mine.party_id,
            "OCPI-to-country-code": role.country_code,
            "OCPI-to-party-id": role.party_id,
        }
        url = f"{role.url}/{quote(asked.uid, safe='')}/authorize?type={asked.type}"
        reply = await self._client.post(url, content=ocpi.dumps(where.dump()), headers=headers)
        if reply.status_code == 404:
            return None
        try:
            body = ocpi.loads(reply.content)
            code = int(body["status_code"])
        except (KeyError, TypeError):
            raise ValueError(f"HTTP {reply.status_code} without envelope") from None
        if code == UNKNOWN_TOKEN:
            return None
        if reply.status_code >= 400 or not 1000 <= code < 2000:
            raise ValueError(f"HTTP {reply.status_code}, status {code}")
        info = ocpi.AuthorizationInfo.model_validate(body.get("data"))
        return _checked(info, asked, role, where)

    def _remember(self, db: Db, token: ocpi.Token) -> None:
        row = db.get(TokenRow, (whitelist.owner_of(token), token.type, token.uid.lower()))
        if row is None or row.last_updated_ms <= ocpi.parse_datetime(token.last_updated):
            keep(db, token, self._now_ms())


def _over(question: _Question, now_ms: int) -> bool:
    return question.done_ms + ANSWER_MS <= now_ms


def _pushed(db: Db, asked: messages.Authorize) -> list[ocpi.Token]:
    rows = db.scalars(
        select(TokenRow)
        .where(TokenRow.uid == asked.uid.lower(), TokenRow.type == asked.type, TokenRow.pushed)
        .order_by(TokenRow.last_updated_ms.desc())
    )
    return [ocpi.Token.model_validate(ocpi.loads(row.object)) for row in rows]


def _say(
    asked: messages.Authorize,
    allowed: str,
    token: ocpi.Token | None = None,
    auth_method: str | None = None,
) -> Data:
    data: Data = {"evse": asked.evse, "uid": asked.uid, "allowed": allowed}
    if token is not None:
        data |= {"token": board_token(token), "auth_method": auth_method}
    return data


def _checked(
    info: ocpi.AuthorizationInfo,
    asked: messages.Authorize,
    role: Role,
    where: ocpi.LocationReferences,
) -> ocpi.AuthorizationInfo:
    """Rule 6. Raises ValueError where the answer is about something else."""
    token = info.token
    if (token.type, token.uid.upper()) != (asked.type, asked.uid.upper()):
        raise ValueError(f"token: {token.type} {token.uid} was not asked for")
    if whitelist.owner_of(token) not in role.owners:
        raise ValueError(f"token: {whitelist.owner_of(token)} is no role of this platform")
    place = info.location
    if place is not None:
        here = [uid.lower() for uid in place.evse_uids]
        elsewhere = place.location_id.lower() != where.location_id.lower()
        if elsewhere or (here and where.evse_uids[0].lower() not in here):
            return info.model_copy(update={"allowed": "NOT_ALLOWED"})
    return info
