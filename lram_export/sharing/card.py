"""The model card of a bundle: what its manifest says, as ``README.md`` with the front matter that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lram_export.bundle.bundle import Bundle
from lram_export.bundle.manifest import ArtifactEntry, Manifest
from lram_export.describe import cost_line, counted, different_actions, human_bytes, policy_facts
from lram_export.episodes.evaluations import ClosedLoop
from lram_export.episodes.intervals import Mean
from lram_export.errors import UsageError
from lram_export.hub.address import Address
from lram_export.sharing.markup import table, text, yaml

CARD_FILE = "README.md"
MARK = "<!-- Written by lram-export push, which replaces a card with this line and leaves any other as it is. -->"
LIBRARY = "lram-export"
TASK = "robotics"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_EXTRAS = {"pytorch": "export"}
"""Target -> the extra that installs it, where that has another name."""


def card(
    bundle: Bundle, address: Address, evaluations: Sequence[ClosedLoop] = (), license_name: str | None = None
) -> str:
    """The card of a bundle that will be at an address.

    Args:
        bundle: whose manifest is told.
        address: of the repository.
        evaluations: how its artifacts did in closed loop.
        license_name: as the Hub calls it; None: the card says nothing of a license.

    Raises:
        UsageError: what cannot be the name of a license.
        BundleError: the bundle's model cannot be read.
    """
    if license_name is not None and not _LICENSE.fullmatch(license_name):
        raise UsageError(f"license: expected one as the Hub calls it, such as apache-2.0, got {license_name!r}")
    manifest = bundle.manifest
    targets = {bundle.artifact_digest(target): target for target in bundle.targets}
    played = [(targets[result.artifact], result) for result in evaluations]
    parts = [
        f"---\n{yaml(_front_matter(manifest, played, license_name))}---",
        f"# {text(manifest.name)}",
        _what(manifest),
        "## Use",
        _use(manifest, address),
        "## Policy",
        _policy(bundle),
        "## Artifacts",
        _artifacts(bundle),
        *(("## Closed loop", _closed_loop(played)) if played else ()),
        "## Where it is from",
        _origin(manifest),
        MARK,
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    manifest: Manifest, played: Sequence[tuple[str, ClosedLoop]], license_name: str | None
) -> dict[str, Any]:
    results = [*_proofs(manifest), *(_success(manifest, target, result) for target, result in played)]
    index = [{"name": manifest.name, "results": [result for result in results if result["metrics"]]}]
    return {
        "library_name": LIBRARY,
        "pipeline_tag": TASK,
        **({} if license_name is None else {"license": license_name}),
        "tags": list(dict.fromkeys((TASK, LIBRARY, *_kind(manifest), manifest.precision, *_targets(manifest)))),
        **({"model-index": index} if index[0]["results"] else {}),
    }


def _targets(manifest: Manifest) -> list[str]:
    return [entry.target for entry in manifest.artifacts]


def _kind(manifest: Manifest) -> tuple[str, ...]:
    """What carries the policy's memory, of a model of ours."""
    backbone = manifest.model.get("backbone")
    kind = backbone.get("kind") if isinstance(backbone, dict) else None
    return (kind,) if isinstance(kind, str) else ()


def _asked(manifest: Manifest) -> dict[str, str]:
    return {"type": TASK, **({} if manifest.task is None else {"name": manifest.task.name})}


def _proofs(manifest: Manifest) -> list[dict[str, Any]]:
    """What parity was found, as one entry of the Hub's index of results."""
    metrics: list[dict[str, Any]] = []
    for entry in manifest.artifacts:
        if (parity := entry.parity) is None:
            continue
        which = f"{entry.target} {entry.precision}"
        if parity.actions:
            of = f"{which}, action values that differ from the reference, of {parity.actions}"
            metrics.append({"type": "actions_different", "value": parity.actions_different, "name": of})
        error = f"{which}, largest error against the reference over {counted(parity.steps, 'step')}"
        metrics.append({"type": "max_error", "value": parity.max_logit_error, "name": error})
    dataset = {"type": "recorded-steps", "name": "recorded steps of the bundle"}
    return [{"task": _asked(manifest), "dataset": dataset, "metrics": metrics}]


