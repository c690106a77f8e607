"""The journal against an independent reading of its format, and against a naive model.

`decode` is written from the docstring of `wattlock.journal` with struct, zlib and hmac. The model
knows what the caller was told: what `append` returned from is kept, what it raised for is there
whole or not at all, and what nobody acknowledged stays.
"""

import hashlib
import hmac
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from portable.store import Store
from wattlock import journal, mac
from wattlock.errors import StorageError
from wattlock.journal import LIMIT, RESERVED, SEGMENT, Journal

KEY = b"k" * 32
ID = "5f1c0900"  # what `Writer` draws


def chain(*parts: bytes) -> bytes:
    return hmac.new(KEY, b"".join(parts), hashlib.sha256).digest()


@dataclass
class Segment:
    checkpoint: dict[str, Any]
    records: list[tuple[int, bytes]] = field(default_factory=list)
    links: list[bytes] = field(default_factory=list)
    """Of each record group, the first 8 bytes of its last record's link."""
    sizes: list[int] = field(default_factory=list)
    """Bytes up to the end of the checkpoint, and of each record group."""
    rest: bytes = b""


def decode(data: bytes) -> Segment:
    """A segment, by the docstring alone. What is no whole group is `rest`."""
    at = 0
    segment = None
    while True:
        if len(data) - at < 8:
            break
        kind, size = data[at : at + 1], int.from_bytes(data[at + 1 : at + 4], "little")
        end = at + 4 + size
        if len(data) < end + 4 or kind not in (b"C", b"S", b"R", b"P"):
            break
        (crc,) = struct.unpack_from("<I", data, end)
        if crc != zlib.crc32(data[at:end]):
            break
        payload = data[at + 4 : end]
        if segment is None:
            assert kind == b"C"
            segment = Segment(json.loads(payload))
            pieces = segment.checkpoint.pop("pieces")
        elif pieces:
            assert kind == b"S"
            pieces -= 1
            (segment.checkpoint["state"],) = json.loads(payload)
        elif kind == b"P":
            assert not any(payload) and end + 4 == 4096
        else:
            assert kind == b"R"
            (seq,) = struct.unpack_from("<I", payload)
            segment.links.append(payload[4:12])
            for i, body in enumerate(payload[12:].split(b"\n")):
                segment.records.append((seq + i, body))
        at = end + 4
        if not pieces:
            segment.sizes.append(at)
    assert segment is not None
    segment.rest = data[at:]
    return segment


def encode(head: dict[str, Any], groups: list[tuple[int, list[bytes]]]) -> bytes:
    """A segment by the book; the state of these tests is one string."""

    def text(value: Any) -> bytes:
        return json.dumps(value, separators=(",", ":")).encode()

    def group(kind: bytes, payload: bytes) -> bytes:
        data = kind + struct.pack("<I", len(payload))[:3] + payload
        return data + struct.pack("<I", zlib.crc32(data))

    rest = {key: head[key] for key in ("v", "journal", "seq", "acked", "link")}
    out = group(b"C", text(rest | {"pieces": 1})) + group(b"S", text([head["state"]]))
    link = bytes.fromhex(head["link"])
    for seq, bodies in groups:
        for i, body in enumerate(bodies):
            link = chain(link, struct.pack(">Q", seq + i), body)
        records = group(b"R", struct.pack("<I", seq) + link[:8] + b"\n".join(bodies))
        left = 4096 - len(out)
        if left >= 8 and (len(records) > left or left - 8 < len(records) < left):
            out += group(b"P", bytes(left - 8))
        out += records
    return out


class Log:
    """A state that is its own history: every record it has seen, as a running digest."""

    def __init__(self) -> None:
        self.seen = "0"

    def restore(self, state: str) -> None:
        self.seen = state

    def checkpoint(self) -> str:
        return self.seen

    def evolve(self, record: dict[str, Any]) -> None:
        text = f"{self.seen} {record['x']}"
        self.seen = hashlib.sha256(text.encode()).hexdigest()[:16]


def after(values: list[int]) -> str:
    log = Log()
    for x in values:
        log.evolve({"x": x})
    return log.seen


