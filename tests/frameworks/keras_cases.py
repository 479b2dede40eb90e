"""Trainings with Keras, each a function of a `Launch`: straight, interrupted, continued, compared bit by bit.

    KERAS_BACKEND=jax python keras_cases.py DIRECTORY [CASE…]     all cases, a line of JSON for each
    … python keras_cases.py DIRECTORY --end CASE NUMBER [DIE]      one launch, its end as JSON
    … python keras_cases.py DIRECTORY --adopt RUN…                 restores what other backends have trained

A launch seeds everything anew, and differently: a launch that continues another one must not depend on
what the streams were. TensorFlow's global seed is the same in all, as a script has it.
"""

import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
import traceback

import numpy as np
from sklearn.datasets import load_digits

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import pytest
from keras import layers

import holdfast
from holdfast import Every, Keep

BACKEND = keras.backend.backend()
SEED = 7
DIGITS = load_digits()
X = (DIGITS.data[:320] / 16).astype("float32")
Y = DIGITS.target[:320].astype("int32")
VALID = ((DIGITS.data[320:400] / 16).astype("float32"), DIGITS.target[320:400].astype("int32"))


class Died(BaseException):
    """Ends a launch inside `fit`, as SIGKILL would."""


class Dies(keras.callbacks.Callback):
    """Dies when epoch and batch are as asked for; stands last in the list."""

    def __init__(self, at, how):
        super().__init__()
        self._at, self._how = at, how
        self._epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self._at is not None and [self._epoch, batch] == list(self._at):
            if self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._how in ("TERM", "INT", "USR1"):
                os.kill(os.getpid(), getattr(signal, f"SIG{self._how}"))
                return
            raise Died


class Launch:
    def __init__(self, path, number=0, *, die=None, how="raise", **options):
        self.path, self.number, self.die, self.how, self.options = str(path), number, die, how, options
        keras.utils.clear_session()
        keras.utils.set_random_seed(SEED if BACKEND == "tensorflow" else SEED + number)
        random.seed(number)
        np.random.seed(number)
        self.things = {}

    def run(self, **options):
        options.setdefault("every", Every(epochs=1))
        self._run = holdfast.Run(self.path, **{**options, **self.options})
        inner = self._run._training
        boundary = inner.boundary

        def waiting(**when):
            inner.need_saver().drain()  # no save is postponed because another one is being written
            boundary(**when)

        inner.boundary = waiting
        return self._run

    def callbacks(self, *others):
        """The callback under test between the others, and what may end this launch after them."""
        self.others = others
        half = len(others) // 2  # some forget what they know before it restores, and some after
        mine = holdfast.keras.Callback(self._run)
        return [*others[:half], mine, *others[half:], Dies(self.die, self.how)]

    def end(self, model, history=None):
        found = {"model": weights(model.variables), "streams": streams()}
        for name, value in vars(model).items():
            if isinstance(value, keras.optimizers.Optimizer):
                found[name] = weights(value.variables)
        if history is not None:
            found["history"] = {
                key: [float(v).hex() for v in value] for key, value in history.history.items()
            }
            found["epochs"] = list(history.epoch)
        for other in self.others:
            known = ("wait", "best", "cooldown_counter", "best_epoch", "seen", "total")
            found[type(other).__name__] = {
                key: repr(value) for key, value in vars(other).items() if key in known
            }
        found["progress"] = [self._run.progress.epoch, self._run.progress.step]
        self._run.close()
        return found


def weights(found):
    return [digest(np.asarray(keras.ops.convert_to_numpy(one.value)).tobytes()) for one in found]


def digest(data):
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def streams():
    _kind, keys, *rest = np.random.get_state()
    found = [digest(repr(random.getstate()).encode()), digest(keys.tobytes()), repr(rest)]
    if BACKEND == "torch":
        import torch

        found.append(digest(torch.get_rng_state().numpy().tobytes()))
    return found


def differences(one, other, path=""):
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for key in {**one, **other}
            for line in differences(one.get(key), other.get(key), f"{path}/{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            line
            for n, pair in enumerate(zip(one, other, strict=True))
            for line in differences(*pair, f"{path}/{n}")
        ]
    return [] if one == other else [f"{path}: {one} / {other}"]


