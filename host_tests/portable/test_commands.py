"""Messages and commands that must do nothing, by what is wrong with them; and those that count."""

import json
from binascii import hexlify

from wattlock import clock, commands, mac

KEY = bytes(range(32))
STATION = "DEMO-1"
SID = "00112233445566778899aabbccddeeff"
T = 1790000000000
HOUR = 3600000
DOWN = mac.purpose(KEY, "down", STATION)


def head(**changes):
    out = {"v": 1, "kid": 1, "sid": SID, "n": 5, "unix_ms": T, "commands": []}
    out.update(changes)
    return out


def seal(value, key=DOWN):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return hexlify(key(text)) + b"\n" + text


def inbox():
    box = commands.Inbox(DOWN, 1, SID)
    box.n = 4
    return box


def refused(message, why, retained=False):
    box = inbox()
    got = box.open(message, retained)
    assert got == (None, why), (got, why)
    assert box.n == 4  # nothing of it stays
    assert box.open(seal(head()))[0] is not None  # and the next honest one counts


def test_an_honest_message():
    box = inbox()
    opened, why = box.open(seal(head()))
    assert why is None and opened == head() and box.n == 5


def test_forged():
    good = seal(head())
    for i in (0, 31, 63, 65, 66, len(good) - 1):
        bad = bytearray(good)
        bad[i] ^= 1
        refused(bytes(bad), commands.FORGED)
    refused(good + b" ", commands.FORGED)
    refused(good[:-1], commands.FORGED)
    refused(b"0" * 64 + good[64:], commands.FORGED)
    refused(good[:64].upper() + good[64:], commands.FORGED)
    refused(seal(head(), mac.Mac(KEY)), commands.FORGED)  # the station key itself


def test_reflected():
    """An up message sent back, or one with the key of another purpose or station."""
    for what, name in (("up", STATION), ("chain", STATION), ("down", "DEMO-2")):
        refused(seal(head(), mac.purpose(KEY, what, name)), commands.FORGED)


def test_repeated_and_reordered():
    for n in (4, 3, 0, -1):
        refused(seal(head(n=n)), commands.REPEATED)
    box = inbox()
    message = seal(head(n=9))
    assert box.open(message)[1] is None
    assert box.open(message) == (None, commands.REPEATED)
    assert box.open(seal(head(n=8))) == (None, commands.REPEATED)


def test_retained():
    refused(seal(head()), commands.RETAINED, True)


def test_another_boot():
    for sid in ("f" * 32, SID.upper(), "", None, 7, SID[:31]):
        refused(seal(head(sid=sid)), commands.OTHER_BOOT)


def test_malformed():
    for message in (b"", b"x", bytes(65), bytes(5000), b"0" * 64, b"0" * 64 + b"\n"):
        refused(message, commands.MALFORMED)
    good = seal(head())
    refused(good[:64] + b" " + good[65:], commands.MALFORMED)
    for text in (b"{", b"[]", b"7", b"null", b'"x"', b"\xff\xfe", b"{} {}", b"[1,2]", b" "):
        refused(seal(text), commands.MALFORMED)
    for field in ("v", "kid", "sid", "n"):
        less = head()
        del less[field]
        refused(seal(less), commands.MALFORMED)
    for field, value in (
        ("v", 2),
        ("v", "1"),
        ("kid", 2),
        ("kid", "1"),
        ("kid", None),
        ("n", "6"),
        ("n", 6.5),
        ("n", None),
        ("n", [6]),
        ("commands", 7),
        ("commands", {}),
        ("commands", "x"),
    ):
        refused(seal(head(**{field: value})), commands.MALFORMED)


def test_too_long():
    text = json.dumps(head(x="y" * 4096)).encode()
    refused(seal(text), commands.MALFORMED)
    room = 4096 - 65 - len(json.dumps(head(x="")))
    box = inbox()
    assert box.open(seal(head(x="y" * room)))[1] is None
    refused(seal(head(x="y" * (room + 1))), commands.MALFORMED)


