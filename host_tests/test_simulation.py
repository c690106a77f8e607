"""The simulation: seeds that must keep every promise, and a checker that must be able to fail.

`make soak SEED= N=` runs any number of seeds; see `simulation/__init__.py` for what is in them.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from wattlock import (
    app,
    booked,
    booking,
    clock,
    commands,
    evse,
    gate,
    journal,
    metering,
    reservation,
    session,
)
from wattlock.errors import StorageError

from host_tests.simulation.flash import Store
from host_tests.simulation.runner import run, run_all, summary

SEEDS = 300


@pytest.fixture(autouse=True)
def usual_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day may have a small journal; what comes after the test has the usual one."""
    for name in ("SEGMENT", "LIMIT", "RESERVED"):
        monkeypatch.setattr(journal, name, getattr(journal, name))


@pytest.mark.timeout(900)
def test_every_seed_keeps_every_promise() -> None:
    outcomes = list(run_all(range(1, SEEDS + 1)))
    broken = [o for o in outcomes if o.promise is not None]
    for outcome in broken[:2]:
        print(outcome.story)
    print(summary(outcomes))
    assert [(o.seed, o.why) for o in broken] == []
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
    # what the stories are for has happened in them
    for what in (
        *("sessions", "reservations", "results", "Wh", "power cuts", "resets"),
        *("cuts clean", "cuts torn", "messages lost", "messages repeated"),
        *("messages of the attacker", "resumed", "expired", "used", "cancelled"),
        *("booked", "booking used", "booking_ended", "no_show", "over"),
    ):
        assert counts[what] > 20, what
    for what in ("rollback", "jump", "serial", "glitch", "gap", "frozen", "rollover"):
        assert counts[f"meter {what}"] > 5, what
    assert counts["export"] > 5


def test_a_seed_is_a_story_that_can_be_told_again() -> None:
    first, again = run(11, story=True), run(11, story=True)
    assert first.story == again.story
    assert first.story != run(12, story=True).story


# -- the checker can fail -------------------------------------------------------------------------


def _allow_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gate, "refusal", lambda *args, **kwargs: None)


def _write_behind(patch: pytest.MonkeyPatch) -> None:
    """`append` returns before the data are on the flash, which gets every third."""
    call = Store._call
    waiting: list[tuple[Any, ...]] = []

    def lazy(self: Store, name: str, *args: Any) -> Any:
        if name == "append":
            waiting.append(args)
            if len(waiting) % 3:
                return None
        for held in waiting:
            call(self, "append", *held)
        waiting.clear()
        return call(self, name, *args) if name != "append" else None

    open_journal = journal.Journal.open

    def forget(self: journal.Journal, *args: Any) -> Any:
        waiting.clear()  # RAM is gone with the boot
        return open_journal(self, *args)

    patch.setattr(Store, "_call", lazy)
    patch.setattr(journal.Journal, "open", forget)


def _act_before_writing(patch: pytest.MonkeyPatch) -> None:
    """What could not be written is acted on all the same."""
    append = journal.Journal.append

    def careless(self: journal.Journal, *args: Any) -> bool | None:
        try:
            return append(self, *args)
        except StorageError:
            return True

    patch.setattr(journal.Journal, "append", careless)


def _count_twice(patch: pytest.MonkeyPatch) -> None:
    period = session.period

    def twice(*args: Any) -> dict[str, Any]:
        record = period(*args)
        record["total_wh"] += record["wh"]
        record["wh"] *= 2
        return record

    patch.setattr(session, "period", twice)


def _bill_a_little_more(patch: pytest.MonkeyPatch) -> None:
    """Consistent in all records, and not true: the meter is read with 2 % on top."""
    offer = metering.offer

    def more(ledger: Any, serial: Any, energy_wh: int | None, *rest: Any) -> Any:
        wh = None if energy_wh is None else energy_wh + energy_wh // 50
        return offer(ledger, serial, wh, *rest)

    patch.setattr(metering, "offer", more)


def _set_off_what_flows_back(patch: pytest.MonkeyPatch) -> None:
    read = evse.Post._read

    def less(self: evse.Post, ticks: int) -> None:
        meter = self.meter
        if meter.readings != self.readings and meter.energy_wh is not None:
            meter.energy_wh -= meter.export_wh or 0
        read(self, ticks)

    patch.setattr(evse.Post, "_read", less)


