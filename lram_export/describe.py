"""How sizes, costs and facts are said: the command line and the report say them alike."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from lram_export.model.config import ModelConfig, read_model
from lram_export.spec.interface import FieldInterface, Interface, Numbers, Safety, actions_of, observations_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lram_export.bundle.manifest import Manifest, QuantizationEntry
    from lram_export.spec.counts import Counts
    from lram_export.spec.parity import ParityResult
    from lram_export.spec.tensors import StepSpec, TensorSpec


def counted(number: int, what: str) -> str:
    """A number with its noun: ``1 step``, ``2,000 steps``."""
    plural = what[:-1] + "ces" if what.endswith("matrix") else what + "s"
    return f"{number:,} {what if number == 1 else plural}"


def three_digits(value: float) -> str:
    """A number to three digits, without an exponent where it is large: ``0.412``, ``1,660``."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def human_bytes(size: float | None) -> str:
    """Bytes in decimal units: ``54.1 MB``."""
    if size is None:
        return "?"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def other_contexts(config: ModelConfig) -> list[str]:
    """Of a model that can act in several ways: what a step of it costs, and what one of each other way would."""
    ours, lines = dict(config.backbone.facts()), []
    for context in config.contexts:
        facts = dict(config.in_context(context).backbone.facts())
        if facts != ours:
            lines.append(
                f"it acts in the context {ours['context']}, {ours['arithmetic']}; with --context {context} it would be "
                f"{facts['arithmetic']}, but another policy, see docs/checkpoint.md"
            )
    return lines


def model_facts(config: ModelConfig, parameters: int) -> list[tuple[str, str]]:
    """The architecture in words."""
    state = 4 * sum(t.size for t in config.backbone.states(1, len(config.tokens)))
    encoders = [fact for encoder in config.encoders if (fact := encoder.fact()) is not None]
    return [
        *config.backbone.facts(),
        ("encoders", ", ".join(encoders)),
        ("head", config.head.fact()),
        *_sizes(parameters, state),
    ]


def different_actions(parity: ParityResult) -> str:
    """How many of the chosen values differ: ``3 of 500``; a dash where the policy chooses none."""
    return f"{parity.actions_different} of {parity.actions}" if parity.actions else "-"


