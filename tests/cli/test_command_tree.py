"""Every option of every command refuses junk: one line, exit code 1 or 2, no traceback, nothing left behind.

The tests walk the tree of commands, so that a new option is held to the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lram_export import load_policy
from lram_export.cli import COMMANDS, main
from lram_export.cli.parameters import Command, OutputFile
from tests.conftest import GOLDEN, ExportFunction, fail
from tests.flight.flights import fly

CHECKPOINT = GOLDEN / "state_m" / "model.zip"
REACH = ("--task", "metaworld/reach-v2")
REQUIRED = {
    "convert": ("BUNDLE", "--to", "onnx-closed", "-o", "out"),
    "new": ("--preset", "16m", "-o", "out"),
    "inspect": ("CHECKPOINT",),
    "interface": ("BUNDLE", "-o", "out.yaml"),
    "export": ("CHECKPOINT", "-o", "out.lram", *REACH),
    "compile": ("BUNDLE",),
    "verify": ("BUNDLE",),
    "bench": ("BUNDLE", "--steps", "10"),
    "compare": ("BUNDLE", "BUNDLE"),
    "report": ("BUNDLE", "-o", "out.html"),
    "run": ("BUNDLE", "--observations", "NPZ", "-o", "out.npz"),
    "loop": ("BUNDLE", "--steps", "1"),
    "serve": ("BUNDLE",),
    "flight": ("FLIGHT",),
    "record": ("BUNDLE", "--observations", "NPZ", "-o", "out.npz"),
    "evaluate": ("BUNDLE", "--env", "gym/none"),
    "sweep": ("CHECKPOINT", "-o", "out", *REACH),
    "deploy": ("BUNDLE", "-o", "out.tar.gz"),
    "push": ("BUNDLE", "someone/policy", "--dry-run"),
    "doctor": (),
}
"""A complete call of every command."""

FREE_TEXT = {"--keep-fp32", "--slstm-at", "--env", "--revision", "--message", "--license"}
"""Any text may be right: patterns, names of others, and what is allowed to be empty."""


def parameters(kind: type[click.Parameter]) -> list[tuple[str, click.Parameter]]:
    """All of a kind, with their commands."""
    context = click.Context(main)
    commands = [(name, main.get_command(context, name)) for name in main.list_commands(context)]
    return [(name, p) for name, c in commands if c is not None for p in c.params if isinstance(p, kind)]


OPTIONS = [(c, o) for c, o in parameters(click.Option) if isinstance(o, click.Option) and not o.is_flag]
EVERY_OPTION = pytest.mark.parametrize(("command", "option"), OPTIONS, ids=lambda v: getattr(v, "name", v))


def junk(option: click.Option) -> Iterator[str]:
    """Values that no option of this type can mean."""
    kind = option.type
    if isinstance(kind, click.types.IntParamType):
        yield from ("x", "1.5", "nan", "inf", "-1", "9" * 30)
        assert isinstance(kind, click.IntRange), f"{option.opts}: a whole number without bounds"
    elif isinstance(kind, click.types.FloatParamType):
        yield from ("x", "nan", "inf", "-inf", "1e39", "1e999")
    elif isinstance(kind, OutputFile):
        yield from ("out", "out.pdf", "missing/out.pdf")
    elif isinstance(kind, click.Path) and kind.exists:
        yield from ("missing", "missing/file", "x" * 300)
    elif isinstance(kind, click.Path):
        yield from ("missing/folder/out.lram", "x" * 300)
    elif option.opts[-1] not in FREE_TEXT:
        yield from ("nope", "-", ",", "\u200b")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: ExportFunction) -> Path:
    """An empty folder to work in, with links to what the calls need."""
    import numpy as np

    inputs = tmp_path / "inputs"
    inputs.mkdir()
    np.savez(inputs / "in.npz", observations=np.zeros((3, 39), np.float32))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def flight(exported: ExportFunction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded flight."""
    bundle, path = exported("state_m", targets=("onnxruntime",)), tmp_path_factory.mktemp("flown") / "flight.mcap"
    with load_policy(bundle) as policy:
        fly(policy, bundle, path, steps=4)
    return path


