"""Launches of real trainings by a process that has imported torch once, each ended at a chosen moment.

As a script this is that process: it reads one order a line, forks, lets the child run a training as
`python SCRIPT ARGS` would, sends it what the order asks for at the moment it asks for, and answers
with how the child ended. `Launcher` is the other end of the pipe.

    {"training": "digits", "run": DIR, "log": FILE, "words": [...], "pause": 0.003,
     "from": 0.1, "aim": "draft", "after": 0.002, "latest": 2.0, "group": false, "signals": [[0.3, "SIGTERM"]]}

SIGKILL comes `after` so many seconds, counted from the launch, or from the moment that `aim` (see
`AIMS`) is seen on disk, for which it is looked from `from` on; so do the signals. At `latest` it
comes anyhow.
"""

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
EXAMPLES = os.path.join(HERE, "..", "..", "examples")
PATIENCE = 90  # seconds; a launch that takes longer hangs, and its stacks are printed

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


# -- the trainings -----------------------------------------------------------------------------------


def digits(run, words, pause):
    """The demonstration: epochs and batches of a torch loader, a probe, a schedule, a best."""
    from holdfast import Every, Keep

    adjust(
        pause,
        every=Every(epochs=1, steps=3),
        keep=Keep(last=2, best=1, metric="val_accuracy", mode="max"),
    )
    script("digits_torch.py", run, words)


def results(run, words, pause):
    """The plain NumPy example: one loop of steps, a growing list, no torch."""
    from holdfast import Every, Keep

    adjust(pause, seed=0, every=Every(minutes=0.0002), keep=Keep(last=2))
    script("numpy_results.py", run, words)


def script(name, run, words):
    path = os.path.join(EXAMPLES, name)
    sys.argv = [path, "--run", run, *words]
    runpy.run_path(path, run_name="__main__")


def adjust(pause, **options):
    """Makes the example's `Run` save more often, and its steps take longer."""
    import holdfast
    from holdfast.training import Training

    made, handed_out = holdfast.Run.__init__, Training.hand_out

    def init(self, path, **others):
        made(self, path, **{**others, **options})

    def hand_out(self):
        time.sleep(pause)
        handed_out(self)

    holdfast.Run.__init__, Training.hand_out = init, hand_out


def large(run, words, pause):
    """A loop of steps whose state is written by direct I/O, in several blocks: 20 MB."""
    import torch

    import holdfast
    from holdfast import Every, Keep

    one = holdfast.Run(run, seed=3, every=Every(steps=2), keep=Keep(last=2, every_epochs=None))
    net = torch.nn.Linear(1500, 1500)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    one.track(model=net, optimizer=opt)
    one.state["seen"] = []
    for step in one.steps(int(words[0])):
        time.sleep(pause)
        loss = net(torch.rand(2, 1500)).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        one.state["seen"].append((step, loss.item()))
    one.close()


def own(run, words, pause):
    """A loop that stays the script's own, with its own signals: it saves where it says."""
    import numpy as np
    import torch

    import holdfast
    from holdfast import Keep

    one = holdfast.Run(run, seed=4, keep=Keep(last=2, best=1, metric="loss", mode="min"))
    net = torch.nn.Sequential(torch.nn.Linear(9, 30), torch.nn.Dropout(0.3), torch.nn.Linear(30, 1))
    opt = torch.optim.Adam(net.parameters())
    one.track(model=net, optimizer=opt)
    progress = one.resume()
    for epoch in range(progress.epoch, int(words[0])):
        total = 0.0
        for _ in range(3):
            time.sleep(pause / 3)
            loss = net(torch.rand(8, 9) + float(np.random.rand())).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
            total += loss.item()
        one.state["total"] = one.state.get("total", 0.0) + total
        one.save(epoch=epoch + 1, step=3 * (epoch + 1), metrics={"loss": total}, wait=epoch % 4 == 0)
    one.close()


TRAININGS = {function.__name__: function for function in (digits, results, large, own)}


# -- what is on disk -----------------------------------------------------------------------------------

_NAME = re.compile(r"\d{6,}_epoch-\d+_step-\d+_\w+")


def look(run):
    """What a run's directory holds, in words: where a writer that was killed just now was."""
    try:
        names = os.listdir(run)
    except FileNotFoundError:
        return {"no run"}
    found = set() if "run.json" in names else {"no run.json"}
    for name in names:
        if ".swept-" in name:
            found.add("swept")
        elif name.startswith(".writing-"):
            found.add("writing")
            for inner in _list(os.path.join(run, name)):
                if inner.endswith(".trash"):
                    found.add("trash")
                elif _NAME.fullmatch(inner):
                    whole = "checkpoint.json" in _list(os.path.join(run, name, inner))
                    found.add("manifest" if whole else "draft")
                else:
                    found.add(inner)  # run.json, or a link, on its way
    return found


