"""Commands are the gateway's, fresh, and once.

Rules (the contract is `tools/gateway/UPLINK.md`)
 1. A down message counts only with the right MAC, kid and sid, not retained, `n` above the last.
    Anything else does nothing and is counted by its cause.
 2. A command in it counts only while `exp` has not passed and is at most an hour ahead, by a clock
    that errs at most 5 s; or when the message answers one that was sent less than 10 s ago.
 3. Its id is kept with a digest of its body and its result until exp + 1 h. The same id again does
    nothing more; the same id with another body is REJECTED.
 4. What a command does and its result are one group in the journal.
 5. While a key is being replaced, the next one is good as well, under its own kid.
"""

import hashlib
import json
from binascii import hexlify

from .clock import ANSWER_MS
from .mac import equal
from .tokens import is_word

MAX_MESSAGE = 4096
_HOUR_MS = 3600 * 1000
_DAY_MS = 24 * _HOUR_MS
_ERR_MS = 5000
_KEEP = 16
_MAX_DEPTH = 8

# why a message or a command was refused
FORGED = "forged"
MALFORMED = "malformed"
RETAINED = "retained"
OTHER_BOOT = "other_boot"
REPEATED = "repeated"
EXPIRED = "expired"
NOT_FRESH = "not_fresh"


class Inbox:
    """Opens down messages. RAM only: `sid` is drawn at each boot and `n` rises under it."""

    def __init__(self, mac, kid, sid, following=None):
        self.mac = mac  # of the purpose "down"
        self.kid = kid
        self.next = following  # (mac, kid) of the key that will be
        self.sid = sid  # 32 hex digits
        self.n = 0

    def open(self, message, retained=False):
        """(header, None) or (None, why it is refused)."""
        if retained:
            return None, RETAINED
        if not 66 <= len(message) <= MAX_MESSAGE or message[64] != 10:
            return None, MALFORMED
        text = message[65:]  # of the board's buffer: a view, no copy
        said = bytes(message[:64])
        kid = self.kid
        if not equal(hexlify(self.mac(text)), said):
            if self.next is None or not equal(hexlify(self.next[0](text)), said):
                return None, FORGED
            kid = self.next[1]
        try:
            head = json.loads(text)
            if head["v"] != 1 or head["kid"] != kid:
                return None, MALFORMED
            if head["sid"] != self.sid:
                return None, OTHER_BOOT
            if not isinstance(head["n"], int) or not isinstance(head.get("commands", []), list):
                return None, MALFORMED
            if head["n"] <= self.n:
                return None, REPEATED
            self.n = head["n"]
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError):
            return None, MALFORMED  # the last two: nested too deep
        return head, None


def answers(head, up):
    """Is this the answer to a message of this boot that is less than 10 s old? Not only to the
    newest: two that cross would be taken for strangers, and asked after, for ever."""
    re = head.get("re")
    return isinstance(re, int) and 0 <= re and up - re < ANSWER_MS


def stale(exp, is_answer, clock, up):
    """Why a command that is good until `exp` (unix ms) does not count now, or None."""
    now = clock.now(up)
    if now is None or clock.err(up) > _ERR_MS:
        return None if is_answer else NOT_FRESH
    if exp <= now:
        return EXPIRED
    if exp > now + _HOUR_MS + clock.err(up):
        return NOT_FRESH
    return None


def _feed(h, value):
    """Hash a value unambiguously, whatever the order of members, in small pieces."""
    if isinstance(value, dict):
        h.update(b"{")
        for k in sorted(value):
            _feed(h, k)
            _feed(h, value[k])
        h.update(b"}")
    elif isinstance(value, (list, tuple)):
        h.update(b"[")
        for v in value:
            _feed(h, v)
        h.update(b"]")
    elif isinstance(value, str):
        value = value.encode()
        h.update(b"s%d:" % len(value))
        h.update(value)
    else:
        h.update(repr(value).encode())
        h.update(b",")


def digest(command):
    """16 hex digits that stand for what a command says, whatever the order of its members."""
    h = hashlib.sha256()
    _feed(h, command["type"])
    _feed(h, command.get("data"))
    return hexlify(h.digest()[:8]).decode()


def known(results, command):
    """None: new. True: the same command again. False: its id was another command's."""
    kept = results.get(command["id"])
    return None if kept is None else kept.startswith(digest(command))


def result(command, word, evse=None, session_id=None):
    """The `result` record of a command."""
    record = {
        "t": "result",
        "command_id": command["id"],
        "type": command["type"],
        "result": word,
        "exp": command["exp"],
        "digest": digest(command),
    }
    if evse is not None:
        record["evse"] = evse
    if session_id is not None:
        record["session_id"] = session_id
    return record


def word(kept):
    """The result in an entry of those that are kept."""
    return kept.split()[1]


def _exp(kept):
    return int(kept.split()[2])


def evolve(results, record, least):
    """Keep a `result` record; drop those that are over since an hour, by the least time it can be
    (unix ms or None), and the oldest beyond what there is room for."""
    if record["command_id"] in results:
        return
    results[record["command_id"]] = "%s %s %d" % (  # one string: it is kept for long
        record["digest"], record["result"], record["exp"],
    )
    if least is not None:
        for id in [i for i in results if _exp(results[i]) + _HOUR_MS < least]:
            del results[id]
    while len(results) > _KEEP:
        oldest = None
        for id in results:
            if id != record["command_id"] and (
                oldest is None or _exp(results[id]) < _exp(results[oldest])
            ):
                oldest = id
        del results[oldest]


def stepped(results, unix_ms):
    """The clock was wrong and it is `unix_ms`: results of commands that were good for longer than
    a day from now go, or they would never make room. Such a command would not be fresh."""
    for id in [i for i in results if _exp(results[i]) - _DAY_MS > unix_ms]:
        del results[id]


def well_formed(command):
    """Has it an id, a type, an `exp` and, if any, `data` that is an object, whose ids are ids and
    which is flat enough to be read?"""
    if not isinstance(command, dict) or not isinstance(command.get("exp"), int):
        return False
    if not is_word(command.get("id")) or not is_word(command.get("type")):
        return False
    data = command.get("data", {})
    if not isinstance(data, dict) or not 0 < command["exp"] < 1 << 53:
        return False
    for key in ("reservation_id", "session_id", "authorization_reference"):
        if data.get(key) is not None and not is_word(data[key]):
            return False
    return _depth(data) <= _MAX_DEPTH


def _depth(value, depth=1):
    if depth > _MAX_DEPTH or not isinstance(value, (dict, list)):
        return depth
    inner = value.values() if isinstance(value, dict) else value
    return max([depth] + [_depth(v, depth + 1) for v in inner])