def body(x: int, size: int = 0) -> bytes:
    return json.dumps({"t": "event", "x": x, "pad": "." * size}).encode()


class Writer:
    """A journal with its state, as the agent keeps it."""

    def __init__(
        self, store: Store, draw: int = 0, reached: tuple[str, int] | None = None
    ) -> None:
        self.store = store
        self.log = Log()
        self.journal = Journal(store, mac.Mac(KEY))
        self.wrong = self.journal.open(
            self.log.restore,
            self.log.evolve,
            lambda n: bytes([0x5F, 0x1C, 9, draw])[:n],
            reached,
        )

    def add(self, *bodies: bytes, spare: bool = False) -> bool:
        done = bool(self.journal.append(list(bodies), self.log.checkpoint, spare))
        if done:
            for one in bodies:
                self.log.evolve(json.loads(one))
        return done

    def fetch(self, room: int = 3000) -> list[bytes]:
        """One message's worth, its place in the chain checked."""
        seq, before, link, bodies = self.journal.unsent(room)
        for i, one in enumerate(bodies):
            before = chain(before, struct.pack(">Q", seq + i), one)
        assert link == before
        assert sum(len(b) + 1 for b in bodies) <= room
        return bodies


def fill(store: Store, groups: int, size: int = 60) -> Writer:
    writer = Writer(store)
    for x in range(groups):
        writer.add(body(2 * x, size), body(2 * x + 1, size))
    return writer


# The format ----------------------------------------------------------------------------------


def test_every_byte_is_the_documented_one() -> None:
    store = Store()
    writer = fill(store, 150)
    links = [chain(b"5f1c0900")]
    bodies = [body(x, 60) for x in range(300)]
    for seq, one in enumerate(bodies, 1):
        links.append(chain(links[-1], struct.pack(">Q", seq), one))
    assert writer.journal.link == links[-1]
    at = 0
    for name in sorted(store.files):
        assert name == f"{at + 1:08x}.j"
        assert len(store.files[name]) <= SEGMENT
        segment = decode(store.files[name])
        head = {
            "v": 1,
            "journal": "5f1c0900",
            "seq": at,
            "acked": 0,
            "link": links[at].hex(),
            "state": after(list(range(at))),
        }
        assert segment.checkpoint == head and not segment.rest
        count = len(segment.records)
        assert segment.records == list(enumerate(bodies[at : at + count], at + 1))
        rows = [(at + 1 + i, bodies[at + i : at + i + 2]) for i in range(0, count, 2)]
        assert store.files[name] == encode(head, rows)
        at += count
    assert at == 300


@given(st.lists(st.lists(st.integers(0, 900), min_size=1, max_size=4), min_size=1, max_size=40))
def test_a_journal_written_by_the_book_is_read(groups: list[list[int]]) -> None:
    head = {"v": 1, "journal": "0000abcd", "seq": 7, "acked": 3, "link": "11" * 32}
    head["state"] = after([9])
    rows, seq, link, values = [], 8, bytes([0x11] * 32), [9]
    for sizes in groups:
        bodies = [body(seq + i, size) for i, size in enumerate(sizes)]
        rows.append((seq, bodies))
        for one in bodies:
            link = chain(link, struct.pack(">Q", seq), one)
            values.append(seq)
            seq += 1
    store = Store({"00000008.j": encode(head, rows)})
    writer = Writer(store)
    assert writer.wrong == []
    assert (writer.journal.seq, writer.journal.acked, writer.journal.link) == (seq - 1, 3, link)
    assert writer.log.seen == after(values)


# Damage --------------------------------------------------------------------------------------


def test_a_tail_torn_at_every_byte() -> None:
    """Cut and reported; what stood before it is there, and what comes after it, too."""
    store = Store()
    fill(store, 6, 10)
    (name,) = store.files
    whole = store.files[name]
    ends = decode(whole).sizes
    for cut in range(ends[0], len(whole) + 1):
        kept = max(end for end in ends if end <= cut)
        count = 2 * (ends.index(kept))
        torn = Store({name: whole[:cut]})
        writer = Writer(torn)
        assert writer.journal.seq == count and writer.log.seen == after(list(range(count)))
        want = [{"t": "event", "what": "torn_tail", "bytes": cut - kept}] if cut > kept else []
        assert writer.wrong == want
        writer.add(body(99))
        again = Writer(torn)
        assert again.wrong == [] and again.log.seen == writer.log.seen
        assert again.fetch() == [body(x, 10) for x in range(count)] + [body(99)]


