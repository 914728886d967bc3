"""An environment that another process makes: `--env-command`. The protocol is told in :mod:`serve_environment`."""

from __future__ import annotations

import math
import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lram_export.errors import EnvironmentFailure, UsageError
from lram_export.rollouts.environments.serve_environment import (
    MOST_LINE,
    VERSION,
    Message,
    ProtocolError,
    pack,
    unpack,
)
from lram_export.system.processes import interrupts_held

SECONDS_TO_END = 5.0
_CHUNK = 1 << 16


class CommandEnv(gymnasium.Env[NDArray[Any], Any]):
    """The environment of a process that is started by a command and asked over its standard input and output.

    The process ends with this environment, whatever it is doing, and its children, as far as they stay in its group.

    Raises:
        UsageError: the command cannot be started.
        EnvironmentFailure: the process dies, does not answer in time, answers what is no message, or an error.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as gymnasium declares it

    def __init__(self, name: str, command: str, *, render: bool = False, patience: float) -> None:
        self.name = name
        self.render_mode = "rgb_array" if render else None
        self._process = _Process(name, command, patience)
        try:
            hello = {"hello": VERSION, "task": name.partition("/")[2], "render": render}
            content, arrays = self._ask(hello, {}, "hello", "its making")
            if content["hello"] != VERSION:
                raise self._wrong("its making", f"speaks version {content['hello']!r} of the protocol, not {VERSION}")
            self.observation_space = self._space(content, arrays, "observation")
            self.action_space = self._space(content, arrays, "action")
        except BaseException:
            self._process.kill()
            raise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[Any], Any]:
        """Start the episode of a seed; without one of 0."""
        _, arrays = self._ask({"reset": 0 if seed is None else int(seed)}, {}, "observed", "reset")
        return self._observation(arrays, "reset"), {}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one action."""
        content, arrays = self._ask({"step": True}, {"action": np.asarray(action)}, "observed", "step")
        reward, success = content.get("reward"), content.get("success")
        terminated, truncated = content.get("terminated"), content.get("truncated")
        if not (
            isinstance(reward, int | float)
            and not isinstance(reward, bool)
            and math.isfinite(reward)
            and isinstance(terminated, bool)
            and isinstance(truncated, bool)
            and (success is None or isinstance(success, bool))
        ):
            raise self._wrong(
                "step", f"expected a finite reward, terminated, truncated, success, got {_short(content)}"
            )
        info = {} if success is None else {"success": success}
        return self._observation(arrays, "step"), float(reward), terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """(H, W, 3) picture."""
        _, arrays = self._ask({"render": True}, {}, "rendered", "render")
        frame = arrays.get("frame")
        if frame is None or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise self._wrong("render", f"expected a frame (height, width, 3) uint8, got {_kind(frame)}")
        return frame

    def close(self) -> None:
        """Close it, and end the process."""
        if not self._process.running:
            return
        try:
            self._ask({"close": True}, {}, "closed", "close")
            self._process.await_end(SECONDS_TO_END)
        finally:
            self._process.kill()

    def _ask(self, content: dict[str, Any], arrays: dict[str, NDArray[Any]], expected: str, doing: str) -> Message:
        try:
            answer = self._process.ask(pack(content, arrays))
        except (ProtocolError, OSError, TimeoutError) as error:
            self._process.kill()
            raise self._wrong(doing, str(error)) from None
        told, _ = answer
        if "error" in told:
            raise self._wrong(doing, " ".join(str(told["error"]).split())[:1000])
        if expected not in told:
            self._process.kill()
            raise self._wrong(doing, f"expected '{expected}' in the answer, got {_short(told)}")
        return answer

    def _wrong(self, doing: str, what: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"{self.name}: failed in {doing}: {what}")

    def _observation(self, arrays: dict[str, NDArray[Any]], doing: str) -> NDArray[Any]:
        found, space = arrays.get("observation"), self.observation_space
        if found is None or found.shape != space.shape or found.dtype != space.dtype:
            expected = f"{space.dtype} of shape {space.shape}"
            raise self._wrong(doing, f"observation: expected {expected}, as it said, got {_kind(found)}")
        return found

    def _space(self, content: dict[str, Any], arrays: dict[str, NDArray[Any]], name: str) -> gymnasium.Space[Any]:
        told = content.get(name)
        try:
            if isinstance(told, dict) and "discrete" in told:
                n, start = told["discrete"]["n"], told["discrete"]["start"]
                return gymnasium.spaces.Discrete(int(n), start=int(start))
            if isinstance(told, dict) and "box" in told:
                shape, dtype = tuple(map(int, told["box"]["shape"])), np.dtype(str(told["box"]["dtype"]))
                low, high = arrays[f"{name}_low"], arrays[f"{name}_high"]
                return gymnasium.spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype.type)
        except (KeyError, TypeError, ValueError, AssertionError, OverflowError) as error:
            raise self._wrong("its making", f"{name}: no space in {_short(told)} ({error!r})") from None
        if isinstance(told, dict) and "other" in told:
            raise UsageError(f"--env {self.name}: its {name} is {_short(told['other'])}; expected a Box or a Discrete")
        raise self._wrong("its making", f"{name}: expected a space, got {_short(told)}")


