"""Mirrors on each kind of object store: S3 by two servers, Azure's and Google's."""

import os
import shutil

import pytest
from bucket_runs import Requests, folders, held, refuse
from mirrored_runs import names, steps, train

import holdfast
from holdfast import Keep
from holdfast.mirrors import copying
from holdfast.objects.access import Objects


def test_a_mirror_on_each_kind(store, tmp_path, monkeypatch):
    """Copied, interrupted, gone on with, pinned, pushed out, lost and fetched: as a directory, on every store."""
    run, url = str(tmp_path / "run"), store.url + "/with a space/ü"
    train(run, 2, [url])
    assert held(url) == [1, 2]
    holdfast.open(f"{run}@step=1").pin()
    with monkeypatch.context() as patch:
        Requests(patch, "checkpoint.json", refuse)
        train(run, 3, [url])
    assert held(url) == [1, 2]
    with monkeypatch.context() as patch:
        made = Requests(patch)
        train(run, 4, [url])
    assert held(url) == [1, 3, 4]
    assert made.of("write").count("README.md") == 1, "that of step 3 was sent again"
    assert "pins/" + folders(url)[0] in Objects.at(url).names()
    shutil.rmtree(run)
    assert train(run, 5, [url]) == 4
    assert steps(run) == [4, 5]
    assert held(url) == [1, 4, 5]


@pytest.mark.parametrize("kind", ["ceph", "azurite", "gs"])
def test_a_large_file_on_each_kind(kind, request, alone, monkeypatch, tmp_path):
    """A file of several parts that was interrupted in the middle is whole in the end, and comes back to the bit."""
    from servers.fixtures import _new

    url, run = _new(kind, monkeypatch).url + "/large", str(tmp_path / "run")
    size, real = 9 << 20, copying._take  # 36 MB: three parts
    train(run, 1, size=size, keep=Keep(last=1))
    with monkeypatch.context() as patch:

        def stop(sources, file, number, *more):
            if number == 2:
                refuse()
            real(sources, file, number, *more)

        patch.setattr(copying, "_take", stop)
        train(run, 0, [url], size=size, keep=Keep(last=1))
    assert held(url) == []
    train(run, 0, [url], size=size, keep=Keep(last=1))
    there = Objects.at(url)
    [name] = folders(url)
    with open(os.path.join(run, names(run)[0], "state.safetensors"), "rb") as file:
        assert there.small(f"{name}/state.safetensors", 1 << 30) == file.read()
    shutil.rmtree(run)
    assert train(run, 0, [url], size=size) == 1
    assert steps(run) == [1]
