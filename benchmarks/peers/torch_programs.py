"""The step graph as a program of torch.export: float32, or linear layers in the int8 that Inductor has kernels for.

torchao's weight-only int8 is none: Inductor has kernels for bfloat16 alone, and makes float32 weights of its codes.
"""

from __future__ import annotations

from typing import Any

from lram_export.system.machine import cpu_features
from peers.protocol import Source

HOW = {
    "fp32": "float32",
    "int8": "int8 of Inductor on x86, one scale per row, activations rounded as they come",
}
PACKAGES = ("torch", "torchao")


def program(source: Source, precision: str) -> Any:
    """The exported program."""
    import torch

    if precision == "fp32":
        with torch.no_grad():
            return torch.export.export(source.policy.graph, source.arguments())
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    narrow = "avx512_vnni" not in cpu_features() and "avx_vnni" not in cpu_features()  # else sums of products saturate
    chosen = get_default_x86_inductor_quantization_config(is_dynamic=True, reduce_range=narrow)
    return with_int8(source, X86InductorQuantizer().set_module_type_qconfig(torch.nn.Linear, chosen))


def with_int8(source: Source, quantizer: Any) -> Any:
    """The exported program with the codes of a quantizer of torchao."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    arguments = source.arguments()
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(source.policy.graph, arguments).module(), quantizer)
        prepared(*arguments)
        return torch.export.export(convert_pt2e(prepared), arguments)
