"""Modbus framing: request frames, predicted reply lengths, and the verdict on a reply.

Bytes only: no port, no clock. A request frame is built once and kept; the reply to it is judged
against that very frame, which holds all there is to compare (unit, function, register count,
transaction). The verdict is one small integer, so judging a reply allocates nothing:

- OK, or one of the reasons below why the reply must be dropped;
- EXCEPTION + code when the meter itself refused (EXCEPTION is the bit 0x80 of the function).

RTU: a frame ends with CRC-16/MODBUS, low byte first, so the CRC of a whole sound frame is 0.
TCP: the MBAP header (transaction, protocol 0, length, unit) takes the place of unit and CRC.

Limits: functions 3 and 4 (read registers); 6 and 16 (write) are judged here, their frames are made
by whoever writes (`signing.py`); one request in flight.
Source: MODBUS Application Protocol 1.1b3, MODBUS over Serial Line 1.02, MODBUS Messaging on
TCP/IP 1.0b.
"""

try:
    from .native import crc16, is_answer
except (ImportError, SyntaxError):  # no machine code here
    from .formats import crc16, is_answer  # noqa: F401

# crc16(frame, size): CRC-16/MODBUS of the first `size` bytes; 0 over a whole sound frame.
# is_answer(reply, size, request): a read's reply is sound and fits; if not, `rtu_check` says why.

OK = 0
TIMEOUT = 1  # no byte before the deadline
SHORT = 2  # fewer bytes than predicted, and not a frame of another kind
LONG = 3  # more bytes than predicted: noise around a reply, or two replies
CRC = 4
UNIT = 5  # a sound frame, from another slave
FUNCTION = 6  # a sound frame, to another kind of request
LENGTH = 7  # a sound frame, with another number of registers (a late reply, mostly)
TRANSACTION = 8  # TCP: an answer to an earlier request
PROTOCOL = 9  # TCP: not Modbus
LATE = 10  # bytes that came when nothing was asked
OFFLINE = 11  # TCP: no connection
EXCEPTION = 0x80
OUTCOMES = 13  # the last counts exceptions of all codes

_NAMES = (
    "ok timeout short long crc unit function length transaction protocol late offline exception"
).split()


def name(outcome):
    """The outcome in one word, for people and logs: "crc", "exception 2"."""
    if outcome & EXCEPTION:
        return "exception %d" % (outcome & 0x7F)
    return _NAMES[outcome]


def tally(counts, outcome):
    """Count an outcome in a list of OUTCOMES numbers; exceptions of all codes together."""
    counts[OUTCOMES - 1 if outcome & EXCEPTION else outcome] += 1


def put_crc(frame):
    """The frame with its CRC in its last two bytes."""
    crc = crc16(frame, len(frame) - 2)
    frame[-2] = crc & 0xFF
    frame[-1] = crc >> 8
    return frame


def _pdu(frame, at, function, address, count):
    frame[at] = function
    frame[at + 1] = address >> 8
    frame[at + 2] = address & 0xFF
    frame[at + 3] = count >> 8
    frame[at + 4] = count & 0xFF
    return frame


def rtu_read(unit, function, address, count):
    """Request frame: read `count` registers (function 3 or 4) of slave `unit`."""
    frame = bytearray(8)
    frame[0] = unit
    return put_crc(_pdu(frame, 1, function, address, count))


def rtu_reply_size(request):
    """Bytes of the answer that fits this request frame."""
    return 5 + 2 * request[5] if request[1] < 5 else 8


RTU_DATA = 3  # index of the first register byte in a read reply


def rtu_check(reply, size, request):
    """The verdict on the first `size` bytes of `reply` as the answer to `request`."""
    if not size:
        return TIMEOUT
    want = rtu_reply_size(request)
    if size < 5 or crc16(reply, size):
        if size == want or size == 5 and reply[1] & EXCEPTION:
            return CRC
        return SHORT if size < want else LONG
    if reply[0] != request[0]:
        return UNIT
    function = reply[1]
    if function != request[1]:
        if function == request[1] | EXCEPTION and size == 5:
            return EXCEPTION | reply[2]
        return FUNCTION
    if size != want:
        if function < 5 and reply[2] != size - 5:  # zeros after a sound frame leave its CRC sound
            return SHORT if size < want else LONG
        return LENGTH
    if function < 5:
        return OK if reply[2] == size - 5 else LENGTH
    for i in range(2, 6):
        if reply[i] != request[i]:
            return LENGTH
    return OK


def tcp_read(unit, function, address, count):
    """Request frame with its MBAP header; set its transaction with `tcp_stamp` before each use."""
    frame = bytearray(12)
    frame[5] = 6
    frame[6] = unit
    return _pdu(frame, 7, function, address, count)


def tcp_stamp(frame, transaction):
    frame[0] = transaction >> 8 & 0xFF
    frame[1] = transaction & 0xFF


def tcp_reply_size(request):
    return 9 + 2 * request[11] if request[7] < 5 else 12


TCP_HEADER = 6  # bytes before the length field ends: then a frame's size is known
TCP_DATA = 9  # index of the first register byte in a read reply


def tcp_frame_size(reply):
    """Size of the frame whose first TCP_HEADER bytes these are, as it says itself."""
    return TCP_HEADER + (reply[4] << 8 | reply[5])


def tcp_check(reply, size, request):
    """The verdict on the first `size` bytes of `reply` as the answer to `request`."""
    if not size:
        return TIMEOUT
    if size < 9:
        return SHORT
    if reply[2] or reply[3]:
        return PROTOCOL
    own = tcp_frame_size(reply)
    if size != own:
        return SHORT if size < own else LONG
    if reply[0] != request[0] or reply[1] != request[1]:
        return TRANSACTION
    if reply[6] != request[6]:
        return UNIT
    function = reply[7]
    if function != request[7]:
        if function == request[7] | EXCEPTION and size == 9:
            return EXCEPTION | reply[8]
        return FUNCTION
    if size != tcp_reply_size(request) or function < 5 and reply[8] != size - 9:
        return LENGTH
    return OK
