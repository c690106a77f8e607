"""What meters do out of the ordinary, at the agent on the bench: each is a record of its own with
before and after, and the session's energy is right or nobody's."""

import sys

from wattlock import session

from portable.bench import ANNA, World

MINUTE = 60000


def world(prepare=None, **fields):
    w = World(**fields)
    if prepare is not None:
        prepare(w.real[1])
    w.boot()
    assert w.until(lambda: w.app.now() is not None and w.evse().ledger.register is not None)
    w.run(1000)
    return w


def charging(w):
    w.pins[1].car = "C"
    w.ask("START_SESSION", {"evse": 1, "token": ANNA})
    assert w.until(lambda: w.evse().session and w.evse().session.phase == session.ENERGISED)


def stop(w):
    w.ask("STOP_SESSION", {"session_id": w.evse().session.id})
    return stopped(w)


def stopped(w):
    n = len(w.records("stop"))
    assert w.until(lambda: w.evse().session is None, 90000)
    w.run(2000)
    assert len(w.records("stop")) <= n + 1
    return w.records("stop")[-1]


def facts(w, what=None):
    return [r for r in w.records("meter") if what in (None, r["what"])]


def words(w):
    return [r["what"] for r in facts(w)]


def given(w):
    """All Wh that the records give to sessions, outside or nobody."""
    wh = 0
    for r in w.records():
        wh += r.get("outside_wh", 0)
        if r["t"] == "period":
            wh += r["wh"]
        elif r["t"] == "meter":
            wh += r["unobserved_wh"]
    return wh


def steps(wh):
    def prepare(real):
        real.step_wh = wh

    return prepare


def ends_at(wh, span):
    """A register that shows `wh` now and begins again at `span`."""

    def prepare(real):
        real.mwh = wh * 1000
        real.rolls_wh = (span,)

    return prepare


def test_registers_that_move_in_large_steps():
    for step in (10, 100, 1000):
        w = world(steps(step))
        before = w.real[1].shown_wh()
        charging(w)
        w.run(50 * MINUTE)
        record = stop(w)
        assert words(w) == ["found"], step
        assert record["total_wh"] == w.real[1].shown_wh() - before >= 9000
        assert record["unobserved_wh"] == 0


def test_a_register_that_begins_again_in_a_session():
    span = 10000000
    w = world(ends_at(span - 1000, span))
    charging(w)
    w.run(20 * MINUTE)  # 11 kW: 3,666 Wh
    record = stop(w)
    flowed = w.real[1].mwh // 1000 - (span - 1000)
    assert flowed > 3600 and record["total_wh"] == flowed
    assert record["register_wh"] == w.real[1].shown_wh() < 3000
    (fact,) = facts(w, "rollover")
    assert fact["before_wh"] - fact["after_wh"] == span and fact["epoch"] == 1
    assert (fact["outside_wh"], fact["unobserved_wh"]) == (0, 0)
    assert words(w) == ["found", "rollover"] and given(w) == flowed


def test_a_register_that_begins_again_while_the_power_is_away():
    """Where it could have delivered that much, the energy is the interrupted session's."""
    span = 10000000
    w = world(ends_at(span - 100, span))
    charging(w)
    while w.real[1].mwh < span * 1000 - 20000:
        w.run(100)
    w.real[1].mwh += 60000  # between the last reading and the cut
    w.cut(8000)
    assert w.until(lambda: w.evse().session.resumes == 1)
    w.run(MINUTE)
    record = stop(w)
    flowed = w.real[1].mwh // 1000 - (span - 100)
    assert record["total_wh"] == flowed == given(w)
    assert words(w) == ["found", "rollover"]
    assert len(w.records("stop")) == 1


def test_a_register_that_begins_again_between_sessions():
    span = 10000000
    w = world(ends_at(span - 3, span))
    w.real[1].mwh += 8000  # a lamp
    w.run(5000)
    (fact,) = facts(w, "rollover")
    assert (fact["before_wh"], fact["after_wh"]) == (span + 5, 5)
    assert (fact["outside_wh"], fact["unobserved_wh"]) == (8, 0)


