"""`make provision PORT= STATION=`: an identity and its secrets onto a board, once.

Draws the station's key (32 random bytes) and writes it to two places: `/secrets.json` on the
board, and a file of mode 600 with the entry for the gateway's configuration:

    {"stations": {"DEMO-1": {"kid": 1, "key": "<64 hex digits>"}}}

Whoever has this key can speak as the station. It is printed nowhere; delete the file once the
gateway has it. A board that has an identity keeps it unless --replace is given; the new key then
has the next `kid`, and `chain` stands beside it, the key under which the board's journal began.
Passwords are read from files, so that they stay out of the shell's history.

A link over TLS wants the CA that issued the server's certificate (`--ca`, PEM, one or several),
and, where the server asks for it, a certificate with its key (`--cert`, `--cert-key`). They are
checked here and written as the board reads them, with the time of now: a board without a battery
takes it for the least it can be when it checks its first certificate.

Limits: the board keeps its secrets in plain text; whoever holds the board can read them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from tools.deploy import Board, DeployFailed, Refused, check_port

READ_IDENTITY = """
import json, hashlib, os
from binascii import hexlify, unhexlify
try:
    with open('/secrets.json') as f:
        s = json.load(f)
    k = unhexlify(s['key'])
    k += bytes(64 - len(k))
    h = lambda n, m: hashlib.sha256(bytes([b ^ n for b in k]) + m).digest()
    c = hexlify(h(0x5c, h(0x36, b'wattlock/1/chain/%s'))).decode()
    print('kid', s.get('kid', 0), s.get('chain', c) if 'journal' in os.listdir('/') else '')
except OSError:
    print('none')
except (ValueError, KeyError, TypeError):
    print('kid', 0)
"""


def secret_from(name: str, what: str) -> str:
    try:
        text = Path(name).read_text().strip("\r\n")
    except OSError as error:
        raise Refused(f"{what}: {name!r}: {error.strerror}; name a file with one line") from error
    if not text or "\n" in text:
        raise Refused(f"{what}: {name!r} must hold one line, the password")
    return text


def credentials(user: str, file: str, name: str, what: str) -> dict[str, Any]:
    """{what: {name: user, "password": ...}}, or {} when neither is given."""
    if not user and not file:
        return {}
    if not user or not file:
        raise Refused(f"--{what}: a name and a password file belong together; give both or none")
    return {what: {name: user, "password": secret_from(file, f"--{what}-password-file")}}


def certificates(ca: str, cert: str, key: str) -> dict[str, Any]:
    """{"tls": ...} of PEM files, or {}; base64 of DER, as the chip's Mbed TLS takes it."""
    if not ca:
        if cert or key:
            raise Refused("--cert: goes with --ca, the CA of the server's certificate; give it")
        return {}
    if bool(cert) != bool(key):
        raise Refused("--cert: goes with --cert-key; give both or none")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca)
        if cert:
            context.load_cert_chain(cert, key, lambda: "")
    except (OSError, ValueError) as error:
        raise Refused(
            f"--ca, --cert, --cert-key: {error}; PEM files, the key without a passphrase and the "
            "certificate's own"
        ) from error
    tls: dict[str, Any] = {"ca": " ".join(_ders(ca, "CERTIFICATE")), "at_s": int(time.time())}
    if cert:
        tls["cert"] = _ders(cert, "CERTIFICATE")[0]
        tls["key"] = _ders(key, "PRIVATE KEY")[0]
    return {"tls": tls}


def _ders(file: str, kind: str) -> list[str]:
    """The base64 in each block of a PEM file that is of this kind."""
    blocks = re.findall(rf"-----BEGIN [A-Z ]*{kind}-----([^-]*)-----END", Path(file).read_text())
    return ["".join(block.split()) for block in blocks]


def provision(port: str, station_id: str, out: Path, extra: dict[str, Any], replace: bool) -> None:
    """Draw a key and write it to the board and to `out`. Raises Refused or DeployFailed."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,36}", station_id):
        raise Refused(f"STATION: {station_id!r} must be 1 to 36 of A-Z a-z 0-9 - _")
    if out.exists():
        raise Refused(f"--out: {out} is there already; move it away or name another file")
    check_port(port)
    board = Board(port)
    try:
        board.start()
        said = board.execute(READ_IDENTITY % station_id).split()
        if said[:1] == ["kid"] and not replace:
            raise Refused(
                f"{port} has an identity (key id {said[1]}); with --replace it gets a new one, "
                "and the gateway must learn it before the board is heard again"
            )
        kid = int(said[1]) + 1 if said[:1] == ["kid"] else 1
        identity: dict[str, Any] = {"kid": kid, "key": secrets.token_hex(32)}
        if len(said) == 3:
            identity["chain"] = said[2]  # the journal that is there goes on
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"stations": {station_id: identity}}, file, indent=1)
            file.write("\n")
        try:
            board.replace({"/secrets.json": json.dumps(identity | extra).encode()})
        except DeployFailed:
            out.unlink()
            raise
    finally:
        if board.touched:
            with contextlib.suppress(DeployFailed):
                board.reset()
    print(f"{station_id} has key {kid}. For the gateway's configuration: {out}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.provision", description="An identity and secrets onto a board."
    )
    parser.add_argument("--port", required=True, help="serial port of the board")
    parser.add_argument("--station", required=True, help="station_id, as in config.json")
    parser.add_argument("--wifi", default="", metavar="SSID")
    parser.add_argument("--wifi-password-file", default="", metavar="FILE")
    parser.add_argument("--mqtt-user", default="", metavar="USER")
    parser.add_argument("--mqtt-password-file", default="", metavar="FILE")
    parser.add_argument("--ca", default="", metavar="FILE", help="CA of the server, PEM")
    parser.add_argument("--cert", default="", metavar="FILE", help="the board's own, PEM")
    parser.add_argument("--cert-key", default="", metavar="FILE", help="its key, PEM")
    parser.add_argument("--out", type=Path, help="default: STATION.station.json")
    parser.add_argument("--replace", action="store_true", help="replace an existing identity")
    options = parser.parse_args(arguments)
    try:
        extra = credentials(options.wifi, options.wifi_password_file, "ssid", "wifi")
        extra |= credentials(options.mqtt_user, options.mqtt_password_file, "user", "mqtt")
        extra |= certificates(options.ca, options.cert, options.cert_key)
        out = options.out or Path(f"{options.station}.station.json")
        provision(options.port, options.station, out, extra, options.replace)
    except Refused as error:
        print(f"provision: refused: {error}", file=sys.stderr)
        return 1
    except (DeployFailed, OSError) as error:
        print(f"provision: failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