def test_too_deep():
    """Whatever a parser makes of it: no exception, and nothing happens."""
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth in (10, 100, 600, 3900 // len(opening)):
            inner = opening * depth + b"1" + closing * depth
            text = json.dumps(head())[:-1].encode() + b',"x":' + inner + b"}"
            if len(text) > 4000:
                text = text[:4000]
            box = inbox()
            why = box.open(seal(text))[1]
            assert why in (None, commands.MALFORMED), why


def command(**changes):
    out = {"id": "c" * 32, "type": "STOP_SESSION", "exp": T + 1000, "data": {"session_id": "S1"}}
    out.update(changes)
    return out


def nest(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_well_formed():
    assert commands.well_formed(command())
    assert commands.well_formed(command(data={}))
    for bad in (
        None,
        7,
        [],
        "x",
        {},
        command(id=None),
        command(id=""),
        command(id="x" * 37),
        command(id=7),
        command(type=None),
        command(type="T" * 37),
        command(exp=None),
        command(exp="1"),
        command(exp=1.5),
        command(exp=-1),
        command(exp=1 << 60),
        command(data=None),
        command(data=[]),
        command(data={"session_id": 7}),
        command(data={"session_id": "x" * 37}),
        command(data={"session_id": {"a": 1}}),
        command(data={"reservation_id": ""}),
        command(data={"authorization_reference": "x" * 200}),
        command(data={"x": nest(50)}),
    ):
        assert not commands.well_formed(bad), bad


def anchored(err_ms=70):
    c = clock.Clock()
    clock.evolve(c, {"t": "time", "up_ms": 1000, "unix_ms": T, "err_ms": err_ms}, 0)
    return c


def test_stale_by_a_clock_that_knows():
    for is_answer in (False, True):  # who knows the time goes by it, answer or not
        for exp, want in (
            (T - 1, commands.EXPIRED),
            (T, commands.EXPIRED),
            (T + 1, None),
            (T + HOUR, None),
            (T + HOUR + 70, None),  # the clock's own error
            (T + HOUR + 71, commands.NOT_FRESH),
        ):
            assert commands.stale(exp, is_answer, anchored(), 1000) == want


def test_stale_by_a_clock_that_does_not():
    unset = clock.Clock()
    for c in (unset, anchored(5001)):
        for exp in (T - 1, T + 1, T + 2 * HOUR):
            assert commands.stale(exp, False, c, 1000) == commands.NOT_FRESH
            assert commands.stale(exp, True, c, 1000) is None
    assert commands.stale(T + 1000, False, anchored(5000), 1000) is None


def test_an_answer_is_to_a_message_of_the_last_ten_seconds():
    assert commands.answers({"re": 500}, 10499)
    assert not commands.answers({"re": 500}, 10500)
    assert commands.answers({"re": 0}, 600)
    for wrong in ({}, {"re": None}, {"re": "500"}, {"re": -1}):
        assert not commands.answers(wrong, 600), wrong


def test_digest_ignores_order_and_sees_everything_else():
    one = command(data={"a": 1, "b": {"c": [1, 2], "d": "x"}})
    same = command(data={"b": {"d": "x", "c": [1, 2]}, "a": 1})
    assert commands.digest(one) == commands.digest(same)
    assert commands.digest(one) == commands.digest(command(data=one["data"], exp=1, id="x"))
    for data in (
        {"a": 1, "b": {"c": [2, 1], "d": "x"}},
        {"a": 1, "b": {"c": [1, 2], "d": "y"}},
        {"a": "1", "b": {"c": [1, 2], "d": "x"}},
        {"a": True, "b": {"c": [1, 2], "d": "x"}},
        {"a": 1, "b": {"c": [1, [2]], "d": "x"}},
        {"a": 1},
        {},
    ):
        assert commands.digest(one) != commands.digest(command(data=data)), data
    assert commands.digest(one) != commands.digest(command(data=one["data"], type="RESET"))


def test_results_are_kept_until_an_hour_after():
    results = {}
    one = commands.result(command(), "ACCEPTED")
    commands.evolve(results, one, T)
    assert commands.known(results, command()) is True
    assert commands.known(results, command(data={"session_id": "S2"})) is False
    assert commands.known(results, command(id="d" * 32)) is None
    commands.evolve(results, commands.result(command(id="d" * 32), "REJECTED"), T + 1000 + HOUR)
    assert commands.known(results, command()) is True
    commands.evolve(results, commands.result(command(id="e" * 32), "REJECTED"), T + 1001 + HOUR)
    assert commands.known(results, command()) is None
    commands.evolve(results, one, None)
    for i in range(16):  # beyond what there is room for, the oldest go
        more = command(id=f"{i:032d}", exp=T + 2000 + i)
        commands.evolve(results, commands.result(more, "ACCEPTED"), None)
    assert len(results) == 16 and commands.known(results, command()) is None


def test_the_first_result_stands():
    results = {}
    commands.evolve(results, commands.result(command(), "ACCEPTED"), T)
    commands.evolve(results, commands.result(command(data={}), "REJECTED"), T)
    assert commands.word(results["c" * 32]) == "ACCEPTED"


def test_the_newest_result_is_kept_whatever_its_expiry():
    """Sixteen commands that are good for longer do not push it out before it is repeated."""
    results = {}
    for i in range(20):
        word = {"command_id": "long%d" % i, "digest": "d", "result": "ACCEPTED", "exp": 10**12 + i}
        commands.evolve(results, word, None)
    word = {"command_id": "short", "digest": "d", "result": "ACCEPTED", "exp": 10**11}
    commands.evolve(results, word, None)
    assert "short" in results and len(results) == 16
