"""What users do with `fit` that is not in the book: each is continued to the bit, or refused in words."""

import logging
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits

import holdfast
from holdfast import Every
from holdfast.keras.company import Company
from holdfast.log import logger

BACKEND = keras.backend.backend()
DIGITS = load_digits()
X = (DIGITS.data[:200] / 16).astype("float32")
Y = DIGITS.target[:200].astype("int32")


class Died(BaseException):
    """Ends a launch inside `fit`, as SIGKILL would."""


class Dies(keras.callbacks.Callback):
    """Dies after a batch of an epoch."""

    def __init__(self, at):
        super().__init__()
        self._at, self._epoch = at, None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self._epoch, batch) == self._at:
            raise Died


def make(metrics=("accuracy",)):
    model = keras.Sequential([layers.Input((64,)), layers.Dense(8), layers.Dropout(0.2), layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=list(metrics))
    return model


def launch(
    path,
    number=0,
    *,
    data=(X, Y),
    epochs=3,
    die=None,
    others=(),
    metrics=("accuracy",),
    every=None,
    **options,
):
    """One launch of a training: its weights and its history; None when it died."""
    keras.utils.set_random_seed(7 if BACKEND == "tensorflow" else 7 + number)
    run = holdfast.Run(path, every=every or Every(epochs=1))
    inner = run._training
    boundary = inner.boundary

    def waiting(**when):
        inner.need_saver().drain()  # no save is postponed because another one is being written
        boundary(**when)

    inner.boundary = waiting
    model = make(metrics)
    data = data(run) if callable(data) else data
    callbacks = [*others, holdfast.keras.Callback(run), Dies(die)]
    try:
        history = model.fit(*data, epochs=epochs, verbose=0, callbacks=callbacks, **options)
    except Died:
        return None
    finally:
        run.close()
    values = [keras.ops.convert_to_numpy(one.value).tobytes() for one in model.variables]
    return values, {key: [float(v).hex() for v in value] for key, value in history.history.items()}


def cut(run):
    return (run.batches((X, Y), batch_size=32),)


@pytest.fixture
def said(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="holdfast")
    monkeypatch.setattr(logger, "propagate", True)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


# -- run.batches where no run sees it ------------------------------------------------------------


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict", "own loop"])
def test_batches_without_the_callback_are_refused_on_each_backend(tmp_path, verb):
    """Keras' verbs refuse run.batches where no callback of the run counts them, and nothing is trained."""
    run = holdfast.Run(tmp_path / "run")
    model = make()
    batches = run.batches((X, Y), batch_size=32)
    with pytest.raises(holdfast.UsageError, match=r"callbacks=\[holdfast.keras.Callback\(run\)\]"):
        if verb == "own loop":
            run.track(model=model)
            for _ in run.epochs(1):
                model.fit(batches, verbose=0)
        else:
            getattr(model, verb)(batches, verbose=0)
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize("place", ["validation_data", "a callback"])
def test_batches_are_no_validation_data_on_each_backend(tmp_path, place):
    """The batches of a run that trains are refused as data to evaluate on: its place would move with them."""

    class Evaluates(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(batches, verbose=0)

    run = holdfast.Run(tmp_path / "run")
    batches = run.batches((X, Y), batch_size=32)
    options = {"validation_data": run.batches((X, Y), batch_size=64)} if place == "validation_data" else {}
    others = [Evaluates()] if place == "a callback" else []
    with pytest.raises(holdfast.UsageError, match="validation_data=, evaluate and predict"):
        make().fit(batches, epochs=2, verbose=0, callbacks=[holdfast.keras.Callback(run), *others], **options)
    run.close()


@pytest.mark.parametrize("name", ["y", "sample_weight", "class_weight"])
def test_what_keras_would_leave_out_is_refused(tmp_path, name):
    """Targets and weights beside run.batches are refused: Keras ignores them without a word."""
    value = {"y": Y, "sample_weight": np.ones(200), "class_weight": {3: 2.0}}[name]
    with pytest.raises(holdfast.UsageError, match=f"{name}= beside run.batches"):
        launch(tmp_path / "run", data=cut, **{name: value})


def test_two_callbacks_in_one_fit_are_refused(tmp_path):
    """Two callbacks in one list are refused before anything is trained, be they of two runs or of one."""
    one, other = holdfast.Run(tmp_path / "one"), holdfast.Run(tmp_path / "other")
    model = make()
    for pair in ((one, other), (one, one)):
        with pytest.raises(holdfast.UsageError, match="two of these callbacks"):
            model.fit(X, Y, verbose=0, callbacks=[holdfast.keras.Callback(run) for run in pair])
    assert int(model.optimizer.iterations) == 0


# -- what differs from the launch that saved ------------------------------------------------------


def test_other_metrics_begin_with_the_next_epoch_on_each_backend(tmp_path):
    """A launch may measure more or less than the one before: what is trained is the same to the bit."""
    straight, _ = launch(tmp_path / "straight")
    assert launch(tmp_path / "run", epochs=1) is not None
    top = keras.metrics.SparseTopKCategoricalAccuracy(3, name="top")
    _, history = launch(tmp_path / "run", 1, epochs=2, metrics=["accuracy", top])
    assert len(history["accuracy"]) == 2
    resumed, _ = launch(tmp_path / "run", 2, metrics=[])
    assert resumed == straight


def test_other_metrics_inside_an_epoch_name_the_way_out(tmp_path):
    """In the middle of an epoch its sums are needed; without them `fresh=['metrics']` goes on."""
    path = tmp_path / "run"
    assert launch(path, data=cut, die=(1, 4), every=Every(steps=2)) is None
    with pytest.raises(holdfast.MismatchError, match=r"fresh=\['metrics'\]"):
        launch(path, 1, data=cut, metrics=[])
    run = holdfast.Run(path, fresh=["metrics"])
    make([]).fit(*cut(run), epochs=3, verbose=0, callbacks=[holdfast.keras.Callback(run)])
    assert run.progress.epoch == 3


def test_other_data_are_noticed(tmp_path, said):
    """Fewer samples given to fit are refused with the remedy, as with run.batches; another batch size is said."""
    path = tmp_path / "run"
    launch(path, epochs=1)
    with pytest.raises(holdfast.UsageError, match=r"number of samples in the data set was 200 and is 150"):
        launch(path, epochs=2, data=(X[:150], Y[:150]))
    launch(path, epochs=2, batch_size=16)
    assert "The batch size was 32 and is 16 now" in said()
    run = holdfast.Run(path, changed=["loader"])
    make().fit(X[:150], Y[:150], epochs=3, verbose=0, callbacks=[holdfast.keras.Callback(run)])
    assert run.progress.epoch == 3


def test_an_epoch_that_is_cut_out_of_plain_data_is_said(tmp_path, said):
    """With steps_per_epoch plain data go on over the epochs, which no resume can continue: that is said."""
    launch(tmp_path / "run", epochs=1, steps_per_epoch=3, batch_size=16)
    assert "fit(steps_per_epoch=…) goes on through its data" in said()


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_cell_that_is_run_again_on_each_backend(tmp_path, epoch):
    """The cell of a notebook with Run and fit, interrupted and run again, goes on, though the learning rate has changed."""

    class Interrupts(keras.callbacks.Callback):
        def on_epoch_begin(self, number, logs=None):
            self.number = number

        def on_train_batch_end(self, batch, logs=None):
            if (self.number, batch) == (epoch, 2):
                raise KeyboardInterrupt

    def cell(*others):
        run = holdfast.Run(tmp_path / "run")
        halves = keras.callbacks.LearningRateScheduler(lambda number, rate: rate / 2)
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[halves, holdfast.keras.Callback(run), *others])
        return run

    model = make()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            cell(Interrupts())
    run = cell()
    assert run.progress.epoch == 4
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001 / 16)
    model.optimizer.learning_rate = 0.5
    with pytest.raises(holdfast.UsageError, match="learning_rate: 0.001.* when saved, 0.5 here"):
        cell()


