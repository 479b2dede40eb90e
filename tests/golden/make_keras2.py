"""Makes the files in keras2/: what TensorFlow 2.0 to 2.15 left behind, and what is in it.

    pip install tf_keras tensorflow-cpu
    python tests/golden/make_keras2.py

tf_keras is Keras 2 as TensorFlow 2.15 had it, with the optimizers of TensorFlow up to 2.10 beside the
later ones. The files stay as they are: old files must be read for ever.
"""

import os
import shutil
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tf_keras as keras
from sklearn.datasets import load_digits

PLACE = Path(__file__).with_name("keras2")
EPOCHS = 2


def data():
    digits = load_digits()
    return digits.data[:96].astype("float32") / 16, digits.target[:96]


def plain():
    return keras.Sequential(
        [
            keras.layers.Dense(6, activation="relu", input_shape=(64,)),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(10),
        ]
    )


def recurrent():
    """Layers in layers, and a model in a model."""
    inner = keras.Sequential([keras.layers.Dense(5, input_shape=(8,)), keras.layers.LayerNormalization()])
    rows = keras.Input((8, 8))
    both = keras.layers.Bidirectional(keras.layers.LSTM(4))(rows)
    return keras.Model(rows, keras.layers.Dense(10, name="head")(inner(both)))


def slots(model):
    """Slot/number of the weight → what the optimizer keeps of it; and how many steps it made."""
    optimizer, found = model.optimizer, {"steps": int(model.optimizer.iterations)}
    for number, weight in enumerate(model.trainable_variables):
        if hasattr(optimizer, "get_slot_names"):
            own = {name: optimizer.get_slot(weight, name) for name in optimizer.get_slot_names()}
        else:
            own = {
                variable.name.split("/")[1]: variable
                for variable in optimizer.variables
                if variable.name.partition("/")[2].partition("/")[2] == weight.name
            }
        found.update({f"{name}/{number}": variable.numpy() for name, variable in own.items()})
    return found


def make(name, build, optimizer, forms, shape=None):
    folder = PLACE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(5)
    x, y = data()
    x = x if shape is None else x.reshape(-1, *shape)
    model = build()
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    model.fit(x, y, epochs=EPOCHS, batch_size=32, verbose=0)
    for form in forms:
        if form == "manager":
            checkpoint = tf.train.Checkpoint(
                model=model,
                optimizer=model.optimizer,
                epoch=tf.Variable(EPOCHS),
                curve=tf.Variable([0.5, 0.25]),
            )
            tf.train.CheckpointManager(checkpoint, str(folder / "manager"), max_to_keep=1).save()
        elif form in ("whole.h5", "model.keras"):
            model.save(folder / form)
        else:
            model.save_weights(folder / form)
    weights = {f"weight/{number}": value for number, value in enumerate(model.get_weights())}
    kept = {f"slot/{key}": value for key, value in slots(model).items()}
    np.savez_compressed(folder / "truth.npz", answer=model.predict(x[:20], verbose=0), **weights, **kept)


if __name__ == "__main__":
    every = ["tf/cp-0002.ckpt", "manager", "weights.h5", "whole.h5", "model.keras", "new.weights.h5"]
    make("adam", plain, keras.optimizers.Adam(0.01), every)
    make("adam-2.10", plain, keras.optimizers.legacy.Adam(0.01), ["tf/cp-0002.ckpt", "manager", "whole.h5"])
    make("sgd", plain, keras.optimizers.SGD(0.01, momentum=0.9), ["tf/cp-0002.ckpt", "whole.h5"])
    make("sgd-2.10", plain, keras.optimizers.legacy.SGD(0.01, momentum=0.9), ["tf/cp-0002.ckpt", "whole.h5"])
    make("rmsprop", plain, keras.optimizers.RMSprop(0.01), ["tf/cp-0002.ckpt", "whole.h5"])
    make("recurrent", recurrent, keras.optimizers.Adam(0.01), ["tf/cp-0002.ckpt", "weights.h5"], shape=(8, 8))
