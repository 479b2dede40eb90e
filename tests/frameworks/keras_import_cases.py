"""Files that Keras 2, Keras 3 and TensorFlow left behind, in live models of Keras 3."""

import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import holdfast
import holdfast.keras
from holdfast.exchange import export_file, import_file, tensor_bundle
from holdfast.keras import load_weights, optimizers, variables

OLD = Path(__file__).parents[1] / "golden" / "keras2"
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.5),
    "adam-2.10": lambda: keras.optimizers.Adam(0.5),
    "sgd": lambda: keras.optimizers.SGD(0.5, momentum=0.9),
    "sgd-2.10": lambda: keras.optimizers.SGD(0.5, momentum=0.9),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.5),
    "recurrent": lambda: keras.optimizers.Adam(0.5),
}
SLOTS = {"m": "momentums", "v": "velocities", "momentum": "momentums", "velocity": "velocities"}
FILES = sorted(
    str(path.relative_to(OLD))
    for path in OLD.glob("*/*")
    if path.is_dir() or (path.suffix in (".h5", ".keras") and path.is_file())
)


def inputs(name):
    x = load_digits().data[:20].astype("float32") / 16
    return x.reshape(-1, 8, 8) if name == "recurrent" else x


def make(name, seed=1):
    """The model of the script that left the files, in Keras 3, as it would be before any training."""
    keras.utils.set_random_seed(seed)
    if name == "recurrent":
        inner = keras.Sequential(
            [keras.layers.Input((8,)), keras.layers.Dense(5), keras.layers.LayerNormalization()]
        )
        rows = keras.Input((8, 8))
        both = keras.layers.Bidirectional(keras.layers.LSTM(4))(rows)
        model = keras.Model(rows, keras.layers.Dense(10, name="head")(inner(both)))
    else:
        model = keras.Sequential(
            [
                keras.layers.Input((64,)),
                keras.layers.Dense(6, activation="relu"),
                keras.layers.BatchNormalization(name="norm"),
                keras.layers.Dropout(0.1),
                keras.layers.Dense(10),
            ]
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[name](), loss, metrics=["accuracy"])
    return model