def _success(manifest: Manifest, target: str, result: ClosedLoop) -> dict[str, Any]:
    """What one artifact did in one environment, as such an entry."""
    which = f"{target} {manifest.precision}, {counted(result.episodes, 'episode')}"
    metrics: list[dict[str, Any]] = []
    if result.success is not None:
        within = f"95% interval {result.success.low:.3g} to {result.success.high:.3g}"
        metrics.append({"type": "success_rate", "value": result.success.value, "name": f"{which}, {within}"})
    if result.mean_return is not None:
        metrics.append({"type": "mean_reward", "value": result.mean_return.value, "name": which})
    dataset = {"type": result.environment, "name": result.environment}
    return {"task": _asked(manifest), "dataset": dataset, "metrics": metrics}


def _what(manifest: Manifest) -> str:
    name = "custom" if manifest.task is None else manifest.task.name
    task = "" if name == "custom" else f" for {text(name)}"
    return (
        f"A policy{task}, as a bundle of {LIBRARY}: one environment step with its state, at precision "
        f"{text(manifest.precision)}, for {', '.join(map(text, _targets(manifest)))}. The bundle has the hash of each "
        "of its files and recorded steps of the PyTorch policy, by which it proves itself where it runs."
    )


def _use(manifest: Manifest, address: Address) -> str:
    target = _targets(manifest)[0]
    return "\n".join(
        (
            "```sh",
            f"pip install '{LIBRARY}[{_EXTRAS.get(target, target)},hub]'",
            f"lram-export verify {address}",
            "```",
            "",
            "```python",
            "from lram_export import load_policy",
            "",
            f'policy = load_policy("{address}")',
            "action = policy.act(observation)",
            "```",
            "",
            f"`{address}@COMMIT` is one commit for ever, and needs no network once it was fetched.",
        )
    )


def _policy(bundle: Bundle) -> str:
    manifest = bundle.manifest
    rate = manifest.interface.rate
    rows: list[tuple[str, object]] = [
        *([] if manifest.task is None else [("task", manifest.task.name)]),
        *policy_facts(manifest, bundle.path),
        *([] if rate is None else [("rate", f"{rate:g} Hz")]),
    ]
    return "\n".join(table(["", ""], rows))


def _artifacts(bundle: Bundle) -> str:
    rows = [_artifact(bundle, entry) for entry in bundle.manifest.artifacts]
    columns = ["target", "precision", "size", "platform", "largest error", "actions differ", "verified on"]
    quantization = bundle.manifest.quantization
    cost = None if quantization is None else quantization.cost
    lines = table(columns, rows)
    return "\n".join((*lines, *(() if cost is None else ("", f"{_sentence(text(cost_line(cost)))}."))))


def _artifact(bundle: Bundle, entry: ArtifactEntry) -> list[object]:
    """One row: an error is against the reference, over the recorded steps."""
    start = [entry.target, entry.precision, human_bytes(bundle.artifact_size(entry.target)), entry.platform]
    if entry.parity is None:
        return [*start, "-", "-", "not verified"]
    where = entry.stand_in or f"{entry.target} {entry.tools.get(entry.target, '')}".rstrip()
    return [*start, f"{entry.parity.max_logit_error:.2g}", different_actions(entry.parity), where]


def _closed_loop(played: Sequence[tuple[str, ClosedLoop]]) -> str:
    rows = [
        [
            result.environment,
            target,
            "-" if result.success is None else result.success,
            "-" if result.mean_return is None else _return(result.mean_return),
            f"{result.episodes}{'' if result.complete else ', ended early by a failure'}",
        ]
        for target, result in played
    ]
    lines = table(["environment", "target", "success", "return", "episodes"], rows)
    return "\n".join((*lines, "", "With 95% intervals."))


def _return(mean: Mean) -> str:
    bounds = "n/a" if mean.low is None or mean.high is None else f"{mean.low:.4g} to {mean.high:.4g}"
    return f"{mean.value:.4g} ({bounds})"


def _origin(manifest: Manifest) -> str:
    source = manifest.source
    sha256 = source["sha256"] or "not saved"
    return "\n".join(
        (
            f"- checkpoint: {text(source['file'])}, SHA-256 of its weights: {text(sha256)}",
            f"- written {text(manifest.created)} by {text(manifest.generator)}",
        )
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
