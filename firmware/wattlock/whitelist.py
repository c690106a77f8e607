"""The whitelist: which cards start here without the gateway's word, some thousand of them.

Loaded only where config.json says `"offline_cards": "whitelist"`. The list stays in its file: a
look-up is a binary search that reads a few hundred bytes.

    list     rows in order | mark 'wl1' | version u64 | CRC-32 of the rows | key u32 | 3 zeros
    part     mark 'wl1' | from u64 | to u64 | 3 zeros | rows in order        a sync on its way
    row      key 8 | country_code 2 | party_id 3 | kind 1 | group_id 8       22 bytes, big-endian

The key is the beginning of an HMAC of the card's uid in capitals. kind is 'A' (ALWAYS or ALLOWED:
starts at once), 'O' (ALLOWED_OFFLINE: starts when the gateway cannot be asked) or, in a sync, '-'
(gone). group_id is the gateway's own short name of the group, zeros for none. Blocked tokens and
those that must be asked for every time (NEVER) have no row. The list's own key tells the HMAC's.

Rules
 1. The gateway sends what changed between two versions, in parts that follow each other in the
    order of the rows; from 0 that is everything. A part counts only behind the row that the board
    has last (`after`), so parts can be lost, repeated, and taken up again after a reset.
 2. With the last part the list is written anew aside, some rows a turn, and renamed. So a power
    cut leaves the old list or the new one, whole. A part that is left over is of no harm.
 3. A list whose CRC or key is wrong is no list: version 0.
Limits: the HMAC's key is in this board's flash as well, so who has the board can try uids: four
bytes are found in no time, seven with effort. Names and contracts are not on the board. Two cards
of 64 equal bits of HMAC are one card.
"""

from binascii import a2b_base64, crc32, hexlify

from .errors import StorageError
from .ocpi import RFID

_ROW = 22
_KEY = 13  # bytes that name a row
_MARK = b"wl1"
_AT_ONCE = 32  # rows read at once, and written in a turn


def _number(data, at):
    return int.from_bytes(data[at : at + 8], "big")


class _Rows:
    """The rows of a file one after the other: `row`, None behind the last."""

    def __init__(self, shelf, name, first, end):
        self.shelf = shelf
        self.name = name
        self.at = first * _ROW
        self.end = end * _ROW
        self.data = b""
        self.i = 0
        self.step()

    def step(self):
        self.i += _ROW
        if self.i >= len(self.data):
            size = min(self.end - self.at, _ROW * _AT_ONCE)
            self.data = self.shelf.read(self.name, self.at, size) if size else b""
            self.at += size
            self.i = 0
        self.row = self.data[self.i : self.i + _ROW] or None


