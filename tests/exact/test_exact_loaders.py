"""Trainings with every kind of loader, straight against resumed, bit by bit."""

# ruff: noqa: E402

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import trainings as t
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    random_split,
)


def generator(seed=9):
    return torch.Generator().manual_seed(seed)


def weights():
    return torch.arange(1.0, 23.0)


class Augmented(Dataset):
    """Draws from all three global streams and from one of its own."""

    def __init__(self):
        self.inner, self.rng = t.data(), np.random.default_rng(3)

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        x, y = self.inner[index]
        noise = random.random() + np.random.rand() + self.rng.random()
        return x + torch.rand(6) + noise, y


class Stream(IterableDataset):
    """The same samples in every pass, divided among the workers."""

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        for index in range(info.id if info else 0, 22, info.num_workers if info else 1):
            yield t.data()[index]


class StatefulStream(Stream):
    """Knows its place, for torchdata."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        at, self.at = self.at, 0
        for index in range(at, 22):
            self.at = index + 1
            yield t.data()[index]
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def stateful(*args, **options):
    return pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader(*args, **options)


FORK = {"num_workers": 2, "multiprocessing_context": "fork"}

LOADERS = {
    "in order": lambda: DataLoader(t.data(), 5),
    "shuffle": lambda: DataLoader(t.data(), 5, shuffle=True),
    "drop last": lambda: DataLoader(t.data(), 5, shuffle=True, drop_last=True),
    "own generator": lambda: DataLoader(t.data(), 5, shuffle=True, generator=generator()),
    "weighted": lambda: DataLoader(t.data(), 5, sampler=WeightedRandomSampler(weights(), 30)),
    "weighted, own generator": lambda: DataLoader(
        t.data(), 5, sampler=WeightedRandomSampler(weights(), 18, generator=generator())
    ),
    "replacement": lambda: DataLoader(t.data(), 5, sampler=RandomSampler(t.data(), True, 13)),
    "subset": lambda: DataLoader(Subset(t.data(), range(0, 22, 2)), 3, shuffle=True),
    "random split": lambda: DataLoader(random_split(t.data(), [14, 8], generator())[0], 3, shuffle=True),
    "subset sampler": lambda: DataLoader(t.data(), 3, sampler=SubsetRandomSampler(range(11))),
    "concatenated": lambda: DataLoader(
        ConcatDataset([t.data(), Subset(t.data(), [4, 5, 6])]), 5, shuffle=True
    ),
    "no batches": lambda: DataLoader(Subset(t.data(), range(6)), batch_size=None, shuffle=True),
    "augmented": lambda: DataLoader(Augmented(), 5, shuffle=True),
    "iterable": lambda: DataLoader(Stream(), 5),
    "list": lambda: [t.data()[i : i + 5] for i in range(0, 20, 5)],
    "torchdata": lambda: stateful(t.data(), batch_size=5, shuffle=True),
    "torchdata, own generator": lambda: stateful(t.data(), batch_size=5, shuffle=True, generator=generator()),
    "torchdata, iterable": lambda: stateful(StatefulStream(), batch_size=5),
}
WITH_WORKERS = {
    "shuffle": lambda: DataLoader(t.data(), 5, shuffle=True, **FORK),
    "persistent, own generator": lambda: DataLoader(
        t.data(), 5, shuffle=True, generator=generator(), persistent_workers=True, **FORK
    ),
    "weighted": lambda: DataLoader(t.data(), 5, sampler=WeightedRandomSampler(weights(), 30), **FORK),
    "iterable": lambda: DataLoader(Stream(), 5, **FORK),
    "torchdata": lambda: stateful(t.data(), batch_size=5, shuffle=True, **FORK),
    "torchdata, every 3": lambda: stateful(
        t.data(), batch_size=5, shuffle=True, snapshot_every_n_steps=3, **FORK
    ),
}


def training(make, epochs=3, **options):
    def train(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        run = launch.run(**options)
        loader = make()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(epochs):
            launch.top()
            run.state["seen"] = []
            for batch in run.batches(loader):
                t.step(net, opt, batch)
                run.state["seen"].append(float(batch[0].sum()))
                random.random(), np.random.rand(), torch.rand(2)
        return run

    return train


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_loader(make, assert_exact):
    """A resumed training sees the batches that an uninterrupted one sees, in the same order."""
    # torchdata's sampler draws a seed when it is made, so launches begin alike
    assert_exact(training(make, seed=0))


def few(places):
    """In the middle of the first epoch, after it, and at the end of the last: each resume starts workers anew."""
    middle = min(n for n, p in places.items() if p.batch == 2)
    between = next(n for n, p in places.items() if p.epoch == 1 and not p.entered)
    return [middle, between, max(n for n, p in places.items() if p.batch)]


@pytest.mark.parametrize("make", WITH_WORKERS.values(), ids=WITH_WORKERS.keys())
def test_loader_with_workers(make, assert_exact):
    """With forked workers, too, a resumed training sees the batches of an uninterrupted one."""
    assert_exact(training(make, epochs=2, seed=0), cuts=few)


def test_every_boundary(assert_exact):
    """A training with a shuffled loader is exact wherever it was cut: at each boundary of three epochs."""
    assert_exact(training(LOADERS["shuffle"]), cuts=list)


def seeding(seed_of):
    def train(launch):
        net, own = t.net(), torch.Generator()
        opt = torch.optim.SGD(net.parameters(), lr=0.05)
        loader = DataLoader(t.data(), 5, shuffle=True, generator=own)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for epoch in run.epochs(3):
            own.manual_seed(seed_of(epoch))
            launch.top()
            for batch in run.batches(loader):
                t.step(net, opt, batch)
        return run

    return train


def test_own_generator_used_at_the_top(assert_exact):
    """A loader's generator that is seeded anew for each epoch keeps what the script seeds it with."""
    assert_exact(seeding(lambda epoch: 100 + epoch))


