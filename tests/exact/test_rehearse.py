"""`holdfast rehearse` on small scripts: sound ones are bit-identical, each fault is found and named."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import holdfast
from holdfast.cli.main import main as program
from holdfast.rehearsal import points
from holdfast.rehearsal.course import rehearse
from holdfast.rehearsal.points import parse_point
from holdfast.rehearsal.trails import Trail

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# 4 epochs of 6 batches; every part of it is replaced by some test.
SCRIPT = """\
import numpy as np
import holdfast
from holdfast import Every

class Model:
    def __init__(self):
        self.w = np.zeros(4)
    def state_dict(self):
        return {"w": self.w.copy()}
    def load_state_dict(self, state):
        self.w[:] = state["w"]

run = holdfast.Run("runs/m", seed=0, every=Every(epochs=1))
model = Model()
run.track(model=model)
for epoch in run.epochs(4):
    run.state["loss"] = 0.0
    for x in run.batches(range(6)):
        model.w += np.random.rand(4) * x
        run.state["loss"] += float(model.w.sum())
    run.log(loss=run.state["loss"])
run.close()
"""

STEPS = """\
import numpy as np
import holdfast
run = holdfast.Run("runs/steps", every=holdfast.Every(steps=3))
run.state["rng"] = np.random.default_rng(0)
run.state["sum"] = 0.0
for step in run.steps(17):
    run.state["sum"] += run.state["rng"].random()
run.close()
"""

EPOCHS = """\
import numpy as np
import holdfast
run = holdfast.Run("runs/epochs", seed=0)
run.state["sum"] = 0.0
for epoch in run.epochs(5):
    run.state["sum"] += np.random.rand()
run.close()
"""

OWN = """\
import numpy as np
import holdfast
run = holdfast.Run("runs/own")
rng, w = np.random.default_rng(0), np.zeros(3)
run.track(rng=rng)
progress = run.resume()
if progress.epoch:
    w[:] = run.state["w"]
for epoch in range(progress.epoch, 5):
    w += rng.random(3)
    run.state["w"] = w.copy()
    run.save(epoch=epoch + 1, metrics={"w": w[0]})
run.close()
"""

PHASES = """\
import numpy as np
import holdfast

class Model:
    def __init__(self):
        self.w = np.zeros(4)
    def state_dict(self):
        return {"w": self.w.copy()}
    def load_state_dict(self, state):
        self.w[:] = state["w"]

model = Model()
base = holdfast.Run("a/base", seed=0)
base.track(model=model)
for step in base.steps(6):
    model.w += np.random.rand(4)
base.close()
tuned = holdfast.Run("b/base", seed=1, init={"model": "a/base@latest"})
tuned.track(model=model)
for step in tuned.steps(10):
    model.w += np.random.rand(4)
tuned.close()
found = holdfast.open("b/base@latest").load()["model"]["w"]
assert (found == model.w).all()
assert holdfast.open("older").load()["n"] == 1
holdfast.save("out", {"w": model.w})
assert not holdfast.restore("out", {"w": model.w}).missing
"""

# Before a script: n counts its launches.
COUNTED = """\
from pathlib import Path
n = int(Path("count").read_text()) + 1
Path("count").write_text(str(n))
"""

TORCH = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
import holdfast
torch.set_num_threads(1)
NOISE, WORKERS = 0.0, 0

class Data(Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, index):
        x = torch.full((3,), float(index % 5))
        return x + NOISE * torch.rand(3), torch.tensor([float(index % 3)])

def main():
    run = holdfast.Run("runs/t", seed=0)
    net = nn.Linear(3, 1)
    opt = torch.optim.SGD(net.parameters(), lr=0.05)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch)
    ema = torch.optim.swa_utils.AveragedModel(net)
    loader = DataLoader(Data(), 4, shuffle=True, num_workers=WORKERS)
    run.track(model=net, optimizer=opt, scheduler=sched, ema=ema)
    for epoch in run.epochs(3):
        for x, y in run.batches(loader):
            opt.zero_grad()
            (net(x) - y).square().mean().backward()
            opt.step()
            ema.update_parameters(net)
        sched.step()
    run.close()

if __name__ == "__main__":
    main()
"""


