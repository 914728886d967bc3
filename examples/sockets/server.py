"""The robot's process: it owns the motors and answers a loop. `python -m sockets.server unix:robot.sock`

The motors depend on nobody's good will: where no command comes for a while, or whoever commands is gone, they stop, and
an action that was chosen by a reading of long ago is refused.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .wire import MOVING, NOTHING, UNKNOWN, Kind, Line, Message, Reason, State, WireError, listening

KEPT = 1000
"""Readings whose time is remembered."""


class Machine(Protocol):
    """What has motors; of what it offers see :class:`.arm.Arm`. Positions and actions are float32 in one row."""

    motors: int
    done: bool
    episodes: int

    def reset(self) -> None:
        """Go to where an episode begins."""

    def observe(self) -> NDArray[np.float32]:
        """The observation now."""

    def act(self, action: NDArray[np.float32]) -> float:
        """Do it; the reward."""

    def holds(self) -> NDArray[np.float32]:
        """The action that the motors hold."""

    def stop(self) -> None:
        """Stop the motors."""

    def go_on(self) -> None:
        """Called now and then, with a command or without."""


class Server:
    """Answers one loop at a time. Another may take over where the motors are stopped.

    Attributes:
        still: whether the motors are stopped.
    """

    def __init__(
        self,
        address: str,
        machine: Machine,
        watchdog: float = 0.1,
        oldest: float = 0.25,
        say: Callable[[str], None] = print,
    ) -> None:
        """Listen; raises OSError.

        Args:
            address: ``unix:PATH`` or ``tcp:HOST:PORT``. Whoever reaches it may move the robot.
            machine: the motors.
            watchdog: seconds without a command after which they are stopped.
            oldest: seconds that a reading may be old where an action that was chosen by it comes.
            say: told of stops, of loops that come and go, in lines.
        """
        self.still, self._tripped = True, False
        self._machine, self._watchdog, self._oldest, self._say = machine, watchdog, oldest, say
        self._listener = listening(address)
        self._line: Line | None = None
        self._number, self._commanded_at = 0, 0.0
        self._read_at: OrderedDict[int, float] = OrderedDict()
        self._first = int.from_bytes(os.urandom(3), "little")  # so that another process has other episodes

    def poll(self, seconds: float) -> None:
        """Answer what comes within so many seconds, once; see to the motors."""
        due = self._commanded_at + self._watchdog - time.monotonic()
        heard = [end for end in (self._line, self._listener) if end is not None]
        readable, _, _ = select.select(heard, [], [], max(0.0, seconds if self.still else min(seconds, due)))
        self._machine.go_on()
        if self._line in readable:
            self._hear()
        if self._listener in readable:
            self._welcome()
        if not self.still and time.monotonic() - self._commanded_at > self._watchdog:
            self.halt(f"no command for {1000 * self._watchdog:g} ms")

    def halt(self, why: str) -> None:
        """Stop the motors by itself, and say so. They take no action before the loop has asked what they hold."""
        self._machine.stop()
        self.still = self._tripped = True
        self._say(f"stopped: {why}")

    def hang_up(self) -> None:
        """Let go of the loop; the motors stop."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if not self.still:
            self.halt("the loop is gone")

    def close(self) -> None:
        """Stop the motors, and listen no more."""
        self.hang_up()
        self._listener.close()

    def answer(self, question: Message) -> Message:
        """The answer to a question of the loop, which may move the motors."""
        if question.kind == Kind.ACT:
            return self._act(question)
        if question.kind in (Kind.HOLDS, Kind.RESET):
            self._tripped = False
        if question.kind == Kind.HOLDS:
            return self._message(Kind.HELD, question, self._machine.holds())
        if question.kind == Kind.STOP:
            self._machine.stop()
            self.still = True
            return self._message(Kind.STOPPED, question)
        if question.kind == Kind.RESET:
            self._machine.reset()
            self.still = True
        elif question.kind != Kind.OBSERVE:
            raise WireError(f"{question.kind.name} is no question")
        reading = self._message(Kind.READING, question, self._machine.observe())
        self._read_at[reading.number] = time.monotonic()
        if len(self._read_at) > KEPT:
            self._read_at.popitem(last=False)
        return reading

    def reply(self, answer: Message) -> None:
        """Send an answer."""
        if self._line is not None:
            self._line.send(answer, time.monotonic() + self._watchdog)

    def _act(self, question: Message) -> Message:
        reason = self._refusal(question)
        if reason is not None:
            return self._message(Kind.REFUSED, question, reason=reason)
        reward = self._machine.act(question.values)
        self.still, self._commanded_at = self._machine.done, time.monotonic()
        return self._message(Kind.TAKEN, question, reward=reward)

    def _refusal(self, question: Message) -> Reason | None:
        read_at = self._read_at.get(question.about)
        if read_at is None or time.monotonic() - read_at > self._oldest:
            return Reason.TOO_OLD
        if len(question.values) != self._machine.motors:
            return Reason.SIZE
        if not np.isfinite(question.values).all():
            return Reason.NOT_FINITE
        if self._tripped:
            return Reason.STOPPED
        return Reason.BETWEEN_EPISODES if self._machine.done else None

    def _message(
        self,
        kind: Kind,
        question: Message,
        values: NDArray[np.float32] = NOTHING,
        reason: int = 0,
        reward: float = UNKNOWN,
    ) -> Message:
        self._number += 1
        state = (State.DONE if self._machine.done else MOVING) | (State.STILL if self.still else MOVING)
        episode = self._first + self._machine.episodes
        return Message(kind, self._number, question.number, values, state, reason, episode, reward)

    def _welcome(self) -> None:
        connection, _ = self._listener.accept()
        if self._line is not None and not self.still:
            with closing(Line(connection)) as line, suppress(OSError):
                refusal = Message(Kind.REFUSED, 1, reason=Reason.ANOTHER_LOOP_COMMANDS)
                line.send(refusal, time.monotonic() + self._watchdog)
            self._say("another loop was turned away: this one moves")
            return
        self.hang_up()
        self._line = Line(connection)
        self._say("a loop has come")

    def _hear(self) -> None:
        """Answer the newest question."""
        assert self._line is not None
        question = None
        try:
            with suppress(TimeoutError):
                while True:
                    question = self._line.receive(0.0)
            if question is not None:
                self.reply(self.answer(question))
        except OSError as error:
            self.hang_up()
            self._say(f"the loop has gone: {error}")