@pytest.mark.parametrize("where", [0, 1, 3, 4, 20, -1, -4])
def test_a_group_whose_bytes_changed_ends_what_is_believed(where: int) -> None:
    """It may have been reported: its sequences and all that could follow are not used again."""
    store = Store()
    fill(store, 6, 10)
    (name,) = store.files
    data = bytearray(store.files[name])
    ends = decode(bytes(data)).sizes
    start, end = ends[3], ends[4]
    data[start + where if where >= 0 else end + where] ^= 0x40
    store.files[name] = bytes(data)
    writer = Writer(store)
    assert writer.wrong == []
    assert writer.log.seen == after(list(range(6)))
    lost = writer.journal.lost()
    assert lost is not None and (lost["class"], lost["journal"]) == ("unreadable", ID)
    assert lost["first"] == 7 and lost["last"] >= 12  # 12 had been written
    assert lost["count"] == lost["last"] - lost["first"] + 1
    writer.add(body(99))
    assert writer.journal.seq == lost["last"] + 1
    again = Writer(store)
    assert again.wrong == [] and again.log.seen == writer.log.seen
    assert again.fetch() == [body(x, 10) for x in range(6)]
    again.journal.acknowledge(6)
    assert again.fetch() == [body(99)]
    assert again.journal.first == again.journal.seq == writer.journal.seq


def test_a_checkpoint_that_cannot_be_read_falls_back_to_the_segment_before() -> None:
    store = Store()
    fill(store, 150)
    names = sorted(store.files)
    last = names[-1]
    first = int(last[:8], 16)
    size = len(store.files[last])
    for damaged in (b"", store.files[last][:3], store.files[last][:50], bytes(size)):
        broken = Store(store.files)
        broken.files[last] = damaged
        writer = Writer(broken)
        assert writer.log.seen == after(list(range(first - 1)))
        assert last not in broken.files
        lost = writer.journal.lost()
        assert writer.wrong == [] and lost is not None
        assert lost["first"] == first and lost["last"] >= first + len(damaged) // 60 - 1
        writer.add(body(99))
        assert Writer(broken).log.seen == writer.log.seen


def test_an_older_segment_that_cannot_be_read_is_given_up() -> None:
    """The uplink goes on behind it, and what is lost is named."""
    store = Store()
    fill(store, 200)
    names = sorted(store.files)
    assert len(names) >= 4
    first, last = int(names[1][:8], 16), int(names[2][:8], 16) - 1
    store.files[names[1]] = bytes(100) + store.files[names[1]][100:]
    writer = Writer(store)
    assert writer.wrong == [] and writer.journal.lost() is None  # nobody has asked for it yet
    sent = []
    while bodies := writer.fetch():
        sent += bodies
        seq = writer.journal.unsent(3000)[0]
        writer.journal.acknowledge(seq + len(bodies) - 1)
    assert sent == [body(x, 60) for x in range(400) if not first <= x + 1 <= last]
    lost = writer.journal.lost()
    assert lost == {
        "t": "lost", "class": "unreadable", "count": last - first + 1, "journal": ID,
        "first": first, "last": last,
    }  # fmt: skip
    writer.journal.told(lost)
    assert writer.journal.lost() is None and names[1] not in store.files


def test_a_file_system_that_never_gives_a_segment() -> None:
    """Reads that fail are tried again a few times, not for ever."""
    store = Store()
    fill(store, 200)
    names = sorted(store.files)
    read = store.read

    def failing(name: str, offset: int, n: int) -> bytes:
        if name == names[0]:
            raise StorageError("bench: no such block")
        return read(name, offset, n)

    store.read = failing  # type: ignore[method-assign]
    writer = Writer(store)
    failures = 0
    for _ in range(100):
        try:
            bodies = writer.fetch()
            break
        except StorageError:
            failures += 1
    assert 0 < failures < 20
    assert bodies[0] == body(int(names[1][:8], 16) - 1, 60)
    lost = writer.journal.lost()
    assert lost is not None and lost["first"] == 1 and lost["last"] == int(names[1][:8], 16) - 1


