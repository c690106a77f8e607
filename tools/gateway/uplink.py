"""Uplink v1 on the wire: MAC, lines, chain. The words are in UPLINK.md.

Purpose: turn bytes from a board into an authenticated message and back.
Theory: ``mac \\n header [\\n record]*``; the MAC covers every byte after the first newline, with a
key per direction, so that a message reflected to its sender never verifies. The chain link of
record n covers link n-1, n and the record's bytes: two histories of one journal differ in a link.
Limits: knows nothing of header fields or of records; `messages` does.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Literal

MESSAGE_MAX_BYTES = 4096
RECORD_MAX_BYTES = 1024
MAC_HEX = 64

_STATION_ID = re.compile(r"[A-Za-z0-9_-]{1,36}\Z")
_MAC = re.compile(rb"[0-9a-f]{64}\Z")

Direction = Literal["up", "down"]


class UplinkError(Exception):
    """A message that must do nothing. `why` is the counter it belongs to."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


def is_station_id(text: str) -> bool:
    return _STATION_ID.match(text) is not None


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def derive_key(station_key: bytes, purpose: str, station_id: str) -> bytes:
    """`purpose` is ``up``, ``down`` or ``chain``."""
    return _hmac(station_key, f"wattlock/1/{purpose}/{station_id}".encode())


def first_link(chain_key: bytes, journal: str) -> bytes:
    """link(0) of a journal's life."""
    return _hmac(chain_key, journal.encode())


def next_link(chain_key: bytes, previous: bytes, seq: int, body: bytes) -> bytes:
    return _hmac(chain_key, previous + seq.to_bytes(8, "big") + body)


def links(chain_key: bytes, previous: bytes, seq: int, bodies: list[bytes]) -> list[bytes]:
    """``[previous, link(seq), link(seq + 1), ...]`` for the record lines of one message."""
    chain = [previous]
    for offset, body in enumerate(bodies):
        chain.append(next_link(chain_key, chain[-1], seq + offset, body))
    return chain


@dataclass(frozen=True)
class Message:
    """The lines of a message whose MAC is right. Nothing else has been looked at."""

    header: bytes
    records: list[bytes]


def parse(raw: bytes, station_key: bytes, direction: Direction, station_id: str) -> Message:
    """Check size and MAC, split into lines.

    Raises UplinkError (`why`: ``size``, ``shape`` or ``mac``).
    """
    if len(raw) > MESSAGE_MAX_BYTES:
        raise UplinkError("size", f"message of {len(raw)} bytes, at most {MESSAGE_MAX_BYTES}")
    mac, newline, rest = raw.partition(b"\n")
    if not newline or _MAC.match(mac) is None:
        raise UplinkError("shape", "first line is not a MAC of 64 lower-case hex digits")
    wanted = _hmac(derive_key(station_key, direction, station_id), rest).hex().encode()
    if not hmac.compare_digest(mac, wanted):
        raise UplinkError("mac", "MAC does not fit the station's key and direction")
    header, *records = rest.split(b"\n")
    for record in records:
        if not 0 < len(record) <= RECORD_MAX_BYTES:
            raise UplinkError("size", f"record line of {len(record)} bytes, 1 to 1024 allowed")
    return Message(header, records)


def build(
    station_key: bytes,
    direction: Direction,
    station_id: str,
    header: bytes,
    records: list[bytes] | None = None,
) -> bytes:
    """The bytes of a message. Raises UplinkError if they would exceed 4,096."""
    rest = b"\n".join([header, *(records or [])])
    raw = _hmac(derive_key(station_key, direction, station_id), rest).hex().encode() + b"\n" + rest
    if len(raw) > MESSAGE_MAX_BYTES:
        raise UplinkError("size", f"message of {len(raw)} bytes, at most {MESSAGE_MAX_BYTES}")
    return raw
