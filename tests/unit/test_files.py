"""Reading files of any size, whole."""

import os

import pytest

from holdfast import files
from holdfast.errors import FormatError

SIZES = [0, 1, 100, files._SMALL - 1, files._SMALL, files._SMALL + 1, 3 * files._SMALL]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_read_whole(tmp_path, size):
    """A file is read whole up to the limit, to the byte; a longer one is refused with both numbers."""
    path, data = tmp_path / "file", os.urandom(size).replace(b"\0", b"1")
    path.write_bytes(data)
    for text in (False, True):
        assert files.read_file(path, size, text=text) == data
        assert files.read_file(path, 1 << 30, text=text) == data
        if size:
            with pytest.raises(
                FormatError, match=f"has {size:,} bytes; such a file has at most {size - 1:,}"
            ):
                files.read_file(path, size - 1, text=text)


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_hole_is_no_text(tmp_path, size):
    """A zero byte ends the reading of a text, wherever it is; other files may have them."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * (size - 1) + b"\0")
    with pytest.raises(FormatError, match=f"byte {size - 1:,} is zero"):
        files.read_file(path, size, text=True)
    assert len(files.read_file(path, size)) == size


def test_a_file_that_grows(tmp_path, monkeypatch):
    """What somebody adds meanwhile is read as well, or is beyond the limit."""
    path, real = tmp_path / "file", os.read

    def growing(fd, count):
        piece = real(fd, count)
        if path.stat().st_size < 50:
            with open(path, "ab") as file:
                file.write(b"more")
        return piece

    path.write_bytes(b"x")
    monkeypatch.setattr(files.os, "read", growing)
    assert len(files.read_file(path, 1000)) >= 50
    path.write_bytes(b"x")
    with pytest.raises(FormatError, match="at most 20"):
        files.read_file(path, 20)
