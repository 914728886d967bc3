"""Executes the documentation: every `sh` and `python` block of every page runs, in order, in a fresh folder.

Fences mean:

* ``sh``: run by bash, which stops at the first command that fails;
* ``python``: run; all blocks of a page share one namespace;
* ``python file=NAME``: written to NAME, for later blocks to import or run;
* ``console``: not run here; ``tests/commands.py`` says of every line what runs it instead, or why nothing can;
* ``c`` and ``cmake``: code for the installed library; ``test_native_install.py`` compiles the C;
* ``text`` and ``json``: something to look at; JSON must parse.

A page's folder holds links to `tests` and `examples`, and a bundle ``reach.lram`` unless the page exports it.
To run one page by hand, in a folder prepared like that: ``python tests/pages.py docs/step-api.md``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomllib
from click.testing import CliRunner
from filelock import FileLock

from lram_export.backbones.mamba import original as mamba
from lram_export.backbones.xlstm import original as xlstm
from lram_export.benchmark.bench import BenchReport, BenchResult
from lram_export.checkpoints import training_config as hydra
from lram_export.cli import COMMANDS, main
from lram_export.runtimes import RUNTIMES
from lram_export.spec.parity import TOLERANCES, ParityResult
from tests import commands, pages, warm
from tests.pages import read_blocks

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
READMES = [
    *sorted(REPOSITORY.glob("ros/*/README.md")),
    *sorted(REPOSITORY.glob("integrations/*/README.md")),
    REPOSITORY / "examples" / "metaworld" / "checkpoints" / "README.md",
]
"""Pages for those who look into a folder: nothing in them runs."""
GALLERY = sorted((REPOSITORY / "examples" / "gallery").glob("*.py"))
"""Run by `make docs`."""
SLOW_PAGES = {
    "adding-a-target.md",
    "bundle.md",
    "checkpoint.md",
    "command-line.md",
    "convert.md",
    "evaluation.md",
    "flights.md",
    "jetson.md",
    "native.md",
    "openvino.md",
    "own-policy.md",
    "quantization.md",
    "scale.md",
    "step-api.md",
    "tensorrt.md",
    "tvm.md",
}
"""They export and evaluate for a minute or more: `make test-slow`."""
DIRECTIVES = ("{toctree}", "{include}", "{eval-rst}")
"""What only the site reads, see `make docs`."""
LANGUAGES = {"sh", "python", "console", "text", "json", "c", "cpp", "cmake", *DIRECTIVES}
FROM_NOTHING = {"README.md", "command-line.md", "serving.md"}
"""Their commands start as a user's do, and import everything, and signals reach them; those of other pages are forked:
`tests/warm.py`."""
PREPARED = "reach.lram"
PREPARE = f"export tests/golden/state_m/model.zip -o {PREPARED} --task metaworld/reach-v2 --quiet"
PREPARE += " --target onnxruntime --target pytorch"
PAGE_SECONDS = 500
"""Nothing here takes a tenth of this on an idle machine, and half of it on one that others use; it ends what hangs."""


def name(page: Path) -> str:
    """A page as the repository calls it."""
    return page.relative_to(REPOSITORY).as_posix()


EVERY_PAGE = pytest.mark.parametrize("page", [*PAGES, *READMES], ids=name)


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def environment() -> dict[str, str]:
    """This environment's commands first; one thread and no spinning in PyTorch, whose models here are tiny."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def workplace(folder: Path) -> Path:
    for name in ("tests", "examples"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def options_of(command: str) -> set[str]:
    """Long options that ``lram-export COMMAND --help`` lists."""
    result = CliRunner().invoke(main, [command, "--help"] if command else ["--help"])
    assert result.exit_code == 0, result.output
    return set(re.findall(r"^ +(?:-\w, )?(--[a-z][a-z-]*)", result.output, flags=re.MULTILINE))


def inline_code(page: Path) -> list[str]:
    """Spans of inline code outside fenced blocks."""
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", outside)


@pytest.fixture(scope="session")
def prepared(shared_folder: Path) -> Path:
    """The bundle for pages that do not export it themselves."""
    folder = shared_folder / "prepared"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            folder.mkdir()
            command = ["lram-export", *PREPARE.split()]
            subprocess.run(command, cwd=workplace(folder), env=environment(), check=True, timeout=PAGE_SECONDS)
    return folder / PREPARED


@pytest.fixture(scope="session")
def warm_commands(kept_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a program `lram-export` whose imports were done before."""
    with warm.install(tmp_path_factory.mktemp("warm"), kept_folder, environment()) as programs:
        yield programs


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow if p.name in SLOW_PAGES else ()) for p in PAGES], ids=name
)
def test_the_page_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code = "".join(block.code for block in read_blocks(page) if block.language in ("sh", "python"))
    if not code:
        pytest.skip("no block to run")
    workplace(tmp_path)
    if PREPARED in code and f"-o {PREPARED}" not in code:
        shutil.copytree(request.getfixturevalue("prepared"), tmp_path / PREPARED)
    own = environment()
    if page.name not in FROM_NOTHING and "lram-export " in code:
        own["PATH"] = f"{request.getfixturevalue('warm_commands')}{os.pathsep}{own['PATH']}"
    result = subprocess.run(
        [sys.executable, pages.__file__, str(page)],
        cwd=tmp_path,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PAGE_SECONDS,
        check=False,
    )
    assert result.returncode == 0, f"{page} does not run:\n{result.stdout}"


@pytest.mark.slow
def test_the_demo_runs() -> None:
    """What `make demo` runs."""
    program = [sys.executable, REPOSITORY / "examples" / "demo.py"]
    done = subprocess.run(program, capture_output=True, text=True, env=environment(), timeout=PAGE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "closed loop" in done.stdout


@EVERY_PAGE
def test_blocks_that_do_not_run_hold_no_command_of_ours(page: Path) -> None:
    for block in read_blocks(page):
        where = f"{page}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: unknown fence '{block.language}'"
        if block.language == "json":
            json.loads(block.code)
        elif block.language == "text":
            found = commands.STARTS_ONE.search(block.code)
            assert found is None, f"{where}: a command in a block of text: {found[0]}"


def not_run_here() -> list[commands.Command]:
    """Commands of pages and gallery that :func:`test_the_page_runs` leaves out."""
    found = [command for page in [*PAGES, *READMES] for command in commands.of_page(page)]
    return found + [command for script in GALLERY for command in commands.of_script(script)]


def test_every_command_is_run_here_or_elsewhere_or_it_is_said_why_not() -> None:
    known = [re.compile(lines) for lines in (*(each.lines for each in commands.ELSEWHERE), *commands.NOWHERE)]
    used = set()
    for where, line in not_run_here():
        says = [pattern.pattern for pattern in known if pattern.fullmatch(line)]
        assert says, f"{where}: nothing runs this: make it a block `sh`, or see tests/commands.py: {line}"
        assert len(says) == 1, f"{where}: {line}: tests/commands.py has it twice: {says}"
        used |= set(says)
    unused = {pattern.pattern for pattern in known} - used
    assert not unused, f"tests/commands.py: on no page: {unused}"
    for each in commands.ELSEWHERE:
        assert each.proof in text_of(each.file), f"tests/commands.py: {each.lines}: {each.file} has no {each.proof!r}"


def test_commands_that_are_not_run_have_options_extras_and_targets_that_exist() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    for where, line in not_run_here():
        for command, options in re.findall(
            r"lram-export (\w+)(.*)", line.replace("python control_loop.py", "lram-export loop")
        ):
            known = options_of(command) if command in COMMANDS else set()
            assert set(re.findall(r"--[a-z][a-z-]*", options)) <= known, f"{where}: {command}{options}"
        for extras in re.findall(r"(?:lram-export|\.)\[([\w,]+)\]", line):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), f"{where}: {line}"
        for target in re.findall(r"^make ([\w-]+)", line):
            assert re.search(rf"^{target}:", text_of("Makefile"), re.MULTILINE), f"{where}: {line}"


@EVERY_PAGE
def test_commands_and_options_that_are_mentioned_exist(page: Path) -> None:
    known = set().union(*(options_of(command) for command in ("", *COMMANDS)))
    for span in inline_code(page):
        if span.startswith("lram-export "):
            word = span.split()[1]
            assert word in COMMANDS or word.startswith("-"), f"{page}: {span}"
        if not span.startswith(("pip ", "make ", "cmake ", "ruff ", "python", "colcon ")):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)) - known
            assert not unknown, f"{page}: {span}: no command has {unknown}"


def anchors(page: Path) -> set[str]:
    """What links can lead to on a page: its headings as GitHub names them."""
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", outside, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page}: {link} does not exist"
        assert not anchor or anchor in anchors(target), f"{page}: {link}: no such heading"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented_with_all_its_options(command: str) -> None:
    page = text_of("docs/command-line.md")
    section = re.search(rf"^## `{command}`$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"docs/command-line.md: no section '## `{command}`'"
    documented = set(re.findall(r"`(?:-\w, )?(--[a-z][a-z-]*)", section[1]))
    missing = options_of(command) - documented - {"--help"}
    assert not missing, f"docs/command-line.md, {command}: {sorted(missing)} not documented"


def test_every_field_of_the_manifest_is_documented(prepared: Path) -> None:
    page = text_of("docs/bundle.md")

    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            # versions of tools are data, not fields
            return set(value).union(*(names(v) for k, v in value.items() if k != "tools"))
        return set().union(*(names(v) for v in value)) if isinstance(value, list) else set()

    missing = {n for n in names(json.loads((prepared / "manifest.json").read_text())) if f"`{n}`" not in page}
    assert not missing, f"docs/bundle.md: {sorted(missing)} not documented"


@pytest.mark.parametrize("kind", [ParityResult, BenchReport, BenchResult], ids=lambda kind: kind.__name__)
def test_every_number_of_verify_and_bench_is_documented(kind: type) -> None:
    page = text_of("docs/command-line.md")
    missing = [f.name for f in dataclasses.fields(kind) if f"`{f.name}`" not in page]
    assert not missing, f"docs/command-line.md: {missing} not documented"


def test_every_option_of_the_training_code_is_documented() -> None:
    page = text_of("docs/checkpoint.md")
    tables = (
        hydra.SUPPORTED_AGENT,
        hydra.SUPPORTED_OPTIONS,
        xlstm.SUPPORTED_HUGGINGFACE,
        xlstm.SUPPORTED_STACK,
        xlstm.SUPPORTED_SLSTM,
        xlstm.SUPPORTED_FEEDFORWARD,
        mamba.SUPPORTED_HUGGINGFACE,
        mamba.SUPPORTED_MODEL,
        hydra.SUPPORTED_ENVIRONMENT,
    )
    for table in tables:
        for name, (_, supported) in table.items():
            rows = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
            assert rows, f"docs/checkpoint.md: {name} has no row"
            wrong = [v for v in supported if not any(yaml(v) in row for row in rows)]
            assert not wrong, f"docs/checkpoint.md: {name}: the rows do not list {wrong}"
    sizes = (hydra.SIZE_OPTIONS, xlstm.SIZES_STACK, xlstm.SIZES_MLSTM, xlstm.SIZES_SLSTM, xlstm.SIZES_FEEDFORWARD)
    missing = [n for names in (*sizes, mamba.SIZES_HUGGINGFACE) for n in names if n not in page]
    assert not missing, f"docs/checkpoint.md: {missing} not documented"
    inert = (hydra.INERT_AGENT, hydra.INERT_OPTIONS, xlstm.INERT_HUGGINGFACE, xlstm.INERT_STACK, xlstm.INERT_BLOCK)
    inert = (*inert, xlstm.INERT_MLSTM, xlstm.INERT_SLSTM, xlstm.INERT_FEEDFORWARD)
    for table_of_reasons in (*inert, mamba.INERT_HUGGINGFACE, mamba.INERT_MODEL):
        for reason, names in table_of_reasons.items():
            listed = re.findall(rf"^- {re.escape(reason)}: ((?:.|\n  )*?)[;.]$", page, re.MULTILINE)
            missing = [n for n in names if not any(f"`{n}`" in line for line in listed)]
            assert not missing, f"docs/checkpoint.md: {missing} are not listed under '{reason}'"


def yaml(value: object) -> str:
    """A value as the page shows it."""
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}`"
    return f"`{json.dumps(value)}`"


def test_every_tolerance_is_documented() -> None:
    page = text_of("CONTRIBUTING.md")
    for precision, bound in TOLERANCES.items():
        assert f"| `{precision}` | {bound.logit:g} | {bound.state:g} | {bound.tie:g} |" in page, precision


def test_every_target_is_listed() -> None:
    for target in RUNTIMES:
        assert re.search(rf"^\| `{target}` \| (?!planned)", text_of("docs/targets.md"), re.MULTILINE), target
