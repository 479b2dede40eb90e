"""Trainings in TensorFlow's own way, each check a function; run as `python tensorflow_cases.py DIRECTORY [CHECK…]`."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import traceback

import numpy as np
import pytest
from sklearn.datasets import load_digits

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import tensorflow as tf

import holdfast
from holdfast import Every

DIGITS = load_digits()
X = (DIGITS.data[:320] / 16).astype("float32")
Y = DIGITS.target[:320].astype("int32")


class Died(BaseException):
    """Ends a launch, as SIGKILL would."""


class Dense(tf.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal((inputs, outputs), (1, inputs), stddev=0.1))
        self.bias = tf.Variable(tf.zeros(outputs))

    def __call__(self, x):
        return x @ self.kernel + self.bias


class Net(tf.Module):
    """Layers in a list and a mapping, a buffer, a generator for its noise, a variable that is used twice."""

    def __init__(self):
        super().__init__()
        self.layers = [Dense(64, 24), Dense(24, 24)]
        self.heads = {"digits": Dense(24, 10)}
        self.again = self.layers[1].kernel
        self.seen = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.noise = tf.random.Generator.from_seed(3)

    def __call__(self, x):
        for layer in self.layers:
            x = tf.nn.relu(layer(x))
        x = x + self.noise.normal((24,), stddev=0.05)
        self.seen.assign_add(1)
        return self.heads["digits"](x @ self.again)


def digest(data):
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def values(variables):
    return [digest(np.asarray(one).tobytes()) for one in variables]


def taped(path, number=0, die=None, every=None):
    """A GradientTape loop of steps: module, optimizer, generator and iterator are tracked."""
    import keras

    tf.random.set_seed(5)
    random.seed(number)
    np.random.seed(number)
    net, optimizer = Net(), keras.optimizers.Adam(0.01)
    augment = tf.random.Generator.from_seed(number)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(100).repeat().batch(32)
    iterator = iter(data)
    optimizer.build(net.trainable_variables)

    @tf.function
    def train(x, y):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, net(x))
            loss = tf.reduce_mean(losses)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables, strict=True)
        )
        return loss

    with holdfast.Run(path, every=every or Every(steps=3)) as run:
        run.track(net=net, optimizer=optimizer, augment=augment, iterator=iterator)
        for step in run.steps(25):
            x, y = next(iterator)
            x = x + augment.normal(x.shape, stddev=0.1) * np.random.rand()
            run.state["losses"] = [*run.state.get("losses", []), train(x, y)]
            if step == die:
                raise Died
        return {
            "net": values(net.variables),
            "noise": values([net.noise.state, augment.state]),
            "optimizer": values(optimizer.variables),
            "losses": values(run.state["losses"]),
            "kind": type(run.state["losses"][0]).__name__,
            "numpy": digest(np.random.get_state()[1].tobytes()),
        }


def exact(training, place, deaths):
    straight = training(f"{place}/straight")
    for number, die in enumerate(deaths):
        with pytest.raises(Died):
            training(f"{place}/resumed", number, die)
    end = training(f"{place}/resumed", 99)
    assert end == straight, {key: (end[key], straight[key]) for key in end if end[key] != straight[key]}


def tape(place):
    """A GradientTape loop is continued to the bit: variables, slots, generators, the place in the data."""
    exact(taped, place, (8, 13, 24))


def over_a_dataset(path, number=0, die=None):
    tf.random.set_seed(5)
    np.random.seed(number)
    net = Dense(64, 10)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(100).batch(32)
    with holdfast.Run(path, every=Every(epochs=1, steps=3)) as run:
        run.track(net=net)
        for epoch in run.epochs(3):
            run.state["seen"] = tf.zeros((), tf.float32)
            for batch, (x, y) in run.batches(data).numbered():
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, net(x)))
                for variable, gradient in zip(net.variables, tape.gradient(loss, net.variables), strict=True):
                    variable.assign_sub(0.1 * gradient)
                run.state["seen"] += loss
                if (epoch, batch) == die:
                    raise Died
            run.log(loss=run.state["seen"])
        return {"net": values(net.variables), "seen": values([run.state["seen"]])}


def batches(place):
    """run.batches over a shuffled tf.data.Dataset continues an interrupted epoch in its order."""
    exact(over_a_dataset, place, ((1, 5), (1, 8), (2, 0)))


def named(place):
    """The variables of a module are named by the attributes that lead to them, each once."""
    holdfast.save(f"{place}/one", {"net": Net(), "variable": tf.Variable([1.0])})
    parts = holdfast.open(f"{place}/one").arrays().parts
    assert set(parts["net"].arrays) == {
        "again",
        "heads/digits/bias",
        "heads/digits/kernel",
        "layers/0/bias",
        "layers/0/kernel",
        "layers/1/bias",
        "noise/state",
        "seen",
    }
    assert list(parts["variable"].arrays) == ["value"]
    with pytest.raises(holdfast.MismatchError, match=r"layers/2/kernel"):
        wider = Net()
        wider.layers.append(Dense(24, 24))
        holdfast.restore(f"{place}/one", {"net": wider})


def tensors(place):
    """Tensors of every kind come back as they were; texts are refused, and so is a restore into a tensor."""
    kinds = ["float16", "bfloat16", "float32", "float64", "int8", "uint16", "int64", "bool", "complex64"]
    state = {kind: tf.cast(tf.constant([[0, 1], [1, 0]]), kind) for kind in kinds}
    state["empty"], state["scalar"] = tf.zeros((0, 3)), tf.constant(2.5)
    holdfast.save(f"{place}/one", {"values": state})
    found = holdfast.open(f"{place}/one").load()["values"]
    for kind, tensor in state.items():
        assert found[kind].dtype == tensor.dtype, kind
        assert np.array_equal(found[kind].numpy(), tensor.numpy()), kind
    assert isinstance(holdfast.open(f"{place}/one").load(arrays="numpy")["values"]["float32"], np.ndarray)
    assert tf.is_tensor(holdfast.open(f"{place}/one").load(arrays="tensorflow")["values"]["float32"])
    with pytest.raises(holdfast.UsageError, match="string, which a checkpoint cannot hold"):
        holdfast.save(f"{place}/two", {"values": {"words": tf.constant("a")}})
    holdfast.save(f"{place}/three", {"weights": {"a": tf.ones(3)}})
    with pytest.raises(holdfast.MismatchError, match=r"cannot be written \(a tf.Variable can\)"):
        holdfast.restore(f"{place}/three", {"weights": {"a": tf.zeros(3)}})


def iterators(place):
    """An iterator whose place TensorFlow cannot tell is refused with the reason; another data set's place does not fit."""
    noisy = iter(tf.data.Dataset.range(5).map(lambda x: tf.random.uniform(())))
    with pytest.raises(holdfast.UsageError, match=r"RandomUniform is stateful.*stateless_uniform"):
        holdfast.save(f"{place}/one", {"iterator": noisy})
    plain = iter(tf.data.Dataset.range(5))
    next(plain)
    holdfast.save(f"{place}/two", {"iterator": plain})
    other = iter(tf.data.Dataset.range(5))
    holdfast.restore(f"{place}/two", {"iterator": other})
    assert [int(x) for x in other] == [1, 2, 3, 4]
    with pytest.raises(holdfast.UsageError, match="an iterator over a data set cannot take it"):
        holdfast.save(f"{place}/three", {"iterator": Net()})
        holdfast.restore(f"{place}/three", {"iterator": other})


