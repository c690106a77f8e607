"""Register blocks of the configured meter -> integers: Wh, W, mA, mV, mHz.

A meter's registers are data (meters/<key>.json); this module turns that description into as few
block reads as the meter allows, and their answers into integers. No float exists on the way:
f32 and f64 are taken apart into sign, mantissa and exponent. A value is rounded half up, once.
What the meter marks as not available (NaN, infinity, its own markers, a scale factor that is
none) is None, never a number.

Description: {"meter": key, "max_registers": 80, "function": 4, "order": "ABCD",
"registers": {"energy_import_wh": [address, type, numerator, denominator], ...}} where
value = raw * numerator / denominator in the unit that the name ends with.
- A fifth number in a row is the register that holds a decimal exponent (SunSpec scale factor).
- A row that starts with a list, [function, address], is read with that function.
- order: ABCD high word first, CDAB low word first, BADC and DCBA the same with swapped bytes.
- types: u16 i16 u32 i32 u64 i64, f32 f64, bcd16 bcd32 bcd64, t5 t6 (Iskra: decimal exponent in
  the top byte, 24-bit mantissa, unsigned or signed); for "serial" also ascii:N utf16:N hex:N of N
  registers.
- na: {"u32": "FFFFFFFF"}: leading words that say "not available" for that type.
- sunspec: [201, 202]: the addresses count from the start of the first of these models that the
  device has (that of "serial" from model 1), which is found at the start and after failures.
- max_gap: unused registers that are cheaper to read along than to ask twice around.
- timeout_ms, switch_ms: the meter's longest answer time; its pause after a change of slave.

Memory and time: decoding allocates nothing while values stay below 2^30, for a 32-bit VM has no
small integers beyond: products go through 16-bit halves.
Limits: bits beyond 64, strings other than the serial number.
"""

_WORDS = {
    "u16": 1, "i16": 1, "bcd16": 1,
    "u32": 2, "i32": 2, "f32": 2, "bcd32": 2, "acc32": 2, "t5": 2, "t6": 2,
    "u64": 4, "i64": 4, "f64": 4, "bcd64": 4,
}  # fmt: skip
_TEXTS = ("ascii", "utf16", "hex")
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
        return _ratio(-mantissa if negative else mantissa, right, denominator)
    # product = high * 65536 + low; both halves stay small
    low *= numerator
    high = mantissa_high * numerator + (low >> 16)
    low &= 0xFFFF
    if right > 38:
        return 0  # product < 2^37: less than a half
    if right <= 16:
        if high >> (14 + right - 1):
            return _ratio((-1 if negative else 1) * (high * 65536 + low), right, 1)
        low += (1 << (right - 1)) - negative
        high += low >> 16
        high = high << (16 - right) | (low & 0xFFFF) >> right
    else:
        high += (1 << (right - 17)) + ((low - negative) >> 16)
        high >>= right - 16
    return -high if negative else high


def _ratio(value, right, denominator):
    """value / 2^right / denominator, rounded half up, in integers of any size."""
    if right <= 0:
        value <<= -right
    else:
        denominator <<= right
    return (value + (denominator >> 1)) // denominator


def scale_f64(w3, w2, w1, w0, numerator, denominator):
    """An f64, given as its four words (highest first), as `scale_f32`."""
    exponent = w3 >> 4 & 0x7FF
    if exponent == 0x7FF:
        return None
    if numerator == 1 and denominator == 1 and not w3 & 0x8000 and exponent < 1023 + 29:
        if exponent < 1022:
            return 0
        top = (w3 & 0xF | 0x10) << 16 | w2  # 21 bits: the integer part has exponent - 1022 of them
        right = 1043 - exponent
        if right >= 0:
            return (top >> right) + ((top >> right - 1 if right else w1 >> 15) & 1)
        right += 16
        return (top << 16 - right | w1 >> right) + (w1 >> right - 1 & 1)
    mantissa = ((w3 & 0xF) << 16 | w2) << 32 | w1 << 16 | w0
    if exponent:
        mantissa |= 1 << 52
    else:
        exponent = 1
    mantissa *= numerator
    return _ratio(-mantissa if w3 & 0x8000 else mantissa, 1075 - exponent, denominator)


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


def _bcd(value, word):
    """The digits of `value` followed by the four of `word`; None unless all are digits."""
    for shift in (12, 8, 4, 0):
        digit = word >> shift & 0xF
        if value is None or digit > 9:
            return None
        value = value * 10 + digit
    return value


