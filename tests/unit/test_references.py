"""References: which checkpoint a text means, and what is read when some are damaged or gone."""

import errno
import logging
import os
import shutil

import numpy as np
import pytest

import holdfast
from holdfast import Every, Keep, NotFoundError, UsageError, files
from holdfast.errors import DamagedError, FormatError, StorageError
from holdfast.format.manifest import decode_manifest, encode_manifest
from holdfast.store import publish

KEEP = Keep(last=None, metric="score", mode="max")
SCORES = [0.1, 0.9, 0.4, 0.5]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run of four epochs of three batches, saved at each batch; the second epoch is the best."""
    path = str(tmp_path_factory.mktemp("template") / "digits")
    with holdfast.Run(path, keep=KEEP, every=Every(epochs=1, steps=1)) as run:
        for epoch in run.epochs(4):
            for number in run.batches([0, 1, 2]):
                run.state["w"] = np.full(5, 10 * epoch + number)
                assert run.latest or number == 0  # waits for the save in flight, so that none is merged
            assert run.latest
            run.log(score=SCORES[epoch])
    return path


@pytest.fixture
def run(template, tmp_path):
    """A copy of it: a run is a directory that can be copied."""
    return shutil.copytree(template, str(tmp_path / "digits"), symlinks=True)


@pytest.fixture
def said(caplog, monkeypatch):
    """What the logger said."""
    monkeypatch.setattr(logging.getLogger("holdfast"), "propagate", True)
    caplog.set_level(logging.INFO, "holdfast")
    return caplog


def names(run):
    return sorted(name for name in os.listdir(run) if name.startswith("0"))


def change(run, name, act):
    """Rewrites a checkpoint's manifest with a right digest."""
    path = os.path.join(run, name, "checkpoint.json")
    with open(path, "rb") as file:
        manifest = decode_manifest(file.read(), path)
    act(manifest)
    with open(path, "wb") as file:
        file.write(encode_manifest(manifest))


def flip(path, place=-10):
    with open(path, "r+b") as file:
        file.seek(place, 2 if place < 0 else 0)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))


def weights(reference):
    return holdfast.open(reference).load()["state"]["w"][0]


def test_every_selector(run):
    """A run alone, @latest, @best, @step, @epoch, @seq and @-N each mean what they say."""
    assert weights(run) == weights(f"{run}@latest") == 32
    best = holdfast.open(f"{run}@best")
    assert (best.metrics, best.progress.epoch, weights(f"{run}@best")) == ({"score": 0.9}, 2, 12)
    assert weights(f"{run}@step=5") == 11
    third = holdfast.open(f"{run}@epoch=3")
    assert (third.progress.epoch, third.progress.batch, third.progress.step) == (3, 0, 9)
    assert holdfast.open(f"{run}@seq=1").sequence == 1
    assert holdfast.open(f"{run}@-1").name == holdfast.open(run).name
    assert holdfast.open(f"{run}@-2").sequence == holdfast.open(run).sequence - 1
    assert holdfast.open(os.path.join(run, names(run)[3])).name == names(run)[3]


def test_epoch_means_completed(run):
    """@epoch=2 is the end of the second epoch, never a place inside the third."""
    found = holdfast.open(f"{run}@epoch=2")
    assert found.progress.batch == 0
    with pytest.raises(NotFoundError, match="has no checkpoint for @epoch=9"):
        holdfast.open(f"{run}@epoch=9")


def test_relative_and_home_paths(run, monkeypatch):
    """A relative path, one with a slash at its end, and one from the home directory are understood."""
    monkeypatch.chdir(os.path.dirname(run))
    monkeypatch.setenv("HOME", os.path.dirname(run))
    assert holdfast.open("digits@best").path == holdfast.open("~/digits/@best").path


