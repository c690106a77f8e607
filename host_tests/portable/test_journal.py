"""The journal by its own rules; `host_tests/test_journal.py` has what needs CPython."""

import json
from binascii import crc32, hexlify

from wattlock import journal, mac
from wattlock.errors import StorageError
from wattlock.journal import Journal

from portable.store import Store

CHAIN = mac.Mac(b"chain")


class Sum:
    """A state that every record moves: sum and number of their x."""

    def __init__(self):
        self.sum = self.count = 0

    def evolve(self, record):
        self.sum += record["x"]
        self.count += 1

    def restore(self, state):
        self.sum, self.count = state

    def checkpoint(self):
        return [self.sum, self.count]


def random(n):
    return b"\x5f\x1c\x09\xaa"[:n]


def open_journal(store):
    state = Sum()
    j = Journal(store, CHAIN)
    wrong = j.open(state.restore, state.evolve, random)
    return j, state, wrong


def add(j, state, *values, spare=False):
    rows = [{"t": "event", "x": x} for x in values]
    done = j.append([journal.body(1, 5, r) for r in rows], state.checkpoint, spare)
    if done:
        for r in rows:
            state.evolve(r)
    return done


def test_a_body_is_the_line_that_is_sent():
    line = journal.body(17, 93000, {"t": "time", "unix_ms": 1790000000123, "err_ms": 40})
    want = {"boot": 17, "up_ms": 93000, "t": "time", "unix_ms": 1790000000123, "err_ms": 40}
    assert json.loads(line) == want and b"\n" not in line and b" " not in line


def test_the_format_byte_by_byte():
    store = Store()
    j, state, wrong = open_journal(store)
    assert wrong == [{"t": "event", "what": "journal_new", "why": "empty"}]
    assert store.files == {}  # nothing is written before there is something to keep
    add(j, state, 7, 8)
    add(j, state, 9)
    (name,) = store.files
    assert name == "00000001.j"
    data = store.files[name]

    def group(at):
        size = data[at + 1] | data[at + 2] << 8 | data[at + 3] << 16
        crc = int.from_bytes(data[at + 4 + size : at + 8 + size], "little")
        assert crc == crc32(data[at : at + 4 + size]) & 0xFFFFFFFF
        return data[at : at + 1], data[at + 4 : at + 4 + size], at + 8 + size

    kind, payload, at = group(0)
    assert kind == b"C"
    link0 = CHAIN(b"5f1c09aa")
    assert json.loads(payload) == {
        "v": 1,
        "journal": "5f1c09aa",
        "seq": 0,
        "acked": 0,
        "link": hexlify(link0).decode(),
        "pieces": 1,
    }
    kind, payload, at = group(at)
    assert (kind, payload) == (b"S", b"[[0,0]]")
    bodies = [journal.body(1, 5, {"t": "event", "x": x}) for x in (7, 8, 9)]
    links = [link0]
    for seq, b in enumerate(bodies):
        links.append(CHAIN(links[-1] + (seq + 1).to_bytes(8, "big") + b))
    kind, payload, at = group(at)
    assert (kind, payload) == (
        b"R", b"\x01\0\0\0" + links[2][:8] + bodies[0] + b"\n" + bodies[1]
    )
    kind, payload, at = group(at)
    assert (kind, payload) == (b"R", b"\x03\0\0\0" + links[3][:8] + bodies[2])
    assert at == len(data)
    assert j.link == links[3] and j.seq == 3


def test_state_after_a_reset_is_the_state_before():
    store = Store()
    j, state, _ = open_journal(store)
    for x in range(200):
        add(j, state, x, x + 1)
        if x % 20 == 0:
            again, replayed, wrong = open_journal(Store(store.files))
            assert wrong == [] and replayed.checkpoint() == state.checkpoint()
            assert (again.seq, again.link, again.id) == (j.seq, j.link, j.id)
    assert len(store.files) > 1  # it rotated on the way


def test_a_torn_tail_is_cut_and_reported():
    store = Store()
    j, state, _ = open_journal(store)
    add(j, state, 1)
    before = len(store.files["00000001.j"])
    add(j, state, 2, 3)
    whole = store.files["00000001.j"]
    for cut in range(before + 1, len(whole), 7):
        torn = Store({"00000001.j": whole[:cut]})
        j, state, wrong = open_journal(torn)
        assert wrong == [{"t": "event", "what": "torn_tail", "bytes": cut - before}]
        assert state.checkpoint() == [1, 1] and j.seq == 1
        add(j, state, 5)
        assert torn.files["00000001.j"] == whole[:cut]  # nothing is written behind it
        j, state, wrong = open_journal(torn)
        assert wrong == [] and state.checkpoint() == [6, 2]


def test_a_journal_of_another_version_is_set_aside():
    """Neither read by guess nor thrown away."""
    store = Store()
    j, state, _ = open_journal(store)
    for x in range(200):
        add(j, state, x)
    names = sorted(store.files)
    assert len(names) > 1
    for version, known in (
        (b'"v":0', False), (b'"v":2', False), (b'"v":"1"', False), (b'"w":1', False),
        (b'"v":1', True),
    ):
        files = dict(store.files)
        files[names[-1]] = reheaded(files[names[-1]], b'"v":1', version)
        other = Store(files)
        again, replayed, wrong = open_journal(other)
        if known:
            assert wrong == [] and replayed.checkpoint() == state.checkpoint()
            continue
        # the newest segment's name tells how far it had come, at least
        lost = {"t": "lost", "class": "version", "last": int(names[-1][:8], 16) - 1}
        assert wrong == [{"t": "event", "what": "journal_new", "why": "version"}, lost]
        assert other.aside == files and list(other.files) == ["version"] and not replayed.count
        # the power may go before the first record: the reason is not forgotten
        assert open_journal(other)[2] == wrong
        add(again, replayed, 1)
        again, replayed, wrong = open_journal(other)
        assert wrong == [] and replayed.count == 1


def reheaded(data, old, new):
    """A segment whose head says something else, with a CRC that fits."""
    n = data[1] | data[2] << 8
    head = data[4 : 4 + n].replace(old, new)
    group = bytes((data[0], len(head) & 255, len(head) >> 8, 0)) + head
    return group + (crc32(group) & 0xFFFFFFFF).to_bytes(4, "little") + data[8 + n :]


def test_full_of_what_nobody_acknowledged():
    store = Store()
    j, state, _ = open_journal(store)
    count = 0
    while add(j, state, 1, spare=True):
        count += 1
    assert j.spared == 1 and j.lost() == {"t": "lost", "class": "spare", "count": 1}
    reserved = 0
    try:
        while True:
            add(j, state, 1)
            reserved += 1
    except StorageError:
        pass
    size = sum([len(store.files[n]) for n in store.files])
    assert size <= journal.LIMIT + journal.RESERVED
    assert reserved * 20 > journal.RESERVED // 4  # the reserve is a real one
    j.acknowledge(j.seq)
    assert add(j, state, 1, spare=True)
    assert state.count == count + reserved + 1 == j.seq


def test_records_that_are_too_long():
    j, state, _ = open_journal(Store())
    assert j.append([b"x" * journal.MAX_BODY], state.checkpoint)
    try:
        j.append([b"x" * (journal.MAX_BODY + 1)], state.checkpoint)
    except ValueError:
        return
    raise AssertionError("taken")