def _is_marker(data, at, step, swap, marker):
    for word in marker:
        if data[at + swap] << 8 | data[at + 1 - swap] != word:
            return False
        at += step
    return True


def decode(data, at, step, swap, kind, numerator, denominator, marker=None, exponent=0):
    """One value, or None where the meter says that it has none.

    `at` is the index of its highest word, `step` the way to the next lower one (2 or -2), `swap`
    1 where the bytes of a word are exchanged.
    """
    w = data[at + swap] << 8 | data[at + 1 - swap]
    if marker is not None and w == marker[0] and _is_marker(data, at, step, swap, marker):
        return None
    if kind == "u16":
        return scale(w, exponent, numerator, denominator)
    if kind == "i16":
        return scale(w - 0x10000 if w & 0x8000 else w, exponent, numerator, denominator)
    if kind == "bcd16":
        w = _bcd(0, w)
        return None if w is None else scale(w, exponent, numerator, denominator)
    at += step
    low = data[at + swap] << 8 | data[at + 1 - swap]
    if kind == "f32":
        return scale_f32(w, low, numerator, denominator)
    if kind == "t5" or kind == "t6":
        exponent = w >> 8
        if exponent & 0x80:
            exponent -= 0x100
        w &= 0xFF
        if kind == "t6" and w & 0x80:
            w -= 0x100
    elif kind == "bcd32" or kind == "bcd64":
        w = _bcd(_bcd(0, w), low)
        if kind == "bcd64":
            w = _bcd(w, data[at + step + swap] << 8 | data[at + step + 1 - swap])
            at += 2 * step
            w = _bcd(w, data[at + swap] << 8 | data[at + 1 - swap])
        return None if w is None else scale(w, exponent, numerator, denominator)
    elif (kind == "i32" or kind == "i64") and w & 0x8000:
        w -= 0x10000
    if kind == "u64" or kind == "i64" or kind == "f64":
        at += step
        w1 = data[at + swap] << 8 | data[at + 1 - swap]
        at += step
        w0 = data[at + swap] << 8 | data[at + 1 - swap]
        if kind == "f64":
            return scale_f64(w, low, w1, w0, numerator, denominator)
        if w or low:
            return scale((w << 16 | low) << 32 | w1 << 16 | w0, exponent, numerator, denominator)
        w = w1
        low = w0
    w = w << 16 | low
    if kind == "acc32" and not w:
        return None  # SunSpec: an accumulator that was never started
    return scale(w, exponent, numerator, denominator)


def text(data, at, count, kind):
    """A serial number of `count` registers from `at`; "" where it is blank."""
    if kind == "hex":
        return "".join("%02X" % data[i] for i in range(at, at + 2 * count))
    step = 2 if kind == "utf16" else 1
    return "".join(
        chr(data[i]) for i in range(at + step - 1, at + 2 * count, step) if 32 <= data[i] < 127
    ).strip()


class Block:
    """One read request, and what its answer holds. The bus keeps the request frame here."""

    __slots__ = ("function", "address", "count", "fields", "frame")

    def __init__(self, function, fields: list):
        self.function = function
        self.address = fields[0][0]
        self.count = max(field[1] for field in fields) - self.address
        self.fields = fields
        self.frame = None


def _field(slot, name, row, order_step, markers):
    """A row of the description as a tuple: first and last + 1 register to read, slot, register of
    the highest word, kind, numerator, denominator, marker, exponent register or None."""
    address, kind = row[0], row[1]
    if isinstance(address, list):
        address = address[1]
    numerator = row[2] if len(row) > 2 else 1
    denominator = row[3] if len(row) > 3 else 1
    exponent = row[4] if len(row) > 4 else None
    marker = None
    form, _, words = kind.partition(":")
    if form in _WORDS:
        words = _WORDS[form]
        if form in markers:
            marker = markers[form]
            marker = tuple(int(marker[i : i + 4], 16) for i in range(0, len(marker), 4))
    elif name == "serial" and form in _TEXTS and words:
        words = int(words)
        order_step = 0
    else:
        raise ValueError(
            "registers.%s: type %s is none of %s" % (name, kind, " ".join(sorted(_WORDS)))
        )
    kind = form
    first, end = address, address + words
    if order_step < 0:
        address += words - 1
    if exponent is not None:
        first = min(first, exponent)
        end = max(end, exponent + 1)
    return (first, end, slot, address, kind, numerator, denominator, marker, exponent)


