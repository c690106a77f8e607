"""Configuration: load, validate, one clear error that names the field, the value and the remedy.

`config.json` is the site's, `board.json` the board's, `secrets.json` the identity. The JSON Schema
of config.json is published with the gateway; this module is what the board itself goes by, and
the deploy tool runs the same code before it touches a board.
"""

import json

from .errors import ConfigError

_ID = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_MISSING = object()
_CONFIG = "station_id board network link buses evses live_s bookings offline_cards".split()
_EVSE = (
    "n meter bus unit max_a phases require_meter free_vend plug_first on_power_return clock_lost "
    "overstay"
).split()


def parse(text, name):
    """The object in a JSON file. Raises ConfigError."""
    try:
        value = json.loads(text)
    except ValueError:
        raise ConfigError("%s: is no JSON; check quotes, commas and braces" % name)
    if not isinstance(value, dict):
        raise ConfigError("%s: must be one JSON object" % name)
    return value


def _get(where, path, key, kind, default=_MISSING):
    value = where.get(key, default)
    at = "%s.%s" % (path, key)
    if value is _MISSING:
        raise ConfigError("%s: is missing; add it" % at)
    if value is default:
        return value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = "" if path.startswith("secrets") else "%r " % (value,)
        raise ConfigError("%s: %smust be %s" % (at, shown, _KINDS[kind]))
    return value


def _only(where, path, keys):
    for key in where:
        if key not in keys:
            raise ConfigError(
                "%s.%s: is unknown; remove it, or use one of %s" % (path, key, ", ".join(keys))
            )


def _name(value, at):
    if not 0 < len(value) <= 36 or [c for c in value if c not in _ID]:
        raise ConfigError("%s: %r must be 1 to 36 of A-Z a-z 0-9 - _" % (at, value))


_KINDS = {
    str: "a string in quotes",
    int: "a whole number",
    bool: "true or false",
    dict: "an object {...}",
    list: "a list [...]",
}


def _one_of(value, at, choices):
    if value not in choices:
        raise ConfigError("%s: %r is unknown; use one of %s" % (at, value, ", ".join(choices)))


def _within(value, at, low, high):
    if not low <= value <= high:
        raise ConfigError("%s: %d is out of range; use %d to %d" % (at, value, low, high))


def load(text, board, meters):
    """The checked configuration with its defaults filled in.

    `text` is config.json, `board` the parsed board.json, `meters` the keys of the meters that are
    there. Raises ConfigError.
    """
    config = parse(text, "config.json")
    _only(config, "config", _CONFIG)
    _name(_get(config, "config", "station_id", str), "config.station_id")
    name = _get(config, "config", "board", str)
    if name != board.get("board"):
        raise ConfigError(
            "config.board: %r is not this board, which is %r" % (name, board.get("board"))
        )
    config["network"] = _get(
        config, "config", "network", dict, {"kind": board.get("net", "wifi")}
    )
    _network(config["network"], board)
    _link(_get(config, "config", "link", dict))
    buses = _get(config, "config", "buses", dict, {})
    config["buses"] = buses
    for key in buses:
        _name(key, "config.buses")
        _bus(_get(buses, "config.buses", key, dict), "config.buses.%s" % key, board)
    evses = _get(config, "config", "evses", list)
    if not evses:
        raise ConfigError("config.evses: is empty; name at least one EVSE")
    seen = []
    for i, evse in enumerate(evses):
        at = "config.evses[%d]" % i
        if not isinstance(evse, dict):
            raise ConfigError("%s: must be an object {...}" % at)
        _evse(evse, at, board, buses, meters)
        if evse["n"] in seen:
            raise ConfigError("%s.n: %d is there twice" % (at, evse["n"]))
        for other in evses[:i]:
            if (other["bus"], other["unit"]) == (evse["bus"], evse["unit"]):
                raise ConfigError(
                    "%s.unit: %d on %r is the meter of EVSE %d already; one meter serves one EVSE"
                    % (at, evse["unit"], evse["bus"], other["n"])
                )
        seen.append(evse["n"])
    # over HTTP a command waits for the next picture
    live_s = 60 if config["link"]["kind"] == "mqtt" else 10
    config["live_s"] = _get(config, "config", "live_s", int, live_s)
    _within(config["live_s"], "config.live_s", 1, 3600)
    config["bookings"] = _get(config, "config", "bookings", bool, False)
    config["offline_cards"] = _get(config, "config", "offline_cards", str, "refuse")
    _one_of(config["offline_cards"], "config.offline_cards", ("refuse", "whitelist"))
    return config


