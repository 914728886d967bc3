"""A policy goes to another process as the place it was loaded from."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from lram_export import load_policy
from lram_export.errors import UsageError
from tests.conftest import ExportFunction
from tests.policy.workers import act

OBSERVATIONS = np.random.default_rng(0).standard_normal((4, 204)).astype(np.float32)


@pytest.fixture
def bundle(exported: ExportFunction) -> Path:
    return exported("state_ms", targets=("onnxruntime", "native"))


@pytest.mark.parametrize(("method", "target"), [("spawn", "onnxruntime"), ("forkserver", "native")])
def test_workers_get_one_each_at_the_start_of_an_episode(method: str, target: str, bundle: Path) -> None:
    with load_policy(bundle, target, threads=1) as policy:
        expected = [policy.act(observation) for observation in OBSERVATIONS]
        with multiprocessing.get_context(method).Pool(2) as pool:
            found = pool.starmap(act, [(policy, OBSERVATIONS)] * 2, chunksize=1)
        for fresh, actions in found:
            assert fresh == [1.0]
            np.testing.assert_array_equal(actions, expected)
        policy.act(OBSERVATIONS[0])  # the own one goes on


def test_what_was_asked_for_goes_along_and_the_state_does_not(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    with load_policy(bundle.name, "native", threads=2, batch=1) as policy:
        policy.act(OBSERVATIONS[0])
        monkeypatch.chdir("/")
        for again in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)):
            with again:
                assert again.origin == policy.origin and again.origin.options["threads"] == 2
                assert again.origin.options["batch"] == 1
                assert again.origin.path == bundle.absolute()
                assert again.state()["is_first"].tolist() == [1.0]


def test_one_that_is_closed_may_still_be_sent_and_one_whose_bundle_is_gone_says_so(
    bundle: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.lram"
    link.symlink_to(bundle)
    policy = load_policy(link, "native", threads=1)
    policy.close()
    sent = pickle.dumps(policy)
    pickle.loads(sent).close()
    link.unlink()
    with pytest.raises(UsageError, match=r"link\.lram: no such bundle$"):
        pickle.loads(sent)
