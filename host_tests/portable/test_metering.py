"""The ledger's rules. Numbers are chosen so that the arithmetic can be done by eye."""

from wattlock import metering
from wattlock.metering import (
    BACK,
    FOUND,
    FROZEN,
    GAP,
    GLITCH,
    JUMP,
    LOST,
    NOTHING,
    OK,
    ROLLBACK,
    ROLLOVER,
    SERIAL,
    Ledger,
    offer,
)


def fresh(register=5000, serial="A"):
    ledger = Ledger()
    record = metering.fact(ledger, 1, FOUND, serial, register)
    metering.evolve(ledger, record)
    return ledger


def test_missing_is_unknown_never_zero():
    ledger = Ledger()
    assert offer(ledger, "A", None, 100) == NOTHING
    assert ledger.last is None and ledger.advance() == 0
    ledger = fresh(5000)
    assert offer(ledger, "A", None, 100) == NOTHING
    assert ledger.last == 5000


def test_the_first_reading_is_a_baseline_not_energy():
    ledger = Ledger()
    assert offer(ledger, "A", 12345678, 10) == FOUND
    record = metering.fact(ledger, 1, FOUND, "A", 12345678)
    assert (record["outside_wh"], record["unobserved_wh"], record["before_wh"]) == (0, 0, None)
    metering.evolve(ledger, record)
    assert (ledger.register, ledger.last, ledger.serial, ledger.advance()) == (
        12345678,
        12345678,
        "A",
        0,
    )


def test_accepted_readings_advance():
    ledger = fresh(5000)
    for wh in (5000, 5010, 5110):
        assert offer(ledger, "A", wh, 100) == OK
    assert ledger.advance() == 110 and ledger.register == 5000
    metering.evolve(ledger, {"t": "period", "register_wh": 5110})
    assert ledger.advance() == 0 and ledger.register == 5110


def test_once_is_a_glitch():
    for bad, serial in ((4999, "A"), (5102, "A"), (5000, "B"), (0, "A"), (1 << 62, "A")):
        ledger = fresh(5000)
        assert offer(ledger, serial, bad, 100) == NOTHING
        assert offer(ledger, "A", 5001, 100) == OK
        assert ledger.last == 5001 and ledger.glitches == 1
        # and it does not count as the first of two later
        assert offer(ledger, serial, bad, 100) == NOTHING


def test_twice_is_a_fact():
    for bad, serial, what in ((4000, "A", ROLLBACK), (5101, "A", JUMP), (5000, "B", SERIAL)):
        ledger = fresh(5000)
        assert offer(ledger, serial, bad, 100) == NOTHING
        assert offer(ledger, serial, bad + 3, 100) == what


def test_what_no_meter_can_show_is_never_a_fact():
    for bad in (-1, -(1 << 31), 1 << 50, 1 << 62, (1 << 64) - 1):
        ledger = fresh(5000)
        for _ in range(3):
            assert offer(ledger, "A", bad, 100) == NOTHING
        assert offer(ledger, "A", 5001, 100) == OK
        assert ledger.glitches == 1 and ledger.doubt_wh == bad
        assert offer(Ledger(), "A", bad, 100) == NOTHING


def test_a_register_that_begins_again():
    # a u32 that counts in 10 Wh: 42,949,672,960 Wh; 40 Wh before that, and 30 Wh after it
    span = (1 << 32) * 10
    ledger = fresh(span - 40)
    assert offer(ledger, "A", 30, 100, (span,)) == NOTHING
    assert ledger.last == span - 40
    assert offer(ledger, "A", 50, 100, (span,)) == ROLLOVER
    assert ledger.advance() == 90, "40 before the end and 50 behind it"
    metering.evolve(ledger, {"t": "period", "register_wh": ledger.last})
    record = metering.fact(ledger, 1, ROLLOVER, "A", 50)
    assert (record["before_wh"], record["after_wh"], record["epoch"]) == (span + 50, 50, 1)
    metering.evolve(ledger, record)
    assert (ledger.register, ledger.last, ledger.epoch, ledger.advance()) == (50, 50, 1, 0)
    assert offer(ledger, "A", 60, 100, (span,)) == OK