def test_a_file_system_that_gives_nothing_decides_nothing() -> None:
    """Not one segment is thrown away because of a flash that does not answer for a while."""
    store = Store()
    writer = fill(store, 200)
    files = dict(store.files)
    read = store.read

    def failing(name: str, offset: int, n: int) -> bytes:
        raise StorageError("bench: no flash")

    store.read = failing  # type: ignore[method-assign]
    for _ in range(30):
        with pytest.raises(StorageError):
            Writer(store)
        with pytest.raises(StorageError):
            writer.fetch()
    store.read = read  # type: ignore[method-assign]
    assert {name: store.files[name] for name in files} == files
    assert Writer(store).log.seen == writer.log.seen
    assert writer.fetch() and writer.journal.lost() is None


def test_nothing_left_begins_a_new_life_and_says_why() -> None:
    garbage = {"00000001.j": b"garbage", "00000009.j": b""}
    writer = Writer(Store(garbage), 7)
    new = {"t": "event", "what": "journal_new", "why": "corrupt"}
    assert writer.wrong == [new, {"t": "lost", "class": "corrupt", "last": 8}]
    assert (writer.journal.id, writer.journal.seq) == ("5f1c0907", 0)
    assert writer.store.aside == garbage and list(writer.store.files) == ["corrupt"]
    writer.add(body(1))
    assert Writer(writer.store).journal.id == "5f1c0907"


@pytest.mark.parametrize("why", ["corrupt", "rebuilt", "empty"])
def test_what_rtc_memory_knows_of_a_journal_that_is_gone_is_told(why: str) -> None:
    files = {"corrupt": {"00000009.j": b""}, "rebuilt": {"rebuilt": b""}, "empty": {}}[why]
    store = Store(files)
    writer = Writer(store, 7, ("5f1c0900", 11))
    assert writer.wrong == [
        {"t": "event", "what": "journal_new", "why": why},
        {"t": "lost", "class": why, "journal": "5f1c0900", "last": 11},
    ]
    # power goes before it is on record, and RTC memory with it: what was set aside says it again
    again = Writer(store, 7).wrong
    kept = {"corrupt": writer.wrong, "rebuilt": [writer.wrong[0], {"t": "lost", "class": why}]}
    assert again == kept.get(why, [{"t": "event", "what": "journal_new", "why": why}])


def test_a_file_system_that_went_back_forks_nothing() -> None:
    """LittleFS may fall back to what a file was before its newest change: a durable record is
    gone without a trace. Its sequence is known to RTC memory, and not used again."""
    store = Store()
    writer = fill(store, 20)
    before = dict(store.files)
    writer.add(body(90), body(91))
    assert writer.journal.seq == 42
    for reached in (None, ("5f1c0907", 99), ("5f1c0900", 40)):  # it knows nothing, or another's
        again = Writer(Store(before), reached=reached)
        assert (again.wrong, again.journal.seq, again.journal.lost()) == ([], 40, None)
    again = Writer(Store(before), reached=("5f1c0900", 42))
    lost = again.journal.lost()
    assert again.wrong == [] and lost is not None
    assert (lost["class"], lost["first"], lost["last"]) == ("unreadable", 41, 42)
    assert again.log.seen == fill(Store(), 20).log.seen
    again.add(body(7))
    again.journal.acknowledge(40)
    assert again.journal.seq == 43 and again.fetch() == [body(7)]
    assert again.journal.unsent(3000)[0] == again.journal.first == 43  # the gateway sees a gap
    assert Writer(again.store, reached=("5f1c0900", 43)).wrong == []


def test_other_files_are_left_alone() -> None:
    store = Store({"new": b"half a segment", "note.txt": b"x"})
    fill(store, 3)
    assert Writer(store).wrong == []
    assert store.files["new"] == b"half a segment"


