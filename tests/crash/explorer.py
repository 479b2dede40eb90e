"""Explores every order in which several processes can touch one directory, with their real code.

A process is a function. Its every look at the disk and its every change is one *call*; nothing else
can tell it what the others do. So what it does next follows from the answers that it had so far, and
it need not stay alive between two calls: it is run again from its start with the answers it had,
until it makes a call that has no answer yet. That is remembered, and so is what a call does to a
disk; an exploration then steps from state to state by looking these up, and visits each state once,
whatever orders lead to it. A state is the disk and, for each process, the answers it had.

What a process was told before may not matter any more: there its code calls `milestone`, with all
that it still knows, and two processes at the same milestone with the same knowledge are one.

A process that is never stepped again has crashed, so crashes at every place are among the states;
where the others can see that it died, a process of its own kills it.
What a disk does, and how code is made to use one, lies in `modeldisk`.
"""

import dataclasses
import os

from modeldisk import Disk, is_dead


class Paused(BaseException):
    """Unwinds a process at the call that has no answer yet."""


class Tape:
    """The calls of one process: those that have their answers, and the one that it makes next.

    `note` keeps facts that the process wants to tell, such as what it believes to hold; they are part
    of what it knows.
    """

    def __init__(self, number, answers):
        self.number, self.answers = number, answers
        self.place, self.call, self.facts = 0, None, {}
        self.passed = None, -1  # the last milestone, and how many calls came before it

    def do(self, *call):
        if self.call is not None:
            raise Paused  # cleaning up after the pause: none of it happens
        if self.place == len(self.answers):
            self.call = call
            raise Paused
        error, answer = self.answers[self.place]
        self.place += 1
        if error:
            raise OSError(error, os.strerror(error), str(call[1]))
        return answer

    def note(self, **facts):
        if self.call is None:
            self.facts.update(facts)

    def milestone(self, *knowledge):
        """Whatever this process does next depends on this knowledge and its facts alone."""
        if self.call is None:
            self.passed = repr((knowledge, sorted(self.facts.items()))), self.place


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a process stands: the call that it makes next (None at its end), and what it noted.

    `knowledge` is that of a milestone between the last call and the next one, else None; `told` is a
    number that stands for the facts.
    """

    call: tuple | None
    facts: dict
    knowledge: str | None
    told: int


class Violation(AssertionError):
    """A state or a step that must not be, with the calls that lead there."""


class Process:
    """A function of a `Tape`, and what is known of it: each series of answers has a number."""

    def __init__(self, number, script, world):
        self.number, self.script, self.world = number, script, world
        self._origin = [(None, None)]  # of each series: the one that it continues, and the last answer
        self._next = {}
        self._points = {}
        self._known, self._told = {}, {}

    def point(self, series):
        found = self._points.get(series)
        if found is None:
            found = self._points[series] = self._run(series)
        return found

    def after(self, series, answer):
        """The series with one answer more; all that lead to the same knowledge are one."""
        key = (series, answer)
        found = self._next.get(key)
        if found is None:
            self._origin.append(key)
            found = len(self._origin) - 1
            knowledge = self.point(found).knowledge
            if knowledge is not None:
                found = self._known.setdefault(knowledge, found)
            self._next[key] = found
        return found

    def _run(self, series):
        answers = []
        while series:
            series, answer = self._origin[series]
            answers.append(answer)
        tape = Tape(self.number, answers[::-1])
        with self.world.entered(tape):
            try:
                self.script(tape)
            except Paused:
                assert tape.call is not None
            except Exception as error:  # for the checks: no process may end like that
                tape.note(failed=f"{type(error).__name__}: {error}")
            tape.milestone("end")
        knowledge, place = tape.passed
        told = self._told.setdefault(repr(sorted(tape.facts.items())), len(self._told))
        return Point(tape.call, tape.facts, knowledge if place == len(answers) else None, told)


class Exploration:
    """All states that some processes can reach from a disk.

    Attributes:
        processes: the functions of a tape.
        states: how many there are.
        steps: how many steps lead from one to another.

    `check_disk(disk)`, `check_state(disk, points)` and `check_step(before, after, points, index)` raise
    AssertionError, or say what is wrong by returning a text; they are asked of each disk, of each
    disk with what the processes have noted there, and of each step that changes the disk.
    """

    def __init__(self, scripts, world, disk, *, check_disk, check_state, check_step, first=()):
        self.processes = [Process(number, script, world) for number, script in enumerate(scripts, 1)]
        self._checks = check_disk, check_state, check_step
        self._disks, self._disk_numbers, self._moves = [], {}, {}
        self.steps = 0
        start = [self._number(disk), *([0] * len(scripts))]
        for index, until in first:
            while not until(self.processes[index].point(start[1 + index]).facts):
                start = list(self._step(tuple(start), index)[0])
        self._start = tuple(start)
        self._came = {self._start: None}  # state → (state before, process)

    @property
    def states(self):
        return len(self._came)

    def _number(self, disk):
        found = self._disk_numbers.get(disk)
        if found is None:
            found = self._disk_numbers[disk] = len(self._disks)
            self._disks.append(disk)
        return found

    def _step(self, state, index):
        """The state after one call of a process, the disk before and after, and the answer."""
        process = self.processes[index]
        call = process.point(state[1 + index]).call
        key = (state[0], process.number, call)
        found = self._moves.get(key)
        if found is None:
            disk, answer = Disk(self._disks[state[0]]).answer(process.number, call)
            found = self._moves[key] = (self._number(disk), answer)
        number, answer = found
        after = (number, *state[1:])
        series = process.after(state[1 + index], answer)
        return (*after[: 1 + index], series, *after[2 + index :]), answer

    def points(self, state):
        return [process.point(series) for process, series in zip(self.processes, state[1:], strict=True)]

    def run(self, limit=None):
        """Visits every state; `limit` is how many there may be at most."""
        check_disk, check_state, check_step = self._checks
        looked = set()  # what was checked already: disks, and disks with facts
        waiting = [self._start]
        while waiting:
            state = waiting.pop()
            disk = state[0]
            points = self.points(state)
            told = tuple(point.told for point in points)
            if disk not in looked:
                looked.add(disk)
                self._hold(state, check_disk, self._disks[disk])
            if (disk, told) not in looked:
                looked.add((disk, told))
                self._hold(state, check_state, self._disks[disk], points)
            for index, point in enumerate(points):
                if point.call is None or is_dead(self._disks[disk], index + 1):
                    continue
                after = self._step(state, index)[0]
                self.steps += 1
                if after not in self._came:
                    self._came[after] = (state, index)
                    waiting.append(after)
                if after[0] != disk and (disk, after[0], index, told) not in looked:
                    looked.add((disk, after[0], index, told))
                    disks = self._disks[disk], self._disks[after[0]]
                    self._hold(state, check_step, *disks, points, index, step=index)
            assert limit is None or len(self._came) <= limit, f"more than {limit:,} states"
        return self

    def each_alone(self, check):
        """Lets each process go on alone from every state; `check(facts at its end)`.

        It steps through states that were visited, so that its ends are looked up.
        """
        for index, process in enumerate(self.processes):
            ends = {}
            for start in self._came:
                if is_dead(self._disks[start[0]], process.number):
                    continue
                way, state = [], start
                while state not in ends:
                    point = process.point(state[1 + index])
                    if point.call is None:
                        ends[state] = point.facts
                        break
                    way.append(state)
                    ends[state] = None  # met again before its end is known: it goes round
                    state = self._step(state, index)[0]
                facts = ends[state]
                if facts is None:
                    raise Violation(f"process {index + 1} goes round for ever\n{self.story(start)}")
                for passed in way:
                    ends[passed] = facts
                self._hold(start, check, facts)

    def walk(self, random):
        """One order at random, as (number of the process, call, answer), and the disk at its end."""
        state, calls = self._start, []
        while left := [index for index, point in enumerate(self.points(state)) if point.call is not None]:
            index = random.choice(left)
            call = self.points(state)[index].call
            state, answer = self._step(state, index)
            calls.append((index + 1, call, answer))
        return calls, self._disks[state[0]]

    def _hold(self, state, check, *args, step=None):
        try:
            wrong = check(*args)
        except AssertionError as error:
            wrong = str(error)
        if wrong:
            raise Violation(f"{wrong}\n{self.story(state, step)}")

    def story(self, state, step=None):
        """The calls that lead to a state, and what lies on the disk there."""
        way = []
        while state in self._came and self._came[state] is not None:
            before, index = self._came[state]
            way.append((before, index))
            state = before
        lines, way = [], way[::-1]
        last = self._start
        for before, index in way:
            last, answer = self._step(before, index)
            lines.append(_line(index, self.points(before)[index].call, answer))
        if step is not None:
            answer = self._step(last, step)[1]
            lines.append(_line(step, self.points(last)[step].call, answer))
        facts = [f"process {n}: {point.facts}" for n, point in enumerate(self.points(last), 1)]
        return "\n".join([*lines, *facts, *Disk(self._disks[last[0]]).lines()])


def _line(index, call, answer):
    error, value = answer
    shown = ", ".join(f"{len(part)} bytes" if isinstance(part, bytes) else str(part) for part in call[1:])
    result = f" -> {os.strerror(error)}" if error else f" -> {value}" if value is not None else ""
    return f"  {index + 1}: {call[0]}({shown}){result[:200]}"
