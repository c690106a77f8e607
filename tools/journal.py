"""Journals for people: `python -m tools.journal show|verify|export FROM`.

FROM is a flash image, a directory of segments, one segment, or the serial port of a live board.
`show` prints the records with the segment they stand in and when they were written, `export` one
body a line. `verify --secrets FILE --station ID` follows the keyed chain and names the first
records that are not those that were written, were taken out or put elsewhere. Nothing in a journal
can tell that its end was cut off, or that whole segments went before anybody had acknowledged
them: `--acked SEQ`, the gateway's acknowledgement (`/admin/stations`), or `--gateway DB`, its
SQLite file, says how far it has to reach, and where it may begin; with the database each record
is compared.

Reads the format of firmware/JOURNAL.md with a decoder of its own, so that it and
`firmware/wattlock/journal.py` check each other. A torn tail, a group that ends too early, is what
a power cut may leave; it is told and is no proof of anything. A whole group with a wrong CRC is.

A live board is read through mpremote: the agent is interrupted, contactors open, and the board is
reset afterwards, which resumes a session as after a power cut.
Limits: the state in a checkpoint is not under the chain. What a key is worth depends on who has
it: a board keeps its own in plain text.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import json
import sqlite3
import struct
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from littlefs import LittleFSError

VERSION = 1
HEAD = struct.Struct("<I")  # kind in the low byte, length in the other three
KINDS = "CSRP"
LINK_BYTES = 8  # of the link that a group of records carries
LONGEST = 32_760  # bytes of a group: four segments and what it is wrapped in
DRIFT = 10_000  # a board's clock errs by one part in so many
LISTING = """
import os
try:
    for n in os.listdir('/journal'):
        print(n)
except OSError:
    pass
"""


class ToolError(Exception):
    """Names what cannot be read, and why."""


@dataclass(frozen=True)
class Record:
    seq: int
    body: bytes
    segment: str
    link: bytes | None = None
    """As far as it is on the flash: of the last record of a group."""

    @property
    def fields(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Segment:
    name: str
    checkpoint: dict[str, Any]
    records: list[Record]
    torn: int
    """Bytes behind the last whole group, that look like one which ends too early."""
    unreadable: int
    """Bytes behind it that do not."""


@dataclass
class Journal:
    """The segments that can be read, oldest first, and what is wrong with the others."""

    segments: list[Segment] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)

    @cached_property
    def records(self) -> list[Record]:
        """Every record once, by sequence; one that stands twice counts where it went on."""
        found = {record.seq: record for segment in self.segments for record in segment.records}
        return [found[seq] for seq in sorted(found)]

    @property
    def first(self) -> int:
        """Sequence of the oldest record that it may have."""
        return min((segment.checkpoint["seq"] + 1 for segment in self.segments), default=1)

    @property
    def last(self) -> int:
        """Sequence of the newest record."""
        heads = [segment.checkpoint["seq"] for segment in self.segments[-1:]]
        return max([*heads, *(record.seq for record in self.records[-1:])], default=0)


def groups(data: bytes) -> Iterator[tuple[str, bytes, int]]:
    """(kind, payload, end) of each whole group from the start of a segment."""
    at = 0
    while len(data) >= at + 8:
        (head,) = HEAD.unpack_from(data, at)
        kind, size = chr(head & 0xFF), head >> 8
        end = at + 4 + size
        if kind not in KINDS or len(data) < end + 4:
            return
        if zlib.crc32(data[at:end]) != HEAD.unpack_from(data, end)[0]:
            return
        yield kind, data[at + 4 : end], end + 4
        at = end + 4


def _is_torn(rest: bytes) -> bool:
    """Is it a group that ends too early?"""
    if len(rest) < HEAD.size:
        return True
    (head,) = HEAD.unpack_from(rest)
    return chr(head & 0xFF) in KINDS and len(rest) < 8 + (head >> 8) <= LONGEST


def _object(text: bytes) -> dict[str, Any] | None:
    """A checkpoint with everything that is read here, or None."""
    try:
        value = json.loads(text)
        if "v" in value and value["v"] != VERSION:
            return value
        bytes.fromhex(value["link"])
        kinds = [isinstance(value[key], int) for key in ("v", "seq", "acked", "pieces")]
        return value if all(kinds) and isinstance(value["journal"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


def read_segment(name: str, data: bytes) -> Segment | str:
    """The segment, or why it cannot be read."""
    segment = None
    end = pieces = 0
    for kind, payload, after in groups(data):
        if segment is None:
            checkpoint = _object(payload)
            if kind != "C" or checkpoint is None:
                break
            if checkpoint["v"] != VERSION:
                return f"{name}: version {checkpoint['v']}; this tool reads version {VERSION}"
            segment = Segment(name, checkpoint, [], 0, 0)
            pieces = checkpoint["pieces"]
        elif kind == "S":
            pieces -= 1
        elif kind == "R":
            (seq,) = HEAD.unpack_from(payload)
            link = payload[HEAD.size : HEAD.size + LINK_BYTES]
            bodies = payload[HEAD.size + LINK_BYTES :].split(b"\n")
            last = seq + len(bodies) - 1
            segment.records += [
                Record(at, body, name, link if at == last else None)
                for at, body in enumerate(bodies, seq)
            ]
        end = after
    if segment is None or pieces:
        return f"{name}: no whole checkpoint; {len(data)} bytes lost"
    if _is_torn(data[end:]):
        segment.torn = len(data) - end
    else:
        segment.unreadable = len(data) - end
    return segment


def read_files(files: dict[str, bytes]) -> Journal:
    """The journal whose segments are `files` by name."""
    journal = Journal()
    for name in sorted(name for name in files if name.endswith(".j")):
        segment = read_segment(name, files[name])
        if isinstance(segment, str):
            journal.wrong.append(segment)
            continue
        if segment.torn:
            journal.torn.append(f"{name}: torn tail of {segment.torn} bytes")
        if segment.unreadable:
            last = max((r.seq for r in segment.records), default=segment.checkpoint["seq"])
            journal.wrong.append(
                f"{name}: record {last + 1} and what follows, {segment.unreadable} bytes, "
                "are not what was written"
            )
        journal.segments.append(segment)
    return journal


def read_image(path: Path) -> Journal:
    """The journal of a LittleFS image, of a directory of segments, or one segment's."""
    if path.is_dir():
        return read_files({p.name: p.read_bytes() for p in path.iterdir() if p.is_file()})
    if path.suffix == ".j":
        return read_files({path.name: path.read_bytes()})
    from tools.virtual_board import image

    try:
        files = image.read_files(path, "/journal")
    except LittleFSError as error:
        raise ToolError(f"{path}: no LittleFS with a /journal on it ({error})") from error
    return read_files({Path(name).name: data for name, data in files.items()})


