"""The boards' whitelists: which cards a board may let start by itself, and keeping it told.

Purpose: a board with a whitelist (it says so in its header) has, soon after a change, the cards
that OCPI lets it decide about. The contract is the section Whitelist of UPLINK.md.
Theory: `ListedToken` holds each RFID Token as a board would have it and the number of its last
change; a PUT that changes nothing a board can see makes no change. Each board has the version that
it told last (`StationList`). A board whose version is known gets what changed since, any other one
(new, restored, another gateway's) everything; a number of rows that is not ours, too. Parts are
taken from the table as it is now: what changes while a sync is on its way comes with the next,
which begins where this one ended. Change numbers rise with the clock, so that those of a restored
database are not given twice.
A list is written anew at the board for each sync, some 14 erases: so syncs of a board are apart by
`whitelist_every_s`, and begin when no change came for a second.
Limits: every board gets every eMSP's cards. More than LIST_MAX of them reach no board, the log and
/admin say so.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session as Db

from tools.gateway import messages, ocpi
from tools.gateway.store import ListedToken, StationList, TokenRow

log = logging.getLogger("gateway.whitelist")

PART_ROWS = 47  # 22 bytes each, in base64, in a message below 2 KB
NAME_BYTES = 13
LIST_MAX = 10_000
QUIET_MS = 1000
GONE = "-"


def group_name(owner: str, group_id: str | None) -> str:
    """The board's name of a group: 40 bits of a digest, which case cannot hurt."""
    if not group_id:
        return ""
    digest = hashlib.sha256(f"{owner}/{group_id}".upper().encode()).digest()
    return base64.b32encode(digest[:5]).decode()


def row_key(chain_key: bytes) -> bytes:
    """From the chain's key, which stays when a station's key is exchanged."""
    return hmac.digest(chain_key, b"tokens", "sha256")


def owner_of(token: ocpi.Token) -> str:
    return f"{token.country_code}-{token.party_id}".upper()


def kind_of(token: ocpi.Token) -> str:
    if token.type != "RFID" or not token.valid or token.whitelist == "NEVER":
        return GONE
    return "O" if token.whitelist == "ALLOWED_OFFLINE" else "A"


# --- what the lists should say


def note(db: Db, token: ocpi.Token, now_ms: int) -> None:
    """A Token was pushed, or came in an answer of its eMSP."""
    owner = owner_of(token)
    kind = kind_of(token)
    group = "" if kind == GONE else group_name(owner, token.group_id)
    row = db.get(ListedToken, (owner, token.uid.upper()))
    if token.type != "RFID" or (row is None and kind == GONE):
        return
    if row is None:
        row = ListedToken(owner=owner, uid=token.uid.upper(), kind=GONE, group="", change=0)
        db.add(row)
    if (row.kind, row.group) != (kind, group):
        row.kind, row.group = kind, group
        row.change = _next_change(db, now_ms)
        db.flush()


def forget(db: Db, owners: set[str], now_ms: int) -> None:
    """A platform has left: nobody stands behind its Tokens any more."""
    for row in db.scalars(select(TokenRow).where(TokenRow.owner.in_(owners), TokenRow.pushed)):
        row.pushed = False
    listed = select(ListedToken).where(ListedToken.owner.in_(owners), ListedToken.kind != GONE)
    for row in db.scalars(listed).all():
        row.kind, row.group = GONE, ""
        row.change = _next_change(db, now_ms)
        db.flush()


def install(db: Db, now_ms: int) -> None:
    """The Tokens of a database that is older than the lists."""
    if newest(db) == 0:
        for row in db.scalars(select(TokenRow).where(TokenRow.pushed)).all():
            note(db, ocpi.Token.model_validate(ocpi.loads(row.object)), now_ms)


def newest(db: Db) -> int:
    return db.scalar(select(func.max(ListedToken.change))) or 0


def count(db: Db) -> int:
    rows = select(func.count()).select_from(ListedToken).where(ListedToken.kind != GONE)
    return db.scalar(rows) or 0


def _next_change(db: Db, now_ms: int) -> int:
    db.flush()
    return max(newest(db) + 1, now_ms)


# --- what a board is told


def answer(
    db: Db, station_id: str, key: bytes, told: messages.Tokens, every_ms: int, now_ms: int
) -> dict[str, Any] | None:
    """`data` of the SYNC_TOKENS that a board needs next, by what it has just told."""
    state = _state(db, station_id)
    state.rows = told.n
    if state.target != state.version:  # a sync is on its way
        if told.v == state.target:
            state.version = told.v
        elif state.since == 0 or told.v == state.version:
            if told.to == state.target:
                return _part(db, key, state, told.after)
            state.target = newest(db)  # its first part got lost
            return _part(db, key, state, "")
    if told.v != state.version:
        state.version = -1  # not one that we gave
    elif told.v == newest(db) and told.n != count(db):
        log.warning("%s: %d rows at the board, %d here", station_id, told.n, count(db))
        state.version = -1
        row = db.scalars(select(ListedToken).limit(1)).one()
        row.change = _next_change(db, now_ms)  # all of it anew wants another version
    state.target = state.version
    return begin(db, station_id, key, every_ms, now_ms)


def begin(
    db: Db, station_id: str, key: bytes, every_ms: int, now_ms: int
) -> dict[str, Any] | None:
    """The first part of a sync, if one is due."""
    state = _state(db, station_id)
    top = newest(db)
    if top == 0 or state.target != state.version or state.version == top:
        return None
    if top + QUIET_MS > now_ms or state.started_ms + every_ms > now_ms:
        return None
    if count(db) > LIST_MAX:
        log.error("%d cards for a whitelist of at most %d: no board is told", count(db), LIST_MAX)
        return None
    state.started_ms = now_ms
    state.target = top
    state.since = max(state.version, 0)
    return _part(db, key, state, "")


def _state(db: Db, station_id: str) -> StationList:
    state = db.get(StationList, station_id)
    if state is None:
        state = StationList(
            station_id=station_id, version=0, since=0, target=0, started_ms=0, rows=0
        )
        db.add(state)
    return state


def _part(db: Db, key: bytes, state: StationList, after: str) -> dict[str, Any]:
    wanted = select(ListedToken.owner, ListedToken.uid, ListedToken.kind, ListedToken.group)
    if state.since:
        wanted = wanted.where(ListedToken.change > state.since)
    else:
        wanted = wanted.where(ListedToken.kind != GONE)
    behind = bytes.fromhex(after)
    rows = sorted(_row(key, *columns) for columns in db.execute(wanted))
    rest = [row for row in rows if row[:NAME_BYTES] > behind]
    text = base64.b64encode(b"".join(rest[:PART_ROWS])).decode()
    part = {"from": state.since, "to": state.target, "after": after, "rows": text}
    return part if len(rest) > PART_ROWS else part | {"last": True}


def _row(key: bytes, owner: str, uid: str, kind: str, group: str) -> bytes:
    country_code, _, party_id = owner.partition("-")
    name = hmac.digest(key, uid.encode(), "sha256")[:8]
    who = f"{country_code}{party_id:<3}{kind}".encode()
    return name + who + group.encode().ljust(8, b"\0")
