"""A backlog drains: in order, once, with flat memory, and the picture of now goes ahead of it."""

import gc
import json

from portable.bench import ANNA, World

DAY = 24 * 3600000


def backlog(days, sessions):
    """A world that was offline so many days, each with so many hours of charging."""
    w = World(free_vend=True)
    w.boot()
    w.run(3000)
    w.online = False
    for _ in range(days):
        for _ in range(sessions):
            w.pins[1].car = "C"
            w.run(3600000, 60000)
            w.pins[1].car = "A"
            w.run(30000)
        w.run(DAY - sessions * 3630000, 600000)
    return w


def test_two_weeks_offline_arrive_once_and_in_order():
    w = backlog(14, 1)
    known = len(w.records())
    journal = w.app.journal
    waiting = journal.seq - journal.acked
    assert waiting > 100
    sent = len(w.gateway.headers)
    seqs = []
    take = w.gateway.take

    def watched(message):
        lines = message.count(b"\n") - 1
        seq = json.loads(message.split(b"\n")[1])["seq"]
        seqs.extend(range(seq, seq + lines))
        take(message)

    w.gateway.take = watched
    w.online = True
    w.run(120000)
    assert journal.acked == journal.seq
    assert seqs == list(range(known + 1, journal.seq + 1))  # the chain was checked on the way
    assert len(w.records("start")) == len(w.records("stop")) == 14
    assert not w.records("lost")
    messages = len(w.gateway.headers) - sent
    assert messages < waiting // 3  # in batches
    # what the sessions had, is what the meter had
    wh = sum([r["wh"] for r in w.records("period")])
    assert wh == sum([r["total_wh"] for r in w.records("stop")]) > 14 * 10000


def test_memory_is_flat_while_a_backlog_drains():
    w = backlog(12, 1)
    w.run(600000, 60000)
    used = getattr(gc, "mem_alloc", None)
    w.gateway.headers = Few()
    w.gateway.records = Few()
    w.online = True
    levels = []
    for _ in range(400):
        w.run(100)
        if used is not None:
            gc.collect()
            levels.append(used())
        if w.app.journal.acked == w.app.journal.seq:
            break
    assert w.app.journal.acked == w.app.journal.seq
    if used is not None:
        drained = levels[4:]
        assert len(drained) > 5 and max(drained) - min(drained) < 1024, (min(drained), drained)


class Few(list):
    """Keeps the last one."""

    def append(self, value):
        self[:] = [value]


def test_the_picture_of_now_goes_with_the_first_of_the_backlog():
    w = backlog(2, 1)
    w.pins[1].car = "C"
    w.run(60000, 1000)
    sent = len(w.gateway.headers)
    w.online = True
    w.run(200)
    head = w.gateway.headers[sent]
    assert w.app.journal.acked < w.app.journal.seq  # there is more to come
    assert head["live"]["1"]["status"] == "CHARGING" and head["live"]["1"]["wh"] > 0


def test_a_link_that_is_up_and_acknowledges_nothing_is_built_anew():
    """The supervisor goes by what comes back, not by being connected."""
    w = World()
    w.boot()
    w.run(3000)
    w.gateway.deaf = True
    w.pins[1].fail = True  # something to tell
    w.run(290000, 1000)
    assert w.board.link.rebuilt == 0
    w.run(80000, 1000)
    assert w.board.link.rebuilt == 1
    w.gateway.deaf = False
    w.run(200000, 1000)
    told = [r for r in w.records("event") if r["what"] == "supervisor"]
    assert [r["task"] for r in told] == ["link_stalled"]
    w.run(3600000, 5000)
    assert w.board.link.rebuilt == 1  # and not while it answers


def test_a_card_is_heard_while_a_backlog_drains():
    w = backlog(3, 1)
    w.online = True
    w.run(200)
    assert w.app.journal.acked < w.app.journal.seq
    w.app.card(ANNA["uid"])
    w.run(300)
    assert "authorize" in w.gateway.headers[-1] or "authorize" in w.gateway.headers[-2]
