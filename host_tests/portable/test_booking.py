"""Booked slots: the rules of booking.py on plain lists, then on the agent in virtual time."""

from wattlock import booking, tokens

from portable.bench import ANNA, BERT, UNIX_MS, World

MIN = 60000
HOUR = 60 * MIN
CARLA = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04CCCC"}


def slot(id="B1", start=UNIX_MS + HOUR, minutes=60, token=ANNA, **more):
    made = {
        "booking_id": id,
        "start_ms": start,
        "end_ms": start + minutes * MIN,
        "guard_ms": 5 * MIN,
        "tokens": [dict(token)],
        "authorization_reference": "AUTH-" + id,
    }
    made.update(more)
    return made


def listed(*rows):
    slots = booking.Slots()
    records = booking.decide(slots, 1, {"base": 0, "version": 7, "put": list(rows)}, tokens.clean)
    for record in records:
        booking.evolve(slots, record)
    return slots


# -- the list


def test_versions_follow_each_other():
    slots = listed(slot())
    assert slots.version == 7 and list(slots.rows) == ["B1"]
    for base in (6, 8):
        assert booking.decide(slots, 1, {"base": base, "version": 9}, tokens.clean) is None
    records = booking.decide(
        slots,
        1,
        {"base": 7, "version": 8, "put": [slot("B2")], "drop": ["B1", "B9"]},
        tokens.clean,
    )
    assert list(slots.rows) == ["B1"], "deciding changes nothing"
    for record in records:
        booking.evolve(slots, record)
    assert slots.version == 8 and list(slots.rows) == ["B2"]


def test_base_zero_begins_anew():
    slots = listed(slot())
    for record in booking.decide(slots, 1, {"base": 0, "version": 3}, tokens.clean):
        booking.evolve(slots, record)
    assert slots.version == 3 and not slots.rows


def test_what_is_no_slot_is_refused():
    for change in (
        {"booking_id": ""},
        {"booking_id": 5},
        {"start_ms": "now"},
        {"end_ms": UNIX_MS},
        {"end_ms": UNIX_MS + HOUR},
        {"end_ms": "then"},
        {"end_ms": 1 << 53},
        {"booking_id": "B" * 37},
        {"guard_ms": -1},
        {"noshow_ms": True},
        {"tokens": []},
        {"tokens": [ANNA] * 4},
        {"tokens": [{"uid": "04"}]},
        {"tokens": ANNA},
    ):
        wrong = slot()
        wrong.update(change)
        data = {"base": 0, "version": 1, "put": [wrong]}
        assert booking.decide(booking.Slots(), 1, data, tokens.clean) is None, change
    for data in (
        {},
        {"base": 0},
        {"version": 1},
        {"base": False, "version": 1},
        {"base": 0, "version": 0},
        {"base": 0, "version": True},
        {"base": 0, "version": 1, "put": 5},
        {"base": 0, "version": 1, "put": [5]},
        {"base": 0, "version": 1, "drop": 5},
        {"base": 0, "version": 1, "drop": {"B1": 1}},
    ):
        assert booking.decide(booking.Slots(), 1, data, tokens.clean) is None, data
    widest = slot("B" * 36, tokens=[ANNA] * booking.TOKENS, end_ms=(1 << 53) - 1)
    data = {"base": 0, "version": 1, "put": [widest]}
    assert booking.decide(booking.Slots(), 1, data, tokens.clean) is not None


def test_the_list_has_an_end():
    rows = [slot("B%d" % i, UNIX_MS + i * 2 * HOUR) for i in range(booking.SLOTS)]
    slots = listed(*rows)
    data = {"base": 7, "version": 8, "put": [slot("MORE", UNIX_MS + 99 * HOUR)]}
    assert booking.decide(slots, 1, data, tokens.clean) is None
    data["drop"] = ["B0"]
    assert booking.decide(slots, 1, data, tokens.clean) is not None
    assert booking.decide(slots, 1, dict(data, put=[rows[3]], drop=[]), tokens.clean)
    anew = [slot("N%d" % i, UNIX_MS + i * 2 * HOUR) for i in range(booking.SLOTS)]
    assert booking.decide(slots, 1, {"base": 0, "version": 9, "put": anew}, tokens.clean)