def test_a_slow_save_is_no_save_inside_an_epoch(tmp_path, said):
    """A save at an epoch's end that waits for the one before does not warn of saves in the middle of an epoch."""

    class Postpones(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            run._training._postponed = "1 epoch" if epoch == 1 else None

    run = holdfast.Run(tmp_path / "run", every=Every(epochs=1))
    make().fit(X, Y, epochs=3, verbose=0, callbacks=[holdfast.keras.Callback(run), Postpones()])
    run.close()
    assert "can only begin an epoch anew" not in said()
    run = holdfast.Run(tmp_path / "steps", every=Every(steps=2))
    make().fit(X, Y, epochs=2, verbose=0, callbacks=[holdfast.keras.Callback(run)])
    assert said().count("can only begin an epoch anew") == 1


def test_a_backup_that_is_ahead_is_named(tmp_path):
    """Where BackupAndRestore has set another epoch than the run's, the error names it."""

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False)

    keras.utils.set_random_seed(7)
    for die in ((3, 2), None):
        run = holdfast.Run(tmp_path / "run", every=Every(epochs=2))
        callbacks = [holdfast.keras.Callback(run), backup(), Dies(die)]
        if die:
            with pytest.raises(Died):
                make().fit(X, Y, epochs=5, verbose=0, callbacks=callbacks)
        else:
            with pytest.raises(holdfast.UsageError, match="begins at epoch 3.*leave BackupAndRestore out"):
                make().fit(X, Y, epochs=5, verbose=0, callbacks=callbacks)
        run.close()