def read_board(port: str) -> Journal:
    """The journal of the board at a serial port, which is reset afterwards."""
    from tools.deploy import Board, DeployFailed

    board = Board(port)
    try:
        board.start()
        names = [name for name in board.execute(LISTING).split() if name.endswith(".j")]
        return read_files({name: board.read(f"/journal/{name}") for name in names})
    except DeployFailed as error:
        raise ToolError(str(error)) from error
    finally:
        if board.touched:
            with contextlib.suppress(DeployFailed):
                board.reset()


# --- time


class Calendar:
    """When records were written, by the `time` records of their boots: the latest anchor before
    one, else the first behind it. A `step` says that those before it were wrong."""

    def __init__(self, journal: Journal) -> None:
        self._anchors: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for record in journal.records:
            row = record.fields
            if row["t"] == "time":
                anchors = self._anchors[row["boot"]]
                if row.get("step"):
                    anchors.clear()
                anchors.append((row["up_ms"], row["unix_ms"], row["err_ms"]))

    def tell(self, boot: int, up_ms: int) -> str:
        """In UTC with its error; by boot and uptime where nothing dates it."""
        anchors = self._anchors.get(boot)
        if not anchors:
            return f"boot {boot} +{up_ms / 1000:.3f} s"
        at, unix_ms, err_ms = next((a for a in reversed(anchors) if a[0] <= up_ms), anchors[0])
        err_ms += abs(up_ms - at) // DRIFT
        when = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=unix_ms + up_ms - at)
        return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03} ±{err_ms / 1000:.2f} s"


# --- the chain


def chain_key(key: bytes, station_id: str) -> bytes:
    return hmac.digest(key, f"wattlock/1/chain/{station_id}".encode(), "sha256")


def link(key: bytes, before: bytes, record: Record) -> bytes:
    return hmac.digest(key, before + record.seq.to_bytes(8, "big") + record.body, hashlib.sha256)


