"""Certificates for tests and benches: a private CA and what it, or somebody else, issues.

Made with `cryptography` when they are wanted, P-256 like a site's own, valid around this
machine's own time: the VM's Mbed TLS goes by it.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)
YEAR = 365 * DAY


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(encoding, form, serialization.NoEncryption()).decode()

    @property
    def der(self) -> str:
        """base64 of DER, as a provisioned board holds it."""
        raw = self.certificate.public_bytes(serialization.Encoding.DER)
        return base64.b64encode(raw).decode()

    @property
    def key_der(self) -> str:
        encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
        raw = self.key.private_bytes(encoding, form, serialization.NoEncryption())
        return base64.b64encode(raw).decode()

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """(certificate, key) as PEM files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = folder / f"{name}.crt", folder / f"{name}.key"
        files[0].write_text(self.pem)
        files[1].write_text(self.key_pem)
        return files


class Authority:
    """A CA of one's own."""

    def __init__(self, name: str = "test CA") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(
            _name(name), self.key, -YEAR, 10 * YEAR,
            [(x509.BasicConstraints(ca=True, path_length=None), True)], _name(name),
        )  # fmt: skip

    @property
    def issued(self) -> Issued:
        return Issued(self.certificate, self.key)

    def issue(
        self, *hosts: str, begins: dt.timedelta = -DAY, lasts: dt.timedelta = 90 * DAY,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> Issued:  # fmt: skip
        """For servers `hosts` (names or addresses); without, for a client. `key`: its own, where
        it has one already."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True)
        ]
        if names:
            extensions.append((x509.SubjectAlternativeName(names), False))
        subject = _name(hosts[0] if hosts else "client")
        certificate = self._sign(
            subject, key, begins, lasts, extensions, self.certificate.subject
        )
        return Issued(certificate, key)

    def revoking(self, *issued: Issued) -> str:
        """A list of revoked certificates (RFC 5280, 5), in PEM."""
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - DAY)
            .next_update(now + DAY)
        )
        for one in issued:
            serial = one.certificate.serial_number
            row = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - DAY)
            builder = builder.add_revoked_certificate(row.build())
        crl = builder.sign(self.key, hashes.SHA256())
        return crl.public_bytes(serialization.Encoding.PEM).decode()

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, begins: dt.timedelta,
        lasts: dt.timedelta, extensions: list[tuple[x509.ExtensionType, bool]],
        issuer: x509.Name,
    ) -> x509.Certificate:  # fmt: skip
        begin = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5) + begins
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + lasts)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())