def test_it_survives_dump_and_load():
    slots = listed(slot(), slot("B2", UNIX_MS + 5 * HOUR, remote=True))
    booking.evolve(slots, {"t": "start", "booking_id": "B1"})
    again = booking.Slots()
    again.load(slots.dump())
    assert (again.version, again.used, again.rows) == (slots.version, slots.used, slots.rows)


# -- when it locks; times as rules 2, 3 and 5 say


def test_a_slot_locks_from_its_guard_time_to_its_end():
    slots = listed(slot())
    start = UNIX_MS + HOUR
    for now, locks in (
        (start - 5 * MIN - 1, False),
        (start - 5 * MIN, True),
        (start, True),
        (start + HOUR - 1, True),
        (start + HOUR, False),
    ):
        assert (booking.running(slots, now, now) is not None) == locks, now - start


def test_no_clock_error_lets_anybody_in():
    slots = listed(slot())
    start, end = UNIX_MS + HOUR, UNIX_MS + 2 * HOUR
    assert booking.running(slots, start - 6 * MIN, start - 5 * MIN) is not None
    assert booking.running(slots, end - 1, end + 10 * MIN) is not None
    assert booking.running(slots, end, end + 10 * MIN) is None


def test_time_unknown_locks_for_whatever_is_not_surely_over():
    slots = listed(slot())
    end = UNIX_MS + 2 * HOUR
    assert booking.running(slots, None, None) is not None
    long_ago = UNIX_MS - 30 * 24 * HOUR
    assert booking.running(slots, long_ago, None) is not None, "it was off for long"
    assert booking.running(slots, end - 1, None) is not None
    assert booking.running(slots, end, None) is None, "it is surely over"
    assert booking.opened(slots, None, None, False, lambda known: True) is not None
    assert booking.until(slots, None, None) == UNIX_MS + 55 * MIN
    assert booking.overlaps(slots, None, UNIX_MS + HOUR)


def test_of_two_slots_that_lock_the_earlier_is_the_one_to_open():
    """In the guard time of the next, in whatever order they were sent."""
    first, second = slot(), slot("B2", UNIX_MS + 2 * HOUR, token=BERT, early_ms=5 * MIN)
    now = UNIX_MS + 2 * HOUR - MIN
    for rows in ((first, second), (second, first)):
        slots = listed(*rows)
        assert booking.running(slots, now, now)["booking_id"] == "B1"
        for token, opens in ((ANNA, True), (BERT, False)):
            found = booking.opened(slots, now, now, False, lambda t: tokens.same(t, token))  # noqa: B023
            assert (found is not None) == opens, token


def test_what_is_over_keeps_no_reservation_away():
    slots = listed(slot(), slot("B2", UNIX_MS + 5 * HOUR))
    end, guard = UNIX_MS + 2 * HOUR, UNIX_MS + 5 * HOUR - 5 * MIN
    assert booking.overlaps(slots, end - 1, end)
    assert not booking.overlaps(slots, end, guard)
    assert booking.overlaps(slots, end, guard + 1)


def test_a_booking_that_comes_again_after_its_session_locks_again():
    slots = listed(slot())
    booking.evolve(slots, {"t": "start", "booking_id": "B1"})
    assert booking.running(slots, UNIX_MS + HOUR, UNIX_MS + HOUR) is None, "it is in use"
    booking.evolve(slots, {"t": "stop"})
    assert not slots.rows
    booking.evolve(slots, {"t": "event", "what": "booked", "slot": slot()})
    assert booking.running(slots, UNIX_MS + HOUR, UNIX_MS + HOUR) is not None