@pytest.mark.parametrize("selector", ["@step=77", "@seq=99", "@-99", "@epoch=77"])
def test_nothing_for_a_selector_lists_what_there_is(run, selector):
    """A selector that nothing answers to lists the newest checkpoints by name."""
    with pytest.raises(NotFoundError) as caught:
        holdfast.open(run + selector)
    assert f"The run {run} has no checkpoint for {selector}. It has:" in str(caught.value)
    assert names(run)[-1] in str(caught.value)
    assert caught.value.candidates == names(run)
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("text", ["digit", "digit@best", "Digits", "digits2", "deep/er/digits"])
def test_a_typo_creates_nothing(run, text, monkeypatch):
    """A run's name with a typo is a `NotFoundError` that lists the runs there are, and nothing is created."""
    home = os.path.dirname(run)
    monkeypatch.chdir(home)
    before = sorted(os.listdir(home))
    with pytest.raises(NotFoundError) as caught:
        holdfast.open(text)
    assert f"There is no run or checkpoint {home}/{text.removesuffix('@best')}" in str(caught.value)
    if "/" not in text:
        assert "Did you mean 'digits'?" in str(caught.value)
        assert f"In {home} there are: digits." in str(caught.value)
    assert sorted(os.listdir(home)) == before


def test_a_misspelt_selector_says_which_there_are(run):
    """RUN@bset is no selector, and the message lists those that are."""
    with pytest.raises(NotFoundError) as caught:
        holdfast.open(f"{run}@bset")
    assert "(selectors are @best, @latest, @step=N, @epoch=N, @seq=N or @-N)" in str(caught.value)


def test_the_directory_above_a_run(run):
    """A directory of runs is not a run, and the message names those that it holds."""
    with pytest.raises(NotFoundError) as caught:
        holdfast.open(os.path.dirname(run))
    assert "is neither a run nor a checkpoint: it has no run.json and no checkpoint.json" in str(caught.value)
    assert "It holds the runs digits." in str(caught.value)


def test_a_file_is_no_run(tmp_path):
    """A file in the place of a run is a `FormatError` that says so."""
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(FormatError, match="is a file; a run and a checkpoint are directories"):
        holdfast.open(tmp_path / "model.pt")


def test_a_selector_after_a_checkpoint(run):
    """A checkpoint's own path takes no selector."""
    with pytest.raises(UsageError, match="is a checkpoint, not a run; write it without @best"):
        holdfast.open(os.path.join(run, names(run)[0]) + "@best")


def test_best_without_a_metric(tmp_path):
    """@best of a run whose Keep has no metric says what to write."""
    holdfast.Run(tmp_path / "r").save(epoch=1, wait=True)
    with pytest.raises(UsageError, match=r"has no best checkpoint.*Keep\(best=1, metric="):
        holdfast.open(f"{tmp_path}/r@best")


def test_a_run_without_checkpoints(tmp_path):
    """A run that has saved nothing yet says that."""
    holdfast.Run(tmp_path / "r").resume()
    with pytest.raises(NotFoundError, match=r"The run .*/r has no checkpoint yet"):
        holdfast.open(tmp_path / "r")


def test_newest_is_the_highest_sequence(run):
    """Newest means highest sequence, whatever steps and clocks say."""
    later = names(run)[0]
    early = later.replace("000001", "000099")
    shutil.copytree(f"{run}/{later}", f"{run}/{early}")
    change(run, early, lambda m: (setattr(m, "name", early), setattr(m, "sequence", 99)))
    assert holdfast.open(run).sequence == 99


# -- marks ---------------------------------------------------------------------------------------


def test_clean_before_marked(run):
    """A checkpoint marked NaN is not what RUN means while a clean one exists, and never the best."""
    newest = names(run)[-1]
    change(run, newest, lambda m: m.nan.append("model/weight"))
    change(run, holdfast.open(f"{run}@best").name, lambda m: m.nan.append("model/weight"))
    assert holdfast.open(run).name == names(run)[-2]
    assert holdfast.open(f"{run}@latest").name == newest
    assert holdfast.open(f"{run}@best").metrics == {"score": 0.4}
    for name in names(run):
        change(run, name, lambda m: m.nan.append("model/weight"))
    assert holdfast.open(run).name == newest