def launch(case, path, number=0, **options):
    """The end of a training; None when the launch died."""
    one = Launch(path, number, **options)
    try:
        return case(one)
    except Died:
        return None


def exact(case, place, deaths=((2, 3),), *, continued=None):
    """A straight training and one that dies and is continued, several times, end alike."""
    straight = launch(case, f"{place}/straight")
    continued = case in CONTINUED if continued is None else continued
    with said() as lines:
        for number, die in enumerate((*deaths, None)):  # the first begins as the straight one did
            end = launch(case, f"{place}/resumed", number, die=die)
            assert (end is None) == (die is not None), f"expected to die at {die}"
    places = [line for line in lines if "resumed from" in line]
    assert len(places) == len(deaths)
    assert all("batch" in line for line in places) == continued, places
    assert differences(straight, end) == [], differences(straight, end)[:6]
    with open(f"{place}/straight.json", "w", encoding="utf-8") as file:
        json.dump(straight, file)


# -- trainings -----------------------------------------------------------------------------------


def mlp(dropout=0.25):
    return keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(24, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(dropout),
            layers.Dense(10),
        ]
    )


def compiled(model, optimizer="adam", **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], **options)
    return model


def fit(launch, model, *others, epochs=4, batch_size=32, **options):
    data = options.pop("data", (X, Y))
    data = data if isinstance(data, tuple) else (data,)
    options["batch_size"] = batch_size
    history = model.fit(*data, epochs=epochs, verbose=0, callbacks=launch.callbacks(*others), **options)
    return launch.end(model, history)


def plain(launch):
    """Dense layers, batch normalisation, dropout, Adam, a validation set, shuffled."""
    launch.run()
    return fit(launch, compiled(mlp()), validation_data=VALID)


def deferred(launch):
    """A Sequential model that learns its shapes from the first batch."""
    launch.run()
    model = keras.Sequential([layers.Dense(16, activation="tanh"), layers.Dropout(0.2), layers.Dense(10)])
    return fit(launch, compiled(model, keras.optimizers.SGD(0.1, momentum=0.9)))


@keras.saving.register_keras_serializable("cases")
class Nested(keras.Model):
    """Subclassed, with a list of layers, a layer that is used twice, noise of its own, a model inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.blocks = [layers.Dense(16, activation="relu") for _ in range(2)]
        self.shared = layers.Dense(16)
        self.inner = keras.Sequential([layers.Dense(16, name="inside"), layers.GaussianNoise(0.1)])
        self.head = layers.Dense(10)
        self.scale = self.add_weight(shape=(10,), initializer="ones")  # without a name

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x)
        x = self.shared(self.shared(x))
        return self.scale * self.head(self.inner(x, training=training))


def nested(launch):
    """A subclassed model with shared and nested layers, a schedule, gradients clipped, weights averaged."""
    launch.run()
    rate = keras.optimizers.schedules.CosineDecay(0.01, 60)
    optimizer = keras.optimizers.AdamW(rate, use_ema=True, ema_momentum=0.9, clipnorm=1.0)
    return fit(launch, compiled(Nested(), optimizer))


def functional(launch):
    """A functional graph with a branch, augmentation layers and gradients gathered over two batches."""
    launch.run()
    inputs = keras.Input((8, 8, 1))
    x = layers.RandomTranslation(0.1, 0.1, fill_mode="constant")(inputs)
    one = layers.Conv2D(4, 3, activation="relu")(x)
    both = layers.Concatenate()([layers.Flatten()(one), layers.Flatten()(x)])
    outputs = layers.Dense(10)(layers.Dropout(0.1)(both))
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    return fit(launch, compiled(keras.Model(inputs, outputs), optimizer), data=(X.reshape(-1, 8, 8, 1), Y))


def mixed(launch):
    """Mixed precision with a loss scale that grows and shrinks."""
    launch.run()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = mlp()
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), dynamic_growth_steps=7)
        return fit(launch, compiled(model, optimizer))
    finally:
        keras.mixed_precision.set_global_policy("float32")


class Counts(keras.callbacks.Callback):
    """A callback of the user's: forgets in on_train_begin, sums up in each epoch, changes the learning rate."""

    def on_train_begin(self, logs=None):
        self.seen, self.total = [], np.random.rand()

    def on_epoch_begin(self, epoch, logs=None):
        self.total += np.random.rand()

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(round(float(logs["loss"]), 3))
        self.model.optimizer.learning_rate = 0.01 / (1 + len(self.seen)) + 1e-4 * self.total


