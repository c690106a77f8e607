"""What a meter does out of the ordinary, at one EVSE: the records of it.

Each function takes the Post (evse.py) that has seen it, and returns whether the fact is on record;
where it is not, the Post finds it again. They are needed seldom, and so is their code: a Post
loads this module for one call and forgets it.
"""

from . import metering, session


def _fact(post, what, after_wh, outside_wh=0, unobserved_wh=0):
    return metering.fact(
        post.state.ledger, post.state.n, what, post.meter.serial, after_wh,
        outside_wh, unobserved_wh,
    )  # fmt: skip


def told(post, what):
    """One that moves no register. Where room is short, it may be left out."""
    record = _fact(post, what, post.state.ledger.last)
    if what == metering.FROZEN:
        record["power_w"] = post.meter.power_w
    return post.app.note(record)


def glitch(post):
    """What was shown once and not believed: the newest of `count`."""
    ledger = post.state.ledger
    shown = ledger.doubt_wh
    record = _fact(post, metering.GLITCH, None if shown >> 50 else shown)
    record["count"] = ledger.glitches
    if not post.app.note(record):
        return False
    ledger.glitches = 0
    return True


def gap(post):
    """What has flowed while nobody watched, and that the meter is back."""
    ledger = post.state.ledger
    records = (_fact(post, metering.GAP, ledger.last, 0, ledger.advance()),)
    if post.meter_down:
        records = (_fact(post, metering.BACK, ledger.last),) + records
    if not post.app.commit(records):
        return False
    post.meter_down = False
    return True


def moved(post, what):
    """The register is not where it could be."""
    ledger = post.state.ledger
    meter = post.meter
    s = post.state.session
    held = s is not None and s.id == post.held
    unobserved = meter.energy_wh - ledger.last if what == metering.JUMP else 0
    outside = 0
    records = ()
    if (ledger.gap and ledger.stale) or not (held or (s and what == metering.ROLLOVER)):
        post.discontinuous = s is not None and not held
        outside = ledger.advance()
        if ledger.gap:
            unobserved += outside
            outside = 0
    elif held:
        records = post.cut(s, s.kind)
    else:
        at = post.cut_moment(s)
        records = (session.period(s, post.state.n, at, s.kind, ledger.last, ledger.advance()),)
    fact = _fact(post, what, meter.energy_wh, outside, unobserved)
    if what in (metering.FOUND, metering.SERIAL) and meter.export_wh is not None:
        fact["export_wh"] = meter.export_wh
    if not post.commit(records + (fact,)):
        return False
    if what == metering.SERIAL:
        post.exported = None
    return True
