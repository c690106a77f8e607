"""Remote: configuration and key, changed from afar without locking anybody out.

SET_CONFIG
 1. What comes is stored beside what is there, and tried in the next boot, which comes as soon as
    no session runs. The command's result is the outcome.
 2. It is kept once a gateway's authentic answer has come under it: ACCEPTED. The board restarts
    once more, as it does whenever a trial has run.
 3. It is refused where the configuration's own check does not pass: REJECTED, and the old one runs
    in the same boot. It is rolled back when no answer came in ten minutes, or when several boots
    came to no end: FAILED.
 4. Which board this is, and its key, cannot be set; nor can the key of its certificate, for which
    another certificate can be made.

ROTATE_KEY
 5. The new key is HMAC(old key, purpose + both sides' nonces): it never travels. Each side's nonce
    does, authenticated under the old key. Who has the old key and has heard both nonces has the
    new one: after a compromise a board is provisioned again.
 6. The new key is durable before its nonce is told. Both are good for what comes down until a
    message under the new one has come: then it is the key, and the old one is gone. The board
    restarts once no session runs.
 7. The chain keeps the key that its journal began with.

Loaded for one call, and forgotten.
"""

from binascii import hexlify, unhexlify

from . import commands, mac, ocpi
from .errors import StorageError

_RETRY_MS = 1000
_SECTIONS = {  # of secrets.json; a private key does not travel
    "mqtt": ("user", "password"),
    "wifi": ("ssid", "password"),
    "tls": ("ca", "cert"),
}
_WHY = 160


def obey(app, command, data):
    if command["type"] == ocpi.SET_CONFIG:
        return _try(app, command, data)
    return _rotate(app, command, data)


def _say(app, command, word):
    return app.commit((commands.result(command, word),))


# -- SET_CONFIG --------------------------------------------------------------------------------


def _try(app, command, data):
    site = data.get("config")
    secrets = data.get("secrets")
    for part in (site, secrets):
        if part is not None and not isinstance(part, dict):
            return _say(app, command, ocpi.REJECTED)
    if app.trial is not None or not (site or secrets):
        return _say(app, command, ocpi.REJECTED)
    if site and site.get("station_id") != app.config["station_id"]:
        return _say(app, command, ocpi.REJECTED)
    for name in secrets or ():
        if name not in _SECTIONS or not isinstance(secrets[name], dict):
            return _say(app, command, ocpi.REJECTED)
        for field in secrets[name]:
            if field not in _SECTIONS[name]:
                return _say(app, command, ocpi.REJECTED)
    try:
        app.trial = app.board.setup().store(commands.result(command, ocpi.FAILED), data)
    except (StorageError, MemoryError):
        return _say(app, command, ocpi.FAILED)
    app.reset_wanted = True
    return True


def turn(app):
    """Bring the trial of this boot to its end: it is over, an answer has come, or none in time."""
    trial = app.trial
    why = trial["why"]
    if not app.booted or (app.failed_at is not None and app.since(app.failed_at) < _RETRY_MS):
        return
    if why is not None:
        word = ocpi.REJECTED if trial["refused"] else ocpi.FAILED
        event = {"t": "event", "what": "config", "outcome": "refused"}
        if not trial["refused"]:
            event["outcome"] = "rolled_back"
        event["why"] = why[:_WHY]
    elif app.uplink.greeted:
        word = ocpi.ACCEPTED
        event = {"t": "event", "what": "config", "outcome": "kept"}
    else:
        word = event = None
    setup = app.board.setup()
    try:
        if word is None:
            trial["why"] = "no answer of the gateway in time"
            setup.end(trial["why"])
            return
        if word == ocpi.ACCEPTED:
            setup.keep()
        if trial["id"] not in app.station.results:
            record = setup.result()
            record["result"] = word
            if not app.commit((event, record)):
                return
        setup.drop()
    except StorageError:
        app.failed_at = app.ticks
        return
    app.trial = None
    if trial["running"]:  # with the old one again, or with a heap that nothing was tried in
        app.reset_wanted = True


# -- ROTATE_KEY --------------------------------------------------------------------------------


def _bytes(text):
    try:
        value = unhexlify(text)
    except (ValueError, TypeError):
        return None
    return value if len(value) == 32 else None


def _rotate(app, command, data):
    nonce = _bytes(data.get("nonce"))
    kid = app.inbox.kid + 1
    if nonce is None or data.get("kid") != kid:
        return _say(app, command, ocpi.REJECTED)
    setup = app.board.setup()
    own = app.board.random(32)
    name = app.config["station_id"]
    try:
        key = rotated(unhexlify(setup.secrets()["key"]), name, kid, nonce, own)
        setup.change_secrets({"next": {"kid": kid, "key": hexlify(key).decode()}})
    except (StorageError, MemoryError):
        return _say(app, command, ocpi.FAILED)
    app.inbox.next = mac.purpose(key, "down", name), kid
    record = commands.result(command, ocpi.ACCEPTED)
    record["kid"] = kid
    record["nonce"] = hexlify(own).decode()
    return app.commit((record,))


def rotated(key, station_id, kid, theirs, ours):
    """The key after `key`; `theirs`, `ours`: the nonces of gateway and board, 32 bytes each."""
    what = "wattlock/1/rotate/%s/%d" % (station_id, kid)
    return mac.Mac(key)(what.encode(), theirs, ours)


def promote(app):
    """The gateway has spoken under the new key: it is the key now."""
    setup = app.board.setup()
    name = app.config["station_id"]
    try:
        secrets = setup.secrets()
        following = secrets["next"]
        chain = secrets.get("chain")
        if chain is None:
            old = unhexlify(secrets["key"])
            chain = hexlify(mac.Mac(old)(("wattlock/1/chain/" + name).encode())).decode()
        setup.change_secrets(
            {"kid": following["kid"], "key": following["key"], "chain": chain, "next": None}
        )
    except (StorageError, MemoryError):
        return  # another message will come
    app.inbox.mac, app.inbox.kid = app.inbox.next
    app.inbox.next = None
    app.uplink.mac = mac.purpose(unhexlify(following["key"]), "up", name)
    app.uplink.kid = app.inbox.kid
    app.reset_wanted = True  # the second copy of the secrets is made at the start
