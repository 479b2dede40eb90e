"""Epochs of torch loaders, straight against interrupted: batches and random streams, bit by bit."""

# ruff: noqa: E402

import os
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from holdfast.state.source import Skip, compare_fingerprints
from holdfast.torch import workers
from holdfast.torch.loader import source

HERE = os.path.dirname(os.path.abspath(__file__))
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


class Digits(Dataset):
    """Item i is i plus noise from the global streams when it is read in the training's process."""

    def __init__(self, size=37, noise=True):
        self.size, self.noise, self.reads = size, noise, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.reads.append(int(index))
        noise = torch.rand(()).item() + random.random() + np.random.rand() if self.noise else 0.0
        return torch.tensor([int(index), noise], dtype=torch.float64)


class OwnNoise(Digits):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(5)

    def __getitem__(self, index):
        return super().__getitem__(index) + self.rng.random()


class Stream(IterableDataset):
    def __init__(self, size=37):
        self.size = size

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        for number in range(info.id if info else 0, self.size, info.num_workers if info else 1):
            yield torch.tensor([number, 0.0], dtype=torch.float64)


class StatefulStream(Stream):
    def __init__(self, size=37):
        super().__init__(size)
        self.at, self.stop = 0, False

    def __iter__(self):
        at, self.at = self.at, 0
        for number in range(at, self.size):
            self.at = number + 1
            yield torch.tensor([number, 0.0], dtype=torch.float64)
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class EagerSampler(Sampler):
    """Draws when it is opened, not when the first index is asked for, and has no length."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return iter(torch.randperm(self.size).tolist())


class NumpySampler(Sampler):
    """Draws index by index from a generator of its own."""

    def __init__(self, size):
        self.size, self.rng = size, np.random.default_rng(3)

    def __iter__(self):
        for _ in range(self.size):
            yield int(self.rng.integers(self.size))

    def __len__(self):
        return self.size


class Buckets(Sampler):
    """A batch sampler whose batches have different sizes, shuffled by Python's stream."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        order = list(range(self.size))
        random.shuffle(order)
        while order:
            take = 2 + len(order) % 4
            yield order[:take]
            del order[:take]


class EagerBatches(Buckets):
    """Draws all its batches when it is opened."""

    def __iter__(self):
        return iter([torch.randperm(self.size)[:size].tolist() for size in (5, 4, 7, 1, 3)])


def generator(seed=9):
    return torch.Generator().manual_seed(seed)


def torchdata_loader(*args, **options):
    return pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader(*args, **options)


def quiet():
    return Digits(noise=False)


class OwnIter(DataLoader):
    """As accelerate's: a generator around the loader's own iterator."""

    def __iter__(self):
        yield from super().__iter__()


W = {"num_workers": 2}
P = {"num_workers": 2, "persistent_workers": True}
SHUFFLED = {"batch_size": 5, "shuffle": True}

