"""Checkpoints to an object store and back, over the loopback interface, beside boto3 and `cp`.

The store is the real gateway that the tests use, with its objects in memory. It shares the cores with whoever is
measured, so the processor time and the memory of the client say as much as the clock.
"""

from __future__ import annotations

import http.client
import os
import resource
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from benchmarks import contenders, limits, mirrors
from benchmarks.bench import Bench
from benchmarks.children import Sample
from benchmarks.limits import thread_counts
from benchmarks.memory import measured
from benchmarks.table import TIMES, megabytes, seconds
from benchmarks.topic import Case, Column, Row, Rows, Target, Topic, ratio
from holdfast.objects.access import Objects
from holdfast.objects.amazon import Amazon
from holdfast.pulling import Pull
from holdfast.pushing import Push

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "mirrors"))

from servers import stores

_PUSH, _PULL = "**Holdfast** push (verified)", "**Holdfast** pull (verified, durable)"
_BOTO = "boto3"
_PART = 16 << 20
_COLUMNS = (
    *TIMES[:4],
    Column("processor time", lambda row, _: _cpu(row)),
    Column("extra memory", lambda row, _: megabytes(row.extra) if row.extra is not None else ""),
)


def _cpu(row: Row) -> str:
    found = row.fact("cpu")
    return seconds(found) if found is not None else ""


# -- in a measuring process ------------------------------------------------------------------------


def _timed(act: Callable[[], object]) -> Sample:
    before = _processor()
    taken, extra = measured(act)
    return Sample(taken, extra, {"cpu": _processor() - before})


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def push(environ: dict[str, str], run: str, url: str) -> Sample:
    os.environ.update(environ)
    contenders.quietly()
    limits.warm(run)
    Amazon(Objects.at(url))  # what only a first use costs
    task = Push(run, url)
    sample = _timed(task.go)
    return _copied(task, sample)


def pull(environ: dict[str, str], url: str, run: str) -> Sample:
    os.environ.update(environ)
    contenders.quietly()
    task = Pull(url, run)
    sample = _timed(task.go)
    return _copied(task, sample)


def _copied(task: Push | Pull, sample: Sample) -> Sample:
    if [item.status for item in task.items] != ["copied"]:
        raise ValueError(f"not copied: {task.items}")
    return sample


def _client(environ: dict[str, str], **config: Any) -> Any:
    import boto3
    from botocore.config import Config

    os.environ.update(environ)
    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}, **config))
    client.list_buckets()
    return client


def boto_up(environ: dict[str, str], folder: str, bucket: str, prefix: str) -> Sample:
    """As its documentation shows it, file by file; parts of 8 MiB, ten at a time."""
    client = _client(environ)
    limits.warm(folder)

    def act() -> None:
        for path in limits.files_in(folder):
            client.upload_file(path, bucket, f"{prefix}/{os.path.relpath(path, folder)}")

    return _timed(act)


def boto_down(environ: dict[str, str], bucket: str, prefix: str, folder: str, *, durable: bool) -> Sample:
    client = _client(environ)
    listed = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]

    def act() -> None:
        for item in listed:
            path = os.path.join(folder, os.path.relpath(item["Key"], prefix))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            client.download_file(bucket, item["Key"], path)
            if durable:
                limits.sync(path)

    return _timed(act)