def policy_facts(manifest: Manifest, path: Path) -> list[tuple[str, str]]:
    """What goes in and comes out of a bundle's policy, and its architecture; ``path`` is the bundle, for messages."""
    spec, task = manifest.spec, manifest.task
    batch = ("batch", str(manifest.batch_size))
    if task is None:
        matrices = counted(len(manifest.model["matrices"]), "matrix")
        return [
            *((f"input {tensor.name}", _shape_of(tensor)) for tensor in spec.inputs[:-1]),
            *((f"output {tensor.name}", _shape_of(tensor)) for tensor in spec.outputs),
            batch,
            ("module", f"{manifest.model['class']}, {matrices} in linear layers that a precision applies to"),
            *_sizes(manifest.parameters, spec.state_bytes // spec.batch_size),
        ]
    discrete = f"one of {spec.outputs[1].shape[-1]} discrete"
    return [
        ("observation", _shape_of(spec.inputs[0])),
        ("action", discrete if task.action == "discrete" else f"{task.action_dim} continuous"),
        ("target return", f"{task.target_return:g}, divided by {task.reward_scale:g}"),
        ("reward feedback", task.reward_feedback),
        batch,
        *model_facts(read_model(manifest.model, path), manifest.parameters),
    ]


def interface_facts(interface: Interface, spec: StepSpec) -> list[tuple[str, str]]:
    """What a policy says of its robot, and what it does not, in a line for each field."""
    facts = [("rate", "unknown" if interface.rate is None else f"{interface.rate:g} Hz")]
    for side, tensors, fields in (
        ("observation", observations_of(spec), interface.observation),
        ("action", actions_of(spec), interface.action),
    ):
        for name, tensor in tensors.items():
            of = fields.get(name, FieldInterface())
            wanted = {"float32": ("elements", "units", "limits"), "uint8": ("image",), "int64": ("elements",)}
            unknown = [part for part in wanted[tensor.dtype] if getattr(of, part) is None]
            said = [part for part in wanted[tensor.dtype] if part not in unknown]
            done = {"normalization": "normalized", "scaling": "scaled"}
            inside = [word for part, word in done.items() if getattr(of, part) is not None]
            inside += ["clamped"] if side == "action" and of.limits is not None else []
            parts = [
                f"{', '.join(inside)} in the graph" if inside else "",
                f"{', '.join(said)} known" if said else "",
                f"{', '.join(unknown)} unknown" if unknown else "",
                "" if of.safety is None else f"safety: {_safety(of.safety)}",
            ]
            facts.append((f"interface {name}", "; ".join(filter(None, parts))))
    return facts


def _safety(safety: Safety) -> str:
    """What an action is held to tick by tick, in words."""
    parts = [
        "changes are bounded" if safety.most_change is not None else "",
        f"stopped after {counted(safety.most_clamps, 'clamp')} in a row" if safety.most_clamps is not None else "",
        "a safe action is known" if safety.safe_action is not None and safety.most_clamps is None else "",
    ]
    return ", ".join(filter(None, parts))


def interface_rows(interface: Interface, spec: StepSpec) -> list[list[str]]:
    """What a policy says of its robot, by elements: field, element, unit, low, high, what the graph does, and what the
    element is held to tick by tick."""
    rows = []
    for tensors, fields in ((observations_of(spec), interface.observation), (actions_of(spec), interface.action)):
        for name, tensor in tensors.items():
            of = fields.get(name, FieldInterface())
            if tensor.dtype != "float32":
                choices = "" if of.elements is None else ", ".join(of.elements)
                rows.append([name, choices or _shape_of(tensor), "", "", "", "" if of.image is None else "image", ""])
                continue
            of_field = []
            for i in range(math.prod(tensor.shape[1:])):
                unit = "" if of.units is None else of.units[i if len(of.units) > 1 else 0]
                low, high = ("", "") if of.limits is None else (_at(of.limits.low, i), _at(of.limits.high, i))
                element = str(i) if of.elements is None else of.elements[i]
                of_field.append([name, element, unit, low, high, _inside(of, i), _held(of.safety, i)])
            if of.elements is None and len(of_field) > 1 and all(row[2:] == of_field[0][2:] for row in of_field):
                of_field = [[name, f"0 to {len(of_field) - 1}", *of_field[0][2:]]]
            rows += of_field
    return rows


def _at(numbers: Numbers, i: int) -> str:
    return f"{numbers[i] if isinstance(numbers, tuple) else numbers:g}"


def _inside(of: FieldInterface, i: int) -> str:
    """What the graph does to an element, as a formula."""
    if of.normalization is not None:
        clip = "" if of.normalization.clip is None else f", within ±{of.normalization.clip:g}"
        return f"(x - {_at(of.normalization.mean, i)}) / {_at(of.normalization.deviation, i)}{clip}"
    if of.scaling is not None:
        return f"{_at(of.scaling.scale, i)} x + {_at(of.scaling.offset, i)}"
    return ""


def _held(safety: Safety | None, i: int) -> str:
    """What an element is held to from tick to tick."""
    if safety is None:
        return ""
    change = "" if safety.most_change is None else f"±{_at(safety.most_change, i)} a tick"
    safe = "" if safety.safe_action is None else f"{_at(safety.safe_action, i)} when stopped"
    return ", ".join(filter(None, (change, safe)))


def held_back(counts: Mapping[str, Counts], interface: Interface) -> list[str]:
    """A line for each action that limits clamped or a safety held back, with its elements, rows together."""
    lines = []
    for name, of in counts.items():
        names = interface.action[name].elements or tuple(map(str, range(of.clamped.shape[1])))
        parts = []
        for word, ticks in (("clamped", of.clamped.sum(axis=0)), ("slowed", of.slowed.sum(axis=0))):
            elements = [f"{element} {count:,}" for element, count in zip(names, ticks.tolist(), strict=True) if count]
            parts += [f"{word}: {', '.join(elements)}"] if elements else []
        stopped = int(of.stopped.sum())
        parts += [f"stopped for {counted(stopped, 'step')}"] if stopped else []
        lines += [f"{name}: {'; '.join(parts)}"] if parts else []
    return lines


def _shape_of(tensor: TensorSpec) -> str:
    return f"{'x'.join(map(str, tensor.shape[1:])) or 'one number'} {tensor.dtype}"


def _sizes(parameters: int, state_bytes: int) -> list[tuple[str, str]]:
    return [
        ("weights", f"{parameters:,} ({human_bytes(4 * parameters)} in float32)"),
        ("recurrent state", f"{human_bytes(state_bytes)} per row"),
    ]


def quantization_facts(quantization: QuantizationEntry | None) -> list[tuple[str, str]]:
    """How the matrices were quantized, and what it cost."""
    if quantization is None:
        return []
    formats = Counter(matrix.format for matrix in quantization.matrices)
    matrices = ", ".join(f"{count} in {name}" for name, count in formats.items())
    facts = [("quantized matrices", f"{matrices}, by {quantization.method}")]
    if quantization.cost is not None:
        facts.append(("cost", cost_line(quantization.cost)))
    return facts


def cost_line(cost: dict[str, Any]) -> str:
    """What quantization changed, in a sentence."""
    over = {"episodes": "held-out recorded", "recorded": "recorded"}.get(cost["measured_on"], "random")
    if not cost["actions"]:
        steps = counted(cost["steps"], f"{over} step")
        return f"quantization cost over {steps}: relative error {cost['relative_error']:.2g}"
    beyond = 100 * cost["beyond_one_bin"] / max(cost["actions"], 1)
    return (
        f"quantization cost over {counted(cost['steps'], f'{over} step')}: {cost['actions_different']} of "
        f"{cost['actions']} action values differ from float32, {beyond:.3g}% by more than one bin; relative logit "
        f"error {cost['relative_error']:.2g}"
    )
