"""The signing side of the meters that sign: their registers, their procedure, their OCMF record.

Each is a table of registers that reacts to what is written, as the maker's document says (the
firmware's `sign_*.py` name them). A record is made from what was written and what the meter shows,
and signed with a key made here; or `published` records are handed out instead, as they are.

`fault`: "fails" (the meter reports an error), "hangs" (it never finishes), None.
Limits: the parts of a record that do not matter to anybody's arithmetic are constants.
"""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

if TYPE_CHECKING:
    from .simulator import SimulatedMeter

Words = dict[int, int]


def to_words(data: bytes) -> list[int]:
    data += bytes(len(data) % 2)
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


class Signer:
    """What the three have in common. `sign_ms`: how long the meter takes."""

    curve: ec.EllipticCurve = ec.SECP256R1()
    algorithm = "ECDSA-secp256r1-SHA256"

    def __init__(self, meter: "SimulatedMeter", published: dict[str, str] | None = None) -> None:
        self.meter = meter
        self.published = published
        self.key = b""
        self.private = ec.generate_private_key(self.curve)
        if published is None:
            self.key = self.private.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        self.sign_ms = 800
        self.fault: str | None = None
        self.words: Words = {}
        self.page = 0
        self.unix_s: int | None = None
        self._set_at = 0
        self._ready_at = 0

    # -- registers

    def registers(self) -> Words:
        """Every register of this side, as it reads now."""
        self._settle()
        return self.words

    def write(self, address: int, words: list[int]) -> None:
        self._settle()
        self.words.update(enumerate(words, address))
        self._written(address, words)

    def put(self, address: int, data: bytes, size: int) -> None:
        """Bytes into `size` registers, filled with zeros."""
        words = to_words(data)
        assert len(words) <= size, "a record larger than its window"
        self.words.update(enumerate(words + [0] * (size - len(words)), address))

    def text(self, address: int, size: int) -> str:
        data = b"".join(self.words.get(address + i, 0).to_bytes(2, "big") for i in range(size))
        return data.partition(b"\0")[0].decode()

    def _settle(self) -> None:
        """Let the time that has passed take effect."""

    def _written(self, address: int, words: list[int]) -> None:
        raise NotImplementedError

    def power_cycle(self) -> None:
        """The meter's own supply was away."""
        self.unix_s = None

    # -- time and signature

    def _set_time(self, unix_s: int) -> None:
        self.unix_s, self._set_at = unix_s, self.meter.now_ms()

    def _now_s(self) -> int | None:
        if self.unix_s is None:
            return None
        return self.unix_s + (self.meter.now_ms() - self._set_at) // 1000

    def _busy(self) -> bool:
        return self.fault == "hangs" or self.meter.now_ms() < self._ready_at

    def _begin_signing(self) -> None:
        self._ready_at = self.meter.now_ms() + self.sign_ms

    def reading(self, tx: str) -> dict[str, object]:
        now_s = self._now_s()
        moment = datetime.fromtimestamp(now_s or 0, UTC).strftime("%Y-%m-%dT%H:%M:%S,000+0000")
        wh = self.meter.shown_wh() or 0
        return {
            "TM": f"{moment} {'U' if now_s is None else 'S'}", "TX": tx, "RV": wh,
            "RI": "1-b:1.8.0", "RU": "Wh", "RT": "AC", "EF": "", "ST": "G",
        }  # fmt: skip

    def payload(self, **fields: object) -> bytes:
        """The signed part: one page more, the meter, then what is given."""
        self.page += 1
        head = {"FV": "1.0", "PG": f"T{self.page}", "MS": self.meter.serial}
        return json.dumps(head | fields, separators=(",", ":"), ensure_ascii=False).encode()

    def signature(self, payload: bytes) -> bytes:
        return self.private.sign(payload, ec.ECDSA(SHA256()))

    def record(self, payload: bytes) -> bytes:
        section = {"SA": self.algorithm, "SD": self.signature(payload).hex()}
        return b"OCMF|" + payload + b"|" + json.dumps(section, separators=(",", ":")).encode()