def _bill_what_flowed_back(patch: pytest.MonkeyPatch) -> None:
    """As export, to the next session that gives something: the account is not kept up."""
    evolve = metering.evolve
    patch.setattr(
        metering, "evolve", lambda state, r: None if r["t"] == "export" else evolve(state, r)
    )


def _know_no_last_digit(patch: pytest.MonkeyPatch) -> None:
    """A register that begins again at 0 is taken for one that was set back."""
    offer = metering.offer
    patch.setattr(metering, "offer", lambda *args: offer(*args[:4]))


def _believe_any_jump(patch: pytest.MonkeyPatch) -> None:
    """What a register shows after it has stood still is all the session's."""
    patch.setattr(metering, "possible_wh", lambda *args: 1 << 40)


def _lose_energy_at_the_cut(patch: pytest.MonkeyPatch) -> None:
    """The first reading of a boot is nobody's."""
    fact = evse.Post._fact
    patch.setattr(
        evse.Post, "_fact", lambda self, name, *more: name != "gap" and fact(self, name, *more)
    )
    resumed, stop = session.resumed, session.stop

    patch.setattr(
        session, "resumed", lambda s, n, at, register, wh: resumed(s, n, at, register - wh, 0)
    )
    patch.setattr(session, "stop", lambda s, n, at, register, wh: stop(s, n, at, register - wh, 0))


def _never_expire(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reservation, "is_over", lambda held, least: False)


def _expire_early(patch: pytest.MonkeyPatch) -> None:
    is_over = reservation.is_over
    patch.setattr(
        reservation,
        "is_over",
        lambda held, least: is_over(held, None if least is None else least + 30_000),
    )


def _forget_release(patch: pytest.MonkeyPatch) -> None:
    decide = reservation.decide

    def forget(held: Any, n: int, event: str, *args: Any) -> Any:
        return () if event == reservation.USED else decide(held, n, event, *args)

    patch.setattr(reservation, "decide", forget)


def _slots_do_not_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(booking, "running", lambda slots, least, most: None)


def _slots_never_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(booking, "lapsed", lambda slots, least: None)


def _slots_end_early(patch: pytest.MonkeyPatch) -> None:
    lapsed = booking.lapsed
    patch.setattr(
        booking, "lapsed", lambda slots, least: lapsed(slots, least and least + 30_000)
    )


def _any_slot_opens(patch: pytest.MonkeyPatch) -> None:
    """The card of one slot opens another one's, and over OCPI whatever its terms say."""
    opened = booking.opened
    patch.setattr(
        booking, "opened", lambda slots, least, most, remote, is_it:
        opened(slots, least, most, False, lambda token: True)
    )  # fmt: skip


def _stay_into_the_next_slot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(booked.Booked, "until", lambda self: None)


def _forget_slots(patch: pytest.MonkeyPatch) -> None:
    """The list does not survive a reset."""
    build = app.build

    def forget(*args: Any) -> app.App:
        made = build(*args)
        for post in made.posts.values():
            if post.booked is not None:
                post.booked.slots.rows.clear()
        return made

    patch.setattr(app, "build", forget)


def _take_any_version(patch: pytest.MonkeyPatch) -> None:
    """A change that was made for another list is taken."""
    decide = booking.decide
    patch.setattr(
        booking,
        "decide",
        lambda slots, n, data, clean: decide(
            slots, n, data | {"base": slots.version} if data.get("base") else data, clean
        ),
    )


def _obey_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commands, "known", lambda results, command: None)


def _obey_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commands, "stale", lambda *args: None)


def _obey_strangers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commands, "equal", lambda a, b: True)


def _resume_what_was_dark(patch: pytest.MonkeyPatch) -> None:
    """A session that was never seen energised is energised after the reset."""
    evolve = session.evolve

    def revive(state: Any, record: Any, last: Any) -> Any:
        fresh = state is not None and state.phase == session.STARTED
        state = evolve(state, record, last)
        if fresh and record["t"] == "boot":
            state.phase = session.INTERRUPTED
        return state

    patch.setattr(session, "evolve", revive)


def _stop_slowly(patch: pytest.MonkeyPatch) -> None:
    """The contactor opens twenty turns too late."""
    outputs = evse.Post._outputs
    turns: Counter[int] = Counter()

    def slow(self: evse.Post, ticks: int) -> None:
        s = self.state.session
        over = s is None or self.ending is not None or s.phase == session.ENDING
        if over and self.contactor.wanted:
            turns[id(self)] += 1
            if turns[id(self)] % 20:
                return
        outputs(self, ticks)

    patch.setattr(evse.Post, "_outputs", slow)


