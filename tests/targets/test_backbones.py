"""Which targets run which backbone."""

from __future__ import annotations

import pytest

from lram_export.errors import UsageError
from lram_export.exporters import EXPORTERS
from lram_export.targets.backbones import ANY_BACKBONE, OWN_KERNELS, kernels_of, targets_of


def test_every_target_runs_any_backbone_or_has_kernels_of_its_own() -> None:
    assert sorted((*ANY_BACKBONE, *OWN_KERNELS)) == sorted(EXPORTERS)


@pytest.mark.parametrize("target", OWN_KERNELS)
def test_a_target_with_kernels_of_its_own_runs_what_it_has_a_module_for(target: str) -> None:
    assert target in targets_of("xlstm") and target not in targets_of("abacus")
    assert "pack" in vars(kernels_of(target, "xlstm"))


@pytest.mark.parametrize("target", OWN_KERNELS)
def test_a_backbone_without_kernels_is_refused_with_the_targets_that_run_it(target: str) -> None:
    with pytest.raises(UsageError) as caught:
        kernels_of(target, "abacus")
    assert str(caught.value) == (
        f"target '{target}' has no kernels for backbone 'abacus'; it runs on pytorch, onnxruntime, openvino, tensorrt"
    )