# Failing storage -----------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1, 2], ids=["nothing", "half", "all"])
def test_storage_that_fails_at_every_operation(done: int) -> None:
    """The caller is told; the state has not moved; the next append works, and nothing is lost or
    doubled, whether the journal is read on or after a reset."""
    total = Store()
    writer = fill(total, 120)
    for at in range(1, total.writes + 1):
        store = Store()
        writer = Writer(store)
        store.fail_at, store.done = at, done
        values: list[int] = []
        failed = 0
        for x in range(120):
            rows = (body(2 * x, 60), body(2 * x + 1, 60))
            try:
                writer.add(*rows)
            except StorageError:
                failed += 1
                seen = Writer(Store(store.files)).log.seen
                assert writer.log.seen == after(values)
                # a reset right now: the group is there whole or not at all
                assert seen in (after(values), after([*values, 2 * x, 2 * x + 1]))
                writer.add(*rows)
            values += [2 * x, 2 * x + 1]
        assert failed == 1
        again = Writer(Store(store.files))
        assert again.log.seen == writer.log.seen == after(values)
        got: list[bytes] = []
        while bodies := writer.fetch():
            got += bodies
            writer.journal.acknowledge(len(got))
        assert got == [body(x, 60) for x in range(240)]


def test_room_comes_from_what_is_acknowledged() -> None:
    store = Store()
    writer = Writer(store)
    for x in range(6000):
        writer.add(body(x, 30))
        if x % 10 == 9:
            writer.journal.acknowledge(writer.journal.seq - 5)
        assert sum(map(len, store.files.values())) <= LIMIT + RESERVED
    assert writer.journal.first > 1
    assert writer.fetch() == [body(x, 30) for x in range(5995, 6000)]
    assert int(min(store.files)[:8], 16) == writer.journal.first


def test_the_unacknowledged_is_never_let_go() -> None:
    store = Store()
    writer = Writer(store)
    count = 0
    spared = 0
    while True:
        if not writer.add(body(0, 200), spare=True):
            spared += 1
        try:
            writer.add(body(1, 200))
        except StorageError:
            break
        count += 2 if not spared else 1
    assert writer.journal.lost() == {"t": "lost", "class": "spare", "count": writer.journal.spared}
    assert sum(map(len, store.files.values())) <= LIMIT + RESERVED
    got = 0
    while bodies := writer.fetch():
        got += len(bodies)
        writer.journal.acknowledge(got)
    assert got == writer.journal.seq and writer.journal.first == 1
    assert writer.add(body(2), spare=True)  # room again


def test_the_last_unacknowledged_record_of_a_segment_keeps_it() -> None:
    for short in (0, 1):
        store = Store()
        writer = fill(store, 150, 200)
        second = sorted(int(name[:8], 16) for name in store.files)[1]
        writer.journal.acknowledge(second - 1 - short)
        while sum(map(len, store.files.values())) < LIMIT + RESERVED - 2 * SEGMENT:
            writer.add(body(0, 900))
        with pytest.raises(StorageError):
            while True:
                writer.add(body(0, 900))
        assert ("00000001.j" in store.files) is bool(short)
        assert json.loads(writer.fetch()[0])["x"] == second - 1 - short


def test_a_segment_that_is_written_anew_under_its_name() -> None:
    """The uplink may have looked at its head before; the new head may be longer."""
    store = Store()
    writer = fill(store, 1)
    writer.journal.sizes[-1][1] = SEGMENT  # the next one begins a segment ...
    store.fail_at = 2
    with pytest.raises(StorageError):
        writer.add(body(7))  # ... of which only the head is written
    writer.journal.acknowledge(2)
    assert writer.fetch() == []
    writer.journal.append([body(8)], lambda: "a longer state " * 9)
    assert writer.fetch() == [body(8)]


# The uplink's cursor against a naive model ---------------------------------------------------


