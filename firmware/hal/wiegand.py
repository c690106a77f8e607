"""RFID reader with a Wiegand output: two wires, 26 or 34 bits, one card number a frame.

Sources: SIA AC-01 (pulses of 20 to 100 us every 0.2 to 20 ms; readers in the field send up to
160 us and 2 ms); HID format H10301 for 26 bits; CIVINTEC CN56X and RF Solutions MFPROT-LP manuals
for 34 bits and for what a MIFARE reader puts into them.

Theory: both wires rest high. A low pulse on D0 is a 0, on D1 a 1, most significant bit first. A
frame ends with GAP_MS of silence. Its first bit makes the ones of the first half even, its last
bit those of the second half odd. What has another length or parity is dropped: the driver shows
the card again. The card number is told once while the reader repeats it, and again after it was
away for GONE_MS.

Limits: 34 bits carry the 4 bytes of a uid, 26 bits only 3 of them, so that 16.7 million numbers
are all there are; of a 7-byte uid some readers send 4 bytes, others none. Such a number is not the
card's uid, and no eMSP knows it: for roaming take a reader that tells whole uids. Which byte comes
first is the reader's choice: `reversed` in board.json turns them.
Interrupts wait in a queue of 8 while a block of flash is erased (45 ms): a frame then loses bits
and is dropped. The reader never answers: its loss cannot be seen, `ok` is always True.
"""

GAP_MS = 30
GONE_MS = 2000


class Wiegand:
    ok = True

    def __init__(self, bits, backwards, ticks, ticks_diff):
        self._size = bits
        self._backwards = backwards
        self._ticks = ticks
        self._diff = ticks_diff
        self._bits = bytearray(bits)
        self._count = 0
        self._at = 0  # ticks of the newest bit
        self._last = None
        self._last_at = 0
        self._uid = None

    def zero(self, pin):
        self._add(0)

    def one(self, pin):
        self._add(1)

    def _add(self, bit):
        """From an interrupt: nothing is allocated."""
        if self._count < self._size:
            self._bits[self._count] = bit
        self._count += 1
        self._at = self._ticks()

    def read(self):
        """The upper-case hex number of a card that was presented since the last call, or None."""
        uid = self._uid
        self._uid = None
        return uid

    def turn(self, now):
        if not self._count or self._diff(now, self._at) < GAP_MS:
            return
        uid = self._frame() if self._count == self._size else None
        self._count = 0
        if uid is None:
            return
        # below 0: it was away for some days, and ticks wrap
        if uid != self._last or not 0 <= self._diff(now, self._last_at) < GONE_MS:
            self._uid = uid
        self._last = uid
        self._last_at = now

    def _frame(self):
        """The number in a whole frame, or None where a parity bit is wrong."""
        bits = self._bits
        half = self._size // 2
        if sum(bits[:half]) & 1 or not sum(bits[half:]) & 1:
            return None
        number = bytearray((self._size - 2) // 8)
        for i in range(1, self._size - 1):
            at = (i - 1) // 8
            number[at] = number[at] << 1 & 0xFF | bits[i]
        order = reversed(number) if self._backwards else number
        return "".join(["%02X" % byte for byte in order])


def open_reader(reader, uarts):
    """The reader of board.json: GPIOs `d0` and `d1`, `bits` 26 or 34, [`reversed`]."""
    from time import ticks_diff, ticks_ms

    from machine import Pin

    found = Wiegand(reader["bits"], reader.get("reversed", False), ticks_ms, ticks_diff)
    for name, bit in (("d0", found.zero), ("d1", found.one)):
        Pin(reader[name], Pin.IN, Pin.PULL_UP).irq(bit, Pin.IRQ_FALLING)
    return found
