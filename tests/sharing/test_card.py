"""Model cards: what the Hub reads of them, what people do, and that texts of a manifest are nothing but text."""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lram_export import Bundle
from lram_export.episodes.evaluations import read_evaluations
from lram_export.errors import UsageError
from lram_export.hub.address import Address
from lram_export.sharing.card import card
from lram_export.sharing.markup import MOST_SHOWN, table, text, yaml
from tests.conftest import succeed

BUNDLE = Path(__file__).parent.parent / "bundles" / "schema-6.lram"
ADDRESS = Address("someone/policy")
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def data_of(written: str) -> Any:
    """What the Hub's own client reads of a card."""
    return pytest.importorskip("huggingface_hub").ModelCard(written).data


def evaluation(folder: Path, **changes: Any) -> Path:
    """What `evaluate --json` prints of the bundle's first target."""
    result = {
        "environment": "metaworld/reach-v3",
        "artifact": Bundle.open(BUNDLE).artifact_digest("onnxruntime"),
        "success": {"value": 0.98, "low": 0.9, "high": 1.0},
        "return": {"value": 1234.5, "low": 1200.0, "high": 1300.0},
        "episodes": [{}] * 50,
        **changes,
    }
    path = folder / "evaluation.json"
    path.write_text(json.dumps({"failure": None, "results": [result]}))
    return path


class TestWhatTheHubReads:
    def test_library_task_and_tags(self) -> None:
        data = data_of(card(Bundle.open(BUNDLE), ADDRESS))
        assert (data.library_name, data.pipeline_tag) == ("lram-export", "robotics")
        assert data.tags == ["robotics", "lram-export", "xlstm", "int8", "onnxruntime", "openvino", "pytorch"]
        assert data.license is None, "of which the manifest says nothing"
        assert data_of(card(Bundle.open(BUNDLE), ADDRESS, license_name="mit")).license == "mit"

    def test_parity_is_what_the_manifest_has(self) -> None:
        manifest = Bundle.open(BUNDLE).manifest
        found = {r.metric_name: r.metric_value for r in data_of(card(Bundle.open(BUNDLE), ADDRESS)).eval_results}
        for entry in manifest.artifacts:
            assert entry.parity is not None
            which = f"{entry.target} int8"
            assert found[f"{which}, largest error against the reference over 64 steps"] == entry.parity.max_logit_error
            assert found[f"{which}, action values that differ from the reference, of 128"] == 0
        assert len(found) == 6

    def test_closed_loop_is_what_the_evaluation_has(self, tmp_path: Path) -> None:
        out = succeed("push", BUNDLE, "a/b", "--dry-run", "--evaluation", evaluation(tmp_path)).stdout
        written = out[out.index("---\n") :]
        found = {r.metric_type: r for r in data_of(written).eval_results if r.dataset_type == "metaworld/reach-v3"}
        assert found["success_rate"].metric_value == 0.98
        assert found["success_rate"].metric_name == "onnxruntime int8, 50 episodes, 95% interval 0.9 to 1"
        assert found["mean_reward"].metric_value == 1234.5
        assert "| metaworld/reach-v3 | onnxruntime | 98% (90 to 100) | 1234 (1200 to 1300) | 50 |" in written

    def test_an_environment_without_success_has_a_return_only(self, tmp_path: Path) -> None:
        bundle = Bundle.open(BUNDLE)
        digests = {bundle.artifact_digest("onnxruntime")}
        played = read_evaluations([evaluation(tmp_path, success=None, environment="gym/Ant-v5")], digests)
        found = [r for r in data_of(card(bundle, ADDRESS, played)).eval_results if r.dataset_type == "gym/Ant-v5"]
        assert [r.metric_type for r in found] == ["mean_reward"]

    @pytest.mark.parametrize("value", [float("nan"), "high", None])
    def test_an_evaluation_with_other_things_than_numbers_is_refused(self, value: object, tmp_path: Path) -> None:
        path = evaluation(tmp_path, success={"value": value, "low": 0.0, "high": 1.0})
        with pytest.raises(UsageError, match="expected the JSON of lram-export evaluate --json"):
            read_evaluations([path], {Bundle.open(BUNDLE).artifact_digest("onnxruntime")})


class TestTextsOfOthers:
    def test_a_name_is_no_markup_and_no_field(self) -> None:
        bundle = Bundle.open(BUNDLE)
        name = 'x"\\ [y](http://z) ![i](j) <script>a</script> | ` *b* :smile: www.z.org {{7}} $m$ # é 机'
        hostile = dataclasses.replace(
            bundle.manifest, name=name, created="<img src=x>", source={"file": name, "sha256": ""}
        )
        written = card(Bundle(bundle.path, hostile), ADDRESS)
        assert data_of(written).model_name == name
        rendered = MARKDOWN.render(written.split("---\n", 2)[2])
        assert "<script" not in rendered and "<img" not in rendered and "<a " not in rendered and "<em" not in rendered
        assert f"<h1>{html.escape(name)}</h1>" in rendered

    @given(st.text())
    @settings(deadline=None, max_examples=50)
    def test_any_text_is_shown_as_it_is(self, value: str) -> None:
        shown = " ".join("".join(c if c.isprintable() else " " for c in value).split())
        if len(shown) > MOST_SHOWN:
            shown = f"{shown[: MOST_SHOWN - 3]}..."
        assert html.unescape(MARKDOWN.renderInline(text(value))) == shown
        rendered = MARKDOWN.render("\n".join(table(["a", "b"], [[value, "c"]])))
        assert rendered.count("<td>") == 2 and "<td>c</td>" in rendered

    @given(st.text(st.characters(exclude_categories=["Cs"])) | st.floats(allow_nan=False, allow_infinity=False))
    @settings(deadline=None, max_examples=50)
    def test_any_value_comes_back_from_yaml(self, value: str | float) -> None:
        read = pytest.importorskip("yaml").safe_load(yaml({"a": {"b": [{"c": value, "d": 1}, value]}, "e": value}))
        assert read == {"a": {"b": [{"c": value, "d": 1}, value]}, "e": value}

    @pytest.mark.parametrize(
        "word", ["true", "no", "on", "~", "null", "y", "1e5", "0x1", "2026-01-01", "- a", "a: b", ""]
    )
    def test_texts_that_yaml_takes_for_something_else_stay_texts(self, word: str) -> None:
        assert pytest.importorskip("yaml").safe_load(yaml({"a": word})) == {"a": word}
