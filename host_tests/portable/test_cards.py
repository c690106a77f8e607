"""Cards at a running agent: the whitelist of OCPI's mod_tokens, groups, the 15 minutes of
mod_commands, who is asked when, and a reader that is lost."""

from binascii import b2a_base64, hexlify

from wattlock import mac, session

from portable.bench import ANNA, BERT, KEY, STATION, World

MINUTE = 60000
GROUP = "GROUP123"


def world(**fields):
    w = World(**fields)
    w.boot()
    assert w.until(lambda: w.app.now() is not None and w.evse().ledger.register is not None)
    w.run(1000)
    return w


def row(token, kind):
    name = mac.Mac(mac.purpose(KEY, "chain", STATION)(b"tokens"))(token["uid"].encode())[:8]
    text = token["country_code"] + token["party_id"] + kind + token.get("group_id", "")
    data = name + text.encode()
    return data + bytes(22 - len(data))


def listed(*rows, **fields):
    """A world whose board has a whitelist of these rows."""
    w = world(offline_cards="whitelist", **fields)
    assert w.gateway.headers[-1]["tokens"] == {"v": 0, "n": 0}
    text = b2a_base64(b"".join(sorted(rows))).decode().strip()
    w.ask("SYNC_TOKENS", {"from": 0, "to": 7, "after": "", "rows": text, "last": True})
    w.run(1000)
    assert w.gateway.headers[-1]["tokens"] == {"v": 7, "n": len(rows)}
    assert not w.records("result")  # a part costs no record
    return w


def asked(w):
    """Uids that the gateway was asked for."""
    return [h["authorize"]["uid"] for h in w.gateway.headers if "authorize" in h]


def show(w, token, car="C"):
    w.pins[1].car = car
    w.run(500)
    w.app.card(token["uid"])
    w.run(200)


def answer(w, allowed="ALLOWED", token=None, **more):
    n, uid, _ = w.app.asking
    data = {"evse": n, "uid": uid, "allowed": allowed, "token": token}
    data.update(more)
    w.ask("AUTHORIZE", data)
    w.run(1000)


def starts(w):
    return w.until(lambda: w.evse().session and w.evse().session.phase == session.ENERGISED, 9000)


def why(w):
    return [r["why"] for r in w.records("refused")]


def reserve(w, token, ms=60 * MINUTE, evse=1):
    data = {"evse": evse, "reservation_id": "R1", "token": token}
    data["expiry_ms"] = w.unix_ms() + ms
    name = w.ask("RESERVE_NOW", data)
    w.run(1000)
    assert w.result_of(name) == ["ACCEPTED"]


def test_each_kind_online_and_offline():
    # (row, link) -> starts at once, asks the gateway, or is refused
    for kind, online, wanted in (
        ("A", True, "start"),
        ("A", False, "start"),
        ("O", True, "ask"),
        ("O", False, "start"),
        (None, True, "ask"),  # NEVER, blocked and unknown cards have no row
        (None, False, "refuse"),
    ):
        w = listed(row(ANNA, kind)) if kind else listed(row(BERT, "A"))
        w.online = online
        w.run(500)
        show(w, ANNA)
        if wanted == "start":
            assert w.app.asking is None and starts(w), (kind, online)
            w.online = True
            w.run(3000)
            (start,) = w.records("start")
            assert start["token"] == ANNA and start["auth_method"] == "WHITELIST"
            assert not asked(w)
        elif wanted == "ask":
            assert w.app.asking is not None and w.app.waits(1), (kind, online)
            assert asked(w) == [ANNA["uid"]]
            answer(w, "ALLOWED", ANNA, auth_method="AUTH_REQUEST", authorization_reference="REF")
            assert starts(w)
            (start,) = w.records("start")
            assert start["auth_method"] == "AUTH_REQUEST"
            assert start["authorization_reference"] == "REF"
        else:
            w.run(3000)
            assert w.app.asking is None and w.evse().session is None
            w.online = True
            w.run(3000)
            assert why(w) == ["offline"]


def test_no_answer_is_offline_as_well():
    """The broker is there, the gateway or the eMSP is not: after the deadline the list decides."""
    for kind, allowed in (("O", True), (None, False)):
        w = listed(row(ANNA, kind)) if kind else listed(row(BERT, "A"))
        w.gateway.deaf = True
        show(w, ANNA)
        w.run(14000)
        assert w.app.waits(1) and w.evse().session is None
        w.run(2000)
        assert not w.app.waits(1)
        assert bool(starts(w)) is allowed
        w.gateway.deaf = False
        w.run(90000)
        assert why(w) == ([] if allowed else ["no_answer"])