@pytest.mark.parametrize("kind", ["loader", "list"])
def test_a_loader_of_torch_is_continued_inside_an_epoch_on_each_backend(tmp_path, kind):
    """A shuffled torch DataLoader, or a list of batches, through run.batches goes on at its batch."""
    torch = pytest.importorskip("torch")

    def training(path, number=0, die=None):
        torch.manual_seed(number)
        tensors = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
        loader = torch.utils.data.DataLoader(tensors, batch_size=24, shuffle=True)
        data = (
            loader if kind == "loader" else [(X[at : at + 24], Y[at : at + 24]) for at in range(0, 200, 24)]
        )
        every = Every(epochs=1, steps=3)
        return launch(path, number, data=lambda run: (run.batches(data),), die=die, every=every)

    straight = training(tmp_path / "straight")
    assert training(tmp_path / "run", 0, (1, 4)) is None
    assert training(tmp_path / "run", 1, (1, 7)) is None
    assert training(tmp_path / "run", 2) == straight


class Shuffles(keras.utils.PyDataset):
    """Shuffles itself between two epochs, from NumPy's stream, and has batches fetched ahead by threads."""

    def __init__(self, **options):
        super().__init__(**options)
        self.order = np.random.permutation(len(X))

    @property
    def num_batches(self):
        return 8

    def __getitem__(self, number):
        rows = self.order[number * 25 : number * 25 + 25]
        return X[rows], Y[rows]

    def on_epoch_end(self):
        np.random.shuffle(self.order)


@pytest.mark.parametrize("place", ["x", "validation_data"])
def test_batches_that_threads_fetched_ahead_on_torch_and_jax(tmp_path, place):
    """A PyDataset with workers is continued exactly; what Keras fetched to build the model is of an order before the restore."""

    def training(path, number=0, die=None):
        if place == "x":
            return launch(path, number, data=lambda run: (Shuffles(workers=3),), die=die, epochs=4)
        keras.utils.set_random_seed(7 + number)
        return launch(path, number, die=die, epochs=4, validation_data=Shuffles())

    straight = training(tmp_path / "straight")
    assert training(tmp_path / "run", 0, (1, 3)) is None
    assert training(tmp_path / "run", 1, (2, 3)) is None
    assert training(tmp_path / "run", 2) == straight


# -- what a model holds besides variables --------------------------------------------------------


def test_what_a_wrapped_module_counts_goes_on(tmp_path):
    """The statistics of a torch module inside a Keras model are saved and restored; Keras does not list them as variables."""
    torch = pytest.importorskip("torch")

    def wrapping():
        inner = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8))
        model = keras.Sequential(
            [layers.Input((64,)), layers.TorchModuleWrapper(inner, name="net"), layers.Dense(10)]
        )
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model, inner[1]

    for epochs in (1, 3):
        run = holdfast.Run(tmp_path / "run")
        model, norm = wrapping()
        history = model.fit(
            X, Y, epochs=epochs, verbose=0, validation_data=(X, Y), callbacks=[holdfast.keras.Callback(run)]
        )
        run.close()
    assert int(norm.num_batches_tracked) == 21
    model, norm = wrapping()
    model(X[:1], training=False)  # its last layer is built by it
    run.latest.restore({"model": model})
    assert model.evaluate(X, Y, verbose=0) == history.history["val_loss"][-1]
    assert "net/1/running_mean" in run.latest.arrays().parts["model"].arrays


def test_pictures_go_on_at_their_batch(tmp_path):
    """What TensorBoard calls its steps by goes on counting; it begins anew in its own on_train_begin."""
    shown = keras.callbacks.TensorBoard(str(tmp_path), update_freq=1)
    shown._global_train_batch, shown._global_test_batch = 40, 7
    state = Company([shown]).state_dict()
    again = keras.callbacks.TensorBoard(str(tmp_path), update_freq=1)
    company = Company([again])
    company.load_state_dict(state)
    company.welcome()
    assert (again._global_train_batch, again._global_test_batch) == (40, 7)


# -- data of TensorFlow --------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_a_shuffled_validation_set_goes_on_on_each_backend(tmp_path, known):
    """A shuffled tf.data.Dataset to validate on has, after a resume, the orders that it would have had."""
    tf = pytest.importorskip("tensorflow")

    def training(path, number=0, die=None):
        keras.utils.set_random_seed(7)
        valid = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(200)
        valid = valid if known else valid.filter(lambda x, y: y < 100)

        return launch(path, number, die=die, epochs=4, validation_data=valid.batch(7), validation_freq=1)

    straight = training(tmp_path / "straight")
    assert training(tmp_path / "run", 0, (1, 2)) is None
    assert training(tmp_path / "run", 0, (2, 2)) is None
    assert training(tmp_path / "run") == straight


