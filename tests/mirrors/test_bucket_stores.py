"""Large files where the library is not installed that continues them by part."""

import os
import shutil
import sys

import pytest
from bucket_runs import folders, held, refuse
from mirrored_runs import names, steps, train

from holdfast import Keep
from holdfast.mirrors import copying
from holdfast.objects.access import Objects


@pytest.mark.parametrize("kind", ["gs"])
def test_a_large_file_goes_as_a_whole(kind, request, alone, monkeypatch, tmp_path):
    """A file of several parts that was interrupted in the middle is whole in the end, and comes back to the bit."""
    from servers.fixtures import _new

    monkeypatch.setitem(sys.modules, "botocore", None)
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
