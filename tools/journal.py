"""Journals from flash images, for people: `python -m tools.journal show|verify|export IMAGE`.

Reads the format of `firmware/wattlock/journal.py` with a decoder of its own, so that the two check
each other. `show` prints the records with the segment they stand in, `export` one body a line,
`verify --secrets FILE --station ID` follows the chain from the oldest checkpoint to the newest
and names the place where a record was edited, removed or put elsewhere. No checkpoint stands
behind the newest records yet, so their change or loss shows only beside the gateway's copy:
`--gateway DB`, its SQLite file.

A torn tail is what a power cut may leave; it is told and is no proof of anything.
Limits: images only; a live board's /journal is copied with `mpremote fs cp -r` first (a directory
of segments is taken as well). The state in a checkpoint is not under the chain.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import sqlite3
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from littlefs import LittleFSError

HEAD = struct.Struct("<I")  # kind in the low byte, length in the other three


class ToolError(Exception):
    """Names what cannot be read, and why."""


@dataclass(frozen=True)
class Record:
    seq: int
    body: bytes
    segment: str

    @property
    def fields(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Segment:
    name: str
    checkpoint: dict[str, Any]
    records: list[Record]
    torn: int
    """Bytes behind the last whole group."""


@dataclass
class Journal:
    """The segments that can be read, oldest first, and what is wrong with the others."""

    segments: list[Segment] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        """Every record once, by sequence; one that stands twice counts where it went on."""
        found = {record.seq: record for segment in self.segments for record in segment.records}
        return [found[seq] for seq in sorted(found)]


def groups(data: bytes) -> Iterator[tuple[str, bytes, int]]:
    """(kind, payload, end) of each whole group from the start of a segment."""
    at = 0
    while len(data) >= at + 8:
        (head,) = HEAD.unpack_from(data, at)
        kind, size = chr(head & 0xFF), head >> 8
        end = at + 4 + size
        if kind not in "CSR" or len(data) < end + 4:
            return
        if zlib.crc32(data[at:end]) != HEAD.unpack_from(data, end)[0]:
            return
        yield kind, data[at + 4 : end], end + 4
        at = end + 4


def _object(text: bytes) -> dict[str, Any] | None:
    """A checkpoint with everything that is read here, or None."""
    try:
        value = json.loads(text)
        bytes.fromhex(value["link"])
        kinds = [isinstance(value[key], int) for key in ("seq", "acked", "pieces")]
        return value if all(kinds) and isinstance(value["journal"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


def read_segment(name: str, data: bytes) -> Segment | None:
    """None where not even the checkpoint is whole."""
    segment = None
    end = pieces = 0
    for kind, payload, after in groups(data):
        if segment is None:
            checkpoint = _object(payload)
            if kind != "C" or checkpoint is None:
                return None
            segment = Segment(name, checkpoint, [], 0)
            pieces = checkpoint["pieces"]
        elif kind == "S":
            pieces -= 1
        elif kind == "R":
            (seq,) = HEAD.unpack_from(payload)
            for body in payload[4:].split(b"\n"):
                segment.records.append(Record(seq, body, name))
                seq += 1
        end = after
    if segment is None or pieces:
        return None
    segment.torn = len(data) - end
    return segment


def read_files(files: dict[str, bytes]) -> Journal:
    """The journal whose segments are `files` by name."""
    journal = Journal()
    for name in sorted(name for name in files if name.endswith(".j")):
        segment = read_segment(name, files[name])
        if segment is None:
            journal.wrong.append(f"{name}: no whole checkpoint; {len(files[name])} bytes lost")
            continue
        if segment.torn:
            journal.torn.append(f"{name}: torn tail of {segment.torn} bytes")
        journal.segments.append(segment)
    return journal


def read_image(path: Path) -> Journal:
    """The journal of a LittleFS image, or of a directory of segments."""
    if path.is_dir():
        return read_files({p.name: p.read_bytes() for p in path.iterdir() if p.is_file()})
    from tools.virtual_board import image

    try:
        files = image.read_files(path, "/journal")
    except LittleFSError as error:
        raise ToolError(f"{path}: no LittleFS with a /journal on it ({error})") from error
    return read_files({Path(name).name: data for name, data in files.items()})


def chain_key(key: bytes, station_id: str) -> bytes:
    return hmac.digest(key, f"wattlock/1/chain/{station_id}".encode(), "sha256")


def link(key: bytes, before: bytes, record: Record) -> bytes:
    return hmac.digest(key, before + record.seq.to_bytes(8, "big") + record.body, hashlib.sha256)


def verify(
    journal: Journal, key: bytes, gateway: dict[int, tuple[bytes, bytes]] | None = None
) -> list[str]:
    """What the chain disproves; nothing means that every record is as it was written, as far as
    the newest checkpoint, or as far as `gateway` goes: its records of this journal, seq -> (body,
    link)."""
    wrong = list(journal.wrong)
    links: dict[int, bytes] = {}
    last = 0
    for segment in journal.segments:
        head, name = segment.checkpoint, segment.name
        seq, before = head["seq"], bytes.fromhex(head["link"])
        if head["journal"] != journal.segments[0].checkpoint["journal"]:
            wrong.append(f"{name}: belongs to another journal, {head['journal']}")
        if seq == 0 and before != hmac.digest(key, head["journal"].encode(), "sha256"):
            wrong.append(f"{name}: the first link is not this station's")
        if int(name[:8], 16) != seq + 1:
            wrong.append(f"{name}: its checkpoint stands before record {seq + 1}")
        if links and seq > last:
            wrong.append(f"{name}: records {last + 1} to {seq} are missing")
        elif links.setdefault(seq, before) != before:
            wrong.append(f"{name}: the records before {seq + 1} are not those that were written")
        for record in segment.records:
            if record.seq != seq + 1:
                wrong.append(f"{name}: record {record.seq} follows {seq}")
            before, seq = link(key, before, record), record.seq
            links[seq] = before
        last = max(last, seq)
    for seq, (body, known) in sorted((gateway or {}).items()):
        if seq > last:
            wrong.append(f"record {seq} and what follows are gone; the gateway has them")
            break
        if links.get(seq, known) != known:
            written = body.decode(errors="replace")
            wrong.append(f"record {seq} is not what the gateway has: {written}")
            break
    return wrong


def gateway_records(
    database: Path, station_id: str, journal: str
) -> dict[int, tuple[bytes, bytes]]:
    """The gateway's copy of a journal: seq -> (body, link)."""
    with sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True) as db:
        rows = db.execute(
            "SELECT seq, body, link FROM record WHERE station_id = ? AND journal = ?",
            (station_id, journal),
        ).fetchall()
    db.close()
    return {seq: (body, known) for seq, body, known in rows}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.journal")
    parser.add_argument("do", choices=("show", "verify", "export"))
    parser.add_argument("image", type=Path, help="flash image, or a directory of segments")
    parser.add_argument("--secrets", type=Path, help="secrets.json of the board (verify)")
    parser.add_argument("--station", help="station_id (verify)")
    parser.add_argument("--gateway", type=Path, help="the gateway's SQLite file (verify)")
    args = parser.parse_args(argv)
    if args.do == "verify" and not (args.secrets and args.station):
        parser.error("verify needs --secrets and --station: the chain is keyed")
    try:
        return {"show": _show, "verify": _verify, "export": _export}[args.do](args)
    except (OSError, sqlite3.Error, ToolError) as error:
        print(f"python -m tools.journal: {error}", file=sys.stderr)
        return 2


