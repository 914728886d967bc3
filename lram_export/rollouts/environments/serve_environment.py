"""An environment in a process of its own, for `lram-export evaluate --env-command`.

This one file is the other side: copy it to wherever the environment can be installed, be it Python 3.8, and let it run
there. It needs numpy and nothing else of ours::

    lram-export evaluate BUNDLE --env command/CartPole-v1 --env-command '/old/bin/python serve_environment.py gym'

What it serves is its argument: ``gymnasium`` or ``gym`` (the task is the id), ``gymnasium:ID`` (always that one),
``procgen`` (the task is the game), or ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION`` of one's own, which is called with
the task and returns an environment with the methods of Gymnasium or of its predecessors.

The protocol, version 1, over standard input and output. A message is a line, ``LRAM `` and a JSON object, then the
bytes of its arrays, little-endian, in C order, one after the other; ``arrays`` in the object lists name, type and shape
of each.

    asked                                       answered
    {"hello": 1, "task": .., "render": bool}    {"hello": 1, "python": .., "packages": {..}, "observation": SPACE,
                                                 "action": SPACE}
    {"reset": SEED}                             {"observed": true}, array observation
    {"step": true}, array action                {"observed": true, "reward": .., "terminated": bool,
                                                 "truncated": bool, "success": bool or null}, array observation
    {"render": true}                            {"rendered": true}, array frame (height, width, 3) uint8
    {"close": true}                             {"closed": true}; then the process ends

SPACE is {"box": {"shape": [..], "dtype": ..}} with the arrays observation_low and observation_high (action_low, ..),
{"discrete": {"n": .., "start": ..}}, or {"other": TEXT}. Whatever goes wrong is answered by {"error": TEXT}, one line.
What the environment prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import inspect
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, NamedTuple, Optional, Tuple  # noqa: UP035  Python 3.8

import numpy as np

VERSION = 1
MARK = b"LRAM "
MOST_LINE = 1 << 20
MOST_BYTES = 1 << 28
"""Of all arrays of a message: 256 MiB."""
MOST_DIMENSIONS = 8
DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
Arrays = Dict[str, np.ndarray]  # noqa: UP006
Message = Tuple[Dict[str, Any], Arrays]  # noqa: UP006


class ProtocolError(Exception):
    """What came is no message; says what came."""


def pack(content: dict[str, Any], arrays: Optional[Arrays] = None) -> bytes:  # noqa: UP045
    """A message as it is sent. Raises ValueError for an array of another type, or more than a message may hold."""
    parts, listed = [], []
    for name, values in (arrays or {}).items():
        array = np.asarray(values)
        if str(array.dtype) not in DTYPES:
            raise ValueError(f"{name}: expected one of {', '.join(DTYPES)}, got {array.dtype}")
        listed.append([name, str(array.dtype), list(array.shape)])
        parts.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    line = MARK + json.dumps({**content, "arrays": listed}, allow_nan=False).encode() + b"\n"
    if len(line) > MOST_LINE or sum(map(len, parts)) > MOST_BYTES:
        raise ValueError(f"expected a message of at most {MOST_LINE} and {MOST_BYTES} bytes")
    return line + b"".join(parts)


def unpack(line: bytes, read: Callable[[int], bytes]) -> Message:
    """The message that a line begins; ``read`` gives so many bytes of those that follow. Raises ProtocolError."""
    if not line.startswith(MARK) or not line.endswith(b"\n"):
        raise ProtocolError(f"expected a message, got {_shown(line)}")
    try:
        content = json.loads(line[len(MARK) :].decode())
        listed = content.pop("arrays")
        shapes = [(str(name), _dtype(dtype), _shape(shape)) for name, dtype, shape in listed]
        sizes = [dtype.itemsize * int(np.prod(shape, dtype=np.float64)) for _, dtype, shape in shapes]
        if sum(sizes) > MOST_BYTES:
            raise ValueError(f"{sum(sizes)} bytes of arrays, more than {MOST_BYTES}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"expected a message, got {_shown(line)} ({type(error).__name__}: {error})") from None
    arrays = {}
    for (name, dtype, shape), size in zip(shapes, sizes):  # noqa: B905  Python 3.8
        data = read(size)
        arrays[name] = np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    return content, arrays


def _dtype(name: object) -> np.dtype:
    if name not in DTYPES:
        raise ValueError(f"type {name!r}")
    return np.dtype(str(name)).newbyteorder("<")


def _shape(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, list) or len(sizes) > MOST_DIMENSIONS:
        raise ValueError(f"shape {sizes!r}")
    for size in sizes:
        if type(size) is not int or not 0 <= size <= MOST_BYTES:
            raise ValueError(f"shape {sizes!r}")
    return tuple(sizes)


def _shown(line: bytes) -> str:
    text = repr(line[:80].decode(errors="replace"))
    return text if len(line) <= 80 else text + "..."


class Step(NamedTuple):
    """What an action led to, in whichever API the environment has."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    success: Optional[bool]  # noqa: UP045


