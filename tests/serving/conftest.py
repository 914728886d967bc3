"""Servers of small bundles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lram_export import ExportOptions, StepPolicy, export_bundle
from lram_export.serving.addresses import Address
from lram_export.serving.server import PolicyServer, ServerOptions
from tests.conftest import ExportFunction
from tests.policy.test_envelope import SAFETY, Follower, interface

ANY = Address("127.0.0.1", 0)
ServeFunction = Callable[..., PolicyServer]


@pytest.fixture(scope="session")
def small(exported: ExportFunction) -> Path:
    """A bundle that is told its rewards, which other tests use, too."""
    return exported("state_ms", "observed")


@pytest.fixture(scope="session")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a module of one's own, whose actions are held to limits and a safety."""
    bundle = tmp_path_factory.mktemp("served") / "held"
    policy = StepPolicy(Follower(), observation=2, action=2, state={"total": 2}, interface=interface(SAFETY))
    export_bundle(policy, None, bundle, ExportOptions(("native",), report=False, reference_steps=20))
    return bundle


@pytest.fixture
def serve(small: Path) -> Iterator[ServeFunction]:
    """Starts servers, on any port, and stops them when the test is over."""
    started: list[PolicyServer] = []

    def start(bundle: Path = small, target: str = "native", **options: Any) -> PolicyServer:
        chosen = ServerOptions(bundle, target, **{"robots": 2, "address": ANY, **options})
        server = PolicyServer(dataclasses.replace(chosen, threads=1))
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop(0.0)
