"""Check the signature of OCMF records: is this what the meter signed, byte for byte?

A record is `OCMF|payload|signature`; what is signed is the payload as it stands between the pipes.
A file holds one record, an OCPI CDR (or a list of them) with `signed_data`, or the XML of the
S.A.F.E. transparency software.

Limits: a valid signature says that the holder of the key signed this; that the key is the meter's
is only known from elsewhere (its display, its housing, a register of keys), so a key that came
along in the same file is reported as such. secp192k1 is in the format and not in OpenSSL.
Source: OCMF 1.4, section "Signature Section" and table 22 (github
SAFE-eV/OCMF-Open-Charge-Metering-Format OCMF-en.md).
"""

import base64
import binascii
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

VALID, INVALID, UNKNOWN = "valid", "invalid", "cannot tell"

_CURVES: dict[str, ec.EllipticCurve] = {
    curve.name.lower(): curve
    for curve in (
        ec.SECP192R1(), ec.SECP256K1(), ec.SECP256R1(), ec.SECP384R1(),
        ec.BrainpoolP256R1(), ec.BrainpoolP384R1(),
    )
}  # fmt: skip
_SYNONYMS = {"brainpool256r1": "brainpoolp256r1", "brainpool384r1": "brainpoolp384r1",
             "prime256v1": "secp256r1", "prime384v1": "secp384r1"}  # fmt: skip


@dataclass
class Found:
    """One record of a file, with what stands beside it."""

    text: bytes
    key: bytes | None = None
    nature: str | None = None
    session: str | None = None


def parts(record: bytes) -> tuple[bytes, dict[str, Any]]:
    """(payload as signed, signature section) of a record; ValueError where it is none."""
    header, _, rest = record.strip(b"\0\r\n\t ").partition(b"|")
    payload, pipe, section = rest.rpartition(b"|")
    if header != b"OCMF" or not pipe:
        raise ValueError("this is no OCMF record: it is OCMF|payload|signature")
    try:
        signature = json.loads(section)
    except ValueError as e:
        raise ValueError(f"the record's signature section is no JSON: {e}") from e
    if not isinstance(signature, dict) or not isinstance(signature.get("SD"), str):
        raise ValueError("the record's signature section has no SD, the signature itself")
    return payload, signature


def key_of(text: str) -> bytes:
    """A public key written in hex or base64: DER, or the bare point (04...)."""
    plain = "".join(text.split())
    try:
        return bytes.fromhex(plain)
    except ValueError:
        pass
    try:
        return base64.b64decode(plain, validate=True)
    except binascii.Error as e:
        raise ValueError("the public key is neither hex nor base64") from e


def verdict(record: bytes, key: bytes | None) -> tuple[str, str]:
    """(VALID, INVALID or UNKNOWN; why) for one record under a public key."""
    try:
        payload, section = parts(record)
    except ValueError as e:
        return INVALID, str(e)
    name = str(section.get("SA", "ECDSA-secp256r1-SHA256"))
    method, _, rest = name.partition("-")
    curve_name, _, hash_name = rest.rpartition("-")
    curve_name = curve_name.lower()
    curve_name = _SYNONYMS.get(curve_name, curve_name)
    if method != "ECDSA" or hash_name != "SHA256" or curve_name not in _CURVES:
        return UNKNOWN, f"signature algorithm {name} is not supported here"
    if section.get("SM", "application/x-der") != "application/x-der":
        return UNKNOWN, f"signature format {section['SM']} is not supported here"
    encoding = section.get("SE", "hex")
    if encoding not in ("hex", "base64"):
        return UNKNOWN, f"signature encoding {encoding} is not supported here"
    try:
        signature = (
            bytes.fromhex(section["SD"])
            if encoding == "hex"
            else base64.b64decode(section["SD"], validate=True)
        )
    except ValueError:
        return INVALID, f"the signature is not written in {encoding}"
    if key is None:
        return UNKNOWN, "no public key: give it with --key"
    try:
        if key[:1] == b"\x04":
            public: Any = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[curve_name], key)
        else:
            public = load_der_public_key(key)
    except (ValueError, UnsupportedAlgorithm):
        return UNKNOWN, "the public key cannot be read: DER, or the point on the record's curve"
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return UNKNOWN, "the public key is not one for ECDSA"
    if public.curve.name.lower() != curve_name:
        return UNKNOWN, f"the key is on {public.curve.name}, the record is signed on {curve_name}"
    try:
        public.verify(signature, payload, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return INVALID, "the payload, the signature and the key do not belong together"
    return VALID, f"signed by the holder of the key, {name}"


def records(content: bytes) -> list[Found]:
    """The OCMF records of a file; ValueError where there are none."""
    start = content.lstrip(b"\xef\xbb\xbf\r\n\t ")
    if start.startswith(b"OCMF|"):
        found = [Found(line) for line in start.splitlines() if line.strip()]
        # a record that its editor has wrapped is still one
        found = found if all(f.text.startswith(b"OCMF|") for f in found) else [Found(start)]
    elif start.startswith(b"<"):
        found = list(_of_xml(start))
    else:
        try:
            found = list(_of_cdrs(json.loads(content)))
        except UnicodeDecodeError as e:
            raise ValueError("the file is no text") from e
        except json.JSONDecodeError as e:
            raise ValueError("the file is no OCMF record, no CDR and no XML of records") from e
    if not found:
        raise ValueError("the file holds no OCMF record")
    return found


def _of_xml(content: bytes) -> Iterator[Found]:
    if b"<!" in content.replace(b"<!--", b""):
        raise ValueError("the XML declares things of its own: not read")
    try:
        root = ET.fromstring(content)
    except ET.ParseError as e:
        raise ValueError(f"the XML cannot be read: {e}") from e
    for value in root.iter("value"):
        text = (value.findtext("signedData") or "").strip()
        key = value.findtext("publicKey")
        if text.startswith("OCMF|"):
            nature = (value.get("context") or "").rpartition(".")[2] or None
            yield Found(
                text.encode(), key_of(key) if key else None, nature, value.get("transactionId")
            )


def _of_cdrs(content: Any) -> Iterator[Found]:
    for cdr in content if isinstance(content, list) else [content]:
        if isinstance(cdr, dict) and isinstance(cdr.get("data"), (dict, list)):
            yield from _of_cdrs(cdr["data"])  # an OCPI answer around it
            continue
        signed = cdr.get("signed_data") if isinstance(cdr, dict) else None
        if not isinstance(signed, dict):
            continue
        if str(signed.get("encoding_method")).upper() != "OCMF":
            raise ValueError(
                f"signed_data is {signed.get('encoding_method')!r}; only OCMF is checked"
            )
        key = signed.get("public_key")
        for value in signed.get("signed_values", []):
            try:
                text = base64.b64decode(value["signed_data"], validate=True)
            except (KeyError, TypeError, ValueError) as e:
                raise ValueError("signed_values.signed_data is no base64") from e
            yield Found(text, key_of(key) if key else None, value.get("nature"), cdr.get("id"))


def reading(record: bytes) -> dict[str, Any]:
    """What the record says, for people: meter, page and readings as written; {} if unreadable."""
    try:
        payload = json.loads(parts(record)[0], parse_float=str)
        rows = payload.get("RD", [])
        shown = {"meter": payload.get("MS"), "page": payload.get("PG"), "id": payload.get("ID")}
        return shown | {"readings": [[r.get(k) for k in ("TX", "TM", "RV", "RU")] for r in rows]}
    except (ValueError, AttributeError, TypeError):
        return {}
