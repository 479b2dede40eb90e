"""`holdfast.keras.ModelCheckpoint` beside Keras' own, and what TensorFlow's scripts do with what it leaves."""

import contextlib
import errno
import io
import itertools
import json
import logging
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import holdfast
from holdfast import NotFoundError, StorageError, UsageError, files
from holdfast.exchange import export_file, import_file
from holdfast.keras import ModelCheckpoint, latest_checkpoint, load_weights, save_weights, saves

KERAS = keras.callbacks.ModelCheckpoint


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.data[:400].astype("float32") / 16, data.target[:400]


def make(units=8, compiled=True):
    model = keras.Sequential(
        [
            keras.layers.Input((64,)),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(10),
        ]
    )
    if compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
    return model


def values(model):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]


def state(model):
    own = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in own if "seed" not in variable.name]


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def fit(model, digits, epochs, **options):
    x, y = digits
    return model.fit(
        x, y, batch_size=50, epochs=epochs, verbose=0, validation_data=(x[:50], y[:50]), **options
    )


# -- side by side ------------------------------------------------------------------------------------


class Fake:
    """A model as callbacks see it, whose saves are a few bytes, so that very many can be tried."""

    built = True

    def __init__(self, metrics):
        self.metrics = metrics
        self.number = 0

    def save_weights(self, path, overwrite=True):
        with h5py.File(path, "w") as file:
            file["number"] = self.number

    def save(self, path, overwrite=True):
        self.save_weights(path)


def tell(callback, model, script, look=None):
    """Plays a training to a callback; what it printed, warned of and left behind, epoch by epoch."""
    out, seen = io.StringIO(), []
    look = look or left
    callback.set_model(model)
    with contextlib.redirect_stdout(out), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback.on_train_begin({})
        for epoch, (batches, logs) in script:
            callback.on_epoch_begin(epoch, {})
            for batch, of_batch in batches:
                model.number += 1
                callback.on_train_batch_end(batch, of_batch)
                seen.append(look(callback.filepath))
            callback.on_epoch_end(epoch, logs)
            seen.append(look(callback.filepath))
        callback.on_train_end({})
    return out.getvalue(), [str(warning.message) for warning in caught], seen, callback.best


def left(filepath):
    """name → what it holds, of all files in the folder of a filepath."""
    folder = os.path.dirname(filepath)
    found = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        with h5py.File(os.path.join(folder, name), "r") as file:
            found[name] = int(file["number"][()])
    return found


def scripts(rng, number):
    """Made-up trainings: epochs with batches, each with what Keras would log."""
    for _ in range(number):
        first = rng.choice([0, 0, 3])
        rows = []
        for epoch in range(first, first + rng.choice([1, 4, 7])):
            step = rng.choice([1, 1, 2])
            batches = [
                (batch, {"loss": rng.random(), "accuracy": rng.random()})
                for batch in range(step - 1, rng.choice([3, 5]), step)
            ]
            logs = {"loss": rng.choice([1.0, 0.5, rng.random()]), "accuracy": rng.choice([0.5, rng.random()])}
            if rng.random() < 0.9:
                logs["val_loss"] = rng.choice([0.25, rng.random(), 0.3, float("inf")])
                logs["val_accuracy"] = rng.random()
            rows.append((epoch, (batches, logs)))
        yield rows


OPTIONS = {
    "monitor": ["val_loss", "loss", "val_accuracy", "accuracy"],
    "mode": ["auto", "min", "max", "nonsense"],
    "save_best_only": [False, True],
    "verbose": [0, 1],
    "save_freq": ["epoch", 1, 2, 3, 7],
    "initial_value_threshold": [None, 0.4, -math.inf, math.inf],
    "save_weights_only": [False, True],
}
NAMES = ["cp", "{epoch:02d}", "e{epoch:03d}-{loss:.2f}", "{epoch}-{batch}", "{epoch:02d}-{val_loss:.2f}"]


