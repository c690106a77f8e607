"""Carlo Gavazzi EM580: a transaction in the meter, which writes one OCMF file of start and end.

Sources: github EVerest/everest-core@23c9dac1 modules/HardwareDrivers/PowerMeters/
CarloGavazzi_EM580/main/{helper.hpp,powermeterImpl.cpp} and github ModDefOrg/devices@48f7ac8a
energy-meter/carlo-gavazzi-em580 (maker's EM580_CPP.pdf 1.11).

- The file stays readable until 0 is written to its state; that frees the meter for the next
  transaction. A file that nobody fetched before the next one begins is given up.
- A meter that loses its supply ends the transaction by itself: its file is ready after that.
- The session's id travels in the tariff text TT, the user's in ID, charge box and connector in CI.
  A file without the session's id is another's.
"""

from .signing import number, read, texts, write

_KEY_TYPE = 9471  # 0: 256 bit, 1: 384 bit
_KEY = 9728  # DER; to be read as one block of the size that its type has
_TARIFF = 26880  # 126 registers
_STATUS = 28672  # then level
_FLAGS = 28674  # 4: RFID, OCPP, ISO 15118, PLMN
_TYPE = 28678
_DATA = 28679  # 20 registers
_PLACE_TYPE = 28699
_PLACE = 28700  # 20 registers
_ZONE = 28721  # minutes
_TIME = 28722  # seconds, 64 bits, low word first
_MODALITY = 28726
_COMMAND = 28736
_STATE = 28928
_SIZE = 28929  # registers of the file
_FILE = 28944
_FILE_MAX = 2031
_NOT_READY = 0
_RUNNING = 1
_READY = 2
_CORRUPTED = 3
# OCMF tables 11 and 17 in the meter's numbers
_HEARSAY = 1
_TRUSTED = 2
_ISO14443 = 10
_CENTRAL = 60


def begin(meter, told):
    state = number((yield read(_STATE, 1, True)))
    if state == _RUNNING and told.asked:  # the command was heard, its answer was not
        meter.ready = True
        yield None
        return
    if state == _RUNNING:
        yield write(_COMMAND, 0x45)
        while state == _RUNNING:
            state = number((yield read(_STATE, 1, True)))
    if state != _NOT_READY:
        yield write(_STATE, _NOT_READY)
    now = told.at_s()
    if now is not None:
        yield write(_ZONE, 0)
        low = (now & 0xFFFF).to_bytes(2, "big")
        yield write(_TIME, low + (now >> 16).to_bytes(2, "big") + bytes(4))
    known = 1 if told.uid else 0
    yield write(_STATUS, known)
    yield write(_STATUS + 1, known and (_HEARSAY if told.card else _TRUSTED))
    yield write(_FLAGS, (b"\0\1" if told.card else b"\0\0") + bytes(6))
    yield write(_TYPE, known and (_ISO14443 if told.card else _CENTRAL))
    yield write(_DATA, texts(told.uid, 39) + b"\0")
    yield write(_PLACE_TYPE, 1)  # CBIDC
    yield write(_PLACE, texts(told.place, 39) + b"\0")
    yield write(_TARIFF, texts(told.session, 40))
    yield write(_MODALITY, 0)  # charging a vehicle
    told.asked = True
    yield write(_COMMAND, 0x42)
    while state != _RUNNING:
        state = number((yield read(_STATE, 1, True)))
        if state == _CORRUPTED:
            yield "file corrupted"
    meter.ready = True
    yield None


def end(meter, told):
    state = number((yield read(_STATE, 1, True)))
    if state == _NOT_READY:
        yield "no transaction"
    if state == _RUNNING:
        yield write(_COMMAND, 0x45)
    while state != _READY:
        if state == _CORRUPTED:
            yield "file corrupted"
        state = number((yield read(_STATE, 1, True)))
    if meter.key is None:
        long = number((yield read(_KEY_TYPE, 1)))
        key = yield read(_KEY, 62 if long else 46)
        meter.key = key[: key[1] + 2]
    size = number((yield read(_SIZE, 1)))
    if not 0 < size <= _FILE_MAX:
        yield "file of %d registers" % size
    session = told.session.encode()
    seen = False
    last = b""
    for at in range(0, size, 125):
        text = yield read(_FILE + at, min(125, size - at))
        stop = text.find(b"\0")
        if stop >= 0:
            text = text[:stop]
        meter.text.extend(text)
        last = last[-len(session) :] + text
        seen = seen or session in last
    if not seen:
        yield "a file of another session"
    yield None
    yield write(_STATE, _NOT_READY)