CASES = {
    "in order": lambda: DataLoader(Digits(), batch_size=5),
    "shuffled": lambda: DataLoader(Digits(), **SHUFFLED),
    "no remainder": lambda: DataLoader(Digits(35), **SHUFFLED, generator=generator()),
    "drop_last": lambda: DataLoader(Digits(), **SHUFFLED, drop_last=True),
    "own generator": lambda: DataLoader(Digits(), **SHUFFLED, generator=generator()),
    "sampler with generator": lambda: DataLoader(
        Digits(35),
        batch_size=5,
        sampler=RandomSampler(range(35), generator=generator()),
        generator=generator(4),
    ),
    "replacement": lambda: DataLoader(
        Digits(), batch_size=7, sampler=RandomSampler(range(37), replacement=True, num_samples=100)
    ),
    "replacement with generator": lambda: DataLoader(
        Digits(), batch_size=7, sampler=RandomSampler(range(37), True, 100, generator=generator())
    ),
    "weighted": lambda: DataLoader(Digits(), batch_size=5, sampler=WeightedRandomSampler(range(1, 38), 30)),
    "subset sampler": lambda: DataLoader(Digits(), batch_size=5, sampler=SubsetRandomSampler(range(3, 30))),
    "nested subsets": lambda: DataLoader(
        ConcatDataset([Subset(Subset(Digits(), range(30)), range(4, 20)), Digits(8)]), **SHUFFLED
    ),
    "eager sampler": lambda: DataLoader(Digits(), batch_size=5, sampler=EagerSampler(37)),
    "sampler with numpy generator": lambda: DataLoader(Digits(), batch_size=5, sampler=NumpySampler(37)),
    "custom batch sampler": lambda: DataLoader(Digits(), batch_sampler=Buckets(37)),
    "eager batch sampler": lambda: DataLoader(Digits(), batch_sampler=EagerBatches(37)),
    "batch sampler of torch": lambda: DataLoader(
        Digits(), batch_sampler=BatchSampler(RandomSampler(range(37)), 6, False)
    ),
    "no batch size": lambda: DataLoader(Digits(9), batch_size=None, shuffle=True),
    "batch sampler as sampler": lambda: DataLoader(
        TensorDataset(torch.arange(37.0)),
        batch_size=None,
        sampler=BatchSampler(RandomSampler(range(37)), 6, False),
    ),
    "data set with generator": lambda: DataLoader(OwnNoise(), **SHUFFLED),
    "iterable": lambda: DataLoader(Stream(), batch_size=5),
    "an __iter__ of its own": lambda: OwnIter(quiet(), **SHUFFLED),
    "torchdata": lambda: torchdata_loader(Digits(), **SHUFFLED),
    "torchdata, own generator": lambda: torchdata_loader(Digits(35), **SHUFFLED, generator=generator()),
    "torchdata, replacement": lambda: torchdata_loader(
        Digits(), batch_size=7, sampler=RandomSampler(range(37), True, 100, generator=generator())
    ),
    "torchdata, iterable": lambda: torchdata_loader(StatefulStream(), batch_size=5),
    "list": lambda: [torch.full((4, 2), float(n)) for n in range(6)],
}
WORKER_CASES = {
    "shuffled": lambda: DataLoader(quiet(), **SHUFFLED, **W),
    "persistent": lambda: DataLoader(quiet(), **SHUFFLED, **P),
    "persistent, own generator": lambda: DataLoader(
        Digits(35, False), **SHUFFLED, **P, generator=generator()
    ),
    "persistent, eager sampler": lambda: DataLoader(quiet(), batch_size=5, sampler=EagerSampler(37), **P),
    "persistent, eager batch sampler": lambda: DataLoader(quiet(), batch_sampler=EagerBatches(37), **P),
    "replacement with generator": lambda: DataLoader(
        quiet(), batch_size=7, sampler=RandomSampler(range(37), True, 100, generator=generator()), **W
    ),
    "custom batch sampler": lambda: DataLoader(quiet(), batch_sampler=Buckets(37), **W),
    "no batch size": lambda: DataLoader(quiet(), batch_size=None, shuffle=True, **W),
    "iterable, persistent": lambda: DataLoader(Stream(), batch_size=5, **P),
    "an __iter__ of its own": lambda: OwnIter(quiet(), **SHUFFLED, **W),
    "an __iter__ of its own, persistent": lambda: OwnIter(quiet(), **SHUFFLED, **P),
    "torchdata": lambda: torchdata_loader(quiet(), **SHUFFLED, **W),
    "torchdata, persistent": lambda: torchdata_loader(quiet(), **SHUFFLED, **P),
    "torchdata, persistent, rare snapshots": lambda: torchdata_loader(
        quiet(), **SHUFFLED, **P, snapshot_every_n_steps=3
    ),
}


def packed(generator):
    return bytes(generator.get_state().numpy())


def read(generators):
    """The global streams and the given generators, as plain values that can be compared."""
    kind, keys, *rest = np.random.get_state()
    own = {
        path: packed(one) if isinstance(one, torch.Generator) else one.bit_generator.state
        for path, one in generators.items()
    }
    return random.getstate(), (kind, keys.tobytes(), *rest), packed(torch.default_generator), own