def combinations(rng, number):
    everything = list(itertools.product(*OPTIONS.values()))
    for chosen in rng.sample(everything, number):
        options = dict(zip(OPTIONS, chosen, strict=True))
        suffix = ".weights.h5" if options["save_weights_only"] else ".h5"
        yield options, rng.choice(NAMES) + suffix


def outcome(kind, folder, name, options, script, model):
    """Everything that can be seen of a training with a callback, paths left out; or its refusal."""
    try:
        callback = kind(os.path.join(folder, name), **options)
        said, warned, seen, best = tell(callback, model, script)
    except (ValueError, KeyError, TypeError) as error:
        return error
    warned = [re.sub(r"ModelCheckpoint mode '?\w+'? is unknown.*", "unknown mode", text) for text in warned]
    return said.replace(str(folder), "DIR"), warned, seen, best


def test_decisions_names_and_texts_are_those_of_keras(tmp_path):
    """Over many options and trainings both save at the same moments, under the same names, and say the same."""
    rng = random.Random(7)
    model = make()
    fit(model, (np.zeros((50, 64), "float32"), np.zeros(50)), 1)  # its metrics are there from now on
    counts = {"same": 0, "refused": 0, "more": 0, "improved": 0}
    for number, ((options, name), script) in enumerate(
        zip(combinations(rng, 320), scripts(rng, 320), strict=True)
    ):
        theirs, ours = (
            outcome(kind, tmp_path / f"{number}-{who}", name, options, script, Fake(model.metrics))
            for who, kind in (("keras", KERAS), ("holdfast", ModelCheckpoint))
        )
        if isinstance(theirs, TypeError):
            counts["more"] += 1  # Keras compares with nothing at the second batch of its first epoch
            continue
        if isinstance(theirs, Exception):
            assert isinstance(ours, UsageError), (options, name, ours)
            counts["refused"] += 1
            continue
        assert ours == theirs, (options, name, script)
        counts["same"] += 1
        counts["improved"] += "improved" in theirs[0]
    assert counts["same"] > 150
    assert counts["improved"] > 8
    assert counts["refused"] > 5
    assert counts["more"] > 5


@pytest.mark.parametrize("form", [".weights.h5", ".keras", ".h5"])
def test_in_one_fit_both_leave_the_same_files_on_each_backend(tmp_path, digits, form):
    """In a real `fit` both callbacks leave files of the same names, and Keras loads the same model from both."""
    weights_only = form == ".weights.h5"
    options = {"monitor": "val_accuracy", "save_best_only": True, "save_weights_only": weights_only}
    name = "{epoch:02d}-{val_accuracy:.3f}" + form
    model = make()
    both = [KERAS(tmp_path / "keras" / name, **options), ModelCheckpoint(tmp_path / "ours" / name, **options)]
    fit(model, digits, 3, callbacks=both)
    names = sorted(os.listdir(tmp_path / "keras"))
    assert sorted(os.listdir(tmp_path / "ours")) == names
    assert names
    found = []
    for place in ("keras", "ours"):
        if weights_only:
            other = make()
            other.optimizer.build(other.trainable_variables)
            other.load_weights(tmp_path / place / names[-1])
        else:
            other = keras.models.load_model(tmp_path / place / names[-1])
        found.append(state(other))
    assert_same(*found)


@pytest.mark.parametrize(("first", "period"), [(0, 5), (0, 1), (3, 4), (12, 5)])
def test_a_period_counts_epochs_from_where_fit_began(tmp_path, first, period):
    """With period=n the n-th epoch of a `fit` is the first that is saved, and every n-th after it."""
    callback = ModelCheckpoint(tmp_path / "{epoch:d}.weights.h5", save_weights_only=True, period=period)
    script = [(epoch, ([], {"loss": 1.0})) for epoch in range(first, first + 20)]
    tell(callback, Fake([]), script)
    expected = range(first + period, first + 21, period)
    assert sorted(os.listdir(tmp_path)) == sorted(f"{epoch}.weights.h5" for epoch in expected)


