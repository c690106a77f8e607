"""Configuration errors name the field, the value and the remedy (issue: bad input)."""

import json

from wattlock import config
from wattlock.errors import ConfigError

BOARD = {
    "board": "virtual",
    "uarts": {"1": {}, "2": {}},
    "evses": {"1": {}, "2": {}},
}
METERS = ("eastron_sdm630_v2", "abb_b23")
EVSE = {
    "n": 1,
    "meter": "eastron_sdm630_v2",
    "bus": "rs485",
    "unit": 1,
    "max_a": 32,
    "phases": 3,
    "require_meter": True,
    "on_power_return": "resume",
    "clock_lost": "hold",
    "free_vend": False,
    "plug_first": False,
    "overstay": "stop",
}


def whole():
    return {
        "station_id": "DEMO-1",
        "board": "virtual",
        "network": {"kind": "wifi"},
        "link": {
            "kind": "mqtt",
            "host": "127.0.0.1",
            "port": 1883,
            "insecure": True,
            "sntp": "pool.ntp.org",
        },
        "buses": {"rs485": {"kind": "rtu", "uart": 1, "baud": 9600, "parity": "N", "stop": 1}},
        "evses": [dict(EVSE)],
        "live_s": 60,
        "bookings": False,
        "offline_cards": "whitelist",
    }


def at(site, path):
    """(the container, the key) that a path like evses.0.max_a names."""
    keys = path.split(".")
    for key in keys[:-1]:
        site = site[int(key)] if isinstance(site, list) else site[key]
    return site, int(keys[-1]) if isinstance(site, list) else keys[-1]


def load(site):
    text = site if isinstance(site, str) else json.dumps(site)
    return config.load(text, BOARD, METERS)


def error(site):
    try:
        load(site)
    except ConfigError as e:
        return str(e)
    raise AssertionError("accepted: " + json.dumps(site))


def changed(path, value):
    site = whole()
    where, key = at(site, path)
    where[key] = value
    return site


def shown(path):
    """The name of a field as errors give it."""
    return ("config." + path).replace(".0", "[0]")


def test_a_whole_one_is_taken_as_it_is():
    assert load(whole()) == whole()


def test_defaults():
    site = whole()
    for path in (
        "network live_s bookings evses.0.overstay buses.rs485.baud buses.rs485.parity "
        "buses.rs485.stop evses.0.unit evses.0.phases "
        "evses.0.require_meter evses.0.on_power_return evses.0.clock_lost evses.0.free_vend "
        "evses.0.plug_first"
    ).split():
        where, key = at(site, path)
        del where[key]
    assert load(site) == whole()
    site = whole()
    del site["link"]["port"]
    assert load(site)["link"]["port"] == 8883  # MQTT over TLS, IANA
    del site["offline_cards"]
    assert load(site)["offline_cards"] == "refuse"  # nobody starts unknown unless a site says so


def test_the_network():
    """Ethernet where the board has it, and it may be what the board has by default."""
    site = whole()
    site["network"]["kind"] = "lan"
    assert error(site) == "config.network.kind: 'lan' is unknown; use one of wifi"
    board = dict(BOARD, lan={"phy": "LAN8720"})
    assert config.load(json.dumps(site), board, METERS) == site
    board["net"] = "lan"
    del site["network"]
    assert config.load(json.dumps(site), board, METERS)["network"] == {"kind": "lan"}
    site["network"] = {"kind": "wifi", "channel": 6}
    assert error(site).startswith("config.network.channel: is unknown")
    site["network"] = {"kind": "wifi"}
    assert config.load(json.dumps(site), board, METERS)["network"]["kind"] == "wifi"


def test_missing():
    for path in (
        "station_id board link evses link.kind link.host buses.rs485.kind "
        "buses.rs485.uart evses.0.n evses.0.meter evses.0.bus evses.0.max_a"
    ).split():
        site = whole()
        where, key = at(site, path)
        del where[key]
        text = error(site)
        assert shown(path) in text, (path, text)
        assert "add it" in text, text


def test_wrong_type():
    strings = (
        "station_id board link.kind link.host buses.rs485.kind buses.rs485.parity evses.0.meter "
        "evses.0.bus evses.0.on_power_return evses.0.clock_lost evses.0.overstay"
    ).split()
    numbers = (
        "link.port buses.rs485.uart buses.rs485.baud buses.rs485.stop evses.0.n evses.0.unit "
        "evses.0.max_a evses.0.phases live_s"
    ).split()
    switches = (
        "link.insecure evses.0.require_meter evses.0.free_vend evses.0.plug_first bookings"
    ).split()
    for paths, values, remedy in (
        (strings, (7, None, True, [], {}), "string"),
        (numbers, ("7", None, True, [], {}, 1.5), "whole number"),
        (switches, (1, 0, None, "true", []), "true or false"),
        (("link", "buses", "buses.rs485"), (7, None, "x", []), "object"),
        (("evses",), (7, None, "x", {}), "list"),
        (("evses.0",), (7, None, "x", []), "object"),
    ):
        for path in paths:
            for value in values:
                text = error(changed(path, value))
                assert shown(path) in text and remedy in text, (path, value, text)