def test_who_may_open_it_and_when():
    start = UNIX_MS + HOUR
    slots = listed(slot(early_ms=20 * MIN))

    def may(now, token, remote=False):
        found = booking.opened(slots, now, now, remote, lambda known: tokens.same(known, token))
        return found is not None

    assert not may(start - 20 * MIN - 1, ANNA) and may(start - 20 * MIN, ANNA)
    assert may(start + HOUR - 1, ANNA) and not may(start + HOUR, ANNA)
    assert not may(start, BERT)
    assert not may(start, ANNA, True), "over OCPI only where the terms say so"
    slots = listed(slot(remote=True))
    assert may(start, ANNA, True) and not may(start - 1, ANNA, True)


def test_an_early_start_does_not_reach_into_another_s_slot():
    first = UNIX_MS + HOUR
    second = first + HOUR + 5 * MIN
    slots = listed(slot(), slot("B2", second, token=BERT, early_ms=20 * MIN))

    def may(least, most):
        return booking.opened(slots, least, most, False, lambda known: tokens.same(known, BERT))

    assert may(second - 20 * MIN, second - 20 * MIN) is None, "it is Anna's until its end"
    assert may(first + HOUR - 1, first + HOUR) is None, "it may be hers still"
    assert may(first + HOUR, first + HOUR)[0]["booking_id"] == "B2"
    assert may(first, None) is not None, "with the time unknown both may be running"
    booking.evolve(slots, booking.unbooked(1, "B1", booking.NO_SHOW))
    assert may(second - 20 * MIN, second - 20 * MIN) is not None


def test_how_long_a_session_may_last():
    first, second = UNIX_MS + HOUR, UNIX_MS + 3 * HOUR
    slots = listed(slot(late_ms=30 * MIN), slot("B2", second))
    assert booking.until(slots, None, UNIX_MS) == first - 5 * MIN
    assert booking.until(slots, "B1", UNIX_MS) == first + HOUR + 30 * MIN
    assert booking.until(slots, "B2", first) == first - 5 * MIN
    assert booking.until(slots, None, first + HOUR) == second - 5 * MIN
    assert booking.until(slots, None, second + HOUR) is None
    near = listed(slot(late_ms=90 * MIN), slot("B2", first + 90 * MIN))
    assert booking.until(near, "B1", UNIX_MS) == first + 85 * MIN, "the next one's guard"


def test_nobody_came():
    start = UNIX_MS + HOUR
    slots = listed(slot(noshow_ms=25 * MIN), slot("B2", start + 2 * HOUR))
    assert booking.lapsed(slots, None) is None
    assert booking.lapsed(slots, start + 25 * MIN - 1) is None
    assert booking.lapsed(slots, start + 25 * MIN) == ("B1", booking.NO_SHOW)
    booking.evolve(slots, booking.unbooked(1, "B1", booking.NO_SHOW))
    slots2 = listed(slot())
    assert booking.lapsed(slots2, start + HOUR - 1) is None
    assert booking.lapsed(slots2, start + HOUR) == ("B1", booking.OVER)
    assert list(slots.rows) == ["B2"]


# -- the agent


def world(*rows, **fields):
    w = World(**fields)
    w.config["bookings"] = True
    w.boot()
    w.run(3000)
    if rows:
        for version in range(len(rows)):
            data = {"evse": 1, "base": version, "version": version + 1, "put": [rows[version]]}
            id = w.ask("SET_BOOKINGS", data)
            w.run(2000)
            assert w.result_of(id) == ["ACCEPTED"], w.records("result")
    return w


def show(w, token):
    w.app.card(token["uid"])
    w.run(1000)


def plug(w):
    w.pins[1].car = "C"


def test_without_bookings_in_the_config_they_are_not_supported():
    w = World()
    w.boot()
    w.run(3000)
    id = w.ask("SET_BOOKINGS", {"evse": 1, "base": 0, "version": 1, "put": [slot()]})
    w.run(2000)
    assert w.result_of(id) == ["NOT_SUPPORTED"]


