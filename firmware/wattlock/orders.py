"""What the gateway orders for an EVSE beforehand: reserve, cancel, begin, book, open or close it.

Each function decides and commits; the records carry the command's result. What ends a session or
opens a lock is not here (app.py): that must not wait for the flash. Loaded for one call, and
forgotten.
"""

from . import commands, gate, ocpi, reservation, tokens

_RESULTS = {
    gate.RESERVED: ocpi.EVSE_OCCUPIED,
    gate.BOOKED: ocpi.EVSE_OCCUPIED,
    gate.OCCUPIED: ocpi.EVSE_OCCUPIED,
    gate.UNAUTHORISED: ocpi.REJECTED,
    gate.FAULTED: ocpi.EVSE_INOPERATIVE,
    gate.INOPERATIVE: ocpi.EVSE_INOPERATIVE,
    gate.NO_METER: ocpi.FAILED,
}


def obey(app, command, data):
    kind = command["type"]
    if kind == ocpi.CANCEL_RESERVATION:
        return _cancel(app, command, data)
    n = data.get("evse")
    post = app.posts.get(n) if isinstance(n, int) else None
    if post is None:
        return app.say(command, ocpi.REJECTED)
    if kind == ocpi.RESERVE_NOW:
        return _reserve(app, command, data, post)
    if kind == ocpi.START_SESSION:
        return _begin(app, command, data, post)
    if kind == ocpi.SET_BOOKINGS:
        return _book(app, command, data, post)
    return _availability(app, command, data, post)


def _reserve(app, command, data, post):
    n = post.state.n
    token = tokens.clean(data.get("token"))
    id = data.get("reservation_id")
    expiry = data.get("expiry_ms")
    if token is None or not isinstance(id, str) or not 0 < len(id) <= 36:
        return app.say(command, ocpi.REJECTED, n)
    least = app.least()
    if not isinstance(expiry, int) or (least is not None and expiry <= least):
        return app.say(command, ocpi.REJECTED, n)
    if post.inoperative():
        return app.say(command, ocpi.EVSE_INOPERATIVE, n)
    held = post.state.reservation
    same = held is not None and reservation.same_id(held.id, id)
    if post.state.session is not None or post.grant is not None or (post.plugged and not same):
        return app.say(command, ocpi.EVSE_OCCUPIED, n)
    if post.booked is not None and post.booked.overlaps(expiry):
        return app.say(command, ocpi.EVSE_OCCUPIED, n)
    wish = {
        "reservation_id": id,
        "token": token,
        "expiry_ms": expiry,
        "authorization_reference": data.get("authorization_reference"),
        "command_id": command["id"],
    }
    elsewhere = _holder(app, id)
    session_id = data.get("session_id") or app.new_id()
    if elsewhere is not None:
        session_id = elsewhere.state.reservation.session_id
    records = reservation.decide(held, n, reservation.PLACE, wish, session_id)
    if not records:
        return app.say(command, ocpi.EVSE_OCCUPIED, n)
    if elsewhere is not None and elsewhere is not post:
        records += reservation.decide(
            elsewhere.state.reservation, elsewhere.state.n, reservation.REPLACED
        )
    done = app.commit(
        records + (commands.result(command, ocpi.ACCEPTED, n, records[0]["session_id"]),)
    )
    if done:
        post.reserved_up = app.up_ms()
    return done


def _holder(app, id):
    """The post at which the reservation `id` is in force, or None."""
    for n in app.posts:
        held = app.posts[n].state.reservation
        if held is not None and reservation.same_id(held.id, id):
            return app.posts[n]
    return None


def _cancel(app, command, data):
    id = data.get("reservation_id")
    post = _holder(app, id) if isinstance(id, str) else None
    if post is None:
        return app.say(command, ocpi.UNKNOWN_RESERVATION)
    by = {"cpo": reservation.BY_CPO, "move": reservation.REPLACED}
    by = by.get(data.get("by"), reservation.BY_EMSP)
    n = post.state.n
    records = reservation.decide(post.state.reservation, n, by)
    return app.commit(records + (commands.result(command, ocpi.ACCEPTED, n),))


def _begin(app, command, data, post):
    n = post.state.n
    token = tokens.clean(data.get("token"))
    if token is None:
        return app.say(command, ocpi.REJECTED, n)
    why = post.ask(
        post.right_of(token, True),
        gate.REMOTE,
        token,
        ocpi.COMMAND,
        data.get("authorization_reference"),
        command,
    )
    if why is not None:
        return app.say(command, _RESULTS[why], n)
    post.grant.session_id = data.get("session_id") or app.new_id()
    if not post.plugged and post.config["plug_first"]:
        post.grant = None
        return app.say(command, ocpi.FAILED, n)
    if not post.plugged:
        # accepted: the right waits for the plug
        if app.commit((app.accepted(command, n, post.coming()),)):
            post.grant.command = None
        else:
            post.grant = None
    return True


def _book(app, command, data, post):
    n = post.state.n
    if post.booked is None:
        return app.say(command, ocpi.NOT_SUPPORTED, n)
    records = app.station.booking.decide(post.state.slots, n, data, tokens.clean)
    if records is None:
        return app.say(command, ocpi.REJECTED, n)
    return app.commit(records + (app.accepted(command, n),))


def _availability(app, command, data, post):
    n = post.state.n
    operative = data.get("operative")
    if not isinstance(operative, bool):
        return app.say(command, ocpi.REJECTED, n)
    records = [{"t": "event", "what": "availability", "evse": n, "operative": operative}]
    if operative and post.state.fault is not None:
        records.append(post.fault_record("fault_cleared", post.state.fault))
    records.append(app.accepted(command, n))
    return app.commit(records)
