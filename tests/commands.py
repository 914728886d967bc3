"""Commands of the documentation that its test does not run (`console` blocks): what does, or why nothing can.

`tests/test_docs.py` holds the pages to it: a command that is not here fails, so does a line here that no page has, and
so does a proof that is not in its file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.pages import read_blocks

ROOT = Path(__file__).resolve().parent.parent


class Command(NamedTuple):
    """A command as a page has it, without a comment at its end; ``where`` is the page and the line."""

    where: str
    line: str


class Elsewhere(NamedTuple):
    """Commands (a regular expression, for the whole line) and what runs the same: a text in a file."""

    lines: str
    file: str
    proof: str


KIT = "tests/wheels/test_kit.py"
RELEASE = "tests/wheels/test_release.py"
INSTALLED = "tests/targets/test_native_install.py"
ENVIRONMENT = "tests/test_environment.py"
CONSUMERS = "tests/conversion/test_consumers.py"
LEROBOT = "tests/conversion/test_lerobot_programs.py"
TRITON = "tests/conversion/test_triton_server.py"
WORKFLOW = ".github/workflows/release.yml"

ELSEWHERE = (
    Elsewhere(r"make install", ".ci/run", "make --jobs 2 --output-sync=target install "),
    Elsewhere(r"make test", ".ci/run", "\nmake test\n"),
    Elsewhere(r"make demo", "tests/test_docs.py", '"examples" / "demo.py"'),
    Elsewhere(r"make wheels", WORKFLOW, "run: make wheels"),
    Elsewhere(r"make test-wheels", WORKFLOW, "make test-wheels"),
    Elsewhere(r"pip install (-c constraints\.txt )?'\.\[(all|evaluate)\]'", "Makefile", "--editable '.[all,dev]'"),
    Elsewhere(r"pip install '\.\[onnxruntime\]'", ENVIRONMENT, 'robot_with("onnxruntime"'),
    Elsewhere(r"pip install --find-links dist .*", RELEASE, '"--find-links", DIST, "lram-export[native]"'),
    # the engine, and programs over it
    Elsewhere(
        r"cmake (-S kernels/native -B|--build|--install) build/lram( --\w+ .*)?",
        INSTALLED,
        'follow_the_page("build/lram"',
    ),
    Elsewhere(r"cmake (-S examples/c -B |--build )build/c( .*)?", INSTALLED, 'follow_the_page("build/c"'),
    Elsewhere(r"cmake (-S examples/cpp -B |--build )build/cpp( .*)?", INSTALLED, 'follow_the_page("build/c"'),
    Elsewhere(r"cmake .*build/lram-arm.*", "tests/targets/test_native_cross.py", "build/lram-arm"),
    Elsewhere(r"robot\$ g\+\+ .*/check\.cpp .*", KIT, 'self.build(kit, "g++")'),
    Elsewhere(r"robot\$ \./check .*", KIT, '"check", model, Path(moved) / "reference.lrs"'),
    Elsewhere(r"cmake -S \. -B build -DLRAM_BRIDGE_ONLY=ON .*", "tests/ros/test_bridge.py", '"-DLRAM_BRIDGE_ONLY=ON"'),
    # kits
    Elsewhere(r"lram-export deploy .* --platform aarch64 --python 3\.1\d --dist dist", KIT, '"--platform", "aarch64"'),
    Elsewhere(r"robot\$ tar xzf \w+-kit\.tar\.gz( && sudo sh \w+/install\.sh)?", ENVIRONMENT, '"install.sh"'),
    Elsewhere(r"robot\$ sudo sh \w+/install\.sh", KIT, 'kit / "install.sh"'),
    Elsewhere(r"robot\$ sudo sh \w+/install\.sh --isolated", KIT, '"--isolated"'),
    Elsewhere(
        r"(robot\$ venv/bin/)?python control_loop\.py \w+\.lram( --target native)?( --controller-rate .*)?",
        "tests/loop/test_rate.py",
        'kit / "control_loop.py"',
    ),
    Elsewhere(r"robot\$ .*control_loop\.py .* --robot robot .*", "tests/loop/test_program.py", '"--robot", "robot"'),
    Elsewhere(r"control_loop \S+ --controller-rate .*", INSTALLED, '"--controller-rate", "100"'),
    Elsewhere(r"robot\$ venv/bin/lram-export flight .*", "docs/flights.md", "\nlram-export flight night.mcap\n"),
    Elsewhere(r"robot\$ .* verify \S+ --recording .*", "docs/flights.md", "verify reach.lram --recording night.mcap\n"),
    Elsewhere(r"robot\$ lram-export verify hf://.*", "tests/hub/test_bundles.py", 'succeed("verify", HF'),
    Elsewhere(r"robot\$ lram-export loop hf://.*", "tests/hub/test_bundles.py", '("loop", HF'),
    # clusters
    Elsewhere(r"ray start --(head|address)\S* ?.*", "benchmarks/cluster.py", 'str(BIN / "ray"), "start"'),
    Elsewhere(r"lram-export evaluate .* --ray \S+:\d+", "benchmarks/cluster.py", '["--ray", address]'),
    # programs of others
    Elsewhere(r"pip install physicalai .*", CONSUMERS, '"physicalai==0.3.0"'),
    Elsewhere(r"pip install lerobot .*", LEROBOT, 'PLUGIN = ROOT / "integrations" / "lerobot"'),
    Elsewhere(r"lram-export convert .* --to lerobot .*", LEROBOT, '"lerobot"'),
    Elsewhere(r"lerobot-eval .*", LEROBOT, 'programs / "lerobot-eval"'),
    Elsewhere(r"python examples/servers/check\.py triton .*", TRITON, '"servers" / "check.py"'),
    Elsewhere(r"python examples/servers/check\.py ovms .*", "tests/conversion/test_ovms.py", 'check.main("ovms"'),
)

NOWHERE = {
    r"pip install (-v .* )?'?lram-export(\[\w+\]')?": "a package index that has it, which none does "
    "yet; that the extra is one is tested",
    r"jetson\$ .*": "a Jetson; kits install and run on other machines in tests/test_environment.py",
    r"robot\$ cd /opt/\S+ && sudo nano robot\.py": "an editor, and a person in front of it",
    r"(robot\$ )?(sudo cp \S+ /etc/systemd/system/ && sudo )?systemctl .*": "systemd as the first process; what "
    "its unit relies on is in tests/loop/test_program.py",
    r"robot\$ journalctl .*": "systemd's journal",
    r"python benchmarks/gpu_check\.py .*": "a GPU; what needs none of it is in tests/targets/test_tensorrt.py",
    r"python benchmarks/cluster\.py .*": "root, for network namespaces, and two cores with nothing else on them; the "
    "same on one node is in tests/cluster",
    r"make test-slow": "the rare half of these very tests, before a release",
    r"make metaworld": "three hours of training",
    r"docker run .*": "images of a registry; what the servers do around a model is in tests/conversion",
    r"lerobot-rollout .*": "a robot; the methods that it calls are in integrations/lerobot/tests/test_policy.py",
    r"(ros2|rosdep|colcon|python3 -m (pip|venv|colcon)|source|mkdir -p ~/robot/src) .*": "ROS 2, which no "
    "package index has; node and controller run without it in tests/ros",
    r"cmake (-S lram-export/kernels/native|--build build/lram && sudo) .*": "a workspace of ROS 2 beside a clone; the "
    "same without sudo is in tests/targets/test_native_install.py",
}
"""Commands (as above) -> what they need that no test has."""

PROGRAMS = (
    *("lram-export", "python", "python3", "pip", "make", "cmake", "ctest", "g++", "cc", "sh", "bash", "sudo", "tar"),
    *("cp", "mkdir", "cd", "source", "export", "git", "apt-get", "curl", "docker", "systemctl", "journalctl"),
    *("ros2", "rosdep", "colcon", "control_loop", "npm", "node"),
)
PROMPT = r"(?:robot|jetson)?\$ "
STARTS_ONE = re.compile(rf"^(?:{PROMPT})?(?:{'|'.join(map(re.escape, PROGRAMS))}) [^:=(]", re.MULTILINE)
"""What a command begins with; in a block that is none of commands there is no such line."""


def of_page(page: Path) -> Iterator[Command]:
    """The commands in the `console` blocks of a page in Markdown."""
    for block in read_blocks(page):
        if block.language == "console":
            yield from _lines(page, block.line, block.code)


def of_script(script: Path) -> Iterator[Command]:
    """Those in the texts of a script of the gallery."""
    text = script.read_text(encoding="utf-8")
    for block in re.finditer(r"^# \.\. code-block:: console\n#\n((?:#    .*\n)+)", text, re.MULTILINE):
        first = text[: block.start(1)].count("\n") + 1
        yield from _lines(script, first, re.sub(r"^#    ", "", block[1], flags=re.MULTILINE))


def _lines(page: Path, first: int, code: str) -> Iterator[Command]:
    for number, line in enumerate(code.splitlines(), start=first):
        if line.strip():
            yield Command(f"{page.relative_to(ROOT)}:{number}", re.sub(r"\s+# .*", "", line.strip()))