def gateway_up(environ: dict[str, str], bucket: str, key: str, size: int, threads: int) -> Sample:
    """What the gateway takes: parts from memory, signed before, with no digest and no check."""
    client = _client(environ)
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    where = {"Bucket": bucket, "Key": key, "UploadId": upload}
    data = os.urandom(_PART)
    urls = [
        client.generate_presigned_url("upload_part", {**where, "PartNumber": number + 1})
        for number in range(-(-size // _PART))
    ]
    sample = _timed(lambda: _ask(urls, threads, "PUT", data, [{}] * len(urls)))
    client.abort_multipart_upload(**where)
    return sample


def gateway_down(environ: dict[str, str], bucket: str, key: str, size: int, threads: int) -> Sample:
    """What the gateway gives: ranges into memory, which nobody looks at."""
    url = _client(environ).generate_presigned_url("get_object", {"Bucket": bucket, "Key": key})
    ranges = [{"Range": f"bytes={start}-{min(start + _PART, size) - 1}"} for start in range(0, size, _PART)]
    return _timed(lambda: _ask([url] * len(ranges), threads, "GET", None, ranges))


def _ask(
    urls: Sequence[str], threads: int, method: str, data: bytes | None, headers: Sequence[dict[str, str]]
) -> None:
    waiting, failed = list(zip(urls, headers, strict=True)), []

    def work() -> None:
        buffer = bytearray(1 << 20)
        server = urlsplit(urls[0])
        connection = http.client.HTTPConnection(str(server.hostname), server.port)
        while waiting:
            url, more = waiting.pop()
            parts = urlsplit(url)
            connection.request(method, f"{parts.path}?{parts.query}", body=data, headers=more)
            answer = connection.getresponse()
            if answer.status >= 300:
                failed.append(answer.read())
                return
            while answer.readinto(buffer):
                pass

    crew = [threading.Thread(target=work) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if failed:
        raise ValueError(failed[0])


def copied_by_cp(source: str, target: str) -> Sample:
    limits.warm(source)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    mirrors.program(["cp", "-r"], source, target, durable=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(time.perf_counter() - started, facts={"cpu": cpu})


# -- the topics -----------------------------------------------------------------------------------


def topics(bench: Bench) -> Iterator[Topic]:
    lacking = stores.lacking("ceph")
    if lacking:

        def none(_: int) -> Sample:
            return Sample(None, facts={"note": lacking})

        for title, ours in (("Push: an object store", _PUSH), ("Pull: an object store", _PULL)):
            cases = [Case("limit: the gateway", "limit", none), Case(ours, "holdfast", none)]
            yield Topic("buckets", title, cases, 1, _COLUMNS)
        return
    run = bench.path("copied")
    nbytes = bench.run(mirrors.begin_run, run, bench.size).facts["nbytes"]
    bench.kept.add("copied")
    server = stores.Ceph()
    try:
        yield from _beside(bench, server, run, nbytes)
    finally:
        server.stop()
        bench.kept.discard("copied")


def _beside(bench: Bench, server: stores.Ceph, run: str, nbytes: int) -> Iterator[Topic]:
    bucket = stores.Bucket(server)
    environ = {**stores.HARMLESS, **bucket.environ()}
    text = f"{nbytes / 2**30:.2g} GiB, a Ceph gateway on this machine that keeps it in memory"

    def upward(task: Callable[..., Sample], *arguments: Any) -> Sample:
        try:
            return bench.run(task, environ, *arguments)
        finally:
            _empty(bucket)

    yield Topic(
        "buckets",
        f"Push: {text}",
        [
            *(
                Case(
                    "limit: the gateway takes it",
                    "limit",
                    lambda _, threads=threads: upward(gateway_up, bucket.name, "raw", nbytes, threads),  # type: ignore[misc]
                    nbytes,
                )
                for threads in thread_counts()
            ),
            Case(_PUSH, "holdfast", lambda _: upward(push, run, f"{bucket.url}/{uuid.uuid4().hex}"), nbytes),
            Case(f"{_BOTO} upload_file", "peer", lambda _: upward(boto_up, run, bucket.name, "boto"), nbytes),
            Case(
                "cp -r, to a directory (not durable)",
                "peer",
                lambda _: bench.cleared(copied_by_cp, run, bench.path("there")),
                nbytes,
            ),
        ],
        bench.size.repetitions,
        _COLUMNS,
        targets=[_at_most(_PUSH, f"{_BOTO} upload_file")],
    )
    source = f"{bucket.url}/source"
    bench.run(push, environ, run, source)
    largest = max(bucket.sizes().items(), key=lambda item: item[1])
    there = bench.path("there")
    down = f"{_BOTO} download_file"
    yield Topic(
        "buckets",
        f"Pull: {text}",
        [
            *(
                Case(
                    "limit: the gateway gives it",
                    "limit",
                    lambda _, threads=threads: _scaled(  # type: ignore[misc]
                        bench.run(gateway_down, environ, bucket.name, *largest, threads), nbytes / largest[1]
                    ),
                    nbytes,
                )
                for threads in thread_counts()
            ),
            Case(_PULL, "holdfast", lambda _: bench.cleared(pull, environ, source, there), nbytes),
            *(
                Case(
                    who,
                    "peer",
                    lambda _, durable=durable: bench.cleared(  # type: ignore[misc]
                        _boto_down, environ, bucket.name, there, durable
                    ),
                    nbytes,
                )
                for who, durable in ((f"{down} + sync", True), (f"{down} (not durable)", False))
            ),
            Case(
                "cp -r, from a directory (not durable)",
                "peer",
                lambda _: bench.cleared(copied_by_cp, run, there),
                nbytes,
            ),
        ],
        bench.size.repetitions,
        _COLUMNS,
        targets=[_at_most(_PULL, f"{down} + sync")],
    )


def _boto_down(environ: dict[str, str], bucket: str, folder: str, durable: bool) -> Sample:
    return boto_down(environ, bucket, "source", folder, durable=durable)


def _scaled(sample: Sample, factor: float) -> Sample:
    """A measurement of the largest file alone, as if it had been of all."""
    assert sample.seconds is not None
    return Sample(sample.seconds * factor, sample.extra, {"cpu": sample.facts["cpu"] * factor})


def _empty(bucket: stores.Bucket) -> None:
    for key in bucket.sizes():
        bucket.remove(key)


def _at_most(ours: str, other: str, bound: float = 1.1) -> Target:
    def value(rows: Rows) -> float | None:
        return ratio(rows.seconds(ours), rows.seconds(other))

    return Target(
        f"{ours.removeprefix('**Holdfast** ')}: at most {bound:g}x the time of {other}", value, bound
    )