def plan(function, fields, max_registers, max_gap):
    """The fewest blocks that hold the fields: none longer than max_registers, none that reads
    more than max_gap unused registers in a row."""
    blocks = []
    group = []
    end = 0
    for field in sorted(fields, key=lambda field: field[0]):
        if group and (
            max(end, field[1]) - group[0][0] > max_registers or field[0] - end > max_gap
        ):
            blocks.append(Block(function, group))
            group = []
            end = 0
        end = max(end, field[1])
        group.append(field)
    if group:
        blocks.append(Block(function, group))
    return blocks


class Walk:
    """Find a SunSpec model: a map starts with "SunS" at one of three addresses, then come models,
    each with its number and length, until number 0xFFFF.

    `address`: of the two registers to read next; `model`: where the meter's model starts, once
    found; `common`: where model 1 (the serial number) starts. Source: SunSpec Device Information
    Model Specification.
    """

    _BASES = (40000, 0, 50000)

    def __init__(self, wanted):
        self._wanted = wanted
        self._base = 0
        self.begin()

    def begin(self):
        self._tried = 0
        self._start()

    def _start(self):
        self.address = self._BASES[self._base]
        self.model = self.common = None
        self._models = -1  # seen so far; -1: not even the start

    def elsewhere(self):
        """It is not here. True while there is another place to look at."""
        self._base = (self._base + 1) % 3
        self._tried += 1
        self._start()
        return self._tried < 3

    def accept(self, high, low):
        """The two registers at `address`. Returns None, or modbus.PROTOCOL where this is no map
        with such a model."""
        if self._models < 0:
            if high != 0x5375 or low != 0x6E53:
                return None if self.elsewhere() else 9
            self.address += 2
        elif high in self._wanted:
            self.model = self.address
        elif high == 0xFFFF or self._models > 30:
            return 9
        else:
            if high == 1:
                self.common = self.address
            self.address += 2 + low
        self._models += 1
        return None


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
        self.values = [None] * (len(names) + 1)
        self._new = [None] * (len(names) + 1)
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
            self._walk = Walk(description["sunspec"])
            self._described = description
        else:
            self._plan(description, registers)

    def _slot(self, name):
        return self.names.index(name) if name in self.names else -1

    def _plan(self, description, registers):
        limit = description.get("max_registers", 125)
        gap = description.get("max_gap", limit)
        markers = description.get("na", {})
        self._blocks = []
        self._serial = ""
        self._next = 0
        if "serial" in registers:
            self._serial = None
            row = registers["serial"]
            field = _field(-1, "serial", row, self._step, markers)
            self._blocks.append(Block(_function(row, description), [field]))
        self._identity = len(self._blocks)
        groups = {}
        for slot in range(len(self.names)):
            name = self.names[slot]
            row = registers[name]
            field = _field(slot, name, row, self._step, markers)
            groups.setdefault(_function(row, description), []).append(field)
        for function in sorted(groups):
            self._blocks.extend(plan(function, groups[function], limit, gap))

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
            registers = {}
            for name, row in self._described["registers"].items():
                start = walk.common if name == "serial" else walk.model
                if start is not None:
                    registers[name] = row = [row[0] + start] + row[1:]
                    if len(row) > 4:
                        row[4] += start
            self._plan(self._described, registers)

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
            first, end, slot, address, kind, numerator, denominator, marker, scaled = field
            if slot < 0:
                self._serial = _serial(
                    data, at + 2 * address, end - first, step, swap, kind, marker
                )
                continue
            exponent = 0
            if scaled is not None:
                i = at + 2 * scaled
                exponent = data[i + swap] << 8 | data[i + 1 - swap]
                if exponent & 0x8000:
                    exponent -= 0x10000
                if exponent < -10 or exponent > 10:  # SunSpec's range; 0x8000 is "none"
                    new[slot] = None
                    continue
            new[slot] = decode(
                data, at + 2 * address, step, swap, kind, numerator, denominator, marker, exponent
            )
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


def _function(row, description):
    return row[0][0] if isinstance(row[0], list) else description.get("function", 3)


def _serial(data, at, count, step, swap, kind, marker):
    if kind in _TEXTS:
        return text(data, at, count, kind)
    number = decode(data, at, step, swap, kind, 1, 1, marker)
    return "" if number is None else str(number)