@pytest.fixture
def call(place: Path, exported: ExportFunction, flight: Path) -> dict[str, list[str]]:
    """The complete calls, with paths."""
    bundle = exported("state_m", targets=("onnxruntime",))
    npz = place.parent / "inputs" / "in.npz"
    paths = {"CHECKPOINT": str(CHECKPOINT), "BUNDLE": str(bundle), "NPZ": str(npz), "FLIGHT": str(flight)}
    return {command: [paths.get(word, word) for word in words] for command, words in REQUIRED.items()}


def without(words: list[str], option: click.Option) -> list[str]:
    """A call without one of its options."""
    kept = list(words)
    for name in option.opts:
        while name in kept:
            at = kept.index(name)
            del kept[at : at + 2]
    return kept


def refused(words: list[str], place: Path, codes: tuple[int, ...] = (2,)) -> str:
    """The one line with which a call is refused; nothing may be left of it."""
    code, line = fail(*words)
    assert code in codes, (words, code, line)
    assert list(place.iterdir()) == [], words
    return line


def test_every_command_is_strict_and_has_a_complete_call() -> None:
    assert set(REQUIRED) == set(COMMANDS)
    context = click.Context(main)
    loose = [name for name in COMMANDS if not isinstance(main.get_command(context, name), Command)]
    assert not loose, f"{loose}: cls=Command is missing"


@EVERY_OPTION
def test_junk_is_refused(command: str, option: click.Option, call: dict[str, list[str]], place: Path) -> None:
    words = [command, *without(call[command], option)]
    for value in junk(option):
        line = refused([*words, f"{option.opts[-1]}={value}"], place, codes=(1, 2))
        if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType | OutputFile):
            assert option.opts[-1] in line and value in line


@EVERY_OPTION
def test_an_empty_value_is_refused(command: str, option: click.Option, call: dict[str, list[str]], place: Path) -> None:
    if option.default == "":
        pytest.skip("empty is its default")
    line = refused([command, *without(call[command], option), f"{option.opts[-1]}="], place)
    assert f"{option.opts[-1]}: expected a value" in line


@EVERY_OPTION
def test_a_single_value_is_not_given_twice(
    command: str, option: click.Option, call: dict[str, list[str]], place: Path
) -> None:
    if option.multiple:
        pytest.skip("may be repeated")
    twice = [f"{option.opts[0]}=a" if option.opts[0].startswith("--") else f"{option.opts[0]}a", option.opts[-1], "b"]
    line = refused([command, *without(call[command], option), *twice], place)
    assert f"{option.opts[-1]}: given 2 times" in line


@EVERY_OPTION
def test_inputs_that_do_not_exist_or_are_folders_are_wrong_use(
    command: str, option: click.Option, call: dict[str, list[str]], place: Path
) -> None:
    if not isinstance(option.type, click.Path) or not option.type.exists:
        pytest.skip("not an input")
    words = [command, *without(call[command], option)]
    assert "does not exist" in refused([*words, option.opts[-1], "missing"], place)
    if not option.type.dir_okay:
        assert "is a directory" in refused([*words, option.opts[-1], str(place.parent)], place)


@pytest.mark.parametrize(("command", "argument"), parameters(click.Argument), ids=lambda v: getattr(v, "name", v))
def test_arguments_that_are_no_checkpoint_and_no_bundle(
    command: str, argument: click.Argument, call: dict[str, list[str]], place: Path
) -> None:
    """A path that does not exist, an empty one, an empty folder, a file of something else."""
    (place.parent / "empty").mkdir()
    (place.parent / "text.txt").write_text("hello")
    rest = call[command][1:]
    assert "missing" in refused([command, "missing", *rest], place)
    assert "expected a value" in refused([command, "", *rest], place)
    for other in ("empty", "text.txt"):
        refused([command, str(place.parent / other), *rest], place, codes=(1, 2))
