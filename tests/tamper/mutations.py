"""What is altered, and how: trees of JSON, bytes, arrays, graphs. All changes are drawn from one seed."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lram_export.spec.codes import QUANTIZED_FILE
from lram_export.targets.native.format import BLOCK_BYTES, CHECKSUM_START, ENTRY_BYTES, HEADER_BYTES, TOKEN_BYTES
from tests.tamper.bundles import Subject, read, seal

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Mutant:
    """One alteration of a bundle: of which file, at which place, to what."""

    subject: Subject
    file: str
    place: str
    change: str
    apply: Callable[[Path], None]

    @property
    def name(self) -> str:
        """All of it in a line."""
        return f"{self.subject.target} {self.subject.precision}: {self.file}: {self.place}: {self.change}"


MOST_OF_A_FILE = 15
"""Alterations of one file, times the thoroughness, where another bundle has a file that is read by the same code."""


WHOLE_MANIFEST = "onnxruntime"
"""The target, which runs every precision, of whose manifests every field is altered."""


def mutants(subject: Subject, thoroughness: int = 1, seed: int = 0) -> Iterator[Mutant]:
    """Alterations of a bundle: all at `fp32`; else every field of the manifest for one target, and a draw of others."""
    dice = random.Random(f"{seed} {subject.target} {subject.precision}")
    by_file: dict[str, list[Mutant]] = {}
    for mutant in _all(subject, dice, thoroughness):
        by_file.setdefault(mutant.file, []).append(mutant)
    for file, found in by_file.items():
        whole = subject.precision == "fp32" or (file == "manifest.json" and subject.target == WHOLE_MANIFEST)
        yield from found if whole else dice.sample(found, min(len(found), MOST_OF_A_FILE * thoroughness))


def _all(subject: Subject, dice: random.Random, thoroughness: int) -> Iterator[Mutant]:
    yield from _of_json(subject, "manifest.json", dice, thoroughness, resealed=False)
    document = read(subject.path)
    files = [f["path"] for f in document["artifacts"][0]["files"]]
    if document["quantization"] is not None:
        files.append(document["quantization"]["file"]["path"])
    for file in files:
        if file.endswith(".json"):
            yield from _of_json(subject, file, dice, thoroughness, resealed=True)
        yield from _of_bytes(subject, file, dice, thoroughness)
    yield from _of_arrays(subject, dice)
    for suffix, of_kind in (
        (".onnx", _of_onnx),
        (".xml", _of_xml),
        (".lrn", _of_native),
        (".safetensors", _of_safetensors),
    ):
        for file in files:
            if file.endswith(suffix):
                yield from of_kind(subject, file, dice, thoroughness)
    if len(files) > 1:
        yield _swapped(subject, files[0], files[1])


# ---- trees of JSON

ENUMERATIONS: dict[str, tuple[Any, ...]] = {
    "precision": ("fp32", "fp16", "bf16", "int8", "int8g", "int4", "w8a8", "mixed", "int3"),
    "activations": ("float32", "int8", "fp16", "bf16", "nonsense"),
    "state_format": ("float32", "lazy-fp16"),
    "observation": ("state", "image"),
    "action": ("continuous", "discrete"),
    "reward_feedback": ("none", "observed"),
    "ffn_activation": ("gelu", "relu", "relu^2", "sigmoid", "swish", "selu"),
    "target": ("pytorch", "onnxruntime", "native", "openvino", "tvm", "tensorrt"),
    "verified_by": ("onnxruntime", "tvm-host", "native"),
    "method": ("round-to-nearest", "gptq"),
    "format": ("int8", "int8g", "int4", "fp16", "bf16", "fp32"),
    "dtype": ("float32", "float16", "int64", "uint8", "int8", "O"),
    "schema_version": (1, 2, 3, 4, 5, 6, 7),
    "kind": ("xlstm", "state", "image", "scalar", "action_bins", "hyena"),
    "role": ("matrix", "normalizer", "stabilizer", "window", "hidden", "cell", "x"),
}


def _of_json(
    subject: Subject, file: str, dice: random.Random, thoroughness: int, *, resealed: bool
) -> Iterator[Mutant]:
    """Every field, and of the changes that it can undergo as many as the thoroughness, drawn."""
    document = json.loads((subject.path / file).read_text())

    def mutant(place: Path_, change: str, edit: Callable[[Any], None] | None, text: str | None = None) -> Mutant:
        def apply(bundle: Path) -> None:
            altered = copy.deepcopy(document)
            if edit is not None:
                edit(altered)
            content = json.dumps(altered) if text is None else text
            (bundle / file).write_text(content)
            if resealed:
                seal(bundle)

        return Mutant(subject, file, ".".join(map(str, place)), change, apply)

    for place, value in _walk(document):
        *parents, key = place
        if any(isinstance(p, int) and p > 1 for p in place) and dice.random() < 0.8:
            continue  # the elements of a list are alike
        changes = [
            mutant(place, f"{_short(value)} -> {_short(new)}", lambda d, p=parents, k=key, n=new: _set(d, p, k, n))
            for new in _other_values(str(key), value)
        ]
        if isinstance(key, str):
            changes += [
                mutant(place, "deleted", lambda d, p=parents, k=key: _at(d, p).pop(k)),
                mutant(place, "renamed", lambda d, p=parents, k=key: _at(d, p).update({k + "_": _at(d, p).pop(k)})),
            ]
        if isinstance(value, dict):
            changes.append(mutant(place, "a field added", lambda d, p=place: _at(d, p).update(extra=1)))
        yield from dice.sample(changes, min(len(changes), thoroughness))
    yield mutant((), "a field added", lambda d: d.update(extra=1))
    plain = json.dumps(document)
    first = next(iter(document))
    yield mutant((), "a key twice", None, plain[:-1] + f", {json.dumps(first)}: {json.dumps(document[first])}}}")
    yield mutant((), "100,000 brackets", None, "[" * 100_000)
    yield mutant((), "nothing", None, "")
    yield mutant((), "cut off", None, plain[: len(plain) // 2])


def _walk(node: Any, place: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*place, key), value
        yield from _walk(value, (*place, key))


def _other_values(key: str, value: Any) -> list[Any]:
    if key in ENUMERATIONS:
        return [*(v for v in ENUMERATIONS[key] if v != value), None]
    if isinstance(value, bool):
        return [not value, "yes", None]
    if isinstance(value, int):
        return [value + 1, -value - 1, 0 if value else 7, 10**9, 10**30, str(value), float("nan")]
    if isinstance(value, float):
        return [value * 1.01 + 0.01, -value - 1.0, 0.0 if value else 0.5, 1e300, float("inf"), str(value), None]
    if isinstance(value, str):
        digit = "0" if value[:1] != "0" else "1"
        return [digit + value[1:], "", "../x", "x" * 100_000, 0, None]
    if isinstance(value, list):
        return [[], value + value[:1], value[:-1], None] if value else [[0], None]
    return [{}, [], None] if value is not None else [{}, 0, "x"]


def _at(document: Any, place: Any) -> Any:
    for key in place:
        document = document[key]
    return document


def _set(document: Any, parents: Any, key: Any, value: Any) -> None:
    _at(document, parents)[key] = value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# ---- bytes


def _edit(subject: Subject, file: str, place: str, change: str, edit: Callable[[bytearray], Any]) -> Mutant:
    def apply(bundle: Path) -> None:
        content = bytearray((bundle / file).read_bytes())
        edit(content)
        (bundle / file).write_bytes(content)
        seal(bundle)

    return Mutant(subject, file, place, change, apply)


def _of_bytes(subject: Subject, file: str, dice: random.Random, thoroughness: int) -> Iterator[Mutant]:
    size = (subject.path / file).stat().st_size
    compiled = file.endswith((".so", ".plan"))
    for keep in (0, size // 2, size - 1):
        yield _edit(subject, file, "length", f"cut off at {keep}", lambda c, k=keep: c.__delitem__(slice(k, None)))
    yield _edit(subject, file, "length", "64 bytes more", lambda c: c.extend(b"\0" * 64))
    if compiled:
        return  # machine code: what runs it executes it, and no check of behaviour can vouch for it
    places = [dice.randrange(min(size, 64)) for _ in range(2 * thoroughness)]
    places += [dice.randrange(size) for _ in range(6 * thoroughness)]
    for at in places:
        bit = dice.randrange(8)
        yield _edit(subject, file, f"byte {at}", f"bit {bit} flipped", lambda c, a=at, b=bit: _flip(c, a, b))
    if file.endswith((".data", ".bin", ".lrn", ".safetensors")):
        for _ in range(5 * thoroughness):
            at = dice.randrange(size // 2, size) // 4 * 4 % max(size - 4, 4)
            yield _edit(subject, file, f"float at {at}", "exponent", lambda c, a=at: _flip(c, a + 3, 6))
            yield _edit(subject, file, f"float at {at}", "sign", lambda c, a=at: _flip(c, a + 3, 7))
            yield _edit(subject, file, f"float at {at}", "last bit", lambda c, a=at: _flip(c, a, 0))
        for _ in range(thoroughness):
            at = dice.randrange(size // 8, size)
            zero = slice(at, min(at + 256, size))
            yield _edit(
                subject,
                file,
                f"bytes {zero.start}",
                "256 zeros",
                lambda c, z=zero: c.__setitem__(z, bytes(z.stop - z.start)),
            )


def _flip(content: bytearray, at: int, bit: int) -> None:
    content[at % len(content)] ^= 1 << bit


def _swapped(subject: Subject, one: str, other: str) -> Mutant:
    def apply(bundle: Path) -> None:
        first, second = (bundle / one).read_bytes(), (bundle / other).read_bytes()
        (bundle / one).write_bytes(second)
        (bundle / other).write_bytes(first)
        seal(bundle)

    return Mutant(subject, one, "content", f"swapped with {other}", apply)


# ---- recorded arrays


def _of_arrays(subject: Subject, dice: random.Random) -> Iterator[Mutant]:
    file = "reference.npz"
    with np.load(subject.path / file) as opened:
        arrays = dict(opened)

    def mutant(place: str, change: str, edit: Callable[[dict[str, Any]], Any]) -> Mutant:
        def apply(bundle: Path) -> None:
            altered = {name: array.copy() for name, array in arrays.items()}
            edit(altered)
            np.savez_compressed(bundle / file, **altered)
            seal(bundle)

        return Mutant(subject, file, place, change, apply)

    for name, array in arrays.items():
        at = tuple(dice.randrange(extent) for extent in array.shape)
        changes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "NaN": lambda a, n=name, i=at: a[n].__setitem__(i, np.nan),
            "one value": lambda a, n=name, i=at: a[n].__setitem__(i, a[n][i] + 1),
            "zeros": lambda a, n=name: a[n].fill(0),
            "times 1.1": lambda a, n=name: a.update({n: (a[n] * 1.1).astype(a[n].dtype)}),
            "reversed": lambda a, n=name: a.update({n: a[n][::-1]}),
            "one less": lambda a, n=name: a.update({n: a[n][:-1]}),
            "texts": lambda a, n=name: a.update({n: a[n].astype(str)}),
            "double precision": lambda a, n=name: a.update({n: a[n].astype(np.float64)}),
            "gone": lambda a, n=name: a.pop(n),
        }
        for change, edit in changes.items():
            yield mutant(name, change, edit)

    def shorter(a: dict[str, Any]) -> None:
        for name in [n for n in a if not n.startswith("sample.")]:
            a[name] = a[name][: len(a[name]) // 2]

    def silent(a: dict[str, Any]) -> None:
        a["action"], a["action_logits"] = np.zeros_like(a["action"]), np.zeros_like(a["action_logits"])

    yield mutant("all", "half of the steps", shorter)
    yield mutant("outputs", "zeros", silent)
    yield mutant("more", "an array more", lambda a: a.update(more=np.zeros(3)))


# ---- codes


def _of_safetensors(subject: Subject, file: str, dice: random.Random, thoroughness: int) -> Iterator[Mutant]:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(subject.path / file)

    def mutant(place: str, change: str, edit: Callable[[dict[str, Any]], Any]) -> Mutant:
        def apply(bundle: Path) -> None:
            altered = {name: tensor.copy() for name, tensor in tensors.items()}
            edit(altered)
            save_file({n: np.ascontiguousarray(t) for n, t in altered.items()}, bundle / file)
            seal(bundle)

        return Mutant(subject, file, place, change, apply)

    quantized = Path(file).name == QUANTIZED_FILE
    names = list(tensors) if quantized else dice.sample(list(tensors), min(len(tensors), 8))
    for name in names:
        yield mutant(name, "zeros", lambda t, n=name: t[n].fill(0))
        yield mutant(name, "gone", lambda t, n=name: t.pop(n))
        yield mutant(name, "rows reversed", lambda t, n=name: t.update({n: t[n][::-1]}))
        if tensors[name].dtype.kind == "f":
            yield mutant(name, "twice as large", lambda t, n=name: t.update({n: t[n] * np.float32(2)}))
            yield mutant(name, "1% larger", lambda t, n=name: t.update({n: (t[n] * 1.01).astype(t[n].dtype)}))
        else:
            at = tuple(dice.randrange(extent) for extent in tensors[name].shape)
            yield mutant(name, f"code at {at}", lambda t, n=name, i=at: t[n].__setitem__(i, t[n][i] ^ 1))
            yield mutant(name, "all one code on", lambda t, n=name: t.update({n: t[n] ^ 1}))


# ---- graphs


def _of_onnx(subject: Subject, file: str, dice: random.Random, thoroughness: int) -> Iterator[Mutant]:
    import onnx

    model = onnx.load(subject.path / file, load_external_data=False)

    def mutant(place: str, change: str, edit: Callable[[Any], Any]) -> Mutant:
        def apply(bundle: Path) -> None:
            altered = onnx.ModelProto()
            altered.CopyFrom(model)
            edit(altered)
            (bundle / file).write_bytes(altered.SerializeToString())
            seal(bundle)

        return Mutant(subject, file, place, change, apply)

    for i, entry in enumerate(model.metadata_props):
        yield mutant(f"property {entry.key}", "gone", lambda m, i=i: m.metadata_props.pop(i))
        yield mutant(f"property {entry.key}", "another", lambda m, i=i: setattr(m.metadata_props[i], "value", "7"))
    for i in dice.sample(range(len(model.graph.node)), 6 * thoroughness):
        node = model.graph.node[i]
        place = f"node {node.op_type} {i}"
        yield mutant(place, "gone", lambda m, i=i: m.graph.node.pop(i))
        yield mutant(place, "another operator", lambda m, i=i: setattr(m.graph.node[i], "op_type", "Neg"))
        if len(node.input) > 1 and node.input[0] != node.input[1]:
            yield mutant(place, "inputs exchanged", lambda m, i=i: _exchange(m.graph.node[i].input))
        for j, attribute in enumerate(node.attribute):
            if attribute.type == onnx.AttributeProto.INT:
                yield mutant(
                    f"{place}.{attribute.name}", "+1", lambda m, i=i, j=j: _more(m.graph.node[i].attribute[j], "i", 1)
                )
            if attribute.type == onnx.AttributeProto.FLOAT:
                yield mutant(
                    f"{place}.{attribute.name}", "+1", lambda m, i=i, j=j: _more(m.graph.node[i].attribute[j], "f", 1.0)
                )
    initializers = model.graph.initializer
    for i in dice.sample(range(len(initializers)), min(len(initializers), 8 * thoroughness)):
        tensor = initializers[i]
        place = f"initializer {tensor.name}"
        yield mutant(place, "gone", lambda m, i=i: m.graph.initializer.pop(i))
        if tensor.dims:
            yield mutant(place, "another shape", lambda m, i=i: m.graph.initializer[i].dims.append(10**9))
        if tensor.raw_data:
            yield mutant(
                place,
                "other values",
                lambda m, i=i: setattr(
                    m.graph.initializer[i], "raw_data", bytes(b ^ 1 for b in m.graph.initializer[i].raw_data)
                ),
            )
        for j, entry in enumerate(tensor.external_data):
            for value in ("0", "10000000000", "-1", "../../secret"):
                yield mutant(
                    f"{place}.{entry.key}",
                    value,
                    lambda m, i=i, j=j, v=value: setattr(m.graph.initializer[i].external_data[j], "value", v),
                )
    for kind in ("input", "output"):
        ports = getattr(model.graph, kind)
        for i in range(len(ports)):
            place = f"{kind} {ports[i].name}"
            yield mutant(place, "renamed", lambda m, k=kind, i=i: _more(getattr(m.graph, k)[i], "name", "_"))
            yield mutant(place, "wider", lambda m, k=kind, i=i: _widen(getattr(m.graph, k)[i]))
    yield mutant("opset", "another", lambda m: setattr(m.opset_import[0], "version", 7))


def _exchange(inputs: Any) -> None:
    inputs[0], inputs[1] = inputs[1], inputs[0]


def _more(thing: Any, name: str, amount: Any) -> None:
    setattr(thing, name, getattr(thing, name) + amount)


def _widen(port: Any) -> None:
    dims = port.type.tensor_type.shape.dim
    dims[-1].dim_value = dims[-1].dim_value + 1


def _of_xml(subject: Subject, file: str, dice: random.Random, thoroughness: int) -> Iterator[Mutant]:
    text = (subject.path / file).read_text()

    def mutant(match: re.Match[str], new: str) -> Mutant:
        def apply(bundle: Path) -> None:
            (bundle / file).write_text(text[: match.start()] + new + text[match.end() :])
            seal(bundle)

        line = text.count("\n", 0, match.start()) + 1
        return Mutant(subject, file, f"line {line}", f"{match[0][:60]} -> {new[:60]}", apply)

    patterns: dict[str, tuple[str, ...]] = {
        r'offset="\d+"': ('offset="0"', 'offset="99999999"', 'offset="-1"'),
        r'size="\d+"': ('size="0"', 'size="4"', 'size="999999999999"'),
        r"<dim>\d+</dim>": ("<dim>0</dim>", "<dim>-1</dim>", "<dim>1000000000</dim>"),
        r'shape="[^"]*"': ('shape=""', 'shape="1,1000000000"', 'shape="x"'),
        r'precision="FP32"': ('precision="FP16"', 'precision="I64"'),
        r'element_type="f32"': ('element_type="f16"', 'element_type="nonsense"'),
        r'type="[A-Z]\w+"': ('type="Negative"', 'type="Nonsense"'),
        r'variable_id="[^"]*"': ('variable_id="other"',),
        r'to-layer="\d+"': ('to-layer="1"', 'to-layer="100000"'),
        r'names="[^"]*"': ('names="other"',),
        r'<lram[^/]*value="[^"]*"': ('<lram.name value="other"',),
        r"<edge [^/]*/>": ("",),
        r'eps="[^"]*"': ('eps="1"',),
        r'axis="[^"]*"': ('axis="0"', 'axis="9"'),
    }
    for pattern, replacements in patterns.items():
        found = list(re.finditer(pattern, text))
        for match in dice.sample(found, min(len(found), 2 * thoroughness)):
            for new in replacements:
                if match[0] != new:
                    yield mutant(match, new)
    bomb = (
        '<!DOCTYPE x [<!ENTITY a "'
        + "a" * 1000
        + '">'
        + "".join(f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";") * 100}">' for i in range(6))
        + "]>"
    )
    first = re.search(r"<net", text)
    if first is not None:
        yield mutant(first, bomb + "<net")


def _of_native(subject: Subject, file: str, dice: random.Random, thoroughness: int) -> Iterator[Mutant]:
    content = (subject.path / file).read_bytes()

    def put(offset: int, value: int, code: str = "<I") -> Callable[[bytearray], Any]:
        return lambda c: struct.pack_into(code, c, offset, value)

    count, tokens, blocks = struct.unpack_from("<3I", content, CHECKSUM_START)
    tables = HEADER_BYTES + tokens * TOKEN_BYTES + blocks * BLOCK_BYTES
    for offset in range(8, tables, 4):
        if 24 <= offset < CHECKSUM_START:
            continue  # the checksum, which is computed anew
        (value,) = struct.unpack_from("<I", content, offset)
        for new in {value + 1, 0, 0xFFFFFFFF, value ^ 0x40000000} - {value}:
            place = f"header at {offset}" if offset < HEADER_BYTES else f"tables at {offset - HEADER_BYTES}"
            yield _edit(subject, file, place, f"{value} -> {new}", put(offset, new & 0xFFFFFFFF))
    for entry in dice.sample(range(count), min(count, 4 * thoroughness)):
        start = tables + entry * ENTRY_BYTES
        for offset in range(0, 16, 4):
            (value,) = struct.unpack_from("<I", content, start + offset)
            yield _edit(subject, file, f"tensor {entry} at {offset}", "+1", put(start + offset, value + 1))
        for offset in range(16, ENTRY_BYTES, 8):
            (value,) = struct.unpack_from("<Q", content, start + offset)
            for new in (value + 64, 0, 2**63):
                yield _edit(
                    subject, file, f"tensor {entry} at {offset}", f"{value} -> {new}", put(start + offset, new, "<Q")
                )
