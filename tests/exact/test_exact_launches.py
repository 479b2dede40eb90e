"""What a later launch may change, what it is refused, and what ends a run; the rest stays exact."""

# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch")

import trainings as t
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset

import holdfast
from holdfast import Every, UsageError


def training(epochs=3, loader=None, rate=0.05, stop_after=None, spoil=None, gamma=0.5, weight_decay=0.0):
    def train(launch):
        net = t.net(dropout=0.2)
        opt = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay)
        sched = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=gamma)
        batches = loader() if loader else DataLoader(t.data(), 5, shuffle=True)
        run = launch.run(keep={"best": 1, "metric": "loss", "mode": "min"})
        launch.track(model=net, optimizer=opt, scheduler=sched)
        launch.seen, launch.epochs = [], []
        for epoch in run.epochs(epochs):
            launch.epochs.append(epoch)
            run.state["loss"] = 0.0
            for batch in run.batches(batches):
                launch.seen.append(batch[0])
                run.state["loss"] += t.step(net, opt, batch)
                if run.progress.step == spoil:
                    with torch.no_grad():
                        net[0].bias[0] = float("nan")
                launch.alive()
            sched.step()
            run.log(loss=run.state["loss"])
            if stop_after is not None and epoch == stop_after:
                run.stop()
        return run

    return train


def launch(train, path, number=0, **options):
    """As `trainings.launch`; gives the launch, too."""
    one = t.Launch(path, number, **options)
    try:
        run = train(one)
    except t.Died:
        one.end_ = None
        return one
    one.end_ = one.end()
    run.close()
    return one


# -- goals ---------------------------------------------------------------------------------------


def test_larger_goal(place):
    """A larger goal continues, and equals the straight run to that goal."""
    straight = launch(training(4), f"{place}/straight")
    launch(training(1), f"{place}/parts")
    launch(training(3), f"{place}/parts", 1)
    parts = launch(training(4), f"{place}/parts", 2)
    assert parts.epochs == [3]
    assert t.differences(straight.end_, parts.end_) == []


def test_complete(place):
    """A complete run yields nothing and restores everything, run.state and streams included."""
    straight = launch(training(), place)
    again = launch(training(), place, 1)
    assert again.epochs == []
    assert t.differences(straight.end_, again.end_) == []
    assert launch(training(2), place, 2).epochs == []


def test_stop(place):
    """A stopped run is complete at its epoch, also when it was cut before; only a larger goal continues."""
    stopped = launch(training(5, stop_after=1), f"{place}/stopped")
    two = launch(training(2), f"{place}/two")
    assert t.differences(stopped.end_, two.end_) == []
    cut = launch(training(5, stop_after=1), f"{place}/cut", die_at=8, every=Every(steps=3))
    assert cut.end_ is None
    cut = launch(training(5, stop_after=1), f"{place}/cut", 1)
    assert t.differences(stopped.end_, cut.end_) == []
    for path in ("stopped", "cut"):
        assert launch(training(5, stop_after=1), f"{place}/{path}", 2).epochs == []
    straight = launch(training(6), f"{place}/straight")
    longer = launch(training(6), f"{place}/stopped", 3)
    assert t.differences(straight.end_, longer.end_) == []


def test_left_and_entered_again(place):
    """A loop left by an exception and entered again in the same process is exact."""
    straight = launch(training(), f"{place}/straight")
    one = t.Launch(f"{place}/again", die_at=8, every=Every(epochs=1, steps=4))
    order = torch.Generator().manual_seed(0)
    for _ in range(2):
        with pytest.raises(t.Died):
            training()(one)
    assert t.differences(straight.end_, launch(training(), f"{place}/again").end_) == []

    def notebook(path, deaths):
        """One process, one set of objects: what a notebook's cell does when it is run again."""
        t.seed(0)
        net, own = t.net(), order.manual_seed(4)
        opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        loader = DataLoader(t.data(), 5, shuffle=True, generator=own)
        run = holdfast.Run(path, every=Every(epochs=1, steps=2))
        run.track(model=net, optimizer=opt)
        for death in [*deaths, None]:
            try:
                for _ in run.epochs(3):
                    for batch in run.batches(loader):
                        t.step(net, opt, batch)
                        if run.progress.step == death:
                            raise ValueError("interrupted")
            except ValueError:
                continue
        end = t.flatten({"net": net.state_dict(), "opt": opt.state_dict(), "own": own.get_state()})
        run.close()
        return end

    straight = notebook(f"{place}/cell", [])
    for deaths in ([3], [6], [7], [9, 9, 13]):
        assert t.differences(straight, notebook(f"{place}/{deaths}", deaths)) == [], deaths


