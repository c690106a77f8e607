"""Register blocks of the configured meter -> integers: Wh, W, mA, mV, mHz.

A meter's registers are data (meters/<key>.json; `layout.py` says how it is written and turns it
into as few block reads as the meter allows). This module turns the answers into integers. No
float exists on the way: an f32 is taken apart into sign, mantissa and exponent. A value is rounded
half up, once. What the meter marks as not available (NaN, infinity, its own markers, a scale
factor that is none) is None, never a number.

What a meter needs beyond the common formats is loaded when its description says so: `formats.py`,
`sunspec.py`. `layout.py` itself is only needed at the start.

Memory and time: decoding allocates nothing while values stay below 2^30, for a 32-bit VM has no
small integers beyond: products go through 16-bit halves.
"""

_ORDERS = {"ABCD": (2, 0), "CDAB": (-2, 0), "BADC": (2, 1), "DCBA": (-2, 1)}

# What a charge point needs of its meter; the laptop tool asks for everything.
ESSENTIAL = (
    "energy_import_wh energy_export_wh power_w power_import_w power_export_w "
    "current_l1_ma current_l2_ma current_l3_ma current_dc_ma"
).split()


def scale_f32(high, low, numerator, denominator):
    """An f32, given as its two words, times numerator / denominator, rounded half up."""
    exponent = high >> 7 & 0xFF
    if exponent == 0xFF:
        return None  # infinity or NaN
    if not exponent:
        if not (high & 0x7F or low):
            return 0
        mantissa_high = high & 0x7F
        exponent = 1
    else:
        mantissa_high = high & 0x7F | 0x80
    negative = high >> 15
    right = 150 - exponent  # value = mantissa / 2^right
    if right <= 0 or denominator != 1 or numerator > 8191:
        mantissa = (mantissa_high << 16 | low) * numerator
        return ratio(-mantissa if negative else mantissa, right, denominator)
    # product = high * 65536 + low; both halves stay small
    low *= numerator
    high = mantissa_high * numerator + (low >> 16)
    low &= 0xFFFF
    if right > 38:
        return 0  # product < 2^37: less than a half
    if right <= 16:
        if high >> (14 + right - 1):
            return ratio((-1 if negative else 1) * (high * 65536 + low), right, 1)
        low += (1 << (right - 1)) - negative
        high += low >> 16
        high = high << (16 - right) | (low & 0xFFFF) >> right
    else:
        high += (1 << (right - 17)) + ((low - negative) >> 16)
        high >>= right - 16
    return -high if negative else high


def ratio(value, right, denominator):
    """value / 2^right / denominator, rounded half up, in integers of any size."""
    if right <= 0:
        value <<= -right
    else:
        denominator <<= right
    return (value + (denominator >> 1)) // denominator


def scale(value, exponent, numerator, denominator):
    """value * 10^exponent * numerator / denominator, rounded half up."""
    while exponent < 0:
        exponent += 1
        if numerator % 10:
            denominator *= 10
        else:
            numerator //= 10
    while exponent:
        exponent -= 1
        if denominator % 10:
            numerator *= 10
        else:
            denominator //= 10
    value *= numerator
    if denominator == 1:
        return value
    return (value + (denominator >> 1)) // denominator


def _is_marker(data, at, step, swap, marker):
    for word in marker:
        if data[at + swap] << 8 | data[at + 1 - swap] != word:
            return False
        at += step
    return True