def test_foreign_is_listed_and_never_resumed(run, tmp_path, said):
    """A checkpoint copied from another run, or renamed, is foreign: its path opens, the run does not use it."""
    other = str(tmp_path / "other")
    with holdfast.Run(other) as stranger:
        stranger.state["w"] = np.full(5, -1)
        stranger.save(epoch=9)
        stranger.save(epoch=10)
    moved = names(other)[-1]  # its own name, in another run
    shutil.copytree(f"{other}/{moved}", f"{run}/{moved}")
    with pytest.raises(NotFoundError):
        holdfast.open(f"{run}@epoch=10")
    copied = moved.replace("000002", "000077")
    shutil.copytree(f"{other}/{names(other)[-1]}", f"{run}/{copied}")
    assert weights(run) == 32
    with pytest.raises(FormatError) as caught:
        holdfast.open(f"{run}@seq=77")
    assert "is foreign: its manifest says run" in str(caught.value)
    assert "Next: move it elsewhere, it opens by its path." in str(caught.value)
    assert weights(f"{run}/{copied}") == -1
    again = holdfast.Run(run, keep=KEEP)
    assert again.resume().epoch == 4
    assert f"Passed over {copied}" in said.text
    assert "is foreign" in said.text
    again.close()


def test_abandoned_ones_are_skipped(run):
    """What a rewind abandoned is not newest, not best, and not counted back to."""
    os.makedirs(f"{run}/abandoned")
    for name in [names(run)[-1], holdfast.open(f"{run}@best").name]:
        open(f"{run}/abandoned/{name}", "w").close()
    assert holdfast.open(run).name == names(run)[-2]
    assert holdfast.open(f"{run}@-1").name == names(run)[-2]
    assert holdfast.open(f"{run}@best").metrics == {"score": 0.4}
    assert holdfast.open(f"{run}/{names(run)[-1]}").name == names(run)[-1]


# -- falling back ----------------------------------------------------------------------------------


def resumed(run, **options):
    again = holdfast.Run(run, keep=KEEP, **options)
    progress = again.resume()
    again.close()
    return progress, again.state["w"][0]