def test_a_wrong_version_is_rejected_and_changes_nothing():
    w = world(slot())
    id = w.ask("SET_BOOKINGS", {"evse": 1, "base": 9, "version": 10, "put": []})
    w.run(2000)
    assert w.result_of(id) == ["REJECTED"]
    assert list(w.evse().slots.rows) == ["B1"]


def test_the_driver_comes_with_the_card_and_the_gateway_is_away():
    w = world(slot(start=UNIX_MS + 20 * MIN))
    w.online = False
    w.run(16 * MIN, 1000)
    assert w.post().status() == "RESERVED"
    show(w, BERT)
    assert w.evse().session is None
    w.run(4 * MIN, 1000)
    plug(w)
    show(w, ANNA)
    w.run(10000)
    assert w.evse().session is not None and w.post().status() == "CHARGING"
    w.online = True
    w.run(30000)
    start = w.records("start")[0]
    assert start["booking_id"] == "B1" and start["authorization_reference"] == "AUTH-B1"
    assert start["source"] == "card" and start["until_ms"] == UNIX_MS + 80 * MIN
    refused = [r["why"] for r in w.records("refused")]
    assert refused == ["booked"], refused


def test_the_gateway_is_away_for_days():
    """Four slots in five days, by a crystal that is 40 ppm fast: each opens for its driver and for
    nobody else, ends with its time or goes when nobody comes; in the end the gateway knows."""
    rows = [
        slot(f"B{day}", UNIX_MS + day * 24 * HOUR, 30, token, noshow_ms=10 * MIN)
        for day, token in ((1, ANNA), (2, CARLA), (4, BERT), (5, CARLA))
    ]
    w = world(*rows)
    w.ppm = 40
    w.online = False
    for row in rows:
        w.run(row["start_ms"] - MIN - w.unix_ms(), 20000)
        assert w.post().status() == "RESERVED", row
        plug(w)
        show(w, ANNA)
        show(w, BERT)
        assert w.evse().session is None, "not yet"
        w.run(2 * MIN, 1000)
        for token in (ANNA, BERT):
            show(w, token)
            w.run(10000)
            opened = w.evse().session is not None
            assert opened == (token["uid"] == row["tokens"][0]["uid"]), (row, token)
            if opened:
                break
        w.run(row["end_ms"] + 2 * MIN - w.unix_ms(), 1000)
        assert w.evse().session is None and not w.pins[1].is_closed()
        w.pins[1].car = "A"
        w.run(2000)
        assert w.post().status() == "AVAILABLE"
    w.online = True
    w.run(3 * MIN, 1000)
    assert [r["booking_id"] for r in w.records("start")] == ["B1", "B4"]
    assert [r["cause"] for r in w.records("stop")] == ["booking_ended"] * 2
    gone = [(r["booking_id"], r["cause"]) for r in w.records("event") if r["what"] == "unbooked"]
    assert gone == [("B2", "no_show"), ("B5", "no_show")]


def test_where_nothing_is_booked_an_evse_works_as_any_other():
    w = world()
    plug(w)
    w.app.card(BERT["uid"])
    assert w.app.waits(1), "the gateway is asked about a card that nobody knows"
    w.app.asking = None
    id = w.ask("START_SESSION", {"evse": 1, "token": BERT})
    w.run(10000)
    assert w.result_of(id) == ["ACCEPTED"] and "until_ms" not in w.records("start")[0]
    w.run(5 * MIN, 1000)
    assert w.pins[1].is_closed() and not w.troubles


def test_in_the_guard_time_nobody_starts():
    w = world(slot(start=UNIX_MS + 10 * MIN))
    w.run(6 * MIN, 1000)
    plug(w)
    show(w, BERT)
    id = w.ask("START_SESSION", {"evse": 1, "token": BERT})
    w.run(3000)
    assert w.result_of(id) == ["EVSE_OCCUPIED"]
    show(w, ANNA)
    w.run(10000)
    assert w.evse().session is None, "nor does the booking's own before its time"


