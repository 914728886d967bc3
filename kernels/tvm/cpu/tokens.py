"""What embeds the tokens of a step."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from lram_export.kernels.tvm.cpu.loops import rows_loop
from lram_export.kernels.tvm.cpu.norms import moments
from lram_export.kernels.tvm.functions import relu, wide


def embed(batch: int, hidden: int, observed_width: int, image: bool, epsilon: float, lanes: int) -> PrimFunc:
    """The three tokens of a step, normalized: token order is reward, observation, return-to-go.

    ``observed`` (batch, observed_width) is the encoded observation before its bias; an image's has a ReLU behind it.
    """

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
        x: T.Buffer((3 * batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for row in rows_loop(batch, 3 * hidden):
            for i in T.serial(hidden // lanes):
                at = T.meta_var(T.ramp(i * lanes, 1, lanes))
                x[3 * row, at] = reward_weight[at] * wide(reward[row], lanes) + reward_bias[at]
                encoded = T.meta_var(observed[row, at] + observation_bias[at])
                if image:
                    x[3 * row + 1, at] = relu(encoded)
                else:
                    x[3 * row + 1, at] = encoded
                x[3 * row + 2, at] = return_weight[at] * wide(return_to_go[row], lanes) + return_bias[at]
            for token in T.serial(3):
                found = T.alloc_buffer((2,), "float32", scope="local")
                moments(x, 3 * row + token, 0, hidden, epsilon, lanes, found)
                for i in T.serial(hidden // lanes):
                    at = T.meta_var(T.ramp(i * lanes, 1, lanes))
                    centred = T.meta_var(x[3 * row + token, at] - wide(found[0], lanes))
                    x[3 * row + token, at] = centred * wide(found[1], lanes) * norm_weight[at] + norm_bias[at]

    return kernel
