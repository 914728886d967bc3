"""What embeds the tokens of a step on a GPU, see `kernels/tvm/cpu/tokens.py`."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.functions import relu
from lram_export.kernels.tvm.gpu.norms import moments
from lram_export.kernels.tvm.gpu.threads import THREADS, blocks, shared, threads

TOKENS = 3


def embed(batch: int, hidden: int, observed_width: int, image: bool, epsilon: float, lanes: int) -> PrimFunc:
    """See `cpu/norms.py`: one block per token."""

    @T.prim_func(s_tir=True)
    def kernel(
        return_to_go: T.Buffer((batch,), "float32"),
        reward: T.Buffer((batch,), "float32"),
        observed: T.Buffer((batch, observed_width), "float32"),
        reward_weight: T.Buffer((hidden,), "float32"),
        reward_bias: T.Buffer((hidden,), "float32"),
        observation_bias: T.Buffer((hidden,), "float32"),
        return_weight: T.Buffer((hidden,), "float32"),
        return_bias: T.Buffer((hidden,), "float32"),
        norm_weight: T.Buffer((hidden,), "float32"),
        norm_bias: T.Buffer((hidden,), "float32"),
        x: T.Buffer((TOKENS * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for block in blocks(TOKENS * batch):
            row = T.meta_var(block // TOKENS)
            parts = T.alloc_buffer((THREADS,), "float32", scope=shared())
            found = T.alloc_buffer((2,), "float32", scope=shared())
            for thread in threads():
                for i in T.serial((hidden + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < hidden:
                        if block % TOKENS == 0:
                            x[block, at] = reward_weight[at] * reward[row] + reward_bias[at]
                        if block % TOKENS == 1:
                            encoded = T.meta_var(observed[row, at] + observation_bias[at])
                            if image:
                                x[block, at] = relu(encoded)
                            else:
                                x[block, at] = encoded
                        if block % TOKENS == 2:
                            x[block, at] = return_weight[at] * return_to_go[row] + return_bias[at]
            moments(x, block, 0, hidden, epsilon, parts, found)
            for thread in threads():
                for i in T.serial((hidden + THREADS - 1) // THREADS):
                    at = T.meta_var(i * THREADS + thread)
                    if i * THREADS + thread < hidden:
                        x[block, at] = (x[block, at] - found[0]) * found[1] * norm_weight[at] + norm_bias[at]

    return kernel
