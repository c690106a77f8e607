"""PN532 RFID reader on a UART (HSU, 115,200 8N1): card numbers, one each time a card is presented.

Source: NXP UM0701-02, PN532 User Manual rev. 02: frames in 6.2.1, HSU wake-up in 7.2.11,
SAMConfiguration 7.2.10, RFConfiguration 7.3.1, InListPassiveTarget 7.3.5.

Theory: wake the chip, put its security module aside, let it try few times (by default it waits for
a card for ever), then ask for one ISO 14443 type A card every POLL_MS. Each command is
answered by an acknowledgement and a reply; both are taken together, once the line is quiet: a turn
never waits, and an empty field or a card that lies there allocates nothing. A reader that fails to
answer twice is lost (`ok` is False) and is woken again every RECOVER_MS.

Limits: one card at a time; type A only. A uid is a name, not a proof: it can be copied.
"""

POLL_MS = 150
QUIET_MS = 10
REPLY_MS = 500
GONE_MS = 1000
RECOVER_MS = 1000

_ACK = b"\x00\x00\xff\x00\xff\x00"
_WAKE = b"\x55\x55" + bytes(14)


def frame(data):
    """A command frame: TFI D4 (host to PN532) and `data`, with both checksums."""
    size = len(data) + 1
    check = -(0xD4 + sum(data)) & 0xFF
    head = bytes((0, 0, 0xFF, size, -size & 0xFF, 0xD4))
    return head + bytes(data) + bytes((check, 0))


# The set-up, then the question that is asked for ever; a reply carries the command's code + 1.
_COMMANDS = (
    _WAKE + frame(b"\x14\x01\x14\x01"),  # SAMConfiguration: normal mode, 1 s, with IRQ
    frame(b"\x32\x05\xff\x01\x02"),  # RFConfiguration, MaxRetries: passive activation 2 times
    frame(b"\x4a\x01\x00"),  # InListPassiveTarget: one target, 106 kbit/s type A
)
_REPLIES = b"\x15\x33\x4b"
_LIST = 2


class Pn532:
    def __init__(self, uart, ticks_diff):
        self.ok = False
        self._uart = uart
        self._diff = ticks_diff
        self._data = bytearray(64)
        self._step = 0
        self._waiting = False
        self._misses = 0
        self._asked_at = 0
        self._rest_ms = -1  # not a moment before the first command
        self._seen = 0
        self._seen_at = 0
        self._card = bytearray(10)
        self._card_size = 0  # 0: no card is there
        self._gone = False
        self._gone_at = 0
        self._uid = None

    def read(self):
        """The upper-case hex uid of a card that was presented since the last call, or None."""
        uid = self._uid
        self._uid = None
        return uid

    def turn(self, now):
        if not self._waiting:
            if self._rest_ms < 0 or self._diff(now, self._asked_at) >= self._rest_ms:
                self._ask(now)
            return
        size = self._uart.any()
        late = self._diff(now, self._asked_at) >= REPLY_MS
        if not late:
            if size != self._seen:
                self._seen = size
                self._seen_at = now
                return
            if size < 15 or self._diff(now, self._seen_at) < QUIET_MS:
                return  # 15: an acknowledgement and the shortest reply
        self._waiting = False
        size = (self._uart.readinto(self._data) or 0) if size else 0
        at = self._reply(min(size, len(self._data)))
        if at:
            self._answered(at, now)
        else:
            self._missed()

    def _ask(self, now):
        for _ in range(8):
            if not self._uart.any():
                break
            self._uart.readinto(self._data)
        self._uart.write(_COMMANDS[self._step])
        self._waiting = True
        self._asked_at = now
        self._seen = 0
        self._seen_at = now

    def _reply(self, size):
        """Index of the first byte after the code of a sound reply to the command, or 0."""
        data = self._data
        at = data.find(_ACK, 0, size) if size else -1
        if at < 0:
            return 0
        at += 6
        while at + 2 < size and not (data[at] == 0 and data[at + 1] == 0xFF):
            at += 1
        at += 2
        if at + 4 > size:
            return 0
        count = data[at]
        if (count + data[at + 1]) & 0xFF or count < 2 or at + 2 + count >= size:
            return 0
        at += 2
        check = 0
        for i in range(at, at + count + 1):
            check += data[i]
        if check & 0xFF or data[at] != 0xD5 or data[at + 1] != _REPLIES[self._step]:
            return 0
        return at + 2

    def _answered(self, at, now):
        self._misses = 0
        if self._step < _LIST:
            self._step += 1
            self._rest_ms = 0
            return
        self.ok = True
        self._rest_ms = POLL_MS
        data = self._data
        # number of targets; then target, SENS_RES (2), SEL_RES, length of the uid, uid
        size = data[at + 5] if data[at] else 0
        if not 0 < size <= 10:
            self._absent(now)
            return
        self._gone = False
        card = self._card
        at += 6
        same = size == self._card_size
        for i in range(size):
            if card[i] != data[at + i]:
                card[i] = data[at + i]
                same = False
        if not same:
            self._card_size = size
            self._uid = "".join("%02X" % card[i] for i in range(size))

    def _absent(self, now):
        if not self._gone:
            self._gone = True
            self._gone_at = now
        elif self._diff(now, self._gone_at) >= GONE_MS:
            self._card_size = 0

    def _missed(self):
        self._misses += 1
        self._rest_ms = POLL_MS
        if self._misses >= 2 or self._step < _LIST:
            self.ok = False
            self._step = 0
            self._rest_ms = RECOVER_MS


def open_reader(reader, uarts):
    """The reader of board.json (`uart`), at the pins ("tx", "rx") of that UART."""
    from time import ticks_diff

    from machine import UART

    pins = uarts[str(reader["uart"])]
    port = UART(reader["uart"], baudrate=115200, tx=pins["tx"], rx=pins["rx"], timeout=0)
    return Pn532(port, ticks_diff)
