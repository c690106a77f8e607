"""Contactor and lock: every row of the table, at its edges."""

from wattlock.lock import FOLLOW_MS, STUCK, WAIT, WELL, Drive, decide


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
