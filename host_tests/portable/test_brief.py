"""Brief pictures: a third of the bytes, nothing hidden, and a silent gateway is still noticed."""

from portable.bench import ANNA, World

MINUTE = 60000


def world(**fields):
    w = World(free_vend=True, **fields)
    w.gateway.brief_s = 960
    w.boot()
    w.run(3000)
    return w


def briefs(w, since=0):
    return [h for h in w.gateway.headers[since:] if "journal" not in h]


def test_a_picture_is_brief_where_the_gateway_says_so():
    w = world()
    w.run(3 * MINUTE)
    sent = w.gateway.headers
    assert len(briefs(w)) == 3 and sent[-1]["live"] == {}
    assert sorted(sent[-1]) == ["kid", "live", "seq", "sid", "up_ms", "v"]
    ups = [h["up_ms"] for h in sent]
    assert ups == sorted(set(ups))
    w.pins[1].car = "C"
    w.run(5000)
    at = len(sent)
    w.run(2 * MINUTE)
    assert [sorted(h["live"]["1"]) for h in briefs(w, at)] == [["w", "wh"]] * 2
    assert len(sent) == at + 2
    plain = World()
    plain.boot()
    plain.run(3 * MINUTE)
    assert not briefs(plain)
    plain.gateway.brief_s = "900"  # no number
    plain.run(3 * MINUTE)
    assert not briefs(plain)


def test_a_whole_message_comes_at_least_as_often_as_asked():
    for brief_s, whole in ((900, 15), (600, 10), (10**9, 16), (60, 1), (1, 1), (0, 1), (-5, 1)):
        w = world()
        w.gateway.brief_s = brief_s
        w.app.uplink.hurry = True
        w.run(1000)
        begin = len(w.gateway.headers)
        w.run(48 * MINUTE)
        kinds = ["journal" in h for h in w.gateway.headers[begin:]]
        assert kinds == [i % whole == whole - 1 for i in range(len(kinds))], brief_s
        assert len(kinds) == 48


def test_whatever_is_new_goes_in_a_whole_message():
    """At every moment, the last whole picture and what the brief ones said since are the truth."""
    w = world(evses=2)
    make = w.app.uplink.message
    seen = {}
    counts = [0, 0]

    def message(boot, up, ticks, clock, live, asked, jitter):
        brief = w.app.uplink.brief()
        counts[1 if brief else 0] += 1
        if not brief:
            seen.clear()
        for n in w.app.posts:
            picture = seen.setdefault(n, {})
            for name in ("wh", "w"):
                if name in picture:
                    del picture[name]
            picture.update(live.get(str(n), {}))
            post = w.post(n)
            shown = post._shown
            assert picture == post.live()
            post._shown = shown  # nobody has seen this one
        return make(boot, up, ticks, clock, live, asked, jitter)

    w.app.uplink.message = message
    data = {"evse": 1, "reservation_id": "R1", "token": ANNA}
    w.ask("RESERVE_NOW", dict(data, expiry_ms=w.unix_ms() + 30 * MINUTE))
    steps = (
        (1, "car", "B"),
        (1, "car", "A"),
        (2, "car", "C"),
        (2, "car", "B"),
        (2, "car", "C"),
        (1, "fail", True),
        (1, "fail", False),
    )
    for n, what, value in steps:
        setattr(w.pins[n], what, value)
        w.run(2 * MINUTE + 1300)
    w.estop = True
    w.run(3 * MINUTE)
    w.estop = False
    w.run(3 * MINUTE)
    w.real[2].dead = True
    w.run(3 * MINUTE)
    w.real[2].dead = False
    w.run(50 * MINUTE)
    assert counts[1] > 40 and counts[0] > 10


def test_a_lost_brief_picture_is_missed_by_nobody():
    w = world()
    w.pins[1].car = "C"
    w.run(5000)
    take = w.gateway.take
    w.gateway.take = lambda message: None if b'"journal"' not in message else take(message)
    w.run(17 * MINUTE)
    assert not briefs(w)
    w.gateway.take = take
    w.run(2 * MINUTE)
    w.pins[1].car = "A"
    w.run(10000)
    wh = sum([r["wh"] for r in w.records("period")])
    assert wh == w.records("stop")[0]["total_wh"] and w.app.journal.acked == w.app.journal.seq


def test_a_gateway_that_is_silent_is_noticed_within_21_minutes():
    w = world()
    w.run(MINUTE)
    w.gateway.deaf = True
    w.run(21 * MINUTE + 10000, 1000)
    assert w.board.link.rebuilt == 1
    w.gateway.deaf = False
    w.run(5 * MINUTE, 1000)
    assert [r["task"] for r in w.records("event") if r["what"] == "supervisor"] == ["link_stalled"]


def test_a_gateway_that_went_back_gets_everything_with_the_next_picture():
    w = world()
    g = w.gateway
    acked, link = g.acked, g.link
    w.pins[1].car = "C"
    w.run(MINUTE)
    held = list(g.records)
    assert g.acked > acked
    g.acked, g.link = acked, link  # a database of an hour ago
    del g.records[acked:]
    w.run(MINUTE + 1000)
    assert g.records[: len(held)] == held


def test_a_command_comes_in_the_answer_to_a_brief_picture():
    w = world()
    w.run(10000)
    id = w.gateway.command("SET_AVAILABILITY", {"evse": 1, "operative": False})
    w.gateway.commands[0]["exp"] += 5 * MINUTE
    w.run(MINUTE)
    assert len(briefs(w)) == 1 and w.result_of(id) == ["ACCEPTED"]
