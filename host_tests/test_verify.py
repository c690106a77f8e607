"""OCMF records: the published ones of meters and of the transparency software, and ones made here
with every curve of the format."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from tools.meter import __main__ as tool
from tools.meter import verify

PUBLISHED = json.loads((Path(__file__).parent / "data" / "ocmf.json").read_text())
BSM = PUBLISHED[0]


def made(curve: ec.EllipticCurve, name: str, encoding: str = "hex") -> tuple[bytes, bytes]:
    """(record, key in DER) signed here; without a name the record tells no algorithm."""
    private = ec.generate_private_key(curve)
    payload = '{"FV":"1.0","ID":"ä","RD":[{"TX":"B","RV":0.10,"RU":"kWh"}]}'.encode()
    raw = private.sign(payload, ec.ECDSA(SHA256()))
    section = {"SA": f"ECDSA-{name}-SHA256"} if name else {}
    section["SD"] = raw.hex() if encoding == "hex" else base64.b64encode(raw).decode()
    if encoding != "hex":
        section["SE"] = encoding
    key = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return b"OCMF|" + payload + b"|" + json.dumps(section).encode(), key


@pytest.mark.parametrize("p", PUBLISHED, ids=lambda p: p["source"].rsplit("/", 1)[-1])
def test_published_records_verify_as_their_publishers_say(p):
    found, why = verify.verdict(p["record"].encode(), verify.key_of(p["key"]))
    assert found == ("valid" if p["valid"] else "invalid"), why
    if p["valid"]:
        assert p["curve"].lower() in why.lower()


@pytest.mark.parametrize("p", [p for p in PUBLISHED if p["valid"]], ids=lambda p: p["curve"])
def test_any_changed_byte_of_the_payload_is_invalid(p):
    record = p["record"].encode()
    payload, _ = verify.parts(record)
    start = record.index(payload)
    for at in range(start, start + len(payload), 37):
        changed = record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]
        assert verify.verdict(changed, verify.key_of(p["key"]))[0] == "invalid", at
    # white space is nothing to JSON and everything to a signature
    spaced = record.replace(b"|{", b"|{ ", 1)
    assert verify.verdict(spaced, verify.key_of(p["key"]))[0] == "invalid"


@pytest.mark.parametrize(
    ("curve", "name"),
    [
        (ec.SECP192R1(), "secp192r1"),
        (ec.SECP256K1(), "secp256k1"),
        (ec.SECP256R1(), "secp256r1"),
        (ec.SECP256R1(), ""),  # the format's default
        (ec.SECP384R1(), "secp384r1"),
        (ec.BrainpoolP256R1(), "brainpool256r1"),  # OCMF's own spelling
        (ec.BrainpoolP384R1(), "brainpool384r1"),
        (ec.BrainpoolP384R1(), "brainpoolP384r1"),  # and that of the meters
    ],
    ids=lambda x: getattr(x, "name", x),
)
@pytest.mark.parametrize("encoding", ("hex", "base64"))
def test_every_curve_and_encoding(curve, name, encoding):
    record, key = made(curve, name, encoding)
    assert verify.verdict(record, key)[0] == "valid"
    public = serialization.load_der_public_key(key)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    point = public.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    assert verify.verdict(record, point)[0] == "valid", "the bare point will do"
    other = made(curve, name)[1]
    assert verify.verdict(record, other)[0] == "invalid"


def test_what_cannot_be_told_is_neither_valid_nor_invalid():
    record, key = made(ec.SECP256R1(), "secp256r1")
    assert verify.verdict(record, None)[0] == "cannot tell"
    assert verify.verdict(record, b"\x30\x03\x02\x01\x01")[0] == "cannot tell"
    assert verify.verdict(record, made(ec.SECP256K1(), "secp256k1")[1])[0] == "cannot tell"
    for algorithm in ("ECDSA-secp192k1-SHA256", "RSA-2048-SHA256", "ECDSA-secp256r1-SHA512", "?"):
        other = record.replace(b"ECDSA-secp256r1-SHA256", algorithm.encode())
        found, why = verify.verdict(other, key)
        assert found == "cannot tell" and algorithm in why


@pytest.mark.parametrize(
    "text", ("", "OCMF", "OCMF|{}", "OCMF|{}|", "OCMF|{}|{}", "OCMF|{}|[]", 'OCMX|{}|{"SD":"00"}')
)
def test_what_is_no_record_is_not_valid(text):
    assert verify.verdict(text.encode(), None)[0] == "invalid"


# -- as a command --------------------------------------------------------------------------------


def run(monkeypatch, capsys, *args) -> tuple[int, list[dict], str]:
    monkeypatch.setattr("sys.argv", ["meter", "verify", *map(str, args)])
    code = tool.main()
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_the_command_says_what_it_knows_and_ends_accordingly(tmp_path, monkeypatch, capsys):
    file = tmp_path / "record.txt"
    file.write_text(BSM["record"] + "\n")
    code, told, _ = run(monkeypatch, capsys, file, "--key", BSM["key"])
    assert (code, told[0]["verdict"], told[0]["key"]) == (0, "valid", "given")
    assert told[0]["meter"] == "001BZR1521070006"
    # bsm-python doc/examples/ev-charging.md: Epoch 1657267228 s, TZO 120 min, RCR 0 Wh
    assert told[0]["readings"] == [["B", "2022-07-08T10:00:28,000+0200 S", "0.00", "kWh"]]
    code, told, _ = run(monkeypatch, capsys, file)
    assert (code, told[0]["verdict"], told[0]["key"]) == (3, "cannot tell", "none")
    key = tmp_path / "key"
    key.write_text(base64.b64encode(bytes.fromhex(BSM["key"])).decode())
    file.write_text(BSM["record"].replace('"RV":0.00', '"RV":0.01'))
    code, told, _ = run(monkeypatch, capsys, file, "--key", key)
    assert (code, told[0]["verdict"]) == (1, "invalid")


def test_a_cdr_and_a_transparency_file_bring_their_records_and_keys(tmp_path, monkeypatch, capsys):
    file = tmp_path / "cdr.json"
    value = {"nature": "End", "plain_data": "", "signed_data": base64.b64encode(
        BSM["record"].encode()).decode()}  # fmt: skip
    public = base64.b64encode(bytes.fromhex(BSM["key"])).decode()
    signed = {"encoding_method": "OCMF", "public_key": public, "signed_values": [value]}
    file.write_text(json.dumps({"data": [{"id": "S1", "signed_data": signed}]}))
    code, told, _ = run(monkeypatch, capsys, file)
    assert (code, told[0]["session"], told[0]["key"]) == (0, "S1", "from the same file")
    file.write_text(
        "<values>"
        + "".join(
            f'<value context="Transaction.End"><signedData>{p["record"]}</signedData>'
            f"<publicKey>{p['key']}</publicKey></value>"
            for p in PUBLISHED[:2]
        )
        + "</values>"
    )
    code, told, _ = run(monkeypatch, capsys, file)
    assert (code, [t["verdict"] for t in told], told[0]["nature"]) == (0, ["valid"] * 2, "End")


@pytest.mark.parametrize(
    "content",
    ("", "nothing", "{}", "[1]", "<values/>", "<values>", "\xff\xfe", '{"signed_data":{"a":1}}',
     '<!DOCTYPE v [<!ENTITY a "b">]><values/>'),
)  # fmt: skip
def test_a_file_without_a_record_is_an_error(tmp_path, monkeypatch, capsys, content):
    file = tmp_path / "f"
    file.write_bytes(content.encode("latin-1"))
    code, told, err = run(monkeypatch, capsys, file)
    assert (code, told) == (2, []) and err.startswith("meter: ")
    code, _, err = run(monkeypatch, capsys, tmp_path / "missing")
    assert code == 2 and "missing" in err


def test_the_transcripts_key_is_the_key_of_the_published_record():
    """Two documents of the maker, one meter: snapshots.md shows the key, the XML carries it."""
    (data,) = shown("meta3 + public key")
    assert data[2 * 52 : 2 * 52 + 91] == bytes.fromhex(BSM["key"])


def test_the_transcripts_of_a_record_are_the_published_one():
    """ocmf.md shows it twice, once as the registers that four reads bring."""
    record = b"".join(shown("OCMF current text part")).rstrip(b"\0")
    (published,) = [p for p in PUBLISHED if p["source"].endswith("doc/examples/ocmf.md")]
    assert record.decode() == published["record"]
    assert verify.verdict(record, bytes.fromhex(BSM["key"]))[0] == "valid"


def shown(title: str) -> list[bytes]:
    """The registers in the replies of these transcripts."""
    transcripts = json.loads((Path(__file__).parent / "data" / "transcripts.json").read_text())
    replies = [bytes.fromhex(t["response"]) for t in transcripts if t["title"].startswith(title)]
    return [reply[3:-2] for reply in replies]
