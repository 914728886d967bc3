"""The node's module without rclpy: every call of it that the module makes fits rclpy's own signatures, in Humble and in
Jazzy (`record_rclpy.py`); every message that it makes has those fields.

`ros/lram_ros/test` has the tests of the node itself, which run where ROS 2 is; here they do where rclpy is installed.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ros.definitions import message
from tests.ros.record_rclpy import NODE

TABLE = json.loads((Path(__file__).parent / "rclpy.json").read_text(encoding="utf-8"))
PACKAGE = NODE.parents[1]
CLASS = "PolicyNode"
BASES = ("rclpy.lifecycle.node.LifecycleNode", "rclpy.lifecycle.node.LifecycleNodeMixin", "rclpy.node.Node")
AT = {
    "rclpy.lifecycle.LifecycleNode": "rclpy.lifecycle.node.LifecycleNode",
    "create_lifecycle_publisher": "create_publisher",  # hands all on to it
}
"""What is called otherwise where it is written."""
GIVES = {
    "get_clock": "rclpy.clock.Clock",
    "now": "rclpy.time.Time",
    "get_logger": "rclpy.impl.rcutils_logger.RcutilsLogger",
    "get_parameter": "rclpy.parameter.Parameter",
    "create_guard_condition": "rclpy.guard_condition.GuardCondition",
}
"""What a method gives."""
HELD = {
    "commands": "rclpy.publisher.Publisher",
    "self._log": GIVES["get_logger"],
    "self._over": GIVES["create_guard_condition"],
    "executor": "rclpy.executors.SingleThreadedExecutor",
    "parameter": GIVES["get_parameter"],
}
"""What a variable of the module is."""
DISTRIBUTIONS = pytest.mark.parametrize("distribution", sorted(TABLE))


class Module:
    """The node's module: what it imports, and which methods it has."""

    def __init__(self) -> None:
        self.tree = ast.parse(NODE.read_text(encoding="utf-8"))
        self.imported = {
            name.asname or name.name: f"{statement.module}.{name.name}"
            for statement in ast.walk(self.tree)
            if isinstance(statement, ast.ImportFrom) and statement.module
            for name in statement.names
        }
        classes = {c.name: c for c in self.tree.body if isinstance(c, ast.ClassDef)}
        self.own = {f.name for f in classes[CLASS].body if isinstance(f, ast.FunctionDef)}

    def of(self, value: ast.expr) -> tuple[str, ...]:
        """The classes of rclpy that an expression may be of."""
        text = ast.unparse(value)
        if text in ("self", "super()", "node"):
            return BASES
        if text in HELD:
            kind = HELD[text]
            return (kind, "rclpy.executors.Executor") if kind.startswith("rclpy.executors") else (kind,)
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in GIVES:
            return (GIVES[value.func.attr],)
        imported = self.imported.get(text, text)
        return (imported,) if imported.startswith("rclpy") else ()

    def uses(self) -> Iterator[tuple[str, tuple[str, ...], ast.Call | None]]:
        """(text, names that it may have in rclpy, the call of it if it is one)."""
        called = {id(call.func): call for call in ast.walk(self.tree) if isinstance(call, ast.Call)}
        others = [c for c in self.tree.body if isinstance(c, ast.ClassDef) and c.name != CLASS]
        elsewhere = {
            id(node) for other in others for node in ast.walk(other) if ast.unparse(node).startswith("super()")
        }
        for node in ast.walk(self.tree):
            if id(node) in elsewhere:
                continue
            call = called.get(id(node))
            if isinstance(node, ast.Attribute):
                classes = self.of(node.value)
                text = ast.unparse(node)
                is_own = text.startswith(("self.", "node.")) and (node.attr in self.own or node.attr.startswith("_"))
                if classes and not is_own:
                    yield text, tuple(f"{kind}.{AT.get(node.attr, node.attr)}" for kind in classes), call
            elif isinstance(node, ast.Name) and call is not None:
                kind = self.imported.get(node.id, "")
                if kind.startswith("rclpy"):
                    yield node.id, (f"{kind}.__init__", f"{kind}.__new__", kind), call


MODULE = Module()


def fits(arguments: str, call: ast.Call, is_bound: bool) -> str | None:
    """Why a call cannot be, by the arguments of a function; None where it can."""
    space: dict[str, Any] = {}
    exec(f"def function({arguments}): ...", space)
    named = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
    try:
        inspect.signature(space["function"]).bind(*[None] * (is_bound + len(call.args)), **named)
    except TypeError as error:
        return str(error)
    return None


