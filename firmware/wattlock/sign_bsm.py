"""Bauer BSM-WS36A: a signed snapshot at the start, one at the end, each an OCMF record by itself.

Sources: maker's documents, github chargeITmobility/bsm-python@bdec54e0 doc/examples/ocmf.md,
snapshots.md, time.md and doc/modbus/bsm-ws36a-modbus-registers.csv (protocol addresses).

- Meta1 becomes the record's ID, Meta2 its X2, Meta3 its X3. The pair without a contactor of the
  meter's own is used: Signed Start and Signed End Snapshot.
- Setting the clock more often than once in 24 hours wears the meter out; a clock that is not kept
  for 48 hours becomes invalid. So it is looked at, and set only when it is off.
"""

from .signing import END, START, Refused, number, read, texts, write

_EPOCH = 40260  # u32 seconds, then i16 minutes of time zone
_DRIFT_S = 30
_META1 = 40279  # 70 registers, then Meta2 with 50
_META3 = 40399
_KEY = 40450  # bytes of the key, then the key (DER) in 48 registers
_STATUS = {START: 41286, END: 41540}
_OCMF = {START: 43294, END: 43794}  # status, then the text in 496 registers
_OCMF_SIZE = 496
_UPDATING = 2


def begin(meter, about):
    return _snapshot(meter, about, START)


def end(meter, about):
    return _snapshot(meter, about, END)


def _snapshot(meter, about, nature):
    now = about.unix_s()
    if now is not None:
        if abs(number((yield read(_EPOCH, 2))) - now) > _DRIFT_S:
            yield write(_EPOCH, now.to_bytes(4, "big") + b"\0\0")
    yield write(_META1, texts(about.uid, 140) + texts(about.place, 100))
    yield write(_META3, texts(about.session, 100))
    yield write(_STATUS[nature], _UPDATING)
    status = _UPDATING
    while status == _UPDATING:
        status = number((yield read(_STATUS[nature], 1, True)))
    if status:
        raise Refused("snapshot status %d" % status)
    meter.begun = True
    status = number((yield read(_OCMF[nature], 1, True)))
    if status:
        raise Refused("record status %d" % status)
    for at in range(0, _OCMF_SIZE, 125):
        text = yield read(_OCMF[nature] + 1 + at, min(125, _OCMF_SIZE - at))
        size = text.find(b"\0")
        meter.text.extend(text if size < 0 else text[:size])
        if size >= 0:
            break
    if meter.key is None:
        key = yield read(_KEY, 49)
        meter.key = key[2 : 2 + number(key[:2])]
    yield None
