"""An environment in another process: the protocol, and every way in which the other side can go wrong."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lram_export.bundle.bundle import Bundle
from lram_export.errors import EnvironmentFailure, UsageError
from lram_export.rollouts.environments import open_environment, serve_environment
from lram_export.rollouts.environments.command import CommandEnv
from lram_export.rollouts.environments.serve_environment import DTYPES, MARK, ProtocolError, pack, unpack
from lram_export.rollouts.evaluation import EvaluationOptions, evaluate
from tests.conftest import ExportFunction, cli, fail
from tests.rollouts.line import OPTIONS

SERVER = Path(serve_environment.__file__)
SERVED = Path(__file__).parent / "served.py"


def command(what: str = f"{SERVED}:Line", python: str | Path = sys.executable) -> str:
    return shlex.join([str(python), str(SERVER), what])


def opened(task: str, patience: float = 20.0, how: str | None = None) -> CommandEnv:
    environment = open_environment(f"command/{task}", command=how or command(), patience=patience)
    assert isinstance(environment, CommandEnv)
    return environment


def answering(text: str) -> str:
    """A process that says something, whatever it is asked, and stays."""
    code = f"import sys, time; sys.stdout.buffer.write({text}); sys.stdout.flush(); time.sleep(600)"
    return python(code)


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope="module")
def line(exported: ExportFunction) -> Path:
    return exported("state_m", targets=("onnxruntime",), options=OPTIONS)


STRANGE_REWARD = """
import sys
import numpy as np
from lram_export.rollouts.environments.serve_environment import pack, unpack
box, ones = {{"box": {{"shape": [2], "dtype": "float32"}}}}, np.ones(2, np.float32)
ends = [(n, s, -1 if s == "low" else 1) for n in ("observation", "action") for s in ("low", "high")]
bounds = {{f"{{n}}_{{s}}": ones * sign for n, s, sign in ends}}
told = {{"observed": True, "reward": 98765, "terminated": False, "truncated": False, "success": None}}
for answer in (
    pack({{"hello": 1, "observation": box, "action": box}}, bounds),
    pack({{"observed": True}}, {{"observation": ones}}),
    pack(told, {{"observation": ones}}).replace(b"98765", b"{reward}"),
):
    unpack(sys.stdin.buffer.readline(), sys.stdin.buffer.read)
    sys.stdout.buffer.write(answer)
    sys.stdout.flush()