def complaints(module: Module, distribution: str) -> list[str]:
    """What does not fit."""
    names, found = TABLE[distribution]["names"], []
    for text, candidates, call in module.uses():
        known = [name for name in candidates if name in names]
        if not known:
            found.append(f"{text}: not in rclpy; if it is, record it anew")
        elif call is not None:
            if known[0].endswith("QoSProfile.__init__"):
                slots = names["rclpy.qos.QoSProfile.__slots__"]
                found += [f"{text}: {k.arg}" for k in call.keywords if f"_{k.arg}" not in slots]
            is_bound = known[0].split(".")[-2][0].isupper()  # a method, not a function of a module
            reason = None if names[known[0]] is None else fits(names[known[0]], call, is_bound)
            found += [f"{text}: {reason}"] if reason else []
    return found


@DISTRIBUTIONS
def test_every_use_of_rclpy_fits_its_signatures(distribution: str) -> None:
    uses = list(MODULE.uses())
    assert len(uses) > 60 and sum(call is not None for _, _, call in uses) > 50
    assert complaints(MODULE, distribution) == []


@DISTRIBUTIONS
@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("self.create_timer(1.0, self._report, clock=", "self.create_timer(1.0, self._report, clocks=", "clocks"),
        ("callback, qos)", "callback)", "qos_profile"),
        ("self.trigger_deactivate()", "self.trigger_deactivated()", "trigger_deactivated: not in rclpy"),
        ("depth=100", "length=100", "QoSProfile: length"),
        ("ReliabilityPolicy.RELIABLE", "ReliabilityPolicy.SURE", "SURE: not in rclpy"),
        ("spin_once(timeout_sec=SPIN)", "spin_once(timeout=SPIN)", "timeout"),
        ("SignalHandlerOptions.NO", "SignalHandlerOptions.NONE", "NONE: not in rclpy"),
        ("self._log.warning(text)", "self._log.warned(text)", "warned: not in rclpy"),
    ],
)
def test_a_use_that_does_not_fit_is_found(distribution: str, right: str, wrong: str, said: str) -> None:
    text = NODE.read_text(encoding="utf-8")
    assert right in text
    module = Module()
    module.tree = ast.parse(text.replace(right, wrong))
    assert any(said in complaint for complaint in complaints(module, distribution))


def test_every_message_that_is_made_has_these_fields() -> None:
    made = 0
    for call in ast.walk(MODULE.tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            package, _, name = MODULE.imported.get(call.func.id, "").rpartition(".msg.")
            if package and package != "rcl_interfaces":
                fields = message(f"{package}/msg/{name}").FIELDS
                assert {keyword.arg for keyword in call.keywords} <= set(fields), ast.unparse(call)
                made += bool(call.keywords)
    assert made == 3


def test_every_type_that_may_be_told_is_known_to_the_node() -> None:
    from lram_ros.topics import CHOICE, OBSERVED, POINT, SENT

    (table,) = (n.value for n in MODULE.tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "TYPES")
    assert isinstance(table, ast.Dict)
    types = {
        key.value: ast.unparse(kind)
        for key, kind in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant)
    }
    assert set(types) == {*OBSERVED, *SENT, CHOICE, POINT}
    assert {f"{MODULE.imported[kind].replace('.', '/')}" for kind in types.values()} == set(types)


def test_what_colcon_installs_is_there() -> None:
    setup = (PACKAGE / "setup.py").read_text(encoding="utf-8")
    for folder in ("launch", "config"):
        for file in (PACKAGE / folder).iterdir():
            if file.is_file():
                assert f'"{folder}/{file.name}"' in setup
    described = (PACKAGE / "package.xml").read_text(encoding="utf-8")
    packages = {name.split(".")[0] for name in MODULE.imported.values()}
    for package in packages - {"lram_export", "lram_ros", "collections", "typing", "__future__"}:
        assert f"<exec_depend>{package}</exec_depend>" in described, package


@pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="rclpy is not installed: a machine with ROS 2")
def test_the_node_does_what_its_own_tests_say() -> None:
    assert pytest.main(["-q", "-p", "no:cacheprovider", str(PACKAGE / "test")]) == 0