def company(launch):
    """EarlyStopping with the best weights, a callback of the user's, and the metrics of all epochs."""
    launch.run(keep=Keep(last=2, best=1, metric="val_accuracy", mode="max"))
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.02, restore_best_weights=True)
    return fit(launch, compiled(mlp()), stop, Counts(), epochs=7, validation_data=VALID)


def plateau(launch):
    """ReduceLROnPlateau, whose counters, best value and cooldown go on."""
    launch.run()
    reduce = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=0.2, cooldown=1)
    return fit(launch, compiled(mlp(), keras.optimizers.SGD(0.5)), reduce, epochs=6, validation_data=VALID)


class Batchwise(keras.callbacks.Callback):
    """A callback of the user's that counts batches, and warms up the learning rate by their numbers."""

    def on_train_begin(self, logs=None):
        self.seen, self.total = [], 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_sum = np.random.rand()

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = 0.001 * (1 + batch)

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(batch)
        self.epoch_sum += float(logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        self.total += self.epoch_sum


INSIDE = {"every": Every(epochs=1, steps=3)}


def arrays(launch):
    """Arrays through run.batches, saved every three batches, with a callback that counts batches."""
    run = launch.run(**INSIDE)
    data = run.batches((X[:300], Y[:300]), batch_size=32)
    return fit(launch, compiled(mlp()), Batchwise(), data=data, batch_size=None, validation_data=VALID)


class Shuffles(keras.utils.PyDataset):
    """A data set that shuffles itself between two epochs, from NumPy's global stream."""

    def __init__(self, **options):
        super().__init__(**options)
        self.order = np.random.permutation(len(X))

    @property
    def num_batches(self):
        return 10

    def __getitem__(self, number):
        rows = self.order[number * 32 : number * 32 + 32]
        return X[rows], Y[rows]

    def on_epoch_end(self):
        np.random.shuffle(self.order)


def pydataset(launch):
    """A PyDataset through run.batches, saved every three batches."""
    run = launch.run(**INSIDE)
    return fit(launch, compiled(mlp()), Batchwise(), data=run.batches(Shuffles(workers=2)), batch_size=None)


def plain_pydataset(launch):
    """A PyDataset that fit is given as it is."""
    launch.run(**INSIDE)
    return fit(launch, compiled(mlp()), data=Shuffles(), batch_size=None)


def dataset():
    import tensorflow as tf

    tf.random.set_seed(SEED)
    found = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(100).batch(32)
    return found.prefetch(2)


def tfdata(launch):
    """A shuffled tf.data.Dataset through run.batches, saved every three batches."""
    run = launch.run(**INSIDE)
    return fit(launch, compiled(mlp()), Batchwise(), data=run.batches(dataset()), batch_size=None)


def plain_tfdata(launch):
    """A shuffled tf.data.Dataset that fit is given as it is, of a length that nobody knows."""
    launch.run(**INSIDE)
    data = dataset().filter(lambda x, y: True)
    return fit(launch, compiled(mlp()), data=data, batch_size=None, validation_data=VALID)


def stateful(launch):
    """A recurrent layer that hands its state on from batch to batch, over the epochs as well."""
    run = launch.run(**INSIDE)
    model = keras.Sequential(
        [
            layers.Input(batch_shape=(32, 8, 8)),
            layers.GRU(6, stateful=True, recurrent_dropout=0.1),
            layers.Dense(10),
        ]
    )
    data = run.batches((X.reshape(-1, 8, 8), Y), batch_size=32)
    return fit(launch, compiled(model), data=data, batch_size=None, epochs=3)


def several(launch):
    """Several batches in each call of a compiled function."""
    run = launch.run(**INSIDE)
    data = run.batches((X[:300], Y[:300]), batch_size=32)
    return fit(launch, compiled(mlp(), steps_per_execution=2), Counts(), data=data, batch_size=None)


FITS = {
    plain: ((1, 3), (1, 9), (3, 9)),
    deferred: ((2, 3),),
    nested: ((1, 3), (2, 0)),
    functional: ((2, 3),),
    mixed: ((2, 3),),
    company: ((1, 3), (2, 1)),
    plateau: ((2, 3), (4, 0)),
    arrays: ((0, 7), (2, 5), (2, 8)),
    pydataset: ((1, 5), (2, 8)),
    plain_pydataset: ((2, 5),),
    tfdata: ((1, 5), (2, 8)),
    plain_tfdata: ((1, 5), (2, 8)),
    stateful: ((1, 5), (2, 0)),
}
if BACKEND != "torch":  # Keras has steps_per_execution for the others
    FITS[several] = ((1, 7), (2, 5))
CONTINUED = {arrays, pydataset, tfdata, several}
"""Those that go on in the middle of an epoch."""


# -- what else fit promises ------------------------------------------------------------------------


@contextlib.contextmanager
def said():
    """The lines of the library's logger."""
    lines = []

    class Listener(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    listener = Listener()
    logging.getLogger("holdfast").addHandler(listener)
    yield lines
    logging.getLogger("holdfast").removeHandler(listener)


@contextlib.contextmanager
def raises(kind, *words):
    with pytest.raises(kind) as caught:
        yield
    assert all(word in str(caught.value) for word in words), str(caught.value)


def preempted(place):
    """SIGTERM ends fit with Preempted, Ctrl-C with KeyboardInterrupt; the epoch is done again, once."""
    straight = launch(plain, f"{place}/straight")
    with said() as lines, raises(holdfast.Preempted, "is saved"):
        launch(plain, f"{place}/resumed", die=(2, 3), how="TERM")
    assert any("run.batches" in line for line in lines), lines
    assert (
        signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    )  # repeats change nothing while a process ends
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with raises(KeyboardInterrupt):
        launch(plain, f"{place}/resumed", 1, die=(3, 1), how="INT")
    assert differences(straight, launch(plain, f"{place}/resumed", 2)) == []


def preempted_inside(place):
    """SIGTERM in the middle of an epoch of run.batches saves that batch, and the next launch goes on there."""
    straight = launch(arrays, f"{place}/straight")
    with raises(holdfast.Preempted, "_step-00000015"):
        launch(arrays, f"{place}/resumed", die=(1, 4), how="TERM")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with said() as lines:
        assert differences(straight, launch(arrays, f"{place}/resumed", 1)) == []
    assert any("(epoch 1, step 15, batch 5 of 4 epochs)" in line for line in lines), lines


def alone(place):
    """The callback may stand alone, without a list, and where JAX calls callbacks in another thread."""

    def training(one, epochs):
        run = one.run(**INSIDE)
        model, one.others = compiled(mlp()), ()
        run.track(optimizer=model.optimizer)  # before the model, whose values JAX keeps apart
        data = run.batches((X, Y), batch_size=32)
        history = model.fit(data, epochs=epochs, verbose=0, callbacks=holdfast.keras.Callback(run))
        return one.end(model, history)

    straight = launch(lambda one: training(one, 3), f"{place}/straight")
    launch(lambda one: training(one, 2), f"{place}/resumed")
    assert differences(straight, launch(lambda one: training(one, 3), f"{place}/resumed", 1)) == []


def seeded(place):
    """A launch that forgets TensorFlow's global seed gets it back; without any, a warning tells."""
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    straight = launch(plain, f"{place}/straight")
    assert launch(plain, f"{place}/resumed", die=(2, 3)) is None
    one = Launch(f"{place}/resumed", 1)
    tf.random.set_seed(None)
    with said() as lines:
        assert differences(straight, plain(one)) == []
    assert any("global seed is set to 7" in line for line in lines), lines
    one = Launch(f"{place}/none")
    tf.random.set_seed(None)
    with said() as lines:
        plain(one)
    assert any("global seed is not set" in line for line in lines), lines


def passed_over(place):
    """Plain data goes on from where an epoch begins, and says which checkpoint it passes over."""
    assert launch(arrays, place, die=(2, 5)) is None

    def training(one):
        one.run(every=Every(epochs=1))
        return fit(one, compiled(mlp()), Batchwise(), data=(X[:300], Y[:300]), validation_data=VALID)

    with said() as lines:
        end = launch(training, place, 1)
    assert any("stands in the middle of an epoch" in line and "epoch-0002" in line for line in lines), lines
    assert end["epochs"] == [0, 1, 2, 3]


class Duel(keras.Model):
    """Two networks with an optimizer each, trained by a step of its own; never called as a whole."""

    def __init__(self):
        super().__init__()
        self.one = keras.Sequential([layers.Input((64,)), layers.Dense(8), layers.Dense(64)])
        self.two = keras.Sequential(
            [layers.Input((64,)), layers.Dense(8, activation="relu"), layers.Dense(1)]
        )
        self.one_optimizer, self.two_optimizer = keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.02)

    def train_step(self, data):
        import tensorflow as tf

        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape(persistent=True) as tape:
            made = self.one(x, training=True)
            first = tf.reduce_mean((made - x) ** 2) - 0.1 * tf.reduce_mean(self.two(made))
            second = tf.reduce_mean(self.two(made)) - tf.reduce_mean(self.two(x))
        for net, optimizer, loss in (
            (self.one, self.one_optimizer, first),
            (self.two, self.two_optimizer, second),
        ):
            optimizer.apply_gradients(
                zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables, strict=True)
            )
        return {"loss": first, "second": second}


