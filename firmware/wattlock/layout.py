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
- timeout_ms, switch_ms: the meter's longest answer time; its pause after a change of slave.
"""

from . import registers

WORDS = {
    "u16": 1, "i16": 1, "bcd16": 1,
    "u32": 2, "i32": 2, "f32": 2, "bcd32": 2, "acc32": 2, "t5": 2, "t6": 2,
    "u64": 4, "i64": 4, "f64": 4, "bcd64": 4,
}  # fmt: skip
TEXTS = ("ascii", "utf16", "hex")


def plan(description, rows, names, order_step):
    """(blocks, how many of them read the serial number) for the `rows` of these names."""
    limit = description.get("max_registers", 125)
    gap = description.get("max_gap", limit)
    markers = description.get("na", {})
    blocks = []
    if "serial" in rows:
        row = rows["serial"]
        field = _field(-1, "serial", row, order_step, markers)
        blocks.append(registers.Block(_function(row, description), [field]))
    identity = len(blocks)
    groups = {}
    for slot in range(len(names)):
        row = rows[names[slot]]
        field = _field(slot, names[slot], row, order_step, markers)
        groups.setdefault(_function(row, description), []).append(field)
    for function in sorted(groups):
        blocks.extend(blocks_of(function, groups[function], limit, gap))
    return blocks, identity


def _function(row, description):
    return row[0][0] if isinstance(row[0], list) else description.get("function", 3)


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
    if form in WORDS:
        words = WORDS[form]
        if form in markers:
            marker = markers[form]
            marker = tuple(int(marker[i : i + 4], 16) for i in range(0, len(marker), 4))
    elif name == "serial" and form in TEXTS and words:
        numerator = words = int(words)
        order_step = 0
    else:
        raise ValueError(
            "registers.%s: type %s is none of %s" % (name, kind, " ".join(sorted(WORDS)))
        )
    if form not in registers.COMMON and registers.more is None:
        from .formats import decode

        registers.more = decode
    kind = form
    first, end = address, address + words
    if order_step < 0:
        address += words - 1
    if exponent is not None:
        first = min(first, exponent)
        end = max(end, exponent + 1)
    return (first, end, slot, address, kind, numerator, denominator, marker, exponent)


def blocks_of(function, fields, max_registers, max_gap):
    """The fewest blocks that hold the fields: none longer than max_registers, none that reads
    more than max_gap unused registers in a row."""
    blocks = []
    group = []
    end = 0
    for field in sorted(fields, key=lambda field: field[0]):
        if group and (
            max(end, field[1]) - group[0][0] > max_registers or field[0] - end > max_gap
        ):
            blocks.append(registers.Block(function, group))
            group = []
            end = 0
        end = max(end, field[1])
        group.append(field)
    if group:
        blocks.append(registers.Block(function, group))
    return blocks