REFUSED = [
    ({"filepath": "a.ckpt"}, r"a\.ckpt\.keras"),
    ({"filepath": "a"}, "save_weights_only=True"),
    ({"filepath": "a.keras", "save_weights_only": True}, r"a\.weights\.h5"),
    ({"filepath": "a.h5", "save_weights_only": True}, r"a\.weights\.h5"),
    ({"filepath": "gs://a/b.keras"}, "no path of a file system"),
    ({"filepath": "a.keras", "save_freq": "batch"}, "save_freq='batch'"),
    ({"filepath": "a.keras", "period": 0}, "period=0"),
    ({"filepath": "a.keras", "period": 2.0}, "period=2.0"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_cannot_be_is_refused_at_once(options, text):
    """A name or an option that no save could follow is refused when the callback is made, with one that can."""
    with pytest.raises(UsageError, match=text):
        ModelCheckpoint(**options)


def test_a_metric_that_is_not_there_names_those_that_are(tmp_path):
    """A name with a metric that Keras did not log is an error that lists what it did."""
    callback = ModelCheckpoint(tmp_path / "{val_f1:.2f}.keras")
    with pytest.raises(UsageError, match="'val_f1'.*loss"):
        tell(callback, Fake([]), [(0, ([], {"loss": 1.0}))])


def test_a_direction_that_nobody_knows_is_asked_for(tmp_path):
    """With mode="auto" a quantity that is neither a loss nor a known metric asks for the mode."""
    callback = ModelCheckpoint(tmp_path / "a.keras", monitor="val_f1", save_best_only=True)
    with pytest.raises(UsageError, match="mode='max'"):
        tell(callback, Fake([]), [(0, ([], {"val_f1": 1.0})), (1, ([], {"val_f1": 2.0}))])


def test_a_nan_is_never_the_best(tmp_path):
    """After a first value that is NaN the next number is saved; with Keras' own nothing ever is again."""
    script = [(epoch, ([], {"val_loss": value})) for epoch, value in enumerate([math.nan, 0.5, 0.6])]
    left_behind = []
    for kind, place in ((KERAS, "keras"), (ModelCheckpoint, "ours")):
        callback = kind(tmp_path / place / "{epoch}.weights.h5", save_best_only=True, save_weights_only=True)
        tell(callback, Fake([]), script)
        left_behind.append(sorted(os.listdir(tmp_path / place)))
    assert left_behind == [["1.weights.h5"], ["1.weights.h5", "2.weights.h5"]]


# -- the best, across restarts -------------------------------------------------------------------------


def best_of(path, script, model=None, **options):
    """What a new process would do with a file name: which epochs it saves."""
    callback = ModelCheckpoint(path, save_best_only=True, verbose=1, **options)
    said, *_ = tell(callback, model or Fake([]), script, look=os.path.exists)
    return [int(number) for number in re.findall(r"Epoch (\d+): finished saving", said)], callback


def losses(*values):
    return [(epoch, ([], {"val_loss": value})) for epoch, value in enumerate(values)]


@pytest.mark.parametrize("name", ["best", "{epoch:02d}-{val_loss:.2f}"])
@pytest.mark.parametrize("form", [".weights.h5", ".h5", ".keras", ".ckpt"])
def test_the_best_so_far_outlives_the_process(tmp_path, form, name):
    """A restarted script saves only what is better than what an earlier process left under its names."""
    options = {"save_weights_only": form in (".weights.h5", ".ckpt")}
    path = tmp_path / f"{name}{form}"
    model = make() if form in (".keras", ".ckpt") else None
    assert best_of(path, losses(0.5, 0.4, 0.45), model, **options)[0] == [1, 2]
    saved, callback = best_of(path, losses(0.45, 0.41, 0.39, 0.395), model, **options)
    assert saved == [3]
    assert callback.best == 0.39
    if name == "best":
        os.rename(tmp_path / f"best{form}", tmp_path / f"moved{form}")  # gone: everything begins anew
        assert best_of(path, losses(0.9), model, **options)[0] == [1]


def test_the_better_of_the_threshold_and_what_is_there_counts(tmp_path):
    """`initial_value_threshold` stays a bar of its own beside the best that was saved."""
    path = tmp_path / "best.h5"
    best_of(path, losses(0.5))
    assert best_of(path, losses(0.45, 0.3), initial_value_threshold=0.4)[0] == [2]
    assert best_of(path, losses(0.35, 0.2), initial_value_threshold=0.9)[0] == [2]


def test_a_best_of_another_quantity_is_none(tmp_path):
    """What was the best by another metric, or in the other direction, is no bar."""
    path = tmp_path / "best.h5"
    best_of(path, losses(0.1))
    script = [(0, ([], {"val_loss": 0.5, "loss": 0.9}))]
    assert best_of(path, script, monitor="loss")[0] == [1]
    best_of(path, losses(0.1))
    assert best_of(path, losses(0.5), mode="max")[0] == [1]


def test_a_file_that_says_nothing_is_replaced_with_a_warning(tmp_path):
    """A best that Keras' own callback left has no known value: the first epoch replaces it, and that is said."""
    path = tmp_path / "best.h5"
    tell(KERAS(path, save_best_only=True), Fake([]), losses(0.1))
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("holdfast").addHandler(handler)
    try:
        assert best_of(path, losses(0.5))[0] == [1]
    finally:
        logging.getLogger("holdfast").removeHandler(handler)
    assert any("does not say" in text and "initial_value_threshold" in text for text in said)


# -- as a script for TensorFlow uses it ------------------------------------------------------------------


def test_the_guide_s_first_script_on_each_backend(tmp_path, digits):
    """Weights are saved each epoch under one name, and a new, untrained model gets them all from there."""
    x, y = digits
    path = os.path.join(tmp_path, "training_1", "cp.ckpt")
    model = make()
    fit(model, digits, 3, callbacks=[ModelCheckpoint(filepath=path, save_weights_only=True, verbose=1)])
    other = make()
    before = other.evaluate(x, y, verbose=0)
    assert load_weights(other, path).expect_partial().path == path
    assert other.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0) != before
    assert_same(state(other), state(model))
    found = holdfast.open(path)
    assert (found.progress.epoch, found.progress.step) == (3, 24)
    assert set(found.metrics) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert found.verify() == []


@pytest.mark.parametrize(
    "name", ["{epoch:d}.ckpt", "cp-{epoch:04d}.ckpt", "{epoch}.weights.h5", "{epoch}.keras"]
)
def test_the_guide_s_second_script_on_each_backend(tmp_path, digits, name, monkeypatch):
    """Every fifth epoch under its number, an untrained one before, the latest found and continued from."""
    monkeypatch.chdir(tmp_path)
    path = f"training_2/{name}"
    weights_only = not name.endswith(".keras")
    saving = ModelCheckpoint(filepath=path, save_weights_only=weights_only, period=5)
    model = make()
    if weights_only:
        save_weights(model, path.format(epoch=0))
        assert latest_checkpoint("training_2") == path.format(epoch=0)
    fit(model, digits, 10, callbacks=[saving])
    latest = latest_checkpoint("training_2")
    assert latest == path.format(epoch=10)  # though "5.ckpt" is the last by name
    other = make()
    load_weights(other, latest)
    assert_same(state(other), state(model))
    fit(other, digits, 15, initial_epoch=10, callbacks=[saving])
    assert latest_checkpoint("training_2") == path.format(epoch=15)
    expected = {path.format(epoch=number) for number in ([0] if weights_only else []) + [5, 10, 15]}
    assert {f"training_2/{entry}" for entry in os.listdir("training_2")} == expected


def test_the_latest_is_by_count_and_not_by_clock(tmp_path):
    """What was saved last is the latest, whatever the clock says, and after a copy that lost all times."""
    model = make(compiled=False)
    for name in ("b.ckpt", "a.weights.h5", "c.ckpt"):
        save_weights(model, tmp_path / name)
    for entry in os.listdir(tmp_path):
        for place in (tmp_path / entry, tmp_path / entry / "checkpoint.json"):
            with contextlib.suppress(OSError):
                os.utime(place, (2e9, 2e9) if entry.startswith("b") else (1e9, 1e9))
    assert latest_checkpoint(tmp_path) == str(tmp_path / "c.ckpt")
    (tmp_path / "c.ckpt" / "checkpoint.json").write_text("{")  # half a checkpoint is none
    assert latest_checkpoint(tmp_path) == str(tmp_path / "a.weights.h5")
    assert latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "empty").mkdir()
    assert latest_checkpoint(tmp_path / "empty") is None


