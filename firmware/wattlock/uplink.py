"""Uplink: journal -> message -> link -> acknowledgement.

One message is on its way at a time. It goes out when there are records that nobody acknowledged,
when a picture is due (`live_s`), or when something is asked for. What is not answered in time is
sent again, the wait doubling with jitter up to two minutes, and so are records that an answer does
not acknowledge. What is new in the meantime, a card or a command, does not sit that wait out: it
goes with one more try, a second after the last at the soonest. Nothing but an acknowledgement
moves the journal's cursor. The link below may lose, repeat and delay as it likes.

A gateway that is slow, because thousands of boards have come back to it, is not asked again before
it can have answered: the wait begins at twice what its last answer took, and an answer to an
earlier try that acknowledges what is on its way ends the waiting as well.

A picture in which nothing is new but what flows can be brief, where the gateway has said so
(`brief_s`): a third of the bytes, and no answer. It may be lost. At least every `brief_s`, and
every 16 minutes, a whole message tells whether anybody listens.
"""

import json
from binascii import hexlify

from .commands import MAX_MESSAGE

_FIRST_WAIT_MS = 1000
_LAST_WAIT_MS = 120000
_RECORD_ROOM = 1100  # bytes of records in a message, enough for the longest one
_BRIEF_S = 960  # a bit more than from quarter to quarter, when a session's period is told


class Uplink:
    def __init__(self, journal, mac, kid, sid, live_ms):
        self.journal = journal
        self.mac = mac  # of the purpose "up"
        self.kid = kid
        self.sid = sid
        self.live_ms = live_ms
        self.sent_up = None  # up_ms of the message on its way, None when answered
        self.greeted = False  # an answer has come in this boot
        self.wait_ms = _FIRST_WAIT_MS
        self.hurry = True  # a message is wanted now
        self.progress = 0  # acknowledged steps, for the supervisor
        self.sent_at = None  # ticks
        self._last_up = -1
        self._retry = 0
        self._carried = 0  # sequence of the first record in the message on its way, 0: none
        self._stuck = False  # answered, and not acknowledged
        self._left = 0  # so many pictures may be brief before a whole message

    def due(self, since, connected):
        """Is a message to be sent? `since(ticks)` gives the ms that have passed since then."""
        if not connected:
            return False
        if self.sent_at is None:
            return True
        passed = since(self.sent_at)
        if self.sent_up is not None:
            return passed >= (_FIRST_WAIT_MS if self.hurry else self._retry)
        if self.hurry:
            return passed >= 20
        if self.journal.seq > self.journal.acked:
            return passed >= (self._retry if self._stuck else 20)
        return passed >= self.live_ms

    def brief(self):
        """Can the next message be a brief picture? Then its `live` has what flows, no more."""
        j = self.journal
        return self._left and not self.hurry and self.sent_up is None and j.seq == j.acked

    def message(self, boot, up, ticks, clock, live, asked, jitter):
        """The up message, in parts. `live`, `asked` are objects for the header; a brief one has no
        room for what is asked. `jitter` is a random byte. Raises StorageError when the journal
        cannot be read."""
        if up <= self._last_up:
            up = self._last_up + 1  # two messages of a boot never share an up_ms
        self._last_up = up
        j = self.journal
        header = {"v": 1, "kid": self.kid, "sid": self.sid, "up_ms": up}
        if self.brief():
            self._left -= 1
            header["seq"] = j.seq + 1
            header["live"] = live
            return self._seal(header, (), ticks)
        if (self.sent_up is not None and not self.hurry) or self._stuck:
            self.wait_ms = min(self.wait_ms * 2, _LAST_WAIT_MS)
        # the first answer of a boot says what the gateway has already: no record before that
        seq, prev, head, bodies = j.unsent(_RECORD_ROOM if self.greeted else 0)
        time = {"state": clock.state}
        if clock.now(up) is not None:
            time["unix_ms"] = clock.now(up)
            time["err_ms"] = clock.err(up)
        header["boot"] = boot
        header["clock"] = time
        header["journal"] = j.id
        header["first"] = j.first
        header["prev"] = hexlify(prev).decode()
        header["seq"] = seq
        header["head"] = hexlify(head).decode()
        header["live"] = live
        header.update(asked)
        parts = self._seal(header, bodies, ticks)
        self.sent_up = up
        self._carried = seq if bodies else 0
        self._retry = self.wait_ms + self.wait_ms * jitter // 512
        self.hurry = False
        return parts

    def _seal(self, header, bodies, ticks):
        parts = [json.dumps(header, separators=(",", ":")).encode()]
        for body in bodies:
            parts.append(b"\n")
            parts.append(body)
        size = sum([len(part) for part in parts]) + 65
        if size > MAX_MESSAGE:
            raise ValueError("message of %d bytes" % size)
        self.sent_at = ticks
        return [hexlify(self.mac(*parts)), b"\n"] + parts

    def answer(self, head, up):
        """Take an authentic down message that came at `up`: its acknowledgement and, where it
        answers, the end of waiting. Acknowledgements of another journal or of what was never sent
        are ignored."""
        j = self.journal
        ack = head.get("ack")
        if head.get("journal") == j.id and isinstance(ack, int) and 0 <= ack <= j.seq:
            if ack != j.acked:
                self.progress += 1
                j.acknowledge(ack)
        re = head.get("re")
        if self.sent_up is None or not isinstance(re, int) or not 0 <= re <= self.sent_up:
            return
        if re == self.sent_up or self._carried <= j.acked:
            self.greeted = True
            self.sent_up = None
            brief_s = head.get("brief_s")
            self._left = 0
            if isinstance(brief_s, int):
                self._left = max(0, min(brief_s, _BRIEF_S) * 1000 // self.live_ms - 1)
            self._stuck = j.acked < self._carried
            if not self._stuck:
                self.wait_ms = max(_FIRST_WAIT_MS, min(2 * (up - re), _LAST_WAIT_MS))
            self.progress += 1

    def lost(self):
        """The link went down: what was on its way is sent again on the next one."""
        self.sent_up = None
        self.hurry = True