def write(generators, streams):
    python, (kind, keys, *rest), pytorch, own = streams
    random.setstate(python)
    np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *rest))
    torch.default_generator.set_state(torch.tensor(list(pytorch), dtype=torch.uint8))
    for path, state in own.items():
        if isinstance(state, bytes):
            generators[path].set_state(torch.tensor(list(state), dtype=torch.uint8))
        else:
            generators[path].bit_generator.state = state


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def flat(batch):
    return pickle.dumps([part.numpy() for part in (batch if isinstance(batch, list) else [batch])])


def train(batch):
    """What a training does to the streams between two batches."""
    return random.random(), np.random.rand(), torch.rand(3).tolist(), flat(batch)


def run_epoch(src, items, done, batches=0, order=None, saves=None):
    def save():
        if saves is not None:
            skip = Skip(batches, src.samples_out, src.state())
            saves.append(pickle.dumps((order, skip, read(src.generators()))))

    save()
    for batch in items:
        batches += 1
        done.append(train(batch))
        save()
    save()


def run_straight(make, epochs=3):
    """Batches per epoch, the saves of each epoch, and the streams at each epoch's end.

    An epoch's saves are those at its boundaries 0 ... N and one after the end was noticed.
    """
    seed(1)
    src = source(make())
    epochs_done, saves, ends = [], [], []
    for _ in range(epochs):
        epochs_done.append([])
        saves.append([])
        order = read(src.generators())
        run_epoch(src, src.start(None), epochs_done[-1], order=order, saves=saves[-1])
        ends.append(read(src.generators()))
    src.close()
    return epochs_done, saves, ends


def run_resumed(make, save, epochs_left, before=None):
    """The rest of an interrupted epoch and the epochs after it, in a loader that is new."""
    seed(777)
    loader = make()
    if before:
        before(loader)
    src = source(loader)
    order, skip, boundary = pickle.loads(save)
    write(src.generators(), order)
    items = src.start(skip)
    write(src.generators(), boundary)
    assert src.samples_out == skip.samples
    done, ends = [[]], []
    run_epoch(src, items, done[0], skip.batches)
    ends.append(read(src.generators()))
    for _ in range(epochs_left):
        done.append([])
        run_epoch(src, src.start(None), done[-1])
        ends.append(read(src.generators()))
    src.close()
    return done, ends, src


def check(make, epoch, cuts, *, epochs=3, straight=None, before=None):
    done, saves, ends = straight or run_straight(make, epochs)
    last = len(done[epoch])
    for k in sorted({min(cut, last) if cut >= 0 else last + 2 + cut for cut in cuts}):
        resumed, resumed_ends, _ = run_resumed(make, saves[epoch][k], epochs - 1 - epoch, before)
        assert resumed[0] == done[epoch][k:], f"the rest of epoch {epoch} after batch {k}"
        assert resumed[1:] == done[epoch + 1 :], f"the epochs after {epoch}, cut at batch {k}"
        assert resumed_ends == ends[epoch:], f"the streams, cut in epoch {epoch} at batch {k}"
    return done, saves, ends


@pytest.mark.parametrize("case", CASES)
def test_cut_anywhere(case):
    """A resumed epoch without workers gives the straight run's batches and leaves its random streams."""
    straight = run_straight(CASES[case])
    for epoch in (0, 1):
        check(CASES[case], epoch, (0, 1, 3, -3, -2, -1), straight=straight)


@pytest.mark.parametrize("case", WORKER_CASES)
def test_cut_anywhere_with_workers(case):
    """A resumed epoch with two workers gives the straight run's batches and leaves its random streams."""
    straight = run_straight(WORKER_CASES[case])
    check(WORKER_CASES[case], 0, (0, 3), straight=straight)
    check(WORKER_CASES[case], 1, (0, 3, -3, -2, -1), straight=straight)


@pytest.mark.parametrize("case", ["shuffled", "persistent", "torchdata, persistent"])
def test_between_epochs(case):
    """An epoch that begins in a new process is that of a process that already had workers."""
    make = WORKER_CASES[case]
    done, _, ends = run_straight(make)
    seed(777)
    src = source(make())
    write(src.generators(), ends[0])
    for epoch in (1, 2):
        again = []
        run_epoch(src, src.start(None), again)
        assert again == done[epoch]
        assert read(src.generators()) == ends[epoch]
    src.close()