# -- what a launch may change -------------------------------------------------------------------------


def test_fresh_rate(place):
    """fresh=["optimizer.lr"] takes the new rate over once, and all else goes on exactly."""
    launch(training(rate=0.05), place, die_at=7, thorough=True)
    with pytest.raises(UsageError, match=r"optimizer\.lr: 0\.05 when saved, 0\.02 here(?s:.)*fresh="):
        launch(training(rate=0.02), place, 1)
    one = launch(
        training(rate=0.02, epochs=2), place, 1, fresh=["optimizer.lr", "scheduler"], die_at=8, thorough=True
    )
    rates = holdfast.open(place).load(["optimizer"])["optimizer"]["param_groups"][0]
    assert rates["lr"] == 0.02
    assert one.things["optimizer"].param_groups[0]["momentum"] == 0.9
    end = launch(training(rate=0.02, epochs=3), place, 2, fresh=["optimizer.lr", "scheduler"])
    assert end.things["optimizer"].param_groups[0]["lr"] < 0.02, "taken over once, not at every launch"
    straight = launch(training(rate=0.02, epochs=3), place, 3)
    assert t.differences(end.end_, straight.end_) == []


def test_fresh_is_exact(place):
    """A launch with a fresh rate that is cut itself ends as one that was not."""
    launch(training(rate=0.05), f"{place}/straight", die_at=7, thorough=True)
    holdfast.Run(f"{place}/straight").close()
    t.copy_until(f"{place}/straight", f"{place}/cut", t.ALL)
    fresh = ["optimizer.lr", "optimizer.weight_decay", "scheduler"]
    new = training(rate=0.03, weight_decay=0.1)
    straight = launch(new, f"{place}/straight", 1, fresh=fresh)
    for number, death in ((2, 8), (3, 11)):
        assert launch(new, f"{place}/cut", number, fresh=fresh, die_at=death, thorough=True).end_ is None
    assert t.differences(straight.end_, launch(new, f"{place}/cut", 4, fresh=fresh).end_) == []


def test_other_scheduler(place):
    """A scheduler that was given something else is refused with both values."""
    launch(training(), place, die_at=7, thorough=True)
    with pytest.raises(UsageError, match=r"scheduler\.gamma: 0\.5 when saved, 0\.1 here"):
        launch(training(gamma=0.1), place, 1)
    assert launch(training(), place, 2).end_ is not None, "a refused launch holds nothing and changes nothing"


class Sorted(Dataset):
    def __len__(self):
        return 22

    def __getitem__(self, index):
        return t.data()[index]


LOADERS = {
    "length": lambda: DataLoader(t.data(23), 5, shuffle=True),
    "sampler": lambda: DataLoader(t.data(), 5),
    "subset": lambda: DataLoader(Subset(t.data(23), [*range(21), 22]), 5, shuffle=True),
    "drawn": lambda: DataLoader(t.data(), 5, sampler=RandomSampler(t.data(), num_samples=21)),
    "kind": lambda: [t.data()[:5]] * 5,
}


@pytest.mark.parametrize("other", LOADERS.values(), ids=LOADERS.keys())
@pytest.mark.parametrize("step", [5, 7])
def test_other_loader(other, step, place):
    """Another loader is refused with what differs and the remedy, and is taken with changed=["loader"]."""
    launch(training(), place, die_at=step, thorough=True)
    with pytest.raises(UsageError, match=r"(?s)was .* is .* now.*changed=\['loader'\]"):
        launch(training(loader=other), place, 1)
    assert launch(training(loader=other), place, 2, changed=["loader"]).end_ is not None


