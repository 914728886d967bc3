"""Whatever is opened is closed, also when something fails in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from lram_export import export
from lram_export.bundle.bundle import Bundle
from lram_export.errors import UsageError
from lram_export.policy import load_policy
from lram_export.rollouts import playing
from lram_export.rollouts.evaluation import EvaluationOptions, evaluate
from lram_export.rollouts.recorded_episodes import EpisodePlan, record_episodes
from tests.conftest import GOLDEN, ExportFunction, succeed

SIZES = ("--observation-dim", "3", "--action-dim", "2", "--target-return", "1", "--reward-scale", "1")
BREAKS, WIDE = "gym/LramTestBreaks-v0", "gym/LramTestWide-v0"


class Counted(gymnasium.Env[Any, Any]):
    """Counts how many of its kind are open; steps fail."""

    open = 0

    def __init__(self, dimension: int, render_mode: str | None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (dimension,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        Counted.open += 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(self.observation_space.shape or (), np.float32), {}

    def step(self, action: Any) -> Any:
        raise KeyboardInterrupt

    def close(self) -> None:
        Counted.open -= 1


@pytest.fixture(autouse=True)
def environments() -> Iterator[None]:
    for name, dimension in ((BREAKS, 3), (WIDE, 30)):
        gymnasium.register(name.removeprefix("gym/"), entry_point=Counted, kwargs={"dimension": dimension})
    Counted.open = 0
    yield
    for name in (BREAKS, WIDE):
        gymnasium.registry.pop(name.removeprefix("gym/"))


@pytest.fixture
def bundle(exported: ExportFunction) -> Path:
    return exported("state_m", targets=("onnxruntime",), options=SIZES)


@pytest.mark.parametrize(("names", "error"), [((BREAKS,), KeyboardInterrupt), ((BREAKS, WIDE), UsageError)])
def test_environments(names: tuple[str, ...], error: type[BaseException], bundle: Path) -> None:
    """An interrupt in the middle of an episode; and one that does not fit, after one that does."""
    opened = Bundle.open(bundle)
    with pytest.raises(error):
        evaluate(opened, EvaluationOptions(names, ("onnxruntime",)), None)
    assert Counted.open == 0
    with load_policy(bundle) as policy, pytest.raises(error):
        record_episodes(policy, EpisodePlan(names, 1, 0))
    assert Counted.open == 0


def test_runtimes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    load = playing.load_runtime

    def counted(target: str, artifact: Any, threads: int) -> Any:
        if target == "missing":
            raise UsageError("injected")
        runtime = load(target, artifact, threads)
        monkeypatch.setattr(runtime, "close", lambda: closed.append(target))
        return runtime

    opened = Bundle.open(bundle)
    loaded = opened.load_artifact("onnxruntime")
    monkeypatch.setattr(playing, "load_runtime", counted)
    monkeypatch.setattr(Bundle, "load_artifact", lambda self, target, batch: loaded)
    with pytest.raises(UsageError, match="injected"):
        evaluate(opened, EvaluationOptions((BREAKS,), ("onnxruntime", "missing")), None)
    assert closed == ["onnxruntime"] and Counted.open == 0


def test_a_report_that_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("cannot draw")

    monkeypatch.setattr(export, "_write_report", fails)
    output = tmp_path / "out.lram"
    succeed("export", GOLDEN / "state_m" / "model.zip", "-o", output, *SIZES, "--target", "native", "-q")
    assert [r.getMessage() for r in caplog.records if r.name == "lram_export.export"] == [
        f"note: {output}: without report.html: ValueError: cannot draw"
    ]
    assert (output / "manifest.json").is_file() and not (output / "report.html").exists()