def test_early_start():
    w = world(slot(start=UNIX_MS + 30 * MIN, early_ms=20 * MIN))
    w.run(11 * MIN, 1000)
    plug(w)
    show(w, ANNA)
    w.run(10000)
    assert w.records("start")[0]["booking_id"] == "B1"


def test_a_walk_in_is_told_its_end_and_has_to_be_away():
    w = world(slot(start=UNIX_MS + 20 * MIN))
    plug(w)
    id = w.ask("START_SESSION", {"evse": 1, "token": BERT})
    w.run(10000)
    assert w.result_of(id) == ["ACCEPTED"]
    end = UNIX_MS + 15 * MIN
    start = w.records("start")[0]
    assert start["until_ms"] == end and "booking_id" not in start
    w.app.uplink.hurry = True
    w.run(1000)
    assert w.gateway.headers[-1]["live"]["1"]["until_ms"] == end
    w.run(14 * MIN, 1000)
    assert w.evse().session is not None
    w.run(70000, 1000)
    stop = w.records("stop")[0]
    assert stop["cause"] == "booking_ended"
    assert not w.pins[1].is_closed()
    assert w.post().status() == "RESERVED"


def test_a_walk_in_has_to_be_away_also_where_nothing_can_be_written_down():
    w = world(slot(start=UNIX_MS + 30 * MIN))
    plug(w)
    w.ask("START_SESSION", {"evse": 1, "token": BERT})
    w.run(10 * MIN, 1000)
    assert w.pins[1].is_closed()
    w.store.dead = True  # over a quarter of the hour, whose period cannot be cut
    w.run(UNIX_MS + 25 * MIN - w.unix_ms() - 1000, 1000)
    assert w.pins[1].is_closed()
    w.run(3000)
    assert not w.pins[1].is_closed()


def test_overstaying_can_be_charged_instead():
    w = world(slot(start=UNIX_MS + 20 * MIN), overstay="charge")
    plug(w)
    w.ask("START_SESSION", {"evse": 1, "token": BERT})
    w.run(10000)
    w.run(30 * MIN, 1000)
    assert w.evse().session is not None and w.pins[1].is_closed()


def test_a_booking_ends_and_late_stop_where_allowed():
    for late, minutes in ((0, 40), (10 * MIN, 50)):
        w = world(slot(start=UNIX_MS + 10 * MIN, minutes=30, late_ms=late))
        w.run(10 * MIN, 1000)
        plug(w)
        show(w, ANNA)
        w.run(10000)
        assert w.evse().session is not None
        w.run((minutes - 11) * MIN, 1000)
        assert w.evse().session is not None
        w.run(2 * MIN, 1000)
        assert w.evse().session is None
        assert w.records("stop")[0]["cause"] == "booking_ended"
        assert not w.evse().slots.rows


def test_no_show_lets_go_and_tells():
    w = world(slot(start=UNIX_MS + 10 * MIN, noshow_ms=15 * MIN))
    w.run(24 * MIN, 1000)
    assert w.post().status() == "RESERVED"
    w.run(2 * MIN, 1000)
    assert w.post().status() == "AVAILABLE"
    told = [r for r in w.records("event") if r["what"] == "unbooked"]
    assert [(r["booking_id"], r["cause"]) for r in told] == [("B1", "no_show")]


def shown_in_the_last_second():
    """A card a second before its slot is given up, with a meter that says nothing."""
    w = world(slot(start=UNIX_MS + 10 * MIN, noshow_ms=5 * MIN))
    w.run(UNIX_MS + 15 * MIN - 1500 - w.unix_ms(), 100)
    plug(w)
    w.run(500)
    w.real[1].dead = True
    w.app.card(ANNA["uid"])
    return w


