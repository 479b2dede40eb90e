"""The threads that carry blocks: read side by side, written in order, and nothing after a failure."""

import random
import threading
import time

import pytest

from holdfast.errors import StorageError
from holdfast.format.safetensors import BLOCK
from holdfast.mirrors.crew import Crew, block_of
from holdfast.mirrors.transfer import Item, Transfer


@pytest.fixture
def crew():
    made = Crew(4)
    yield made
    made.close()


def test_writes_come_in_order(crew):
    """However long each step reads, what it read is written after all that belongs before it, by one at a time."""
    chance, written, at_work, most = random.Random(1), [], [], []

    def step(number):
        def read(room):
            assert len(room()) == BLOCK
            time.sleep(chance.random() / 200)

            def write():
                at_work.append(number)
                most.append(len(at_work))
                time.sleep(chance.random() / 2000)
                written.append(number)
                at_work.remove(number)

            return write

        return read

    crew.start([step(number) for number in range(40)]).wait()
    assert written == list(range(40))
    assert set(most) == {1}


def test_steps_are_read_side_by_side(crew):
    """As many steps are read at a time as there are threads, and no more."""
    meeting = threading.Barrier(4, timeout=20)

    def read(_):
        meeting.wait()

    crew.start([read] * 8).wait()


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("where", ["read", "write"])
def test_nothing_comes_after_a_failure(threads, where):
    """Of an errand that fails, all before the failure is written and nothing after it; its error is the one that is raised."""
    written, crew = [], Crew(threads)

    def step(number):
        def fail():
            raise StorageError(f"no {number}")

        def read(_):
            if number == 5 and where == "read":
                fail()
            time.sleep(0.002 * (number % 3))
            return fail if number == 5 else lambda: written.append(number)

        return read

    errand = crew.start([step(number) for number in range(12)])
    with pytest.raises(StorageError, match="no 5"):
        errand.wait()
    assert written == [0, 1, 2, 3, 4]
    other = crew.start([step(0)])  # the crew goes on
    other.wait()
    crew.close()


def test_one_that_is_stopped_ends(crew):
    """An errand that is stopped begins no further step, and what was begun has ended when `stop` returns."""
    begun = []

    def read(_):
        begun.append(1)
        time.sleep(0.05)

    errand = crew.start([read] * 100)
    while not begun:
        time.sleep(0.001)
    assert errand.stop(KeyboardInterrupt())
    count = len(begun)
    assert count < 100
    time.sleep(0.1)
    assert len(begun) == count
    with pytest.raises(KeyboardInterrupt):
        errand.wait()


def test_larger_blocks_have_memory_of_their_own():
    """A block that is larger than Holdfast's own does not have to fit into a thread's buffer."""
    buffer = memoryview(bytearray(BLOCK))
    assert len(block_of(buffer, 100)) == 100
    assert len(block_of(buffer, BLOCK + 1)) == BLOCK + 1


def test_published_in_order():
    """Checkpoints are carried side by side and published in the order asked for, as far as the first that fails."""
    chance, published, ended = random.Random(2), [], []

    def carry(item, crew):
        time.sleep(chance.random() / 100)
        if item.name == "7":
            raise StorageError("full")
        return (lambda: published.append(item.name)) if item.name != "3" else None

    transfer = Transfer(4, lambda _: None, lambda item: ended.append(item.name))
    with pytest.raises(StorageError, match="full"):
        transfer.bring([Item(str(number), 1) for number in range(10)], carry)
    assert published == ["0", "1", "2", "4", "5", "6"]
    assert ended == ["0", "1", "2", "3", "4", "5", "6"]