@pytest.mark.parametrize("file", ["checkpoint.json", "arrays.json", "state.safetensors"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_newest_falls_back(run, file, harm, said):
    """Whatever is damaged in the newest checkpoint, the next older one is resumed, loudly, and history tells."""
    newest, before = names(run)[-1], names(run)[-2]
    path = f"{run}/{newest}/{file}"
    if harm == "flip":
        flip(path)
    elif harm == "truncate":
        os.truncate(path, os.path.getsize(path) // 2)
    else:
        os.unlink(path)
    progress, value = resumed(run)
    assert (progress.epoch, progress.batch, value) == (3, 3, 32)
    assert f"Passed over {newest}: " in said.text
    assert file in said.text
    assert f"resumed from {before}" in said.text
    if file != "checkpoint.json":
        with open(f"{run}/history.jsonl", encoding="ascii") as history:
            assert f'"event": "damaged", "name": "{newest}"' in history.read()


def test_two_damaged_ones(run, said):
    """Falling back goes on until a whole one is found."""
    for name in names(run)[-3:]:
        flip(f"{run}/{name}/state.safetensors")
    progress, value = resumed(run)
    assert (progress.step, value) == (10, 30)
    assert said.text.count("Passed over") == 3


@pytest.mark.parametrize("file", ["checkpoint.json", "arrays.json", "state.safetensors"])
def test_nothing_whole_is_left(run, file):
    """With nothing whole left a run never begins anew: it is a `DamagedError` with the first damage."""
    for name in names(run):
        flip(f"{run}/{name}/{file}")
    again = holdfast.Run(run, keep=KEEP)
    with pytest.raises(DamagedError) as caught:
        again.resume()
    text = str(caught.value)
    assert f"No checkpoint of {run} is whole: {len(names(run))} were tried. The newest says: " in text
    assert f"{names(run)[-1]}" in text
    assert file in text
    assert "Next: holdfast verify" in text
    assert "to begin anew, use another directory" in text
    with pytest.raises(DamagedError):
        for _ in again.epochs(9):
            raise AssertionError("an epoch began")
    again.close()


def test_a_lost_manifest_everywhere_is_no_fresh_start(run):
    """A run whose checkpoints all lost their manifest is damaged, not new."""
    for name in names(run):
        os.unlink(f"{run}/{name}/checkpoint.json")
    with pytest.raises(DamagedError, match="No checkpoint of"):
        holdfast.Run(run, keep=KEEP).resume()


def test_a_newer_format_is_no_fresh_start(run):
    """A run whose newest checkpoint is of a newer format is refused, not continued from an older one."""
    change(run, names(run)[-1], lambda m: setattr(m, "version", (2, 0)))
    with pytest.raises(FormatError) as caught:
        holdfast.Run(run, keep=KEEP).resume()
    assert "has format 2.0; this Holdfast reads up to 1.x. Upgrade with: pip install" in str(caught.value)
    assert names(run)[-1] in str(caught.value)


def test_an_unreadable_manifest_is_no_fresh_start(run, monkeypatch):
    """Where no manifest may be read, the launch ends with what the system said."""
    real = files.open_for_reading

    def denied(path):
        if os.fspath(path).endswith("checkpoint.json"):
            raise StorageError(f"Cannot open {path}: Permission denied.", errno=errno.EACCES, path=path)
        return real(path)

    monkeypatch.setattr(files, "open_for_reading", denied)
    with pytest.raises(StorageError, match="Permission denied"):
        holdfast.Run(run, keep=KEEP).resume()


def test_a_run_of_a_newer_format(run):
    """A run.json of a newer format is refused before anything is written."""
    path = f"{run}/run.json"
    from holdfast.format import sealed

    with open(path, "rb") as file:
        content = sealed.decode(file.read(), path)
    with open(path, "wb") as file:
        file.write(sealed.encode({**content, "version": [7, 0]}))
    for act in (lambda: holdfast.open(run), holdfast.Run(run).resume):
        with pytest.raises(FormatError, match=r"run.json has format 7.0; this Holdfast reads up to 1.x"):
            act()


class Target:
    """A part with arrays that are restored in place."""

    def __init__(self, value):
        self.values = {"a": np.full(3000, value, np.float64), "b": np.full(3000, value)}

    def state_dict(self):
        return self.values

    def load_state_dict(self, values):
        self.values = values


def test_a_failed_restore_forbids_saving(tmp_path, monkeypatch):
    """After a restore that overwrote live objects half-way, the run saves nothing until one succeeds."""
    import torch

    path, net = str(tmp_path / "r"), torch.nn.Linear(4, 4)
    first = holdfast.Run(path)
    first.track(model=net)
    first.save(epoch=1, wait=True)
    first.close()
    again = holdfast.Run(path)
    again.track(model=net)
    again.resume()
    file = f"{again.latest.path}/model.safetensors"
    flip(file, place=4100)
    with pytest.raises(DamagedError) as caught:
        again.resume()
    assert caught.value.target_changed is True
    assert "The objects being restored were already partly overwritten: do not use them." in str(caught.value)
    before = names(path)
    with pytest.raises(UsageError) as refused:
        again.save(epoch=2)
    assert "failed half-way" in str(refused.value)
    assert "Next: start the script again." in str(refused.value)
    assert names(path) == before
    flip(file, place=4100)
    again.resume()
    again.save(epoch=2, wait=True)
    assert len(names(path)) == len(before) + 1
    again.close()


def test_target_changed_is_false_before_the_first_byte(tmp_path):
    """Damage that is found before anything was written says that the targets are untouched."""
    import torch

    net = torch.nn.Linear(4, 4)
    holdfast.save(tmp_path / "a", {"model": net})
    os.truncate(tmp_path / "a/model.safetensors", 4100)
    kept = net.weight.clone()
    with pytest.raises(DamagedError) as caught:
        holdfast.restore(tmp_path / "a", {"model": net})
    assert caught.value.target_changed is False
    assert torch.equal(net.weight, kept)


# -- deleted or replaced meanwhile -------------------------------------------------------------------


def during_read(monkeypatch, act):
    """Calls `act` once, right before the next file of a checkpoint is opened."""
    real, done = files.open_for_reading, []

    def first(path):
        if not done:
            done.append(1)
            act()
        return real(path)

    monkeypatch.setattr(files, "open_for_reading", first)


def test_deleted_meanwhile_is_not_damage(run, monkeypatch):
    """When the newest goes while it is read, the reference is resolved again and the next one is read."""
    found = holdfast.open(run)
    during_read(monkeypatch, lambda: shutil.rmtree(f"{run}/{names(run)[-1]}"))
    assert found.load()["state"]["w"][0] == 32
    assert found.name == names(run)[-1]


def test_deleted_between_looking_and_opening(run, monkeypatch):
    """A checkpoint that goes between the listing and the reading of its manifest is looked for again."""
    during_read(monkeypatch, lambda: None)
    from holdfast.store import catalog

    real, done = catalog.resolve, []

    def resolve(text):
        path = real(text)
        if not done:
            done.append(shutil.rmtree(path))
        return path

    monkeypatch.setattr(catalog, "resolve", resolve)
    assert holdfast.open(run).name == names(run)[-1]


def test_deleted_for_good(run, monkeypatch):
    """When the checkpoint that a path means is gone, that is a `NotFoundError`, not damage."""
    path = f"{run}/{names(run)[2]}"
    found = holdfast.open(path)
    during_read(monkeypatch, lambda: shutil.rmtree(path))
    with pytest.raises(NotFoundError) as caught:
        found.load()
    assert "There is no run or checkpoint" in str(caught.value)
    assert names(run)[1] in str(caught.value)


def test_verify_of_a_deleted_one(run):
    """`verify` of a checkpoint that is gone ends in an error of the tree."""
    found = holdfast.open(run)
    shutil.rmtree(found.path)
    with pytest.raises(holdfast.HoldfastError):
        problems = found.verify()
        raise problems[0]


def test_replaced_meanwhile_is_not_damage(tmp_path, monkeypatch):
    """When another process saves over a checkpoint that is being read, the new one is read."""
    path = tmp_path / "best"
    holdfast.save(path, {"x": np.zeros(1000)})
    found = holdfast.open(path)
    during_read(monkeypatch, lambda: holdfast.save(path, {"x": np.ones(1000)}))
    assert found.load()["x"].sum() == 1000
    assert found.verify() == []


def test_stale_handles_are_looked_up_again(run, monkeypatch):
    """ESTALE of a network file system makes the reader open the files again."""
    found, real, fails = holdfast.open(run), files.open_for_reading, [1, 1]

    def stale(path):
        if fails:
            fails.pop()
            raise StorageError("Cannot open: Stale file handle.", errno=errno.ESTALE, path=path)
        return real(path)

    monkeypatch.setattr(files, "open_for_reading", stale)
    assert found.load()["state"]["w"][0] == 32


def test_previous_is_used_loudly(tmp_path, said):
    """Where a save was interrupted between two renames, the old checkpoint is found and that is said."""
    path = str(tmp_path / "best")
    holdfast.save(path, {"x": np.ones(3)})
    os.rename(path, publish.previous_name(path))
    assert os.listdir(tmp_path) == [".best.previous"]
    assert holdfast.open(path).load()["x"].sum() == 3
    assert f"{path} is missing; its predecessor {tmp_path}/.best.previous is whole and is used" in said.text
    holdfast.save(path, {"x": np.zeros(3)})
    assert os.listdir(tmp_path) == ["best"]
    assert holdfast.open(path).load()["x"].sum() == 0