def before(run):
    """What a launch finds, from which its own doings are told apart: the highest lease, and how much history."""
    history = os.path.join(run, "history.jsonl")
    return lease_of(run), os.path.getsize(history) if os.path.exists(history) else 0


def lease_of(run):
    """The highest generation; 0 without one."""
    return max((int(name[6:]) for name in _list(run) if name.startswith("lease-")), default=0)


def reached(run):
    """Whether run.json says that a goal was reached."""
    try:
        with open(os.path.join(run, "run.json"), encoding="utf-8") as file:
            return json.load(file)["reached"] is not None
    except FileNotFoundError:
        return False


def _list(path):
    try:
        return os.listdir(path)
    except OSError:
        return []


AIMS = {
    "lease": lambda run, then: lease_of(run) > then[0],
    "entered": lambda run, then: before(run)[1] > then[1],
    "swept": lambda run, then: "swept" in look(run),
    "draft": lambda run, then: "draft" in look(run),
    "manifest": lambda run, then: "manifest" in look(run),
    "trash": lambda run, then: "trash" in look(run),
    "reached": lambda run, then: reached(run),
}


# -- the process that forks ------------------------------------------------------------------------------


def main():
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphaned loader workers come to us
    import torch

    torch.set_num_threads(1)
    for name in (
        *("torch._dynamo", "torch.utils.data", "sklearn.datasets", "holdfast.run", "holdfast.torch.loader"),
        *("holdfast.payload.reader", "holdfast.payload.writer", "holdfast.drafting"),
    ):
        importlib.import_module(name)  # what every child would import at its first step
    # A kill between the creation of a lease and the writing of its holder's name leaves one that
    # nobody can be asked about: the next launch watches it, for five minutes in real life.
    sys.modules["holdfast.store.lease"].Lease.acquire.__func__.__kwdefaults__["stale_after"] = 1.0
    faulthandler.enable()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.flush()
        then = before(order["run"])
        # Here, since a child may be killed before it gets so far, and would leave the words of the launch before it.
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        child = os.fork()
        if not child:
            sys.exit(_train(order, log))
        os.close(log)
        print(json.dumps(attend(child, lambda: _poll(child), order, then)), flush=True)  # noqa: B023
    print(json.dumps(_bury_orphans()), flush=True)


def _train(order, log):
    """The child: a session of its own, its output in the log, its exit code that of a script."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    try:
        TRAININGS[order["training"]](order["run"], order["words"], order["pause"])
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _poll(child):
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def attend(child, poll, order, then):
    """Sends what the order asks for when it asks for it; how the child ended.

    Args:
        child: the pid of a process that leads a group.
        poll: gives its exit code, or None.
        order: as above.
        then: what `before` gave when it was started.

    """
    started = time.monotonic()
    signals = sorted(order.get("signals", []))
    aim, latest = order.get("aim"), order.get("latest", math.inf)
    zero = None if aim else 0.0
    killed = False
    while True:
        code = poll()
        if code is not None:
            return {"code": code, "killed": killed}
        now = time.monotonic() - started
        if zero is None and now >= order.get("from", 0.0) and AIMS[aim](order["run"], then):
            zero = now
        since = -math.inf if zero is None else now - zero
        while signals and since >= signals[0][0]:
            os.kill(child, signal.Signals[signals.pop(0)[1]])
        if not killed and (since >= order.get("after", math.inf) or now >= latest):
            killed = True
            _kill(child, group=order.get("group", False))
        elif now > PATIENCE:
            os.kill(child, signal.SIGABRT)  # prints the stacks
            time.sleep(1)
            os.kill(child, signal.SIGKILL)
            while poll() is None:
                time.sleep(0.01)
            return {"code": None, "killed": False}
        time.sleep(0.0003)


def _kill(child, *, group):
    if group:
        with contextlib.suppress(ProcessLookupError):  # so young that it leads none yet
            os.killpg(child, signal.SIGKILL)
            return
    os.kill(child, signal.SIGKILL)


def _bury_orphans():
    """Waits for loader workers whose training was killed; those that stay are ended, and counted."""
    deadline, ended = time.monotonic() + 20, 0
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return {"orphans that stayed": ended}
        if pid:
            continue
        if time.monotonic() > deadline:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                for child in file.read().split():
                    os.kill(int(child), signal.SIGKILL)
                    ended += 1
        time.sleep(0.05)


class Launcher:
    """Starts that process, and gives it orders."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "real_trainings.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        try:
            self.stayed = json.loads(self._process.stdout.readlines()[-1])["orphans that stayed"]
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def launch(self, **order):
        """Carries out one order: {"code": exit code, "killed": whether by the order's SIGKILL}."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise EOFError(f"the process that launches trainings ended with {self._process.wait()}")
        return line


if __name__ == "__main__":
    main()