@pytest.mark.parametrize("through", ["run.batches", "fit"])
def test_a_data_set_that_shuffles_without_a_seed_is_said_on_each_backend(tmp_path, said, through):
    """Without TensorFlow's global seed, or a seed of its own, a shuffled data set warns; with one it does not."""
    tf = pytest.importorskip("tensorflow")
    for number, (overall, own) in enumerate(((None, None), (None, 3), (7, None))):
        tf.random.set_seed(overall)
        dataset = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(200, seed=own).batch(32)
        run = holdfast.Run(tmp_path / str(number))
        data = run.batches(dataset) if through == "run.batches" else dataset
        make().fit(data, epochs=2, verbose=0, callbacks=[holdfast.keras.Callback(run)])
        run.close()
        assert said().count("shuffles without a seed") == 1


# -- what Keras does, and the callback relies on ---------------------------------------------------


def test_boundaries_are_called_in_the_main_thread_on_each_backend():
    """A lone callback sees the end of a batch in another thread (with TensorFlow in this one), and its begin in none but this."""
    found = {"begin": set(), "end": set()}

    class Notes(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            found["begin"].add(threading.current_thread() is threading.main_thread())

        def on_train_batch_end(self, batch, logs=None):
            found["end"].add(threading.current_thread() is threading.main_thread())

    make().fit(X, Y, epochs=2, verbose=0, callbacks=Notes())
    assert found == {"begin": {True}, "end": {BACKEND == "tensorflow"}}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others shuffle by themselves")
@pytest.mark.parametrize("seed", [7, None])
def test_a_seed_of_tensorflow_gives_all_epochs_of_arrays_one_order(seed):
    """With a global seed TensorFlow gives arrays the same order in each epoch, and without one another in each."""
    import tensorflow as tf

    orders = []

    class Notes(keras.Sequential):
        def train_step(self, data):
            orders[-1] += data[1].numpy().tolist()
            return super().train_step(data)

    model = Notes([layers.Input((64,)), layers.Dense(10)])
    tf.random.set_seed(seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    begins = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: orders.append([]))
    model.fit(X, Y, epochs=3, batch_size=64, verbose=0, callbacks=[begins])
    assert len({tuple(order) for order in orders}) == (1 if seed else 3)
    assert orders[0] != Y.tolist()


# -- what is not installed -----------------------------------------------------------------------

HIDDEN = """
import importlib.machinery, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name in {names!r} else None
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Hidden())
"""


def python(code, *names):
    code = HIDDEN.format(names=names) + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_without_keras_the_error_says_what_to_install():
    """Without Keras, or without its backend, the names of holdfast.keras raise an ImportError that says what to install."""
    code = """
import holdfast.keras
for act in ("from holdfast.keras import Callback", "holdfast.keras.load_weights"):
    try:
        exec(act)
    except ImportError as error:
        print(isinstance(error, holdfast.UsageError), error.name, error)
"""
    lines = python(code, "keras").splitlines()
    assert len(lines) == 2
    assert all(line.startswith("True keras keras is not installed") for line in lines), lines
    assert all("pip install keras and one of its backends" in line for line in lines)
    assert f"True {BACKEND} {BACKEND} is not installed" in python(code, BACKEND)


def test_another_backend_needs_no_tensorflow(tmp_path):
    """On a machine without TensorFlow a training with another backend is saved, resumed, exported and loaded."""
    if BACKEND == "tensorflow":
        pytest.skip("this backend is TensorFlow")
    code = f"""
import keras, holdfast, holdfast.keras, numpy as np
x, y = np.ones((40, 4), "float32"), np.zeros(40, "int32")
for epochs in (1, 2):
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dropout(0.1), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    run = holdfast.Run({str(tmp_path / "run")!r}, every=holdfast.Every(epochs=1, steps=2))
    data = run.batches((x, y), batch_size=8)
    model.fit(data, epochs=epochs, verbose=0, validation_data=(x, y), callbacks=[holdfast.keras.Callback(run, entire=True)])
    run.close()
holdfast.keras.load_model({str(tmp_path / "run")!r})
checkpoint = holdfast.keras.ModelCheckpoint({str(tmp_path / "w")!r} + "/{{epoch}}.ckpt", save_weights_only=True)
model.fit(x, y, verbose=0, callbacks=[checkpoint])
holdfast.keras.load_weights(model, holdfast.keras.latest_checkpoint({str(tmp_path / "w")!r}))
import sys
print([name for name in sys.modules if name.partition(".")[0] == "tensorflow"])
"""
    assert python(code, "tensorflow").strip() == "[]"