class Procgen:
    """A game of Procgen; the seed is its level. Easy, pictures (3, 64, 64), at most 400 steps: as in the training data.

    Of the 18 choices of a policy that plays Atari, too, a game has 15; the others do nothing.
    """

    STEPS, GAMES_ACTIONS, CHOICES, NOTHING = 400, 15, 18, 4

    def __init__(self, task: str, render_mode: Optional[str] = None) -> None:  # noqa: UP045
        self._task, self._game, self._count = task, None, 0  # type: Any, Any, int
        self.observation_space = Box((3, 64, 64), "uint8", 0, 255)
        self.action_space = Discrete(self.CHOICES)

    def reset(self, seed: int) -> Tuple[np.ndarray, Dict[str, Any]]:  # noqa: UP006
        """Play the level of this number."""
        from procgen import ProcgenGym3Env  # type: ignore[import-not-found,import-untyped,unused-ignore]

        self.close()
        self._game = ProcgenGym3Env(
            num=1, env_name=self._task, start_level=seed % 2**31, num_levels=1, distribution_mode="easy"
        )
        self._count = 0
        return self._seen(self._game.observe()[1]), {}

    def step(self, action: int) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:  # noqa: UP006
        """Take one of the choices."""
        self._game.act(np.array([action if action < self.GAMES_ACTIONS else self.NOTHING]))
        reward, seen, first = self._game.observe()
        self._count += 1
        done = bool(first[0])
        info = {"success": bool(self._game.get_info()[0]["prev_level_complete"])} if done else {}
        return self._seen(seen), float(reward[0]), done, self._count >= self.STEPS, info

    def render(self) -> np.ndarray:
        """(64, 64, 3), what the policy sees."""
        return np.ascontiguousarray(self._game.observe()[1]["rgb"][0])

    def close(self) -> None:
        """Free the game."""
        if self._game is not None:
            self._game.close()
            self._game = None

    @staticmethod
    def _seen(seen: Any) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(seen["rgb"][0], -1, 0))


class Box:
    """A space of arrays, for environments that have no package for it."""

    def __init__(self, shape: Tuple[int, ...], dtype: str, low: float, high: float) -> None:  # noqa: UP006
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.low, self.high = np.full(shape, low, dtype), np.full(shape, high, dtype)


class Discrete:
    """A space of n choices."""

    def __init__(self, n: int) -> None:
        self.n = n


class Server:
    """Answers what is asked of one environment."""

    def __init__(self, make: Callable[[str, bool], Any]) -> None:
        self._make = make
        self._environment: Any = None

    def answer(self, asked: dict[str, Any], arrays: Arrays) -> Message:
        """What is sent back; raises whatever the environment raises."""
        if "hello" in asked:
            return self._hello(asked)
        if self._environment is None:
            raise ValueError("expected hello first")
        if "reset" in asked:
            return {"observed": True}, {"observation": self._observation(self._reset(int(asked["reset"])))}
        if "step" in asked:
            step = self._step(arrays["action"])
            content = {"observed": True, **{k: v for k, v in step._asdict().items() if k != "observation"}}
            return content, {"observation": self._observation(step.observation)}
        if "render" in asked:
            frame = self._environment.render()
            frame = self._environment.render(mode="rgb_array") if frame is None else frame
            return {"rendered": True}, {"frame": np.asarray(frame, np.uint8)}
        if "close" in asked:
            self._environment.close()
            return {"closed": True}, {}
        raise ValueError(f"not understood: {sorted(asked)}")

    def _hello(self, asked: dict[str, Any]) -> Message:
        if asked["hello"] != VERSION:
            raise ValueError(f"speaks version {VERSION} of the protocol, was asked for {asked['hello']}")
        self._environment = self._make(str(asked["task"]), bool(asked["render"]))
        arrays: Arrays = {}
        content: Dict[str, Any] = {"hello": VERSION, "python": platform.python_version(), "packages": _packages()}  # noqa: UP006
        for name in ("observation", "action"):
            content[name] = _space(getattr(self._environment, f"{name}_space"), name, arrays)
        return content, arrays

    def _reset(self, seed: int) -> Any:
        environment = self._environment
        told = inspect.signature(getattr(environment, "unwrapped", environment).reset).parameters
        if "seed" in told or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in told.values()):
            found = environment.reset(seed=seed)
        else:  # before Gym 0.26
            environment.seed(seed)
            found = environment.reset()
        both = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)
        return found[0] if both else found

    def _step(self, action: np.ndarray) -> Step:
        found = self._environment.step(action if action.shape else action.item())
        info = found[-1]
        success = info.get("success", info.get("is_success"))
        if len(found) == 5:
            observation, reward, terminated, truncated, _ = found
        else:  # before Gym 0.26
            observation, reward, done, _ = found
            truncated = bool(info.get("TimeLimit.truncated", False))
            terminated = bool(done) and not truncated
        told = None if success is None else bool(success)
        return Step(observation, float(reward), bool(terminated), bool(truncated), told)

    def _observation(self, observation: Any) -> np.ndarray:
        dtype = getattr(self._environment.observation_space, "dtype", None)
        return np.asarray(observation, dtype)