def test_weights_that_are_not_there_name_those_that_are(tmp_path):
    """A wrong name is an error with the nearest one."""
    model = make()
    save_weights(model, tmp_path / "cp-0005.ckpt")
    with pytest.raises(NotFoundError, match=r"did you mean 'cp-0005\.ckpt'"):
        load_weights(model, tmp_path / "cp-0006.ckpt")


def test_weights_of_another_model_change_nothing(tmp_path):
    """A checkpoint of a model of other shapes is refused, and every weight stays as it was."""
    save_weights(make(units=8), tmp_path / "cp.ckpt")
    other = make(units=9)
    before = values(other)
    with pytest.raises(holdfast.MismatchError):
        load_weights(other, tmp_path / "cp.ckpt")
    assert_same(values(other), before)


def test_a_model_without_weights_is_refused(tmp_path):
    """A model that is not built has nothing to save and nothing to load into, and both say how it gets some."""
    model = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(UsageError, match="no weights yet"):
        save_weights(model, tmp_path / "cp.ckpt")
    with pytest.raises(UsageError, match=r"keras\.Input"):
        load_weights(model, tmp_path / "cp.ckpt")
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_kept_where_that_was_asked(tmp_path):
    """`overwrite=False` leaves an existing save alone."""
    model = make()
    for name in ("cp.ckpt", "cp.weights.h5"):
        save_weights(model, tmp_path / name)
        with pytest.raises(UsageError, match="exists already"):
            save_weights(model, tmp_path / name, overwrite=False)


