"""P1, P4: trainings with two mirrors, killed at random moments, their directories deleted now and then."""

import os
import random
import shutil
import subprocess
import sys

from mirrored_runs import steps

TRAINING = """
import random, sys, time
import numpy as np
import holdfast
from holdfast import Every, Keep
run = holdfast.Run(
    sys.argv[1], mirrors=sys.argv[2:], seed=3, every=Every(steps=2),
    keep=Keep(last=2, best=1, metric="m", mode="max"),
)
for step in run.steps(60):
    w = run.state.get("w", np.zeros(20_000))
    run.state["w"] = w * 0.9 + np.random.rand(20_000) + random.random()
    run.log(m=-abs(step - 20))
    time.sleep(0.04)
run.close()
print("DONE", run.state["w"].tobytes().hex()[:4000], run.best.progress.step)
"""


def launch(*words):
    return subprocess.Popen([sys.executable, "-c", TRAINING, *words], stdout=subprocess.PIPE, text=True)


def test_a_storm(tmp_path, tried):
    """However often it is killed, and its directory deleted, a training ends to the bit as one that never was."""
    straight, _ = launch(str(tmp_path / "straight")).communicate(timeout=120)
    chance = random.Random()
    run, mirrors = str(tmp_path / "run"), [str(tmp_path / "first"), str(tmp_path / "second")]
    kills, ended = 0, ""
    while "DONE" not in ended:
        assert kills < 200, "it never ends"
        process = launch(run, *mirrors)
        try:
            # Later and later, so that it comes to an end on a slow machine as well.
            ended, _ = process.communicate(timeout=chance.uniform(0.4, 1.2 + kills / 30))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            # It may be gone still: killed before it was made anew.
            if chance.random() < 0.3 and steps(mirrors[0]) and os.path.isdir(run):
                shutil.rmtree(run)
        for mirror in mirrors:
            steps(mirror)  # each whole
    assert ended == straight
    for place in (run, *mirrors):
        found = steps(place)
        # Between the best and the newest there is one more, unless the run was lost when that was in no mirror yet.
        assert (found[0], found[-1]) == (21, 60), f"{place} has {found}"
        assert len(found) <= 3, f"{place} has {found}"
    tried("trainings", kills)