def duel(place):
    """A model with a train_step and optimizers of its own, which its first step builds, is exact as well."""
    if BACKEND != "tensorflow":
        return

    def training(one):
        one.run()
        model = Duel()
        model.compile()
        return fit(one, model)

    exact(training, place, ((1, 3), (2, 4)))


def complete(place):
    """A run that is complete trains nothing, and leaves model, history and best weights as they were."""
    first = launch(company, place)
    with said() as lines:
        again = launch(company, place, 1)
    assert any("complete" in line for line in lines), lines
    assert differences({**first, "streams": 0}, {**again, "streams": 0}) == []


def longer(place):
    """More epochs continue a complete run as if they had been asked for at once, averaged weights and all."""

    def training(launch, epochs):
        launch.run()
        optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=None)
        return fit(launch, compiled(mlp(), optimizer), epochs=epochs)

    straight = launch(lambda one: training(one, 4), f"{place}/straight")
    launch(lambda one: training(one, 2), f"{place}/resumed")
    assert differences(straight, launch(lambda one: training(one, 4), f"{place}/resumed", 1)) == []


def left(place):
    """An exception of another callback leaves the signals to their owners, and the same process can fit again."""
    straight = launch(plain, f"{place}/straight")
    got = []
    signal.signal(signal.SIGTERM, lambda *_: got.append("mine"))

    class Fails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2 and self.armed:
                raise ValueError("an error of the user's")

        armed = False

        def on_epoch_begin(self, epoch, logs=None):
            self.armed = epoch == 2

    def failing(one):
        one.run()
        model = compiled(mlp())
        try:
            fit(one, model, Fails(), validation_data=VALID)
        except ValueError:
            os.kill(os.getpid(), signal.SIGTERM)
            assert got == ["mine"], "the user's handler"
            with raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            # The same run, model and process: nothing was trained twice.
            history = model.fit(
                X, Y, epochs=4, batch_size=32, verbose=0, validation_data=VALID, callbacks=one.callbacks()
            )
            return one.end(model, history)

    assert differences({**straight}, launch(failing, f"{place}/left")) == []
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def refused(place):
    """What cannot be right is refused with the remedy: a second fit, initial_epoch, other settings, no run."""
    one = Launch(place)
    one.run()
    model = compiled(mlp(), keras.optimizers.Adam(0.01))
    with raises(holdfast.UsageError, "fit begins at epoch 3", "leave initial_epoch out"):
        model.fit(X, Y, epochs=4, initial_epoch=3, verbose=0, callbacks=one.callbacks())
    model.fit(X, Y, epochs=2, verbose=0, callbacks=one.callbacks())
    with raises(holdfast.UsageError, "fit would be a second one", "init="):
        model.fit(X, Y, epochs=3, verbose=0, callbacks=one.callbacks())
    one.run()
    other = compiled(mlp(), keras.optimizers.Adam(0.02))
    with raises(holdfast.UsageError, "optimizer.learning_rate: 0.00999", "fresh=['optimizer.learning_rate']"):
        other.fit(X, Y, epochs=3, verbose=0, callbacks=one.callbacks())
    one.run(fresh=["optimizer.learning_rate"])
    other.fit(X, Y, epochs=3, verbose=0, callbacks=one.callbacks())
    assert abs(float(other.optimizer.learning_rate) - 0.02) < 1e-6
    one.run()
    with raises(
        holdfast.MismatchError, "dense/kernel: saved F32 [64, 24], here F32 [64, 25]", "dense_1/kernel"
    ):
        wider = keras.Sequential(
            [
                layers.Input((64,)),
                layers.Dense(25),
                layers.BatchNormalization(),
                layers.Dropout(0.1),
                layers.Dense(10),
            ]
        )
        compiled(wider, keras.optimizers.Adam(0.02)).fit(X, Y, epochs=4, verbose=0, callbacks=one.callbacks())
    with raises(holdfast.UsageError, "expected a run"):
        holdfast.keras.Callback("runs/digits")


