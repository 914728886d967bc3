"""Sizes that the hand-written kernels compute; those that they refuse: `test_limits.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lram_export.bundle.bundle import Bundle
from lram_export.checkpoints.folder import save_checkpoint
from lram_export.checkpoints.random import random_checkpoint
from tests.conftest import SLOW, succeed
from tests.models import lram


@pytest.mark.parametrize(
    ("target", "hidden", "heads", "precision"),
    [
        *[("native", *sizes, "fp32") for sizes in ((64, 8), (80, 8), (80, 4), (96, 4), (160, 4))],
        *[("native", 80, 4, p) for p in ("int8", "int4")],
        *[pytest.param("native", *s, "int8", marks=SLOW) for s in ((64, 8), (80, 8), (96, 4), (160, 4))],
        # heads concern none of its products with codes: test_tvm_kernels.py has the kernels for more widths
        *[pytest.param("tvm", *sizes, marks=SLOW) for sizes in ((80, 16, "int8"), (80, 4, "fp32"), (96, 4, "int4"))],
    ],
    ids=str,
)
def test_slstm_heads_may_have_any_width(target: str, hidden: int, heads: int, precision: str, tmp_path: Path) -> None:
    pytest.importorskip({"native": "lram_export._native", "tvm": "tvm"}[target])
    config = lram(
        hidden_size=hidden,
        num_blocks=3,
        inner_size=128,
        num_heads=4,
        slstm_at=(0, 2),
        slstm_num_heads=heads,
        ffn_size=128,
        image_shape=None,
        state_dim=39,
    )
    save_checkpoint(random_checkpoint(config, tmp_path / "made"), tmp_path / "checkpoint")
    options = ("--precision", precision, "--target", target, "--batch", "2", "--reference-steps", "40", "--no-report")
    succeed("export", tmp_path / "checkpoint", "-o", tmp_path / "x.lram", "--task", "metaworld/reach-v2", *options)
    (entry,) = Bundle.open(tmp_path / "x.lram").manifest.artifacts
    assert entry.parity is not None and entry.parity.passed


ODD = {
    # hidden, inner, heads, sLSTM heads, ffn, blocks of q, k, v
    "heads of 10": (40, 40, 4, 4, 56, 4),
    "heads of 34": (72, 136, 4, 8, 100, 2),
    "odd numbers": (45, 90, 3, 5, 51, 1),
    "wide blocks": (24, 60, 2, 4, 24, 30),
    "blocks across heads": (33, 72, 4, 1, 30, 24),
}


# kernels of odd sizes are compared by themselves in test_tvm_kernels.py
@pytest.mark.parametrize("target", ["native", pytest.param("tvm", marks=SLOW)])
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("odd numbers", "int8"),
        *(
            pytest.param(name, precision, marks=SLOW)
            for name, precision in (("heads of 10", "int8"), ("heads of 34", "int4"), ("wide blocks", "fp32"))
        ),
    ],
)
def test_any_width_is_computed(target: str, name: str, precision: str, tmp_path: Path) -> None:
    pytest.importorskip({"native": "lram_export._native", "tvm": "tvm"}[target])
    bundle = export_odd(target, name, precision, tmp_path)
    (entry,) = bundle.manifest.artifacts
    assert entry.parity is not None and entry.parity.passed


@pytest.mark.parametrize("name", ODD)
def test_native_computes_any_width_with_a_lazy_state(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lram_export._native")
    monkeypatch.setenv("LRAM_NATIVE_STATE_FORMAT", "lazy-fp16")
    (entry,) = export_odd("native", name, "fp32", tmp_path, conv_kernel_size=20).manifest.artifacts
    assert entry.parity is not None and entry.parity.passed


def export_odd(target: str, name: str, precision: str, folder: Path, conv_kernel_size: int = 4) -> Bundle:
    hidden, inner, heads, slstm_heads, ffn, block = ODD[name]
    config = lram(
        hidden_size=hidden,
        num_blocks=2,
        inner_size=inner,
        num_heads=heads,
        slstm_at=(1,),
        slstm_num_heads=slstm_heads,
        ffn_size=ffn,
        conv_kernel_size=conv_kernel_size,
        qkv_block_size=block,
        image_shape=None,
        state_dim=39,
    )
    save_checkpoint(random_checkpoint(config, folder / "made"), folder / "checkpoint")
    options = ["--precision", precision, "--target", target, "--batch", "2", "--reference-steps", "40", "--no-report"]
    if (target, name) == ("tvm", "odd numbers") and shutil.which("nvcc") is not None:
        options += ["--platform", "host", "--platform", "cuda-sm86"]  # both kinds of kernels step side by side
    succeed("export", folder / "checkpoint", "-o", folder / "x.lram", "--task", "metaworld/reach-v2", *options)
    return Bundle.open(folder / "x.lram")
