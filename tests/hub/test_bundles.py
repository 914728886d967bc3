"""Bundles on the Hugging Face Hub: pushed to one on the loopback interface, fetched, verified where they lie."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from lram_export import Bundle, BundleError, load_policy
from lram_export.bundle.fetching import fetch
from lram_export.cli.parameters import BundlePath
from lram_export.errors import HubError, UsageError
from lram_export.hub.address import Address, repository_named
from lram_export.sharing.card import CARD_FILE, MARK
from tests.cli.test_command_tree import REQUIRED, parameters
from tests.conftest import fail, succeed
from tests.hub.loopback import READER, WRITER, Hub, Repository, running

BUNDLES = Path(__file__).parent.parent / "bundles"
BUNDLE, OLDER = BUNDLES / "schema-6.lram", BUNDLES / "schema-2.lram"
NAME = "someone/policy"
HF = f"hf://{NAME}"


def files_of(bundle: Path) -> dict[str, bytes]:
    """What the manifest of a bundle lists, and the manifest."""
    listed = [file.path for file in Bundle.open(bundle).files()]
    return {name: (bundle / name).read_bytes() for name in ("manifest.json", *listed)}


BUNDLES_OF_COMMANDS = [
    (command, str(p.opts[-1])) for command, p in parameters(click.Parameter) if isinstance(p.type, BundlePath)
]
"""Every command, and where it takes a bundle."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and this process as one of its writer's, with an empty cache."""
    with running() as server:
        here(monkeypatch, server.url, tmp_path)
        yield server


