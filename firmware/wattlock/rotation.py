"""Rotation: the board's key, followed by another one that never travels.

 1. The new key is HMAC(old key, purpose + both sides' nonces): it never travels. Each side's nonce
    does, authenticated under the old key. Who has the old key and has heard both nonces has the
    new one: after a compromise a board is provisioned again.
 2. The new key is durable before its nonce is told. Both are good for what comes down until a
    message under the new one has come: then it is the key, and the old one is gone. The board
    restarts once no session runs.
 3. The chain keeps the key that its journal began with.

Loaded for one call, and forgotten.
"""

from binascii import hexlify, unhexlify

from . import commands, mac, ocpi
from .errors import StorageError


def _bytes(text):
    try:
        value = unhexlify(text)
    except (ValueError, TypeError):
        return None
    return value if len(value) == 32 else None


def obey(app, command, data):
    """ROTATE_KEY."""
    nonce = _bytes(data.get("nonce"))
    kid = app.inbox.kid + 1
    if nonce is None or data.get("kid") != kid:
        return app.say(command, ocpi.REJECTED)
    setup = app.board.setup()
    own = app.board.random(32)
    name = app.config["station_id"]
    try:
        secrets = setup.secrets()
        key = rotated(unhexlify(secrets["key"]), name, kid, nonce, own)
        secrets["next"] = {"kid": kid, "key": hexlify(key).decode()}
        setup.put_secrets(secrets)
        secrets = setup = None  # the record needs the room
    except (StorageError, MemoryError):
        secrets = setup = None
        return app.say(command, ocpi.FAILED)
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
        following = secrets.pop("next")
        if "chain" not in secrets:
            old = unhexlify(secrets["key"])
            chain = mac.Mac(old)(("wattlock/1/chain/" + name).encode())
            secrets["chain"] = hexlify(chain).decode()
        secrets.update(following)
        setup.put_secrets(secrets)
    except (StorageError, MemoryError):
        return  # another message will come
    app.inbox.mac, app.inbox.kid = app.inbox.next
    app.inbox.next = None
    app.uplink.mac = mac.purpose(unhexlify(following["key"]), "up", name)
    app.uplink.kid = app.inbox.kid
    app.reset_wanted = True  # the second copy of the secrets is made at the start