class Bsm(Signer):
    """BSM-WS36A: snapshots, each with a record of its own."""

    SNAPSHOTS = ((41286, 43293, "start", "B"), (41540, 43793, "end", "E"))
    """Status of the snapshot, start of its OCMF model, name, TX."""

    def __init__(self, meter: "SimulatedMeter", published: dict[str, str] | None = None) -> None:
        super().__init__(meter, published)
        if published:
            self.key = bytes.fromhex(published["key"])
        self.times_set = 0
        self.words = dict.fromkeys(range(40260, 40499), 0)
        self.put(40450, len(self.key).to_bytes(2, "big") + self.key, 49)
        for status, model, _, _ in self.SNAPSHOTS:
            self.words[status] = 1
            self.words.update(dict.fromkeys(range(model, model + 498), 0))
            self.words[model + 1] = 1

    def _settle(self) -> None:
        now_s = self._now_s()
        self.put(40260, (0xFFFFFFFF if now_s is None else now_s).to_bytes(4, "big"), 2)
        for status, model, name, tx in self.SNAPSHOTS:
            if self.words[status] == 2 and not self._busy():
                outcome = 3 if self.fault == "fails" else 0
                self.words[status] = self.words[model + 1] = outcome
                if self.published:
                    text = self.published[name].encode()
                else:
                    text = self.record(
                        self.payload(
                            IS=True, IT="UNDEFINED", ID=self.text(40279, 70),
                            X2=self.text(40349, 50), X3=self.text(40399, 50),
                            RD=[self.reading(tx)],
                        )
                    )  # fmt: skip
                self.put(model + 2, text, 496)

    def _written(self, address: int, words: list[int]) -> None:
        if address == 40260:
            self.times_set += 1
            self._set_time(words[0] << 16 | words[1])
        elif address in (status for status, *_ in self.SNAPSHOTS) and words == [2]:
            self._begin_signing()


class Em580(Signer):
    """EM580: a transaction, then a file of start and end."""

    curve = ec.BrainpoolP384R1()
    algorithm = "ECDSA-brainpoolP384r1-SHA256"
    STATE, SIZE, FILE, COMMAND = 28928, 28929, 28944, 28736

    def __init__(self, meter: "SimulatedMeter", published: dict[str, str] | None = None) -> None:
        super().__init__(meter, published)
        if published:  # the document shows the bare point; the meter's register has it in DER
            point = bytes.fromhex(published["key"])
            self.key = ec.EllipticCurvePublicKey.from_encoded_point(
                self.curve, point
            ).public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        self.words = dict.fromkeys(range(28672, 28800), 0)
        self.words |= dict.fromkeys(range(26880, 26880 + 126), 0)
        self.words |= dict.fromkeys(range(self.STATE, self.FILE + 2031), 0)
        self.words[9471] = 1
        self.put(9728, self.key, 62)
        self.ending = False
        self._start: dict[str, object] = {}

    def _settle(self) -> None:
        if self.ending and not self._busy():
            self.ending = False
            self._finish()

    def _finish(self) -> None:
        if self.fault == "fails":
            self.words[self.STATE] = 3
            return
        if self.published:
            text = self.published["end"].encode()
        else:
            kinds = {0: "NONE", 10: "ISO14443", 60: "CENTRAL"}
            text = self.record(
                self.payload(
                    IS=bool(self.words[28672]), IF=["RFID_PLAIN"] if self.words[28674] else [],
                    IT=kinds[self.words[28678]], ID=self.text(28679, 20), TT=self.text(26880, 126),
                    CT="CBIDC" if self.words[28699] else "EVSEID", CI=self.text(28700, 20),
                    RD=[self._start, self.reading("E")],
                )
            )  # fmt: skip
        self.words[self.SIZE] = len(to_words(text))
        self.put(self.FILE, text, 2031)
        self.words[self.STATE] = 2

    def _written(self, address: int, words: list[int]) -> None:
        if address == 28722:
            self._set_time(sum(word << 16 * i for i, word in enumerate(words)))
        elif address == self.COMMAND and words == [0x42] and self.words[self.STATE] == 0:
            self._start = self.reading("B")
            self.words[self.STATE] = 1
        elif address == self.COMMAND and words == [0x45] and self.words[self.STATE] == 1:
            self.ending = True
            self._begin_signing()

    def power_cycle(self) -> None:
        super().power_cycle()
        if self.words[self.STATE] == 1:
            self._finish()


