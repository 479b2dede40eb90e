"""What a bucket holds of a run, seen beside the library's own way to it, and every byte of it checked."""

import os
import tempfile

from mirrored_runs import steps

from holdfast.format.names import parse_checkpoint_name

PREFIX = "runs/first"


def url_of(store):
    """Where the tests' run has its mirror."""
    return f"{store.url}/{PREFIX}"


def held(store):
    """The steps of the checkpoints that a reader finds there: those with a `checkpoint.json`, all of which are whole."""
    keys = store.keys(f"{PREFIX}/")
    with tempfile.TemporaryDirectory() as place:
        for key in keys:
            name = key.removeprefix(f"{PREFIX}/")
            folder = name.partition("/")[0]
            if f"{PREFIX}/{folder}/checkpoint.json" in keys:
                path = os.path.join(place, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(store.read(key))
        return steps(place)


def folders(store):
    """The steps of all that lies there under a checkpoint's name, whole or not; also of parts of files."""
    keys = [*store.keys(f"{PREFIX}/"), *(key for key, _ in store.uploads(f"{PREFIX}/"))]
    parsed = {parse_checkpoint_name(key.removeprefix(f"{PREFIX}/").partition("/")[0]) for key in keys}
    return sorted(one.step for one in parsed if one is not None)


def key_of(store, step, file):
    """The key of a file of the checkpoint of that step."""
    for key in store.keys(f"{PREFIX}/"):
        folder, _, name = key.removeprefix(f"{PREFIX}/").partition("/")
        parsed = parse_checkpoint_name(folder)
        if parsed is not None and parsed.step == step and name == file:
            return key
    raise LookupError(f"{step} {file}")
