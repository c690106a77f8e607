"""May this card charge? The gateway's answer to a board's `authorize`.

Purpose: one place that turns a presented card into an OCPI AllowedType.
Theory: the Tokens that eMSPs pushed are asked first. `whitelist` says who may decide: ALWAYS and
ALLOWED are decided here; NEVER only by the eMSP in real time; ALLOWED_OFFLINE by the eMSP, and
here when the eMSP cannot be asked. A Token that is not valid is BLOCKED where we decide.
Limits: real-time authorization (POST tokens/{uid}/authorize at the eMSP) is not built yet, so an
eMSP can never be asked: NEVER and unknown cards are NOT_ALLOWED, ALLOWED_OFFLINE is decided here.
`Authorizer` is the seam: a real-time one answers later with a command of its own.
"""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session as Db

from tools.gateway import messages, ocpi
from tools.gateway.store import TokenRow


class Authorizer(Protocol):
    def answer(self, db: Db, station_id: str, asked: messages.Authorize) -> dict[str, Any] | None:
        """`data` of the AUTHORIZE command, or None if the answer comes later."""


class Whitelist:
    """Decides by the Tokens received over OCPI."""

    def answer(self, db: Db, station_id: str, asked: messages.Authorize) -> dict[str, Any] | None:
        rows = db.scalars(
            select(TokenRow)
            .where(TokenRow.uid == asked.uid.lower(), TokenRow.type == asked.type, TokenRow.pushed)
            .order_by(TokenRow.last_updated_ms.desc())
        ).all()
        data: dict[str, Any] = {"evse": asked.evse, "uid": asked.uid, "allowed": "NOT_ALLOWED"}
        for row in rows:
            token = ocpi.Token.model_validate(ocpi.loads(row.object))
            if token.whitelist == "NEVER":
                continue
            if not token.valid:
                data["allowed"] = "BLOCKED"
                continue
            return data | {
                "allowed": "ALLOWED",
                "auth_method": "WHITELIST",
                "token": board_token(token),
            }
        return data


def board_token(token: ocpi.Token) -> dict[str, str]:
    """The part of a Token that a board needs."""
    data = {
        "country_code": token.country_code,
        "party_id": token.party_id,
        "type": token.type,
        "uid": token.uid,
    }
    return data | ({"group_id": token.group_id} if token.group_id else {})
