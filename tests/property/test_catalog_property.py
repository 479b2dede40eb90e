"""A run read lazily, against a reading of everything: any damage, marks, NaN and strangers."""

import contextlib
import dataclasses
import os
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import HoldfastError
from holdfast.format import sealed
from holdfast.format.manifest import Manifest, Progress, SmallFile, decode_manifest, encode_manifest
from holdfast.format.names import parse_checkpoint_name, parse_reference
from holdfast.policy.keep import Keep, Record, decide
from holdfast.store import book, catalog, retention

RUN = "c0ffee"
KEEP = Keep(last=2, best=2, metric="score", mode="max", every_epochs=2, budget=9)
SELECTORS = ["", "@latest", "@best", "@-1", "@-3", "@seq=2", "@step=1", "@epoch=1", "@epoch=0"]

checkpoints = st.fixed_dictionaries(
    {
        "epoch": st.integers(0, 2),
        "step": st.integers(0, 2),
        "batch": st.sampled_from([0, 0, 1]),
        "score": st.sampled_from([None, 1, 2, 2, 0.5, True, {"float": "nan"}, "no number"]),
        "nan": st.sampled_from([[], [], [], ["model/w"]]),
        "size": st.integers(0, 5),
        "state": st.sampled_from(
            ["whole"] * 6 + ["flipped", "missing", "stranger", "renamed", "newer", "twice"]
        ),
        "pinned": st.booleans(),
        "abandoned": st.sampled_from([False, False, True]),
        "rows": st.integers(0, 3),
    }
)


def write(run, number, facts):
    name = f"{number:06d}_epoch-{facts['epoch']:04d}_step-{facts['step']:08d}_20261123T083107Z"
    os.mkdir(f"{run}/{name}")
    state = facts["state"]
    made = Manifest(
        run="f00" if state == "stranger" else RUN,
        name="other" if state == "renamed" else name,
        sequence=number,
        version=(2, 0) if state == "newer" else (1, 0),
        created="2026-11-23T08:31:07.000Z",
        progress=Progress(epoch=facts["epoch"], step=facts["step"], batch=facts["batch"]),
        metrics={} if facts["score"] is None else {"score": facts["score"], "loss": 0.1 * number},
        nan=facts["nan"],
        files={"arrays.json": SmallFile(facts["size"], "0" * 32)},
        history=[{"epoch": row, "loss": 0.5} for row in range(number - facts["rows"], number)],
    )
    data = encode_manifest(made)
    if state == "flipped":
        data = data.replace(b'"stopped":false', b'"stopped":falsd')
    elif state == "twice":
        body = data[: -sealed._LINE_LENGTH].replace(b'"step":', b'"step":0,"step":')
        data = body + sealed._LINE % sealed.digest(body).encode("ascii")
    if state != "missing":
        with open(f"{run}/{name}/checkpoint.json", "wb") as file:
            file.write(data)
    for kind in ("pinned", "abandoned"):
        if facts[kind]:
            folder = f"{run}/{'pins' if kind == 'pinned' else kind}"
            os.makedirs(folder, exist_ok=True)
            open(f"{folder}/{name}", "w").close()


@dataclasses.dataclass
class Seen:
    """A checkpoint as a reader of everything finds it."""

    folder: str
    record: Record
    readable: bool


def read_everything(run):
    """The records of all checkpoints, from whole manifests, oldest first."""
    found = []
    for folder in sorted(name for name in os.listdir(run) if name[:1].isdigit()):
        name, manifest = parse_checkpoint_name(folder), None
        with contextlib.suppress(HoldfastError, FileNotFoundError):
            with open(f"{run}/{folder}/checkpoint.json", "rb") as file:
                manifest = decode_manifest(file.read(), "x")
        own = manifest is not None and (manifest.run, manifest.name) == (RUN, folder)
        metrics = manifest.metrics if manifest else {}
        record = Record(
            name=folder,
            sequence=name.sequence,
            epoch=name.epoch,
            step=name.step,
            batch=manifest.progress.batch if manifest else 0,
            metrics={key: value for key, value in metrics.items() if isinstance(value, (int, float))},
            nan=bool(manifest and manifest.nan),
            pinned=os.path.exists(f"{run}/pins/{folder}"),
            abandoned=os.path.exists(f"{run}/abandoned/{folder}"),
            size=sum(file.size for file in manifest.files.values()) if manifest else 0,
            whole=own,
        )
        found.append(Seen(folder, record, manifest is not None))
    return found


def meant(found, selector):
    """The folder that a selector means; None for an error."""
    usable = [one for one in found if one.record.whole and not one.record.abandoned]
    clean = [one for one in usable if not one.record.nan]
    if selector == "":
        right = clean or usable
    elif selector == "@latest":
        right = usable
    elif selector == "@best":
        scored = [one for one in reversed(clean) if "score" in one.record.metrics]
        top = max((one.record.metrics["score"] for one in scored), default=None)
        right = [one for one in scored if one.record.metrics["score"] == top]
    elif selector.startswith("@-"):
        right = usable[: len(usable) - int(selector[2:]) + 1]
    elif selector == "@seq=2":
        right = [one for one in found if one.record.sequence == 2]
        right = right if right and right[0].record.whole else []
    elif selector == "@step=1":
        right = [one for one in usable if one.record.step == 1]
    else:
        epoch = int(selector[-1])
        right = [one for one in usable if (one.record.epoch, one.record.batch) == (epoch, 0)]
    return right[-1].folder if right else None


@settings(max_examples=300, deadline=None)
@given(st.lists(checkpoints, max_size=7))
def test_lazy_and_full_answers_are_the_same(states):
    """What references, rankings, verdicts and sizes say is what a reading of everything says."""
    with tempfile.TemporaryDirectory() as run:
        with open(f"{run}/run.json", "wb") as file:
            about = {"format": "holdfast-run", "version": [1, 0], "id": RUN, "created": "x"}
            keep = {field.name: getattr(KEEP, field.name) for field in dataclasses.fields(KEEP)}
            file.write(sealed.encode({**about, "keep": keep}))
        assert book.read_run(run).id == RUN
        for number, facts in enumerate(states, start=1):
            write(run, number, facts)
        found = read_everything(run)
        for selector in SELECTORS:
            reference = parse_reference(run + selector)
            try:
                answer = catalog.find(run, catalog.scan(run), reference).folder
            except HoldfastError:
                answer = None
            assert answer == meant(found, selector), selector
        entries = catalog.scan(run)
        assert [entry.record() for entry in entries] == [one.record for one in found]
        assert [(e.summary is not None, e.foreign) for e in entries] == [
            (one.readable, one.readable and not one.record.whole) for one in found
        ]
        lazily = [entry.folder for entry in catalog.newest(catalog.scan(run))]
        usable = [one for one in reversed(found) if one.record.whole and not one.record.abandoned]
        assert lazily == [one.folder for one in sorted(usable, key=lambda one: one.record.nan)]
        for prune in (False, True):
            verdicts = retention.verdicts(KEEP, catalog.scan(run), prune=prune)
            assert verdicts == decide(KEEP, [one.record for one in found], prune=prune)
