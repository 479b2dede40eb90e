"""`holdfast.torch.trainable`: a part that leaves out what is frozen, and proves that it is the same."""

import pytest
import torch
from torch import nn

import holdfast
from holdfast.torch import trainable


def make(seed: int = 0, *, freeze: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    if freeze:
        for parameter in net[0].parameters():
            parameter.requires_grad_(False)
    return net


def train(net, steps: int = 3):
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(6, 4, generator=generator)).square().sum().backward()
        optimizer.step()
    return optimizer


def same(one, other) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_only_what_trains_and_the_buffers_are_stored(tmp_path):
    """Of a half-frozen net the checkpoint holds the trainable parameters, all buffers, nothing else."""
    net = make()
    ckpt = holdfast.save(tmp_path / "c", {"model": trainable(net)})
    assert set(ckpt.load()["model"]) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "2.weight", "2.bias",
    }  # fmt: skip
    assert ckpt.verify() == []


def test_it_is_restored_onto_the_same_base(tmp_path):
    """What was trained comes back on a net with the same frozen base, which is not touched."""
    net = make()
    train(net)
    holdfast.save(tmp_path / "c", {"model": trainable(net)})
    other = make()
    holdfast.restore(tmp_path / "c", {"model": trainable(other)})
    assert same(net, other)


@pytest.mark.parametrize("change", ["value", "flip", "thaw", "shape"])
def test_another_base_is_a_mismatch_and_nothing_is_changed(tmp_path, change):
    """Other frozen weights, or other parameters frozen, are a MismatchError before anything is written."""
    net = make()
    train(net)
    holdfast.save(tmp_path / "c", {"model": trainable(net)})
    other = make(seed=5) if change == "value" else make()
    with torch.no_grad():
        if change == "flip":
            other[0].weight.view(-1)[7].add_(1e-6)
        elif change == "thaw":
            other[0].bias.requires_grad_(True)
        elif change == "shape":
            other[0] = nn.Linear(5, 8).requires_grad_(False)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(holdfast.MismatchError, match="frozen part"):
        holdfast.restore(tmp_path / "c", {"model": trainable(other)})
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_change_of_the_frozen_part_after_the_first_digest_is_seen(tmp_path):
    """The digest is kept between saves, but not when a frozen tensor was written to or replaced."""
    net = make()
    part = trainable(net)
    first = part.digest()
    assert part.digest() == first
    with torch.no_grad():
        net[0].weight.add_(1.0)
    second = part.digest()
    assert second != first
    net[0].weight = nn.Parameter(torch.zeros(8, 4), requires_grad=False)
    assert part.digest() not in (first, second)


def test_a_base_changed_through_data_is_seen_at_the_restore(tmp_path):
    """A write through .data, which no version counter shows, does not slip past a restore."""
    net = make()
    part = trainable(net)
    holdfast.save(tmp_path / "c", {"model": part})
    net[0].weight.data[0, 0] += 1.0
    with pytest.raises(holdfast.MismatchError, match="frozen part"):
        holdfast.restore(tmp_path / "c", {"model": part})


def test_an_optimizer_beside_it_is_stored_by_parameter_names(tmp_path):
    """The optimizer of a trainable part is keyed by the names of its parameters, and fits the full model's."""
    net = make()
    optimizer = train(net)
    ckpt = holdfast.save(tmp_path / "c", {"model": trainable(net), "optimizer": optimizer})
    assert set(ckpt.load(["optimizer"])["optimizer"]["state"]) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    other = make()
    again = torch.optim.Adam([p for p in other.parameters() if p.requires_grad], lr=0.05)
    ckpt.restore({"model": other, "optimizer": again})
    for a, b in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert torch.equal(a["exp_avg"], b["exp_avg"])


def test_it_fits_a_plain_module_with_the_base_in_place(tmp_path):
    """A trainable part restores into the plain module: what it holds is written, the rest stays."""
    net = make()
    train(net)
    holdfast.save(tmp_path / "c", {"model": trainable(net)})
    other = make(freeze=False)
    holdfast.restore(tmp_path / "c", {"model": other})
    assert same(net, other)


def test_a_plain_module_with_another_base_is_a_mismatch(tmp_path):
    """A plain module whose other parameters are not the frozen base is refused: no silent mixture."""
    net = make()
    holdfast.save(tmp_path / "c", {"model": trainable(net)})
    with pytest.raises(holdfast.MismatchError, match="frozen part"):
        holdfast.restore(tmp_path / "c", {"model": make(seed=5, freeze=False)})


def test_a_full_checkpoint_fits_it(tmp_path):
    """A trainable part is restored from a checkpoint of the whole module, base included."""
    net = make()
    train(net)
    holdfast.save(tmp_path / "c", {"model": net})
    other = make(seed=9)
    holdfast.restore(tmp_path / "c", {"model": trainable(other)})
    assert same(net, other)


def test_a_missing_trainable_parameter_is_a_mismatch(tmp_path):
    """A net with a further trainable layer does not fit; strict=False says what is missing."""
    net = make()
    holdfast.save(tmp_path / "c", {"model": trainable(net)})
    other = make()
    other.append(nn.Linear(2, 2))
    with pytest.raises(holdfast.MismatchError, match=r"3\.weight"):
        holdfast.restore(tmp_path / "c", {"model": trainable(other)})
    report = holdfast.restore(tmp_path / "c", {"model": trainable(other)}, strict=False)
    assert list(report.missing) == ["model/3.bias", "model/3.weight"]


def test_tied_parameters_of_which_one_name_trains_are_stored(tmp_path):
    """A parameter under two names is stored as long as it trains, and comes back as one."""
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    net[2].requires_grad_(False)
    holdfast.save(tmp_path / "c", {"model": trainable(net)})
    expected = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.zero_()
    holdfast.restore(tmp_path / "c", {"model": trainable(net)})
    assert net[1].weight is net[0].weight
    assert torch.equal(net[0].weight, expected)


def test_a_run_resumes_with_it_to_the_bit(tmp_path):
    """A fine-tuning of a half-frozen net that is interrupted equals the uninterrupted one, bit for bit."""

    def launch(path, goal):
        net = make()
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05)
        with holdfast.Run(path, seed=0) as run:
            run.track(model=trainable(net), optimizer=optimizer)
            for _ in run.epochs(goal):
                for _ in range(3):
                    optimizer.zero_grad()
                    net(torch.randn(6, 4)).square().sum().backward()
                    optimizer.step()
        return net

    straight = launch(tmp_path / "straight", 4)
    launch(tmp_path / "resumed", 2)
    assert same(straight, launch(tmp_path / "resumed", 4))


def test_only_modules_are_taken():
    """trainable() of something else is a UsageError."""
    with pytest.raises(holdfast.UsageError, match="not a dict"):
        trainable({})
