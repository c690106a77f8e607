"""A turn writes to the flash once: what several EVSEs, the gateway and a card bring at the same
moment is on record within some turns, and nothing that stops or opens waits for it."""

from wattlock import session

from portable.bench import ANNA, BERT, UNIX_MS, World

QUARTER = 900000
EVSES = 4
PARTS = EVSES + 3  # and cards, link, chores
FOUR = [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 3, 4], [0, 2, 3, 4]


def world(**fields):
    w = World(EVSES, **fields)
    w.boot()
    assert w.until(
        lambda: w.app.now() is not None
        and all(w.evse(n).ledger.register is not None for n in w.pins)
    )
    w.run(2000)
    watched(w)
    return w


def watched(w):
    """`w.written`: the records of each turn from now on; no turn writes twice."""
    w.written = []
    evolve = w.app.station.evolve
    turn = w.app.turn

    def seen(record):
        w.written[-1].append(record)
        evolve(record)

    def one():
        w.written.append([])
        before = w.store.writes
        turn()
        assert w.store.writes - before <= 1
        assert w.store.writes > before or not w.written[-1]

    w.app.station.evolve = seen
    w.app.turn = one


def plug(w, car):
    for n in w.pins:
        w.pins[n].car = car


def charging(w):
    plug(w, "C")
    assert w.until(
        lambda: all(
            w.evse(n).session and w.evse(n).session.phase == session.ENERGISED for n in w.pins
        )
    )
    w.run(2000)


def turns_of(w, t):
    """In which turns records of one type were written, from the first of them. Once in a while
    a turn has to begin another segment."""
    at = [i for i, records in enumerate(w.written) for r in records if r["t"] == t]
    return [i - at[0] for i in at]


def test_four_that_start_at_once_start_within_four_turns():
    w = world(free_vend=True)
    plug(w, "C")
    w.run(3000)
    assert turns_of(w, "start") in FOUR
    assert all(w.pins[n].is_closed() for n in w.pins)


def test_four_periods_are_cut_within_four_turns_of_the_quarter():
    w = world(free_vend=True)
    charging(w)
    w.run(QUARTER - w.unix_ms() % QUARTER + 5000)
    assert turns_of(w, "period") in FOUR
    late = [r for records in w.written for r in records if r["t"] == "period"]
    for record in late:
        assert 0 <= (UNIX_MS + record["to"][1]) % QUARTER < 2000


def test_all_open_at_once_whatever_is_written():
    for cause in ("estop", "unplugged", "fault"):
        w = world(free_vend=True)
        charging(w)
        if cause == "estop":
            w.estop = True
        elif cause == "unplugged":
            plug(w, "A")
        else:
            for n in w.pins:
                w.pins[n].fail = True
        w.run(100)
        assert not any(w.pins[n].is_closed() for n in w.pins), cause
        w.run(10000)
        assert len(turns_of(w, "stop")) == 4 and turns_of(w, "stop")[3] <= PARTS
        said = [r["evse"] for records in w.written for r in records if r.get("what") == "stopping"]
        assert sorted(said) == [1, 2, 3, 4]
        assert all(w.evse(n).session is None for n in w.pins)


class Busy:
    """Has something to write in every turn."""

    open = True

    def __init__(self, app, n):
        self.app = app
        self.n = n

    def turn(self):
        self.app.commit(({"t": "event", "what": "busy", "evse": self.n},))

    def owes(self):
        return False


def test_nobody_is_kept_waiting_by_those_who_always_write():
    w = world(free_vend=True)
    for n in (1, 2, 3):
        w.app.posts[n].seal = Busy(w.app, n)
    w.pins[4].car = "C"
    w.run(3000)  # a reading comes each second
    assert w.evse(4).session is not None
    id = w.ask("STOP_SESSION", {"session_id": w.evse(4).session.id})
    w.run(2 * PARTS * 100)
    assert w.result_of(id) == ["ACCEPTED"] and not w.pins[4].is_closed()
    busy = [r["evse"] for records in w.written for r in records if r.get("what") == "busy"]
    counts = [busy.count(n) for n in (1, 2, 3)]
    assert max(counts) - min(counts) <= 2, counts


def reserve(w, n, token, ms):
    data = {"evse": n, "reservation_id": f"R{n}", "token": token}
    w.ask("RESERVE_NOW", dict(data, expiry_ms=w.unix_ms() + ms))
    w.run(600)


class Reader:
    ok = True
    uid = None

    def turn(self, now):
        pass

    def read(self):
        uid, self.uid = self.uid, None
        return uid


def test_a_card_is_not_refused_for_what_is_over_and_not_yet_let_go_of():
    """All are reserved until the same moment; the card comes in the turn in which it is there."""
    w = World(EVSES)
    w.rfid = Reader()
    w.boot()
    assert w.until(lambda: w.app.now() is not None and w.evse().ledger.register is not None)
    w.run(2000)
    watched(w)
    until = w.unix_ms() + 60000
    for n in w.pins:
        reserve(w, n, ANNA, until - w.unix_ms())
    assert all(w.evse(n).reservation is not None for n in w.pins)
    w.run(until - w.unix_ms())
    assert w.until(lambda: w.app.least() >= until - 100, 10000)
    w.rfid.uid = BERT["uid"]
    assert w.until(lambda: w.evse(1).reservation is None, 2000)
    w.run(600)
    assert all(w.evse(n).reservation is None for n in w.pins)
    assert w.app.asking is not None and not w.records("refused")


def test_commands_find_gone_what_is_over():
    """RESERVE_NOW for all, in one message that is read when the old reservations end."""
    w = world()
    until = w.unix_ms() + 60000
    for n in w.pins:
        reserve(w, n, ANNA, until - w.unix_ms())
    w.run(until - w.unix_ms())
    assert w.until(lambda: w.app.least() >= until - 100, 10000)
    ids = []
    for n in w.pins:
        data = {"evse": n, "reservation_id": f"N{n}", "token": BERT}
        ids.append(w.ask("RESERVE_NOW", dict(data, expiry_ms=w.unix_ms() + 60000)))
    w.run(3000)
    assert [w.result_of(id) for id in ids] == [["ACCEPTED"]] * 4
    assert [w.evse(n).reservation.token["uid"] for n in w.pins] == [BERT["uid"]] * 4