def phases(place):
    """A frozen and an unfrozen phase are two runs, the second of which begins with the first one's best model."""

    def training(launch, path):
        first, second = f"{path}/frozen", f"{path}/all"
        launch.path = first
        launch.run(keep=Keep(last=1, best=1, metric="loss", mode="min"))
        base = keras.Sequential(
            [layers.Input((64,)), layers.Dense(16, activation="relu"), layers.Dense(16)], name="base"
        )
        model = keras.Sequential([layers.Input((64,)), base, layers.Dropout(0.1), layers.Dense(10)])
        base.trainable = False
        compiled(model).fit(X, Y, epochs=2, verbose=0, callbacks=launch.callbacks())
        launch._run.close()
        base.trainable = True
        launch.path = second
        launch.run(init={"model": f"{first}@best"})
        return fit(launch, compiled(model, keras.optimizers.Adam(1e-3)), epochs=3)

    straight = launch(lambda one: training(one, f"{place}/straight"), "-")
    assert (
        launch(lambda one: training(one, f"{place}/resumed"), "-", die=(1, 2)) is None
    )  # in the first phase
    resumed = launch(lambda one: training(one, f"{place}/resumed"), "-", 1)
    assert differences(straight, resumed) == []


def named(place):
    """Variables have names that a person reads, the same however often a model is built in a process."""
    names = []
    for _ in range(2):  # no clear_session between: Keras counts on
        model = Nested()
        model(X[:1])
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        checkpoint = holdfast.save(f"{place}/one", {"model": model, "optimizer": optimizer})
        names.append([list(checkpoint.arrays().parts[part].arrays) for part in ("model", "optimizer")])
    assert names[0] == names[1]
    model, optimizer = names[0]
    assert model[0] == "scale", model
    assert model[1:5] == ["blocks/0/kernel", "blocks/0/bias", "blocks/1/kernel", "blocks/1/bias"], model
    assert {
        "shared/kernel",
        "inner/inside/kernel",
        "inner/gaussian_noise/seed_generator_state",
        "head/bias",
    } <= set(model)
    assert {"iterations", "learning_rate", "momentums/blocks/0/kernel", "velocities/head/bias"} <= set(
        optimizer
    )
    values = holdfast.open(f"{place}/one").load(arrays="numpy")
    assert values["model"]["head/kernel"].shape == (16, 10)