def number(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def check(model, name, *, slots=True):
    """A live model is the one that was saved: answers, weights, what the optimizer keeps of each, steps."""
    truth = np.load(OLD / name / "truth.npz")
    np.testing.assert_allclose(model.predict(inputs(name), verbose=0), truth["answer"], atol=2e-5)
    for index, value in enumerate(model.get_weights()):
        np.testing.assert_array_equal(value, truth[f"weight/{index}"])
    if not slots:
        assert int(model.optimizer.iterations) == 0
        return
    assert int(model.optimizer.iterations) == int(truth["slot/steps"])
    live = optimizers.named(model.optimizer, {"model": model})
    names = {id(variable): key for key, variable in variables.of_layer(model).items()}
    seen = 0
    for key in truth.files:
        if key.count("/") == 2:
            _, slot, place = key.split("/")
            weight = names[id(model.trainable_variables[int(place)])]
            slot = "momentums" if name.startswith("sgd") else SLOTS[slot]
            np.testing.assert_array_equal(number(live[f"{slot}/{weight}"]), truth[key])
            seen += 1
    assert seen == sum("/" in key for key in live)


def has_slots(file):
    return not file.endswith("/weights.h5")


@pytest.mark.parametrize("file", FILES)
def test_imported_parts_reach_a_live_model(tmp_path, file):
    """An import restores to the bit what Keras 2 had: weights, moments, counts."""
    name = file.partition("/")[0]
    found = import_file(OLD / file, tmp_path / "run")
    model = make(name)
    targets = {"model": model}
    if has_slots(file):
        targets["optimizer"] = model.optimizer
    assert [part for part in found.parts if part != "state"] == list(targets)
    found.restore(targets)
    check(model, name, slots=has_slots(file))
    assert found.progress.epoch == (2 if file.endswith("manager") else 0)


@pytest.mark.parametrize("file", [file for file in FILES if "adam" in file or "recurrent" in file])
def test_load_weights_reads_them_as_they_are_on_each_backend(file):
    """`load_weights` takes the same files without an import: every form, and TensorFlow's by prefix or folder."""
    name = file.partition("/")[0]
    model = make(name)
    path = OLD / file
    loaded = load_weights(model, path / "cp-0002.ckpt" if path.name == "tf" else path)
    assert loaded.expect_partial() is loaded
    check(model, name, slots=has_slots(file))


def test_a_manager_brings_its_counters_and_its_values(tmp_path):
    """What lay beside the model in tf.train.Checkpoint comes along: the epoch as progress, the rest as state."""
    found = import_file(OLD / "adam" / "manager", tmp_path / "run")
    assert (found.progress.epoch, found.progress.step) == (2, 6)
    assert found.load()["state"]["curve"].tolist() == [0.5, 0.25]
    assert "was taken as the number of completed epochs" in found.note


def test_the_epoch_can_be_said(tmp_path):
    """`epoch=` says how many epochs were completed, and what is no number of epochs is refused."""
    assert import_file(OLD / "sgd/tf/cp-0002.ckpt", tmp_path / "run", epoch=7).progress.epoch == 7
    with pytest.raises(holdfast.UsageError, match="completed epochs"):
        import_file(OLD / "sgd/tf/cp-0002.ckpt", tmp_path / "other", epoch=-1)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("file", ["adam-2.10/manager", "adam/whole.h5", "adam/model.keras"])
def test_a_training_goes_on_under_the_callback_on_each_backend(tmp_path, file):
    """An imported training is continued by `fit` with the callback, from its epoch, its weights and its moments."""
    import_file(OLD / file, tmp_path / "run", epoch=2)
    model = make("adam")
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if not seen:
                check(model, "adam-2.10" if "2.10" in file else "adam")
            seen.append(epoch)

    with holdfast.Run(tmp_path / "run") as run:
        callbacks = [holdfast.keras.Callback(run), Look()]
        model.fit(inputs("adam"), np.arange(20) % 10, epochs=4, batch_size=10, verbose=0, callbacks=callbacks)
        assert (run.progress.epoch, run.progress.step) == (4, 6 + 4)
    assert seen == [2, 3]
    assert int(model.optimizer.iterations) == 6 + 4


def test_weights_of_an_import_begin_another_run(tmp_path):
    """`init={"model": …}` begins a run of its own with the weights of an imported one."""
    import_file(OLD / "adam/tf/cp-0002.ckpt", tmp_path / "imported")
    model = make("adam")
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append((epoch, model.get_weights()))

    with holdfast.Run(tmp_path / "run", init={"model": tmp_path / "imported"}) as run:
        callbacks = [holdfast.keras.Callback(run), Look()]
        model.fit(inputs("adam"), np.arange(20) % 10, epochs=1, verbose=0, callbacks=callbacks)
    assert seen[0][0] == 0
    for index, value in enumerate(seen[0][1]):
        np.testing.assert_array_equal(value, np.load(OLD / "adam/truth.npz")[f"weight/{index}"])


# -- out ------------------------------------------------------------------------------------------------


def trained(name="adam", epochs=2):
    model = make(name)
    model.fit(inputs(name), np.arange(20) % 10, epochs=epochs, batch_size=10, verbose=0)
    return model


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("how", ["a file", "the model"])
def test_a_checkpoint_goes_out_as_a_file_of_keras_on_each_backend(tmp_path, suffix, how):
    """An export is read by Keras alone: weights and the state of the optimizer to the bit."""
    model = trained()
    holdfast.save(tmp_path / "saved", {"model": model, "optimizer": model.optimizer})
    like = make("adam", seed=8)
    if how == "a file":
        like.save(tmp_path / "like.keras")
        like = tmp_path / "like.keras"
    target = tmp_path / f"out{suffix}"
    export_file(tmp_path / "saved", target, like=like)
    if suffix == ".keras":
        other = keras.models.load_model(target)
    else:
        other = make("adam", seed=9)
        other.optimizer.build(other.trainable_variables)
        other.load_weights(target)
    for ours, theirs in (
        (model.weights, other.weights),
        (model.optimizer.variables, other.optimizer.variables),
    ):
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(number(one), number(two))
    assert [entry for entry in os.listdir(tmp_path) if entry.startswith(".")] == []


def test_an_import_goes_out_again_without_a_model(tmp_path):
    """What came in as .weights.h5 has the places of its arrays as names, and goes out as it was."""
    model = trained()
    model.save_weights(tmp_path / "in.weights.h5")
    import_file(tmp_path / "in.weights.h5", tmp_path / "run")
    export_file(tmp_path / "run", tmp_path / "out.weights.h5")
    other = make("adam", seed=9)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "out.weights.h5")
    for ours, theirs in (
        (model.weights, other.weights),
        (model.optimizer.variables, other.optimizer.variables),
    ):
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(number(one), number(two))


