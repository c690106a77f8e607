"""The agent on the bench: messages that must do nothing are counted, commands are obeyed once."""

import wattlock
from wattlock import commands, mac

from portable.bench import ANNA, BERT, KEY, STATION, World

T = 1790000000000
HOUR = 3600000


def nest(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


RESERVE = {
    "evse": 1,
    "reservation_id": "R1",
    "token": {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04A1"},
}


def world():
    w = World()
    w.boot()
    w.run(3000)
    return w


def order(w, **changes):
    data = dict(RESERVE, expiry_ms=w.unix_ms() + 900000)
    out = {"id": "a" * 32, "type": "RESERVE_NOW", "exp": w.unix_ms() + 30000, "data": data}
    out.update(changes)
    return out


def header(w, rows, **changes):
    g = w.gateway
    out = g.header(g.headers[-1], rows)
    out.update(changes)
    return out


def counted(w, why, what="message"):
    w.run(1000)
    assert w.evse().reservation is None and not w.records("reserve")
    found = [r for r in w.records("refused") if (r["what"], r["why"]) == (what, why)]
    assert len(found) == 1 and found[0]["count"] == 1, w.records("refused")
    assert not w.troubles


def test_agent_counts_what_it_refuses():
    g = mac.purpose(KEY, "up", STATION)
    for change, why, key, retained in (
        ({}, commands.RETAINED, None, True),
        ({}, commands.FORGED, g, False),
        ({"sid": "0" * 32}, commands.OTHER_BOOT, None, False),
        ({"n": 1}, commands.REPEATED, None, False),
        ({"kid": 2}, commands.MALFORMED, None, False),
    ):
        w = world()
        message = w.gateway.seal(header(w, [order(w)], **change), key)
        w.board.link.down.append((message, retained))
        counted(w, why)
    for changes, why in (
        ({"exp": T - 1000}, commands.EXPIRED),
        ({"exp": T + 2 * HOUR}, commands.NOT_FRESH),
        ({"id": 7}, commands.MALFORMED),
        ({"data": [1]}, commands.MALFORMED),
        ({"data": dict(RESERVE, x=nest(100))}, commands.MALFORMED),
    ):
        w = world()
        w.gateway.send(header(w, [order(w, **changes)], re=None))
        counted(w, why, "command")


def test_agent_with_no_time_takes_commands_in_answers_only():
    w = World()
    w.gateway.deaf = True
    w.boot()
    w.run(3000)
    row = order(w)
    w.gateway.send(header(w, [row], re=None))
    w.run(100)
    assert w.evse().reservation is None and w.app.now() is None
    assert ("command", commands.NOT_FRESH, None) in w.app.refusals
    for _ in range(2):  # the turn that writes down the time asks for the command again
        w.gateway.send(header(w, [row], re=w.app.uplink.sent_up))
        w.run(200)
    assert w.evse().reservation.id == "R1"


def test_agent_obeys_once():
    w = world()
    row = order(w)
    for _ in range(3):  # a gateway repeats with a new n until it has the result
        w.gateway.commands = [dict(row)]
        w.app.uplink.hurry = True
        w.run(1000)
    assert len(w.records("reserve")) == 1 and w.result_of(row["id"]) == ["ACCEPTED"]
    other = dict(row, data=dict(row["data"], reservation_id="R2"))
    w.gateway.commands = [other]
    w.app.uplink.hurry = True
    w.run(1000)
    assert w.evse().reservation.id == "R1" and len(w.records("reserve")) == 1
    assert w.result_of(row["id"]) == ["ACCEPTED", "REJECTED"]
    w.cut(1000)
    w.run(3000)
    w.gateway.commands = [dict(row, exp=w.unix_ms() + 30000)]
    w.app.uplink.hurry = True
    w.run(1000)
    assert len(w.records("reserve")) == 1  # once means over resets too


def test_an_order_whose_code_cannot_be_loaded_is_obeyed_once_it_can():
    """Where the flash cannot be read, what stops works all the same, and the order has no result,
    so the gateway repeats it."""
    w = world()
    w.pins[1].car = "C"
    start = order(w, type="START_SESSION", data={"evse": 1, "token": RESERVE["token"]})
    w.gateway.commands = [start]
    w.app.uplink.hurry = True
    assert w.until(w.pins[1].is_closed)
    path = wattlock.__path__
    wattlock.__path__ = type(path)()
    try:
        row = order(w, id="b" * 32)
        session_id = w.evse().session.id
        stop = order(w, type="STOP_SESSION", id="c" * 32, data={"session_id": session_id})
        w.gateway.commands = [dict(row), stop]
        w.app.uplink.hurry = True
        w.run(1000)
        assert not w.pins[1].is_closed() and w.result_of(stop["id"]) == ["ACCEPTED"]
        assert w.result_of(row["id"]) == [] and not w.troubles
        w.pins[1].car = "A"
        w.run(10000)
    finally:
        wattlock.__path__ = path
    found = [r["task"] for r in w.records("event") if r["what"] == "supervisor"]
    assert found == ["orders"]
    w.app.uplink.hurry = True
    w.run(1000)
    assert w.result_of(row["id"]) == ["ACCEPTED"] and w.evse().reservation.id == "R1"


def test_agent_waits_with_a_repeated_command_that_is_pending():
    w = world()
    w.pins[1].car = "C"
    w.real[1].dead = True  # the start waits for a fresh reading
    token = RESERVE["token"]
    row = order(w, type="START_SESSION", data={"evse": 1, "token": token})
    for _ in range(3):
        w.gateway.commands = [dict(row)]
        w.app.uplink.hurry = True
        w.run(1000)
    assert w.result_of(row["id"]) == []
    w.real[1].dead = False
    w.run(3000)
    assert w.result_of(row["id"]) == ["ACCEPTED"] and len(w.records("start")) == 1


def test_unknown_commands_and_evses_are_answered():
    w = world()
    for kind, data, want in (
        ("MAKE_COFFEE", {}, "NOT_SUPPORTED"),
        ("SET_CONFIG", {}, "REJECTED"),
        ("SET_CONFIG", {"config": {"station_id": "DEMO-2"}}, "REJECTED"),
        ("SET_CONFIG", {"config": [1]}, "REJECTED"),
        ("SET_CONFIG", {"secrets": {"key": {}}}, "REJECTED"),
        ("SET_CONFIG", {"secrets": {"kid": {}, "wifi": {"ssid": "x"}}}, "REJECTED"),
        ("SET_CONFIG", {"secrets": {"wifi": "x"}}, "REJECTED"),
        ("SET_CONFIG", {"secrets": {"tls": {"key": "PEM"}}}, "REJECTED"),
        ("ROTATE_KEY", {}, "REJECTED"),
        ("ROTATE_KEY", {"kid": 1, "nonce": "00" * 32}, "REJECTED"),
        ("ROTATE_KEY", {"kid": 3, "nonce": "00" * 32}, "REJECTED"),
        ("ROTATE_KEY", {"kid": 2, "nonce": "00" * 31}, "REJECTED"),
        ("ROTATE_KEY", {"kid": 2, "nonce": "zz" * 32}, "REJECTED"),
        ("ROTATE_KEY", {"kid": 2, "nonce": 7}, "REJECTED"),
        ("RESERVE_NOW", dict(RESERVE, evse=9), "REJECTED"),
        ("RESERVE_NOW", dict(RESERVE, evse=[1]), "REJECTED"),
        ("RESERVE_NOW", {}, "REJECTED"),
        ("RESERVE_NOW", RESERVE, "REJECTED"),  # without expiry
        ("RESERVE_NOW", dict(RESERVE, expiry_ms="soon"), "REJECTED"),
        ("RESERVE_NOW", dict(RESERVE, expiry_ms=T - 1), "REJECTED"),
        ("RESERVE_NOW", dict(RESERVE, expiry_ms=T + HOUR, token={"uid": "x"}), "REJECTED"),
        ("RESERVE_NOW", {"evse": 1, "token": ANNA, "expiry_ms": T + HOUR}, "REJECTED"),
        ("CANCEL_RESERVATION", {"reservation_id": "R9"}, "UNKNOWN_RESERVATION"),
        ("CANCEL_RESERVATION", {}, "UNKNOWN_RESERVATION"),
        ("START_SESSION", {"evse": 1}, "REJECTED"),
        ("STOP_SESSION", {"session_id": "S9"}, "REJECTED"),
        ("STOP_SESSION", {}, "REJECTED"),
        ("UNLOCK_CONNECTOR", {}, "REJECTED"),
        ("SET_AVAILABILITY", {"evse": 1, "operative": "no"}, "REJECTED"),
    ):
        id = w.ask(kind, data)
        w.run(500)
        assert w.result_of(id) == [want], (kind, data, w.result_of(id))
    assert not w.troubles and not w.records("reserve") and not w.records("start")


def test_one_turn_writes_for_one_command():
    """Four commands in one message, and its time: a group each, and no two in one turn."""
    w = world()
    rows = [order(w, id=c * 32, type="SET_AVAILABILITY", data={"evse": 1, "operative": c != "b"})
            for c in "abcd"]  # fmt: skip
    written = []
    inner = w.app.journal.append

    def append(*args):
        written.append(w.app.ticks)
        return inner(*args)

    w.app.journal.append = append
    w.gateway.commands = rows
    w.app.uplink.hurry = True
    w.run(2000)
    assert [w.result_of(row["id"]) for row in rows] == [["ACCEPTED"]] * 4
    assert len(written) >= 4 and len(written) == len(set(written)), written


def reserve(w, reservation_id="R1", token=ANNA, **more):
    """The words of a RESERVE_NOW, for an hour unless `expiry_ms` is given."""
    data = {"evse": 1, "reservation_id": reservation_id, "token": token}
    data["expiry_ms"] = w.unix_ms() + HOUR
    data.update(more)
    id = w.ask("RESERVE_NOW", data)
    w.run(3000)
    return w.result_of(id)


def test_a_place_that_is_taken_is_not_reserved():
    """By a cable, by a right that waits for one, by another reservation; who reserved it may
    replace it, also with his cable in."""
    w = world()
    w.pins[1].car = "B"
    w.run(500)
    assert reserve(w) == ["EVSE_OCCUPIED"]
    w.pins[1].car = "A"
    start = w.ask("START_SESSION", {"evse": 1, "token": ANNA})
    w.run(3000)
    assert w.result_of(start) == ["ACCEPTED"] and reserve(w) == ["EVSE_OCCUPIED"]
    w.run(180000, 1000)
    assert reserve(w) == ["ACCEPTED"] and reserve(w, "R2") == ["EVSE_OCCUPIED"]
    w.pins[1].car = "B"
    w.run(500)
    session_id = w.evse().reservation.session_id
    assert reserve(w, "R2") == ["EVSE_OCCUPIED"]
    assert reserve(w, "r1") == ["ACCEPTED"]
    assert w.evse().reservation.session_id == session_id


def test_a_start_that_waited_for_its_plug_has_one_result():
    w = world()
    start = w.ask("START_SESSION", {"evse": 1, "token": ANNA})
    w.run(3000)
    w.pins[1].car = "C"
    w.run(10000)
    assert w.evse().session is not None and w.result_of(start) == ["ACCEPTED"]


def test_who_comes_between_the_expiry_and_the_next_look_at_it_is_not_refused():
    """A board looks once a second whether a reservation is over; no command waits for that."""
    w = world()
    assert w.until(lambda: w.post().checked == w.app.ticks)
    expiry = w.unix_ms() + 20300
    assert reserve(w, expiry_ms=expiry) == ["ACCEPTED"]
    w.run(expiry - w.unix_ms() + 300)
    assert w.evse().reservation.id == "R1" and w.app.least() >= expiry
    w.post().checked = w.app.ticks  # a look is not due
    assert reserve(w, "R2", BERT) == ["ACCEPTED"]
    assert [r["cause"] for r in w.records("release")] == ["expired"]
