"""Mirrors that hold many checkpoints."""

import collections
import shutil
import threading
import time

from mirrored_runs import steps, train

from holdfast import Keep
from holdfast.objects.access import Objects

KEEP = Keep(last=None)


def test_manifests_are_read_side_by_side(bucket, tmp_path, monkeypatch):
    """A lost run looks at each of them, several at a time and each once; so does the first copy of a launch."""
    url, run = f"s3://{bucket}/runs/first", str(tmp_path / "run")
    train(run, 12, [url], keep=KEEP)
    read, now, most = collections.Counter(), set(), []
    small = Objects.small

    def slow(objects, name, limit):
        if not name.endswith("/checkpoint.json"):
            return small(objects, name, limit)
        read[name] += 1
        now.add(threading.get_ident())
        most.append(len(now))
        time.sleep(0.05)
        try:
            return small(objects, name, limit)
        finally:
            now.discard(threading.get_ident())

    monkeypatch.setattr(Objects, "small", slow)
    train(run, 0, [url], keep=KEEP)
    assert max(most) >= 3
    assert set(read.values()) == {1}
    shutil.rmtree(run)
    read.clear()
    most.clear()
    assert train(run, 0, [url], keep=KEEP) == 12
    assert steps(run) == [12]
    assert max(most) >= 3
    assert len(read) == 12
    assert max(read.values()) == 1
