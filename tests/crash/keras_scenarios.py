"""A scenario in which Keras' `fit` is the loop, on the torch backend; imported in processes of its own alone."""

import functools
import os
import random

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
from scenarios import FurtherSave, content, equal

import holdfast
from holdfast import Every

X = np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8)
Y = np.arange(6, dtype=np.int32) % 2


def network():
    seeds = [keras.initializers.GlorotUniform(seed=number) for number in (1, 2)]
    model = keras.Sequential(
        [
            keras.layers.Input((8,)),
            keras.layers.Dense(16, kernel_initializer=seeds[0], name="inner"),
            keras.layers.Dense(2, kernel_initializer=seeds[1], name="outer"),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def weights(model):
    return {
        f"{layer.name}/{variable.name}": np.array(keras.ops.convert_to_numpy(variable.value))
        for layer in model.layers
        for variable in layer.variables
    }


@functools.cache
def trained(epochs):
    """The weights after so many epochs, of one batch each, without an interruption."""
    model = network()
    if epochs:
        model.fit(X, Y, batch_size=6, shuffle=False, epochs=epochs, verbose=0)
    return weights(model)


class Fills(keras.callbacks.Callback):
    """Looks at what was restored before the first epoch, and fills in what each step stands for."""

    def __init__(self, scenario, run):
        super().__init__()
        self._scenario, self._run = scenario, run

    def on_train_begin(self, logs=None):
        self._scenario.start = self._scenario.resumed(self._run, self._run.progress)
        equal(weights(self.model), trained(self._run.progress.step))

    def on_epoch_end(self, epoch, logs=None):
        self._run.state.update(content(epoch + 1, self._scenario.size))
        self._run.state["drawn"] = random.random()


class Fitted(FurtherSave):
    """`fit` with the callback, in the background: epochs of one batch."""

    staging = None

    def train(self, goal):
        model = network()
        with self.open(every=Every(epochs=1)) as run:
            callbacks = [holdfast.keras.Callback(run), Fills(self, run)]
            model.fit(X, Y, batch_size=6, shuffle=False, epochs=goal, verbose=0, callbacks=callbacks)
        equal(weights(model), trained(goal))
        return self.start

    def look_at(self, path):
        step = super().look_at(path)
        equal(holdfast.open(path).load(["model"], arrays="numpy")["model"], trained(step))
        return step


SCENARIOS = {"Fitted": Fitted}


def warm():
    """Makes Keras load what it loads late, once, before processes are forked."""
    for epochs in range(5):
        trained(epochs)
