"""Shared fixtures: golden data of the original training code, and bundles exported from it once per session."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from filelock import FileLock
from hypothesis import settings

from lram_export.cli import main
from lram_export.runtimes import RUNTIMES
from lram_export.spec.tasks import TaskSpec
from lram_export.system.cache import FOLDER_VARIABLE
from lram_export.targets.backbones import targets_of
from tests import once, simulated_gpu

# In CI a failure must be the change's, not the dice's; elsewhere every run tries new examples.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file share what they export, so one process runs them all; but the pages of the documentation,
    which take longest and share nothing, one by one, when either process is free.

    Its own groups (`xdist_group`) xdist 3.8 writes where pytest 9.2 does not look, and distributes test by test.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "::test_the_page_runs[" in nodeid else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # it is done below
    return ByFile(config, log)


@pytest.hookimpl(trylast=True)  # of the tests that are left
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many tests come first, as in xdist, so that no process is alone with one at the end; but before them
    the pages, which are one test each and take longest."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: ("::test_the_page_runs[" not in item.nodeid, -tests[item.path]))


# Children of a suite in the background or under nohup would ignore what tests of signals send: a signal that is ignored
# stays so in a new program, one that has a handler does not.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

SECONDS_TO_FAIL = 60


class TookTooLong(BaseException):
    """Not an `Exception`: what is tested, or runs the test, could take that for a result and go on."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that hangs fails, and so ends what it has started. One that hangs outside of Python does not even fail:
    ``faulthandler_timeout`` ends its process, a minute later."""

    def fail_test(*_: object) -> None:
        raise TookTooLong(f"more than {seconds:.0f} s")

    seconds = max(float(item.config.getini("faulthandler_timeout")) - SECONDS_TO_FAIL, 1)
    before = signal.signal(signal.SIGALRM, fail_test)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


SLOW = pytest.mark.slow
TARGETS = tuple(os.environ.get("LRAM_TARGETS", " ".join(RUNTIMES)).split())
"""What golden checkpoints are exported for, where their backbone runs, unless a test names others; `make test-gpu` has
fewer packages."""
TVM_PLATFORM = os.environ.get("LRAM_TVM_PLATFORM", "host")
"""What the target `tvm` is exported for; `make test-gpu` names the GPU that is here."""
GOLDEN = Path(__file__).parent / "golden"
GOLDEN_NAMES = ("state_m", "state_ms", "image_m", "mamba_state", "mamba_image", "dt_state", "dt_image")
SEMANTICS = {"none": "cached", "observed": "observed"}
"""Reward feedback -> prefix of the trace's arrays."""
CONTEXTS = {"none": "cache", "observed": "window"}
"""Reward feedback -> how a Decision Transformer acts in the trace."""


@dataclass(frozen=True)
class Golden:
    """A checkpoint the original code saved, and what its own agent did with it."""

    name: str
    checkpoint: Path
    meta: dict[str, Any]
    trace: dict[str, np.ndarray]

    @property
    def backbone(self) -> str:
        """Its kind."""
        return str(self.meta.get("backbone", "xlstm"))

    @property
    def task_options(self) -> list[str]:
        """Command-line options that describe the trace's task."""
        options = ["--target-return", str(float(self.trace["initial_return_to_go"])), "--reward-scale", "1"]
        if self.meta["observation"] == "image":
            return [*options, "--image", "--discrete"]
        dims = (self.meta["observation_dim"], self.meta["action_dim"])
        return [*options, "--observation-dim", str(dims[0]), "--action-dim", str(dims[1])]

    @property
    def task(self) -> TaskSpec:
        """The trace's task."""
        target = float(self.trace["initial_return_to_go"])
        if self.meta["observation"] == "image":
            return TaskSpec("custom", "image", None, "discrete", 1, target, 1.0)
        dims = (self.meta["observation_dim"], self.meta["action_dim"])
        return TaskSpec("custom", "state", dims[0], "continuous", dims[1], target, 1.0)

    def context_options(self, feedback: str) -> list[str]:
        """Command-line options that let the model act as in the trace."""
        return ["--context", CONTEXTS[feedback]] if self.backbone == "decision_transformer" else []

    def expected(self, feedback: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions, the logits they were chosen from, and return-to-go, per step."""
        prefix = SEMANTICS[feedback]
        logits = self.trace[f"{prefix}_logits"]
        if self.meta["action"] == "discrete":
            logits = logits[:, :18]
        else:
            logits = logits.reshape(len(logits), -1, 274)[:, : self.meta["action_dim"]]
        return self.trace[f"{prefix}_actions"], logits, self.trace[f"{prefix}_return_to_go"]


def load_golden(name: str) -> Golden:
    """Read one golden folder."""
    folder = GOLDEN / name
    with np.load(folder / "trace.npz") as file:
        trace = {key: file[key] for key in file.files}
    return Golden(name, folder / "model.zip", json.loads((folder / "meta.json").read_text()), trace)


def cli(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def succeed(*arguments: str | Path) -> Result:
    """Run a command that must succeed."""
    result = cli(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments: str | Path) -> tuple[int, str]:
    """Run a command that must fail with one line on standard error; returns exit code and that line."""
    result = cli(*arguments)
    assert result.exit_code in (1, 2), (result.exit_code, result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert lines and lines[-1].lower().startswith("error: "), result.output
    assert "Traceback" not in result.output
    return result.exit_code, lines[-1]


def shell(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh process, as a user would."""
    program = [sys.executable, "-c", "from lram_export.cli import main; main()"]
    return subprocess.run(
        [*program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Compiled models of the tests stay out of the user's cache; fresh processes inherit it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def kept_folder() -> Iterator[Path]:
    """The same graph is translated once, the same kernels are compiled once; benchmarks are short."""
    folder = once.kept_folder()
    with pytest.MonkeyPatch.context() as patch:
        once.measure_briefly(patch)
        once.translate_once(patch, folder)
        once.compile_once(patch, folder)
        yield folder


@pytest.fixture(autouse=True)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the target `tensorrt` finds a simulated GPU, for which :func:`exported` has compiled the engine."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is not None and "tensorrt" in map(str, parameters.params.values()):
        simulated_gpu.install(monkeypatch)


@pytest.fixture(scope="session", params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden checkpoint in turn."""
    return load_golden(request.param)


ExportFunction = Callable[..., Path]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all test processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def exported(shared_folder: Path) -> ExportFunction:
    """Export a golden checkpoint through the command line, once per session and set of options."""

    def export(
        name: str,
        feedback: str = "none",
        batch: int = 1,
        targets: Sequence[str] | None = None,
        options: Sequence[str] | None = None,
    ) -> Path:
        golden = load_golden(name)
        if targets is None:
            targets = [target for target in TARGETS if target in targets_of(golden.backbone)]
        chosen = [*(golden.task_options if options is None else options), "--reward-feedback", feedback]
        chosen += golden.context_options(feedback)
        chosen += ["--batch", str(batch), "--no-report", *(part for t in targets for part in ("--target", t))]
        if "tensorrt" in targets:
            chosen += ["--device", "agx-orin"]
        if "tvm" in targets:
            chosen += ["--platform", TVM_PLATFORM]
        digest = hashlib.sha256(json.dumps([name, *chosen]).encode()).hexdigest()[:8]
        path = shared_folder / f"{name}_{digest}.lram"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                succeed("export", golden.checkpoint, "-o", path, *chosen)
                if "tensorrt" in targets:
                    with pytest.MonkeyPatch.context() as patch:
                        simulated_gpu.install(patch)
                        succeed("compile", path, "--target", "tensorrt")
        return path

    return export
