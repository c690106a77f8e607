"""Certificates as `make provision` writes them: from PEM files, checked, as base64 of DER."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from tools.certificates import Authority
from tools.deploy import Refused
from tools.provision import certificates


def test_pem_files_become_what_the_board_reads(tmp_path: Path) -> None:
    one, two = Authority("one"), Authority("two")
    client = one.issue()
    (tmp_path / "ca.pem").write_text(one.issued.pem + two.issued.pem)
    cert, key = client.write(tmp_path, "client")
    tls = certificates(str(tmp_path / "ca.pem"), str(cert), str(key))["tls"]
    found = [x509.load_der_x509_certificate(base64.b64decode(text)) for text in tls["ca"].split()]
    assert found == [one.certificate, two.certificate]
    assert x509.load_der_x509_certificate(base64.b64decode(tls["cert"])) == client.certificate
    held = load_der_private_key(base64.b64decode(tls["key"]), None)
    assert held.public_key() == client.key.public_key()
    assert 0 <= time.time() - tls["at_s"] < 60
    assert certificates("", "", "") == {}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    ca = Authority()
    file, _ = ca.issued.write(tmp_path, "ca")
    cert, _ = ca.issue().write(tmp_path, "one")
    _, other = ca.issue().write(tmp_path, "two")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate")
    for args, said in (
        (("", str(cert), str(other)), "--ca"),
        ((str(file), str(cert), ""), "--cert-key"),
        ((str(nothing), "", ""), "PEM"),
        ((str(tmp_path / "gone.pem"), "", ""), "PEM"),
        ((str(file), str(cert), str(other)), "the certificate's own"),
    ):
        with pytest.raises(Refused, match=said):
            certificates(*args)