def changed(script, *pairs):
    """A script with pieces replaced; each must be there."""
    for old, new in pairs:
        assert old in script, old
        script = script.replace(old, new)
    return script


@pytest.fixture
def here(place, monkeypatch):
    """An empty working directory, with temporary files beside it."""
    os.mkdir(f"{place}/here")
    os.mkdir(f"{place}/temporary")
    monkeypatch.chdir(f"{place}/here")
    monkeypatch.setattr("tempfile.tempdir", f"{place}/temporary")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Path(place, "here")


def play(script, *places, **options):
    """Rehearses a script, given as text."""
    Path("train.py").write_text(script)
    wanted = [parse_point(where) for where in places]
    return rehearse([sys.executable, "train.py"], wanted=wanted, **options)


def causes(report):
    return "\n".join(report.causes)


def launches(report):
    """Series, what signal ended it, and after which step or epoch."""
    return [
        (launch.series, *((s["signal"], s["step"] or s["epoch"]) if (s := launch.signal) else ()))
        for launch in report.launches
    ]


# -- sound scripts ------------------------------------------------------------------------------

SOUND = {
    "by default, in the middle of an epoch": (SCRIPT, [], {}, [15]),
    "in the first batch": (SCRIPT, ["step=0"], {}, [0]),
    "in the last batch": (SCRIPT, ["step=23"], {}, [23]),
    "in two epochs": (SCRIPT, ["epoch=0", "epoch=3"], {}, [3, 21]),
    "in two steps that follow one another": (SCRIPT, ["step=8", "step=9"], {}, [8, 9]),
    "at random, again and again": (SCRIPT, ["random"], {"times": 5, "seed": 1}, None),
    "by SIGTERM": (SCRIPT, [], {"signal": "TERM"}, [15]),
    "by SIGUSR1": (SCRIPT, ["epoch=1"], {"signal": "USR1"}, [9]),
    "by Ctrl-C": (SCRIPT, ["step=23"], {"signal": "INT"}, [23]),
    "a loop of steps": (STEPS, [], {"times": 2}, [5, 11]),
    "a loop of steps, by SIGTERM": (STEPS, ["random"], {"signal": "TERM", "seed": 2}, None),
    "epochs without batches": (EPOCHS, ["epoch=0", "epoch=2", "epoch=4"], {}, [1, 3, 5]),
    "epochs without batches, by Ctrl-C": (EPOCHS, [], {"signal": "INT"}, [3]),
    "a loop of one's own": (OWN, [], {"times": 2}, [2, 4]),
    "a loop of one's own, by SIGTERM": (OWN, ["epoch=3"], {"signal": "TERM"}, [4]),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound(here, tried, name):
    """A script that tracks all it needs is bit-identical, wherever and by whatever it is interrupted."""
    script, places, options, expected = SOUND[name]
    report = play(script, *places, **options)
    assert report.identical, (f"seed {report.seed}", report.interruptions, report.causes)
    assert report.deterministic
    assert (report.causes, report.partings) == ([], [])
    sent = [entry[2] for entry in launches(report) if len(entry) > 1]
    assert sent == expected if expected is not None else len(sent) == len(report.interruptions) > 0
    signal_name = f"SIG{options.get('signal', 'KILL')}"
    assert all(entry[1] == signal_name for entry in launches(report) if len(entry) > 1)
    assert [launch.code for launch in report.launches if launch.signal is None] == [0, 0, 0]
    assert report.directory is None
    assert os.listdir("../temporary") == []
    assert sorted(os.listdir()) == ["train.py"]
    tried("trainings", len(report.interruptions))


def test_places_drawn_at_random(here, thorough, tried):
    """Wherever chance interrupts, three times in one training, and by whatever signal, it is bit-identical."""
    for seed in range(25 if thorough else 2):
        number = points.SIGNALS[seed % len(points.SIGNALS)]
        report = play(SCRIPT, "random", times=3, seed=seed, signal=number, once=True)
        assert report.identical, (
            f"--kill-at random --times 3 --seed {seed} --signal {number}",
            report.causes,
        )
        tried("trainings", len(report.interruptions))


def test_what_was_lost_is_trained_again(here):
    """A process killed inside an epoch is resumed inside that epoch, at the save before, and trains on from there."""
    report = play(SCRIPT, "step=16", once=True, directory="rehearsal")
    trail = Trail.read(os.path.realpath("rehearsal/interrupted"))
    assert trail.resumed_at("m", 2)[:3] == (2, 14, 2)
    assert place_of_signal(trail) == (2, 16, 4)
    straight = Trail.read(os.path.realpath("rehearsal/straight")).checkpoints("m")
    assert [place.epoch for place in straight] == [1, 2, 3, 4], "no due save was merged into a later one"
    assert report.identical


@pytest.mark.parametrize(
    ("script", "loop"),
    [(OWN, "for epoch in range(progress"), (EPOCHS, "for epoch in run.epochs")],
    ids=["own", "epochs"],
)
def test_saves_that_take_longer_than_the_training(here, script, loop):
    """Each due save is made, and that before the interruption is durable, however long saves take."""
    big = changed(script, (loop, f"run.state['big'] = np.zeros(6_000_000)\n{loop}"))
    report = play(big, once=True, keep=True)
    assert report.identical
    (name,) = Trail.read(f"{report.directory}/straight").runs()
    straight, other = (Trail.read(f"{report.directory}/{series}") for series in ("straight", "interrupted"))
    assert [place.epoch for place in straight.checkpoints(name)] == [1, 2, 3, 4, 5]
    assert other.resumed_at(name, 2).epoch == 2


def place_of_signal(trail):
    found = trail.signal_of(1)
    return (found["epoch"], found["step"], found["batch"])


def test_several_runs(here):
    """Phases chained by init, runs of one name, and checkpoints saved by name are each put elsewhere, and compared."""
    holdfast.save("older", {"n": 1})
    before = snapshot("older")
    report = play(PHASES, "random", times=3, seed=3, directory="rehearsal")
    assert report.identical, report.causes
    assert [(end.name, os.path.relpath(end.path)) for end in report.ends.ends] == [
        ("base", "a/base"), ("base-2", "b/base"), ("out", "out"),
    ]  # fmt: skip
    assert sorted(os.listdir()) == ["older", "rehearsal", "train.py"]
    assert snapshot("older") == before
    assert {one.run for one in report.interruptions} <= {"base", "base-2"}


def snapshot(directory):
    """Every file and its content, size and time."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(Path(directory).rglob("*"))
    }


def test_the_users_run_is_left_alone(here):
    """A run that is there already is neither continued nor written, nor even read."""
    Path("train.py").write_text(changed(SCRIPT, ("epochs(4)", "epochs(2)")))
    subprocess.run([sys.executable, "train.py"], check=True, capture_output=True)
    # Whoever reads it now, fails.
    Path("runs/m/run.json").write_text("not a run")
    before = snapshot("runs")
    report = play(SCRIPT, once=True)
    assert report.identical
    assert snapshot("runs") == before


def test_a_shell_script(here):
    """A shell script is killed as a whole, and the command line in it means the rehearsed run."""
    Path("train.py").write_text(SCRIPT)
    Path("run.sh").write_text(
        f"set -e\n'{sys.executable}' train.py\n"
        f"'{sys.executable}' -c 'from holdfast.cli.main import main; main()' ls runs/m\necho after >> ends\n"
    )
    report = rehearse(["bash", "run.sh"], once=True, keep=True)
    assert report.identical
    assert [launch.code for launch in report.launches] == [0, -signal.SIGKILL, 0]
    assert Path("ends").read_text().count("after") == 2, "what was killed went on"
    assert "SEQ  EPOCH  STEP" in Path(report.launches[0].log).read_text()


def test_an_example_of_ours(here):
    """The example for torch is bit-identical after SIGKILL in the middle of an epoch, by the command line."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    words = [sys.executable, str(EXAMPLES / "digits_torch.py"), "--epochs", "2", "--every-steps", "7"]
    result = CliRunner().invoke(program, ["rehearse", "--once", "--", *words])
    assert result.exit_code == 0, result.output
    assert "SIGKILL after step 36, batch 12 of epoch 2" in result.output
    assert "resumed        from step 34, batch 10 of epoch 2, to the end" in result.output
    assert "Bit-identical: interrupted once and resumed" in result.output


# -- faults -------------------------------------------------------------------------------------------


def test_no_seed(here):
    """Without a seed two straight trainings differ; that is said, with the streams, and nothing is interrupted."""
    report = play(changed(SCRIPT, ("seed=0, ", "")))
    assert (report.deterministic, report.identical, report.ends) == (False, False, None)
    assert launches(report) == [("straight",), ("again",)]
    assert "no seed is set. The random streams of numpy begin differently" in causes(report)


def test_an_unseeded_generator(here):
    """A generator of the script's own that nothing seeds is named as what keeps two straight trainings apart."""
    report = play(
        changed(
            SCRIPT,
            ("np.random.rand(4)", "rng.random(4)"),
            ("model = Model()", "model = Model(); rng = np.random.default_rng()"),
        )
    )
    assert report.deterministic is False
    assert "rng (Generator; train.py) is not the same in two straight launches" in causes(report)


def test_the_time_in_the_state(here):
    """A time in run.state keeps two straight trainings apart, and it is said that no array differs."""
    report = play(changed(SCRIPT, ("run.log(", "import time; run.state['now'] = time.time()\n    run.log(")))
    assert report.deterministic is False
    assert "Likely: state/now is taken from something that changes" in causes(report)


def test_a_time_as_a_metric_is_left_out(here):
    """A metric on which no two trainings agree is not compared, and that is said."""
    report = play(changed(SCRIPT, ("run.log(", "import time; run.log(now=time.time(), ")))
    assert report.identical
    assert report.left_out == ["now"]


def test_streams_that_nobody_uses_are_left_out(here):
    """Without a seed, a script that draws only from its own generator is bit-identical; the others are named."""
    report = play(STEPS)
    assert report.identical
    assert report.left_out == ["numpy", "python"]


# Fault → what is changed in the script, the last place where both were equal and the first where not,
# and what the cause must say.
FAULTS = {
    "a generator of one's own": (
        [("np.random.rand(4)", "rng.random(4)"), ("model = Model()", "model = Model(); rng = np.random.default_rng(5)")],
        (13, 14),
        "rng (Generator; train.py) is not tracked: a resumed launch makes it anew.",
        "run.track(rng=rng)",
    ),
    "a counter that training depends on": (
        [("model = Model()", "model = Model(); count = 0"), ("* x\n", "* (count % 5)\n        count += 1\n")],
        (13, 14),
        "count (train.py) is 14 in the straight training and 1 in the resumed one",
        'run.state["count"]',
    ),
    "a sum outside of run.state, logged": (
        [('run.state["loss"]', "total")],
        (17, 18),
        "summed up outside of run.state. Only metrics/loss differs, and total (train.py) is",
        'run.state["total"]',
    ),
    "a sum outside of run.state, stored at the end": (
        [('run.state["loss"]', "total"), ("run.log(loss=total)", "run.state['mean'] = total / 6")],
        (17, 18),
        "summed up outside of run.state. Only state/mean differs, and total (train.py) is",
        'run.state["total"]',
    ),
    "a list outside of run.state": (
        [("    run.log(", "    losses.append(run.state['loss'])\n    run.log(mean=sum(losses), "), ("model = Model()", "model = Model(); losses = []")],
        (17, 18),
        "losses (train.py) is 3 numbers in the straight training and 1 numbers in the resumed one",
        'run.state["losses"]',
    ),
    "a model that is not restored": (
        [('self.w[:] = state["w"]', "pass")],
        (13, 14),
        "neither tracked nor in run.state",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault(here, tried, name):
    """What a resumed launch lacks is found: where the two parted, the likely cause by its name, and the remedy."""
    pairs, place, cause, remedy = FAULTS[name]
    report = play(changed(SCRIPT, *pairs))
    assert (report.deterministic, report.identical) == (True, False)
    (parted,) = report.partings
    assert (parted.before.step, parted.at.step) == place
    assert parted.resumed.step == 13
    assert cause in causes(report)
    assert remedy in causes(report)
    assert os.path.isdir(report.directory), "what differs can be looked at"
    tried("trainings")


def test_a_fault_without_a_second_straight_run(here):
    """With --once the fault is found as well, where saves of both meet; that determinism was not tried is said."""
    pairs, _, cause, _ = FAULTS["a generator of one's own"]
    report = play(changed(SCRIPT, *pairs), once=True)
    assert (report.deterministic, report.identical) == (None, False)
    assert cause in causes(report)
    assert "Two straight trainings were not compared (--once)" in causes(report)


TORCH_FAULTS = {
    "a scheduler that is not tracked": (
        [("scheduler=sched, ", "")],
        "sched (LambdaLR; train.py, in main) is not tracked",
        "run.track(sched=sched)",
    ),
    "an average of weights that is not tracked": (
        [(", ema=ema", "")],
        "ema (AveragedModel; train.py, in main) is not tracked",
        "run.track(ema=ema)",
    ),
    "augmentation in loader workers": (
        [("NOISE, WORKERS = 0.0, 0", "NOISE, WORKERS = 1.0, 1")],
        "Random augmentation inside the 1 loader worker(s) cannot be replayed",
        "The global random streams are equal.",
    ),
}


@pytest.mark.parametrize("name", TORCH_FAULTS)
def test_torch_fault(here, tried, name):
    """With torch: what is not tracked is named, and augmentation in workers is told from it."""
    pytest.importorskip("torch")
    pairs, cause, more = TORCH_FAULTS[name]
    report = play(changed(TORCH, *pairs), once=True)
    assert not report.identical
    assert cause in causes(report)
    assert more in causes(report)
    tried("trainings")


def test_a_rate_that_a_hidden_scheduler_sets(here):
    """Where only the learning rate tells, a scheduler that is not tracked is the likely cause."""
    pytest.importorskip("torch")
    hidden = [
        ("sched = torch", "hide = {}; hide['s'] = torch"),
        ("scheduler=sched, ", ""),
        ("sched.step()", "hide['s'].step()"),
    ]
    report = play(changed(TORCH, *hidden), once=True)
    assert not report.identical
    assert "Likely: a scheduler that is not tracked." in causes(report)
    assert "optimizer/param_groups/0/lr is" in causes(report)


# -- what goes wrong ---------------------------------------------------------------------------------------


def command(*words):
    """What the command prints and how it ends."""
    result = CliRunner().invoke(program, ["rehearse", *map(str, words)], prog_name="holdfast")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_script_that_fails(here):
    """A script that fails by itself ends with code 12; its exit code and its last lines are shown, the log is kept."""
    Path("train.py").write_text("print('one line')\nraise ValueError('my fault')\n")
    result = command("--", sys.executable, "train.py")
    assert result.exit_code == 12
    assert "failed by itself, before anything was interrupted (exit code 1)" in result.stderr
    assert "one line" in result.stderr
    assert "ValueError: my fault" in result.stderr
    assert len(os.listdir("../temporary")) == 1


def test_a_script_that_cannot_resume(here):
    """A script whose second launch is refused says that it is the resumed one, and shows the reason."""
    Path("count").write_text("0")
    Path("train.py").write_text(COUNTED + changed(SCRIPT, ("seed=0, ", "seed=0, config={'n': n}, ")))
    result = command("--once", "--", sys.executable, "train.py")
    assert result.exit_code == 12
    assert "The launch that should have resumed failed (exit code 1)" in result.stderr
    assert "UsageError" in result.stderr
    assert len(os.listdir("../temporary")) == 1


def test_a_script_without_a_run(here):
    """A script that never makes a Run is refused with code 2, and leaves nothing behind."""
    Path("train.py").write_text("print('hello')\n")
    result = command("--", sys.executable, "train.py")
    assert result.exit_code == 2
    assert "made no holdfast.Run" in result.stderr
    assert os.listdir("../temporary") == []


def test_a_run_that_trains_nothing(here):
    """A script that makes a Run and enters no loop is refused with code 2."""
    Path("train.py").write_text("import holdfast\nholdfast.Run('r')\n")
    result = command("--", sys.executable, "train.py")
    assert (result.exit_code, "trained nothing" in result.stderr) == (2, True)


@pytest.mark.parametrize("where", ["step=24", "epoch=4"])
def test_a_place_that_is_never_reached(here, where):
    """A place behind the end of the training is refused with code 2, with what the training has."""
    Path("train.py").write_text(SCRIPT)
    result = command("--kill-at", where, "--", sys.executable, "train.py")
    assert result.exit_code == 2
    assert f"--kill-at {where}" in result.stderr
    assert "m: 4 epochs, 24 steps" in result.stderr


def test_a_run_named_by_the_time(here):
    """A script that names its run anew at each launch never resumes, and that is what is said."""
    script = changed(SCRIPT, ('"runs/m"', 'f\'runs/{len(open("n", "a+").write("x") and open("n").read())}\''))
    report = play(script)
    assert report.deterministic is False
    assert "different runs" in causes(report)
    Path("train.py").write_text(script)
    result = command("--once", "--", sys.executable, "train.py")
    assert result.exit_code == 12
    assert "A launch did not take up" in result.stderr
    assert "same path at each launch" in result.stderr


def test_a_launch_that_takes_another_run(here):
    """A launch that begins another run instead of resuming ends well and equal, and is found all the same."""
    Path("count").write_text("0")
    Path("train.py").write_text(
        COUNTED + changed(SCRIPT, ('"runs/m"', "'runs/m' if n < 3 else 'runs/other'"))
    )
    result = command("--once", "--", sys.executable, "train.py")
    assert result.exit_code == 12
    assert "runs/m: it made" in result.stderr


def test_nothing_is_left_running(here):
    """What a script leaves running in the background is ended with its launch."""
    left = "import os, time\nif os.fork() == 0:\n    time.sleep(600)\nprint(os.getpid(), file=open('pids', 'a'))\n"
    assert play(left + STEPS, once=True).identical
    pids = Path("pids").read_text().split()
    assert len(pids) == 3
    assert [processes_of(int(pid)) for pid in pids] == [[], [], []]


def test_a_shell_that_ends_first(here):
    """A training that outlives the shell that started it is waited for."""
    Path("train.py").write_text(changed(STEPS, ("for step in", "open('made', 'w')\nfor step in")))
    Path("run.sh").write_text(f"rm -f made\n'{sys.executable}' train.py &\nwhile [ ! -e made ]; do :; done\n")
    report = rehearse(["bash", "run.sh"], once=True, keep=True)
    assert report.identical
    assert holdfast.open(f"{report.directory}/straight/runs/steps").progress.step == 17


def test_no_such_program(here):
    """A command that does not exist is refused with code 2."""
    result = command("--", "no-such-program-anywhere")
    assert (result.exit_code, "cannot be started" in result.stderr) == (2, True)
    assert os.listdir("../temporary") == []


def test_the_directory(here):
    """--dir takes a new or empty directory, keeps everything in it, and refuses any other."""
    Path("train.py").write_text(STEPS)
    result = command("--once", "--dir", "rehearsal", "--", sys.executable, "train.py")
    assert result.exit_code == 0
    assert f"Runs and logs are in {os.path.realpath('rehearsal')}" in result.output
    assert sorted(os.listdir("rehearsal")) == ["interrupted", "straight"]
    ends = [
        holdfast.open(f"rehearsal/{series}/runs/steps").load()["state"]["sum"]
        for series in ("straight", "interrupted")
    ]
    assert ends[0] == ends[1]
    result = command("--once", "--dir", "rehearsal", "--", sys.executable, "train.py")
    assert (result.exit_code, "not an empty directory" in result.stderr) == (2, True)


def test_json(here):
    """--json prints one object: the verdict, the launches, the differences, where they parted and why."""
    Path("train.py").write_text(changed(OWN, ("run.track(rng=rng)\n", "")))
    result = command("--json", "--", sys.executable, "train.py")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["identical"], found["deterministic"]) == (False, True)
    assert [launch["signal"] for launch in found["launches"]] == [None, None, "SIGKILL", None]
    assert [launch["exit_code"] for launch in found["launches"]] == [0, 0, -9, 0]
    (run,) = found["runs"]
    (difference,) = run["array_differences"]
    assert (difference["name"], difference["differing"]) == ("state/w", 3)
    assert run["untracked"] == ["train.py::rng"]
    (parted,) = found["partings"]
    assert (parted["before"], parted["at"], parted["resumed"]) == ([2, 0, 0], [3, 0, 0], [2, 0, 0])
    assert "run.track(rng=rng)" in found["causes"][0]


WAITS = """\
import os
import time
import holdfast
run = holdfast.Run("runs/waits")
for step in run.steps(3):
    if os.fork() == 0:
        time.sleep(600)
    print(*[os.getpid()], file=open("pid", "w"))
    os.rename("pid", "ready")
    time.sleep(600)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c(here, number, code):
    """Ctrl-C and SIGTERM end the script and all that it started, and nothing is left of the rehearsal."""
    Path("train.py").write_text(WAITS)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from holdfast.cli.main import main; main()",
            "rehearse",
            "--",
            sys.executable,
            "train.py",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": os.path.realpath("../temporary")},
    )
    while not os.path.exists("ready"):
        assert process.poll() is None, process.communicate()
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    group = int(Path("ready").read_text())
    process.send_signal(number)
    out, said = process.communicate(timeout=100)
    assert process.returncode == code, (out, said)
    assert processes_of(group) == []
    assert os.listdir("../temporary") == []


def processes_of(session):
    """Processes of a session that are alive; ended ones that nobody has waited for yet do not count."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(name))
    return found


def test_arrays_are_compared_bit_by_bit(here):
    """One bit of one element, in a resumed launch only, is found, with the array and by how much."""
    script = changed(
        SCRIPT, ("run.close()", "if os.path.exists('once'):\n    model.w[2] = np.nextafter(model.w[2], np.inf)\nopen('once', 'w')\nholdfast.save('end', {'w': model.w})\nrun.close()"),
        ("import numpy", "import os\nimport numpy"),
    )  # fmt: skip
    report = play(script, once=True)
    end = next(end for end in report.ends.ends if end.name == "end")
    (difference,) = end.found.array_differences
    assert (difference.name, difference.differing, difference.elements) == ("w//", 1, 4)
    assert 0 < difference.max_abs < 1e-12
    assert not report.identical
    assert np.isfinite(difference.max_abs)
