"""Signed records of meters: pieces -> OCPI's `signed_data`.

Purpose: hand the driver, byte for byte, what the meter signed.
Theory: a `start` that says `signs` announces records; each comes in pieces from 1, the last says
how many. A piece 1 begins a new attempt. The end's record, or why there is none, concludes it,
and only then is the CDR made, for it cannot be changed afterwards. A board that says neither is
waited for WAIT_MS, so that a broken board holds up no invoice.
Limits: whether a signature holds is not checked here (`python -m tools.meter verify`). A record
that arrives after its CDR went stays among the station's records. OCPI takes 5,000 characters.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as Db

from tools.gateway import messages
from tools.gateway.store import AwaitedSignature

WAIT_MS = 900_000
_LIMIT = 5000  # OCPI 2.2.1-d2 and 2.3.0, SignedValue
_NATURES = {"start": "Start", "end": "End"}


@dataclass
class Signatures:
    """What one session's records say of signatures."""

    expected: bool = False
    public_key: str | None = None
    whole: dict[str, bytes] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    _pieces: dict[str, list[bytes]] = field(default_factory=dict)

    def take(self, record: messages.SignedRecord) -> None:
        nature = record.nature
        if record.failed is not None:
            self.missing[nature] = record.failed
            return
        pieces = self._pieces.setdefault(nature, [])
        if record.piece == 1:
            pieces.clear()
        if record.piece == len(pieces) + 1 and record.data is not None:
            pieces.append(base64.b64decode(record.data))
        if record.of is None:
            return
        text = b"".join(pieces)
        if record.of != len(pieces):
            self.missing[nature] = "pieces are missing"
        elif not text.startswith(b"OCMF|") or text.count(b"|") < 2:
            self.missing[nature] = "not an OCMF record"
        elif len(base64.b64encode(text)) > _LIMIT:
            self.missing[nature] = f"longer than OCPI's {_LIMIT} characters"
        else:
            self.whole[nature] = text
            self.missing.pop(nature, None)
            self.public_key = record.public_key or self.public_key

    @property
    def concluded(self) -> bool:
        return not self.expected or "end" in self.whole or "end" in self.missing

    def signed_data(self) -> dict[str, Any] | None:
        """OCPI's SignedData; None where there is nothing signed. OCMF's version, "1.0", is no
        int and so has no place in `encoding_method_version`."""
        if not self.whole:
            return None
        values = [
            {
                "nature": _NATURES[nature],
                "plain_data": text[5 : text.rindex(b"|")].decode("utf-8", "replace"),
                "signed_data": base64.b64encode(text).decode(),
            }
            for nature, text in sorted(self.whole.items(), reverse=True)
        ]
        key = {"public_key": self.public_key} if self.public_key else {}
        return {"encoding_method": "OCMF"} | key | {"signed_values": values}

    def remark(self) -> str:
        """What is missing, in words; "" where all is there or none was announced."""
        missing = dict(self.missing)
        if self.expected and not self.concluded:
            missing["end"] = "the board did not hand it over in time"
        return "".join(f"; no signed {nature}: {why}" for nature, why in missing.items())


def awaited(db: Db, session_id: str, signatures: Signatures, now_ms: int) -> bool:
    """Must the CDR wait for the meter's signature? Remembers until when."""
    row = db.get(AwaitedSignature, session_id)
    if signatures.concluded or row is not None and row.until_ms <= now_ms:
        if row is not None:
            db.delete(row)
        return False
    if row is None:
        db.add(AwaitedSignature(session_id=session_id, until_ms=now_ms + WAIT_MS))
    return True


def given_up(db: Db, now_ms: int) -> list[str]:
    """The sessions whose signature is not waited for any longer."""
    due = select(AwaitedSignature.session_id).where(AwaitedSignature.until_ms <= now_ms)
    return list(db.scalars(due))