def after_first(places):
    return [n for n, p in places.items() if p.epoch == 1 and not p.entered]


def test_own_generator_seeded_alike(assert_exact, place, said):
    """One seeded alike for each epoch, too, but for a resume right after the first one, which is told."""
    alike = seeding(lambda _: 100)
    assert_exact(alike, cuts=lambda places: set(places) - set(after_first(places)))
    assert said == []
    with pytest.raises(AssertionError, match="resumed at"):
        assert_exact(alike, cuts=after_first)
    assert ["is seeded between two epochs" in line for line in said] == [True]


def test_own_generator_drawn_from(place, said):
    """One that the top of the body draws from, and that is not tracked, is warned of at the first launch."""

    def train(launch):
        own = generator()
        run = launch.run()
        for _ in run.epochs(3):
            torch.rand(1, generator=own)
            for _ in run.batches(DataLoader(t.data(), 5, shuffle=True, generator=own)):
                pass
        return run

    t.launch(train, place)
    assert [line.partition(" is ")[0] for line in said] == ["The loader's generator"]
    assert "run.track(" in said[0]


def test_tracked_generator(assert_exact):
    """A loader's generator that the top of the body draws from is exact when it is tracked."""

    def train(launch):
        net, own = t.net(), generator()
        opt = torch.optim.SGD(net.parameters(), lr=0.05)
        loader = DataLoader(t.data(), 5, shuffle=True, generator=own)
        run = launch.run()
        launch.track(model=net, optimizer=opt, order=own)
        for _ in run.epochs(3):
            run.state["drawn"] = torch.rand(3, generator=own)
            launch.top()
            for batch in run.batches(loader):
                t.step(net, opt, batch)
        return run

    assert_exact(train)


def test_left_early(assert_exact):
    """An epoch whose batches are left by break, by a true batch number, is exact."""

    def train(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.05)
        loader = DataLoader(t.data(), 4, shuffle=True)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(3):
            launch.top()
            for number, batch in run.batches(loader).numbered():
                t.step(net, opt, batch)
                if number == 3:
                    break
        return run

    assert_exact(train)


def test_distributed_sampler(assert_exact):
    """A DistributedSampler, told the epoch at the top of the body, is exact."""

    def train(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.05)
        sampler = DistributedSampler(t.data(), num_replicas=1, rank=0, seed=3)
        loader = DataLoader(t.data(), 5, sampler=sampler)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for epoch in run.epochs(3):
            sampler.set_epoch(epoch)
            launch.top()
            for batch in run.batches(loader):
                t.step(net, opt, batch)
        return run

    assert_exact(train)


def test_evaluation(assert_exact):
    """Other loaders that the body goes through, shuffled ones as well, change nothing."""

    def train(launch):
        net = t.net(dropout=0.3)
        opt = torch.optim.SGD(net.parameters(), lr=0.05)
        loader = DataLoader(t.data(), 5, shuffle=True)
        valid = DataLoader(t.data(9), 4, shuffle=True)
        run = launch.run(keep={"best": 1, "metric": "valid", "mode": "min"})
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(3):
            launch.top()
            for number, batch in run.batches(loader).numbered():
                t.step(net, opt, batch)
                if number == 2:
                    run.log(early=sum(t.loss_of(net, b).item() for b in valid))
            run.log(valid=sum(t.loss_of(net, b).item() for b in valid))
        return run

    assert_exact(train)


def test_changing_loader(place, assert_exact):
    """A loader that is made anew in every epoch is exact."""

    def train(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.05)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for epoch in run.epochs(3):
            order = torch.randperm(22, generator=generator(epoch))[:15]
            loader = DataLoader(Subset(t.data(), order.tolist()), 4, shuffle=True)
            launch.top()
            for batch in run.batches(loader):
                t.step(net, opt, batch)
        return run

    straight = t.launch(train, f"{place}/straight", changed=["loader"])
    saving = t.launch(train, f"{place}/saving", thorough=True, changed=["loader"])
    assert t.differences(straight, saving) == []
    for number in t.places(f"{place}/saving"):
        t.copy_until(f"{place}/saving", f"{place}/{number}", number)
        end = t.launch(train, f"{place}/{number}", number, changed=["loader"])
        assert t.differences(straight, end) == []
