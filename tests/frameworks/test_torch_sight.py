"""What is known from earlier saves is given again only while it is exactly what a new look would find."""

# ruff: noqa: E402

import collections
import copy
import dataclasses
import gc
import weakref

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from holdfast.payload import layout
from holdfast.state import capture
from holdfast.state.known import Known, Sight
from holdfast.state.part import PartState
from holdfast.torch import overlapping, sight


class Net(nn.Module):
    """Two square layers, one with a buffer, and one more on top."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.rand(8))
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.norm(self.second(self.first(x))))


@pytest.fixture
def things():
    net = Net()
    made = {"model": net, "optimizer": torch.optim.AdamW(net.parameters(), lr=0.5)}
    step(made)
    return made


def step(things):
    things["model"](torch.rand(3, 4)).sum().backward()
    things["optimizer"].step()


def look(things, known):
    """All that a boundary finds out: parts, what is late, and the layout, each in a form that can be compared."""
    states = {name: capture.capture(name, thing, things, known) for name, thing in things.items()}
    late = overlapping.late(things, states, known or Known())
    places = frozenset(late.places) if late is not None else frozenset()

    def plan():
        return layout.plan({part: state.arrays for part, state in states.items()}, late=places)

    planned = plan() if known is None else known.derive("layout", states, places, plan)
    return states, late, planned


def described(states, late, planned):
    parts = {
        part: (
            state.kind,
            repr(state.skeleton),  # tells 1 from 1.0
            state.watch,
            [
                (
                    name,
                    array.dtype,
                    array.shape,
                    array.nbytes,
                    array.identity,
                    array.check,
                    bytes(array.open()),
                )
                for name, array in state.arrays.items()
            ],
        )
        for part, state in states.items()
    }
    copied = late and (late.names, late.places, late.key, late.digests(), late.samples(5))
    files = [
        (
            file.name,
            file.size,
            file.header,
            [(*one[:2], *one[3:], bytes(one.array.open())) for one in file.segments],
        )
        for file in planned.files
    ]
    return parts, copied, files, planned.table


def recalled(one, other):
    return [part for part, state in one[0].items() if state.arrays is other[0][part].arrays]


@pytest.fixture
def known(things):
    found = Known()
    for _ in range(3):
        look(things, found)
    return found


def test_what_stands_still_is_not_described_again(things, known):
    """Steps change numbers and no description: parts, layout and what is late are those of the save before."""
    before = look(things, known)
    step(things)
    after = look(things, known)
    assert recalled(before, after) == ["model", "optimizer"]
    assert after[1] is before[1]
    assert after[2] is before[2]
    assert described(*after) == described(*look(things, None))


# -- what changes ----------------------------------------------------------------------------------------


def set_data(find, make):
    def change(things):
        tensor = find(things["model"])
        tensor.data = make(tensor.data)

    return change


def weight(net):
    return net.second.weight


def swap(things):
    net = things["model"]
    net.first.weight, net.second.weight = net.second.weight, net.first.weight


def replace(things):
    things["model"].second.weight = nn.Parameter(torch.rand(4, 4))


def tie(things):
    things["model"].second.weight = things["model"].first.weight


def rename(things):
    found = dict(things["model"]._modules)
    things["model"]._modules.clear()
    things["model"]._modules.update(
        {"renamed" if name == "second" else name: own for name, own in found.items()}
    )


def reorder(things):
    modules = things["model"]._modules
    modules["first"] = modules.pop("first")


def become_parameter(things):
    things["model"].kept = scale = things["model"]._buffers.pop(
        "scale"
    )  # alive, so that its end tells nothing
    things["model"].register_parameter("scale", nn.Parameter(scale, requires_grad=False))


def double(things):
    things["model"] = nn.DataParallel(things["model"])


def recreate(things):
    things["model"] = Net()


def hook(things):
    other = torch.rand(4, 4)

    def later(_module, state, *_):
        state["second.weight"] = other

    things["model"].second._register_state_dict_hook(later)


def pre_hook(things):
    net = things["model"]
    other = torch.rand(8)
    net.register_state_dict_pre_hook(lambda *_: net.register_buffer("scale", other))


def own_state_dict(things):
    net = things["model"]
    net.state_dict = lambda: {"only": net.first.weight.detach()}


def extra_state(things):
    group = things["optimizer"].param_groups[0]
    kind = type("Extra", (nn.Linear,), {"get_extra_state": lambda _self: {"x": group["weight_decay"]}})
    things["model"].second.__class__ = kind


def add_group(things):
    things["optimizer"].add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.1})


def of_state(change):
    return lambda things: change(things["optimizer"].state[things["model"].second.weight])


def rename_last(own):
    own["renamed"] = own.pop(list(own)[-1])


def order_state(things):
    state = things["optimizer"].state
    weight = things["model"].second.weight
    state[weight] = collections.OrderedDict(state[weight])


def options(**values):
    return lambda things: things["optimizer"].param_groups[0].update(values)


def move_parameter(things):
    """From one group to another: what is written are numbers, and which options each parameter has."""
    optimizer = things["optimizer"]
    parameter = optimizer.param_groups[0]["params"].pop()
    state = optimizer.state.pop(parameter)
    optimizer.add_param_group({"params": [parameter]})
    optimizer.state[parameter] = state


def other_optimizer(things):
    fresh = torch.optim.AdamW(things["model"].parameters(), lr=0.5)
    fresh.load_state_dict(copy.deepcopy(things["optimizer"].state_dict()))
    things["optimizer"] = fresh


def optimizer_hook(things):
    things["optimizer"].register_state_dict_post_hook(lambda _, value: {**value, "more": 3})


def drop_from_optimizer(things):
    """A parameter that no optimizer has any more may be written to by anything."""
    optimizer = things["optimizer"]
    del optimizer.state[optimizer.param_groups[0]["params"].pop()]


CHANGES = {
    "other memory": set_data(weight, lambda data: data * 2),
    "another shape of the same memory": set_data(weight, lambda data: data.view(2, 8)),
    "fewer of the same memory": set_data(weight, lambda data: data[:2]),
    "another order of the same memory": set_data(weight, lambda data: data.t()),
    "another dtype": set_data(weight, lambda data: data.half()),
    "another dtype of the same memory": set_data(lambda net: net.scale, lambda data: data.view(torch.int32)),
    "resized": lambda things: things["model"].scale.resize_(6),
    "channels last": set_data(weight, lambda data: data.view(1, 4, 2, 2).to(memory_format=torch.channels_last)),
    "the whole in another dtype": lambda things: things["model"].double(),
    "frozen": lambda things: weight(things["model"]).requires_grad_(False),
    "all frozen": lambda things: things["model"].requires_grad_(False),
    "two that change places": swap,
    "another parameter": replace,
    "a parameter that is gone": lambda things: things["model"].second.register_parameter("bias", None),
    "tied": tie,
    "another name": rename,
    "another order": reorder,
    "wrapped": double,
    "made again": recreate,
    "another buffer": lambda things: things["model"].register_buffer("scale", torch.rand(8)),
    "a new buffer": lambda things: things["model"].register_buffer("more", torch.rand(3)),
    "a buffer that becomes a parameter": become_parameter,
    "a buffer that is not stored": lambda things: things["model"]._non_persistent_buffers_set.add("scale"),
    "a hook": hook,
    "a hook before": pre_hook,
    "an own state_dict": own_state_dict,
    "an extra state": extra_state,
    "a new group": add_group,
    "another group": move_parameter,
    "another optimizer": other_optimizer,
    "an optimizer's hook": optimizer_hook,
    "an optimizer that lets go": drop_from_optimizer,
    "a rate": options(lr=0.25),
    "a rate of another type": options(lr=1),
    "a rate that is a tensor": options(lr=torch.tensor(0.5)),
    "an option that is true": options(betas=(True, 0.9)),
    "a capturable group": options(capturable=True),
    "other state": of_state(lambda own: own.update(exp_avg=own["exp_avg"] + 1)),
    "state in the same memory": of_state(lambda own: own.update(exp_avg=own["exp_avg"].t())),
    "more state": of_state(lambda own: own.update(more=torch.ones(3))),
    "less state": of_state(lambda own: own.pop("exp_avg_sq")),
    "state of another name": of_state(rename_last),
    "state of another kind": order_state,
    "state that is a number": of_state(lambda own: own.update(step=7)),
    "state in another order": of_state(lambda own: own.update(step=own.pop("step"))),
    "no state": lambda things: things["optimizer"].state.clear(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_seen(change, things, known):
    """What is found after a change is what a first look finds, at once and at the saves after it."""
    change(things)
    for _ in range(4):
        assert described(*look(things, known)) == described(*look(things, None))
        things["optimizer"].param_groups[0]["weight_decay"] += 1


def test_conjugates_are_seen(things):
    """A buffer that becomes the conjugate of what it was, in the same memory, is stored as what it is."""
    things["model"].register_buffer("scale", torch.rand(4, dtype=torch.cfloat))
    known = Known()
    for _ in range(3):
        before = look(things, known)[0]["model"].arrays["scale"].open().tobytes()
    things["model"].scale.data = things["model"].scale.data.conj()
    assert look(things, known)[0]["model"].arrays["scale"].open().tobytes() != before


def test_a_wrapper_is_told_by_its_class(things):
    """A model that is held by a wrapper is named without it, and one that is held by a module of that name is not."""
    held = nn.Module()
    held.module = things["model"]
    wrapped, known = nn.DataParallel(held.module), Known()
    for model in (held, held, held, wrapped, wrapped, held):
        things["model"] = model
        names = list(look(things, known)[0]["model"].arrays)
        assert [name.startswith("module.") for name in names] == [model is held] * len(names)


def test_what_fits_a_sight(things):
    """A sight is that of a capture which has found the same tensors under the same names."""
    states = look(things, None)[0]
    for part, kind in (("model", "torch.Module"), ("optimizer", "torch.Optimizer")):
        fits = sight.of(things[part], kind, part, things).fits
        state = states[part]
        assert fits(state)
        names = list(state.arrays)
        fewer = {name: state.arrays[name] for name in names[1:]}
        exchanged = dict(zip(names, reversed(state.arrays.values()), strict=True))
        for arrays in (fewer, exchanged):
            assert not fits(dataclasses.replace(state, arrays=arrays))
    renamed = {f"{name}x": array for name, array in states["model"].arrays.items()}
    model = dataclasses.replace(states["model"], arrays=renamed)
    assert not sight.of(things["model"], "torch.Module", "model", things).fits(model)


def test_only_what_fits_is_kept():
    """A description that is not the one which a sight belongs to is made anew each time."""
    known, made = Known(), []

    def describe():
        made.append(PartState("kind", {}, {}))
        return made[-1]

    for fitting in (False, True):
        for _ in range(4):
            known.part(
                "x", Sight("key", [], lambda _, fitting=fitting: fitting, lambda state: state), describe
            )
    assert len(made) == 5


def test_one_and_true_are_told_apart(things, known):
    """Options that are equal to Python, and not to JSON, are stored as they now are."""
    group = things["optimizer"].param_groups[0]
    for value in (1, 1.0, True, 1):
        group["lr"] = value
        found = look(things, known)[0]["optimizer"].skeleton["param_groups"][0]["lr"]
        assert (found, type(found)) == (value, type(value))


def test_what_an_optimizer_owns(things):
    """A parameter that an optimizer without state drops or freezes is not copied late, though no array has changed."""
    net = things["model"]
    alias = nn.Parameter(net.first.weight.detach())  # of the same memory: the model's own stays as it is
    optimizer = things["optimizer"] = torch.optim.SGD([alias, *net.second.parameters()])
    known = Known()
    own = {("model", name) for name in ("first.weight", "second.weight", "second.bias")}
    for _ in range(3):
        before = look(things, known)
    assert before[1].places == own
    alias.requires_grad_(False)
    assert look(things, known)[1].places == own - {("model", "first.weight")}
    optimizer.param_groups[0]["params"].pop()
    after = look(things, known)
    assert after[1].places == {("model", "second.weight")}
    assert recalled(before, after)[0] == "model"


def test_what_is_derived():
    """What was made of some arrays is not given for others of the same names, nor for none."""
    known, sight_of_all = Known(), Sight("key", [], lambda _: True, lambda state: state)
    arrays = [object(), object()]
    states = [{"x": PartState("kind", {}, {"a": array})} for array in arrays]
    for _ in range(3):
        known.part("x", sight_of_all, lambda: states[0]["x"])
        assert known.derive("what", states[0], (), lambda: "first") == "first"
    assert known.derive("what", states[0], (), lambda: "second") == "first"
    assert known.derive("other", states[0], (), lambda: "second") == "second"
    assert known.derive("what", states[1], (), lambda: "third") == "third"
    assert known.derive("what", states[0], 1, lambda: "fourth") == "fourth"
    assert known.derive("what", {**states[0], "y": states[1]["x"]}, 1, lambda: "fifth") == "fifth"
    assert known.derive("what", {}, 1, lambda: "sixth") == "sixth"


def test_another_part_beside_it(things, known):
    """A part that holds the memory of a parameter too takes it from what is copied late."""
    places = look(things, known)[1].places
    things["shared"] = {"own": things["model"].first.weight.detach()}
    states, late, planned = look(things, known)
    assert places - late.places == {("model", "first.weight")}
    assert described(states, late, planned) == described(*look(things, None))
    del things["shared"]
    assert look(things, known)[1].places == places


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sight_tells_what_is_no_ordinary_tensor(dtype):
    """Tensors without plain memory of the CPU are not looked at together: their capture says what is wrong with them."""
    plain = torch.rand(3, 3, dtype=dtype)
    assert sight.look([plain, plain.t()]) is not None
    odd = [plain.to("meta"), plain.to_sparse(), nn.UninitializedParameter()]
    odd += [torch.nested.nested_tensor([plain, plain]), torch.rand(3, dtype=torch.cfloat).conj()]
    odd += [torch.rand(3, dtype=torch.cfloat).conj().imag]
    assert [sight.look([plain, one]) for one in odd] == [None] * len(odd)


# -- memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector():
    gc.disable()
    yield
    gc.enable()


def large(width=1000):
    net = nn.Linear(width, 100)
    things = {"model": net, "optimizer": torch.optim.Adam(net.parameters())}
    net(torch.rand(1, width)).sum().backward()
    things["optimizer"].step()
    return things


def kept(known, things, saves):
    """References to the memory of `weight`, which ends with the last of those who hold it."""
    for _ in range(saves):
        states = {name: capture.capture(name, thing, things, known) for name, thing in things.items()}
        late = overlapping.late(things, states, known)
        parts = {part: state.arrays for part, state in states.items()}
        known.derive("layout", states, (), lambda parts=parts: layout.plan(parts))
    found = [weakref.ref(states["model"].arrays["weight"].view)]
    found.append(weakref.ref(states["optimizer"].arrays["/state/weight/exp_avg"].view))
    del states, late, parts
    return [reference() is not None for reference in found], found


def test_nothing_is_kept_that_was_seen_once(no_collector):
    """After a first save no memory is held; after a second one that saw the same, it is."""
    things, known = large(), Known()
    assert kept(known, things, 1)[0] == [False, False]
    assert kept(known, things, 1)[0] == [True, True]


def test_memory_that_is_made_anew_at_each_step_is_not_kept(no_collector):
    """A training that replaces its parameters has no more of them in memory than before."""
    things, known = large(), Known()
    for _ in range(5):
        alive, _ = kept(known, things, 1)
        assert not alive[0]
        things["model"].weight.data = things["model"].weight.data.clone()


def drop_weight(things):
    things["model"].register_parameter("weight", None)
    things["optimizer"].state.clear()
    things["optimizer"].param_groups.clear()


ENDS = {
    "all": lambda things: things.clear(),
    "a parameter": drop_weight,
    "known": lambda _things: None,
}


@pytest.mark.parametrize("end", ENDS)
def test_memory_goes_with_its_owners(end, no_collector):
    """What is known does not keep the memory of a dropped model, nor does anything once it is dropped itself."""
    things, known = large(), Known()
    alive, references = kept(known, things, 3)
    assert alive == [True, True]
    if end == "known":
        del known
    ENDS[end](things)
    if end != "known":
        gc.collect()  # torch's own cycles
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("width", [1, 1000])
def test_state_that_is_dropped_goes(width, no_collector):
    """The memory of an optimizer's state goes with that, large or small, although the parameters live on."""
    things, known = large(width), Known()
    for _ in range(3):
        states = look(things, known)[0]
    array = states["optimizer"].arrays["/state/weight/exp_avg"]
    reference = weakref.ref(array.tensor if width == 1 else array.view)
    del states, array
    assert reference() is not None
    things["optimizer"].state.clear()
    assert reference() is None


def test_what_cannot_be_recognized_any_more_is_not_kept(no_collector):
    """The description of a model that gets hooks is dropped with the memory that it holds."""
    things, known = large(), Known()
    _, references = kept(known, things, 3)
    things["model"]._register_state_dict_hook(lambda *_: None)
    kept(known, things, 1)
    assert references[0]() is None


def test_forgetting(no_collector):
    """A run that is closed holds no array."""
    things, known = large(), Known()
    _, references = kept(known, things, 3)
    known.forget()
    assert [reference() for reference in references] == [None, None]
