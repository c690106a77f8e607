"""Contactor and connector lock at a running EVSE: with feedback, without, and where it lies."""

from wattlock import session

from portable.bench import ANNA, World


def charging(**fields):
    w = World()
    for name in fields:
        setattr(w.pins[1], name, fields[name])
    w.boot()
    assert w.until(lambda: w.app.now() is not None and w.evse().ledger.register is not None)
    w.pins[1].car = "C"
    w.run(500)
    w.ask("START_SESSION", {"evse": 1, "token": ANNA})
    assert w.until(lambda: w.evse().session and w.evse().session.phase == session.ENERGISED)
    w.run(3000)
    del w.pins[1].log[:]
    return w


def faults(w):
    return [r["fault"] for r in w.records("event") if r["what"] == "fault"]


def stop(w, ms):
    w.app.card(ANNA["uid"])
    w.run(ms)


class Jam:
    """A bolt under tension: it follows only after it was driven the other way `times` times."""

    def __init__(self, pins, times):
        self.pins = pins
        self.left = times
        self.bolt = pins.lock_out
        self.inner = pins.lock
        pins.lock = self.drive
        pins.locked = lambda: self.bolt

    def drive(self, hold):
        self.inner(hold)
        if hold != self.bolt and self.left == 0:
            self.bolt = hold
        elif hold == self.bolt and self.left:
            self.left -= 1


def test_a_bolt_under_tension_is_freed_by_driving_it_back():
    w = charging()
    jam = Jam(w.pins[1], 2)
    stop(w, 12000)
    assert jam.bolt is False and not faults(w)
    driven = [value for what, value in w.pins[1].log if what == "lock"]
    assert driven == [False, True, False, True, False]
    assert w.pins[1].log[0] == ("contactor", False)


def test_one_that_stays_stuck_is_a_fault_until_unlock_connector_frees_it():
    w = charging()
    jam = Jam(w.pins[1], 3)
    jam.left = 4  # one more than it is tried
    stop(w, 30000)
    assert jam.bolt is True and faults(w) == ["lock_stuck"]
    assert w.post().status() == "OUTOFORDER"
    tries = len(w.pins[1].log)
    w.run(30000)
    assert len(w.pins[1].log) == tries, "it is not tried for ever"
    id = w.ask("UNLOCK_CONNECTOR", {"evse": 1})
    w.run(12000)
    assert w.result_of(id) == ["ACCEPTED"] and jam.bolt is False
    assert w.post().status() != "OUTOFORDER"


def test_unlock_connector_that_frees_nothing_fails():
    w = charging()
    Jam(w.pins[1], 1000)
    stop(w, 30000)
    id = w.ask("UNLOCK_CONNECTOR", {"evse": 1})
    w.run(15000)
    assert w.result_of(id) == ["FAILED"]


def test_a_lock_that_lets_go_while_charging_is_not_touched_before_the_outlet_is_dead():
    w = charging()
    w.pins[1].locked = lambda: False
    w.run(5000)
    assert faults(w) == ["lock_stuck"] and not w.pins[1].is_closed()
    log = w.pins[1].log
    assert log[0] == ("contactor", False) and ("lock", False) in log[1:]


def test_unlocked_at_no_current_whatever_the_feedback_says():
    """A broken auxiliary contact says open, the meter says that power flows."""
    w = charging(welded=True)
    w.pins[1].closed = lambda: not w.pins[1].contactor_out and False
    stop(w, 8000)
    assert w.pins[1].lock_out, "nobody pulls a plug under current"
    w.run(10000)
    assert faults(w) == ["contactor_welded"] and w.post().status() == "OUTOFORDER"
    assert w.pins[1].lock_out
    w.pins[1].welded = False  # somebody has opened the main switch
    w.run(5000)
    assert not w.pins[1].lock_out
    w.run(5000)
    assert w.post().status() != "OUTOFORDER"


def test_a_reading_from_before_the_opening_does_not_lock_again():
    """What the first one shows was measured before; with feedback or without, it is waited for."""
    for feedback in (True, False):
        for ms in (100, 500, 900):  # from a reading to the stop
            w = charging(feedback=feedback)
            meter = w.board.meters[1]
            poll = meter.poll
            old = [meter.power_w]

            def late(w=w, poll=poll, old=old):
                now = w.real[1].power_w
                if not w.pins[1].contactor_out and old:
                    w.real[1].power_w = old.pop()
                poll()
                w.real[1].power_w = now

            w.run(3000 - w.ms % 1000 + ms)
            meter.poll = late
            stop(w, 6000)
            assert not old, "the late one was read"
            assert [v for what, v in w.pins[1].log if what == "lock"] == [False], (feedback, ms)
            assert not faults(w)


def test_a_power_that_fades_is_no_load():
    """As pulses tell it: the longer the last one is ago, the less it can be. The lock opens once,
    with the second reading where feedback says so, else when there can be no current."""
    for feedback, ms in ((True, 3000), (False, 20000)):
        w = charging(feedback=feedback)
        meter = w.board.meters[1]
        poll = meter.poll
        opened = []
        most = meter.power_w

        def fading(w=w, poll=poll, opened=opened, most=most):
            now = w.real[1].power_w
            if not w.pins[1].contactor_out:
                opened.append(w.ms)
                w.real[1].power_w = min(most, 3600000 // (w.ms - opened[0] + 400))
            poll()
            w.real[1].power_w = now

        meter.poll = fading
        stop(w, ms)
        assert [v for what, v in w.pins[1].log if what == "lock"] == [False], feedback
        w.run(30000)
        assert [v for what, v in w.pins[1].log if what == "lock"] == [False], feedback
        assert not faults(w), feedback


def test_without_feedback_the_power_must_have_fallen():
    for welded in (False, True):
        w = charging(feedback=False)
        w.pins[1].welded = welded
        stop(w, 5000)
        assert w.pins[1].lock_out is welded
        w.run(15000)
        assert faults(w) == (["contactor_welded"] if welded else [])


def test_a_contactor_that_does_not_close_is_told_and_ends_the_session():
    w = charging()
    stop(w, 8000)
    w.pins[1].stuck_open = True
    w.ask("START_SESSION", {"evse": 1, "token": ANNA})
    w.run(15000)
    assert faults(w) == ["contactor_stuck_open"]
    assert w.evse().session is None and not w.pins[1].contactor_out
