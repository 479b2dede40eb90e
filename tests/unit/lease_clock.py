"""A clock for tests of the lease, in which hours pass at once."""

from holdfast.store.lease import Lease


class Time:
    """A clock that moves only while somebody sleeps, and what happens at its seconds."""

    def __init__(self):
        self.now, self.said, self.events = 1000.0, [], []

    def at(self, seconds, event):
        self.events.append((self.now + seconds, event))
        return self

    def sleep(self, seconds):
        self.now += max(seconds, 0.001)
        for due, event in [pair for pair in self.events if pair[0] <= self.now]:
            self.events.remove((due, event))
            event()

    def acquire(self, run, **options):
        return Lease.acquire(
            str(run), clock=lambda: self.now, sleep=self.sleep, say=self.said.append, **options
        )