def test_an_export_that_cannot_be_is_refused(tmp_path):
    """Without a model to say what lies where, with one that does not fit, or over a file, nothing is written."""
    model = trained()
    holdfast.save(tmp_path / "saved", {"model": model, "optimizer": model.optimizer})
    with pytest.raises(holdfast.UsageError, match="--like"):
        export_file(tmp_path / "saved", tmp_path / "out.keras")
    with pytest.raises(holdfast.MismatchError):
        export_file(tmp_path / "saved", tmp_path / "out.keras", like=make("recurrent"))
    (tmp_path / "none.keras").write_bytes(b"nothing")
    with pytest.raises(holdfast.UsageError, match="Keras can build"):
        export_file(tmp_path / "saved", tmp_path / "out.keras", like=tmp_path / "none.keras")
    assert sorted(os.listdir(tmp_path)) == ["none.keras", "saved"]
    with pytest.raises(holdfast.UsageError, match="exists already"):
        export_file(tmp_path / "saved", tmp_path / "none.keras", like=model)


@pytest.mark.parametrize("file", ["adam/tf/cp-0002.ckpt", "adam/weights.h5", "adam/new.weights.h5"])
@pytest.mark.parametrize("norm", [True, False], ids=["other shapes", "other layers"])
def test_what_does_not_fit_changes_nothing(tmp_path, file, norm):
    """A model of other shapes or other layers is refused with both, and stays as it was."""
    inner = [keras.layers.BatchNormalization()] if norm else []
    wide = keras.Sequential(
        [keras.layers.Input((64,)), keras.layers.Dense(7), *inner, keras.layers.Dense(10)]
    )
    before = [number(weight) for weight in wide.weights]
    with pytest.raises(holdfast.MismatchError):
        load_weights(wide, OLD / file)
    found = import_file(OLD / file, tmp_path / "run")
    with pytest.raises(holdfast.MismatchError):
        found.restore({"model": wide})
    for weight, value in zip(wide.weights, before, strict=True):
        np.testing.assert_array_equal(number(weight), value)


def test_an_optimizer_of_another_kind_begins_anew(caplog):
    """Where the optimizer's state does not fit, the weights are loaded, and it is said that it begins anew."""
    import logging

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("holdfast").addHandler(handler)
    try:
        model = make("adam")
        model.compile(keras.optimizers.SGD(0.1), "mse")
        load_weights(model, OLD / "adam/tf/cp-0002.ckpt")
    finally:
        logging.getLogger("holdfast").removeHandler(handler)
    assert any("begins anew" in text for text in said)
    assert int(model.optimizer.iterations) == 0
    for index, value in enumerate(model.get_weights()):
        np.testing.assert_array_equal(value, np.load(OLD / "adam/truth.npz")[f"weight/{index}"])


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5"])
def test_files_of_keras_3_come_back_on_each_backend(tmp_path, suffix):
    """What Keras 3 itself saved is imported and loaded to the bit, with the state of its optimizer."""
    x, y = inputs("adam"), np.arange(20) % 10
    model = make("adam")
    model.fit(x, y, epochs=2, batch_size=10, verbose=0)
    file = tmp_path / f"saved{suffix}"
    model.save_weights(file) if suffix == ".weights.h5" else model.save(file)
    found = import_file(file, tmp_path / "run")
    assert found.progress.step == 4
    for load in (lambda other: found.restore({"model": other, "optimizer": other.optimizer}),
                 lambda other: load_weights(other, file)):  # fmt: skip
        other = make("adam", seed=9)
        load(other)
        pairs = [(model.weights, other.weights), (model.optimizer.variables, other.optimizer.variables)]
        for ours, theirs in pairs:
            for one, two in zip(ours, theirs, strict=True):
                if suffix != ".h5" or "learning_rate" not in one.path:
                    np.testing.assert_array_equal(number(one), number(two))


