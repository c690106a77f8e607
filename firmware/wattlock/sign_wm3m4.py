"""Iskra WM3M4, WM3M4C: a dataset goes in, one comes out with both readings, and a signature.

Sources: maker's manual as read in github EVerest/everest-core@23c9dac1 modules/HardwareDrivers/
PowerMeters/RsIskraMeter/src/{main.rs,utils.rs} (1.14) and github ModDefOrg/devices@48f7ac8a
energy-meter/iskra-wm3m4 (2.13); sections 6.5.7 to 6.5.13 of its page 37 and 38 (easymanua.ls).

- Holding registers, number less 40000. At most 120 in one request. The command stands in the high
  byte: 'B' begins, 'r' ends with both readings in one record ('E' would give the end alone).
- The record is put together here from dataset and signature; the dataset's bytes stay as they are.
- The firmware writes r and s of its DER with zeros in front that DER does not allow; verifiers
  refuse it, so they go. The numbers stay the same.
- After a power failure at the meter time and dataset must be written again before the end.
- The session's id stands in ID behind the user's; a record without it is another's.
"""

import json
from binascii import hexlify

from .signing import number, read, write

_STATE = 7000
_COMMAND = 7051
_STATUS = 7052  # 15: signed; from 128 on: errors
_ZONE = 7053  # minutes
_TIME = 7054  # seconds, 32 bits
_IN_SIZE = 7056  # bytes
_OUT_SIZE = 7057  # bytes; then the signature's
_FORMAT = 7059  # 0: DER
_SYNCED = 7071
_IN = 7100
_OUT = 7612
_KEY = 8124  # 64 bytes
_SIGNATURE = 8188
_LIMIT = 120
_IDLE = 0
_ACTIVE = 1
_AFTER_POWER_FAILURE = 2
_SIGNED = 15
_MAX = 1024
_KEY_HEAD = (
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"
    b"\x03\x42\x00\x04"
)


def begin(meter, told):
    state = number((yield read(_STATE, 1, True)))
    status = number((yield read(_STATUS, 1, True)))
    if state == _IDLE or status != _SIGNED or not told.asked:
        if state != _IDLE:  # a transaction that nobody ended
            yield from _command(told, state, 0x7200, _IDLE)
        yield write(_FORMAT, 0)
        yield from _prepare(told)
        told.asked = True
        yield from _command(told, _IDLE, 0x4200, _ACTIVE)
    meter.ready = True
    yield None


def end(meter, told):
    state = number((yield read(_STATE, 1, True)))
    if state != _IDLE:
        yield from _command(told, state, 0x7200, _IDLE)
    elif number((yield read(_STATUS, 1, True))) != _SIGNED:  # it has ended already
        yield "no signed record"
    sizes = yield read(_OUT_SIZE, 2)
    size = number(sizes[:2])
    signature_size = number(sizes[2:])
    if not 0 < size <= _MAX or not 0 < signature_size <= 256:
        yield "record of %d and %d bytes" % (size, signature_size)
    if meter.key is None:
        meter.key = _KEY_HEAD + (yield read(_KEY, 32))
    text = bytearray()
    while len(text) < size:
        left = size - len(text)
        text.extend((yield read(_OUT + len(text) // 2, min(_LIMIT, (left + 1) // 2)))[:left])
    if told.session.encode() not in text:
        yield "a record of another session"
    meter.text.extend(b"OCMF|" + text)
    signature = yield read(_SIGNATURE, min(_LIMIT, (signature_size + 1) // 2))
    meter.text.extend(b'|{"SD":"' + hexlify(der(signature[:signature_size])) + b'"}')
    yield None


def _prepare(told):
    """Time and dataset; what the meter fills in itself is left empty."""
    now = told.at_s()
    if now is not None:
        yield write(_ZONE, 0)
        yield write(_TIME, now.to_bytes(4, "big"))
        yield write(_SYNCED, 2)
    row = []
    for key in ("GI", "GS", "GV", "PG", "MV", "MM", "MS", "MF"):
        row.append('"%s":""' % key)
    kind = "NONE"
    if told.uid:
        kind = "ISO14443" if told.card else "CENTRAL"
    text = '{"FV":"1.0",%s,"IS":%s,"IF":[%s],"IT":"%s","ID":%s,"CT":"CBIDC","CI":%s,"RD":[]}' % (
        ",".join(row),
        "true" if told.uid else "false",
        '"RFID_PLAIN"' if told.card else "",
        kind,
        json.dumps((told.uid + " " + told.session).strip().replace("|", " ")),
        json.dumps(told.place),
    )
    data = text.encode()
    size = len(data)
    data += bytes(size & 1)
    for at in range(0, len(data), 2 * _LIMIT):
        yield write(_IN + at // 2, data[at : at + 2 * _LIMIT])
    yield write(_IN_SIZE, size)


def _command(told, state, command, then):
    """Give a command, wait for the state that follows, then for the signature."""
    if state == _AFTER_POWER_FAILURE:
        yield from _prepare(told)
    yield write(_COMMAND, command)
    state = None
    while state != then:
        state = number((yield read(_STATE, 1, True)))
        status = number((yield read(_STATUS, 1, True)))
        if status >= 128:
            yield "signature status %d" % status
    while status != _SIGNED:
        status = number((yield read(_STATUS, 1, True)))
        if status >= 128:
            yield "signature status %d" % status


def der(data):
    """A signature whose r and s have no more zeros in front than DER wants; what is not two
    integers in a sequence stays as it is."""
    if len(data) < 8 or data[0] != 0x30 or data[1] != len(data) - 2:
        return data
    row = b""
    at = 2
    while at < len(data):
        if data[at] != 2 or at + 2 + data[at + 1] > len(data) or not data[at + 1]:
            return data
        number = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + len(number)
        while len(number) > 1 and not number[0] and number[1] < 0x80:
            number = number[1:]
        row += bytes((2, len(number))) + number
    return bytes((0x30, len(row))) + row