def test_load_weights_on_restart(tmp_path, digits):
    """`load_weights_on_restart=True` takes the newest of the callback's own names before the training begins."""
    path = tmp_path / "{epoch}.ckpt"
    model = make()
    fit(model, digits, 2, callbacks=[ModelCheckpoint(path, save_weights_only=True)])
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(int(self.model.optimizer.iterations))

    restart = ModelCheckpoint(path, save_weights_only=True, load_weights_on_restart=True)
    fit(make(), digits, 3, initial_epoch=2, callbacks=[restart, Look()])
    assert seen == [16]


# -- whole or not there ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cp.weights.h5", "cp.keras", "cp.h5", "cp.ckpt"])
def test_a_refused_write_leaves_the_old_one(tmp_path, name, monkeypatch):
    """When the storage fails at any call of a save, the error is one of storage and the old file is as it was."""
    path, weights_only = tmp_path / name, name.endswith((".weights.h5", ".ckpt"))
    form = saves.form_of(str(path), weights_only=weights_only)
    model = make(units=4)
    saves.write(model, str(path), form, saves.Record(1))
    before = digest(path)
    number = 0
    while True:
        with monkeypatch.context() as patch:
            counted = Failing(number)
            patch.setattr(files, "system", counted)
            error = failure(lambda: saves.write(model, str(path), form, saves.Record(2)))
        if error is None:
            assert counted.calls <= number
            break
        assert error.errno == errno.EIO
        if saves.read_record(str(path)).sequence == 1:
            assert digest(path) == before
        load_weights(make(units=4), path)
        number += 1
    assert number > 3
    assert saves.read_record(str(path)).sequence == 2
    # What a failure could not take away is hidden, and goes with the next save of another process.
    assert [entry for entry in os.listdir(tmp_path) if not entry.startswith(".")] == [name]


def failure(act):
    try:
        act()
    except StorageError as error:
        return error
    return None


