"""The table of what hand-written kernels cannot do: every row refuses, by name, and no more than it says."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lram_export.checkpoints.random import random_checkpoint
from lram_export.errors import UsageError
from lram_export.export import ExportOptions, export_bundle
from lram_export.exporters import support
from lram_export.lowering import lower
from lram_export.model import encoders, heads
from lram_export.model.config import ModelConfig
from lram_export.spec.tasks import TaskSpec
from lram_export.spec.tokens import PLAIN, Token, TokenLayout
from lram_export.system.devices import Platform
from lram_export.targets.limits import LIMITS, MOST_INT8_COLUMNS, TVM_GPU, Asked, Limit, limits_of, refusal
from tests.conftest import SLOW
from tests.models import lram

TASK = TaskSpec("custom", "state", 5, "continuous", 2, 3.0, 2.0)
SIZES = {"state_dim": 7, "image_shape": None, "act_dim": 3, "action_channels": 16, "discrete_actions": 4}


def model(**changes: Any) -> ModelConfig:
    return lram(**{"hidden_size": 32, "num_blocks": 2, "num_heads": 2, "inner_size": 64, **SIZES, **changes})


def plain(tokens: int) -> ModelConfig:
    every = tuple(Token(f"observation_{i}", "observation") for i in range(tokens))
    seen = TokenLayout(every, every[0].name)
    return dataclasses.replace(model(), encoders=(encoders.StateEncoder(7),), tokens=seen)


def stub(config: ModelConfig, **parts: Any) -> Any:
    """A model with parts that there are not yet."""
    known = {"backbone": config.backbone, "tokens": config.tokens, "head": config.head}
    return SimpleNamespace(**known | {"encoders_of": config.encoders_of, **parts})


LIDAR = SimpleNamespace(name="embed_lidar", kind="lidar")
ELSEWHERE = "it runs on pytorch, onnxruntime, openvino, tensorrt"
# what is asked, one step within the row; the first beyond it, who refuses that, and with which words
EXAMPLES: list[tuple[Asked, Asked, tuple[str, ...], str]] = [
    (
        Asked(model()),
        Asked(stub(model(), encoders_of=lambda _task: (LIDAR,))),
        ("native", "tvm", TVM_GPU),
        f"the encoder 'lidar'; {ELSEWHERE}",
    ),
    (
        Asked(model()),
        Asked(stub(model(), head=SimpleNamespace(kind="gaussian"))),
        ("native", "tvm", TVM_GPU),
        f"the head 'gaussian'; {ELSEWHERE}",
    ),
    (
        Asked(model(), None, {"wide": MOST_INT8_COLUMNS}),
        Asked(model(), None, {"wide": MOST_INT8_COLUMNS + 1}),
        ("native", "tvm", TVM_GPU),
        "a sum of 133145 products of 8-bit codes (wide), at most 133144 fit 32 bits; use another precision",
    ),
    (
        Asked(model()),
        Asked(dataclasses.replace(model(), tokens=PLAIN)),
        ("native",),
        f"1 token per step, 0 skipped at the start of an episode; {ELSEWHERE}, tvm",
    ),
    (Asked(plain(8)), Asked(plain(9)), (TVM_GPU,), "9 tokens per step, at most 8; compile for a processor"),
    (
        Asked(model(inner_size=4 * 467, num_heads=1)),  # 467 and 1021 are prime
        Asked(model(inner_size=4 * 1021, num_heads=1)),
        (TVM_GPU,),
        "q, k and v of 12252 channels at once (`qkv_block_size` does not divide `inner_size` into smaller parts), at "
        "most 5632; compile for a processor",
    ),
    (
        Asked(model(hidden_size=2456, slstm_at=(0,), slstm_num_heads=1, ffn_size=64)),
        Asked(model(hidden_size=2457, slstm_at=(0,), slstm_num_heads=1, ffn_size=64)),
        (TVM_GPU,),
        "sLSTM heads 2457 wide, at most 2456; compile for a processor",
    ),
]
IDS = ["encoder", "head", "sums", "tokens", "tokens on a GPU", "channels on a GPU", "sLSTM heads on a GPU"]
WITH_KERNELS = ("native", "tvm", TVM_GPU)


@pytest.mark.parametrize(("within", "beyond", "targets", "words"), EXAMPLES, ids=IDS)
def test_what_is_beyond_a_limit_is_refused_with_what_to_do(
    within: Asked, beyond: Asked, targets: tuple[str, ...], words: str
) -> None:
    for target in targets:
        name = "tvm" if target == TVM_GPU else target
        assert refusal(target, beyond) == f"target '{name}' has no kernels for {words}"
        assert refusal(target, within) is None
    for target in {"pytorch", *WITH_KERNELS} - set(targets):
        assert (refusal(target, beyond) is None) == (refusal(target, within) is None)


def test_every_row_has_an_example() -> None:
    def refusing(row: Limit, asked: Asked) -> bool:
        return bool(list(row.beyond(asked)))

    rows = limits_of("xlstm")
    assert len(EXAMPLES) == len(rows) and rows[: len(LIMITS)] == LIMITS and limits_of("abacus") == LIMITS
    for row, (within, beyond, *_) in zip(rows, EXAMPLES, strict=True):
        assert refusing(row, beyond) and not refusing(row, within)


def test_the_table_names_encoders_and_heads_that_there_are() -> None:
    kinds, known_heads = (row.limit for row in LIMITS[:2])
    assert isinstance(kinds, tuple) and set(kinds) <= set(encoders.KINDS)
    assert isinstance(known_heads, tuple) and set(known_heads) <= set(heads.KINDS)


def test_sums_at_the_limit_fit_32_bits_and_no_more_do() -> None:
    assert 127 * 127 * MOST_INT8_COLUMNS < 2**31 <= 127 * 127 * (MOST_INT8_COLUMNS + 1)


def test_only_precisions_with_codes_of_8_bits_are_refused_for_their_sums() -> None:
    found = support(model(state_dim=None, image_shape=(3, 1024, 1024)))
    assert found["native"].precisions == ("fp32", "int8g", "int4", "mixed")
    assert "(embed_observation" in str(found["native"].refusal) and "products of 8-bit codes" in str(
        found["tvm"].refusal
    )
    assert found["openvino"].refusal is None and "int8" in found["openvino"].precisions


@pytest.mark.parametrize(
    ("target", "config", "platform", "words"),
    [
        ("native", EXAMPLES[3][1].config, (), EXAMPLES[3][3]),
        ("tvm", EXAMPLES[6][1].config, ("cuda-sm86",), "cuda-sm86: " + EXAMPLES[6][3]),
    ],
    ids=["tokens", "sLSTM heads on a GPU"],
)
def test_an_export_refuses_what_the_table_does(
    target: str, config: ModelConfig, platform: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    pytest.importorskip({"native": "lram_export._native", "tvm": "tvm"}[target])
    options = ExportOptions((target,), reference_steps=4, platform=Platform(processors=platform), report=False)
    with pytest.raises(UsageError) as caught:
        export_bundle(random_checkpoint(config, Path("random")), TASK, tmp_path / "x.lram", options)
    assert str(caught.value) == f"target '{target}' has no kernels for {words}"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA toolkit")
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(EXAMPLES[4][0].config, marks=SLOW, id="tokens"),
        pytest.param(EXAMPLES[5][0].config, marks=SLOW, id="channels"),
        pytest.param(EXAMPLES[6][0].config, marks=SLOW, id="sLSTM heads"),
    ],
)
def test_kernels_at_the_limits_of_a_gpu_compile(config: ModelConfig, tmp_path: Path) -> None:
    exporter = pytest.importorskip("lram_export.exporters.tvm.exporter")
    policy = lower(random_checkpoint(config, Path("random")), TASK, name="limit")
    policy = dataclasses.replace(policy, platform=Platform(processors=("cuda-sm86",)))
    assert tmp_path / "step-cuda-sm86.so" in exporter.export(policy, tmp_path).files