def _read(args: argparse.Namespace) -> Journal:
    journal = read_image(args.image)
    if not journal.segments and not journal.wrong:
        raise ToolError(f"{args.image}: no journal there; segments are files like 00000001.j")
    return journal


def _show(args: argparse.Namespace) -> int:
    journal = _read(args)
    for segment in journal.segments:
        head = segment.checkpoint
        print(f"{segment.name}: journal {head['journal']}, acknowledged {head['acked']}")
        for record in segment.records:
            fields = record.fields
            moment = f"boot {fields.pop('boot')} +{fields.pop('up_ms') / 1000:.3f} s"
            said = " ".join(f"{k}={json.dumps(v)}" for k, v in fields.items() if k != "t")
            print(f"{record.seq:6} {moment:18} {fields['t']:8} {said}")
    for text in journal.torn + journal.wrong:
        print(text)
    return 0


def _export(args: argparse.Namespace) -> int:
    sys.stdout.buffer.writelines(record.body + b"\n" for record in _read(args).records)
    return 0


def _verify(args: argparse.Namespace) -> int:
    try:
        key = bytes.fromhex(json.loads(args.secrets.read_text())["key"])
    except (ValueError, KeyError, TypeError):
        raise ToolError(f"{args.secrets}: no secrets.json with a key of 64 hex digits") from None
    journal = _read(args)
    known = None
    if args.gateway and journal.segments:
        life = journal.segments[0].checkpoint["journal"]
        known = gateway_records(args.gateway, args.station, life)
        if not known:
            raise ToolError(f"{args.gateway}: nothing of {args.station}'s journal {life}")
    wrong = verify(journal, chain_key(key, args.station), known)
    proven = journal.segments[-1].checkpoint["seq"] if journal.segments else 0
    proven = max([proven, *(known or {})])
    for text in journal.torn + wrong:
        print(text)
    if not wrong:
        print(f"{len(journal.records)} records, chain unbroken up to record {proven}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
