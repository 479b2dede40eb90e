"""What a save costs a training, measured with a clock that the test moves."""

import pytest

from holdfast.pace import Cost, Pace, typical
from holdfast.policy.every import DEFAULT, FIRST, Every

PACED = Every(overhead=0.01)


class Course:
    """A loop that takes as long as it is told; `step` is how many were done."""

    def __init__(self, every=PACED):
        self.now, self.step = 1000.0, 0
        self.pace = Pace(every, lambda: self.now)
        self.pace.enter()

    def steps(self, *seconds, boundary=0.0):
        """Steps that take so long; the loop stands still at each boundary for a while besides."""
        for each in seconds:
            self.now += each
            self.step += 1
            self.pace.reach(self.step)
            self.now += boundary
            self.pace.go_on()

    def save(self, held=0.5, during=(), write=1.0):
        """A save at this boundary, the steps beside it, and its landing at the boundary after them."""
        self.pace.begin_save()
        began = self.now
        self.now += held
        self.pace.hand_over()
        self.pace.go_on()
        *before, last = during or [None]
        self.steps(*before)
        if last is not None:
            self.now += last
            self.step += 1
            self.pace.reach(self.step)
        self.pace.land(began + write)
        self.pace.go_on()
        return self.pace.cost

    def epoch_end(self, seconds):
        self.now += seconds
        self.pace.reach(None)
        self.pace.go_on()


def test_hold_and_slowdown_add_up():
    """A save costs the time it held the training, and what the steps beside it took more than others."""
    course = Course()
    course.steps(*[0.1] * 20)
    cost = course.save(held=0.5, during=[0.15] * 10, write=3.0)
    assert cost == pytest.approx((0.5, 0.5, 3.0))
    assert cost.total == pytest.approx(1.0)


def test_what_stands_still_is_no_step():
    """What a boundary takes, the hold of a save included, is not counted as a step."""
    course = Course()
    course.steps(*[0.1] * 20, boundary=7.0)
    assert course.save(held=9.0, during=[0.1] * 10, write=10.0).slowdown == pytest.approx(0.0)


def test_faster_steps_are_no_gain():
    """Steps that happen to be faster beside a write do not make a save cheaper than its hold."""
    course = Course()
    course.steps(*[0.1] * 20)
    assert course.save(held=0.5, during=[0.05] * 10).total == 0.5


def test_odd_steps_are_left_out():
    """A long evaluation among the steps changes neither what is typical, nor adds more than the write's own time."""
    course = Course()
    course.steps(*[0.1] * 50, 60.0, *[0.1] * 50)
    assert course.save(held=0.5, during=[0.15] * 10, write=3.0).slowdown == pytest.approx(0.5)
    course = Course()
    course.steps(*[0.1] * 101)
    assert course.save(held=0.5, during=[0.1, 60.0, 0.1], write=3.0).slowdown == pytest.approx(2.5)


@pytest.mark.parametrize("rhythm", [[0.1, 0.1, 0.1, 0.4], [0.01] * 15 + [1.0], [0.1, 0.2, 0.5]])
def test_a_rhythm_is_no_slowdown(rhythm):
    """Steps that are longer regularly, as with gradients gathered over several batches, are no cost of saves."""
    course = Course()
    course.steps(*rhythm * 40)
    total = sum(rhythm) * 20
    assert course.save(during=rhythm * 20, write=total).slowdown <= 0.1 * total


def test_a_rhythm_of_four_is_compared_with_itself():
    """With gradients gathered over four batches the slow-down is told to a few percent of the write."""
    course = Course()
    rhythm = [0.1, 0.1, 0.1, 0.2]
    course.steps(*rhythm * 40)
    assert course.save(during=rhythm * 10, write=6.0).slowdown < 0.03 * 6
    course.steps(*rhythm * 40)
    slower = [1.2 * each for each in rhythm]
    assert course.save(during=slower * 10, write=6.0).slowdown == pytest.approx(1.0, rel=0.15)


def test_only_batch_after_batch_counts():
    """The first step of a loop and of an epoch, and what is between epochs, are compared with nothing."""
    course = Course()
    course.steps(50.0, 0.1, 0.1, 0.1)
    course.epoch_end(30.0)
    course.pace.reach(course.step)  # the batches of the next epoch are entered
    course.pace.go_on()
    course.steps(40.0, *[0.1] * 3)
    assert course.save(during=[0.1] * 10).slowdown == pytest.approx(0.0)
    course.pace.begin_save()
    course.pace.hand_over()
    course.epoch_end(30.0)
    course.pace.reach(course.step)
    course.pace.go_on()
    course.steps(40.0, 0.1)
    course.pace.land(course.now)
    assert course.pace.cost.slowdown == pytest.approx(0.0)