def test_a_glitch_is_told_and_billed_to_nobody():
    for wrong in (1, 4000, 10**9, -7, 1 << 62):
        w = world()
        before = w.real[1].mwh // 1000
        charging(w)
        w.run(MINUTE)
        w.real[1].glitch = wrong
        w.run(MINUTE)
        record = stop(w)
        assert record["total_wh"] == w.real[1].mwh // 1000 - before
        (fact,) = facts(w, "glitch")
        assert fact["after_wh"] == (None if wrong == 1 << 62 or wrong < 0 else wrong)
        assert before <= fact["before_wh"] <= before + 400 and fact["count"] == 1
        assert (fact["outside_wh"], fact["unobserved_wh"]) == (0, 0)


def test_a_noisy_meter_does_not_wear_out_the_flash():
    w = world()
    charging(w)
    for _ in range(600):  # an hour, every third reading wrong
        w.real[1].glitch = 17
        w.run(6000, 500)
    record = stop(w)
    told = facts(w, "glitch")
    assert 2 <= len(told) <= 5
    assert 500 <= sum([r["count"] for r in told]) + w.evse().ledger.glitches <= 600
    assert record["total_wh"] == w.real[1].mwh // 1000 - 5000


def test_a_frozen_register_ends_the_session_and_starts_none():
    for frozen in ("all", "energy"):
        frozen_in_a_charge(frozen)


def frozen_in_a_charge(frozen):
    w = world()
    before = w.real[1].mwh // 1000
    charging(w)
    w.run(5 * MINUTE)
    w.real[1].frozen = frozen
    frozen_wh = w.real[1].mwh // 1000
    record = stopped(w) if w.until(lambda: facts(w, "frozen"), 5 * MINUTE) else None
    assert record["cause"] == "meter_lost"
    assert frozen_wh - 10 <= before + record["total_wh"] <= frozen_wh
    (fact,) = facts(w, "frozen")
    assert fact["before_wh"] == fact["after_wh"] == before + record["total_wh"]
    assert fact["power_w"] == w.power_w
    w.run(MINUTE)
    if frozen == "all":  # it goes on telling the old power: neither a meter nor a welded contactor
        id = w.ask("START_SESSION", {"evse": 1, "token": ANNA})
        w.run(10000)
        assert w.result_of(id) == ["FAILED"] and w.evse().fault is None
    # thawed, it shows what has flowed meanwhile: nobody's
    w.real[1].frozen = None
    w.run(5000)
    missed = w.real[1].mwh // 1000 - fact["after_wh"]
    how = "gap" if frozen == "all" else "jump"
    assert words(w) == ["found", "frozen", "back", how]
    assert facts(w, how)[0]["unobserved_wh"] == missed > 300
    assert given(w) == w.real[1].mwh // 1000 - before
    charging(w)
    w.run(MINUTE)
    assert stop(w)["cause"] == "remote"


# The energy within which a meter that counts in such steps must have shown something, with the
# load of one phase at 6 A and of three at 32 A; in Wh, and in ms at that load.
STILL = [(1, 22), (10, 33), (100, 145)]
LOADS = (1380, 22080)


def ms_for(wh, power_w):
    return wh * 3600000 // power_w


def test_a_meter_that_freezes_in_a_charge_is_no_welded_contactor():
    """It shows the power of the charge for ever, contactor or not: the cable is free as soon as
    an honest meter would have counted, and the fact says why nobody starts."""
    for step, still_wh in STILL:
        for power_w in LOADS:
            for feedback in (True, False):
                frozen_at_the_stop(step, still_wh, power_w, feedback)


def frozen_at_the_stop(step, still_wh, power_w, feedback):
    w = world(steps(step))
    w.pins[1].feedback = feedback
    w.power_w = power_w
    charging(w)
    w.run(MINUTE)
    w.real[1].frozen = "all"
    w.run(5000)
    w.app.card(ANNA["uid"])
    assert w.until(lambda: w.records("stop"), 10000)
    about = (step, power_w, feedback)
    # without feedback it may as well be a contactor that has not opened
    assert w.pins[1].lock_out is not feedback, about
    within_ms = ms_for(still_wh, power_w) + 15000
    assert w.until(lambda: facts(w, "frozen"), within_ms + 3000), about
    assert w.until(lambda: not w.pins[1].lock_out, 500) and words(w) == ["found", "frozen"], about
    id = w.ask("START_SESSION", {"evse": 1, "token": ANNA})
    w.run(2 * within_ms + MINUTE, 500)
    assert w.result_of(id) == ["FAILED"] and not w.pins[1].lock_out
    assert faults(w) == [], about
    assert words(w) == ["found", "frozen"]
    w.real[1].frozen = None
    w.run(5000)
    assert words(w)[2] == "back" and w.post().status() == "CHARGING", about
    charging(w)
    stop(w)


