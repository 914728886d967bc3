"""The program of the target `pytorch` is data: what is not a pure tensor operator is never looked up, nor called."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lram_export import ExportOptions, export_bundle, load_policy
from lram_export.errors import BundleError
from lram_export.spec.json_fields import Fields
from lram_export.step_module.graph import ModuleGraph
from lram_export.step_module.tracing import example_arguments, quietly, trace
from lram_export.targets.pytorch.program import Program, is_pure, operator, program_of, read_program
from tests.step_module.modules import POLICIES


def traced(name: str) -> tuple[ModuleGraph, Program, dict[str, torch.Tensor]]:
    graph = ModuleGraph(POLICIES[name](), 2)
    with quietly():
        return (graph, *program_of(trace(graph)))


@pytest.mark.parametrize("name", POLICIES)
def test_a_program_computes_what_was_traced_also_when_it_was_written_and_read(name: str) -> None:
    graph, program, weights = traced(name)
    read = read_program(Fields.of(json.loads(json.dumps(program.to_json())), ""))
    assert read == program
    arguments = [
        torch.rand(t.shape) if t.dtype.is_floating_point else torch.randint(0, 256, t.shape, dtype=t.dtype)
        for t in example_arguments(graph)
    ]
    for found, expected in zip(read.run(arguments, weights), graph(*arguments), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "aten.add_.Tensor",
        "aten.randn.default",
        "aten.dropout.default",
        "aten.from_file.default",
        "aten.set_.source_Tensor",
        "aten._foreach_add_.List",
        "aten.__class__.mro",
        "aten.add",
        "aten.add.Tensor.extra",
        "prims.add.default",
        "aten.nothing.default",
    ],
)
def test_only_pure_operators_of_the_core_set_are_found(name: str) -> None:
    with pytest.raises(ValueError, match="expected an operator of PyTorch's core set"):
        operator(name)


def test_operators_that_are_found_change_nothing() -> None:
    for name in ("aten.addmm.default", "aten.sigmoid.default", "aten.convolution.default", "aten._to_copy.default"):
        assert is_pure(operator(name))


def change(path: list[Any], value: Any) -> dict[str, Any]:
    """The document of a small program with one value replaced."""
    document = copy.deepcopy(traced("plain")[1].to_json())
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["version"], 2, "version: expected"),
        (["inputs"], [3], "inputs: expected names"),
        (["weights"], {"a": 3}, "weights.a: expected a text"),
        (["nodes", 0], ["x"], r"nodes\[0\]: expected name, operator, arguments and keywords"),
        (["nodes", 0, 1], "os.system", r"nodes\[0\]: expected an operator of PyTorch's core set, got 'os.system'"),
        (["nodes", 0, 2], [{"value": "later"}], r"nodes\[0\]: unknown argument"),
        (["nodes", 0, 2], [{"dtype": "load"}], r"nodes\[0\]: unknown argument"),
        (["nodes", 0, 2], [{"value": "tensors_0", "dtype": "float32"}], r"nodes\[0\]: unknown argument"),
        (["nodes", 0, 2], [[[[[[1]]]]]], r"nodes\[0\]: unknown argument"),
        (["nodes", 0, 3], [], r"nodes\[0\]: expected a list and an object"),
        (["outputs"], ["absent"], "outputs: no node makes 'absent'"),
    ],
)
def test_what_does_not_belong_is_named(path: list[Any], value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_program(Fields.of(change(path, value), ""))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["aten.mul.Tensor", "getitem", "value", "inf"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "dtype", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)
DOCUMENT = traced("plain")[1].to_json()


@given(
    st.sampled_from(["version", "inputs", "weights", "nodes", "outputs"]), st.integers(0, 20), st.integers(0, 3), JSON
)
def test_no_document_does_worse_than_be_refused(field: str, node: int, part: int, value: Any) -> None:
    document = copy.deepcopy(DOCUMENT)
    if field == "nodes" and node < len(document["nodes"]):
        document["nodes"][node][part] = value
    else:
        document[field] = value
    try:
        read_program(Fields.of(document, ""))
    except ValueError as error:
        assert "\n" not in str(error)


def test_a_bundle_whose_program_was_altered_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "plain.lram"
    export_bundle(POLICIES["plain"](), None, path, ExportOptions(("pytorch",), report=False))
    manifest = json.loads((path / "manifest.json").read_text())
    program = path / "pytorch" / "program.json"
    program.write_text(json.dumps(change(["nodes", 0, 1], "os.system")))
    entry = next(f for f in manifest["artifacts"][0]["files"] if f["path"].endswith("program.json"))
    with pytest.raises(BundleError, match="the manifest says"):
        load_policy(path)
    import hashlib

    entry["size"], entry["sha256"] = program.stat().st_size, hashlib.sha256(program.read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"program.json: nodes\[0\]: expected an operator .*copy or export"):
        load_policy(path)