@pytest.mark.parametrize("case", ["persistent", "torchdata, persistent"])
def test_a_source_for_each_epoch(case):
    """Persistent workers go on from epoch to epoch, also from one source of the loader to the next."""
    make = WORKER_CASES[case]
    done, _, ends = run_straight(make)
    seed(1)
    loader, kept = make(), []
    for epoch in range(3):
        again, src = [], source(loader)
        run_epoch(src, src.start(None), again)
        assert (again, read(src.generators())) == (done[epoch], ends[epoch])
        kept.append([worker.pid for worker in loader._iterator._workers])
    src.close()
    assert kept[0] == kept[1] == kept[2]
    assert loader._iterator is None


@pytest.mark.parametrize("case", ["persistent", "torchdata, persistent"])
def test_sample_batch_before(case):
    """A sample batch taken from a persistent loader before the loop changes nothing."""
    check(WORKER_CASES[case], 1, (3,), before=lambda loader: next(iter(loader)))


def test_state_asked_before():
    """A state_dict that the user asked torchdata's loader for before the loop changes nothing."""
    make = CASES["torchdata"]
    done, saves, _ = check(make, 1, (0, 3), before=lambda loader: loader.state_dict())
    loader = make()
    src = source(loader)
    loader.state_dict()
    write(src.generators(), pickle.loads(saves[1][0])[0])
    again = []
    run_epoch(src, src.start(None), again)
    assert again == done[1]


def test_same_source_again():
    """One source may start, be left in the middle, and start again where it was left."""
    make = WORKER_CASES["persistent"]
    done, saves, _ = run_straight(make)
    seed(777)
    src = source(make())
    next(src.start(None))
    for k in (3, 5):
        order, skip, boundary = pickle.loads(saves[1][k])
        write(src.generators(), order)
        items = src.start(skip)
        write(src.generators(), boundary)
        again = []
        run_epoch(src, items, again)
        assert again == done[1][k:]
    src.close()


SPAWNED = {
    "shuffled": lambda: DataLoader(quiet(), **SHUFFLED, **W, multiprocessing_context="spawn"),
    "persistent": lambda: DataLoader(quiet(), **SHUFFLED, **P, multiprocessing_context="spawn"),
}


def test_spawned_workers():
    """A resumed epoch with spawned workers gives the straight run's batches and leaves its streams."""
    make = SPAWNED["persistent"]
    straight = run_straight(WORKER_CASES["persistent"], epochs=2)  # the same, but for how workers start
    check(make, 1, (3,), epochs=2, straight=straight)


def resume_elsewhere(path):
    """Runs in the new process of the next test."""
    with open(path, "rb") as file:
        kind, case, save = pickle.load(file)
    done, ends, _ = run_resumed({"CASES": CASES, "WORKERS": WORKER_CASES}[kind][case], save, 1)
    with open(path, "wb") as file:
        pickle.dump((done, ends), file)


@pytest.mark.parametrize(
    ("kind", "case"),
    [("CASES", "replacement with generator"), ("WORKERS", "persistent"), ("CASES", "torchdata")],
)
def test_new_process(kind, case, tmp_path):
    """An epoch resumed in a new process gives the straight run's batches and leaves its streams."""
    done, saves, ends = run_straight({"CASES": CASES, "WORKERS": WORKER_CASES}[kind][case])
    path = tmp_path / "save"
    path.write_bytes(pickle.dumps((kind, case, saves[1][3])))
    code = "import sys, test_torch_loader as t; t.resume_elsewhere(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, path], check=True, env=ENVIRONMENT, timeout=120)
    assert pickle.loads(path.read_bytes()) == ([done[1][3:], done[2]], ends[1:])


