"""What the tests of damage share: harming files in place, and working out what must be found."""

import contextlib
import json
import os

import xxhash
from click.testing import CliRunner

from holdfast import DamagedError, HoldfastError
from holdfast.cli.main import main as program
from holdfast.format import sealed


class Bits:
    """The bits of one file, which are flipped in place, one at a time."""

    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.fd).st_size

    def __len__(self):
        return 8 * self.size

    @contextlib.contextmanager
    def flipped(self, number):
        """One bit is another within the block; a failure there tells which."""
        place, mask = number >> 3, 1 << (number & 7)
        [byte] = os.pread(self.fd, 1, place)
        os.pwrite(self.fd, bytes([byte ^ mask]), place)
        try:
            yield place
        except BaseException as error:
            error.add_note(f"with bit {number & 7} of byte {place} of {self.path} flipped")
            raise
        finally:
            os.pwrite(self.fd, bytes([byte]), place)

    def close(self):
        os.close(self.fd)


@contextlib.contextmanager
def bits_of(path):
    found = Bits(path)
    before = open(path, "rb").read()
    try:
        yield found
    finally:
        found.close()
        assert open(path, "rb").read() == before, "a bit was not put back"


def table_of(path):
    return json.loads((path / "arrays.json").read_bytes())


def reblock(path, size):
    """Divides the payload of a checkpoint into blocks of another size, as the format lets a writer do."""
    arrays = sealed.decode((path / "arrays.json").read_bytes(), "")
    manifest = sealed.decode((path / "checkpoint.json").read_bytes(), "")
    arrays["block_size"] = size
    for name, record in arrays["files"].items():
        data = (path / name).read_bytes()
        blocks = [xxhash.xxh3_128(data[at : at + size]) for at in range(0, len(data), size)]
        record["blocks"] = [block.hexdigest() for block in blocks]
        digest = xxhash.xxh3_128_hexdigest(b"".join(block.digest() for block in blocks))
        manifest["files"][name] = {"size": len(data), "digest": digest}
    text = sealed.encode(arrays)
    manifest["files"]["arrays.json"] = {"size": len(text), "digest": xxhash.xxh3_128_hexdigest(text)}
    (path / "arrays.json").write_bytes(text)
    (path / "checkpoint.json").write_bytes(sealed.encode(manifest))


def touched(table, file, start, stop):
    """The arrays with a byte between start and stop of a file, by the table alone."""
    return {
        f"{part}/{name}"
        for part, content in table["parts"].items()
        for name, entry in content["arrays"].items()
        for chunk in entry["chunks"]
        if chunk["file"] == file and chunk["bytes"][0] < stop and start < chunk["bytes"][1]
    }


def check(error, path, file, block=None, arrays=()):
    """An error is a `DamagedError` that names just this."""
    assert type(error) is DamagedError, repr(error)
    assert (error.path, error.file, error.block) == (str(path), file, block)
    assert set(error.arrays) == set(arrays)
    assert str(error).startswith(f"{path}")
    assert file in str(error)
    assert "Next: " in str(error)
    assert error.expected != error.found


def caught_by(act):
    """The error that it ends with; of a kind that is not ours, it goes on to the test's end."""
    try:
        act()
    except HoldfastError as error:
        return error
    raise AssertionError("the flipped bit was not found")


def call(*words):
    """What the command prints and how it ends."""
    result = CliRunner().invoke(program, [str(word) for word in words], prog_name="holdfast")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result