@pytest.mark.parametrize("name", ["cp.weights.h5", "cp.keras", "cp.h5"])
def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path, name, monkeypatch):
    """What Keras wrote is made durable, then renamed, then the name is made durable: in this order, at each save."""
    saves.write(make(), str(tmp_path / name), *_form(name), saves.Record(1))
    calls = []

    class Noting(files.System):
        def fsync(self, fd):
            calls.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
            super().fsync(fd)

        def rename(self, source, target):
            calls.append(("rename", os.path.basename(target)))
            super().rename(source, target)

    monkeypatch.setattr(files, "system", Noting())
    saves.write(make(), str(tmp_path / name), *_form(name), saves.Record(2))
    assert calls == [("sync", name), ("rename", name), ("sync", tmp_path.name)]


def _form(name):
    return [saves.form_of(name, weights_only=name.endswith(".weights.h5"))]


class Failing(files.System):
    """Fails at the n-th call that changes the disk, and at no other."""

    def __init__(self, number):
        self.number, self.calls = number, 0

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name.startswith("_") or name in ("number", "calls") or not callable(found):
            return found

        def call(*arguments):
            self.calls += 1
            if self.calls == self.number + 1:
                raise OSError(errno.EIO, "Input/output error")
            return found(*arguments)

        return call


def digest(path):
    entries = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(entry), entry.read_bytes()) for entry in entries if entry.is_file()]


def test_a_failing_writer_of_keras_leaves_the_old_one(tmp_path):
    """When HDF5 itself reports a full disk, in its own words, that is an error of storage with its number."""
    save_weights(make(), tmp_path / "cp.weights.h5")
    before = digest(tmp_path / "cp.weights.h5")
    model = Fake([])

    def fail(path, overwrite=True):
        with open(path, "wb") as file:
            file.write(b"half")
        raise RuntimeError(
            "Can't decrement id ref count (file write failed: errno = 28, error message = 'No space')"
        )

    model.save_weights = fail
    with pytest.raises(StorageError) as caught:
        saves.write(model, str(tmp_path / "cp.weights.h5"), saves.WEIGHTS, saves.Record(2))
    assert caught.value.errno == errno.ENOSPC
    assert digest(tmp_path / "cp.weights.h5") == before
    assert os.listdir(tmp_path) == ["cp.weights.h5"]


def test_a_folder_of_that_name_is_left_alone(tmp_path):
    """A folder, or a file, that is no save of that form is refused and stays."""
    (tmp_path / "cp.keras").mkdir()
    with pytest.raises(StorageError, match="directory"):
        saves.write(make(), str(tmp_path / "cp.keras"), saves.ARCHIVE, saves.Record(1))
    (tmp_path / "cp.ckpt").write_text("mine")
    with pytest.raises(UsageError, match="not a checkpoint"):
        save_weights(make(), tmp_path / "cp.ckpt")
    assert (tmp_path / "cp.ckpt").read_text() == "mine"


def test_a_link_stays_a_link(tmp_path):
    """What a link points to is what is replaced."""
    (tmp_path / "far").mkdir()
    (tmp_path / "cp.weights.h5").symlink_to(tmp_path / "far" / "real.weights.h5")
    model = make()
    save_weights(model, tmp_path / "cp.weights.h5")
    assert (tmp_path / "cp.weights.h5").is_symlink()
    other = make()
    load_weights(other, tmp_path / "far" / "real.weights.h5")
    assert_same(state(other), state(model))


KILLED = """
import sys, itertools
import numpy as np, keras
from holdfast.keras import saves
model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(300), keras.layers.Dense(300)])
model.compile("sgd", "mse")
forms = {"cp.weights.h5": saves.WEIGHTS, "cp.keras": saves.ARCHIVE, "cp.ckpt": saves.CHECKPOINT, "cp.h5": saves.HDF5}
for number in itertools.count(1):
    for weight in model.weights:
        weight.assign(np.full(weight.shape, number, "float32"))
    for name, form in forms.items():
        saves.write(model, f"{sys.argv[1]}/{name}", form, saves.Record(number))
    print(number, flush=True)
"""