def test_out_of_range():
    for path, value, remedy in (
        ("station_id", "", "1 to 36"),
        ("station_id", "x" * 37, "1 to 36"),
        ("station_id", "a/b", "A-Z a-z 0-9"),
        ("station_id", "a b", "A-Z a-z 0-9"),
        ("board", "esp32", "virtual"),
        ("link.kind", "coap", "mqtt, http"),
        ("link.host", "", "name the broker"),
        ("link.port", 0, "1 to 65535"),
        ("link.port", 65536, "1 to 65535"),
        ("buses.rs485.kind", "can", "rtu"),
        ("buses.rs485.uart", 3, "1, 2"),
        ("buses.rs485.baud", 9601, "1200 to 115200"),
        ("buses.rs485.parity", "X", "N, E, O"),
        ("buses.rs485.stop", 3, "1 to 2"),
        ("evses.0.n", 3, "1, 2"),
        ("evses.0.meter", "sdm6300", "tools.meter list"),
        ("evses.0.bus", "can", "rs485"),
        ("evses.0.unit", 0, "1 to 247"),
        ("evses.0.unit", 248, "1 to 247"),
        ("evses.0.max_a", 0, "1 to"),
        ("evses.0.max_a", 1000, "1 to"),
        ("evses.0.phases", 4, "1, 3"),
        ("evses.0.on_power_return", "start", "resume, stop"),
        ("evses.0.clock_lost", "keep", "hold, release"),
        ("live_s", 0, "1 to 3600"),
        ("live_s", 3601, "1 to 3600"),
        ("offline_cards", "allow", "whitelist"),
    ):
        text = error(changed(path, value))
        assert shown(path) in text and remedy in text, (path, value, text)
        assert value in ("", False) or str(value) in text, text


def test_unknown_fields():
    for path in ("live", "link.hots", "buses.rs485.bauds", "evses.0.require_metre"):
        text = error(changed(path, True))
        assert shown(path) in text and "use one of" in text


def test_evses_that_do_not_go_together():
    site = whole()
    site["evses"].append(dict(EVSE, unit=2))
    assert "config.evses[1].n: 1" in error(site)
    site["evses"][1]["n"] = 2
    assert len(load(site)["evses"]) == 2
    site["evses"][1]["unit"] = 1
    text = error(site)
    assert "config.evses[1].unit: 1" in text and "EVSE 1" in text
    site = whole()
    site["evses"] = []
    assert "config.evses: is empty" in error(site)
    site = whole()
    del site["buses"]
    assert "config.evses[0].bus" in error(site)


def test_a_meter_over_tcp():
    site = changed("buses.rs485", {"kind": "tcp", "host": "192.0.2.7"})
    assert load(site)["buses"]["rs485"]["port"] == 502  # IANA
    for key, value, remedy in (
        ("host", "", "address"),
        ("host", "meter.local", "address"),
        ("host", "192.0.2", "address"),
        ("host", "192.0.2.256", "address"),
        ("host", "192.0.2.7.1", "address"),
        ("host", "192.0..7", "address"),
        ("host", 7, "string"),
        ("port", 0, "1 to 65535"),
        ("baud", 9600, "unknown"),
    ):
        bus = {"kind": "tcp", "host": "192.0.2.7", "port": 502}
        bus[key] = value
        text = error(changed("buses.rs485", bus))
        assert "config.buses.rs485." + key in text and remedy in text, text


def pulses(pin=27, imp=1000, meter="pulse"):
    site = whole()
    site["buses"]["rs485"] = {"kind": "pulse", "pin": pin, "imp_per_kwh": imp}
    site["evses"][0]["meter"] = meter
    return site


def test_pulses():
    board = dict(BOARD, evses={"1": {"pulse": {"pin": 27}}, "2": {}})

    def said(site):
        try:
            config.load(json.dumps(site), board, METERS)
        except ConfigError as e:
            return str(e)

    assert said(pulses()) is None
    assert said(pulses(imp=100)) is None and said(pulses(imp=10000)) is None
    for site, field, remedy in (
        (pulses(imp=99), "buses.rs485.imp_per_kwh", "100 to 10000"),
        (pulses(imp=10001), "buses.rs485.imp_per_kwh", "100 to 10000"),
        (pulses(imp="1000"), "buses.rs485.imp_per_kwh", "whole number"),
        (pulses(pin=26), "buses.rs485.pin", "27"),
        (pulses(meter="abb_b23"), "evses[0].meter", "pulse"),
        (changed("evses.0.meter", "pulse"), "evses[0].meter", "unknown"),
    ):
        text = said(site)
        assert text and "config." + field in text and remedy in text, text
    site = pulses()
    site["evses"][0]["n"] = 2
    assert "no pulse input for EVSE 2" in said(site)


