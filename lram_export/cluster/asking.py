"""Asks an address what cluster is there: ``python -m lram_export.cluster.asking HOST:PORT``, one line of JSON.

A process of its own, as Ray takes a minute to find that nobody answers, and this can be ended before.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any


def main(address: str) -> None:
    """Print the cluster's versions and the addresses of its nodes."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(address=address)
    made_with = _usage().get_cluster_metadata(client)
    nodes = client.get_all_node_info().values()
    alive = [node.node_manager_address for node in nodes if node.state == 0]
    print(json.dumps({"Ray": made_with["ray_version"], "Python": made_with["python_version"], "nodes": alive}))  # noqa: T201


def _usage() -> Any:
    try:
        return import_module("ray._common.usage.usage_lib")
    except ModuleNotFoundError:  # an earlier Ray
        return import_module("ray._private.usage.usage_lib")


if __name__ == "__main__":
    main(sys.argv[1])
