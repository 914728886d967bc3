"""How the training code names and lays out the weights of xLSTM blocks."""

from __future__ import annotations

from lram_export.backbones.protocol import Weights

BLOCKS = "encoder.layers.blocks."
KERNEL, BIAS = "slstm_cell._recurrent_kernel_", "slstm_cell._bias_"


def vanilla_layout(weights: Weights) -> Weights:
    """Convert sLSTM kernels of the `cuda` backend, which the kernel's shape gives away.

    `cuda`: kernel (heads, head_dim, 4 * head_dim), bias ordered (heads, 4, head_dim);
    `vanilla`: kernel (heads, 4 * head_dim, head_dim), bias (4, heads, head_dim).
    """
    converted = dict(weights)
    for key, kernel in weights.items():
        if not key.endswith(KERNEL) or kernel.dim() != 3 or kernel.shape[2] != 4 * kernel.shape[1]:
            continue
        heads, width, _ = kernel.shape
        bias_key = key.removesuffix(KERNEL) + BIAS
        kernel = kernel.reshape(heads, width, 4, width).permute(0, 2, 3, 1)
        converted[key] = kernel.reshape(heads, 4 * width, width)
        if bias_key in weights and weights[bias_key].numel() == 4 * heads * width:
            converted[bias_key] = weights[bias_key].reshape(heads, 4, width).transpose(0, 1).reshape(-1)
    return converted