def main() -> None:
    """Serve until SIGTERM or SIGINT, and stop the motors then."""
    parser = argparse.ArgumentParser(prog="sockets.server", description="A simulated robot that a loop may drive.")
    parser.add_argument("address", help="unix:PATH or tcp:HOST:PORT")
    parser.add_argument("--robot", choices=("arm", "metaworld"), default="arm")
    parser.add_argument("--watchdog-ms", type=float, default=100.0, help="without a command it stops after so long")
    parser.add_argument("--oldest-ms", type=float, default=250.0, help="how old the reading of an action may be")
    parser.add_argument("--episode-steps", type=int, default=0, help="of the arm: its episodes end after so many")
    chosen = parser.parse_args()
    machine: Machine
    if chosen.robot == "arm":
        from .arm import Arm

        machine = Arm(episode_steps=chosen.episode_steps)
    else:
        from .meta_world import MetaWorld

        machine = MetaWorld()
    try:
        server = Server(chosen.address, machine, chosen.watchdog_ms / 1000, chosen.oldest_ms / 1000, _say)
    except OSError as error:
        sys.exit(f"error: {chosen.address}: cannot be listened at: {error}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        while True:
            server.poll(0.1)
    finally:
        server.close()
        _say(f"{machine.episodes} episodes begun")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
