"""Rows of a block -> integers, exactly, for every format and size: what `native.py` leaves.

Loaded when a row needs it: 64 bits, f64, BCD, Iskra's t5 and t6, SunSpec's accumulators and scale
factors, texts, and values of 2^30 or more; all rows where there is no machine code. A value is
rounded half up, once.

Parameters have names that the firmware has anyway: a new one would stay in the heap for good.

Limits: bits beyond 64; texts other than the serial number. Values below 2^30 are decoded without
an allocation, f32 apart: its product takes more than 30 bits.
"""

# as numbered in layout.KINDS
_I16 = 1
_I32 = 3
_F32 = 4
_ACC32 = 5
_BCD16 = 6
_BCD32 = 7
_T5 = 8
_T6 = 9
_I64 = 11
_F64 = 12
_BCD64 = 13
_TEXT = 14  # and above
_UTF16 = 15
_HEX = 16

_ROW = 11  # as in layout.ROW


def _ratio(value, right, down):
    """value / 2^right / down, rounded half up, in integers of any size."""
    if right <= 0:
        value <<= -right
    else:
        down <<= right
    return (value + (down >> 1)) // down


def _scale(value, e, up, down):
    """value * 10^e * up / down, rounded half up."""
    while e < 0:
        e += 1
        if up % 10:
            down *= 10
        else:
            up //= 10
    while e:
        e -= 1
        if down % 10:
            up *= 10
        else:
            down //= 10
    value *= up
    if down == 1:
        return value
    return (value + (down >> 1)) // down


def _scale_f32(first, last, up, down):
    """An f32, given as its two words, times up / down; None for infinity and NaN."""
    exponent = first >> 7 & 0xFF
    if exponent == 0xFF:
        return None
    mantissa = (first & 0x7F) << 16 | last
    if exponent:
        mantissa |= 1 << 23
    else:
        exponent = 1
    mantissa *= up
    return _ratio(-mantissa if first & 0x8000 else mantissa, 150 - exponent, down)


def _scale_f64(a, b, u, v, up, down):
    """An f64, given as its four words (highest first), as `_scale_f32`."""
    exponent = a >> 4 & 0x7FF
    if exponent == 0x7FF:
        return None
    if up == 1 and down == 1 and not a & 0x8000 and exponent < 1023 + 29:
        if exponent < 1022:
            return 0
        top = (a & 0xF | 0x10) << 16 | b  # 21 bits: the integer part has exponent - 1022 of them
        right = 1043 - exponent
        if right >= 0:
            return (top >> right) + ((top >> right - 1 if right else u >> 15) & 1)
        right += 16
        return (top << 16 - right | u >> right) + (u >> right - 1 & 1)
    mantissa = ((a & 0xF) << 16 | b) << 32 | u << 16 | v
    if exponent:
        mantissa |= 1 << 52
    else:
        exponent = 1
    mantissa *= up
    return _ratio(-mantissa if a & 0x8000 else mantissa, 1075 - exponent, down)


def _bcd(value, word):
    """The digits of `value` followed by the four of `word`; None unless all are digits."""
    for shift in (12, 8, 4, 0):
        digit = word >> shift & 0xF
        if value is None or digit > 9:
            return None
        value = value * 10 + digit
    return value


def decode(data, at, rows, i, size, order, out):
    """`rows[i:size]` of the registers whose number 0 would be at `data[at]`, into `out`. Returns
    the index of the first row that is not done: none here."""
    while i < size:
        out[rows[i + 2]] = _value(data, at, rows, i, order)
        i += _ROW
    return i


def _word(data, at, odd):
    return data[at + odd] << 8 | data[at + 1 - odd]


def _value(data, at, rows, i, order):
    odd = order & 1
    exponent = 0
    if rows[i + 7] >= 0:
        exponent = _word(data, at + 2 * rows[i + 7], odd)
        if exponent & 0x8000:
            exponent -= 0x10000
        if not -10 <= exponent <= 10:  # SunSpec's range; 0x8000 is "none"
            return None
    at += 2 * rows[i + 3]
    kind = rows[i + 4]
    numerator = rows[i + 5]
    denominator = rows[i + 6]
    if kind >= _TEXT:
        return text(data, at, numerator, kind)
    step = -2 if order & 2 else 2
    w = _word(data, at, odd)
    if rows[i + 8] and w == rows[i + 9]:
        for k in range(1, rows[i + 8]):
            if _word(data, at + k * step, odd) != rows[i + 10]:
                break
        else:
            return None
    if kind == _BCD16:
        w = _bcd(0, w)
    elif kind <= _I16:
        if kind and w & 0x8000:
            w -= 0x10000
    else:
        at += step
        low = _word(data, at, odd)
        if kind == _F32:
            return _scale_f32(w, low, numerator, denominator)
        if kind == _BCD32:
            w = _bcd(_bcd(0, w), low)
        elif kind <= _ACC32:
            if kind == _I32 and w & 0x8000:
                w -= 0x10000
            w = w << 16 | low
            if kind == _ACC32 and not w:
                return None  # an accumulator that was never started
        elif kind <= _T6:
            exponent = w >> 8
            if exponent & 0x80:
                exponent -= 0x100
            w &= 0xFF
            if kind == _T6 and w & 0x80:
                w -= 0x100
            w = w << 16 | low
        else:
            at += step
            w1 = _word(data, at, odd)
            at += step
            w0 = _word(data, at, odd)
            if kind == _F64:
                return _scale_f64(w, low, w1, w0, numerator, denominator)
            if kind == _BCD64:
                w = _bcd(_bcd(_bcd(_bcd(0, w), low), w1), w0)
            else:
                if kind == _I64 and w & 0x8000:
                    w -= 0x10000
                if w or low:
                    w1 |= (w << 16 | low) << 16
                w = w1 << 16 | w0
    return None if w is None else _scale(w, exponent, numerator, denominator)


def text(data, at, count, kind):
    """A serial number of `count` registers from `at`; "" where it is blank."""
    if kind == _HEX:
        return "".join("%02X" % data[i] for i in range(at, at + 2 * count))
    step = 2 if kind == _UTF16 else 1
    return "".join(
        chr(data[i]) for i in range(at + step - 1, at + 2 * count, step) if 32 <= data[i] < 127
    ).strip()