"""


class TestEpisodes:
    def test_an_episode_is_a_function_of_its_seed(self) -> None:
        environment = opened("any")
        try:
            first, _ = environment.reset(seed=3)
            assert np.array_equal(first, np.random.default_rng(3).normal(size=3).astype("float32"))
            for _ in range(12):
                seen, reward, terminated, truncated, info = environment.step(np.array([1.0, 0.0], np.float32))
            assert seen[0] == pytest.approx(first[0] + 1.2, rel=1e-5) and reward == -abs(seen[0])
            assert (terminated, truncated, info) == (False, True, {"success": bool(seen[0] > 0)})
            assert np.array_equal(environment.reset(seed=3)[0], first)
        finally:
            environment.close()

    def test_gymnasiums_environments_are_served_to_the_bit(self) -> None:
        here = open_environment("gym/Pendulum-v1")
        there = opened("Pendulum-v1", how=command("gymnasium"))
        try:
            assert there.observation_space == here.observation_space and there.action_space == here.action_space
            assert np.array_equal(there.reset(seed=5)[0], here.reset(seed=5)[0])
            action = np.array([0.7], np.float32)
            for one, other in zip(here.step(action)[:4], there.step(action)[:4], strict=True):
                assert np.array_equal(one, other)
        finally:
            there.close()

    @pytest.mark.parametrize("parallel", [1, 2])
    def test_an_evaluation_plays_in_them(self, parallel: int, line: Path) -> None:
        names = ("command/any", "command/raises", "command/exits")
        options = EvaluationOptions(
            names, ("onnxruntime",), episodes=3, parallel=parallel, commands={"command": command()}
        )
        result = evaluate(Bundle.open(line), options, None)
        assert [len(r.episodes) for r in result.results] == [3, 0, 0]
        assert result.results[0].steps == 36
        assert result.failures == {
            "command/raises": "command/raises: failed in step: ValueError: the simulator has exploded",
            "command/exits": "command/exits: failed in step: its process ended (exit code 3): out of licences",
        }

    def test_the_command_line(self, line: Path) -> None:
        arguments = ["--env", "command/any", "--env-command", command(), "--episodes", "2", "-q", "--no-reference"]
        done = cli("evaluate", line, *arguments)
        assert done.exit_code == 0 and "command/any" in done.stdout


class TestFailures:
    @pytest.mark.parametrize(
        ("task", "words"),
        [
            ("unmade", "command/unmade: failed in its making: RuntimeError: no display here"),
            ("dict", "--env command/dict: its observation is"),
        ],
    )
    def test_what_cannot_be_made_is_said_in_one_line(self, task: str, words: str) -> None:
        with pytest.raises((EnvironmentFailure, UsageError)) as error:
            opened(task)
        assert words in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("task", "words"),
        [
            (
                "shape",
                "failed in step: observation: expected float32 of shape (3,), as it said, got float32 of shape (4,)",
            ),
            ("raises", "failed in step: ValueError: the simulator has exploded"),
        ],
    )
    def test_what_goes_wrong_in_a_step_is_said_in_one_line(self, task: str, words: str) -> None:
        environment = opened(task)
        environment.reset(seed=0)
        with pytest.raises(EnvironmentFailure) as error:
            for _ in range(6):
                environment.step(np.zeros(2, np.float32))
        assert words in str(error.value)
        environment.close()

    def test_one_that_does_not_close_is_told_and_ended(self) -> None:
        environment = opened("stays")
        with pytest.raises(EnvironmentFailure, match="failed in close: RuntimeError: does not end"):
            environment.close()
        assert environment._process._process.returncode is not None

    def test_a_process_that_hangs_is_ended_with_its_children(self, tmp_path: Path) -> None:
        file = tmp_path / "pids"
        environment = opened(f"hangs-{file}", patience=20.0)
        environment._process._patience = 0.7
        environment.reset(seed=0)
        with pytest.raises(EnvironmentFailure, match=r"did not answer within 0.7 s, and was ended"):
            for _ in range(6):
                environment.step(np.zeros(2, np.float32))
        assert all(gone(int(pid)) for pid in file.read_text().split())

    def test_it_ends_with_the_one_that_started_it(self, tmp_path: Path) -> None:
        file = tmp_path / "pids"
        code = (
            "import numpy as np\n"
            "from lram_export.rollouts.environments import open_environment\n"
            f"e = open_environment('command/hangs-{file}', command={command()!r}, patience=60)\n"
            "e.reset(seed=0)\n"
            "for _ in range(6): e.step(np.zeros(2, np.float32))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code])
        for _ in range(400):
            if file.exists() and " " in file.read_text():
                break
            time.sleep(0.05)
        process.kill()
        process.wait()
        server, child = map(int, file.read_text().split())
        assert gone(server)
        os.kill(child, signal.SIGKILL)  # a simulator's own child, which nobody told us of

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            (answering("b'Hello from pygame 2.5\\n'"), "failed in its making: expected a message, got 'Hello from"),
            (answering("b'x' * (2 << 20)"), "expected a message, got b'xxx"),
            (answering("b'LRAM {\"arrays\": []}\\n'"), "expected 'hello' in the answer, got {}"),
            (answering("b'LRAM {\"hello\": 2, \"arrays\": []}\\n'"), "speaks version 2 of the protocol, not 1"),
            (answering("b'LRAM {\"hello\": 1, \"arrays\": []}\\n'"), "observation: expected a space, got None"),
            (answering("b'LRAM {\"hello\": 1, \"arrays\": []}\\nmore'") , "observation: expected a space, got None"),
            (answering("b'LRAM {\"arrays\": [[\"a\", \"float32\", [1e9]]]}\\n'"), "shape [1000000000.0]"),
            (python("import sys; sys.exit('no licence')"), "ended (exit code 1): no licence"),
            (python("import os, time; os.close(1); time.sleep(60)"), "closed its output"),
            (command("nonsense"), "ended (exit code 1): error: expected gymnasium, gym, procgen"),
            (command("nowhere:make"), "ModuleNotFoundError: No module named 'nowhere'"),
        ],
    )  # fmt: skip
    def test_whatever_answers_instead(self, how: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lram_export.rollouts.environments.command.SECONDS_TO_END", 0.3)
        with pytest.raises(EnvironmentFailure) as error:
            opened("any", how=how)
        assert words in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize("reward", ["NaN", "Infinity", "true", "null"])
    def test_a_reward_that_is_no_number(self, reward: str) -> None:
        environment = opened("any", how=python(STRANGE_REWARD.format(reward=reward)))
        environment.reset(seed=0)
        with pytest.raises(EnvironmentFailure, match=r"^command/any: failed in step: expected a finite reward, "):
            environment.step(np.zeros(2, np.float32))
        environment._process.kill()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--env", "command/any"], "another process has to make it; say how with --env-command command=COMMAND"),
            (["--env", "command/any", "--env-command", "nowhere/python x"], "cannot start 'nowhere/python': No such"),
            (["--env", "command/any", "--env-command", "'"], "is no command"),
            (["--env", "command/any", "--env-command", "abc=x"], "--env-command: unknown environment 'abc/TASK'"),
            (["--env", "command/any", "--env-command", "a", "--env-command", "command=b"], "has two commands"),
            (["--env", "command/any", "--env-command", "x", "--env-timeout", "0"], "--env-timeout"),
            (["--env", "composuite/IIWA_Box_None_Push"], "another Python have it: --env-command composuite=COMMAND"),
        ],
    )  # fmt: skip
    def test_wrong_requests(self, arguments: list[str], words: str, line: Path) -> None:
        code, text = fail("evaluate", line, "--no-reference", *arguments)
        assert code == 2 and words in text


@st.composite
def messages(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    content = draw(st.dictionaries(st.text(max_size=8).filter(lambda k: k != "arrays"), values | st.text(max_size=8)))
    arrays = {}
    for name in draw(st.lists(st.text(max_size=4), max_size=3, unique=True)):
        dtype, shape = np.dtype(draw(st.sampled_from(DTYPES))), draw(st.lists(st.integers(0, 3), max_size=3))
        size = dtype.itemsize * int(np.prod(shape, dtype=int))
        raw = draw(st.binary(min_size=size, max_size=size))
        arrays[name] = (
            (np.frombuffer(raw, np.uint8) % 2).astype(bool).reshape(shape)
            if dtype.kind == "b"
            else (np.frombuffer(raw, dtype).reshape(shape))
        )
    return content, arrays


def read(data: bytes, whole: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    stream = io.BytesIO(data)

    def some(size: int) -> bytes:
        found = stream.read(size)
        if len(found) < size:
            raise ProtocolError("cut off")
        return found

    found = unpack(stream.readline(), some)
    assert not whole or stream.read() == b""
    return found


class TestProtocol:
    @settings(max_examples=100, deadline=None)
    @given(messages())
    def test_a_message_arrives_as_it_was_sent(self, message: tuple[dict[str, Any], dict[str, np.ndarray]]) -> None:
        content, arrays = read(pack(*message))
        assert content == message[0] and arrays.keys() == message[1].keys()
        for name, array in message[1].items():
            assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
            assert arrays[name].tobytes() == array.tobytes()

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: MARK + tail + b"\n"))
    def test_anything_else_is_refused_as_such(self, data: bytes) -> None:
        try:
            read(data, whole=False)
        except ProtocolError as error:
            assert "\n" not in str(error)

    @settings(max_examples=100, deadline=None)
    @given(messages(), st.data())
    def test_a_message_that_is_altered_or_cut_off_is_read_or_refused(
        self, message: tuple[dict[str, Any], dict[str, np.ndarray]], data: st.DataObject
    ) -> None:
        packed = bytearray(pack(*message))
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
        with suppress(ProtocolError):
            read(bytes(packed[: data.draw(st.integers(0, len(packed)))]), whole=False)

    def test_no_memory_is_taken_for_what_is_only_claimed(self) -> None:
        line = MARK + b'{"arrays": [["a", "float64", [268435456, 268435456]]]}\n'
        with pytest.raises(ProtocolError, match="more than 268435456"):
            unpack(line, lambda size: b"")