def test_refused_by_the_gateway_is_refused_whatever_the_list_says():
    w = listed(row(ANNA, "O"))
    for word in ("BLOCKED", "EXPIRED", "NO_CREDIT", "NOT_ALLOWED", "SOMETHING", None):
        show(w, ANNA)
        answer(w, word, ANNA)
        w.run(3000)
        assert w.evse().session is None
    assert why(w) == ["unauthorised"]  # and the others are counted


def test_a_lost_word_is_asked_for_again():
    w = world()
    show(w, ANNA)
    w.run(10000)
    assert 3 <= len(asked(w)) <= 6  # every three seconds
    answer(w, "ALLOWED", ANNA)
    assert starts(w)


def test_a_board_without_a_list_says_so_once():
    w = world()
    assert "tokens" not in w.gateway.headers[-1]
    id = w.ask("SYNC_TOKENS", {"from": 0, "to": 7, "after": "", "rows": "", "last": True})
    w.run(1000)
    assert w.result_of(id) == ["NOT_SUPPORTED"] and not w.shelves


def test_the_list_is_there_after_a_power_cut_also_of_the_clock():
    w = listed(row(ANNA, "A"))
    w.gateway.deaf = True
    w.online = False
    w.cut(60000)
    w.run(3000)
    assert w.app.now() is None
    show(w, ANNA)
    assert starts(w)


def test_stopped_by_its_group():
    """With the list, online and offline; by the gateway's word; never by another eMSP's group."""
    anna = dict(ANNA, group_id=GROUP)
    bert = dict(BERT, group_id=GROUP)
    for kind, other, online, stops in (
        ("A", bert, True, True),
        ("A", bert, False, True),
        ("O", bert, False, True),
        ("A", BERT, True, False),
        ("A", dict(bert, group_id="GROUP124"), True, False),
        ("A", dict(bert, party_id="OTH"), True, False),
    ):
        w = listed(row(anna, "A"), row(other, kind))
        show(w, anna)
        assert starts(w)
        w.online = online
        w.run(500)
        show(w, other)
        assert w.pins[1].is_closed() is not stops, other
        w.online = True
        w.run(8000)
        if stops:
            (stop,) = w.records("stop")
            assert stop["cause"] == "local" and stop["token"] == bert
        else:
            assert why(w) == ["occupied"]


def test_stopped_by_its_group_on_the_gateway_s_word():
    anna = dict(ANNA, group_id=GROUP)
    for other, stops in ((dict(BERT, group_id=GROUP), True), (BERT, False)):
        w = world()
        show(w, anna)
        answer(w, "ALLOWED", anna)
        assert starts(w)
        show(w, BERT)
        assert w.app.asking[:2] == (1, BERT["uid"]) and w.pins[1].is_closed()
        answer(w, "ALLOWED", other)
        assert w.pins[1].is_closed() is not stops
    w = world()
    show(w, ANNA)
    answer(w, "ALLOWED", ANNA)
    assert starts(w)
    show(w, BERT)
    assert w.app.asking is None  # a session of no group can be stopped by its own card only
    w.run(1000)
    assert why(w) == ["occupied"]


def test_a_card_of_the_group_starts_where_its_own_plug_waits():
    anna = dict(ANNA, group_id=GROUP)
    bert = dict(BERT, group_id=GROUP)
    w = listed(row(anna, "A"), row(bert, "A"), evses=2)
    show(w, anna)
    assert starts(w)
    w.pins[2].car = "C"
    w.run(500)
    w.app.card(BERT["uid"])
    assert w.until(lambda: w.evse(2).session is not None)
    assert w.evse(1).session.token == anna and w.evse(2).session.token == bert
    w.app.card(BERT["uid"])  # and its own session is the one that it stops
    w.run(8000)
    assert w.evse(2).session is None and w.evse(1).session is not None


def test_the_holder_s_card_is_not_asked_for_within_15_minutes():
    w = world()
    reserve(w, ANNA)
    w.run(14 * MINUTE, 1000)
    show(w, ANNA)
    assert not asked(w) and starts(w)
    (start,) = w.records("start")
    assert start["auth_method"] == "COMMAND" and start["reservation_id"] == "R1"