def faults(w):
    return [r["fault"] for r in w.records("event") if r["what"] == "fault"]


def test_a_welded_contactor_is_told_by_any_meter_and_is_never_a_frozen_one():
    """At the latest when the register has taken two steps, or at once where the power has digits
    that move. The cable is locked all the while."""
    for step in (1, 10, 100):
        for power_w in LOADS:
            for restless in (False, True):
                welded_at_the_stop(step, power_w, restless)


def charging_welded(w):
    """A minute into a charge the contactor welds, and no feedback tells it."""
    w.pins[1].feedback = False
    charging(w)
    w.run(MINUTE)
    w.pins[1].welded = True


def welded_at_the_stop(step, power_w, restless):
    w = world(steps(step))
    w.power_w = power_w
    charging_welded(w)
    w.app.card(ANNA["uid"])
    about = (step, power_w, restless)
    within_ms = 15000 + (0 if restless else 2 * ms_for(step, power_w))
    end = w.ms + within_ms
    while not faults(w):
        assert w.ms < end, about
        w.run(1000)
        w.power_w = power_w + (w.ms // 1000 % 2 if restless else 0)
        assert w.pins[1].lock_out or w.evse().session, about
    w.run(30 * MINUTE, 1000)
    assert faults(w) == ["contactor_welded"] and set(words(w)) <= {"found", "gap"}, about
    assert w.pins[1].lock_out and w.post().status() == "OUTOFORDER", about


def test_a_welded_contactor_is_told_also_where_the_meter_shows_power_and_counts_none():
    w = world()
    charging_welded(w)
    w.real[1].frozen = "energy"
    w.app.card(ANNA["uid"])
    for _ in range(15):
        w.run(1000)
        w.power_w += 1
    assert faults(w) == ["contactor_welded"] and w.pins[1].lock_out


def test_a_welded_contactor_is_not_forgiven_by_a_meter_that_is_gone_nor_by_a_reset():
    w = world()
    charging_welded(w)
    stop(w)
    w.run(15000)
    assert faults(w) == ["contactor_welded"]
    w.real[1].dead = True
    w.run(5 * MINUTE, 1000)
    assert w.evse().fault == "contactor_welded"
    w.cut(8000)
    w.run(5 * MINUTE, 1000)
    assert w.evse().fault == "contactor_welded"
    w.real[1].dead = False
    w.run(5 * MINUTE, 1000)
    assert w.evse().fault == "contactor_welded"
    w.pins[1].welded = False  # somebody has put in a new one
    assert w.until(lambda: w.evse().fault is None, 5000)
    assert faults(w) == ["contactor_welded"], "once, whatever came between"


def test_another_fault_ends_with_its_cause_also_where_a_meter_shows_power_for_ever():
    w = world()
    w.pins[1].feedback = False
    charging(w)
    w.real[1].frozen = "all"
    w.run(5000)
    w.app.card(ANNA["uid"])
    w.run(MINUTE)
    w.pins[1].fail = True
    w.run(3000)
    assert faults(w) == ["pilot"]
    w.pins[1].fail = False
    assert w.until(lambda: w.evse().fault is None, 5000)


def test_what_flows_back_holds_the_cable_and_welds_and_freezes_as_what_flows():
    """A car that gives 9 kW: through a welded contactor, and on a meter that stands still."""
    for export_wh in (700, None):
        for what in ("well", "welded", "frozen"):
            w = world(two_way(export_wh))
            w.pins[1].feedback = False
            charging(w)
            w.run(MINUTE)
            w.pass_ms = Back(w).pass_ms
            w.run(20 * MINUTE)  # 3 kWh
            assert w.evse().session is not None and "frozen" not in words(w)
            w.pins[1].welded = what == "welded"
            w.real[1].frozen = "all" if what == "frozen" else None
            w.app.card(ANNA["uid"])
            w.run(15000)
            assert w.pins[1].lock_out is (what != "well")
            w.run(MINUTE)
            assert faults(w) == (["contactor_welded"] if what == "welded" else [])
            assert w.pins[1].lock_out is (what == "welded")
            assert ("frozen" in words(w)) is (what == "frozen")


class Back:
    """9 kW and some W flow back wherever power would flow."""

    def __init__(self, w):
        self.w = w
        self.mws = 0

    def pass_ms(self, ms):
        w = self.w
        real = w.real[1]
        w.ms += ms
        flows = w.pins[1].is_closed() and w.pins[1].ready()
        real.power_w = -9000 - w.ms // 1000 % 2 if flows else 0
        if flows and real.export_wh is not None:
            self.mws += 9000 * ms
            real.export_wh += self.mws // 3600000
            self.mws %= 3600000


def test_a_power_that_falls_slowly_after_the_opening_is_no_welded_contactor():
    """A meter that shows the mean of some seconds, and one that freezes in the middle of it."""
    for freezes in (False, True):
        w = world()
        w.pins[1].feedback = False
        charging(w)
        w.run(MINUTE)
        w.pass_ms = Fall(w).pass_ms
        w.app.card(ANNA["uid"])
        w.run(5000)
        if freezes:
            w.real[1].frozen = "all"
        w.run(2 * MINUTE)
        assert faults(w) == [] and not w.pins[1].lock_out
        assert words(w) == (["found", "frozen"] if freezes else ["found"])


class Fall:
    """The power shown takes 8 s to fall to nothing."""

    def __init__(self, w):
        self.w = w
        self.inner = w.pass_ms
        self.since = w.ms

    def pass_ms(self, ms):
        self.inner(ms)
        if not self.w.pins[1].contactor_out:
            self.w.real[1].power_w = max(0, 11000 - (self.w.ms - self.since) * 11 // 8)


def test_a_frozen_register_without_require_meter_is_told_only():
    w = world(require_meter=False)
    charging(w)
    w.run(MINUTE)
    w.real[1].frozen = "all"
    w.run(10 * MINUTE)
    assert words(w) == ["found", "frozen"] and w.evse().session is not None
    w.real[1].frozen = None
    w.run(MINUTE)
    record = stop(w)
    assert words(w) == ["found", "frozen", "back"]
    assert record["total_wh"] == w.real[1].mwh // 1000 - 5000


def test_large_steps_and_small_loads_are_not_frozen():
    w = world(steps(1000))
    w.power_w = 1380  # 6 A: 43 minutes for a step
    charging(w)
    w.run(100 * MINUTE, 500)
    stop(w)
    assert words(w) == ["found"]
    w = world()
    w.real[1].frozen = "energy"  # a meter that tells 150 W and does not count them
    w.power_w = 150
    charging(w)
    w.run(4 * 60 * MINUTE, 1000)
    assert words(w) == ["found"]


def test_readings_that_are_none_are_a_lost_meter():
    w = world()
    charging(w)
    w.run(MINUTE)
    w.board.meters[1].poll = lambda: nothing(w.board.meters[1])
    assert w.until(lambda: facts(w, "lost"), 30000)
    assert stopped(w)["cause"] == "meter_lost"


def nothing(meter):
    meter.readings += 1
    meter.energy_wh = None


# what flows back ------------------------------------------------------------------------------


def two_way(wh=700):
    def prepare(real):
        real.export_wh = wh

    return prepare


def exports(w):
    return w.records("export")


def test_export_that_never_moves_costs_nothing():
    w = world(two_way())
    charging(w)
    w.run(20 * MINUTE)
    stop(w)
    assert exports(w) == [] and w.post().exported is None
    assert facts(w, "found")[0]["export_wh"] == 700


def test_what_flows_back_is_kept_apart():
    w = world(two_way())
    real = w.real[1]
    real.export_wh += 2  # before any session
    w.run(3000)
    charging(w)
    id = w.evse().session.id
    w.run(2 * MINUTE)
    before = real.mwh
    w.power_w = 0
    for _ in range(100):
        real.export_wh += 30
        w.run(10000, 500)
    assert real.mwh == before
    w.power_w = 11000
    w.run(MINUTE)
    record = stop(w)
    assert record["total_wh"] == real.mwh // 1000 - 5000, "import alone"
    rows = exports(w)
    assert [(r["session_id"], r["wh"]) for r in rows[:1]] == [(None, 2)]
    assert sum([r["wh"] for r in rows if r["session_id"] == id]) == 3000
    assert 2 < len(rows) <= 5, "with the periods: a quarter of an hour, the stop"
    register = 700
    for r in rows:
        assert (r["what"], r["before_wh"], r["serial"]) == ("counted", register, "S1")
        assert r["after_wh"] - r["before_wh"] == r["wh"] and r["unobserved_wh"] == 0
        register = r["after_wh"]
    assert register == 3702
    real.export_wh += 5
    w.run(3000)
    charging(w)
    assert exports(w)[-1]["session_id"] is None and exports(w)[-1]["wh"] == 5


def test_what_flows_back_around_a_power_cut_is_the_sessions():
    w = world(two_way())
    charging(w)
    id = w.evse().session.id
    w.run(5000)
    w.real[1].export_wh += 40
    w.run(5000)
    assert exports(w) == []
    w.cut(8000)
    w.real[1].export_wh += 2
    assert w.until(lambda: w.evse().session.resumes == 1)
    w.run(2000)
    assert [(r["session_id"], r["wh"]) for r in exports(w)] == [(id, 42)]
    stop(w)
    assert w.evse().ledger.export == 742


def test_what_flows_back_before_the_first_reading_of_a_session_is_nobodys():
    """The session began with a dead meter: who gave what until it is back, nobody saw."""
    for cut in (False, True):
        w = world(two_way(), require_meter=False)
        w.run(3000)
        w.real[1].dead = True
        w.run(2 * MINUTE)
        w.real[1].export_wh += 30
        charging(w)
        w.run(MINUTE)
        w.real[1].export_wh += 40
        if cut:
            w.cut(1000)
        w.real[1].dead = False
        id = w.evse().session.id
        assert w.until(lambda w=w: exports(w), 2 * MINUTE)
        (row,) = exports(w)
        assert (row["what"], row["session_id"]) == ("gap", id)
        assert (row["wh"], row["unobserved_wh"], row["after_wh"]) == (0, 70, 770)
        w.real[1].export_wh += 5
        w.run(3000)
        stop(w)
        assert [(r["what"], r["wh"]) for r in exports(w)[1:]] == [("counted", 5)]


def test_export_registers_misbehave_too():
    w = world(two_way())
    charging(w)
    for shown in (0, 900000, -3, 1 << 62):  # glitches
        true = w.real[1].export_wh
        w.real[1].export_wh = shown
        w.run(1000)
        w.real[1].export_wh = true
        w.run(3000)
    assert exports(w) == []
    w.real[1].export_wh += 20
    w.run(3000)
    w.real[1].export_wh = 5  # set back
    w.run(3000)
    w.real[1].export_wh = 90005  # more than there can be
    w.run(3000)
    rows = [(r["what"], r["before_wh"], r["after_wh"], r["wh"], r["unobserved_wh"])
            for r in exports(w)]  # fmt: skip
    assert rows == [
        ("counted", 700, 720, 20, 0), ("rollback", 720, 5, 0, 0), ("jump", 5, 90005, 0, 90000)
    ]  # fmt: skip
    assert stop(w)["total_wh"] == w.real[1].mwh // 1000 - 5000


def test_a_new_meter_brings_its_own_export_register():
    w = world(two_way())
    charging(w)
    w.real[1].export_wh += 10
    w.run(3000)
    w.real[1].serial, w.real[1].mwh, w.real[1].export_wh = "S9", 3000, 55000
    w.run(5000)
    stop(w)
    assert [(r["wh"], r["after_wh"], r["serial"]) for r in exports(w)] == [(10, 710, "S1")]
    assert facts(w, "serial")[0]["export_wh"] == 55000
    assert w.evse().ledger.export == 55000


def test_a_board_that_knew_no_export_before_begins_with_a_baseline():
    w = world(two_way(None))
    charging(w)
    w.real[1].export_wh = 1234  # the firmware before did not look
    w.run(5000)
    w.real[1].export_wh = 1240
    w.run(5000)
    stop(w)
    rows = [(r["what"], r["before_wh"], r["after_wh"], r["wh"]) for r in exports(w)]
    assert rows == [("found", None, 1234, 0), ("counted", 1234, 1240, 6)]


def test_the_code_of_the_extraordinary_is_forgotten():
    w = world()
    assert words(w) == ["found"]
    assert "wattlock.facts" not in sys.modules
