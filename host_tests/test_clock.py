"""The clock against true time: for an honest gateway the lower bound never runs ahead of it.

A board's crystal may be off by 100 ppm either way, an answer may take up to 10 s with any share of
it on either way, power may be away for any time, the RTC's memory may be used or not. What the
gateway says is the true time when it says it.
"""

from hypothesis import example, given
from hypothesis import strategies as st
from wattlock import clock

BEGAN = 1790000000000
DAY = 86400000


class Truth:
    """True time, and a board whose uptime runs `ppm` fast."""

    def __init__(self) -> None:
        self.ms = 0
        self.booted = 0
        self.ppm = 0

    def up(self) -> int:
        span = self.ms - self.booted
        return span + span * self.ppm // 1000000

    def now(self) -> int:
        return BEGAN + self.ms


events = st.one_of(
    st.tuples(st.just("pass"), st.integers(0, 12 * 3600000)),
    st.tuples(st.just("answer"), st.integers(0, 9999), st.integers(0, 100)),
    st.tuples(st.just("boot"), st.integers(0, 3 * DAY), st.integers(-100, 100)),
    st.tuples(st.just("hold"), st.integers(-2000, 2000)),
    st.tuples(st.just("record"),),
)


@given(st.integers(-100, 100), st.lists(events, min_size=2, max_size=40))
@example(100, [("answer", 0, 0), ("pass", 40000000), ("record",), ("boot", 0, 100)])
def test_the_lower_bound_never_runs_ahead(ppm: int, story: list[tuple]) -> None:
    true, board = Truth(), clock.Clock()
    true.ppm = ppm
    last = 0  # uptime of the newest record of this boot

    def apply(record: dict) -> None:
        nonlocal last
        record["up_ms"] = true.up()
        clock.evolve(board, record, last)
        last = record["up_ms"]

    bound = None
    for event in story:
        if event[0] == "pass":
            true.ms += event[1]
        elif event[0] == "answer":
            sent, trip = true.up(), event[1]
            there = trip * event[2] // 100
            true.ms += there
            said = true.now()
            true.ms += trip - there
            record = clock.decide(board, true.up(), sent, said)
            if record is not None:
                assert not record.get("step"), "an honest gateway makes no clock step"
                assert abs(record["unix_ms"] - true.now()) <= record["err_ms"]
                apply(record)
        elif event[0] == "boot":
            before = last
            true.ms += event[1]
            true.booted, true.ppm = true.ms, event[2]
            clock.evolve(board, {"t": "boot", "up_ms": 0}, before)
            last = 0
        elif event[0] == "hold":
            board.hold(true.now() + event[1], 2000, true.up())
        else:
            last = true.up()  # any other record: its moment is durable
        up = true.up()
        least = board.least(up)
        if least is not None:
            assert least <= true.now() + 1
        now = board.now(up)
        if now is not None:
            assert abs(now - true.now()) <= board.err(up) + 1
            assert now >= clock.BUILT_MS
        durable = board.bound(up)
        if durable is not None:
            assert durable <= true.now() + 1
            # without a step it never goes back by more than what was not on record
            if bound is not None and event[0] != "boot":
                assert durable >= bound
            bound = durable if event[0] != "boot" else None


@given(st.integers(0, 9999), st.integers(0, 2**40), st.integers(0, 2**40))
def test_nothing_before_the_build(trip: int, said: int, up: int) -> None:
    record = clock.decide(clock.Clock(), up + trip, up, said)
    assert (record is None) == (said < clock.BUILT_MS)