def test_no_data_is_fetched():
    """Batches that are passed over are not read from the data set."""
    make = CASES["shuffled"]
    _, saves, _ = run_straight(make)
    order, skip, boundary = pickle.loads(saves[0][4])
    data = Digits()
    src = source(DataLoader(data, **SHUFFLED))
    write(src.generators(), order)
    items = src.start(skip)
    write(src.generators(), boundary)
    assert data.reads == []
    next(items)
    assert len(data.reads) == 5


@pytest.mark.parametrize(("size", "sizes"), [(4, [4] * 5 + [2]), (8, [8, 8, 6]), (50, [22])])
def test_other_batch_size(size, sizes):
    """With another batch size the same samples are passed over and all others come, in the same order."""
    done, saves, _ = run_straight(lambda: DataLoader(quiet(), **SHUFFLED))
    samples = [row for record in done[0] for row in pickle.loads(record[3])[0][:, 0].tolist()]
    order, skip, _ = pickle.loads(saves[0][3])
    src = source(DataLoader(quiet(), batch_size=size, shuffle=True))
    write(src.generators(), order)
    batches = list(src.start(skip))
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches)[:, 0].tolist() == samples[15:]
    assert src.samples_out == 37
    assert src.warnings(skip) == []


def test_other_batch_size_and_cut_again():
    """An epoch that goes on with another batch size can be cut and continued to the bit, too."""
    make = {size: lambda size=size: DataLoader(Digits(), batch_size=size, shuffle=True) for size in (5, 6)}
    _, saves, _ = run_straight(make[5], epochs=1)
    order, skip, boundary = pickle.loads(saves[0][3])
    src = source(make[6]())
    write(src.generators(), order)
    items = src.start(skip)
    write(src.generators(), boundary)
    done, again = [], []
    run_epoch(src, items, done, skip.batches, order, again)
    assert len(done) == 4
    end = read(src.generators())
    for k, save in enumerate(again):
        resumed, ends, _ = run_resumed(make[6], save, 0)
        assert (resumed[0], ends) == (done[k:], [end])


def test_other_batch_size_of_a_custom_sampler():
    """A custom batch sampler with other sizes passes over the same samples, splitting one batch."""

    class Fixed(Sampler):
        def __init__(self, size):
            self.batch_size = size

        def __iter__(self):
            return (list(range(at, at + self.batch_size)) for at in range(0, 24, self.batch_size))

    for size, expected in ((4, [4, 4, 4]), (8, [4, 8]), (3, [3, 3, 3, 3]), (24, [12])):
        src = source(DataLoader(quiet(), batch_sampler=Fixed(size)))
        batches = list(src.start(Skip(3, 12)))
        assert [len(batch) for batch in batches] == expected
        assert torch.cat(batches)[:, 0].tolist() == list(range(12, 24))


def test_samples_are_counted_from_indices():
    """Samples are counted from the lists of indices, whatever the batches look like."""
    src = source(DataLoader(quiet(), batch_size=5, collate_fn=len, **W))
    counts = []
    for _ in src.start(None):
        counts.append(src.samples_out)
    assert counts == [5, 10, 15, 20, 25, 30, 35, 37]


class Restless(Sampler):
    """Its order depends on how often it was opened: nothing that a checkpoint could hold."""

    def __init__(self):
        self.opened = 0

    def __len__(self):
        return 37

    def __iter__(self):
        self.opened += 1
        return iter([(number * (1 + self.opened)) % 37 for number in range(37)])


def test_another_order_is_noticed():
    """A sampler that does not give the same order again is noticed and named in the warnings."""
    make = lambda: DataLoader(quiet(), batch_size=5, sampler=Restless())
    _, saves, _ = run_straight(make)
    for epoch, told in ((0, False), (1, True)):
        _, skip, _ = pickle.loads(saves[epoch][3])
        src = source(make())
        src.start(skip)
        assert any("Restless" in line for line in src.warnings(skip)) is told


