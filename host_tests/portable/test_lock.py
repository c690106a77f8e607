"""Contactor and lock: every row of the table, at its edges."""

from wattlock.lock import FOLLOW_MS, STUCK, TRIES, WAIT, WELL, Drive, again, decide


def test_want_drives_on_change_only():
    drive = Drive()
    assert drive.wanted is None
    assert drive.want(False, 5)  # nobody knows the pin yet: the first wish is driven
    assert not drive.want(False, 9) and drive.since == 5
    drive.tries = 2
    assert drive.want(True, 12) and drive.since == 12 and drive.tries == 0


def test_every_row():
    for wanted in (False, True):
        drive = Drive()
        drive.want(wanted, 0)
        for elapsed_ms in (0, 1, FOLLOW_MS - 1, FOLLOW_MS, 10 * FOLLOW_MS):
            assert decide(drive, None, elapsed_ms) == WELL  # without feedback it is believed
            assert decide(drive, wanted, elapsed_ms) == WELL
            want = WAIT if elapsed_ms < FOLLOW_MS else STUCK
            assert decide(drive, not wanted, elapsed_ms) == want


def test_a_stuck_lock_is_driven_the_other_way_and_back_three_times():
    for wanted in (False, True):
        drive = Drive()
        drive.want(wanted, 0)
        driven = []
        for second in range(1, 20):
            if again(drive, STUCK, True, second * 1000):
                driven.append(wanted == (not drive.tries & 1))
                assert drive.since == second * 1000
        assert driven == [not wanted, wanted] * TRIES == [not wanted, wanted] * 3


def test_a_lock_is_left_alone_while_it_is_well_or_the_outlet_lives():
    for state in (WELL, WAIT, STUCK):
        for dead in (False, True):
            drive = Drive()
            drive.want(False, 0)
            assert again(drive, state, dead, 5) is (state == STUCK and dead), (state, dead)
    drive = Drive()
    drive.want(False, 0)
    assert again(drive, STUCK, True, 1)
    assert again(drive, WELL, False, 2)  # what was driven the other way comes back
    assert not again(drive, WELL, False, 3)