def _network(network, board):
    at = "config.network"
    _only(network, at, ("kind",))
    kinds = ("wifi", "lan") if "lan" in board else ("wifi",)
    _one_of(_get(network, at, "kind", str), at + ".kind", kinds)


def _link(link):
    at = "config.link"
    kind = _get(link, at, "kind", str)
    _one_of(kind, at + ".kind", ("mqtt", "http"))
    link["insecure"] = _get(link, at, "insecure", bool, False)
    link["sntp"] = _get(link, at, "sntp", str, "pool.ntp.org")
    if kind == "http":
        _only(link, at, ("kind", "url", "insecure", "sntp"))
        _url(link, _get(link, at, "url", str))
        return
    _only(link, at, ("kind", "host", "port", "insecure", "sntp"))
    if not _get(link, at, "host", str):
        raise ConfigError("config.link.host: is empty; name the broker's host")
    link["port"] = _get(link, at, "port", int, 8883)
    _within(link["port"], at + ".port", 1, 65535)


def _url(link, url):
    """Its parts become `host`, `port` and `path`."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    host, _, port = host.partition(":")
    port = port or ("80" if scheme == "http" else "443")
    known = scheme in ("http", "https") and host and port.isdigit() and int(port) <= 65535
    if not known or [c for c in url if c <= " " or c in "?#@"]:
        raise ConfigError(
            "config.link.url: %r must be like https://gateway.example/base" % url
        )
    if link["insecure"] != (scheme == "http"):
        raise ConfigError(
            'config.link.url: %r: https is TLS; http needs "insecure": true, and a network you '
            "trust" % url
        )
    path = slash + path
    while path.endswith("/"):
        path = path[:-1]
    link["host"], link["port"], link["path"] = host, int(port), path


def _bus(bus, at, board):
    kind = _get(bus, at, "kind", str)
    _one_of(kind, at + ".kind", ("rtu", "tcp", "pulse"))
    if kind == "tcp":
        _only(bus, at, ("kind", "host", "port"))
        host = _get(bus, at, "host", str)
        parts = host.split(".")
        if len(parts) != 4 or [p for p in parts if not p.isdigit() or int(p) > 255]:
            raise ConfigError(
                "%s.host: %r must be the meter's address, like 192.168.1.20; a name would be "
                "asked for by a call that waits" % (at, host)
            )
        bus["port"] = _get(bus, at, "port", int, 502)
        _within(bus["port"], at + ".port", 1, 65535)
    elif kind == "pulse":
        _only(bus, at, ("kind", "pin", "imp_per_kwh"))
        _within(_get(bus, at, "pin", int), at + ".pin", 0, 99)
        _within(_get(bus, at, "imp_per_kwh", int), at + ".imp_per_kwh", 100, 10000)
    else:
        _rtu(bus, at, board)


def _rtu(bus, at, board):
    _only(bus, at, ("kind", "uart", "baud", "parity", "stop"))
    uart = _get(bus, at, "uart", int)
    if str(uart) not in board.get("uarts", {}):
        raise ConfigError(
            "%s.uart: %d is not on this board; use one of %s"
            % (at, uart, ", ".join(sorted(board.get("uarts", {}))))
        )
    bus["baud"] = _get(bus, at, "baud", int, 9600)
    if bus["baud"] not in (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200):
        raise ConfigError("%s.baud: %d is unusual; use 1200 to 115200" % (at, bus["baud"]))
    bus["parity"] = _get(bus, at, "parity", str, "N")
    _one_of(bus["parity"], at + ".parity", ("N", "E", "O"))
    bus["stop"] = _get(bus, at, "stop", int, 1)
    _within(bus["stop"], at + ".stop", 1, 2)


def _evse(evse, at, board, buses, meters):
    _only(evse, at, _EVSE)
    n = _get(evse, at, "n", int)
    if str(n) not in board.get("evses", {}):
        raise ConfigError(
            "%s.n: %d is not on this board; use one of %s"
            % (at, n, ", ".join(sorted(board.get("evses", {}))))
        )
    meter = _get(evse, at, "meter", str)
    _one_of(_get(evse, at, "bus", str), at + ".bus", sorted(buses) or ("(none in buses)",))
    if buses[evse["bus"]]["kind"] == "pulse":
        _pulses(evse, at, board, buses)
    elif meter not in meters:
        raise ConfigError(
            "%s.meter: %r is unknown; `python -m tools.meter list` shows the known ones"
            % (at, meter)
        )
    evse["unit"] = _get(evse, at, "unit", int, 1)
    _within(evse["unit"], at + ".unit", 1, 247)
    _within(_get(evse, at, "max_a", int), at + ".max_a", 1, 80)
    evse["phases"] = _get(evse, at, "phases", int, 3)
    _one_of(str(evse["phases"]), at + ".phases", ("1", "3"))
    for key, default in (("require_meter", True), ("free_vend", False), ("plug_first", False)):
        evse[key] = _get(evse, at, key, bool, default)
    for key, choices in (
        ("on_power_return", ("resume", "stop")),
        ("clock_lost", ("hold", "release")),
        ("overstay", ("stop", "charge")),
    ):
        evse[key] = _get(evse, at, key, str, choices[0])
        _one_of(evse[key], "%s.%s" % (at, key), choices)


def _pulses(evse, at, board, buses):
    if evse["meter"] != "pulse":
        raise ConfigError(
            '%s.meter: %r sends no pulses; say "pulse" with this bus' % (at, evse["meter"])
        )
    pin = board["evses"][str(evse["n"])].get("pulse", {}).get("pin")
    if pin is None:
        raise ConfigError("%s.bus: this board has no pulse input for EVSE %d" % (at, evse["n"]))
    if buses[evse["bus"]]["pin"] != pin:
        raise ConfigError(
            "config.buses.%s.pin: %d is not the pulse input of EVSE %d, which is %d"
            % (evse["bus"], buses[evse["bus"]]["pin"], evse["n"], pin)
        )


def _key(where, at):
    _within(_get(where, at, "kid", int), at + ".kid", 1, 65535)
    where["key"] = _hex(where, at, "key")


def _hex(where, at, name):
    text = _get(where, at, name, str)
    if len(text) != 64 or [c for c in text if c not in "0123456789abcdefABCDEF"]:
        raise ConfigError(
            "%s.%s: must be 64 hex digits; `make provision PORT=...` makes them" % (at, name)
        )
    return bytes([int(text[i : i + 2], 16) for i in range(0, 64, 2)])


def load_secrets(text, config):
    """The checked identity that `config` needs: {"kid": int, "key": 32 bytes, ...}. Raises
    ConfigError."""
    secrets = parse(text, "secrets.json")
    _key(secrets, "secrets")
    following = _get(secrets, "secrets", "next", dict, None)
    if following is not None:
        _key(following, "secrets.next")
    if "chain" in secrets:
        secrets["chain"] = _hex(secrets, "secrets", "chain")
    for name, fields in (("mqtt", ("user", "password")), ("wifi", ("ssid", "password"))):
        part = _get(secrets, "secrets", name, dict, {})
        for field in fields:
            _get(part, "secrets." + name, field, str, "")
    check_tls(_get(secrets, "secrets", "tls", dict, {}), config["link"])
    return secrets


def check_tls(certificates, link):
    """Are the certificates there that the link needs? Raises ConfigError. What is in them, only
    the board's TLS can tell (`hal/tls.py`)."""
    at = "secrets.tls"
    _only(certificates, at, ("ca", "cert", "key", "at_s"))
    for field in ("ca", "cert", "key"):
        if "-" in _get(certificates, at, field, str, ""):
            raise ConfigError(
                "%s.%s: is PEM; must be base64 of DER, as `make provision` writes it" % (at, field)
            )
    _within(_get(certificates, at, "at_s", int, 0), at + ".at_s", 0, 1 << 33)
    if not link["insecure"] and not certificates.get("ca"):
        raise ConfigError(
            "secrets.tls.ca: is missing, and the link is over TLS; `make provision` takes it, or "
            'say "insecure": true in config.link on a network you trust'
        )
    if bool(certificates.get("cert")) != bool(certificates.get("key")):
        raise ConfigError("secrets.tls: cert and key belong together; give both or none")