def test_a_register_that_begins_again_where_it_cannot_is_set_back():
    span = 10_000_000  # a BCD register of 4 digits in kWh
    for before, after in ((span - 500, 0), (span - 40, 100), (5_000_000, 0)):
        ledger = fresh(before)
        assert offer(ledger, "A", after, 100, (span,)) == NOTHING
        assert offer(ledger, "A", after, 100, (span,)) == ROLLBACK
        assert ledger.last == before
    ledger = fresh(span - 40)
    assert offer(ledger, "A", 10, 100) == NOTHING
    assert offer(ledger, "A", 10, 100) == ROLLBACK, "nobody said that it begins again"


def test_the_slack_of_a_large_register():
    # an f32 in kWh: at 1,000,000 kWh it moves by 1/16 kWh at once
    ledger = fresh(1_000_000_000)
    assert offer(ledger, "A", 1_000_000_063, 20) == OK
    assert fresh(5000) and offer(fresh(5000), "A", 5063, 20) == NOTHING


def test_two_different_doubts_are_none():
    ledger = fresh(5000)
    for wh in (4000, 9000, 4000, 9000):
        assert offer(ledger, "A", wh, 100) == NOTHING
    ledger = fresh(5000)
    for wh in (4000, 3000, 2000):  # never the same twice: each is below the one before
        assert offer(ledger, "A", wh, 100) == NOTHING


def test_the_edge_of_what_is_possible():
    ledger = fresh(5000)
    assert offer(ledger, "A", 5100, 100) == OK
    assert offer(ledger, "A", 5201, 100) == NOTHING


def test_possible_is_rating_times_time_and_a_quarter():
    # 22,080 W for 1 h is 22,080 Wh; a quarter on top 27,600; two steps of a 10 Wh register
    got = metering.possible_wh(22080, 3600000)
    assert 27600 <= got <= 27600 + 20 + 22080 * 2 // 2880 + 1
    # a second at 7.4 kW is 2 Wh: a register that steps by 10 must not look like a jump
    assert metering.possible_wh(7360, 1000) >= 10
    # and one that steps by 1 kWh may do so within a second
    assert 1000 <= metering.possible_wh(7360, 1000, 1000) <= 1040


def test_epochs():
    ledger = fresh(5000)
    for what, serial, wh, epoch in (
        (ROLLBACK, "A", 10, 1),
        (SERIAL, "B", 700, 2),
        (JUMP, "B", 9000, 2),
        (GAP, "B", 9000, 2),
    ):
        record = metering.fact(ledger, 1, what, serial, wh)
        metering.evolve(ledger, record)
        assert (ledger.register, ledger.last, ledger.serial, ledger.epoch) == (
            wh,
            wh,
            serial,
            epoch,
        )


def test_what_only_tells_moves_nothing():
    for what in (LOST, BACK, FROZEN, GLITCH):
        ledger = fresh(5000)
        assert offer(ledger, "A", 5050, 100) == OK
        metering.evolve(ledger, metering.fact(ledger, 1, what, "B", ledger.register))
        assert (ledger.register, ledger.last, ledger.serial, ledger.epoch) == (5000, 5050, "A", 0)


def test_a_meter_without_a_serial_number_is_no_other_meter():
    ledger = fresh(5000, None)
    assert offer(ledger, None, 5001, 100) == OK
    assert offer(ledger, "A", 5002, 100) == OK
    ledger = fresh(5000, "A")
    assert offer(ledger, None, 5001, 100) == OK


def test_a_reset_forgets_what_was_not_durable():
    ledger = fresh(5000)
    assert offer(ledger, "A", 5050, 100) == OK
    ledger.forget()
    assert ledger.last == 5000 and ledger.gap and ledger.advance() == 0
