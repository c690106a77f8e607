"""A meter that signs: what it reads as any other, and the procedure that makes it sign.

Loaded only for a meter whose description says `signs`, together with the one maker's module that
knows the procedure (`maker`: `sign_bsm`, `sign_em580` or `sign_wm3m4`). A procedure is a
generator in the order of the maker's document: it yields a Request and is sent the answer's bytes,
appends the record's bytes to `meter.text` as they come, and yields None when the record is whole.
Where the meter did not do what was asked, it yields a text that says which step, and ends there.

The bus polls as ever: between two readings there is one request of the procedure, so that the
ledger keeps its readings while the meter signs. A read that gets no answer is asked for again; a
command is not, for it may have been carried out. What fails ends the procedure, and `why` says it.

`text` is held back at _ROOM bytes: whoever takes it decides how much memory a record costs.
Nothing here knows the time limit or the journal: that is `seal.py`.
"""

from . import registers

_ROOM = 480
_TRIES = 3
_SLOW_MS = 15000


class Request:
    """One request of a procedure; to the bus a block (registers.Block) without rows."""

    rows = b""
    size = 0

    def __init__(self, function, address, count, data, busy):
        self.function = function
        self.address = address
        self.count = count
        self.data = data
        self.busy = busy
        self.frame = None

    def rtu(self, unit, modbus):
        """The frame that writes `data`, for a serial line."""
        return modbus.put_crc(self._write(unit) + bytes(2))

    def tcp(self, unit):
        """The same behind an MBAP header, still without its transaction."""
        frame = self._write(unit)
        return bytearray((0, 0, 0, 0, 0, len(frame))) + frame

    def _write(self, unit):
        size = len(self.data)
        head = (unit, 16, self.address >> 8, self.address & 0xFF, 0, size // 2, size)
        return bytearray(head) + self.data


def read(address, count, busy=False):
    """Holding registers; `busy`: the meter may be busy signing before it answers."""
    return Request(3, address, count, None, busy)


def write(address, data):
    """`data` is bytes of whole registers, or the number for one register."""
    if isinstance(data, int):
        data = (data & 0xFFFF).to_bytes(2, "big")
    return Request(16, address, len(data) // 2, data, False)


def number(data):
    return int.from_bytes(data, "big")


def texts(text, size):
    """`text` in a field of `size` bytes, filled with zeros; cut where it is longer."""
    data = text.encode()[:size]
    return data + bytes(size - len(data))


class Meter(registers.Meter):
    """`sign` begins a procedure. `ready`: the start is signed, current may flow; `settled`: `text`
    ends the record; `why`: how it failed. `key`: the public key in DER, once read."""

    def __init__(self, description, maker, names=registers.ESSENTIAL):
        registers.Meter.__init__(self, description, names)
        self._maker = maker
        self._usual_ms = self.timeout_ms
        self.key = None
        self._step = False
        self._clear()

    def _clear(self):
        self._job = self._request = self.why = None
        self._tries = 0
        self.text = bytearray()
        self.ready = self.settled = False

    def sign(self, nature, told):
        """Begin the procedure for "start" or "end"; one that runs is given up. `told` says what
        it may write into the record: `uid` ("" where nobody is known), `card` (read from a card),
        `place` (charge box and connector: "MY-1 1"), `session`, `at_s()` (unix time, or None);
        and `asked`: the command to begin was given, perhaps in an attempt before."""
        self._clear()
        self._job = (self._maker.begin if nature == "start" else self._maker.end)(self, told)
        self._advance(None)
        self.wanted = True

    def forget(self):
        """Give up what runs, and the record."""
        self._clear()

    def take(self, size):
        """The first `size` bytes of the record, which are the taker's now. A record that is whole
        and all taken lets the procedure end in its own way."""
        data = bytes(self.text[:size])
        self.text = self.text[size:]
        if self.settled and not self.text:
            self._advance(None)
        self.wanted = True
        return data

    def _advance(self, answer):
        self._request = None
        self._tries = 0
        try:
            request = self._job.send(answer)
        except StopIteration:
            self._job = None
            return
        if request is None:
            self.settled = True
        elif isinstance(request, str):
            self._fail(request)
        else:
            self._request = request

    def _fail(self, why):
        self._job = self._request = None
        if not self.settled:  # else the record is safe, and this was only the farewell
            self.why = why

    # -- the bus's side

    def begin(self, identify):
        self._reading()
        registers.Meter.begin(self, identify)

    def _reading(self):
        self._step = False
        self.timeout_ms = self._usual_ms

    def complete(self, now):
        if self._step:
            self._reading()
            self._go_to(self._identity)
        else:
            registers.Meter.complete(self, now)
            if self._request is not None and len(self.text) < _ROOM:
                self._step = True
                self.block = self._request
                if self.block.busy:
                    self.timeout_ms = _SLOW_MS
        if self._request is not None:
            self.wanted = True

    def accept(self, data, at):
        if not self._step:
            return registers.Meter.accept(self, data, at)
        request = self.block
        self.block = None
        if request is self._request:  # else it was given up meanwhile
            if request.data is None:
                self._advance(bytes(data[at : at + 2 * request.count]))
            else:
                self._advance(None)
        return None

    def reject(self, outcome):
        if not self._step:
            return registers.Meter.reject(self, outcome)
        self.error = outcome
        self.counts[12 if outcome & 0x80 else outcome] += 1
        request = self.block
        self.block = None
        if request is self._request:
            self._tries += 1
            once = request.busy or request.data is not None
            if once or outcome & 0x80 or self._tries >= _TRIES:
                self._fail("outcome %d at register %d" % (outcome, request.address))
        return True

    def fail(self):
        self._reading()
        registers.Meter.fail(self)
