"""The loop's side: `lram-export loop BUNDLE --robot sockets.robot:SocketRobot`. Every wait is bounded."""

from __future__ import annotations

import os
import time

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .wire import NOTHING, Kind, Line, Message, Reason, State

FRESH = (Kind.READING, Kind.HELD)
"""Answers that say how something is now: too late they say nothing. An action that was taken was taken."""


class RefusedError(RuntimeError):
    """The robot did not do what it was asked for.

    Attributes:
        reason: why.
    """

    def __init__(self, kind: Kind, reason: Reason) -> None:
        super().__init__(f"{kind.name}: refused: {reason.name.lower().replace('_', ' ')}")
        self.reason = reason


class SocketRobot:
    """A robot behind a socket. What does not come in time is missing, and what comes too late is dropped.

    A connection that was lost is made anew at the next question. Change the attributes in a subclass, or by the
    environment.

    Attributes:
        address: of the robot's process, ``unix:PATH`` or ``tcp:HOST:PORT``; ``ROBOT_ADDRESS``.
        timeout: seconds that an answer may take, about half a period of the loop; ``ROBOT_TIMEOUT``.
        stop_timeout: the same where the motors are to stop: nothing else is to be done then; ``ROBOT_STOP_TIMEOUT``.
        slow_timeout: the same for what moves it, ``RESET``, and for connecting at the start; ``ROBOT_SLOW_TIMEOUT``.
    """

    address = os.environ.get("ROBOT_ADDRESS", "unix:robot.sock")
    timeout = float(os.environ.get("ROBOT_TIMEOUT", "0.01"))
    stop_timeout = float(os.environ.get("ROBOT_STOP_TIMEOUT", "1"))
    slow_timeout = float(os.environ.get("ROBOT_SLOW_TIMEOUT", "10"))

    def __init__(self) -> None:
        """Raises OSError where nobody listens: the loop ends with that line before anything moves."""
        self._line: Line | None = Line.connected(self.address, self.slow_timeout)
        self._asked = self._newest = 0
        self._episode: int | None = None
        self._state, self._begun, self._done = State(0), False, False

    def reset(self) -> NDArray[np.float32]:
        """The first observation of an episode."""
        answer = self._ask(Kind.RESET, timeout=self.slow_timeout)
        self._newest = answer.number
        self._begun = self._done = False
        return answer.values

    def observe(self) -> NDArray[np.float32]:
        """What the robot observes now; raises OSError where that does not come in time."""
        answer = self._ask(Kind.OBSERVE)
        self._newest = answer.number
        return answer.values

    def act(self, action: ArrayLike) -> float | None:
        """Send an action, and with it the number of the reading that was the newest; the reward, where there is one."""
        try:
            answer = self._ask(Kind.ACT, np.asarray(action, np.float32), self._newest)
        except RefusedError as error:
            if error.reason == Reason.STOPPED:
                self.holds()  # so that it takes the next
            raise
        return None if np.isnan(answer.reward) else answer.reward

    def holds(self) -> NDArray[np.float32]:
        """The action that its motors hold. The loop asks where it does not know, and bounds the next from there."""
        return self._ask(Kind.HOLDS).values

    def event(self) -> str | None:
        """What the answers since the last call told of episodes; between two episodes, what the robot tells now."""
        if self._done:
            self._ask(Kind.OBSERVE)
        if self._begun:
            self._begun = self._done = False
            return "new episode"
        if State.DONE in self._state and not self._done:
            self._done = True
            return "done"
        return None

    def stop(self) -> None:
        """Stop the motors."""
        self._ask(Kind.STOP, timeout=self.stop_timeout)

    def close(self) -> None:
        """Stop the motors, and let go of them; raises OSError where the robot does not say that it did."""
        try:
            self._ask(Kind.STOP, timeout=self.stop_timeout)
        finally:
            self._hang_up()

    def _ask(
        self, kind: Kind, values: NDArray[np.float32] = NOTHING, about: int = 0, timeout: float | None = None
    ) -> Message:
        """The answer to a question, which may take so many seconds."""
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        if self._line is None:
            self._line = Line.connected(self.address, seconds)
        self._asked += 1
        try:
            self._line.send(Message(kind, self._asked, about, values), deadline)
            answer = self._line.receive(deadline)
            while answer.about not in (self._asked, 0):  # of a question that was given up
                answer = self._line.receive(deadline)
        except TimeoutError:
            raise TimeoutError(f"{kind.name}: no answer within {1000 * seconds:g} ms") from None
        except OSError:
            self._hang_up()
            raise
        if answer.kind in FRESH and time.monotonic() > deadline:  # it lay there while this process was stopped
            raise TimeoutError(f"{kind.name}: the answer is older than {1000 * seconds:g} ms")
        if answer.about:  # else it is no answer: another loop commands the robot, whose episode is none of ours
            self._note(answer)
        if answer.kind == Kind.REFUSED:
            raise RefusedError(kind, Reason(answer.reason))
        return answer

    def _note(self, answer: Message) -> None:
        self._begun |= self._episode not in (None, answer.episode)
        self._episode, self._state = answer.episode, answer.state

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
