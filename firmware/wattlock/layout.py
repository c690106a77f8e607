"""A meter's description -> the blocks to read, at the start (or when SunSpec's map is found).

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
- signs: bsm, em580 or wm3m4: the procedure by which the meter signs (`signing.py`).
- rolls_wh: [9999990]: at which energy the register begins again at 0, where its maker says so; the
  width of an integer or BCD register is known without.
- timeout_ms, switch_ms: the meter's longest answer time; its pause after a change of slave.
"""

from . import registers

# the numbers of the kinds; native.py decodes the first five
KINDS = (
    "u16 i16 u32 i32 f32 acc32 bcd16 bcd32 t5 t6 u64 i64 f64 bcd64 ascii utf16 hex".split()
)
_WORDS = (1, 1, 2, 2, 2, 2, 1, 2, 2, 2, 4, 4, 4, 4)

# How many numbers a register of that kind has to count with. Wider ones last for ever, an f32 has
# no such end.
_EXPONENT_STEP_WH = 100  # where the meter says with each reading how it counts: at most
_NUMBERS = (1 << 16, 1 << 15, 1 << 32, 1 << 31, 0, 1 << 32, 10**4, 10**8, 1 << 24, 1 << 23)

# A row: first register to read and the one after the last, slot, register of the highest word,
# kind, numerator, denominator, register of a decimal exponent or -1; how many leading words say
# "not available" (0: none), the first of them, and what the others are.
ROW = 11


def plan(description, rows, names, order):
    """For the `rows` of these names: (blocks, how many of them read the serial number, and of the
    energy register its step and where it begins again). A value's slot is its index in `names`;
    the serial number comes after the last."""
    limit = description.get("max_registers", 125)
    gap = description.get("max_gap", limit)
    markers = description.get("na", {})
    blocks = []
    if "serial" in rows:
        row = rows["serial"]
        function, made = _function(row, description), _row(len(names), row, order, markers)
        blocks.append(registers.Block(function, made))
    identity = len(blocks)
    groups = {}
    for slot in range(len(names)):
        row = rows[names[slot]]
        made = _row(slot, row, order, markers)
        groups.setdefault(_function(row, description), []).append(made)
    for function in sorted(groups):
        blocks.extend(blocks_of(function, groups[function], limit, gap))
    energy = rows.get("energy_import_wh")
    return (blocks, identity) + (counts(description, energy) if energy else (0, ()))


def counts(description, row):
    """(step, rolls) of an energy register, both in Wh: how far it moves at once, and at which
    numbers it may begin again at 0."""
    kind = KINDS.index(row[1])
    numerator = row[2] if len(row) > 2 else 1
    denominator = row[3] if len(row) > 3 else 1
    numbers = _NUMBERS[kind] if kind < len(_NUMBERS) else 0
    step = 0 if kind in (4, 12) else -(-numerator // denominator)  # f32, f64: by their value
    rolls = tuple(description.get("rolls_wh", ()))
    exponents = (0,)
    if len(row) > 4 or kind in (8, 9):  # known with a reading only
        exponents = (0, 1, 2, 3, -1, -2, -3)
        step = max(step, _EXPONENT_STEP_WH)
    for exponent in exponents if numbers else ():
        up, down = 10 ** max(exponent, 0), 10 ** max(-exponent, 0)
        rolls += (numbers * up * numerator // (denominator * down),)
    return step, rolls


def _function(row, description):
    return row[0][0] if isinstance(row[0], list) else description.get("function", 3)


def _row(slot, row, order, markers):
    first, form = row[0], row[1]
    if isinstance(first, list):
        first = first[1]
    numerator = row[2] if len(row) > 2 else 1
    denominator = row[3] if len(row) > 3 else 1
    exponent = row[4] if len(row) > 4 else -1
    form, _, words = form.partition(":")
    if form not in KINDS:
        raise ValueError("registers: type %s is none of %s" % (row[1], " ".join(KINDS)))
    kind = KINDS.index(form)
    at = first
    if kind < len(_WORDS):
        words = _WORDS[kind]
        if order & 2:
            at += words - 1
    else:
        numerator = words = int(words)
    end = first + words
    if exponent >= 0:
        first = min(first, exponent)
        end = max(end, exponent + 1)
    marker = markers.get(form, "")
    marker = [int(marker[i : i + 4], 16) for i in range(0, len(marker), 4)]
    count = len(marker)
    marker += [0, 0]
    if marker[2:count].count(marker[1]) != max(count - 2, 0):
        raise ValueError("na.%s: its words after the first must be equal" % form)
    return [
        first, end, slot, at, kind, numerator, denominator, exponent, count, marker[0], marker[1]
    ]  # fmt: skip


def blocks_of(function, rows, max_registers, max_gap):
    """The fewest blocks that hold the rows: none longer than max_registers, none that reads
    more than max_gap unused registers in a row."""
    blocks = []
    group = []
    start = end = 0
    for row in sorted(rows, key=lambda row: row[0]):
        if group and (max(end, row[1]) - start > max_registers or row[0] - end > max_gap):
            blocks.append(registers.Block(function, group))
            group = []
        if not group:
            start = end = row[0]
        end = max(end, row[1])
        group.extend(row)
    if group:
        blocks.append(registers.Block(function, group))
    return blocks