def test_then_its_whitelist_type_rules():
    # NEVER or ALLOWED_OFFLINE: asked; allowed by the list: not; offline: the command's word stands
    for late, kind, online, ask in (
        (True, None, True, True),
        (True, "O", True, True),
        (True, "A", True, False),
        (True, None, False, False),
        (False, None, True, True),  # a reset forgets how long ago it was: the gateway knows
    ):
        w = listed(row(ANNA, kind)) if kind else listed(row(BERT, "A"))
        reserve(w, ANNA)
        if late:
            w.run(16 * MINUTE, 1000)
        else:
            w.cut(1000)
            w.run(3000)
        w.online = online
        w.run(500)
        show(w, ANNA)
        assert (w.app.asking is not None) is ask, (late, kind, online)
        if ask:
            answer(w, "ALLOWED", ANNA)
        assert starts(w), (late, kind, online)
        w.online = True
        w.run(5000)
        assert w.records("start")[0]["reservation_id"] == "R1"


def test_a_holder_who_is_blocked_since_and_one_whom_nobody_answers():
    for word, begins in (("BLOCKED", False), (None, True)):
        w = world()
        reserve(w, ANNA)
        w.run(16 * MINUTE, 1000)
        if word is None:
            w.gateway.deaf = True
        show(w, ANNA)
        assert w.app.waits(1)
        if word:
            answer(w, word, ANNA)
        w.run(4000)  # whoever holds the place does not wait for a gateway that is not there
        assert not w.app.waits(1) and bool(starts(w)) is begins


def test_a_holder_after_a_reboot_without_a_gateway_starts_at_once():
    """The broker is there, the gateway is not, and nobody knows how long ago the reservation was
    made: its own card needs no word of anybody."""
    w = world()
    reserve(w, ANNA)
    w.gateway.deaf = True
    w.cut(1000)
    w.run(9000)  # the meter has been read
    show(w, BERT)
    assert w.evse().session is None and not w.app.waits(1)
    w.app.card(ANNA["uid"])
    assert not w.app.waits(1)
    assert starts(w)
    w.gateway.deaf = False
    w.run(3 * MINUTE)
    (start,) = w.records("start")
    assert start["reservation_id"] == "R1" and start["auth_method"] == "COMMAND"


def test_the_list_opens_a_reservation_for_its_group_only():
    holder = dict(BERT, uid="04AABBCC", group_id=GROUP)
    for token, begins in ((dict(ANNA, group_id=GROUP), True), (ANNA, False)):
        w = listed(row(token, "A"))
        reserve(w, holder)
        w.online = False
        w.run(500)
        show(w, token)
        assert bool(starts(w)) is begins
        w.online = True
        w.run(5000)
        assert why(w) == ([] if begins else ["reserved"])


def test_a_flash_that_fails_in_a_sync_stops_nothing_and_is_told():
    w = world(offline_cards="whitelist")
    shelf = w.shelves["/tokens"]
    text = b2a_base64(row(ANNA, "A")).decode().strip()
    part = {"from": 0, "to": 7, "after": "", "rows": text, "last": True}
    for at in (1, 2, 3):  # the part's head, its rows, the new list
        shelf.fail_at = at
        w.ask("SYNC_TOKENS", part)
        w.run(3000)
        assert w.gateway.headers[-1]["tokens"]["v"] == 0, at
    assert [r["task"] for r in w.records("event") if r["what"] == "supervisor"] == ["whitelist"]
    assert w.board.link.rebuilt == 0 and not w.troubles
    w.run(61000)
    now = w.gateway.headers[-1]["tokens"]
    assert now["to"] == 7
    w.ask("SYNC_TOKENS", dict(part, after=now["after"], rows=""))  # the gateway repeats the end
    w.run(3000)
    assert w.gateway.headers[-1]["tokens"] == {"v": 7, "n": 1}
    assert now["after"] == hexlify(row(ANNA, "A")[:13]).decode()


class Reader:
    ok = True

    def turn(self, ticks):
        pass

    def read(self):
        return None


def test_a_reader_that_is_lost_is_told_and_not_too_often():
    w = World()
    w.rfid = Reader()
    w.rfid.ok = False  # until it is set up
    w.boot()
    w.run(3000)
    w.rfid.ok = True
    w.run(60000)
    told = []
    for seconds in (1, 60) + (30,) * 40:  # back at once; then it comes and goes for 20 minutes
        w.rfid.ok = not w.rfid.ok
        w.run(seconds * 1000)
        told.append(len([r for r in w.records("event") if r["what"].startswith("reader")]))
    assert told[0] == 1, "a loss is told at once"
    assert 2 <= told[-1] <= 5
    w.rfid.ok = True
    w.run(6 * MINUTE)
    events = [r["what"] for r in w.records("event") if r["what"].startswith("reader")]
    assert events == ["reader_lost", "reader_back"] * (len(events) // 2)  # right in the end
    assert not w.records("refused")