def _space(space: Any, name: str, arrays: Arrays) -> dict[str, Any]:
    if hasattr(space, "low") and hasattr(space, "high") and space.shape is not None:
        arrays[f"{name}_low"], arrays[f"{name}_high"] = np.asarray(space.low), np.asarray(space.high)
        return {"box": {"shape": list(space.shape), "dtype": str(space.dtype)}}
    if hasattr(space, "n") and not hasattr(space, "nvec"):
        return {"discrete": {"n": int(space.n), "start": int(getattr(space, "start", 0))}}
    return {"other": " ".join(str(space).split())[:300]}


def _packages() -> dict[str, str]:
    names = ("numpy", "gymnasium", "gym", "gym3", "mujoco", "robosuite")
    loaded = {name: sys.modules.get(name) for name in names}
    return {name: str(getattr(module, "__version__", "?")) for name, module in loaded.items() if module is not None}


def maker(what: str) -> Callable[[str, bool], Any]:
    """What ``what`` names, as a function of the task and whether pictures are wanted. Raises ValueError."""
    module, _, name = what.partition(":")
    if module in ("gymnasium", "gym"):
        return lambda task, render: _made(importlib.import_module(module).make, name or task, render)
    if what == "procgen":
        return lambda task, render: Procgen(task)
    if not name:
        raise ValueError(f"expected gymnasium, gym, procgen, MODULE:FUNCTION or FILE.py:FUNCTION, got '{what}'")

    def make(task: str, render: bool) -> Any:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module).stem, module)
            if spec is None or spec.loader is None:
                raise ValueError(f"{module}: not a Python file")
            found = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
        else:
            sys.path.insert(0, str(Path.cwd()))
            found = importlib.import_module(module)
        return _made(getattr(found, name), task, render)

    return make


def _made(function: Callable[..., Any], task: str, render: bool) -> Any:
    return function(task, render_mode="rgb_array") if render else function(task)


def serve(make: Callable[[str, bool], Any], source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until nobody asks any more, or the environment was closed."""
    server = Server(make)

    def read(size: int) -> bytes:
        data = source.read(size)
        if len(data) < size:
            raise ProtocolError("expected more bytes")
        return data

    while True:
        line = source.readline(MOST_LINE + 1)
        if not line:
            return
        asked: dict[str, Any] = {}
        try:
            asked, arrays = unpack(line, read)
            answer = pack(*server.answer(asked, arrays))
        except ProtocolError as error:
            sys.stderr.write(f"error: {error}\n")
            return
        except Exception as error:  # whatever an environment raises is the answer
            text = " ".join(str(error).split())[:1000]
            answer = pack({"error": f"{type(error).__name__}: {text}".rstrip(": ")})
        sink.write(answer)
        sink.flush()
        if "close" in asked:
            return


def main() -> None:
    """Serve what the command line names. Standard output is ours alone: what others print goes to standard error."""
    if len(sys.argv) != 2:
        sys.exit("usage: serve_environment.py gymnasium[:ID] | gym[:ID] | procgen | MODULE:FUNCTION | FILE.py:FUNCTION")
    beside = Path(__file__).resolve().parent  # what lies there may have the name of a package
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != beside]
    try:
        make = maker(sys.argv[1])
    except ValueError as error:
        sys.exit(f"error: {error}")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            1, signal.SIGKILL
        )  # PR_SET_PDEATHSIG: end with the one that asks, whatever we are doing
    with os.fdopen(os.dup(0), "rb") as source, os.fdopen(os.dup(1), "wb") as sink:
        os.dup2(2, 1)
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)  # number 0: nobody reads what is meant for us
        serve(make, source, sink)


if __name__ == "__main__":
    main()
