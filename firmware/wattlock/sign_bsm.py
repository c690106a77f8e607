"""Bauer BSM-WS36A: a signed snapshot at the start, one at the end, each an OCMF record by itself.

Sources: maker's documents, github chargeITmobility/bsm-python@bdec54e0 doc/examples/ocmf.md,
snapshots.md, time.md and doc/modbus/bsm-ws36a-modbus-registers.csv (protocol addresses).

- Meta1 becomes the record's ID, Meta2 its X2, Meta3 its X3. The pair without a contactor of the
  meter's own is used: Signed Start and Signed End Snapshot.
- Setting the clock more often than once in 24 hours wears the meter out; a clock that is not kept
  for 48 hours becomes invalid. So it is looked at, and set only when it is off.
"""

from .signing import number, read, texts, write

_EPOCH = 40260  # u32 seconds, then i16 minutes of time zone
_DRIFT_S = 30
_META1 = 40279  # 70 registers, then Meta2 with 50
_META3 = 40399
_KEY = 40450  # bytes of the key, then the key (DER) in 48 registers
_START = 41286  # status of the snapshot
_START_OCMF = 43294  # status of its record, then the text in 496 registers
_END = 41540
_END_OCMF = 43794
_OCMF_SIZE = 496
_UPDATING = 2


def begin(meter, told):
    return _snapshot(meter, told, _START, _START_OCMF)


def end(meter, told):
    return _snapshot(meter, told, _END, _END_OCMF)


def _snapshot(meter, told, at, record):
    now = told.at_s()
    if now is not None:
        if abs(number((yield read(_EPOCH, 2))) - now) > _DRIFT_S:
            yield write(_EPOCH, now.to_bytes(4, "big") + b"\0\0")
    yield write(_META1, texts(told.uid, 140) + texts(told.place, 100))
    yield write(_META3, texts(told.session, 100))
    yield write(at, _UPDATING)
    status = _UPDATING
    while status == _UPDATING:
        status = number((yield read(at, 1, True)))
    if status:
        yield "snapshot status %d" % status
    meter.ready = True
    status = number((yield read(record, 1, True)))
    if status:
        yield "record status %d" % status
    for i in range(0, _OCMF_SIZE, 125):
        text = yield read(record + 1 + i, min(125, _OCMF_SIZE - i))
        size = text.find(b"\0")
        meter.text.extend(text if size < 0 else text[:size])
        if size >= 0:
            break
    if meter.key is None:
        key = yield read(_KEY, 49)
        meter.key = key[2 : 2 + number(key[:2])]
    yield None