def decode(data, at, step, swap, kind, numerator, denominator, marker=None, exponent=0):
    """One value, or None where the meter says that it has none.

    `at` is the index of its highest word, `step` the way to the next lower one (2 or -2), `swap`
    1 where the bytes of a word are exchanged. Formats beyond 16, 32 bits and f32 are decoded by
    `more`, which is loaded when a description needs it.
    """
    w = data[at + swap] << 8 | data[at + 1 - swap]
    if marker is not None and w == marker[0] and _is_marker(data, at, step, swap, marker):
        return None
    if kind == "u16":
        return scale(w, exponent, numerator, denominator)
    if kind == "i16":
        return scale(w - 0x10000 if w & 0x8000 else w, exponent, numerator, denominator)
    if kind == "f32":
        at += step
        return scale_f32(
            w, data[at + swap] << 8 | data[at + 1 - swap], numerator, denominator
        )
    if kind == "u32" or kind == "i32":
        if kind == "i32" and w & 0x8000:
            w -= 0x10000
        at += step
        w = w << 16 | data[at + swap] << 8 | data[at + 1 - swap]
        return scale(w, exponent, numerator, denominator)
    return more(  # pyright: ignore[reportOptionalCall]
        data, at, step, swap, kind, numerator, denominator, exponent
    )


COMMON = ("u16", "i16", "u32", "i32", "f32")
more = None  # formats.decode, once a description has needed it


class Block:
    """One read request, and what its answer holds. The bus keeps the request frame here."""

    __slots__ = ("function", "address", "count", "fields", "frame")

    def __init__(self, function, fields: list):
        self.function = function
        self.address = fields[0][0]
        self.count = max(field[1] for field in fields) - self.address
        self.fields = fields
        self.frame = None