def here(monkeypatch: pytest.MonkeyPatch, url: str, folder: Path) -> None:
    """What the client reads of the environment when it is imported. Without hf_xet, whose server is another one."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_TOKEN_PATH": str(folder / "token"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # older ones know no such server
    monkeypatch.setenv("HF_TOKEN", WRITER)


def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def there(hub: Hub, bundle: Path = BUNDLE) -> Repository:
    """A repository that has a bundle."""
    made = hub.make(NAME)
    made.commit({**made.head, **files_of(bundle)})
    return made


def nowhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No network: a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}", folder)


class TestPush:
    def test_what_was_pushed_verifies(self, hub: Hub) -> None:
        out = succeed("push", BUNDLE, NAME).stdout
        commit = hub.repositories[NAME].refs["main"]
        assert out == f"{HF}@{commit} {hub.url}/{NAME}/commit/{commit}\n"
        head = hub.repositories[NAME].head
        assert {name: head[name] for name in files_of(BUNDLE)} == files_of(BUNDLE)
        assert set(head) == {*files_of(BUNDLE), ".gitattributes", CARD_FILE}
        assert "PUT /lfs/" in " ".join(hub.asked), "no file was large"
        done = succeed("verify", HF, "--target", "onnxruntime")
        assert f"{HF}: commit {commit}\n" in done.stderr
        assert "passed" in done.stdout

    def test_unmodified_clients_fetch_it_and_the_cache_verifies(self, hub: Hub, tmp_path: Path) -> None:
        """`hf download` and `push` of other processes, by the environment alone; files are links into `blobs`."""
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITER}
        line = ["-m", "lram_export", "push", str(BUNDLE), NAME, "--quiet"]
        fetching = f"from huggingface_hub import snapshot_download; print(snapshot_download({NAME!r}))"
        run = {"env": {**os.environ, **own}, "check": True, "capture_output": True, "text": True}
        subprocess.run([sys.executable, *line], **run)  # type: ignore[call-overload]
        out = subprocess.run([sys.executable, "-c", fetching], **run).stdout  # type: ignore[call-overload]
        folder = Path(out.strip())
        assert (folder / "reference.npz").readlink().parent.name == "blobs"
        assert (folder / ".gitattributes").exists() and (folder / CARD_FILE).exists()
        succeed("verify", folder)

    def test_one_commit_replaces_a_bundle_and_leaves_nothing_of_it(self, hub: Hub) -> None:
        repository = there(hub)
        files = {**repository.head, "notes.txt": b"mine"}
        repository.commit({**files, "openvino/old.bin": b"", "onnxruntime/old": b""})
        before = len(repository.commits)
        other = json.loads((BUNDLE / "manifest.json").read_text())
        other["artifacts"] = [a for a in other["artifacts"] if a["target"] != "openvino"]
        smaller = hub.make("someone/smaller")
        smaller.commit({**files_of(BUNDLE), "manifest.json": json.dumps(other).encode()})
        done = succeed("push", "hf://someone/smaller", NAME)
        assert f"{HF}: removed what is not of this bundle: openvino/model.bin, openvino/model.xml" in done.stderr
        assert len(repository.commits) == before + 1
        left = {name for name in repository.head if name.startswith(("openvino", "notes", "onnxruntime/old"))}
        assert left == {"openvino/old.bin", "notes.txt", "onnxruntime/old"}, "files of others stay"
        assert Bundle.open(HF).targets == ("onnxruntime", "pytorch")

    def test_a_bundle_that_is_there_already_is_no_new_commit(self, hub: Hub) -> None:
        address = succeed("push", BUNDLE, NAME).stdout
        assert succeed("push", BUNDLE, NAME).stdout.split()[0] != ""
        assert Bundle.open(address.split()[0]).manifest == Bundle.open(BUNDLE).manifest

    def test_options(self, hub: Hub) -> None:
        succeed("push", BUNDLE, NAME, "--private", "--revision", "next/one", "--message", "A first try")
        repository = hub.repositories[NAME]
        assert repository.private
        assert repository.messages[repository.refs["next/one"]] == "A first try"
        assert "manifest.json" not in repository.head
        assert Bundle.open(f"{HF}@next%2Fone").manifest.name == "schema-6"
        with pytest.raises(UsageError, match=r"no manifest\.json in it; expected a bundle"):
            Bundle.open(HF)
        out = succeed("push", BUNDLE, NAME, "--create-pr", "--json", "-q").stdout
        assert json.loads(out)["url"] == f"{hub.url}/{NAME}/discussions/1"
        assert json.loads(out)["address"] == f"{HF}@refs%2Fpr%2F1"
        assert "manifest.json" not in repository.head
        assert Bundle.open(f"{HF}@refs%2Fpr%2F1").manifest.name == "schema-6"

    def test_a_dry_run_shows_files_and_card_and_needs_no_package_and_no_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lram_export.hub.client.find_spec", lambda name: None)
        out = succeed("push", BUNDLE, NAME, "--dry-run", "--license", "apache-2.0").stdout
        assert "onnxruntime/model.onnx.data" in out and f"{32896:,}" in out
        assert "\nlicense: " in out and out.endswith(f"{MARK}\n")
        document = json.loads(succeed("push", BUNDLE, NAME, "--dry-run", "--json", "-q").stdout)
        assert set(document["files"]) == set(files_of(BUNDLE))

    def test_a_card_that_somebody_wrote_stays(self, hub: Hub) -> None:
        repository = there(hub)
        repository.commit({**repository.head, CARD_FILE: b"# Mine\n"})
        assert f"{HF}: its README.md is not of lram-export push" in succeed("push", OLDER, NAME).stderr
        assert repository.head[CARD_FILE] == b"# Mine\n"
        repository.commit({**repository.head, CARD_FILE: f"# Old\n{MARK}\n".encode()})
        succeed("push", BUNDLE, NAME)
        assert b"# schema-6" in repository.head[CARD_FILE]

    def test_a_damaged_bundle_is_not_pushed(self, hub: Hub, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(BUNDLE, tmp_path / "copy.lram"))
        secret = tmp_path / "secret"
        secret.write_text("of this machine")
        (copy / "reference.npz").unlink()
        (copy / "reference.npz").symlink_to(secret)
        code, line = fail("push", copy, NAME)
        assert code == 1 and "reference.npz: 15 bytes, the manifest says" in line
        assert not hub.repositories and not hub.asked

    def test_nothing_is_committed_where_it_fails(self, hub: Hub) -> None:
        repository = there(hub, OLDER)
        before = dict(repository.refs)
        hub.failing["/commit/main"] = 501  # which the client does not try again
        code, line = fail("push", BUNDLE, NAME)
        assert code == 1 and line == f"error: {HF}: {hub.url} failed (status 501); try again later"
        assert repository.refs == before

    @pytest.mark.parametrize(
        "name", ["policy", "a/b/c", "hf://a/b@main", "a/b.git", "a/../b", "a/b c", "a/" + "b" * 99]
    )
    def test_names_that_no_repository_has(self, name: str) -> None:
        with pytest.raises(UsageError, match="no name of a repository on the Hugging Face Hub; expected OWNER/NAME"):
            repository_named(name)


class TestRefusedPushes:
    def test_no_token(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        nobody(monkeypatch)
        code, line = fail("push", BUNDLE, NAME)
        assert code == 2 and "pushing needs a token that may write there; sign in with `hf auth login`" in line
        assert not hub.repositories

    @pytest.mark.parametrize("exists", [False, True])
    def test_a_token_that_may_not_write(self, hub: Hub, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
        if exists:
            there(hub, OLDER)
        monkeypatch.setenv("HF_TOKEN", READER)
        code, line = fail("push", BUNDLE, NAME)
        assert code == 2 and f"refused by {hub.url}: " in line and "You don't have the rights to" in line

    def test_a_token_that_is_none(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        code, line = fail("push", BUNDLE, NAME)
        assert code == 2 and f"the token is not accepted by {hub.url}; sign in" in line

    def test_a_manifest_of_something_else(self, hub: Hub) -> None:
        hub.make(NAME).commit({"manifest.json": b'{"format": "policy_package"}'})
        code, line = fail("push", BUNDLE, NAME)
        assert code == 2 and "its manifest.json is no bundle's (ValueError: schema_version: missing)" in line

    def test_a_public_repository_where_a_private_one_was_asked_for(self, hub: Hub) -> None:
        there(hub)
        code, line = fail("push", BUNDLE, NAME, "--private")
        assert code == 2 and f"{HF}: is public, and --private is for a repository that is made" in line

    def test_a_pull_request_for_no_repository(self, hub: Hub) -> None:
        code, line = fail("push", BUNDLE, NAME, "--create-pr")
        assert code == 2 and "no such repository" in line and not hub.repositories
        assert fail("push", BUNDLE, NAME, "--create-pr", "--private")[0] == 2

    def test_options_that_no_card_can_have(self, tmp_path: Path) -> None:
        assert "license: expected one as the Hub calls it" in fail("push", BUNDLE, NAME, "--license", "My Own!")[1]
        (tmp_path / "other.json").write_text('{"failure": null, "results": []}')
        assert "of no artifact" in fail("push", BUNDLE, NAME, "--evaluation", tmp_path / "other.json")[1]


class TestFetch:
    def test_a_policy_acts_as_from_its_folder_and_knows_its_commit(self, hub: Hub) -> None:
        commit = there(hub).refs["main"]
        observation = np.linspace(-1, 1, 5, dtype=np.float32)
        with load_policy(HF, "onnxruntime") as policy, load_policy(BUNDLE, "onnxruntime") as own:
            np.testing.assert_array_equal(policy.act(observation), own.act(observation))
            assert policy.origin is not None and policy.origin.path.name == commit
            assert own.swap(HF) and own.origin is not None and own.origin.path.name == commit

    def test_only_what_the_manifest_lists_is_fetched(self, hub: Hub) -> None:
        repository = there(hub)
        repository.commit({**repository.head, "runs/large.ckpt": b"x", CARD_FILE: b"# Mine"})
        found = fetch(Address(NAME))
        here = {path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if not path.is_dir()}
        assert here == set(files_of(BUNDLE))

    def test_a_report_goes_along_where_it_is_and_is_not_missed_where_it_is_not(self, hub: Hub, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(BUNDLE, tmp_path / "copy.lram"))
        report = b"<html></html>"
        manifest = json.loads((copy / "manifest.json").read_text())
        entry = {"path": "report.html", "sha256": hashlib.sha256(report).hexdigest(), "size": len(report)}
        (copy / "manifest.json").write_text(json.dumps({**manifest, "report": entry}))
        succeed("push", copy, NAME)
        assert "report.html" not in hub.repositories[NAME].head
        Bundle.open(HF).check_files()
        (copy / "report.html").write_bytes(report)
        succeed("push", copy, NAME)
        assert (fetch(Address(NAME)).path / "report.html").read_bytes() == report

    def test_all_is_of_one_commit(self, hub: Hub) -> None:
        repository = there(hub, OLDER)
        first = repository.refs["main"]
        repository.commit({**files_of(BUNDLE)})
        assert Bundle.open(f"{HF}@{first}").manifest.name != Bundle.open(HF).manifest.name
        assert fetch(Address(NAME, first)).path.name == first
        repository.refs["v1"] = first
        assert str(fetch(Address(NAME, "v1"))) == f"{HF}@v1: commit {first}"

    def test_commands_work_with_what_was_fetched(self, hub: Hub, tmp_path: Path) -> None:
        commit = there(hub).refs["main"]
        np.savez(tmp_path / "steps.npz", observations=np.zeros((3, 5), np.float32))
        one = ("--target", "onnxruntime")
        for line in (
            ("inspect", HF),
            ("run", HF, "--observations", tmp_path / "steps.npz", *one, "-o", tmp_path / "actions.npz"),
            ("loop", HF, "--steps", "2", "--rate", "1000", *one),
        ):
            assert f"{HF}: commit {commit}" in succeed(*line).stderr, line
        assert "commit" not in succeed("interface", HF, "--quiet").stderr

    @pytest.mark.parametrize(("command", "parameter"), BUNDLES_OF_COMMANDS)
    def test_every_command_that_takes_a_bundle_asks_the_hub_for_an_address(
        self, command: str, parameter: str, hub: Hub, tmp_path: Path
    ) -> None:
        """In each place for a bundle, and before it writes anything."""
        np.savez(tmp_path / "steps.npz", observations=np.zeros((3, 5), np.float32))
        words = {"BUNDLE": BUNDLE, "NPZ": tmp_path / "steps.npz"}
        line: list[str | Path] = [words.get(word, word) for word in REQUIRED[command]]
        line = [*line, parameter, HF] if parameter.startswith("-") else line
        if not parameter.startswith("-"):
            line[int(parameter == "second")] = HF
        code, said = fail(command, *line)
        assert code == 2 and f"{HF}: no such repository at {hub.url}" in said

    def test_no_command_takes_a_bundle_otherwise(self) -> None:
        assert {command for command, _ in BUNDLES_OF_COMMANDS} >= {
            c for c, words in REQUIRED.items() if "BUNDLE" in words
        }

    def test_without_a_network_the_cache_is_taken_and_that_is_said(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit = there(hub).refs["main"]
        fetch(Address(NAME))
        nowhere(monkeypatch, tmp_path)
        found = fetch(Address(NAME))
        assert found.path.name == commit
        said = rf"{HF}: commit {commit}; from the cache, since the Hub was not reached \(ConnectError\)"
        assert re.fullmatch(said, str(found))
        assert str(fetch(Address(NAME, commit))) == f"{HF}@{commit}: commit {commit}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert fetch(Address(NAME)).unreached == "OfflineModeIsEnabled"
        (found.path / "reference.npz").unlink()
        with pytest.raises(HubError, match=rf"^{HF}@{commit}: not in the cache, or not all of it, and the Hub was not"):
            fetch(Address(NAME))


class TestLinks:
    @pytest.fixture
    def cached(self, hub: Hub) -> Path:
        there(hub)
        return fetch(Address(NAME)).path

    def test_a_link_to_a_file_outside_of_the_cache_is_refused(self, cached: Path, tmp_path: Path) -> None:
        (tmp_path / "passwords").write_text("secret")
        (cached / "reference.npz").unlink()
        (cached / "reference.npz").symlink_to(tmp_path / "passwords")
        code, line = fail("verify", cached)
        assert code == 1 and f"it is a link out of the bundle, to {tmp_path / 'passwords'}, which is no copy" in line
        assert "secret" not in line

    def test_content_that_was_damaged_in_the_cache_is_said_to_be_fetched_again(self, cached: Path) -> None:
        blob = (cached / "onnxruntime" / "model.onnx").resolve()
        content = bytearray(blob.read_bytes())
        content[100] ^= 1
        blob.write_bytes(content)
        with pytest.raises(BundleError, match=rf"SHA-256; remove {blob} from the cache of Hugging Face, and fetch"):
            load_policy(cached, "onnxruntime")
        blob.unlink()
        succeed("verify", HF, "--target", "onnxruntime")

    def test_content_that_repositories_share_verifies(self, cached: Path, tmp_path: Path) -> None:
        """As the client does it since its version 2: the blob is a link itself, into a store of the whole cache."""
        for path in (path for path in cached.rglob("*") if path.is_symlink()):
            blob = path.resolve()
            shared = tmp_path / "cache" / "blobs" / blob.name[:2] / blob.name
            if not shared.exists():
                shared.parent.mkdir(parents=True, exist_ok=True)
                blob.rename(shared)
                blob.symlink_to(shared)
        succeed("verify", HF, "--target", "onnxruntime")

    def test_engines_are_not_kept_among_the_commits(self, cached: Path) -> None:
        from lram_export.system.cache import CompileCache
        from lram_export.targets.tensorrt.engines import EngineStore

        assert EngineStore.of(cached).folder.parent == CompileCache.of("tensorrt").folder


class TestRefusedAddresses:
    def test_no_such_repository(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        code, line = fail("verify", HF)
        assert (code, line) == (
            2,
            f"error: {HF}: no such repository at {hub.url}, or one that the token's user may not see; check the name, "
            "or sign in with `hf auth login`, or set HF_TOKEN",
        )
        nobody(monkeypatch)
        assert "or one that a visitor without a token may not see" in fail("verify", HF)[1]

    def test_a_private_one(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        there(hub).private = True
        assert Bundle.open(HF).manifest.name == "schema-6"
        nobody(monkeypatch)
        assert "may not see" in fail("verify", HF)[1], "what the cache has of it is not for everybody"

    def test_a_gated_one(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        there(hub).gated = True
        monkeypatch.setenv("HF_TOKEN", READER)
        code, line = fail("verify", HF)
        assert code == 2 and f"{HF}: gated; ask for access at {hub.url}/{NAME}, and sign in" in line

    def test_no_such_revision(self, hub: Hub) -> None:
        there(hub)
        for revision in ("nope", "0" * 40):
            code, line = fail("verify", f"{HF}@{revision}")
            assert code == 2 and f"{HF}@{revision}: no such revision; expected a branch" in line

    def test_no_bundle(self, hub: Hub) -> None:
        hub.make(NAME)
        code, line = fail("verify", HF)
        assert code == 2 and f"{HF}: no manifest.json in it; expected a bundle, as lram-export push writes it" in line
        assert f"{HF}: none of model.safetensors" in fail("inspect", HF)[1], "it may be a checkpoint"

    def test_a_damaged_one(self, hub: Hub) -> None:
        repository = there(hub)
        files = repository.head
        repository.commit({**files, "manifest.json": b'{"schema_version": 99}'})
        assert "schema_version: this bundle has 99" in fail("verify", HF)[1]
        commit = repository.commit({name: files[name] for name in files if name != "reference.npz"})
        code, line = fail("verify", HF)
        assert code == 1 and f"{HF}@{commit}: reference.npz: missing; the bundle is incomplete, push it again" in line

    def test_a_file_of_a_repository(self) -> None:
        code, line = fail("verify", f"{HF}/sub/folder")
        assert code == 2 and f"a bundle is a repository as a whole; expected {HF}[@REVISION]" in line

    def test_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        nowhere(monkeypatch, tmp_path)
        code, line = fail("verify", HF)
        assert code == 1 and f"{HF}: not in the cache, or not all of it, and the Hub was not reached (Connect" in line
        code, line = fail("push", BUNDLE, NAME)
        assert code == 1 and re.search(rf"{HF}: http://\S+ was not reached \(ConnectError", line)

    def test_a_hub_that_fails(self, hub: Hub) -> None:
        there(hub)
        hub.failing[NAME] = 503
        code, line = fail("verify", HF)
        assert (
            code == 1 and f"{HF}: not in the cache, or not all of it, and the Hub was not reached (status 503)" in line
        )

    def test_no_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lram_export.hub.client.find_spec", lambda name: None)
        for line in (("verify", HF), ("push", BUNDLE, NAME)):
            code, said = fail(*line)
            assert code == 2 and said.endswith("Install it with: pip install 'lram-export[hub]'")