def streams(place):
    """The global seed, what it seeds operations with, and the global generator are continued."""

    def training(path, number=0, die=None):
        tf.random.set_seed(5)
        np.random.seed(number)
        drawn = []
        with holdfast.Run(path, every=Every(steps=1)) as run:
            tf.random.set_global_generator(tf.random.Generator.from_seed(1 + number))
            for step in run.steps(6):
                drawn.append(
                    [float(tf.random.uniform(())), float(tf.random.get_global_generator().normal(()))]
                )
                run.state["drawn"] = [*run.state.get("drawn", []), drawn[-1]]
                if step == die:
                    raise Died
            return {"drawn": run.state["drawn"]}

    straight = training(f"{place}/straight")
    with pytest.raises(Died):
        training(f"{place}/resumed", 0, 3)
    assert training(f"{place}/resumed", 7) == straight


CHECKS = [tape, batches, named, tensors, iterators, streams]


def main():
    place, *names = sys.argv[1:]
    shutil.rmtree(place, ignore_errors=True)
    for check in CHECKS:
        if names and check.__name__ not in names:
            continue
        problem = None
        try:
            check(f"{place}/{check.__name__}")
        except BaseException as error:
            problem = "".join(traceback.format_exception(error))[-6000:]
        print(json.dumps([check.__name__, problem]), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