class _Process:
    """A process that answers; its last words on standard error are kept."""

    def __init__(self, name: str, command: str, patience: float) -> None:
        self._patience = patience
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"--env-command: {command!r} is no command ({error})") from None
        if not words:
            raise UsageError("--env-command: expected a command, got an empty one")
        pipe = subprocess.PIPE
        try:
            with interrupts_held():  # Ctrl-C is ours to handle: it is killed then
                self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except OSError as error:
            raise UsageError(f"--env-command {name}: cannot start '{words[0]}': {error.strerror}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._in, self._out, self._words = self._process.stdin, self._process.stdout, self._process.stderr
        for stream in (self._in, self._out):
            os.set_blocking(stream.fileno(), False)
        self._said: deque[str] = deque(maxlen=20)
        self._listener = threading.Thread(target=self._listen, name="environment's standard error", daemon=True)
        self._listener.start()
        self._read = bytearray()
        self.running = True

    def ask(self, message: bytes) -> Message:
        """Send a message; its answer.

        Raises:
            ProtocolError: what came is no message.
            TimeoutError: nothing came in time.
            ConnectionError: the process has ended; says how.
        """
        deadline = time.monotonic() + self._patience
        if self._read:
            raise ProtocolError(f"answered without being asked: {bytes(self._read[:80])!r}")
        self._write(message, deadline)
        while b"\n" not in self._read:
            if len(self._read) > MOST_LINE:
                raise ProtocolError(f"expected a message, got {bytes(self._read[:80])!r}...")
            self._fill(deadline)
        end = self._read.index(b"\n") + 1
        line = self._take(end, deadline)
        return unpack(line, lambda size: self._take(size, deadline))

    def kill(self) -> None:
        """End it and its children at once."""
        if not self.running:
            return
        self.running = False
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join(1)
        for stream in (self._in, self._out):
            with suppress(OSError):
                stream.close()

    def await_end(self, seconds: float) -> None:
        """Wait until it has ended by itself, not longer; it is not reaped, so that its group keeps its number."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._ended():
            time.sleep(0.005)

    def _ended(self) -> bool:
        options = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _write(self, message: bytes, deadline: float) -> None:
        rest = memoryview(message)
        while rest:
            try:
                rest = rest[os.write(self._in.fileno(), rest) :]
            except BlockingIOError:
                self._await(self._in.fileno(), selectors.EVENT_WRITE, deadline)
            except BrokenPipeError:
                raise ConnectionError(self._how_it_ended()) from None

    def _take(self, size: int, deadline: float) -> bytes:
        while len(self._read) < size:
            self._fill(deadline)
        data = bytes(self._read[:size])
        del self._read[:size]
        return data

    def _fill(self, deadline: float) -> None:
        self._await(self._out.fileno(), selectors.EVENT_READ, deadline)
        data = os.read(self._out.fileno(), _CHUNK)
        if not data:
            raise ConnectionError(self._how_it_ended())
        self._read += data

    def _await(self, descriptor: int, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(
                    f"its process did not answer within {self._patience:g} s, and was ended{self._last_words()}; "
                    f"--env-timeout says how long it may take"
                )

    def _how_it_ended(self) -> str:
        self.await_end(SECONDS_TO_END)
        if not self._ended():
            return f"its process has closed its output, and was ended{self._last_words()}"
        self.kill()
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return f"its process ended ({how}){self._last_words()}"

    def _last_words(self) -> str:
        time.sleep(0.05)  # what was said last is on its way
        words = [" ".join(text.split()) for text in self._said if text.strip()]
        return f": {words[-1][:300]}" if words else ""

    def _listen(self) -> None:
        with self._words as words:
            while True:
                line = words.readline(1 << 14)  # no more of an endless one at a time
                if not line:
                    return
                self._said.append(line.decode(errors="replace"))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _kind(array: NDArray[Any] | None) -> str:
    return "none" if array is None else f"{array.dtype} of shape {array.shape}"