class Cursor(RuleBasedStateMachine):
    """The gateway may acknowledge what it likes, forwards or back; the store may fail; power may
    go. `unsent` must always give what follows the acknowledged, byte for byte."""

    @initialize()
    def start(self) -> None:
        self.store = Store()
        self.writer = Writer(self.store)
        self.bodies: list[bytes] = []
        self.most = 0  # the highest that was ever acknowledged: nothing beyond it may go
        self.x = 0

    def _values(self) -> list[int]:
        return [json.loads(b)["x"] for b in self.bodies]

    @rule(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=4), spare=st.booleans())
    def append(self, sizes: list[int], spare: bool) -> None:
        rows = []
        for size in sizes:
            self.x += 1
            rows.append(body(self.x, size))
        try:
            if self.writer.add(*rows, spare=spare):
                self.bodies += rows
        except StorageError as e:  # as told, or full
            kept = sum(size for _, size in self.writer.journal.sizes)
            full = "full" in str(e) and kept > LIMIT + RESERVED - 2 * SEGMENT
            assert full or self.store.fail_at is None
            assert self.writer.log.seen == after(self._values())

    @rule(count=st.integers(1, 30))
    def append_many(self, count: int) -> None:
        for _ in range(count):
            self.append([200], False)

    @rule(at=st.integers(1, 3), done=st.integers(0, 2))
    def fail(self, at: int, done: int) -> None:
        self.store.fail_at, self.store.done = at, done

    @rule()
    def reset(self) -> None:
        self.store.fail_at = None
        before = self.writer.journal
        self.writer = Writer(self.store)
        now = self.writer.journal
        if now.seq > len(self.bodies):  # a failed append that was there after all
            tail = decode(self.store.files[max(self.store.files)]).records
            self.bodies += [b for seq, b in tail if seq > len(self.bodies)]
        assert now.seq == len(self.bodies) and (not now.seq or now.id == before.id)
        assert self.writer.log.seen == after(self._values())
        assert now.acked <= before.acked or now.acked <= now.seq

    @rule(room=st.sampled_from([0, 1, 700, 1025, 1400, 3000, 10**6]))
    def send(self, room: int) -> None:
        j = self.writer.journal
        seq, _, _, bodies = j.unsent(room)
        start = max(j.acked + 1, j.first)
        assert seq == start
        want = []
        for one in self.bodies[start - 1 :]:
            room -= len(one) + 1
            if room < 0:
                break
            want.append(one)
        assert bodies == want
        assert self.writer.fetch(3000) is not None

    @precondition(lambda self: self.bodies)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        j = self.writer.journal
        sent = self.writer.fetch(1400)
        seq = data.draw(
            st.one_of(
                st.just(max(j.acked, j.first - 1) + len(sent)),  # what was sent
                st.integers(0, len(self.bodies)),  # anything else: part of it, more, or back
            )
        )
        j.acknowledge(seq)
        assert j.acked == seq

    @invariant()
    def chain_holds(self) -> None:
        j = self.writer.journal
        link = chain(j.id.encode())
        for seq, one in enumerate(self.bodies, 1):
            link = chain(link, struct.pack(">Q", seq), one)
        assert j.link == link and j.seq == len(self.bodies)

    @invariant()
    def the_unacknowledged_is_there(self) -> None:
        j = self.writer.journal
        self.most = max(self.most, j.acked)
        assert j.first <= self.most + 1


TestCursor = Cursor.TestCase
TestCursor.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@settings(deadline=None, max_examples=40)
@example(cut=0, seed=1)
@given(cut=st.integers(0, 10**6), seed=st.integers(0, 9))
def test_bytes_of_any_kind_never_raise(cut: int, seed: int) -> None:
    """A file system that gives back nonsense: the journal opens, and works."""
    store = Store()
    fill(store, 40 + seed)
    name = sorted(store.files)[-1]
    data = bytearray(store.files[name])
    at = cut % len(data)
    noise = hashlib.sha256(bytes([seed])).digest()
    data[at : at + 16] = noise[:16]
    store.files[name] = bytes(data)
    writer = Writer(store)
    assert writer.journal.id
    writer.add(body(1))
    again = Writer(store)
    assert again.wrong == [] and again.log.seen == writer.log.seen


def test_limits_are_as_documented() -> None:
    assert (SEGMENT, LIMIT, RESERVED, journal.MAX_BODY) == (8188, 98304, 32768, 1024)
