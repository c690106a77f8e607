"""Booked slots at one EVSE: where bookings meet clock, cards, the gate and the running session.
Loaded where config.json says "bookings"; the rules of slots are in `booking.py`."""

from . import booking, gate, session, tokens


class Booked:
    def __init__(self, post):
        self.post = post
        self.slots = post.state.slots

    def slot(self):
        """The slot that locks now, or None."""
        post = self.post
        most = post.app.most()
        if most is None and post.config["clock_lost"] == "release":
            return None
        return booking.running(self.slots, post.app.least(), most)

    def by_card(self, type_, uid):
        """(slot, token) of a booking that this card may use now, or None."""
        return self._opened(False, lambda known: tokens.is_card(known, type_, uid))

    def by_token(self, token, remote):
        """The same for an authorised token, and for its group."""
        return self._opened(
            remote, lambda known: tokens.same(known, token) or tokens.same_group(known, token)
        )

    def _opened(self, remote, is_it):
        app = self.post.app
        return booking.opened(self.slots, app.least(), app.most(), remote, is_it)

    def for_others(self):
        """Is a slot running that no group may use: nobody has to be asked about a card?"""
        slot = self.slot()
        return slot is not None and not [t for t in slot["tokens"] if "group_id" in t]

    def until(self):
        """Unix ms at which the open session has to end, or None."""
        return booking.until(self.slots, self.slots.used, self.post.app.least())

    def name(self, record, grant):
        """Let a `start` name the booking that it uses, and when the session has to end."""
        found = None
        if grant.right == gate.BOOKING:
            found = self.by_token(grant.token, grant.source == gate.REMOTE)
        id = None
        if found is not None:
            record["booking_id"] = id = found[0]["booking_id"]
            if grant.reference is None:
                grant.reference = found[0].get("authorization_reference")
        until = booking.until(self.slots, id, self.post.app.least())
        if until is not None:
            record["until_ms"] = until

    def overlaps(self, expiry_ms):
        return booking.overlaps(self.slots, self.post.app.least(), expiry_ms)

    def keep(self):
        """Once a second: let go of a slot that is over; end a session that has to be away."""
        post = self.post
        least = post.app.least()
        grant = post.grant
        coming = grant is not None and grant.right == gate.BOOKING and grant.accepted is not None
        over = booking.lapsed(self.slots, least)
        if over is not None and not coming:
            post.app.commit((booking.unbooked(post.state.n, over[0], over[1]),))
        s = post.state.session
        if s is None or s.phase == session.ENDING or post.config["overstay"] != "stop":
            return
        until = self.until()
        if None not in (least, until) and least >= until:
            post.stop(session.BOOKING_ENDED)
