"""Records signatures of rclpy that the node calls, for `test_node.py`, which needs no ROS.

    python -m tests.ros.record_rclpy CHECKOUT humble jazzy > tests/ros/rclpy.json

CHECKOUT is a clone of github.com/ros2/rclpy. Only what has a name that the node's module says is kept.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

NODE = Path(__file__).parents[2] / "ros/lram_ros/lram_ros/node.py"
CLASSES = {
    "__init__": (),
    "clock": ("Clock",),
    "duration": ("Duration",),
    "executors": ("Executor", "SingleThreadedExecutor"),
    "guard_condition": ("GuardCondition",),
    "impl/rcutils_logger": ("RcutilsLogger",),
    "lifecycle/node": ("LifecycleNode", "LifecycleNodeMixin"),
    "node": ("Node",),
    "parameter": ("Parameter",),
    "publisher": ("Publisher",),
    "qos": ("DurabilityPolicy", "HistoryPolicy", "QoSProfile", "ReliabilityPolicy"),
    "time": ("Time",),
    "utilities": (),
}
"""Module -> its classes that the node uses; of all their methods, and of the module's functions."""
ENUMS = {
    "rclpy.lifecycle.TransitionCallbackReturn": ("lifecycle.cpp", "TransitionCallbackReturnType"),
    "rclpy.signals.SignalHandlerOptions": ("signal_handler.cpp", "SignalHandlerOptions"),
    "rclpy.clock.ClockType": ("_rclpy_pybind11.cpp", "ClockType"),
}
"""What is written in C++."""


def words() -> set[str]:
    """Every name in the node's module, of attributes, too."""
    tree = ast.parse(NODE.read_text(encoding="utf-8"))
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}


def signature(function: ast.FunctionDef) -> str:
    """Its arguments without types; defaults are all `None`."""
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    for argument in filter(None, (arguments.vararg, arguments.kwarg)):
        argument.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [None if one is None else ast.Constant(None) for one in arguments.kw_defaults]
    return ast.unparse(arguments)


def members(of: ast.ClassDef, said: set[str]) -> dict[str, Any]:
    """Of a class: arguments of a method, the values of an attribute that is set, None for a property."""
    found: dict[str, Any] = {}
    for inner in of.body:
        if isinstance(inner, ast.FunctionDef) and inner.name in {"__init__", "__new__", *said}:
            marks = {mark.id for mark in inner.decorator_list if isinstance(mark, ast.Name)}
            if inner.name not in found:  # a setter comes after its property
                found[inner.name] = None if "property" in marks else signature(inner)
        elif isinstance(inner, ast.Assign) and isinstance(inner.targets[0], ast.Name):
            name = inner.targets[0].id
            if name == "__slots__":
                found[name] = [ast.literal_eval(one) for one in inner.value.elts]  # type: ignore[attr-defined]
            elif name in said:
                found[name] = None
    return found


def recorded(show: Any, said: set[str]) -> dict[str, Any]:
    """Dotted name -> arguments of a function; None for what is not called."""
    found: dict[str, Any] = {}
    for module, classes in CLASSES.items():
        dotted = f"rclpy.{module.replace('/', '.')}".removesuffix(".__init__")
        for top in ast.parse(show(f"rclpy/rclpy/{module}.py")).body:
            if isinstance(top, ast.FunctionDef) and top.name in said:
                found[f"{dotted}.{top.name}"] = signature(top)
            elif isinstance(top, ast.ClassDef) and top.name in classes:
                found |= {f"{dotted}.{top.name}.{name}": what for name, what in members(top, said).items()}
    for name, (file, kind) in ENUMS.items():
        text = show(f"rclpy/src/rclpy/{file}")
        at = text.find(f'"{kind}"')
        for member in re.findall(r'\.value\(\s*"(\w+)"', text[at : text.index(";", at)]):
            found[f"{name}.{member}"] = None
    return found


def main(checkout: str, *branches: str) -> None:
    """Write it for each branch."""
    table = {}
    for branch in branches:

        def show(path: str, branch: str = branch) -> str:
            return subprocess.run(
                ["git", "-C", checkout, "show", f"{branch}:{path}"], check=True, capture_output=True, text=True
            ).stdout

        commit = ["git", "-C", checkout, "rev-parse", branch]
        head = subprocess.run(commit, check=True, capture_output=True, text=True).stdout.strip()
        table[branch] = {"commit": head, "names": recorded(show, words())}
    json.dump(table, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
