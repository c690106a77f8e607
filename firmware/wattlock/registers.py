"""Register blocks of the configured meter -> integers: Wh, W, mA, mV, mHz.

A meter's registers are data (meters/<key>.json; `layout.py` says how it is written and turns it
into as few block reads as the meter allows). This module turns the answers into integers. No
float exists on the way: an f32 is taken apart into sign, mantissa and exponent. A value is rounded
half up, once. What the meter marks as not available (NaN, infinity, its own markers, a scale
factor that is none) is None, never a number.

`native.py` decodes the common formats in machine code and without an allocation. What it leaves,
`formats.py` does, which is loaded then; so is `sunspec.py` where a description says so.
`layout.py` is only needed at the start.
"""

from array import array

try:
    from .native import decode
except (ImportError, SyntaxError):  # no machine code here
    from .formats import decode

_ORDERS = {"ABCD": 0, "BADC": 1, "CDAB": 2, "DCBA": 3}  # 2: low word first, 1: low byte first
_ROW = 11  # as in layout.ROW

# What a charge point needs of its meter; the laptop tool asks for everything.
ESSENTIAL = (
    "energy_import_wh energy_export_wh power_w power_import_w power_export_w "
    "current_l1_ma current_l2_ma current_l3_ma current_dc_ma"
).split()


class Block:
    """One read request, and the rows (layout.ROW) that its answer holds. The bus keeps here what
    it knows of the request: its frame, the size of the answer, the latest time for it."""

    __slots__ = ("function", "address", "count", "rows", "size", "frame", "want", "deadline_ms")

    def __init__(self, function, rows):
        self.function = function
        self.rows = array("i", rows)
        self.size = len(rows)
        self.address = rows[0]
        self.count = max(rows[i + 1] for i in range(0, self.size, _ROW)) - self.address
        self.frame = None


class Meter:
    """The one reading interface of every meter, whatever the bus: no hardware, no clock.

    Users read the attributes; a bus drives begin, accept, complete, reject, fail. `block` is the
    next block to read in this poll, None when the reading is complete.
    `serial` is None until known, "" where the meter has none. `energy_wh`, `export_wh`,
    `power_w` (import positive) and `current_ma` (highest phase) belong to one complete reading,
    taken at `at`; each is None where the meter gave none. `readings` counts complete readings,
    `failed` the polls that failed since the last one, `counts` the dropped replies by outcome.
    `step_wh`, `rolls_wh`: how the energy register counts, see `layout.counts`.
    """

    def __init__(self, description, names=ESSENTIAL):
        self.key = description["meter"]
        self.serial = None
        self.energy_wh = self.export_wh = self.power_w = self.current_ma = None
        self.step_wh = 0
        self.rolls_wh = ()
        self.readings = 0
        self.at = 0
        self.failed = 0
        self.error = 0
        self.counts = [0] * 13
        self.wanted = True
        self.timeout_ms = description.get("timeout_ms", 1000)
        self.switch_ms = description.get("switch_ms", 0)
        self._order = _ORDERS[description.get("order", "ABCD")]
        registers = description["registers"]
        self.names = names = [name for name in names if name in registers]
        # two slots more: the serial number, and at index -1 the value that nobody gives
        self.values: list = [None] * (len(names) + 2)
        self._new: list = [None] * (len(names) + 2)
        self._energy = self._slot("energy_import_wh")
        self._export = self._slot("energy_export_wh")
        self._power = self._slot("power_w")
        self._power_in = self._slot("power_import_w")
        self._power_out = self._slot("power_export_w")
        self._currents = tuple(
            slot for slot in range(len(names)) if names[slot].startswith("current_")
        )
        self._walk = self.block = None
        self._identify = True
        self._next = 0
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

        self._blocks, self._identity, self.step_wh, self.rolls_wh = layout.plan(
            description, registers, self.names, self._order
        )
        self._blocks.append(None)
        self._go_to(0)

    def _go_to(self, i):
        self._next = i
        self.block = self._blocks[i]

    def demand(self):
        """Poll as soon as the bus is free: a fresh baseline."""
        self.wanted = True

    def value(self, name):
        """A value of the newest complete reading by its name; None where there is none."""
        return self.values[self._slot(name)]

    # -- the bus's side

    def begin(self, identify):
        """A new poll; with `identify` the serial number is read first. Needed after a failed poll;
        after a complete one all is ready for the next, without the serial number."""
        self._identify = identify or self.serial is None
        if self._walk is not None and self._identify:
            self._walk.begin()
            self._look()
        else:
            self._go_to(0 if self._identify else self._identity)

    def _look(self):
        """SunSpec: read on where the walk has come to, or plan the model that it has found."""
        walk = self._walk
        if walk.model is None:
            self._blocks = [Block(3, (walk.address, walk.address + 2) + (0,) * (_ROW - 2)), None]
            self._go_to(0)
        else:
            self._plan(self._described, walk.registers(self._described["registers"]))

    def accept(self, data, at):
        """The answer to `block`: register bytes in `data` from index `at`. Returns None, or the
        outcome (modbus) for which it has to be dropped after all."""
        if self._walk is not None and self._walk.model is None:
            outcome = self._walk.accept(
                data[at] << 8 | data[at + 1], data[at + 2] << 8 | data[at + 3]
            )
            self._look()
            return outcome
        block = self.block
        size = block.size
        at -= 2 * block.address
        i = decode(data, at, block.rows, 0, size, self._order, self._new)
        while i != size:
            i = _more()(data, at, block.rows, i, i + _ROW, self._order, self._new)
            i = decode(data, at, block.rows, i, size, self._order, self._new)
        self._next = i = self._next + 1
        self.block = self._blocks[i]
        return None

    def complete(self, now):
        """All blocks of the poll are in: they become the newest reading."""
        values = self._new
        self._new = self.values
        self.values = values
        if self._identify:
            self._identify = False
            self.serial = "" if values[-2] is None else str(values[-2])
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
        self.failed = self.error = 0
        self.readings += 1
        self._next = self._identity
        self.block = self._blocks[self._next]

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
        block = self.block
        slot = block.rows[2]
        if self._next < self._identity:
            if self.serial:  # a known serial number does not vanish: another device, or a fault
                return False
            self._new[slot] = None
            self._next += 1
        elif block.size > _ROW:
            self._split(block)
        elif slot != self._energy:
            self._new[slot] = self.values[slot] = None
            self._blocks.pop(self._next)
        else:
            return False
        self._go_to(self._next)
        return True

    def _split(self, block):
        """The meter refuses the block: ask for two, apart where most registers lie unused."""
        rows = block.rows
        cut = 0
        widest = -1
        for i in range(_ROW, block.size, _ROW):
            gap = rows[i] - rows[i - _ROW + 1]
            if gap > widest or not cut:
                cut, widest = i, gap
        self._blocks[self._next] = Block(block.function, rows[:cut])
        self._blocks.insert(self._next + 1, Block(block.function, rows[cut:]))

    def fail(self):
        """The poll was given up."""
        self.failed += 1
        if self._walk is not None and self._walk.model is None:
            self._walk.elsewhere()  # some devices are silent where they have nothing


_formats = None


def _more():
    """formats.decode, loaded when a row first needs it."""
    global _formats
    if _formats is None:
        from . import formats

        _formats = formats.decode
    return _formats