class Wm3m4(Signer):
    """WM3M4: a dataset in, a dataset and a signature out."""

    STATE, COMMAND, STATUS, IN, OUT = 7000, 7051, 7052, 7100, 7612

    def __init__(self, meter: "SimulatedMeter", published: dict[str, str] | None = None) -> None:
        super().__init__(meter, published)
        self.words = dict.fromkeys(range(7000, 7077), 0) | dict.fromkeys(range(7100, 8316), 0)
        self.words[self.STATUS] = 1
        self.put(8124, self.key[-64:], 32)
        self.padded = False  # as its firmware does: zeros in front that DER does not allow
        self._dataset: dict[str, object] | None = None
        self._start: dict[str, object] = {}
        self._rows: list[dict[str, object]] = []

    def _settle(self) -> None:
        if self.words[self.STATUS] != 2 or self._busy():
            return
        if self.fault == "fails":
            self.words[self.STATUS] = 254
            return
        assert self._dataset is not None
        given = {k: v for k, v in self._dataset.items() if k not in ("FV", "PG", "MS", "RD")}
        payload = self.payload(**given, RD=self._rows)
        signature = self.signature(payload)
        if self.padded:
            signature = padded(signature)
        self.words[7057], self.words[7058] = len(payload), len(signature)
        self.put(self.OUT, payload, 512)
        self.put(8188, signature, 128)
        self.words[self.STATUS] = 15

    def _written(self, address: int, words: list[int]) -> None:
        if address == 7054:
            self._set_time(words[0] << 16 | words[1])
        elif address == 7056:
            data = b"".join(
                self.words[self.IN + i].to_bytes(2, "big") for i in range((words[0] + 1) // 2)
            )
            self._dataset = json.loads(data[: words[0]])
        elif address == self.COMMAND:
            self._command(words[0] >> 8)

    def _command(self, command: int) -> None:
        begins = command == ord("B")
        if command not in b"Br" or begins != (self.words[self.STATE] == 0):
            self.words[self.STATUS] = 131  # invalid state
            return
        if self._dataset is None:
            self.words[self.STATUS] = 253  # invalid message size
            return
        if begins:
            self._start = self.reading("B")
        self._rows = [self._start] if begins else [self._start, self.reading("E")]
        self.words[self.STATE] = int(begins)
        self.words[self.STATUS] = 2
        self._begin_signing()

    def power_cycle(self) -> None:
        super().power_cycle()
        self._dataset = None
        self.words[self.STATUS] = 1
        self.words.update(dict.fromkeys(range(self.OUT, 8124), 0))  # kept until power down only
        self.words[7057] = 0
        if self.words[self.STATE]:
            self.words[self.STATE] = 2


def padded(signature: bytes) -> bytes:
    """The same r and s in 33 bytes each: zeros in front that DER forbids."""
    r_size = signature[3]
    r, s = signature[4 : 4 + r_size], signature[6 + r_size :]
    body = b"".join(b"\x02\x21" + number.rjust(33, b"\0") for number in (r, s))
    return bytes((0x30, len(body))) + body


SIGNERS = {"bsm": Bsm, "em580": Em580, "wm3m4": Wm3m4}
