"""The indicator: the table of the docstring is what is shown, and what is shown when."""

from wattlock import lights

from portable.bench import ANNA, BERT, World

MINUTE = 60000
COLOURS = {"red": 4, "green": 2, "blue": 1, "white": 7, "yellow": 6, "magenta": 5}
ROWS = {  # as documented: colour, on ms, off ms
    "WRONG_CARD": ("red", 125, 375),
    "WAITING": ("white", 50, 200),
    "FAULT": ("red", 125, 125),
    "OUT": ("red", 25, 6000),
    "CHARGING": ("blue", 1000, 0),
    "RESERVED": ("yellow", 500, 500),
    "OFFLINE": ("magenta", 50, 1450),
    "AVAILABLE": ("green", 50, 3950),
}


def test_each_row_is_shown_as_it_is_documented():
    for name in ROWS:
        colour, on, off = ROWS[name]
        row = getattr(lights, name)
        for ticks in range(0, 3 * (on + off), 5):
            shown = COLOURS[colour] if ticks % (on + off) < on else 0
            assert lights.colour(row, ticks) == shown, (name, ticks)


def test_no_two_rows_look_alike_without_colours():
    rhythms = {ROWS[name][1:] for name in ROWS}
    assert len(rhythms) == len(ROWS)


def world(**fields):
    w = World(**fields)
    w.boot()
    assert w.until(lambda: w.app.now() is not None and w.evse().ledger.register is not None)
    w.run(3000)
    return w


def shown(w, ms=2000):
    """The row that the lamp shows for some time: every turn must agree."""
    found = set(ROWS)
    for _ in range(ms // 25):
        w.run(25, 25)
        for name in list(found):
            if w.pins[1].lamp != lights.colour(getattr(lights, name), w.app.ticks):
                found.remove(name)
    return sorted(found)


def test_what_a_driver_sees():
    w = world()
    assert shown(w, 5000) == ["AVAILABLE"]
    w.ask("RESERVE_NOW", {"evse": 1, "reservation_id": "R1", "token": ANNA,
                          "expiry_ms": w.unix_ms() + 5 * MINUTE})  # fmt: skip
    w.run(1000)
    assert shown(w) == ["RESERVED"]
    w.app.card(BERT["uid"])
    w.run(25, 25)
    assert shown(w, 1900) == ["WRONG_CARD"]
    w.run(500)
    assert shown(w) == ["RESERVED"]
    w.app.card(ANNA["uid"])  # and the plug is still to come
    w.run(25, 25)
    assert shown(w) == ["WAITING"]
    w.pins[1].car = "C"
    assert w.until(lambda: w.pins[1].is_closed())
    w.run(1000)
    assert shown(w) == ["CHARGING"]
    w.app.card(ANNA["uid"])
    w.run(10000)
    w.pins[1].car = "A"
    w.run(1000)
    assert shown(w, 5000) == ["AVAILABLE"]


def test_a_card_that_is_asked_for_waits_visibly():
    w = world()
    w.gateway.deaf = True
    w.app.card(ANNA["uid"])
    w.run(25, 25)
    assert shown(w, 10000) == ["WAITING"]
    w.run(5200)  # nobody answered
    assert shown(w, 1000) == ["WRONG_CARD"]


def test_without_the_gateway():
    w = world()
    w.online = False
    w.run(100)
    assert shown(w, 5000) == ["OFFLINE"]
    w.online = True
    w.run(100)
    assert shown(w, 5000) == ["AVAILABLE"]


def test_out_of_order_and_out_of_service():
    w = world()
    w.ask("SET_AVAILABILITY", {"evse": 1, "operative": False})
    w.run(2000)
    assert shown(w, 13000) == ["OUT"]
    w.ask("SET_AVAILABILITY", {"evse": 1, "operative": True})
    w.run(2000)
    w.pins[1].fail = True
    w.run(3000)
    assert shown(w) == ["FAULT"]
