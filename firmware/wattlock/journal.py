"""The journal: every fact, once, durable before it is acted on or reported.

Theory
    A journal is a row of segments, files named by the sequence of their first record
    (`0000002a.j`). A segment opens with a checkpoint, the whole state before its first record: a
    head, and the state in as many small groups as the head says, so that no heap ever has to hold
    it in one piece. Then come record groups: the records of one transition, one write, one flush,
    one CRC.

        segment := C group | S group ... | R group or P group ...
        group   := u8 kind (C, S, R, P) | u24 length | payload | u32 CRC-32 of these
        C       := {"v", "journal", "seq" of the last record before, its "link", "acked", "pieces"}
        S       := [value] | [key, value] | [key, key, value]                        a JSON array
        R       := u32 sequence of the first | first 8 bytes of the last one's link
                   | body | 0x0A | body ...                              numbers little-endian
        P       := zeros, as far as a block of the flash goes

    Bodies are JSON lines and never altered: the same bytes go to the gateway. Each is chained:
    link(n) = MAC(link(n-1) + n as 8 bytes big-endian + body(n)), link(0) = MAC(id).
    firmware/JOURNAL.md is the same for people, with the versions.

What survives a power cut
    Everything whose `append` returned. A group that ends too early was being written: it is cut
    off, counted, and a new segment is begun, so that nothing is ever written behind a torn tail.
    A new segment is complete (written aside and renamed) before an old one goes.

What cannot be read
    Bytes that are there and fail their CRC, a segment that a file system does not give which is
    well otherwise, or what RTC memory knows of and the file system does not, may have been
    reported. Their sequences are not used again: the journal goes on beyond them (at least
    `_SHORTEST` bytes make a record), a `lost` record names first and last, and the gateway sees a
    gap. The state is that of the last record that can be read.
    A journal of which nothing can be read, or whose newest segment is of another version, is set
    aside whole, and another life begins (`journal_new`: corrupt, version). A `lost` record of that
    class names the old one and the last of its records, as far as either is known.

What a write costs
    A file grows at its end, and LittleFS takes a new block for that: an erase. Across the end of a
    block it would take two, so that a segment's first block is filled up with a P group where the
    next R group does not fit in. That, and to begin a segment, can be a write of its own, and the
    records are another, see `append`.

Room
    `LIMIT` bytes are kept. Acknowledged segments go when their room is needed. While the
    unacknowledged ones fill it, records that can be spared are counted instead of written, in one
    `lost` record; starts, stops, reservations and results may use `RESERVED` bytes more, and
    beyond that nothing is taken: the caller learns it by StorageError. Where others have filled
    the file system, a file of as many bytes is given up for those records, once a boot.
"""

import json
from binascii import crc32, hexlify, unhexlify

from .errors import StorageError

SEGMENT = 8188  # two blocks: LittleFS keeps 4 bytes of the second
LIMIT = 96 * 1024
RESERVED = 32 * 1024
MAX_BODY = 1024
_VERSION = 1
_CHECKPOINT = 0x43
_STATE = 0x53
_RECORDS = 0x52
_PADDING = 0x50
_KINDS = (_CHECKPOINT, _STATE, _RECORDS, _PADDING)
_BLOCK = 4096
_EMPTY = 8  # bytes of a group without a payload
_SHORTEST = 24
_BODIES = 12  # where they begin in the payload of an R group
_PATIENCE = 5  # reads of a segment that may fail before it is given up


def link(mac, before, seq, body):
    """The chain's link of record `seq`."""
    return mac(before, seq.to_bytes(8, "big"), body)


def body(boot, up_ms, record):
    """A record as the line that is kept and sent."""
    return b'{"boot":%d,"up_ms":%d,%s' % (boot, up_ms, _json(record)[1:])


def _name(seq):
    return "%08x.j" % seq


def _json(value):
    return json.dumps(value, separators=(",", ":")).encode()


def _group(kind, *parts):
    """The parts of a group, to be written one behind the other."""
    n = sum([len(p) for p in parts])
    parts = (bytes((kind, n & 255, n >> 8 & 255, n >> 16)),) + parts
    crc = 0
    for p in parts:
        crc = crc32(p, crc)
    return parts + (crc.to_bytes(4, "little"),)


def _pieces(state):
    """A state as the rows of S groups: two levels of objects are taken apart."""
    if not isinstance(state, dict):
        yield [state]
        return
    for key in state:
        value = state[key]
        if isinstance(value, dict) and value:
            for inner in value:
                yield [key, inner, value[inner]]
        else:
            yield [key, value]


def _checkpoint(head, state):
    """The parts of a checkpoint, one after the other: it is never in memory as a whole."""
    head["pieces"] = sum([1 for _ in _pieces(state)])
    for part in _group(_CHECKPOINT, _json(head)):
        yield part
    for row in _pieces(state):
        for part in _group(_STATE, _json(row)):
            yield part