def test_what_is_said():
    """What cannot be exact is said in the warnings of a resumed epoch, and nothing else is."""
    skip = Skip(3, 15)

    def said(loader, skip=skip):
        return " ".join(source(loader).warnings(skip))

    assert said(CASES["shuffled"]()) == said(CASES["shuffled"](), None) == ""
    assert "augmentation inside the 2 loader" in said(WORKER_CASES["shuffled"]())
    assert said(WORKER_CASES["shuffled"](), Skip(0, 0)) == ""
    assert "thrown away" in said(CASES["iterable"]())
    assert "__iter__ of its own" in said(CASES["an __iter__ of its own"]())
    if "in_order" in DataLoader.__init__.__kwdefaults__:
        assert "in_order=False" in said(DataLoader(quiet(), in_order=False, **W))
    eager = torchdata_loader(quiet(), sampler=EagerSampler(37))
    assert "no state_dict" in said(eager, Skip(3, 15, eager.state_dict()))


def test_fingerprints():
    """The fingerprint tells size, sampler type and chosen indices as errors, batch size as a warning."""

    def compare(one, other):
        errors, notes = compare_fingerprints(source(one).fingerprint(), source(other).fingerprint())
        return len(errors), len(notes)

    data = Digits()
    base = DataLoader(data, **SHUFFLED)
    assert compare(base, DataLoader(Digits(), **SHUFFLED, **W)) == (0, 0)
    assert compare(base, DataLoader(data, batch_size=6, shuffle=True)) == (0, 1)
    assert compare(base, DataLoader(data, **SHUFFLED, drop_last=True)) == (0, 1)
    assert compare(base, DataLoader(Digits(38), **SHUFFLED)) == (2, 0)
    assert compare(base, DataLoader(data, batch_size=5)) == (1, 0)
    assert compare(base, [1, 2]) == (1, 0)

    def chosen(*indices):
        return DataLoader(Subset(Subset(data, indices), [0, 2]), batch_size=1)

    assert compare(chosen(1, 2, 3), chosen(1, 2, 3)) == (0, 0)
    assert compare(chosen(1, 2, 3), chosen(1, 2, 4)) == (1, 0)
    sampled = [
        DataLoader(data, sampler=SubsetRandomSampler(torch.tensor(i))) for i in ([1, 2], [1, 3], [1, 2])
    ]
    assert compare(sampled[0], sampled[2]) == (0, 0)
    assert compare(sampled[0], sampled[1]) == (1, 0)
    assert compare(torchdata_loader(data, **SHUFFLED), torchdata_loader(data, **SHUFFLED, **W)) == (1, 0)


def test_loader_is_left_as_it_was():
    """The loader keeps its own samplers, also when opening it fails."""
    for make in (CASES["shuffled"], WORKER_CASES["persistent"]):
        loader = make()
        kept = loader.batch_sampler, loader.sampler
        src = source(loader)
        for _ in range(2):
            next(src.start(None))
            assert (loader.batch_sampler, loader.sampler) == kept
            if loader.num_workers:
                assert loader._iterator._index_sampler is loader.batch_sampler
        src.close()

    class Broken(Sampler):
        def __iter__(self):
            raise ValueError("broken")

    loader = DataLoader(quiet(), sampler=Broken())
    kept = loader.batch_sampler
    with pytest.raises(ValueError, match="broken"):
        next(source(loader).start(None))
    assert loader.batch_sampler is kept


def test_lengths():
    """The length is that of a full epoch, and unknown where the loader does not know it."""
    assert source(CASES["shuffled"]()).length() == 8
    assert source(CASES["eager sampler"]()).length() is None
    stream = CASES["iterable"]()
    assert source(stream).length() is None
    stream.dataset.__class__ = type("Sized", (Stream,), {"__len__": lambda self: 37})
    assert source(stream).length() == 8
    assert stream._IterableDataset_len_called is None


# -- workers and signals -------------------------------------------------------------------------

