"""The clock's four rules, each with numbers worked out by hand."""

from wattlock import clock
from wattlock.clock import BUILT_MS, HOLDOVER, SYNCED, UNSET

T = 1790000000000  # 2026-09-21T14:13:20Z
HOUR = 3600000


def synced(up=1000, unix_ms=T, err_ms=70):
    c = clock.Clock()
    clock.evolve(c, {"t": "time", "up_ms": up, "unix_ms": unix_ms, "err_ms": err_ms}, 0)
    return c


def boot(c, last_up):
    clock.evolve(c, {"t": "boot", "up_ms": 50}, last_up)


def test_a_boot_begins_without_time():
    c = clock.Clock()
    assert c.state == UNSET and c.now(5000) is None and c.least(5000) is None
    c = synced()
    boot(c, 1000)
    assert c.state == UNSET and c.now(5000) is None


def test_an_answer_sets_it_with_half_the_trip_as_error():
    c = clock.Clock()
    record = clock.decide(c, 5100, 5000, T)
    # the answer's stamp was made between 5000 and 5100: the middle, give or take half (and 20 ms)
    assert record == {"t": "time", "unix_ms": T + 50, "err_ms": 70}
    record["up_ms"] = 5100
    clock.evolve(c, record, 0)
    assert c.state == SYNCED and c.now(5100) == T + 50 and c.now(6100) == T + 1050


def test_error_grows_by_100_ppm():
    c = synced(err_ms=70)
    assert c.err(1000) == 70
    assert c.err(1000 + 10 * HOUR) == 70 + 3600  # 36,000 s x 100 ppm = 3.6 s
    assert c.least(1000 + 10 * HOUR) == T + 10 * HOUR - 70 - 3600


def test_a_late_or_early_answer_says_nothing():
    c = clock.Clock()
    assert clock.decide(c, 14999, 5000, T) is not None
    assert clock.decide(c, 15000, 5000, T) is None  # 10 s
    assert clock.decide(c, 4999, 5000, T) is None


def test_no_time_before_the_firmware_was_built():
    c = clock.Clock()
    assert clock.decide(c, 10, 0, BUILT_MS - 1) is None
    assert clock.decide(c, 10, 0, BUILT_MS) is not None
    c.hold(BUILT_MS - 1, 2000, 0)
    assert c.state == UNSET


def test_anchors_are_rare():
    c = synced(up=1000, err_ms=70)
    assert clock.decide(c, 2100, 2000, T + 1050) is None
    later = 1000 + 6 * HOUR  # the error has grown to 2,230 ms
    assert clock.decide(c, later, later - 100, T + 6 * HOUR) is not None
    c = synced(up=1000, err_ms=4000)  # 70 ms is less than a quarter of it
    assert clock.decide(c, 2100, 2000, T + 1050) is not None


def test_a_step_needs_two_answers_that_agree():
    c = synced()
    back = T - HOUR
    assert clock.decide(c, 2000, 1900, back) is None
    record = clock.decide(c, 3000, 2900, back + 1000)
    assert record is not None and record["step"] is True
    record["up_ms"] = 3000
    clock.evolve(c, record, 1000)
    assert c.now(3000) == back + 1000 + 50
    assert c.least(3000) == back + 1000 - 20  # the durable bound went back with it
    boot(c, 3000)
    assert c.least(0) <= back + 1000


def test_answers_that_disagree_with_each_other_do_not_step():
    c = synced()
    for i, unix_ms in enumerate((T - HOUR, T + HOUR, T - 2 * HOUR, T + 2 * HOUR)):
        assert clock.decide(c, 2000 + i, 1900 + i, unix_ms) is None
    # and one that agrees with the clock between them makes them start over
    assert clock.decide(c, 3000, 2950, T - HOUR) is None
    assert clock.decide(c, 3100, 3050, T + 2100) is None
    assert clock.decide(c, 3200, 3150, T - HOUR + 200) is None


def test_a_boot_does_not_begin_before_the_last_one_ended():
    """A gateway that was years ahead, and the power went: the bound of then is wrong, and two
    answers that agree put it right. The other way round nothing contradicts."""
    year = 365 * 24 * HOUR
    c = synced(unix_ms=T + 3 * year)
    boot(c, 5000)
    assert clock.decide(c, 2000, 1900, T) is None and c.state == UNSET
    assert clock.decide(c, 3000, 2900, T + 60000) is None  # that is not what the first one said
    record = clock.decide(c, 4000, 3900, T + 61000)
    assert record is not None and record["step"] is True
    record["up_ms"] = 4000
    clock.evolve(c, record, 2000)
    assert c.now(4000) == T + 61050 and c.least(4000) == T + 61050 - 70
    boot(c, 4000)
    assert c.bound(0) <= T + 61000
    record = clock.decide(c, 100, 50, T + 3 * year)  # true after all: the power was away
    assert record is not None and "step" not in record


def test_an_rtc_that_is_wrong_by_years():
    year = 365 * 24 * HOUR
    for off in (3 * year, -100 * 24 * HOUR):
        c = synced(unix_ms=T - 101 * 24 * HOUR)
        boot(c, 5000)
        c.hold(T + off, 2000, 100)
        assert c.state == HOLDOVER
        assert clock.decide(c, 2000, 1900, T) is None
        record = clock.decide(c, 3000, 2900, T + 1000)
        assert record is not None and record["step"] is True
        record["up_ms"] = 3000
        clock.evolve(c, record, 2000)
        assert c.now(3000) == T + 1050 and c.bound(3000) == T + 1050 - 70


def test_years_of_uptime():
    """Uptime is no tick: it never wraps. 2^30 ms are 12.4 days."""
    c = synced(up=2**30 - 1000, err_ms=70)
    assert c.now(2**30 + 1000) == T + 2000
    for days in (13, 400, 4000):
        up = days * 24 * HOUR
        c = synced(up=0, err_ms=70)
        boot(c, up)
        assert 0 <= T + up - c.bound(0) - up // 10000 - 70 <= 3


def test_the_bound_carries_over_boots_without_time():
    c = synced(up=1000, err_ms=70)
    boot(c, 1000 + 2 * HOUR)  # two more hours of that boot are on record
    boot(c, HOUR)  # a boot of one hour
    # 70 ms error, and 100 ppm of 3 h + 1 s = 1,080.1 ms: at most one ms more for each rounding
    exact = T - 70 + 3 * HOUR - 1080 + 1000
    assert exact - 3 <= c.least(1000) <= exact


def test_a_bound_never_goes_back_without_a_step():
    c = synced(up=1000, err_ms=70)
    boot(c, 1000 + HOUR)
    before = c.least(500)
    clock.evolve(c, {"t": "time", "up_ms": 500, "unix_ms": T + HOUR, "err_ms": 5000}, 0)
    assert c.bound(500) == before


def test_holdover():
    c = synced()
    boot(c, 1000)
    c.hold(T - 1, 2000, 100)  # less than it can be
    assert c.state == UNSET
    c.hold(T + 9000, 2000, 100)
    assert c.state == HOLDOVER and c.now(200) == T + 9100 and c.least(200) == T + 7100
    record = clock.decide(c, 300, 200, T + 9000)
    assert record is not None and "step" not in record  # the first answer of a boot is believed
    c = synced()
    c.hold(T + 9000, 2000, 2000)
    assert c.state == SYNCED  # only where nothing better is known