def test_who_came_in_time_is_no_no_show():
    """The card is shown in the last seconds; the meter's reading comes after them."""
    w = shown_in_the_last_second()
    w.run(3000)
    assert not w.records("start") and "B1" in w.evse().slots.rows
    w.real[1].dead = False
    w.run(5000)
    assert w.records("start")[0]["booking_id"] == "B1"
    w = shown_in_the_last_second()
    w.run(8000)
    gone = [r["cause"] for r in w.records("event") if r["what"] == "unbooked"]
    assert gone == ["no_show"], "it came to nothing"


def test_after_the_drivers_stop_the_place_is_free():
    w = world(slot(start=UNIX_MS + 10 * MIN))
    w.run(10 * MIN, 1000)
    plug(w)
    show(w, ANNA)
    w.run(10000)
    show(w, ANNA)
    w.run(10000)
    w.pins[1].car = "A"
    w.run(2000)
    assert w.records("stop")[0]["cause"] == "local"
    assert w.post().status() == "AVAILABLE" and not w.evse().slots.rows


def test_slots_survive_power_cuts_and_checkpoints():
    w = world(slot(start=UNIX_MS + 30 * MIN), slot("B2", UNIX_MS + 5 * HOUR, remote=True))
    kept = dict(w.evse().slots.rows)
    w.cut(1000)
    w.run(3000)
    assert w.evse().slots.rows == kept and w.evse().slots.version == 2
    for _ in range(60):  # enough records for a new segment, whose checkpoint has the slots
        w.ask("SET_AVAILABILITY", {"evse": 1, "operative": True})
        w.run(400)
    w.cut(1000)
    assert w.evse().slots.rows == kept


def test_a_session_under_a_booking_goes_on_after_a_cut_and_ends_with_it():
    w = world(slot(start=UNIX_MS + 10 * MIN, minutes=30))
    w.run(10 * MIN, 1000)
    plug(w)
    show(w, ANNA)
    w.run(60000)
    session_id = w.evse().session.id
    w.cut(10000)
    w.run(30000)
    assert w.evse().session.id == session_id and w.evse().slots.used == "B1"
    w.run(35 * MIN, 1000)
    assert w.records("stop")[0]["cause"] == "booking_ended"


def test_time_unknown_hold_and_release():
    for policy, status in (("hold", "RESERVED"), ("release", "AVAILABLE")):
        w = world(slot(start=UNIX_MS + 2 * HOUR), clock_lost=policy)
        w.online = False
        w.cut(60000)
        w.run(5000)
        assert w.app.now() is None
        assert w.post().status() == status
        assert w.post().time_unknown() == (policy == "hold")
        assert list(w.evse().slots.rows) == ["B1"], "the booking itself stays"
        plug(w)
        show(w, ANNA)
        w.run(10000)
        assert w.evse().session is not None, "its own driver comes in either way"
        w.online = True
        w.run(90000)
        assert w.app.now() is not None


def test_a_reservation_does_not_reach_into_a_slot():
    w = world(slot(start=UNIX_MS + HOUR))
    data = {"evse": 1, "reservation_id": "R1", "token": BERT}
    late = w.ask("RESERVE_NOW", dict(data, expiry_ms=UNIX_MS + 56 * MIN))
    w.run(2000)
    good = w.ask("RESERVE_NOW", dict(data, expiry_ms=UNIX_MS + 55 * MIN))
    w.run(2000)
    assert w.result_of(late) == ["EVSE_OCCUPIED"] and w.result_of(good) == ["ACCEPTED"]


def test_a_group_card_is_asked_about_and_opens_the_slot():
    grouped = dict(ANNA, group_id="FLEET")
    w = world(slot(start=UNIX_MS + 10 * MIN, token=grouped))
    w.run(11 * MIN, 1000)
    plug(w)
    show(w, CARLA)
    assert w.evse().session is None
    w.ask(
        "AUTHORIZE",
        {
            "evse": 1,
            "uid": CARLA["uid"],
            "allowed": "ALLOWED",
            "token": dict(CARLA, group_id="FLEET"),
        },
    )
    w.run(10000)
    assert w.records("start")[0]["booking_id"] == "B1"