GROUP = """
import os, signal, sys
import test_torch_loader as t

if __name__ == "__main__":
    seen = []
    for one in t.workers.SIGNALS:
        signal.signal(one, lambda number, frame: seen.append(number))
    loader = t.DataLoader(t.quiet(), **t.SHUFFLED, **t.P, multiprocessing_context=sys.argv[1])
    if sys.argv[1] == "fork":
        next(iter(loader))  # a sample batch: these workers are not protected, and must be replaced
    src = t.source(loader)
    items = src.start(None)
    alive = [w.pid for w in loader._iterator._workers]
    for one in t.workers.SIGNALS:
        os.killpg(0, one)
    print(len(list(items)), len(list(src.start(None))))
    print(alive == [w.pid for w in loader._iterator._workers], sorted(seen) == sorted(t.workers.SIGNALS))
    print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    # Ends without close(): the exit must not wait for workers that SIGTERM does not end.
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_signals_to_the_group(method, tmp_path):
    """Workers live through signals to the process group, the process gets them, and it can exit."""
    script = tmp_path / "group.py"
    script.write_text(GROUP)
    done = subprocess.run(
        [sys.executable, script, method],
        env=ENVIRONMENT,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.stdout.split("\n"), done.returncode) == (["8 8", "True True", "set()", ""], 0), done.stderr


def test_fork_server_of_another(monkeypatch, caplog):
    """A fork server that was started without protection is warned of, since workers depend on it."""
    monkeypatch.setattr(workers.forkserver._forkserver, "_forkserver_pid", os.getpid())
    workers._check_forkserver()
    assert "fork server" in caplog.text


class Shifted(Digits):
    offset = 0

    def __getitem__(self, index):
        return super().__getitem__(index) + Shifted.offset


def shift(number):
    Shifted.offset = 100


def test_worker_init_fn():
    """The user's worker_init_fn runs in each worker and stays with the loader."""
    loader = DataLoader(Shifted(6, noise=False), batch_size=1, worker_init_fn=shift, **W)
    assert [batch[0, 0].item() for batch in source(loader).start(None)] == [100, 101, 102, 103, 104, 105]
    assert loader.worker_init_fn is shift


class Stuck(Digits):
    def __getitem__(self, index):
        while index == 2:
            time.sleep(60)
        return super().__getitem__(index)


@pytest.mark.parametrize("make", [DataLoader, OwnIter, torchdata_loader])
def test_close_ends_stuck_workers(make, monkeypatch):
    """close() ends workers that answer to nothing."""
    monkeypatch.setattr(workers, "grace", 0.1)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    src = source(make(Stuck(noise=False), batch_size=1, **W))
    items = src.start(None)
    next(items)
    children = list(src._children)
    assert len(children) == 2
    src.close()
    assert not any(child.is_alive() for child in children)


def test_workers_end_with_the_iterator(monkeypatch):
    """A stuck worker is ended, too, when the loop was left by an exception and nobody calls close()."""
    monkeypatch.setattr(workers, "grace", 0.1)
    src = source(DataLoader(Stuck(noise=False), batch_size=1, **W))
    next(src.start(None))
    children = list(src._children)
    del src
    assert not any(child.is_alive() for child in children)


ORPHANS = """
import os, signal, sys
import test_torch_loader as t

class Slow(t.Digits):
    def __setstate__(self, state):
        t.time.sleep(1)  # the worker is not ready yet when its parent dies
        self.__dict__.update(state)

if __name__ == "__main__":
    early = sys.argv[1] == "early"
    method = {"multiprocessing_context": "spawn"} if early else {}
    src = t.source(t.DataLoader((Slow if early else t.Digits)(noise=False), **t.SHUFFLED, **t.P, **method))
    items = src.start(None)
    if not early:
        next(items), next(items)
    print(*[child.pid for child in src._children], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks into /proc")
@pytest.mark.parametrize("when", ["early", "late"])
def test_no_worker_survives_a_killed_process(when, tmp_path):
    """Workers end by themselves when the training's process was killed, also before they were ready."""
    script, output = tmp_path / "orphans.py", tmp_path / "pids"
    script.write_text(ORPHANS)
    with output.open("wb") as file:  # a pipe would stay open as long as they live
        done = subprocess.run(
            [sys.executable, script, when],
            env=ENVIRONMENT,
            stdout=file,
            timeout=120,
            check=False,
        )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in output.read_text().split()]
    assert len(pids) == 2
    left = pids
    for _ in range(600):
        left = [pid for pid in left if runs(pid)]
        if not left:
            break
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
