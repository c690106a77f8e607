"""P1 over random histories of a meter, as the ledger alone sees them.

The shell is the smallest that obeys the ledger's rules: it offers readings, records facts, and
closes periods when Hypothesis says so; power cuts forget what was not durable. What the records
give away is added up here and held against the meter's own life.
"""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from wattlock import metering
from wattlock.metering import FOUND, JUMP, LOST, NOTHING, OK, ROLLBACK, ROLLOVER, SERIAL

RATING_W = 22080


class Shell:
    def __init__(self) -> None:
        self.ledger = metering.Ledger()
        self.records: list[dict[str, Any]] = []

    def record(self, **fields: Any) -> None:
        self.records.append(fields)
        metering.evolve(self.ledger, fields)

    def offer(self, serial: str | None, wh: int | None, possible: int, span: int = 0) -> Any:
        ledger = self.ledger
        before = (ledger.last, ledger.register)
        what = metering.offer(ledger, serial, wh, possible, (span,) if span else ())
        if what == NOTHING:
            assert (ledger.last, ledger.register) == before, "what is not believed moves nothing"
        elif what == OK:
            assert before[0] is not None
            assert 0 <= ledger.last - before[0] <= possible + before[0] // 2**22
        else:
            assert wh is not None
            jumped = wh - (ledger.last or 0) if what == JUMP else 0
            if what == ROLLOVER:
                self.period()
            fact = metering.fact(
                ledger, 1, what, serial, wh, outside_wh=ledger.advance(), unobserved_wh=jumped
            )
            self.record(**fact)
        return what

    def period(self) -> None:
        if self.ledger.register is not None:
            wh = self.ledger.advance()
            self.record(t="period", wh=wh, register_wh=self.ledger.last)


steps = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 60)),  # that much energy, then a reading
    st.tuples(st.just("read"), st.integers(0, 60)),
    st.tuples(st.just("unread"), st.integers(0, 5000)),  # energy, and no reading
    st.tuples(st.just("glitch"), st.integers(0, 10**7)),
    st.tuples(st.just("none")),
    st.tuples(st.just("period")),
    st.tuples(st.just("cut")),
    st.tuples(st.just("swap"), st.integers(0, 10**7)),
    st.tuples(st.just("reset"), st.integers(0, 100)),
    st.tuples(st.just("lost")),
)


@given(st.integers(0, 10**9), st.lists(steps, min_size=5, max_size=60), st.integers(0, 60))
def test_conservation(start: int, story: list[tuple], possible: int) -> None:
    shell = Shell()
    serial, wh = 0, start
    for step in story:
        kind = step[0]
        if kind == "read":
            wh += step[1]
            shell.offer(f"S{serial}", wh, possible)
        elif kind == "unread":
            wh += step[1]
        elif kind == "glitch":
            shell.offer(f"S{serial}", step[1], possible)
        elif kind == "none":
            assert shell.offer(f"S{serial}", None, possible) == NOTHING
        elif kind == "period":
            shell.period()
        elif kind == "cut":
            shell.ledger.forget()
        elif kind == "swap":
            serial, wh = serial + 1, step[1]
        elif kind == "reset":
            wh = step[1]
        elif shell.ledger.register is not None:
            fact = metering.fact(shell.ledger, 1, LOST, f"S{serial}", shell.ledger.register)
            shell.record(**fact)
    shell.period()
    # each epoch by itself: what was given away is where its register ended less where it began
    begun = last = None
    given = 0
    for r in shell.records:
        if r.get("what") == LOST:
            continue
        share = r.get("wh", 0) + r.get("outside_wh", 0) + r.get("unobserved_wh", 0)
        assert share >= 0
        if r.get("what") in (FOUND, SERIAL, ROLLBACK, ROLLOVER):
            if begun is not None:
                last += share  # what the old register had given before
                given += share
                assert given == last - begun
            begun = last = r["after_wh"]
            given = 0
            continue
        register = r.get("register_wh", r.get("after_wh"))
        assert register >= last
        last = register
        given += share
    if begun is not None:
        assert given == last - begun


SPAN = 100_000
calm = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 60)),
    st.tuples(st.just("read"), st.integers(0, 60)),
    st.tuples(st.just("none"), st.just(0)),
    st.tuples(st.just("glitch"), st.integers(1, 30_000)),
    st.tuples(st.just("absurd"), st.sampled_from([-1, -(1 << 31), 1 << 62])),
    st.tuples(st.just("period"), st.just(0)),
    st.tuples(st.just("cut"), st.just(0)),
)


@given(st.integers(SPAN - 900, SPAN + 90), st.lists(calm, min_size=5, max_size=60))
@example(SPAN - 70, [("read", 60), ("read", 60), ("cut", 0), ("read", 60), ("glitch", 9)])
def test_what_flows_is_given_away_once_also_where_the_register_begins_again(
    start: int, story: list[tuple[str, int]]
) -> None:
    """The sum of all records is the true energy between the first reading and the last, with a
    register that shows it modulo SPAN, glitches, missing readings and power cuts in between."""
    shell = Shell()
    true = start
    watched = True  # since the last cut
    unread = 0  # Wh since the last reading that counted

    def read() -> None:
        nonlocal watched, unread
        possible = 60 + unread if watched else 60 * len(story)
        if shell.offer("A", true % SPAN, possible, SPAN) == NOTHING:
            return
        watched, unread = True, 0

    read()
    for kind, value in story:
        if kind == "read":
            true += value
            unread += value
            read()
        elif kind in ("glitch", "absurd"):
            shown = true % SPAN
            # down, or up, and neither near enough to be believed nor a register that began again
            bad = shown - value if shown >= SPAN // 2 else shown + value + 60 * len(story)
            if shell.ledger.doubt is None and watched:  # one between two good ones
                shell.offer("A", bad if kind == "glitch" else value, 60, SPAN)
            read()
        elif kind == "none":
            assert shell.offer("A", None, 60, SPAN) == NOTHING
        elif kind == "period":
            shell.period()
        else:
            shell.ledger.forget()
            watched = False
    read()
    read()
    shell.period()
    given = sum(
        r.get("wh", 0) + r.get("outside_wh", 0) + r.get("unobserved_wh", 0) for r in shell.records
    )
    assert given == true - start
    assert all(r.get("what") in (None, FOUND, ROLLOVER) for r in shell.records)
    begun = [r for r in shell.records if r.get("what") == ROLLOVER]
    assert len(begun) == true // SPAN - start // SPAN
    assert all(r["before_wh"] - r["after_wh"] == SPAN for r in begun)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=30))
def test_any_row_of_readings_gives_no_negative_and_no_impossible_energy(row: list[int]) -> None:
    shell = Shell()
    for wh in row:
        shell.offer("A", wh, 100)
        shell.period()
    for r in shell.records:
        if r["t"] == "period":
            assert 0 <= r["wh"] <= 100 + 10**9 // 2**22


@given(st.integers(1, 80), st.sampled_from([1, 3]), st.integers(0, 7 * 86400000))
def test_possible_is_never_less_than_the_connection_can_do(amps, phases, ms) -> None:
    rating = amps * phases * 230
    most = rating * ms / 3600000
    assert metering.possible_wh(rating, ms) >= most
    assert metering.possible_wh(rating, ms) <= most * 1.25 + rating * 2.5 / 3600 + 21