def test_a_kill_leaves_the_old_one_or_the_new_one(tmp_path, tried):
    """Killed at a random moment of saving over and over, each name holds one whole save, the last or the one before."""
    rng = random.Random(os.getpid())
    names = ("cp.weights.h5", "cp.keras", "cp.ckpt", "cp.h5")
    for _ in range(3):
        started = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        done = 0
        for _ in range(rng.randrange(1, 4)):
            done = int(started.stdout.readline())
        time.sleep(rng.random() / 5)
        os.kill(started.pid, signal.SIGKILL)
        rest = started.stdout.read().split()
        started.wait()
        done = int(rest[-1]) if rest else done
        model = keras.Sequential(
            [keras.layers.Input((64,)), keras.layers.Dense(300), keras.layers.Dense(300)]
        )
        for name in names:
            load_weights(model, tmp_path / name)
            numbers = {float(value) for weight in model.weights for value in np.unique(values_of(weight))}
            assert numbers in ({done}, {done + 1}), name
            assert saves.read_record(str(tmp_path / name)).sequence in numbers
            tried("kills")
    save_weights(model, tmp_path / "cp.weights.h5")
    assert not [entry for entry in os.listdir(tmp_path) if entry.startswith(".cp.weights.h5")]


def values_of(weight):
    return np.array(keras.ops.convert_to_numpy(weight))


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_such_a_checkpoint_goes_out_to_keras(tmp_path, digits, suffix):
    """A checkpoint that the callback saved holds its structure, and is exported as a file of Keras' without a model."""
    model = make()
    fit(model, digits, 1, callbacks=[ModelCheckpoint(tmp_path / "cp.ckpt", save_weights_only=True)])
    export_file(tmp_path / "cp.ckpt", tmp_path / f"out{suffix}")
    if suffix == ".keras":
        other = keras.models.load_model(tmp_path / "out.keras")
    else:
        other = make()
        other.optimizer.build(other.trainable_variables)
        other.load_weights(tmp_path / "out.weights.h5")
    assert_same(state(other), state(model))


@pytest.mark.parametrize("name", ["{epoch}.weights.h5", "{epoch}.keras"])
def test_an_import_knows_the_epoch_of_such_a_save(tmp_path, digits, name):
    """A file that the callback left comes into a run with its epoch, its steps and its metrics."""
    saving = ModelCheckpoint(tmp_path / name, save_weights_only=not name.endswith(".keras"), period=2)
    fit(make(), digits, 2, callbacks=[saving])
    found = import_file(tmp_path / name.format(epoch=2), tmp_path / "run")
    assert (found.progress.epoch, found.progress.step) == (2, 16)
    assert set(found.metrics) == {"loss", "accuracy", "val_loss", "val_accuracy"}


def test_what_keras_reads_is_what_keras_wrote(tmp_path, digits):
    """What is written beside the weights hides from Keras: an attribute and a comment, and no other member."""
    model = make()
    for name, form in (("cp.weights.h5", saves.WEIGHTS), ("cp.keras", saves.ARCHIVE)):
        record = saves.Record(
            3, 2, {"loss": 0.5}, {"metric": "loss", "mode": "min", "value": 0.5, "name": "x"}
        )
        saves.write(model, str(tmp_path / name), form, record)
        assert saves.read_record(str(tmp_path / name)) == record
    model.save(tmp_path / "own.keras")
    with zipfile.ZipFile(tmp_path / "cp.keras") as ours, zipfile.ZipFile(tmp_path / "own.keras") as theirs:
        assert ours.namelist() == theirs.namelist()
        assert json.loads(ours.read("config.json")) == json.loads(theirs.read("config.json"))
    x, _ = digits
    other = keras.models.load_model(tmp_path / "cp.keras")
    np.testing.assert_array_equal(other.predict(x[:5], verbose=0), model.predict(x[:5], verbose=0))