def test_other_batch_size(place, said):
    """Another batch size is warned of, and the same samples are passed over: each comes once."""
    kept = launch(training(1), place, die_at=2, thorough=True)
    one = launch(training(1, loader=lambda: DataLoader(t.data(), 3, shuffle=True)), place, 1)
    assert any("The batch size was 5 and is 3 now: the same samples are passed over" in line for line in said)
    seen = torch.cat([*kept.seen[:2], *one.seen])
    assert len(one.seen) == 4
    assert sorted(seen.tolist()) == sorted(t.data().tensors[0].tolist())


def test_same_data_elsewhere(place, said):
    """Data of the same size in another class is no other loader: the straight run's end is reached."""
    straight = launch(training(), f"{place}/straight")
    launch(training(), f"{place}/parts", die_at=7, thorough=True)
    other = training(loader=lambda: DataLoader(Sorted(), 5, shuffle=True))
    assert t.differences(straight.end_, launch(other, f"{place}/parts", 1).end_) == []
    assert said == []


# -- what goes wrong ---------------------------------------------------------------------------------


def test_unchanged_part(place, said):
    """A part that nothing trains is warned of, once; one that gathers gradients is not."""
    run = holdfast.Run(place, every=Every(steps=1))
    old, net = t.net(), t.net()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    run.track(model=old, trained=net, optimizer=opt)
    for number in run.steps(6):
        t.loss_of(net, t.data()[:5]).backward()
        if number % 2:
            opt.step()
            opt.zero_grad()
        run.save()
    run.close()
    about = [line for line in said if line.startswith("Nothing in the part")]
    assert [line.split("'")[1] for line in about] == ["model"]
    assert "must be tracked again" in about[0]


def test_frozen_part(place, said):
    """A model whose parameters do not train is not expected to change."""
    run = holdfast.Run(place, every=Every(steps=1))
    run.track(model=t.net().requires_grad_(False))
    for _ in run.steps(3):
        pass
    run.close()
    assert said == []


def test_nan_is_marked(place, said):
    """Checkpoints with NaN are marked, are not resumed from, and are never the best."""
    clean = launch(training(), f"{place}/clean")
    spoiled = launch(training(spoil=8), f"{place}/run", thorough=True)
    marks = {c.progress.step: c.manifest.nan for c in spoiled._run.checkpoints}
    assert marks[8] == []
    assert "model/0.bias" in marks.pop(15)
    assert set().union(*marks.values()) == set(), "of the marked ones only the newest stays"
    assert any("NaN or infinity" in line for line in said)
    best = holdfast.open(f"{place}/run@best")
    assert best.progress.step <= 8
    assert holdfast.open(f"{place}/run").progress.step == 8
    resumed = launch(training(), f"{place}/run", 1)
    assert resumed.epochs == [1, 2]
    assert t.differences(clean.end_, resumed.end_) == []


def test_nan_raises(place):
    """on_nan="raise" ends the training at the next touch, and the run continues from a clean checkpoint."""
    clean = launch(training(), f"{place}/clean")
    with pytest.raises(holdfast.CheckpointError, match=r"NaN or infinity in model/0\.(?s:.)*was not saved"):
        launch(training(spoil=8), f"{place}/run", thorough=True, on_nan="raise")
    assert holdfast.open(f"{place}/run").progress.step == 8
    resumed = launch(training(), f"{place}/run", 1)
    assert t.differences(clean.end_, resumed.end_) == []


def test_probe(place):
    """A probe certifies the restored model: one that computes something else is refused."""

    def train(launch, scale=1.0):
        net = t.net()
        run = launch.run()
        launch.track(model=net)
        run.track(probe=holdfast.Probe(lambda x: net(x) * scale, torch.ones(2, 6)))
        for _ in run.steps(3):
            torch.nn.init.normal_(net[0].weight)
        return run

    launch(train, place)
    assert launch(train, place, 1).end_ is not None
    with pytest.raises(holdfast.ProbeError):
        launch(lambda one: train(one, 1.01), place, 2)
