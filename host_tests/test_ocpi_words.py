"""Every wire string of OCPI's that the board speaks, pinned from the standard's text.

The lists are the `Value` columns of the standard's tables, OCPI 2.2.1 (branch
release-2.2.1-bugfixes at ca8c04c5), compared with that text by a script when they were written.
"""

from wattlock import ocpi

ENUMS = {
    ("mod_locations", "Status"): "AVAILABLE BLOCKED CHARGING INOPERATIVE OUTOFORDER PLANNED "
    "REMOVED RESERVED UNKNOWN",
    ("mod_commands", "CommandType"): "CANCEL_RESERVATION RESERVE_NOW START_SESSION STOP_SESSION "
    "UNLOCK_CONNECTOR",
    ("mod_commands", "CommandResultType"): "ACCEPTED CANCELED_RESERVATION EVSE_OCCUPIED "
    "EVSE_INOPERATIVE FAILED NOT_SUPPORTED REJECTED TIMEOUT UNKNOWN_RESERVATION",
    ("mod_cdrs", "AuthMethod"): "AUTH_REQUEST COMMAND WHITELIST",
    ("mod_tokens", "AllowedType"): "ALLOWED BLOCKED EXPIRED NO_CREDIT NOT_ALLOWED",
    ("mod_tokens", "TokenType"): "AD_HOC_USER APP_USER OTHER RFID",
}
OURS = {  # tools/gateway/UPLINK.md
    *("AUTHORIZE", "SET_AVAILABILITY", "SET_BOOKINGS", "SYNC_TOKENS", "GET_HEALTH", "RESET"),
    *("SET_CONFIG", "ROTATE_KEY"),
}

USED = {
    "Status": "AVAILABLE CHARGING INOPERATIVE OUTOFORDER RESERVED",
    "CommandType": "RESERVE_NOW CANCEL_RESERVATION START_SESSION STOP_SESSION UNLOCK_CONNECTOR",
    "CommandResultType": "ACCEPTED EVSE_INOPERATIVE EVSE_OCCUPIED FAILED NOT_SUPPORTED REJECTED "
    "UNKNOWN_RESERVATION",
    "AuthMethod": "AUTH_REQUEST COMMAND WHITELIST",
    "AllowedType": "ALLOWED",
    "TokenType": "RFID",
}


def words() -> dict[str, str]:
    return {name: getattr(ocpi, name) for name in dir(ocpi) if name.isupper()}


def test_each_word_is_its_own_name() -> None:
    assert all(name == value for name, value in words().items())


def test_each_word_is_the_standard_s_or_declared_ours() -> None:
    used = {word for row in USED.values() for word in row.split()}
    assert set(words()) == used | OURS
    for (_, enum), row in ENUMS.items():
        assert set(USED[enum].split()) <= set(row.split())
    standard = {word for row in ENUMS.values() for word in row.split()}
    assert not OURS & standard