def own_loop(place):
    """A loop of one's own over run.batches, with a Keras model and optimizer that are tracked, is exact as well."""

    def training(one):
        run = one.run(**INSIDE)
        model = compiled(Nested())
        model(X[:1])
        run.track(model=model, optimizer=model.optimizer)
        one.others = ()
        for epoch in run.epochs(3):
            run.state["loss"] = 0.0
            for number, (x, y) in run.batches((X, Y), batch_size=32).numbered():
                run.state["loss"] += float(model.train_on_batch(x, y)[0])
                if one.die == (epoch, number):
                    raise Died
            run.log(loss=run.state["loss"])
        return one.end(model)

    exact(training, place, ((1, 4), (1, 8)), continued=True)


def saved(place):
    """Models and optimizers are saved and restored without a run, whatever they were built as; misfits are told."""
    keras.utils.clear_session()
    model = compiled(mlp(), keras.optimizers.Adam(0.01))
    model.fit(X, Y, epochs=1, verbose=0)
    holdfast.save(place, {"model": model, "optimizer": model.optimizer, "epoch": 1})
    other = compiled(mlp(), keras.optimizers.Adam(0.5))  # not built
    values = holdfast.restore(place, {"model": other, "optimizer": other.optimizer})
    assert values == {"epoch": 1}
    assert weights(other.variables) == weights(model.variables)
    assert weights(other.optimizer.variables) == weights(model.optimizer.variables)
    loaded = holdfast.open(place).load(["model"])["model"]
    assert type(loaded["dense/kernel"]).__module__.partition(".")[0] in (BACKEND, "jaxlib")
    with raises(holdfast.UsageError, "is not built", "model.build(input_shape)"):
        holdfast.restore(place, {"model": keras.Sequential([layers.Dense(24), layers.Dense(10)])})
    with raises(holdfast.MismatchError, "class: saved", "SGD"):
        holdfast.restore(place, {"optimizer": keras.optimizers.SGD(0.1)})
    with raises(holdfast.MismatchError, "dense/kernel: saved F32 [64, 24], here F16 [64, 24]"):
        half = keras.Sequential([layers.Input((64,)), layers.Dense(24, dtype="float16")])
        holdfast.restore(place, {"model": half})
    metric = keras.metrics.Mean()
    metric.update_state([1.0, 2.0])
    generator = keras.random.SeedGenerator(3)
    scale = layers.Normalization()
    scale.adapt(X)
    parts = {"metric": metric, "generator": generator, "scale": scale}
    holdfast.save(f"{place}-parts", parts)
    fresh = {
        "metric": keras.metrics.Mean(),
        "generator": keras.random.SeedGenerator(9),
        "scale": layers.Normalization(),
    }
    fresh["scale"].build((None, 64))
    holdfast.restore(f"{place}-parts", fresh)
    assert float(fresh["metric"].result()) == 1.5
    assert weights([fresh["generator"].state]) == weights([generator.state])
    assert np.array_equal(keras.ops.convert_to_numpy(fresh["scale"](X)), keras.ops.convert_to_numpy(scale(X)))