def _write_at_once(patch: pytest.MonkeyPatch) -> None:
    """A turn writes whatever there is to write in it."""
    may_write = app.App.may_write

    def always(self: app.App) -> bool:
        wrote, self.wrote = self.wrote, False
        may = may_write(self)
        self.wrote = wrote
        return may

    patch.setattr(app.App, "may_write", always)


def _skip_a_record(patch: pytest.MonkeyPatch) -> None:
    unsent = journal.Journal.unsent

    def skip(self: journal.Journal, room: int) -> Any:
        seq, before, after, bodies = unsent(self, room)
        return seq, before, after, bodies[1:] if len(bodies) > 3 else bodies

    patch.setattr(journal.Journal, "unsent", skip)


def _report_before_writing(patch: pytest.MonkeyPatch) -> None:
    """The message carries a record that the flash has not got."""
    unsent = journal.Journal.unsent

    def eager(self: journal.Journal, room: int) -> Any:
        seq, before, after, bodies = unsent(self, room)
        if not bodies and room:
            line = json.dumps({"boot": 1, "up_ms": 1, "t": "event", "what": "soon"}).encode()
            return seq, before, journal.link(self.mac, before, seq, line), [line]
        return seq, before, after, bodies

    patch.setattr(journal.Journal, "unsent", eager)


def _trust_the_clock(patch: pytest.MonkeyPatch) -> None:
    decide = clock.decide

    def sure(*args: Any) -> Any:
        record = decide(*args)
        if record is not None:
            record["err_ms"] = 1
        return record

    patch.setattr(clock, "decide", sure)


def _stumble(patch: pytest.MonkeyPatch) -> None:
    """An exception where two things meet: a session and an emergency stop."""
    each_second = evse.Post._each_second

    def stumble(self: evse.Post) -> None:
        if self.state.session is not None and self.app.estop():
            raise KeyError("emergency")
        each_second(self)

    patch.setattr(evse.Post, "_each_second", stumble)


def _believe_what_stands_still(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(evse, "_STILL_WS", 10**12)


def _take_any_load_for_a_car(patch: pytest.MonkeyPatch) -> None:
    """A lamp behind the meter, too."""
    patch.setattr(evse, "_WELDED_W", 20)


def _tell_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(app, "_COALESCE_MS", 0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mutate", "promises"),
    [
        (_allow_everybody, {"P4"}),
        (_write_behind, {"P2"}),
        (_act_before_writing, {"P2", "P3"}),
        (_count_twice, {"P1"}),
        (_bill_a_little_more, {"P1"}),
        (_set_off_what_flows_back, {"P1"}),
        (_bill_what_flowed_back, {"P1"}),
        (_know_no_last_digit, {"P1"}),
        (_believe_any_jump, {"P1"}),
        (_lose_energy_at_the_cut, {"P1"}),
        (_never_expire, {"P5"}),
        (_expire_early, {"P4"}),
        (_forget_release, {"P4"}),
        (_slots_do_not_lock, {"P4"}),
        (_slots_never_end, {"P5"}),
        (_slots_end_early, {"P4"}),
        (_any_slot_opens, {"P4"}),
        (_stay_into_the_next_slot, {"P4"}),
        (_forget_slots, {"P4", "P5"}),
        (_take_any_version, {"P6"}),
        (_obey_again, {"P6"}),
        (_obey_late, {"P6"}),
        (_obey_strangers, {"P6"}),
        (_resume_what_was_dark, {"P3"}),
        (_stop_slowly, {"P7"}),
        (_believe_what_stands_still, {"P7"}),
        (_write_at_once, {"P7"}),
        (_skip_a_record, {"P2"}),
        (_report_before_writing, {"P2"}),
        (_trust_the_clock, {"P3"}),
        (_stumble, {"P8"}),
        (_tell_everything, {"P9"}),
        (_take_any_load_for_a_car, {"P9"}),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else None,
)
def test_the_checker_catches(
    mutate: Callable[[pytest.MonkeyPatch], None],
    promises: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent that is wrong in one place breaks the right promise within 60 seeds."""
    mutate(monkeypatch)
    found: Counter[str] = Counter()
    for seed in range(1, 61):
        outcome = run(seed)
        if outcome.promise is not None:
            found[outcome.promise] += 1
        if outcome.promise in promises:
            return
    pytest.fail(f"not caught; found {dict(found)}")
