"""P1, P3 in object stores: killed, or failing, at every request that a copy, a deletion and a fetch are made of."""

import contextlib
import os
import signal

import pytest
from bucket_runs import CASES, Requests, folders, held, prepared, refuse
from disk_faults import child, succeed
from mirrored_runs import train

from holdfast import StorageError
from holdfast.objects.access import Objects
from holdfast.store import lease

CHANGING = ("write", "delete")


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", CASES)
def test_any_request_fails(name, moment, bucket, memory, monkeypatch, tried, said):
    """Whichever request fails, done or not, a reader finds whole checkpoints alone, and the next launch ends it."""
    kept, objects = prepared(name, memory, f"s3://{bucket}/kept")
    case = CASES[name](os.path.join(memory, "now"), f"s3://{bucket}/0")
    case.renew(kept, objects)
    with monkeypatch.context() as patch:
        all_made = Requests(patch).made
        case.act()
    for number, (operation, _) in enumerate(all_made, 1):
        if moment == "after" and operation not in CHANGING:
            continue  # nothing was done: to lose the answer is the same as to be refused
        case = CASES[name](os.path.join(memory, "now"), f"s3://{bucket}/{number}")
        case.renew(kept, objects)
        said.clear()
        with monkeypatch.context() as patch:
            requests = Requests(patch, number, refuse, moment)
            with contextlib.suppress(StorageError) if name == "Lost" else contextlib.nullcontext():
                case.act()  # the training goes on, but for one that has nothing to go on from
        if len(requests.made) < number:
            break  # the last look, which close asks for, came together with another
        where = f"{moment} request {number}, {requests.made[number - 1]}"
        if name != "Lost":
            assert "Refused for the test" in said.text or _settled(name, requests, number, moment), where
        try:
            case.check()
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        tried("requests")
    assert number > 10


def _settled(case, requests, number, moment):
    """What needs no word: an acknowledgement that was lost, of what is only written where none is, and settled by reading."""
    operation, name = requests.made[number - 1]
    created = name.endswith("checkpoint.json") or (case, name) == ("First", "run.json")
    return moment == "after" and operation == "write" and created


@pytest.mark.parametrize("name", ["Further", "Lost"])
def test_killed_at_any_request(name, bucket, memory, zygote, moto, tried):
    """Killed between any two requests that change something, a mirror shows whole checkpoints alone; then it goes on."""
    environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    url = f"s3://{bucket}/killed"
    job = "test_bucket_faults:kill_everywhere"
    tried("requests", zygote.ask(job, name=name, place=memory, url=url, environment=environment))


# -- in the zygote -----------------------------------------------------------------------------------


def kill_everywhere(name, place, url, environment):
    os.environ.update(environment)

    def prepare():
        kept, objects = prepared(name, place, url)
        return kept, {key: data.decode("latin-1") for key, data in objects.items()}

    kept, texts = succeed(child(prepare))
    objects = {key: text.encode("latin-1") for key, text in texts.items()}

    def act(case, number, moment):
        case.renew(kept, objects)
        with pytest.MonkeyPatch.context() as patch:
            made = Requests(patch, number, lambda: os.kill(os.getpid(), signal.SIGKILL), moment).made
            case.act()
        return made

    def check(case):
        lease.Lease.acquire.__func__.__kwdefaults__["stale_after"] = 0.1
        case.check()

    kind, now = CASES[name], os.path.join(place, "now")
    made = succeed(child(act, kind(now, f"{url}/0"), None, None))
    changing = [number for number, (what, _) in enumerate(made, 1) if what in CHANGING]
    if name == "Lost":  # a fetch changes the run with what it reads
        changing = [*range(1, changing[0] + 1)]
    points = [(changing[0], "before"), *((number, "after") for number in changing)]
    assert len(points) > 7
    for number, moment in points:
        case = kind(now, f"{url}/{number}{moment}")
        answer = child(act, case, number, moment)
        where = f"{name}: killed {moment} request {number} of {len(made)}, {made[number - 1]}"
        assert answer["signal"] == signal.SIGKILL, f"{where}: it was not killed: {answer}"
        try:
            succeed(child(check, case))
        except AssertionError as error:
            raise AssertionError(f"{where}\n{error}") from None
    return len(points)


def test_what_is_unfinished_is_removed(bucket, memory):
    """What an interrupted copy of a checkpoint left that is not wanted any more goes with the next copy."""
    url, run = f"s3://{bucket}/m", os.path.join(memory, "run")
    train(run, 3, [url])
    objects = Objects.at(url)
    [first, _] = folders(url)
    lost = first.replace("000002", "000001")
    objects.put(f"{lost}/state.safetensors", b"half")
    objects.put(f"{lost}/README.md", b"of it")
    assert held(url) == [2, 3]
    train(run, 4, [url])
    assert held(url) == [3, 4]
    assert len(folders(url)) == 2