class Whitelist:
    def __init__(self, shelf, mac):
        """`shelf`: files, see hal/shelf.py; `mac`: HMAC under K_tokens, see UPLINK.md."""
        self.shelf = shelf
        self.mac = mac
        self.version = self.count = 0
        self.since = self.to = 0  # the sync on its way; `to` 0: none
        self.after = b""  # name of the last row that it brought
        self.work = None  # the list being written anew
        names = shelf.names()
        if "list" in names:
            self._open()
        if "part" in names:
            self._resume()

    def _open(self):
        rows = self.shelf.size("list") // _ROW - 1
        end = self.shelf.read("list", max(rows, 0) * _ROW, _ROW + 1)
        check = 0
        for i in range(0, rows, _AT_ONCE):
            check = crc32(self.shelf.read("list", i * _ROW, min(_AT_ONCE, rows - i) * _ROW), check)
        if end[:3] == _MARK and end[11:] == self._seal(check):
            self.version = _number(end, 3)
            self.count = rows

    def _seal(self, check):
        return check.to_bytes(4, "big") + self.mac(b"key")[:4] + bytes(3)

    def _resume(self):
        size = self.shelf.size("part")
        head = self.shelf.read("part", 0, _ROW)
        since = _number(head, 3)
        to = _number(head, 11)
        if size % _ROW or head[:3] != _MARK or to == self.version:
            return  # of no use any more; the next one is written over it
        if since not in (0, self.version):
            return
        self.since = since
        self.to = to
        if size > _ROW:
            self.after = self.shelf.read("part", size - _ROW, _KEY)

    def report(self):
        """For the header: what is here, and how far a sync has come."""
        told = {"v": self.version, "n": self.count}
        if self.to:
            told["to"] = self.to
            told["after"] = hexlify(self.after).decode()
        return told

    # -- look-up -------------------------------------------------------------------------------

    def find(self, uid, offline):
        """The token of this card, if it may start without the gateway; None otherwise."""
        key = self.mac(uid.upper().encode())[:8]
        low = 0  # rows before it have smaller keys,
        high = self.count  # rows from it on have not
        while high - low > _AT_ONCE // 2:
            mid = (low + high) // 2
            if self.shelf.read("list", mid * _ROW, 8) < key:
                low = mid + 1
            else:
                high = mid
        rows = _Rows(self.shelf, "list", low, self.count)
        while rows.row is not None and rows.row[:8] <= key:
            row = rows.row
            if row[:8] == key and (offline or row[13:14] == b"A"):
                return _token(row, uid)
            rows.step()
        return None

    # -- sync ----------------------------------------------------------------------------------

    def take(self, data):
        """A part of a sync (`data` of SYNC_TOKENS); True when there is something to report. What
        is not the next part changes nothing."""
        rows = _rows(data)
        if rows is None or self.work is not None:
            return False
        after = data["after"]
        if not after:
            if data["from"] not in (0, self.version):
                return True
            self.since = data["from"]
            self.to = 0
            head = _MARK + self.since.to_bytes(8, "big") + data["to"].to_bytes(8, "big")
            self.shelf.create("part", head + bytes(_ROW - len(head)))
            self.to = data["to"]
            self.after = b""
        elif data["to"] != self.to or after != hexlify(self.after).decode():
            return True
        last = self.after
        for i in range(0, len(rows), _ROW):
            if rows[i : i + _KEY] <= last:
                return False
            last = rows[i : i + _KEY]
        if rows:
            self.shelf.append("part", rows)
            self.after = last
        if data.get("last") is True:
            self.work = self._write()
            return False  # once it is written
        return True

    def turn(self):
        """Some rows of the new list; True when it has come into force."""
        if self.work is None:
            return False
        try:
            next(self.work)
            return False
        except StopIteration:
            self.work = None
            return True
        except StorageError:
            self.work = None  # the gateway repeats the last part
            raise

    def _write(self):
        shelf = self.shelf
        shelf.begin()
        old = _Rows(shelf, "list", 0, self.count if self.since else 0)
        new = _Rows(shelf, "part", 1, shelf.size("part") // _ROW)
        count = check = turns = 0
        while old.row is not None or new.row is not None:
            row = old.row
            if new.row is None or (row is not None and row[:_KEY] < new.row[:_KEY]):
                old.step()
            else:
                if row is not None and row[:_KEY] == new.row[:_KEY]:
                    old.step()
                row = new.row
                new.step()
            if row[13:14] != b"-":
                shelf.put(row)
                check = crc32(row, check)
                count += 1
            turns += 1
            if turns % _AT_ONCE == 0:
                yield
        shelf.put(_MARK + self.to.to_bytes(8, "big") + self._seal(check))
        shelf.finish("list")
        self.version = self.to
        self.count = count
        self.to = 0
        shelf.remove("part")


def _token(row, uid):
    token = {
        "country_code": row[8:10].decode(),
        "party_id": row[10:13].decode().strip(),
        "type": RFID,
        "uid": uid.upper(),
    }
    if row[14]:
        token["group_id"] = row[14:22].decode()
    return token


def _rows(data):
    """The rows of a part, or None where it is none."""
    for key in ("from", "to"):
        if not isinstance(data.get(key), int) or not 0 <= data[key] < 1 << 53:
            return None
    if not isinstance(data.get("after"), str) or not isinstance(data.get("rows"), str):
        return None
    try:
        rows = a2b_base64(data["rows"])
    except ValueError:
        return None
    return None if len(rows) % _ROW or not data["to"] else rows