def test_a_loop_entered_again():
    """The time between two loops of one process is no step, and a save that was in flight is forgotten."""
    course = Course()
    course.steps(*[0.1] * 9)
    course.pace.begin_save()
    course.pace.hand_over()
    course.now += 500.0
    course.pace.enter()
    assert course.pace.interval == FIRST
    course.steps(9.0, *[0.1] * 9)
    course.pace.land(course.now)
    assert course.pace.cost is None
    assert course.save(during=[0.1] * 9).slowdown == pytest.approx(0.0)


def test_nothing_to_compare():
    """Without a step before or beside the write, a save costs what it held the training."""
    course = Course()
    assert course.save(held=0.5) == Cost(0.5, None, 1.0)
    course = Course()
    course.steps(9.0)
    assert course.save(held=0.5, during=[9.0]) == Cost(0.5, None, 1.0)


def test_the_first_save_is_left_out():
    """The first save of a process, which has memory to fetch, counts only until there is a second one."""
    course = Course()
    course.steps(*[0.1] * 9)
    course.save(held=5.0, write=9.0)
    assert course.pace.cost.total == 5.0
    course.save(held=0.5)
    assert course.pace.cost.total == 0.5
    assert course.pace.cost.write == 1.0


def test_medians_of_the_last_five():
    """One save that was dear by chance changes nothing, and old ones are forgotten."""
    course = Course()
    for held in (9, 8, 8, 8, 8, 8, 0.5, 0.7, 90, 0.6):
        course.save(held=held, write=2 * held)
    assert course.pace.cost == pytest.approx((0.7, None, 1.4))


def test_typical_total_is_the_median_of_totals():
    """The parts of a typical cost add up to the median of the sums; unknown slow-downs count as none."""
    costs = [Cost(0.1, 0.4, 1.0), Cost(0.3, None, 2.0), Cost(0.2, 0.2, 9.0)]
    found = typical(costs)
    assert found.total == pytest.approx(0.4)
    assert (found.slowdown, found.write) == (pytest.approx(0.3), 2.0)
    assert typical([]) is None
    assert typical([Cost(0.1, None, 1.0), Cost(0.2, None, 3.0)]) == pytest.approx((0.15, None, 2.0))


def test_interval_follows_the_cost():
    """Before a save is measured the interval is that of the first; then it follows what saves cost now."""
    course = Course()
    assert course.pace.interval == FIRST
    course.steps(*[0.1] * 9)
    course.pace.begin_save()
    course.now += 0.2
    course.pace.hand_over()
    assert course.pace.interval is None  # nothing is decided while one is written
    course.pace.land(course.now + 1.0)
    assert (course.pace.interval.seconds, course.pace.interval.term) == (pytest.approx(20.0), "overhead")
    for _ in range(5):
        course.save(held=0.5)
    assert course.pace.interval.seconds == pytest.approx(50.0)
    for _ in range(3):
        course.save(held=3.0, write=400.0)
    assert (course.pace.interval.seconds, course.pace.interval.term) == (pytest.approx(400.0), "write")


def test_no_interval_unasked():
    """An Every without overhead and mtbf is measured too, and never made due by it."""
    course = Course(DEFAULT)
    assert course.pace.interval is None
    course.save(held=0.5)
    assert course.pace.interval is None
    assert course.pace.facts() == {"cost_seconds": 0.5, "write_seconds": 1.0}


def test_facts():
    """The history is told cost, slow-down, write, interval and term, and the shares that were asked for."""
    course = Course(Every(overhead=0.01, mtbf="24h"))
    assert course.pace.facts() == {"overhead": 0.01, "mtbf": "24h", "interval_seconds": 30.0, "term": "first"}
    course.steps(*[0.1] * 9)
    course.save(held=0.5, during=[0.15] * 10, write=3.0)
    assert course.pace.facts() == {
        "cost_seconds": 1.0,
        "slowdown_seconds": 0.5,
        "write_seconds": 3.0,
        "overhead": 0.01,
        "mtbf": "24h",
        "interval_seconds": 100.0,
        "term": "overhead",
    }


def test_memory_is_bounded():
    """However long a training, no more than the last steps and saves are kept."""
    course = Course()
    course.steps(*[0.1] * 1000)
    for _ in range(50):
        course.save(during=[0.1])
    assert (len(course.pace._quiet), len(course.pace._costs)) == (101, 5)