def test_no_json():
    for text in ("", "{'a': 1}", "nonsense"):  # MicroPython takes "{]" for "{}"
        assert "config.json" in error(text) and "JSON" in error(text)
    for text in ("[]", "7", "null", '"x"'):
        assert "config.json: must be one JSON object" in error(text)


SECRET = "00112233445566778899aabbccddeeff" * 2


def over_http(url, **fields):
    site = whole()
    site["link"] = {"kind": "http", "url": url}
    site["link"].update(fields)
    return site


def test_the_http_link():
    for url, insecure, host, port, path in (
        ("https://gw.example", False, "gw.example", 443, ""),
        ("https://gw.example/", False, "gw.example", 443, ""),
        ("https://gw.example:8443/a/b/", False, "gw.example", 8443, "/a/b"),
        ("http://192.0.2.7:8020", True, "192.0.2.7", 8020, ""),
        ("http://gw.example/x", True, "gw.example", 80, "/x"),
    ):
        site = over_http(url, insecure=insecure)
        del site["live_s"]
        got = load(site)
        assert got["live_s"] == 10  # a command waits for the next picture
        link = got["link"]
        assert (link["host"], link["port"], link["path"]) == (host, port, path)
    for url in (
        "",
        "gw.example",
        "ftp://x",
        "https://",
        "https://:1",
        "https://a:b",
        "https://x:0x1",
        "https://x:99999",
        "https://me@x",
        "https://x/a b",
        "https://x/?a",
        "https://x/#a",
    ):
        text = error(over_http(url))
        assert "config.link.url" in text and "like https://" in text, text
    for url, insecure in (("http://gw.example", False), ("https://gw.example", True)):
        text = error(over_http(url, insecure=insecure))
        assert "config.link.url" in text and '"insecure": true' in text, text
    assert "config.link.host" in error(over_http("https://x", host="x"))


def test_tls_wants_certificates():
    site = whole()
    del site["link"]["insecure"]
    over_tls = load(site)
    assert over_tls["link"]["insecure"] is False

    def said(**tls):
        try:
            config.load_secrets(json.dumps({"kid": 1, "key": SECRET, "tls": tls}), over_tls)
        except ConfigError as e:
            return str(e)
        return None

    assert said(ca="MIIB") is None
    assert said(ca="MIIB", cert="MIIC", key="MIID", at_s=1790000000) is None
    for tls, field, remedy in (
        ({}, "secrets.tls.ca", "make provision"),
        ({"ca": ""}, "secrets.tls.ca", "insecure"),
        ({"ca": 7}, "secrets.tls.ca", "string"),
        ({"ca": "-----BEGIN CERTIFICATE-----"}, "secrets.tls.ca", "make provision"),
        ({"ca": "MIIB", "cert": "MIIC"}, "secrets.tls", "both or none"),
        ({"ca": "MIIB", "key": "MIID"}, "secrets.tls", "both or none"),
        ({"ca": "MIIB", "at_s": -1}, "secrets.tls.at_s", "out of range"),
        ({"ca": "MIIB", "cart": "MIIC"}, "secrets.tls.cart", "ca, cert, key"),
    ):
        text = said(**tls)
        assert text and field in text and remedy in text, text
        assert "MIID" not in text


def secrets_error(**changes):
    secrets = {"kid": 1, "key": SECRET}
    secrets.update(changes)
    secrets = {k: secrets[k] for k in secrets if secrets[k] != "gone"}
    try:
        config.load_secrets(json.dumps(secrets), load(whole()))
    except ConfigError as e:
        return str(e)
    raise AssertionError("accepted")


def test_secrets():
    plain = load(whole())
    good = config.load_secrets(json.dumps({"kid": 1, "key": SECRET, "wifi": {"ssid": "x"}}), plain)
    assert good["key"] == bytes([0x11 * i for i in range(16)]) * 2 and good["kid"] == 1
    loud = config.load_secrets(json.dumps({"kid": 1, "key": SECRET.upper()}), plain)
    assert loud["key"] == good["key"]
    for changes, field in (
        ({"kid": "gone"}, "secrets.kid"),
        ({"kid": "1"}, "secrets.kid"),
        ({"kid": 0}, "secrets.kid"),
        ({"key": "gone"}, "secrets.key"),
        ({"key": 7}, "secrets.key"),
        ({"key": SECRET[:-1]}, "secrets.key"),
        ({"key": SECRET + "0"}, "secrets.key"),
        ({"key": SECRET[:-1] + "g"}, "secrets.key"),
        ({"key": "+1" * 32}, "secrets.key"),
        ({"wifi": "home"}, "secrets.wifi"),
        ({"wifi": {"ssid": 7}}, "secrets.wifi.ssid"),
        ({"mqtt": {"user": "a", "password": 12345678}}, "secrets.mqtt.password"),
    ):
        text = secrets_error(**changes)
        assert field in text
        assert "12345678" not in text and SECRET[:8] not in text  # never a secret
