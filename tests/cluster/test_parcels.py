"""Files that travel: known by their content, unpacked once, checked, removed when nobody uses them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from lram_export.cluster import parcels
from lram_export.cluster.parcels import Parcel, cache_folder, pack, pieces, remove_unused, unpack
from lram_export.errors import LramError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "policy.lram"
    (folder / "native").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "native" / "weights").write_bytes(bytes(range(256)) * 40)
    (folder / "empty").touch()
    (folder / "other").write_text("not sent")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


NAMES = ("manifest.json", "native/weights", "empty")


def content(path: Path, parcel: Parcel) -> list[np.ndarray]:
    return list(pieces(path, parcel))


def test_a_folder_arrives_as_it_was_in_pieces(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PIECE_BYTES", 1000)
    parcel = pack(source, NAMES)
    sent = content(source, parcel)
    assert len(sent) == 12 and parcel.size == 10242
    held = unpack(parcel, sent.__getitem__, cache)
    assert held.path.name == "policy.lram"
    assert sorted(p.name for p in held.path.rglob("*") if p.is_file()) == ["empty", "manifest.json", "weights"]
    assert all((held.path / name).read_bytes() == (source / name).read_bytes() for name in NAMES)


def test_a_file_keeps_its_name(source: Path, cache: Path) -> None:
    parcel = pack(source / "native" / "weights", ())
    held = unpack(parcel, content(source / "native" / "weights", parcel).__getitem__, cache)
    assert held.path.name == "weights" and held.path.read_bytes() == (source / "native" / "weights").read_bytes()


def test_the_digest_is_of_the_content(source: Path) -> None:
    before = pack(source, NAMES).digest
    (source / "other").write_text("changed")
    assert pack(source, NAMES).digest == before
    (source / "native" / "weights").write_bytes(b"changed")
    assert pack(source, NAMES).digest != before


def test_what_is_there_is_not_fetched_again_and_what_was_altered_is(source: Path, cache: Path) -> None:
    parcel = pack(source, NAMES)
    sent, asked = content(source, parcel), list[int]()

    def fetch(number: int) -> np.ndarray:
        asked.append(number)
        return sent[number]

    first = unpack(parcel, fetch, cache)
    second = unpack(parcel, fetch, cache)
    assert asked == [0, 1] and first.path == second.path
    (first.path / "native" / "weights").write_bytes(b"altered")
    assert unpack(parcel, fetch, cache).path.joinpath("native", "weights").stat().st_size == 10240
    assert asked == [0, 1, 0, 1]


def test_what_arrives_otherwise_is_refused_and_leaves_nothing(source: Path, cache: Path) -> None:
    parcel = pack(source, NAMES)
    with pytest.raises(LramError, match=r"policy\.lram: what arrived is not what was sent"):
        unpack(parcel, lambda number: np.zeros(7, np.uint8), cache)
    assert list(cache.iterdir()) == []


def test_it_stays_while_somebody_uses_it_and_no_longer(source: Path, cache: Path) -> None:
    parcel = pack(source, NAMES)
    first, second = (unpack(parcel, content(source, parcel).__getitem__, cache) for _ in range(2))
    first.release()
    remove_unused(cache)
    assert second.path.exists()
    second.release()
    remove_unused(cache)
    assert list(cache.iterdir()) == []


def hold(parcel: Parcel, source: Path, cache: Path, ready: object) -> None:
    unpack(parcel, content(source, parcel).__getitem__, cache)
    ready.set()
    os.kill(os.getpid(), 9)


def test_what_a_killed_process_held_is_removed_by_the_next(source: Path, cache: Path) -> None:
    parcel = pack(source, NAMES)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(parcel, source, cache, ready))
    process.start()
    process.join(20)
    assert ready.is_set() and [p.name for p in cache.iterdir()] == [parcel.digest]
    (cache / f"{parcel.digest}.arriving").mkdir()
    other = pack(source / "other", ())
    held = unpack(other, content(source / "other", other).__getitem__, cache)
    assert [p.name for p in cache.iterdir()] == [other.digest] and held.path.exists()


def test_what_is_not_ours_stays_where_it_is(source: Path, cache: Path) -> None:
    (cache / "thesis").mkdir()
    (cache / "thesis" / "text").write_text("mine")
    (cache / "notes").write_text("mine")
    parcel = pack(source, NAMES)
    unpack(parcel, content(source, parcel).__getitem__, cache).release()
    remove_unused(cache)
    assert sorted(p.name for p in cache.iterdir()) == ["notes", "thesis"]
    assert (cache / "thesis" / "text").read_text() == "mine"


def test_a_name_that_leaves_the_folder_is_not_sent(source: Path) -> None:
    (source.parent / "secret").write_text("x")
    with pytest.raises(LramError, match="lies outside of"):
        pack(source, ("../secret",))
    with pytest.raises(LramError, match="no such file"):
        pack(source, ("nothing",))


def test_the_cache_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRAM_CLUSTER_CACHE", str(tmp_path / "own"))
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    (tmp_path / "own").chmod(0o777)
    with pytest.raises(LramError, match="others may write there"):
        cache_folder()


def test_a_parcel_says_what_it_is(source: Path) -> None:
    assert dataclasses.replace(pack(source, NAMES)).place(Path("/cache")).parts[-1] == "policy.lram"
