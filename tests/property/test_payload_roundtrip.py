import tempfile

import numpy as np
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.format import dtypes
from holdfast.payload.array import HostArray, LazyArray
from holdfast.payload.layout import plan
from holdfast.payload.reader import FileRecord, Request, read, verify
from holdfast.payload.source import FolderSource
from holdfast.payload.writer import Save

KINDS = [*dtypes.NATIVE, *dtypes.FOREIGN, "numpy:<M8[ns]", "numpy:>f4", "numpy:|S3", "numpy:<U5"]
FINITE = [kind for kind in KINDS if dtypes.nonfinite(kind) is not None]

array_strategy = st.tuples(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    st.booleans(),  # lazy
    st.booleans(),  # checked
)
name_strategy = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda n: n != "__metadata__"
)
parts_strategy = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True),
    st.dictionaries(name_strategy, array_strategy, max_size=12),
    max_size=3,
)


def build(dtype, shape, lazy, checked, data):
    if lazy:
        return LazyArray(dtype, shape, len(data), lambda: data.copy(), None, checked)
    return HostArray(dtype, shape, data, None, checked)


def nonfinite(dtype, data):
    """The same question, asked number by number."""
    kind = dtypes.nonfinite(dtype)
    if kind is None:
        return False
    order = "big" if kind.order == ">" else "little"
    for start in range(0, len(data), kind.width):
        word = data[start : start + kind.width].tobytes()
        unsigned, signed = int.from_bytes(word, order), int.from_bytes(word, order, signed=True)
        if kind.lowest:
            if unsigned == 1 << (8 * kind.width - 1):
                return True
        elif (kind.signed is not None and signed >= kind.signed) or unsigned >= kind.unsigned:
            return True
    return False


@settings(max_examples=60, deadline=None)
@given(
    specification=parts_strategy,
    seed=st.integers(0, 2**32 - 1),
    block=st.sampled_from([4096, 8192, 1 << 16]),
    room=st.sampled_from([None, 20_000, 1 << 30]),
    header_limit=st.sampled_from([90_000_000, 8192]),
)
def test_what_is_written_is_read(specification, seed, block, room, header_limit):
    """Any arrays, in any layout, come back to the bit; the library opens each file; NaN marks are exact."""
    rng = np.random.default_rng(seed)
    data, parts = {}, {}
    for part, arrays in specification.items():
        parts[part] = {}
        for name, (dtype, shape, lazy, checked) in arrays.items():
            # Zeros with a few random bytes, so that arrays without any NaN are common.
            values = np.zeros(dtypes.byte_count(dtype, shape), np.uint8)
            if values.size:
                values[rng.integers(0, values.size, 2)] = rng.integers(0, 256, 2)
            if values.size and rng.random() < 0.3:
                values[:] = rng.integers(0, 256, values.size)
            data[part, name] = values
            parts[part][name] = build(dtype, shape, lazy, checked, values)
    layout = plan(parts, dict.fromkeys(parts, "pt"), header_limit=header_limit)
    with tempfile.TemporaryDirectory() as directory:
        job = Save(layout, directory, staging=room, block_size=block)
        job.start()
        job.wait_copied()
        written = job.wait()
        files = {name: FileRecord(name, file.size, file.blocks) for name, file in written.files.items()}
        assert sum(file.size for file in files.values()) == layout.total_bytes

        for file in files:
            with safetensors.safe_open(f"{directory}/{file}", "np") as opened:
                assert opened.metadata() == {"format": "pt"}
                found = set(opened.keys())
            stored = (
                (name, entry.chunks[0]) for rows in layout.table.values() for name, entry in rows.items()
            )
            assert found == {name for name, chunk in stored if chunk.file == file}

        into, requests = {}, []
        for part, rows in layout.table.items():
            for name, entry in rows.items():
                [chunk] = entry.chunks
                start, stop = chunk.bytes
                into[part, name] = np.full(stop - start, 85, np.uint8)
                requests.append(Request(chunk.file, start, stop, into[part, name], f"{part}/{name}"))
        # Some first, so that there are gaps; then all, in any order.
        read(
            FolderSource(directory),
            files,
            [request for request in requests if rng.random() < 0.5],
            block_size=block,
        )
        order = rng.permutation(len(requests))
        read(FolderSource(directory), files, [requests[index] for index in order], block_size=block)
        assert verify(FolderSource(directory), files, block_size=block) == []

    assert all(np.array_equal(into[key], values) for key, values in data.items())
    expected = {
        (part, name)
        for part, arrays in specification.items()
        for name, (dtype, _, _, checked) in arrays.items()
        if checked and nonfinite(dtype, data[part, name])
    }
    assert set(written.nonfinite) == expected
    assert len(written.nonfinite) == len(expected)
