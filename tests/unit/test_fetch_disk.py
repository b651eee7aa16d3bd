"""Digests, the workspace lock and the cache, on a real disk and without a network."""

import asyncio
import multiprocessing
import os
import subprocess
import time

import pytest
from torchmodel_runtime import config as contract
from torchmodel_runtime.fetch.digests import combine_digests, hash_file
from torchmodel_runtime.fetch.disk import hash_disk, list_disk
from torchmodel_runtime.fetch.errors import FetchError
from torchmodel_runtime.fetch.locations import DiskLocation
from torchmodel_runtime.fetch.vault import Vault
from torchmodel_runtime.fetch.workspace import claim_workspace, sweep_workspaces


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "bert"
    for path, content in {"config.json": "{}", "B.txt": "b", "a/x.bin": "x" * 3_000_000, "a-b": "", "ü/z": "z"}.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(content)
    return top


def test_a_folders_digest_is_what_the_contract_says(folder):
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    shell = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True).stdout
    found = hash_disk(folder)
    assert found.sha256 == shell.decode().split()[0]
    assert (found.files, found.size_bytes) == (5, 3_000_004)


def test_a_link_inside_the_folder_counts_as_the_file(folder):
    (folder / "link").symlink_to("a/x.bin")
    paths = [item.path for item in list_disk(DiskLocation(str(folder), "bert")).items]
    assert "link" in paths
    assert hash_disk(folder).sha256 == combine_digests({path: hash_file(folder / path) for path in paths}).sha256


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param("out", lambda path: path.symlink_to("/etc/hostname"), id="link out of the folder"),
        pytest.param("up", lambda path: path.symlink_to("../secret"), id="relative link out of the folder"),
        pytest.param("loop", lambda path: path.symlink_to("."), id="link to a folder"),
        pytest.param("pipe", os.mkfifo, id="pipe"),
        pytest.param("a\nb", lambda path: path.write_text(""), id="line break in a name"),
        pytest.param("a\\b", lambda path: path.write_text(""), id="backslash in a name"),
    ],
)
def test_what_a_folder_must_not_hold(folder, name, make):
    (folder.parent / "secret").write_text("x")
    make(folder / name)
    with pytest.raises(FetchError) as caught:
        list_disk(DiskLocation(str(folder), "bert"))
    assert caught.value.reason == contract.CHECKPOINT_INVALID


def test_an_empty_folder_and_a_missing_file_are_not_found(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("empty", "none", "empty/none"):
        with pytest.raises(FetchError) as caught:
            list_disk(DiskLocation(str(tmp_path / path), "x"))
        assert caught.value.reason == contract.CHECKPOINT_NOT_FOUND


async def test_a_held_workspace_is_waited_for_or_passed_by(tmp_path):
    order = []

    async def work(name):
        async with claim_workspace(tmp_path, "key", wait=True) as workspace:
            order.append((name, "in"))
            await asyncio.sleep(0)
            workspace.prepare("id")
            order.append((name, "out"))
            workspace.discard()

    async with claim_workspace(tmp_path, "key", wait=True):
        others = asyncio.gather(*(work(name) for name in "abc"))
        async with claim_workspace(tmp_path, "key", wait=False) as second:
            second.prepare("id")
            assert second.tree.parent.name == "key.1"
            second.discard()
        await asyncio.sleep(0.05)
        assert order == []
    await others
    assert [step for _, step in order] == ["in", "out"] * 3
    assert list(tmp_path.iterdir()) == []


async def test_bytes_of_another_checkpoint_are_not_taken_over(tmp_path):
    for identity, expected in (("one", []), ("one", ["x"]), ("two", [])):
        async with claim_workspace(tmp_path, "key", wait=True) as workspace:
            workspace.prepare(identity)
            assert [path.name for path in workspace.tree.iterdir()] == expected
            (workspace.tree / "x").write_text("x")


async def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    async with claim_workspace(tmp_path, "dead", wait=True) as workspace:
        workspace.prepare("id")
    async with claim_workspace(tmp_path, "alive", wait=True) as workspace:
        workspace.prepare("id")
        assert sweep_workspaces(tmp_path, age_s=60) == 0
        old = time.time() - 120
        for path in tmp_path.rglob("*"):
            os.utime(path, (old, old))
        assert sweep_workspaces(tmp_path, age_s=60) == 1
        assert {path.name for path in tmp_path.iterdir()} == {"alive.0", "alive.0.lock"}


async def store(vault, content, key="key"):
    async with claim_workspace(vault.incoming, key, wait=False) as workspace:
        workspace.prepare("id")
        (workspace.tree / "m.pth").write_bytes(content)
        path = vault.store(workspace, hash_file(workspace.tree / "m.pth"))
        workspace.discard()
        return path


async def test_the_cache_gives_back_what_was_stored_and_only_if_it_is_sound(tmp_path):
    vault = Vault(tmp_path)
    path = await store(vault, b"weights")
    digest = hash_file(path)
    assert path == tmp_path / "sha256" / digest.sha256 / "m.pth"
    assert vault.find(digest.sha256, is_folder=False) == (path, digest)
    assert vault.find(digest.sha256, is_folder=True) is None
    path.write_bytes(b"weightz")
    assert vault.find(digest.sha256, is_folder=False) is None
    assert await store(vault, b"weights") == path
    assert vault.find(digest.sha256, is_folder=False) == (path, digest)
    assert list(vault.incoming.iterdir()) == []


def store_many(folder, seed):
    for number in range(20):
        asyncio.run(store(Vault(folder), bytes([number % 3]) * 100_000, f"{seed}-{number}"))


def test_many_processes_store_the_same_contents_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=store_many, args=(tmp_path, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    entries = list((tmp_path / "sha256").iterdir())
    assert len(entries) == 3
    assert all(hash_file(entry / "m.pth").sha256 == entry.name for entry in entries)