class Unregistered(layers.Layer):
    """A layer that Keras is not told of."""

    def call(self, x):
        return x * 2


def entire(place):
    """An entire model is opened without its script where all layers are Keras' own or registered, else not without trust."""
    inputs = keras.Input((64,))
    model = compiled(keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.1)(layers.Dense(8)(inputs)))))
    holdfast.keras.save_model(model, f"{place}/own", note="of Keras' own layers")
    twin = holdfast.keras.load_model(f"{place}/own")
    answer = model.predict(X[:8], verbose=0)
    assert np.array_equal(twin.predict(X[:8], verbose=0), answer)
    assert twin.evaluate(*VALID, verbose=0) == model.evaluate(*VALID, verbose=0)
    custom = Nested()
    custom(X[:1])
    holdfast.keras.save_model(custom, f"{place}/registered")
    twin = holdfast.keras.load_model(f"{place}/registered")
    assert weights(twin.variables) == weights(custom.variables)
    bad = keras.Sequential([inputs, Unregistered(), layers.Dense(3)])
    holdfast.keras.save_model(bad, f"{place}/unregistered")
    with raises(holdfast.UntrustedError, "Unregistered", "register_keras_serializable", "trust=True"):
        holdfast.keras.load_model(f"{place}/unregistered")
    twin = holdfast.keras.load_model(f"{place}/unregistered", custom_objects={"Unregistered": Unregistered})
    assert weights(twin.variables) == weights(bad.variables)
    code = keras.Sequential([inputs, layers.Lambda(lambda x: x * 3)])
    holdfast.keras.save_model(code, f"{place}/lambda")
    with raises(holdfast.UntrustedError, "a lambda", "Nothing was run"):
        holdfast.keras.load_model(f"{place}/lambda")
    twin = holdfast.keras.load_model(f"{place}/lambda", trust=True)
    assert np.allclose(twin.predict(X[:2], verbose=0), X[:2] * 3)
    with raises(holdfast.FormatError, "holds no structure of a Keras model", "save_model"):
        holdfast.save(f"{place}/weights", {"model": model})
        holdfast.keras.load_model(f"{place}/weights")
    with raises(holdfast.UsageError, "takes a keras.Model"):
        holdfast.keras.save_model(layers.Dense(3), f"{place}/layer")
    run = holdfast.Run(f"{place}/run", keep=Keep(last=1, best=1, metric="accuracy", mode="max"))
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[holdfast.keras.Callback(run, entire=True)])
    run.close()
    best = holdfast.keras.load_model(f"{place}/run@-1")
    assert np.array_equal(best.predict(X[:8], verbose=0), model.predict(X[:8], verbose=0))