class Meter:
    """The one reading interface of every meter, whatever the bus: no hardware, no clock.

    Users read the attributes; a bus drives begin, block, accept, complete, reject, fail.
    `serial` is None until known, "" where the meter has none. `energy_wh`, `export_wh`,
    `power_w` (import positive) and `current_ma` (highest phase) belong to one complete reading,
    taken at `at`; each is None where the meter gave none. `readings` counts complete readings,
    `failed` the polls that failed since the last one, `counts` the dropped replies by outcome.
    """

    def __init__(self, description, names=ESSENTIAL):
        self.key = description["meter"]
        self.serial = None
        self.energy_wh = self.export_wh = self.power_w = self.current_ma = None
        self.readings = 0
        self.at = 0
        self.failed = 0
        self.error = 0
        self.counts = [0] * 13
        self.wanted = True
        self.timeout_ms = description.get("timeout_ms", 1000)
        self.switch_ms = description.get("switch_ms", 0)
        self._step, self._swap = _ORDERS[description.get("order", "ABCD")]
        registers = description["registers"]
        self.names = names = [name for name in names if name in registers]
        # one slot more than names: index -1 is the value that nobody gives
        self.values: list = [None] * (len(names) + 1)
        self._new: list = [None] * (len(names) + 1)
        self._energy = self._slot("energy_import_wh")
        self._export = self._slot("energy_export_wh")
        self._power = self._slot("power_w")
        self._power_in = self._slot("power_import_w")
        self._power_out = self._slot("power_export_w")
        self._currents = tuple(
            slot for slot in range(len(names)) if names[slot].startswith("current_")
        )
        self._serial = None
        self._walk = None
        self._blocks = []
        self._next = self._identity = 0
        if "sunspec" in description:
            from .sunspec import Walk

            self._walk = Walk(description["sunspec"])
            self._described = description
        else:
            self._plan(description, registers)

    def _slot(self, name):
        return self.names.index(name) if name in self.names else -1

    def _plan(self, description, registers):
        from . import layout

        self._blocks, self._identity = layout.plan(
            description, registers, self.names, self._step
        )
        self._serial = None if self._identity else ""
        self._next = 0

    def demand(self):
        """Poll as soon as the bus is free: a fresh baseline."""
        self.wanted = True

    def value(self, name):
        """A value of the newest complete reading by its name; None where there is none."""
        return self.values[self._slot(name)]

    # -- the bus's side

    def begin(self, identify):
        """A new poll; with `identify` the serial number is read first."""
        self.wanted = False
        self._next = 0 if identify or self.serial is None else self._identity
        if self._walk is not None and not self._next:
            self._walk.begin()
            self._look()

    def _look(self):
        """SunSpec: read on where the walk has come to, or plan the model that it has found."""
        walk = self._walk
        if walk.model is None:
            self._blocks = [Block(3, [(walk.address, walk.address + 2)])]
        else:
            self._plan(self._described, walk.registers(self._described["registers"]))

    def block(self):
        """The next block to read in this poll; None when the reading is complete."""
        return self._blocks[self._next] if self._next < len(self._blocks) else None

    def accept(self, data, at):
        """The answer to `block()`: register bytes in `data` from index `at`. Returns None, or the
        outcome (modbus) for which it has to be dropped after all."""
        block = self._blocks[self._next]
        if self._walk is not None and self._walk.model is None:
            outcome = self._walk.accept(
                data[at] << 8 | data[at + 1], data[at + 2] << 8 | data[at + 3]
            )
            self._look()
            return outcome
        step = self._step
        swap = self._swap
        new = self._new
        at -= 2 * block.address
        for field in block.fields:
            _, _, slot, address, kind, numerator, denominator, marker, scaled = field
            exponent = 0
            if scaled is not None:
                i = at + 2 * scaled
                exponent = data[i + swap] << 8 | data[i + 1 - swap]
                if exponent & 0x8000:
                    exponent -= 0x10000
                if exponent < -10 or exponent > 10:  # SunSpec's range; 0x8000 is "none"
                    new[slot] = None
                    continue
            value = decode(
                data, at + 2 * address, step, swap, kind, numerator, denominator, marker, exponent
            )
            if slot < 0:
                self._serial = "" if value is None else str(value)
            else:
                new[slot] = value
        self._next += 1
        return None

    def complete(self, now):
        """All blocks of the poll are in: they become the newest reading."""
        values = self.values
        new = self._new
        for slot in range(len(new)):
            values[slot] = new[slot]
        self.serial = self._serial
        self.energy_wh = values[self._energy]
        self.export_wh = values[self._export]
        power_w = values[self._power]
        if power_w is None:
            taken = values[self._power_in]
            given = values[self._power_out]
            if taken is not None and given is not None:
                power_w = taken - given
        self.power_w = power_w
        current_ma = None
        for slot in self._currents:
            value = values[slot]
            if value is not None:
                if value < 0:
                    value = -value
                if current_ma is None or value > current_ma:
                    current_ma = value
        self.current_ma = current_ma
        self.at = now
        self.failed = 0
        self.error = 0
        self.readings += 1

    def reject(self, outcome):
        """A reply was dropped, for the reason `outcome` (modbus). True where the meter refused
        what it does not have, and the poll goes on without: retrying would not help."""
        self.error = outcome
        self.counts[12 if outcome & 0x80 else outcome] += 1
        if not 0x81 <= outcome <= 0x83:
            return False
        if self._walk is not None and self._walk.model is None:
            more = self._walk.elsewhere()
            self._look()
            return more
        block = self._blocks[self._next]
        if self._next < self._identity:
            if self.serial:  # a known serial number does not vanish: another device, or a fault
                return False
            self._serial = ""
            self._next += 1
        elif len(block.fields) > 1:
            self._split(block)
        elif block.fields[0][2] != self._energy:
            self._new[block.fields[0][2]] = None
            self._blocks.pop(self._next)
        else:
            return False
        return True

    def _split(self, block):
        """The meter refuses the block: ask for two, apart where most registers lie unused."""
        fields = block.fields
        cut = 1
        for i in range(2, len(fields)):
            if fields[i][0] - fields[i - 1][1] > fields[cut][0] - fields[cut - 1][1]:
                cut = i
        self._blocks[self._next] = Block(block.function, fields[:cut])
        self._blocks.insert(self._next + 1, Block(block.function, fields[cut:]))

    def fail(self):
        """The poll was given up."""
        self.failed += 1
        if self._walk is not None and self._walk.model is None:
            self._walk.elsewhere()  # some devices are silent where they have nothing