def test_bfloat16_comes_back(tmp_path):
    """Weights of 16 bits, which HDF5 has no type for, come in as what they are."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, dtype="bfloat16")])
    model.save_weights(tmp_path / "x.weights.h5")
    found = import_file(tmp_path / "x.weights.h5", tmp_path / "run")
    other = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, dtype="bfloat16")])
    found.restore({"model": other})
    np.testing.assert_array_equal(
        number(other.weights[0]).view(np.uint16), number(model.weights[0]).view(np.uint16)
    )


# -- TensorFlow as the referee ---------------------------------------------------------------------------


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(("tf", "manager"))])
def test_the_reader_reads_what_tensorflow_itself_reads(file):
    """Every array of a checkpoint is, to the bit, what TensorFlow's own reader gives."""
    compare(tensor_bundle.newest(str(OLD / file)))


def test_every_dtype_and_size_is_read_as_tensorflow_itself_reads_it(tmp_path):
    """So are arrays of every dtype, empty ones, single numbers, and one whose checksum takes all lanes."""
    import tensorflow as tf

    kinds = [
        *("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128"),
    ]
    rng = np.random.default_rng(0)
    held = {
        f"{kind}_{n}": tf.Variable(tf.cast(rng.integers(0, 2, shape), kind))
        for kind in kinds
        for n, shape in enumerate([(), (3,), (0, 2), (2, 3, 4)])
    }
    held["large"] = tf.Variable(rng.random((700, 701)).astype("float32"))
    held["a.b"] = tf.Variable(1)
    checkpoint = tf.train.Checkpoint(**{key: value for key, value in held.items() if key != "a.b"})
    prefix = checkpoint.save(str(tmp_path / "all"))
    assert len(compare(prefix)) == len(held) - 1 + 1  # and the counter of saves


def compare(prefix):
    import tensorflow as tf

    reader = tf.train.load_checkpoint(prefix)
    found = tensor_bundle.read(prefix)
    assert set(found) == set(reader.get_variable_to_shape_map()) - {tensor_bundle.GRAPH}
    for name, array in found.items():
        theirs = reader.get_tensor(name)
        assert array.shape == theirs.shape
        assert array.open().tobytes() == theirs.tobytes(), name
    return found


def test_a_training_begun_with_a_manager_of_tensorflow_itself_goes_on(tmp_path):
    """A model of Keras 3 that tf.train.CheckpointManager saved comes in under the names of today's TensorFlow."""
    import tensorflow as tf

    model = make("adam")
    model.fit(inputs("adam"), np.arange(20) % 10, epochs=1, batch_size=10, verbose=0)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, epoch=tf.Variable(1))
    tf.train.CheckpointManager(checkpoint, str(tmp_path / "tf"), max_to_keep=2).save()
    other = make("adam", seed=9)
    found = import_file(tmp_path / "tf", tmp_path / "run")
    assert found.progress.epoch == 1
    found.restore({"model": other, "optimizer": other.optimizer})
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(number(one), number(two))
    for one, two in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(number(one), number(two))


def test_a_whole_folder_can_be_moved(tmp_path):
    """A folder of TensorFlow's checkpoints is found by its file `checkpoint` wherever it was moved."""
    shutil.copytree(OLD / "adam" / "tf", tmp_path / "moved")
    (tmp_path / "moved" / "checkpoint").write_text('model_checkpoint_path: "/gone/elsewhere/cp-0002.ckpt"\n')
    assert tensor_bundle.newest(str(tmp_path / "moved")) == os.path.join(tmp_path, "moved", "cp-0002.ckpt")
    model = make("adam")
    load_weights(model, tmp_path / "moved")
    check(model, "adam")