def _assemble(state, row):
    """The state after one more row."""
    if len(row) == 1:
        return row[0]
    if state is None:
        state = {}
    if len(row) == 2:
        state[row[0]] = row[1]
    else:
        state.setdefault(row[0], {})[row[1]] = row[2]
    return state


def _read_group(store, name, offset):
    """(kind, payload, offset of the next) or None where no whole group stands at `offset`."""
    head = store.read(name, offset, 4)
    if len(head) < 4 or head[0] not in _KINDS:
        return None
    n = head[1] | head[2] << 8 | head[3] << 16
    if n > SEGMENT * 4:
        return None
    rest = store.read(name, offset + 4, n + 4)
    if len(rest) < n + 4:
        return None
    if crc32(memoryview(rest)[:n], crc32(head)) != int.from_bytes(rest[n:], "little"):
        return None
    return head[0], rest[:n], offset + 8 + n


def _is_tail(store, name, offset, rest):
    """Do the `rest` bytes at `offset` look like a group that ends too early?"""
    head = store.read(name, offset, 4)
    if len(head) < 4:
        return True
    n = head[1] | head[2] << 8 | head[3] << 16
    return head[0] in _KINDS and rest < n + 8 <= SEGMENT * 4 + 8


class Journal:
    """The journal in `store` (its port: `hal/flash.py`), chained with `mac` (a `mac.Mac`)."""

    def __init__(self, store, mac):
        self.store = store
        self.mac = mac
        self.id = None  # 8 hex digits, one life of the journal
        self.seq = 0  # the last record
        self.link = b""  # its link
        self.acked = 0  # every record up to here is the gateway's
        self.sizes = []  # [first seq, bytes] of each segment, oldest first
        self.spared = 0  # records not written for want of room
        self.hole = None  # [first, last] sequence given up as unreadable, not yet on record
        self._begun = False  # a segment, for the group that comes next
        self._failures = 0  # reads that failed, in a row
        self._given_up = None  # the segment that is not asked for any more
        self._told = 0  # end of the last hole on record
        self._cursor = None  # where the first record that is not acknowledged stands
        self._sent = None  # where it will stand once what was sent last is acknowledged

    # -- boot ----------------------------------------------------------------------------------

    def open(self, restore, evolve, random, reached=None):
        """Rebuild the state: `restore(dict)` of the newest checkpoint, then `evolve(record)` for
        each record after it. `reached`: (journal, sequence) of the last record that somebody else
        knows to have been durable, or None. Returns what was found wrong, as records to be
        appended. Raises StorageError while the file system gives nothing at all: nothing is
        decided then."""
        store = self.store
        found = store.names()
        why = "empty"
        lost = {"t": "lost"}
        for reason in ("corrupt", "version", "rebuilt"):  # a file of that name is all that is left
            if reason in found:
                why = reason
                kept = store.read(reason, 0, MAX_BODY)
                if kept:  # what is known of the old one
                    lost = json.loads(kept)
        names = sorted([n for n in found if n.endswith(".j")])
        self.sizes = []
        for name in names:
            self.sizes.append([int(name[:8], 16), store.size(name)])
        found = None
        unread = len(names)  # segments from here on cannot even be begun
        while unread and found is None:
            found = self._checkpoint(self.sizes[unread - 1][0])
            if found is None:
                unread -= 1
        if not found:
            if reached is not None:
                lost["journal"], lost["last"] = reached
            if names:
                why = "corrupt" if found is None else "version"
                if reached is None and self.sizes[-1][0] > 1:
                    lost["last"] = self.sizes[-1][0] - 1  # at least: the newest segment's first
                store.set_aside(why, _json(lost))
                self.sizes = []
            store.reserve()
            self.id = hexlify(random(4)).decode()
            self.seq = self.acked = 0
            self.link = self.mac(self.id.encode())
            lost["class"] = why
            new = {"t": "event", "what": "journal_new", "why": why}
            return [new] if why == "empty" and reached is None else [new, lost]
        bad = -1  # bytes of those segments; -1: there is none
        while len(names) > unread:
            bad = max(bad, 0) + self.sizes.pop()[1]
            store.remove(names.pop())
        store.reserve()
        segment = self.sizes[-1][0]
        head, state, offset = found
        self.id = head["journal"]
        self.seq = head["seq"]
        self.acked = head["acked"]
        self.link = unhexlify(head["link"])
        restore(state)
        while True:
            found = self._get_now(segment, offset)
            if found is None:
                break
            kind, payload, offset = found
            for line in payload[_BODIES:].split(b"\n") if kind == _RECORDS else ():
                self.seq += 1
                self.link = link(self.mac, self.link, self.seq, line)
                evolve(json.loads(line))
        rest = self.sizes[-1][1] - offset
        went_back = reached is not None and reached[0] == self.id and reached[1] > self.seq
        if not rest and bad < 0 and not went_back:
            return []
        self.sizes[-1][1] = SEGMENT  # full: nothing is written behind it
        if bad < 0 and not went_back and _is_tail(store, names[-1], offset, rest):
            return [{"t": "event", "what": "torn_tail", "bytes": rest}]
        first = self.seq + 1
        self.seq += (rest + max(bad, 0)) // _SHORTEST + 1
        if went_back:
            self.seq = max(self.seq, reached[1])
        self.hole = [first, self.seq]
        return []

    def _checkpoint(self, segment):
        """(head, state, offset of the first record group) of a segment; None where it is not
        whole, False where it is of another version."""
        found = self._get_now(segment, 0)
        if found is None or found[0] != _CHECKPOINT:
            return None
        head = json.loads(found[1])
        if head.get("v") != _VERSION:
            return False
        state = None
        for _ in range(head["pieces"]):
            found = self._get_now(segment, found[2])
            if found is None or found[0] != _STATE:
                return None
            state = _assemble(state, json.loads(found[1]))
        return head, state, found[2]

    def _get(self, segment, offset):
        """As `_read_group`. None also where the file system fails again and again and is well
        otherwise. Raises StorageError as long as it is not."""
        try:
            found = _read_group(self.store, _name(segment), offset)
        except StorageError:
            if segment != self._given_up:
                self._failures += 1
                if self._failures % _PATIENCE or not self._well():
                    raise
                self._given_up = segment
            return None
        self._failures = 0
        return found

    def _get_now(self, segment, offset):
        for _ in range(_PATIENCE - 1):
            try:
                return self._get(segment, offset)
            except StorageError:
                pass
        return self._get(segment, offset)

    def _well(self):
        """Does the file system keep and give a few bytes?"""
        try:
            self.store.create("probe", b"well")
            well = self.store.read("probe", 0, 4) == b"well"
            self.store.remove("probe")
            return well
        except StorageError:
            return False

    # -- append --------------------------------------------------------------------------------

    def append(self, bodies, checkpoint, spare=False, alone=False):
        """Make `bodies` durable as one group. `checkpoint()` gives the state before them, for the
        case that they open a segment. `spare`: they may be dropped for want of room (False is
        returned and they are counted). `alone`: where something else has to be written first, that
        is all (None is returned, and the next call finds it done). Raises StorageError; then
        nothing was added."""
        size = sum([len(b) + 1 for b in bodies]) + _BODIES + _EMPTY - 1
        for b in bodies:
            if len(b) > MAX_BODY:
                raise ValueError("record of %d bytes; at most %d" % (len(b), MAX_BODY))
        if not self._begun and not self._room(size, spare):
            self.spared += len(bodies)
            return False
        try:
            if not self._begun and (not self.sizes or self.sizes[-1][1] + size > SEGMENT):
                self._begin(checkpoint)
                if alone:
                    self._begun = True
                    return None
            if self._fills_up(size) and alone:
                return None
            self._begun = False
            self._append(bodies)
        except (StorageError, MemoryError) as e:
            self._begun = False
            if self.sizes:
                self.sizes[-1][1] = SEGMENT  # what stands at its end is unknown: begin another
            if not spare:
                self.store.release()
            raise StorageError("cannot append: %r" % e)
        return True

    def _fills_up(self, size):
        """Did the block that the segment ends in have no room for a group of `size` bytes?"""
        left = -self.sizes[-1][1] % _BLOCK
        if left < _EMPTY or left == size or left >= size + _EMPTY:
            return False
        zeros = bytes(64)
        n = left - _EMPTY
        padding = _group(_PADDING, *[zeros] * (n // 64), zeros[: n % 64])
        self.store.append(_name(self.sizes[-1][0]), *padding)
        self.sizes[-1][1] += left
        return True

    def _append(self, bodies):
        seq = self.seq
        last = self.link
        parts = [(seq + 1).to_bytes(4, "little"), b""]
        for b in bodies:
            seq += 1
            last = link(self.mac, last, seq, b)
            parts.append(b)
            parts.append(b"\n")
        parts.pop()
        parts[1] = last[:8]
        self.store.append(_name(self.sizes[-1][0]), *_group(_RECORDS, *parts))
        self.sizes[-1][1] += sum([len(p) for p in parts]) + _EMPTY
        self.seq = seq
        self.link = last

    def _begin(self, checkpoint):
        head = {
            "v": _VERSION,
            "journal": self.id,
            "seq": self.seq,
            "acked": self.acked,
            "link": hexlify(self.link).decode(),
        }
        first = self.seq + 1
        if self.sizes and self.sizes[-1][0] == first:
            self.sizes.pop()  # a segment that holds no record: written anew under its name
            self._cursor = self._sent = None
        self.store.create(_name(first), _checkpoint(head, checkpoint()))
        self.sizes.append([first, self.store.size(_name(first))])

    def _room(self, size, spare):
        """Is there room for `size` more bytes? Lets acknowledged segments go to make it."""
        limit = LIMIT if spare else LIMIT + RESERVED
        while sum([s[1] for s in self.sizes]) + size > limit - SEGMENT:
            # the oldest may go once the next one's first record is beyond what is acknowledged
            if len(self.sizes) < 2 or self.sizes[1][0] > self.acked + 1:
                if spare:
                    return False
                raise StorageError("journal is full of records that nobody acknowledged")
            self.store.remove(_name(self.sizes.pop(0)[0]))
        return True

    def lost(self):
        """The `lost` record that is due, or None; `told` takes it off once it is durable."""
        if self.hole is not None:
            first, last = self.hole
            return {
                "t": "lost",
                "class": "unreadable",
                "count": last - first + 1,
                "journal": self.id,
                "first": first,
                "last": last,
            }
        if not self.spared:
            return None
        return {"t": "lost", "class": "spare", "count": self.spared}

    def told(self, record):
        if "journal" in record:
            self.hole = None
            self._told = record["last"]
        else:
            self.spared -= record["count"]

    # -- reading back, for the uplink ----------------------------------------------------------

    @property
    def first(self):
        """Sequence of the oldest record that is kept (the next one when none is)."""
        return self.sizes[0][0] if self.sizes else self.seq + 1

    def acknowledge(self, seq):
        """Everything up to `seq` is the gateway's. Lower than before means that the gateway has
        lost some: they are sent again as far as they are still here."""
        self.acked = seq
        if self._sent is not None and self._sent[0] == seq + 1:
            self._cursor = self._sent
        elif self._cursor is not None and self._cursor[0] != seq + 1:
            self._cursor = None
        self._sent = None

    def unsent(self, room):
        """(seq, link before, link after, [bodies]) that follow what is acknowledged, at most
        `room` bytes of them, each counted with a newline. Raises StorageError."""
        cursor = self._cursor
        if cursor is None:
            cursor = self._walk(None, max(self.acked + 1, self.first))
        self._cursor = cursor = self._beyond_hole(cursor)
        bodies = []
        self._sent = self._walk(cursor, self.seq + 1, bodies, room)
        return cursor[0], cursor[1], self._sent[1], bodies

    def _beyond_hole(self, cursor):
        """The cursor itself, or behind what cannot be read there: given up, with all before it."""
        seq, _, segment, offset, _ = cursor
        if seq > self.seq:
            return cursor
        if seq != segment and self._begins(seq):
            segment = seq
            offset = 0
        if self._get(segment, offset) is not None:
            return cursor
        while self.sizes and self.sizes[0][0] <= max(segment, seq):
            name = _name(self.sizes.pop(0)[0])
            if self.sizes:  # the newest one holds the checkpoint until another is begun
                try:
                    self.store.remove(name)
                except StorageError:
                    pass  # it is not looked at any more
        if self.first - 1 > self._told:
            self.hole = [seq if self.hole is None else self.hole[0], self.first - 1]
        return self._beyond_hole(self._walk(None, self.first))

    def _walk(self, cursor, until, bodies=None, room=0):
        """The cursor (seq, link before it, segment, offset, lines to skip) at record `until`,
        starting from `cursor` or from a segment's head, or where nothing more can be read.
        Collects `bodies` as long as they fit."""
        if cursor is None:
            start = None
            for segment, _ in self.sizes:
                if start is None or segment <= until:
                    start = segment
            if start is None:
                return until, self.link, until, 0, 0
            head = self._get(start, 0)
            if head is None:
                return start, self.link, start, 0, 0
            cursor = start, unhexlify(json.loads(head[1])["link"]), start, head[2], 0
        seq, before, segment, offset, skip = cursor
        while seq < until:
            if seq != segment and self._begins(seq):
                segment = seq
                offset = skip = 0
            found = self._get(segment, offset)
            if found is None:
                break
            kind, payload, after = found
            if kind == _RECORDS:
                lines = payload[_BODIES:].split(b"\n")
                for i in range(skip, len(lines)):
                    if bodies is not None:
                        room -= len(lines[i]) + 1
                        if room < 0:
                            return seq, before, segment, offset, i
                        bodies.append(lines[i])
                    elif seq == until:
                        return seq, before, segment, offset, i
                    before = link(self.mac, before, seq, lines[i])
                    seq += 1
                skip = 0
            offset = after
        return seq, before, segment, offset, skip

    def _begins(self, seq):
        for segment, _ in self.sizes:
            if segment == seq:
                return True
        return False
