"""What a release is held to before anything is built: one version in all files, and a changelog that has it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from wheels import version
from wheels.matrix import WheelError
from wheels.version import CHANGELOG, SAYS_VERSION, released, sections, version_of

ROOT = Path(__file__).parent.parent.parent
LOG = "# Changelog\n\nWords.\n\n## [Unreleased]\n\n## [0.1.0] - 2026-11-28\n\n### Added\n\n- This.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of the checkout that say the version, and a changelog of one release."""
    for name in SAYS_VERSION:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / CHANGELOG).write_text(LOG.replace("0.1.0", version_of(ROOT)))
    return tmp_path


def test_this_checkout_says_one_version_and_has_a_changelog_of_known_kinds() -> None:
    import lram_export

    assert version_of(ROOT) == lram_export.__version__
    assert "### Added" in sections(ROOT)["Unreleased"]


def test_the_notes_of_a_release_are_its_section(root: Path) -> None:
    assert released(f"v{version_of(root)}", root) == "### Added\n\n- This."


@pytest.mark.parametrize("name", list(SAYS_VERSION)[1:])
def test_a_file_that_says_another_version_is_named(name: str, root: Path) -> None:
    (root / name).write_text((root / name).read_text().replace(version_of(root), "9.9.9"))
    with pytest.raises(WheelError, match=rf"^{name}: says 9\.9\.9, pyproject\.toml "):
        released(f"v{version_of(ROOT)}", root)


@pytest.mark.parametrize(
    ("tag", "before", "after", "message"),
    [
        ("v9.9.9", "", "", "the tag is v9.9.9, the version "),
        (
            "",
            "## [Unreleased]\n",
            "## [Unreleased]\n\n### Fixed\n\n- That.\n",
            r"something is still under \[Unreleased\]",
        ),
        ("", " - 2026-11-28", "", "expected a date, but for"),
        ("", "- 2026-11-28", "of today", "a heading is neither"),
        ("", "### Added", "### New", "'New' is none of Added, Changed"),
        ("", "## [0", "## [7.0", "expected a section '## "),
    ],
)
def test_what_is_no_release_is_said_in_one_line(tag: str, before: str, after: str, message: str, root: Path) -> None:
    log = (root / CHANGELOG).read_text()
    (root / CHANGELOG).write_text(log.replace(before, after) if before else log)
    with pytest.raises(WheelError, match=message) as error:
        released(tag or f"v{version_of(root)}", root)
    assert "\n" not in str(error.value)


def test_the_command_writes_notes_or_says_what_is_wrong(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(version, "ROOT", root)
    assert version.main([f"v{version_of(root)}", "--notes", str(root / "notes.md")]) == 0
    assert (root / "notes.md").read_text().endswith("- This.")
    assert version.main(["v9.9.9"]) == 1
    assert capsys.readouterr().err.startswith("version: the tag is v9.9.9")


def test_only_the_job_that_publishes_may_and_it_runs_nothing_of_ours() -> None:
    """Whoever holds the right to publish sees finished files and no code; no step has a password."""
    text = (ROOT / ".github/workflows/release.yml").read_text()
    workflow = yaml.safe_load(text)
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {} and "secrets." not in text
    assert [name for name, job in jobs.items() if job["permissions"].get("id-token") == "write"] == ["publish"]
    assert jobs["publish"]["needs"] == "build" and not any("run" in step for step in jobs["publish"]["steps"])
    commands = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    targets = [word for word in ("make wheels", "make test-wheels", "wheels.version") if word in commands]
    assert targets == ["make wheels", "make test-wheels", "wheels.version"]