def certified(place):
    """A probe certifies the restored model, a card describes it, and NaN is marked or refused, as for torch."""

    def training(one, epochs, **options):
        run = one.run(**options)
        model = compiled(mlp())
        run.track(probe=holdfast.Probe(model, X[:4]))
        return fit(one, model, epochs=epochs)

    launch(lambda one: training(one, 2), f"{place}/probed")
    launch(lambda one: training(one, 3), f"{place}/probed", 1)
    newest = holdfast.open(f"{place}/probed")
    assert newest.manifest.probe is not None
    with open(f"{newest.path}/README.md", encoding="utf-8") as file:
        card = file.read()
    assert all(text in card for text in ("| dense | Dense", "| dense\\_1 |")) or "Dense(" in card, card
    assert newest.verify() == []

    def exploding(one):
        one.run(on_nan="raise")
        return fit(one, compiled(mlp(), keras.optimizers.SGD(float("nan"))), epochs=1)

    with raises(holdfast.CheckpointError, "NaN or infinity in", "model/dense/kernel"):
        launch(exploding, f"{place}/nan")


def adopt(path):
    """A model and an optimizer that another backend has trained are restored here."""
    model = compiled(mlp())
    holdfast.restore(path, {"model": model, "optimizer": model.optimizer})
    values = holdfast.open(path).load(["model", "optimizer"], arrays="numpy")
    for part, thing in (("model", model), ("optimizer", model.optimizer)):
        here = holdfast.save(f"{path}-adopted-{part}", {"model": model, part: thing}).load(
            [part], arrays="numpy"
        )[part]
        assert list(here) == list(values[part])
        for name, value in here.items():
            assert np.array_equal(value, values[part][name]), name


CHECKS = [
    preempted,
    preempted_inside,
    alone,
    seeded,
    passed_over,
    duel,
    complete,
    longer,
    left,
    refused,
    phases,
    named,
    own_loop,
    saved,
    entire,
    certified,
]


def cases(place, names=()):
    for case, deaths in FITS.items():
        if not names or case.__name__ in names:
            yield (
                case.__name__,
                lambda case=case, deaths=deaths: exact(case, f"{place}/{case.__name__}", deaths),
            )
    for check in CHECKS:
        if not names or check.__name__ in names:
            yield check.__name__, lambda check=check: check(f"{place}/{check.__name__}")


def try_each(cases):
    """Prints a line for each case: its name, and what went wrong or null."""
    for name, check in cases:
        problem = None
        try:
            check()
        except BaseException as error:
            problem = "".join(traceback.format_exception(error))[-6000:]
        print(json.dumps([name, problem]), flush=True)


def main():
    place, *rest = sys.argv[1:]
    if rest[:1] == ["--adopt"]:
        for path in rest[1:]:
            adopt(path)
        return
    if rest[:1] == ["--end"]:
        case = globals()[rest[1]]
        options = json.loads(rest[3]) if len(rest) > 3 else {}
        end = launch(case, place, int(rest[2]), **options)
        print(json.dumps(end))
        return
    shutil.rmtree(place, ignore_errors=True)
    try_each(cases(place, rest))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
