"""The manifest of a module's bundle comes from anywhere: whatever is in it, it is read or refused in a line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lram_export import ExportOptions, export_bundle
from lram_export.bundle.manifest import read_manifest
from lram_export.describe import policy_facts
from tests.conftest import fail
from tests.step_module.modules import POLICIES

ANYTHING = (None, True, -1, 0, 0.5, 1e300, "", "x", [], {}, [[0]], {"x": None})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("manifests")
    for name in ("seeing", "choosing"):
        export_bundle(POLICIES[name](), None, folder / f"{name}.lram", ExportOptions(report=False))
    return {name: folder / f"{name}.lram" for name in ("seeing", "choosing")}


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a document is."""
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("name", ["seeing", "choosing"])
def test_anything_in_the_place_of_anything_is_read_or_refused(name: str, bundles: dict[str, Path]) -> None:
    original, refused, tried = json.loads((bundles[name] / "manifest.json").read_text()), 0, 0
    for path in list(places(original)):
        for value in ANYTHING:
            document = copy.deepcopy(original)
            place = document
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            tried += 1
            try:
                manifest = read_manifest(json.dumps(document))
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error)
            else:  # what was read can be used
                policy_facts(manifest, bundles[name])
                assert manifest.identity.properties and manifest.dumps()
    assert 0.8 * tried < refused < tried


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("specification", "inputs", 0, "name"), "reward", "'reward' is told to models of ours only"),
        (("model", "kind"), "other", "model.kind: expected one of step_module, got 'other'"),
        (("model", "matrices"), {"head": [1]}, "model.matrices.head: expected two positive numbers"),
        (("artifacts", 0, "parity", "worst", "scale"), 0, "parity.worst.scale: expected "),
    ],
)
def test_what_contradicts_itself_is_named(
    path: tuple[Any, ...], value: Any, told: str, bundles: dict[str, Path]
) -> None:
    document = json.loads((bundles["seeing"] / "manifest.json").read_text())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=told):
        read_manifest(json.dumps(document))


def test_bundles_that_take_or_give_something_else_are_not_compared(bundles: dict[str, Path]) -> None:
    code, line = fail("compare", bundles["seeing"], bundles["choosing"])
    assert code == 2 and "inputs differ: " in line and "has proprio, camera, is_first; " in line