def verify(
    journal: Journal,
    key: bytes,
    gateway: dict[int, tuple[bytes, bytes]] | None = None,
    acked: int | None = None,
) -> list[str]:
    """What the chain disproves, the first place in each segment; nothing means that every record
    is as it was written. `gateway`: its records of this journal, seq -> (body, link). `acked`: the
    journal has to reach so far, and to begin no later than behind it."""
    wrong = list(journal.wrong)
    known = max(gateway) if acked is None and gateway else acked
    if known is not None and known + 1 < journal.first:
        gone = f"records {known + 1} to {journal.first - 1}"
        wrong.append(f"{gone} are neither here nor acknowledged")
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
        first = seq + 1  # of the group
        for record in segment.records:
            if record.seq != seq + 1:
                wrong.append(f"{name}: record {record.seq} follows {seq}")
                break
            before, seq = link(key, before, record), record.seq
            if record.link is not None:
                if record.link != before[:LINK_BYTES]:
                    which = f"record {seq} is" if first == seq else f"records {first} to {seq} are"
                    wrong.append(f"{name}: {which} not what was written")
                    break
                first = seq + 1
            links[seq] = before
        last = max(last, segment.records[-1].seq if segment.records else seq)
    for seq, (body, known) in sorted((gateway or {}).items()):
        if seq > last:
            wrong.append(f"record {seq} and what follows are gone; the gateway has them")
            break
        if links.get(seq, known) != known:
            written = body.decode(errors="replace")
            wrong.append(f"record {seq} is not what the gateway has: {written}")
            break
    if acked is not None and acked > last:
        wrong.append(f"records {last + 1} to {acked} are gone; they were acknowledged")
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


def chain_key_of(path: Path, station_id: str) -> bytes:
    """From a board's secrets.json, or from a gateway's configuration. A key that was replaced has
    the chain's beside it."""
    try:
        secrets = json.loads(path.read_text())
        if "stations" in secrets:
            secrets = secrets["stations"][station_id]
        if "chain" in secrets:
            return bytes.fromhex(secrets["chain"])
        return chain_key(bytes.fromhex(secrets["key"]), station_id)
    except (ValueError, KeyError, TypeError):
        raise ToolError(
            f"{path}: no key of 64 hex digits for {station_id}; name its secrets.json, or the "
            "gateway's configuration"
        ) from None


# --- the command line


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.journal")
    parser.add_argument("do", choices=("show", "verify", "export"))
    parser.add_argument(
        "place", type=Path, metavar="FROM", help="flash image, directory, segment or serial port"
    )
    parser.add_argument(
        "--secrets", type=Path, help="secrets.json of the board or the gateway's config (verify)"
    )
    parser.add_argument("--station", help="station_id (verify)")
    parser.add_argument("--acked", type=int, help="last acknowledged record (verify)")
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
    live = args.place.is_char_device()
    journal = read_board(str(args.place)) if live else read_image(args.place)
    if not journal.segments and not journal.wrong:
        raise ToolError(f"{args.place}: no journal there; segments are files like 00000001.j")
    return journal


def _show(args: argparse.Namespace) -> int:
    journal = _read(args)
    calendar = Calendar(journal)
    for segment in journal.segments:
        head = segment.checkpoint
        print(f"{segment.name}: journal {head['journal']}, acknowledged {head['acked']}")
        for record in segment.records:
            fields = record.fields
            moment = calendar.tell(fields.pop("boot"), fields.pop("up_ms"))
            said = " ".join(f"{k}={json.dumps(v)}" for k, v in fields.items() if k != "t")
            print(f"{record.seq:6} {moment:32} {fields['t']:8} {said}")
    for text in journal.torn + journal.wrong:
        print(text)
    return 0


def _export(args: argparse.Namespace) -> int:
    sys.stdout.buffer.writelines(record.body + b"\n" for record in _read(args).records)
    return 0


def _verify(args: argparse.Namespace) -> int:
    key = chain_key_of(args.secrets, args.station)
    journal = _read(args)
    known = None
    if args.gateway and journal.segments:
        life = journal.segments[0].checkpoint["journal"]
        known = gateway_records(args.gateway, args.station, life)
        if not known:
            raise ToolError(f"{args.gateway}: nothing of {args.station}'s journal {life}")
    wrong = verify(journal, key, known, args.acked)
    for text in journal.torn + wrong:
        print(text)
    if not wrong:
        print(f"{len(journal.records)} records, chain unbroken up to record {journal.last}")
        if not known and args.acked is None:
            print("whether later ones were cut off, only --acked or --gateway can tell")
            if journal.first > 1:
                print(f"and whether those before {journal.first} were acknowledged")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
