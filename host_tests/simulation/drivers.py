"""People: drivers with cards and cars, and the operator's and eMSP's clicks at the gateway.

Each is a script: a generator that acts and yields how many ms it waits. People are clumsy on
purpose: they come late or never, show wrong cards, pause, pull at a locked plug, press stop.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from .plan import HOUR_MS
from .plant import Car, Outlet

if TYPE_CHECKING:
    from .world import Script, World

MINUTE_MS = 60_000


def show(world: World, uid: str) -> None:
    """Hold a card to the reader; without power nothing reads it."""
    world.note("card %s shown", uid)
    world.touch(20_000)
    if world.board is not None:
        world.board.rfid.shown.append(uid)
        world.checker.card(uid)


class Street:
    """Everybody who comes to one EVSE."""

    def __init__(self, world: World, outlet: Outlet, rng: Random) -> None:
        self.world = world
        self.outlet = outlet
        self.gateway = world.gateway
        self.rng = rng
        self._cards = 0
        evse = world.plan.config["evses"][outlet.n - 1]
        self.rating_w = evse["max_a"] * evse["phases"] * 230

    def token(self, group: str | None = None) -> dict[str, Any]:
        """A new customer's token, known to the gateway."""
        self._cards += 1
        token = {
            "country_code": "NL",
            "party_id": self.rng.choice(("EMA", "EMB")) if group is None else "EMA",
            "type": "RFID",
            "uid": f"{self.outlet.n:02X}{self._cards:04X}{self.rng.getrandbits(8):02X}",
        }
        if group is not None:
            token["group_id"] = group
        self.gateway.cards[token["uid"]] = token
        return token

    def session(self) -> str | None:
        """The session that the gateway believes to run here."""
        for id, evse in self.gateway.db.open_sessions.items():
            if evse == self.outlet.n:
                return id
        return None

    def live(self) -> Script:
        """Visit after visit until peace."""
        world, rng = self.world, self.rng
        yield rng.randint(1000, 5 * MINUTE_MS)
        visits = [self.by_card, self.by_remote, self.by_reservation, self.stranger, self.meddler]
        weights = [4, 3, 5, 1, 1]
        if world.plan.config["bookings"]:
            visits.append(self.by_booking)
            weights.append(20)
        while not world.peace:
            visit = rng.choices(visits, weights)[0]
            yield from visit()
            pause = rng.choice((5000, MINUTE_MS, 10 * MINUTE_MS, HOUR_MS))
            yield pause * world.plan.patience

    # -- visits --------------------------------------------------------------------------------

    def by_card(self) -> Script:
        token = self.token()
        if self.rng.random() < 0.3:  # card first
            show(self.world, token["uid"])
            yield self.rng.randint(500, 100_000)
            if not self._plug(token):
                return
        else:
            if not self._plug(token):
                return
            yield self.rng.randint(500, 20_000)
            if self.rng.random() < 0.2:
                show(self.world, "FFFF0000")  # the other card in the purse
                yield self.rng.randint(2000, 8000)
            show(self.world, token["uid"])
        yield from self._charge(token)

    def by_remote(self) -> Script:
        token = self.token()
        plugged = False
        if self.rng.random() < 0.7:
            plugged = self._plug(token)
            yield self.rng.randint(500, 20_000)
        self._start(token)
        if not plugged:
            yield self.rng.randint(1000, 150_000)
            if not self._plug(token):
                return
        yield from self._charge(token)

    def by_reservation(self) -> Script:
        world, rng = self.world, self.rng
        group = f"G{self.outlet.n}{self._cards}" if rng.random() < 0.3 else None
        token = self.token(group)
        id = f"R{self.outlet.n}-{self._cards}"
        until = world.unix_ms + rng.choice((2, 10, 30, 90)) * MINUTE_MS
        self._reserve(id, token, until)
        yield rng.randint(2000, 10_000)
        if rng.random() < 0.3:  # changed their mind
            until = world.unix_ms + rng.choice((5, 20, 60)) * MINUTE_MS
            if rng.random() < 0.3:
                token = self.token(group)
            self._reserve(id, token, until)
            yield rng.randint(2000, 10_000)
        for _ in range(rng.randint(0, 2)):  # somebody else wants to charge here
            yield from self._intruder()
        what = rng.choices(("come", "late", "never", "cancel"), (5, 1, 1, 2))[0]
        left = max(until - world.unix_ms, 0)
        if what == "cancel":
            yield rng.randint(0, left)
            self.gateway.command(
                "CANCEL_RESERVATION", 60_000, reservation_id=id, by=rng.choice(("emsp", "cpo"))
            )
            return
        if what == "never":
            yield left + 5000
            return
        late = left + rng.randint(-4000, 60_000)
        yield late if what == "late" else rng.randint(0, left * 3 // 4)
        if world.peace:
            return
        if group is not None and rng.random() < 0.5:
            token = self.token(group)
        remote = rng.random() < 0.3
        if rng.random() < 0.7:
            if not self._plug(token):
                return
            yield rng.randint(500, 10_000)
        if remote:
            self._start(token)
        else:
            show(world, token["uid"])
        yield rng.randint(500, 10_000)
        if self.outlet.car is None and not self._plug(token):
            return
        yield from self._charge(token)

    def by_booking(self) -> Script:
        """A slot in advance. Its driver keeps it, whatever happens here in the meantime: a walk-in
        who does not leave, somebody in the guard time, or other visits."""
        world, rng, gateway = self.world, self.rng, self.gateway
        group = f"B{self.outlet.n}{self._cards}" if rng.random() < 0.3 else None
        tokens = [self.token(group) for _ in range(rng.randint(1, 2))]
        after = max([slot["end_ms"] for slot in gateway.slots(self.outlet.n)], default=0)
        begin = max(world.unix_ms + rng.choice((1, 2, 4, 20)) * MINUTE_MS, after + 6 * MINUTE_MS)
        slot: dict[str, Any] = {
            "booking_id": f"B{self.outlet.n}-{self._cards}",
            "start_ms": begin,
            "end_ms": begin + rng.choice((3, 10, 40)) * MINUTE_MS,
            "guard_ms": rng.choice((0, 1, 5)) * MINUTE_MS,
            "tokens": tokens,
            "authorization_reference": f"REF{self.outlet.n}-{self._cards}",
        }
        for key in ("early_ms", "late_ms", "noshow_ms"):
            if rng.random() < 0.5:
                slot[key] = rng.choice((1, 2, 10)) * MINUTE_MS
        if rng.random() < 0.5:
            slot["remote"] = True
        if rng.random() < 0.2:  # a change that was made for another list
            gateway.command("SET_BOOKINGS", 60_000, evse=self.outlet.n, base=7, version=8)
        gateway.book(self.outlet.n, slot)
        for moment in ("start_ms", "end_ms"):
            at = slot[moment] - world.unix_ms + world.now
            world.at(at - slot["guard_ms"] - 500, self.world.touch)
            world.at(at - 500, self.world.touch)
        yield rng.randint(3000, 20_000)
        if rng.random() < 0.5:
            world.play(self._keep_date(slot))
            return
        if rng.random() < 0.6:
            yield from self._walk_in(slot)
        yield from self._keep_date(slot)

    def _walk_in(self, slot: dict[str, Any]) -> Script:
        """Somebody charges, until shortly before the slot or into it."""
        other = self.token()
        if self._plug(other):
            show(self.world, other["uid"])
            left = slot["start_ms"] - slot["guard_ms"] - self.world.unix_ms
            yield max(left, 0) + self.rng.randint(-60_000, 90_000)
            yield from self._leave(other)

    def _keep_date(self, slot: dict[str, Any]) -> Script:
        """The driver of a slot: changes or cancels it, comes early, in time, late or never."""
        world, rng, n = self.world, self.rng, self.outlet.n
        if rng.random() < 0.15:
            slot = slot | {"end_ms": slot["end_ms"] + 2 * MINUTE_MS, "guard_ms": 0}
            self.gateway.book(n, slot)
        what = rng.choices(("early", "in time", "late", "never", "cancel"), (3, 9, 1, 1, 1))[0]
        if what in ("never", "cancel"):
            yield max(slot["start_ms"] - world.unix_ms, 0) * rng.randint(0, 2) // 2
            if what == "cancel":
                self.gateway.unbook(n, slot["booking_id"])
            return
        if what == "early":
            begin = slot["start_ms"] - rng.choice((1, 2, 9)) * MINUTE_MS
        elif what == "late":
            begin = slot["end_ms"] + rng.randint(-5000, 5000)
        else:
            first = slot["start_ms"]
            last = first + slot.get("noshow_ms", slot["end_ms"] - first)
            begin = rng.choice((first, rng.randint(first, last), last)) + rng.randint(-3000, 3000)
        wait = begin - world.unix_ms
        yield max(wait, 0)
        if world.peace:
            return
        if rng.random() < 0.3:
            yield from self._intruder()
        token = rng.choice(slot["tokens"])
        if "group_id" in token and rng.random() < 0.5:
            token = self.token(token["group_id"])
        if not self._plug(token):
            return
        yield rng.randint(500, 4000)
        if rng.random() < 0.3:
            self._start(token)
        else:
            show(world, token["uid"])
        yield from self._charge(token)

    def stranger(self) -> Script:
        """A card that nobody knows, a plug left in for a while."""
        token = {"uid": "EE00EE00"}
        if self._plug(token):
            yield self.rng.randint(500, 5000)
            for _ in range(self.rng.randint(1, 4)):
                show(self.world, token["uid"])
                yield self.rng.randint(2000, 30_000)
            yield self.rng.choice((0, 20 * MINUTE_MS))
            yield from self._leave(token)

    def meddler(self) -> Script:
        """The gateway's clicks that are out of place."""
        n, gateway, rng = self.outlet.n, self.gateway, self.rng
        for _ in range(rng.randint(1, 3)):
            click = rng.randint(0, 7)
            if click == 0:
                gateway.command("SET_AVAILABILITY", 60_000, evse=n, operative=False)
                yield rng.randint(2000, 10 * MINUTE_MS)
                gateway.command("SET_AVAILABILITY", HOUR_MS, evse=n, operative=True)
            elif click == 1:
                gateway.command("CANCEL_RESERVATION", 60_000, reservation_id="nobody's")
            elif click == 2:
                self._reserve("late", self.token(), self.world.unix_ms - 1000)
            elif click == 3:
                gateway.command("UNLOCK_CONNECTOR", 60_000, evse=n)
            elif click == 4:
                gateway.command("STOP_SESSION", 60_000, session_id=self.session() or "none")
            elif click == 5:
                gateway.command("SET_BOOKINGS", 60_000, evse=n)
            elif click == 6:
                gateway.command("GET_HEALTH", 60_000)
            else:
                # the same id with another body: the second must be rejected
                id = gateway.command("CANCEL_RESERVATION", HOUR_MS, reservation_id="a")
                yield 20_000
                gateway.command("CANCEL_RESERVATION", HOUR_MS, id, reservation_id="b")
            yield rng.randint(500, 60_000)

    # -- parts of visits -----------------------------------------------------------------------

    def _reserve(self, id: str, token: dict[str, Any], until: int) -> None:
        self.gateway.command(
            "RESERVE_NOW",
            self.rng.choice((30_000, 60_000, HOUR_MS)),
            evse=self.outlet.n,
            reservation_id=id,
            token=token,
            expiry_ms=until,
        )
        self.world.at(until - self.world.unix_ms + self.world.now - 500, self.world.touch)

    def _start(self, token: dict[str, Any]) -> None:
        self.gateway.command(
            "START_SESSION", self.rng.choice((30_000, 300_000)), evse=self.outlet.n, token=token
        )

    def _plug(self, token: dict[str, Any]) -> bool:
        if self.world.peace:
            return False
        # at most nine tenths of the rating: a meter and a fuse are not exact
        return self.outlet.plug(Car(token["uid"], self.rng.randint(1000, self.rating_w * 9 // 10)))

    def _intruder(self) -> Script:
        other = self.token()
        plugged = self.rng.random() < 0.6 and self._plug(other)
        yield self.rng.randint(500, 5000)
        if self.rng.random() < 0.5:
            show(self.world, other["uid"])
        else:
            self._start(other)
        yield self.rng.randint(2000, 40_000)
        if plugged:
            yield from self._leave(other)

    def _charge(self, token: dict[str, Any]) -> Script:
        world, rng, outlet = self.world, self.rng, self.outlet
        for _ in range(rng.choice((0, 1, 1, 2))):  # nothing happens? show it again
            yield rng.randint(8000, 30_000)
            if outlet.closed or outlet.coil or world.peace:
                break
            show(world, token["uid"])
        left = rng.choice((20_000, 5 * MINUTE_MS, 20 * MINUTE_MS, HOUR_MS, 3 * HOUR_MS))
        while left > 0 and not world.peace and outlet.car is not None:
            span = min(left, rng.randint(1000, 20 * MINUTE_MS))
            yield span
            left -= span
            if rng.random() < 0.4:
                outlet.ask(not outlet.car.asking if outlet.car else True)
            elif outlet.car is not None:
                outlet.set_power(rng.randint(500, self.rating_w * 9 // 10))
        yield from self._leave(token)

    def _leave(self, token: dict[str, Any]) -> Script:
        """Stop somehow, unplug, go. Whoever cannot unplug shows the card, then calls for help."""
        world, rng, outlet = self.world, self.rng, self.outlet
        how = rng.choices(("card", "remote", "pull", "estop"), (5, 3, 2, 1))[0]
        for tries in range(100):
            if world.peace or outlet.car is None:
                return
            if how == "card" and outlet.closed:
                show(world, token["uid"])
            elif how == "remote" and self.session() is not None:
                self.gateway.command("STOP_SESSION", 60_000, session_id=self.session())
            elif how == "estop" and tries == 0:
                yield from press_estop(world, rng.randint(1000, 60_000))
            yield rng.randint(500, 12_000)
            if outlet.unplug():
                return
            if tries > 3:
                how = "card" if tries % 2 else "remote"
                yield tries * 1000

    def go_home(self) -> Script:
        """In peace: everybody leaves, with all the help there is."""
        world, outlet, gateway = self.world, self.outlet, self.gateway
        yield 5000
        while True:
            state = world.checker.evses[outlet.n]
            if outlet.car is not None:
                if state.session is not None:
                    show(world, outlet.car.uid)
                    yield 9000
                if self.session() is not None:
                    gateway.command("STOP_SESSION", 60_000, session_id=self.session())
                    yield 12_000
                if not outlet.unplug():
                    gateway.command("UNLOCK_CONNECTOR", 60_000, evse=outlet.n)
                    yield 15_000
                    outlet.unplug()
            if state.reservation is not None and self.rng.random() < 0.5:
                id = state.reservation["reservation_id"]
                gateway.command("CANCEL_RESERVATION", 60_000, reservation_id=id)
            yield 30_000
            if state.session is None and outlet.car is None:
                yield 20 * MINUTE_MS


def press_estop(world: World, hold_ms: int) -> Script:
    world.estop = True
    world.note("emergency stop pressed")
    world.touch()
    world.checker.estop_pressed()
    yield hold_ms
    world.estop = False
    world.note("emergency stop released")
