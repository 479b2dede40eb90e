"""Names, notes and values that steer a terminal, forge a line, or are markup in a card: shown as text, everywhere."""

import json
import logging
import os
import re
import shutil

import hostile
import numpy as np
import pytest
import torch
from hostile import CONTROL, check_use, command, forge, part, read

import holdfast
from holdfast.errors import FormatError, HoldfastError, printable
from holdfast.format import card, manifest, sealed
from holdfast.log import _Stderr
from holdfast.store.lease import _say

STEERING = {
    "a title": "\x1b]0;owned\x07",
    "a link": "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\",
    "a colour": "\x1b[31mred\x1b[0m",
    "an answer": "\x1b[6n\x1bc\x9b31m",
    "a return": "all is well\rnot",
    "backspaces": "bad\x08\x08\x08good",
    "the other direction": "\u202egpj.exe\u202c \u2066a\u2069 \u200f \u061c",
    "lines": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "half a pair": "\ud800 and \udfff",
    "a zero": "a\0b",
    "rich markup": "[link=http://evil]here[/link][red]x[/] :bomb:",
    "a bell": "\x07" * 100,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    hostile.warm_up()
    return hostile.save_template(tmp_path_factory.mktemp("hostile") / "ckpt")


def dirty(text):
    """Puts a text wherever a checkpoint holds one: in arrays.json, and in checkpoint.json."""

    def arrays(content):
        own = part(content)
        own["arrays"] = {f"{text}{name}": item for name, item in own["arrays"].items()}
        own["skeleton"] = {"$": "flat", "v": "torch"}
        content["parts"][text] = {"kind": text, "skeleton": {text: [text, {"$": "path", "v": text}]}}
        content["overlaps"] = [[text, text]]

    def table(content):
        content.update(
            name=text, note=text, created=text, nan=[text], metrics={text: 1.0, "x": text},
            best={"name": text, "metric": text, "mode": text, "value": 1.0},
            goal={"kind": text, "value": 1}, config={text: text, "nested": {text: [text]}},
            init={text: {"reference": text, "run": text, "name": text}}, declared={text: {text: text}},
            loader={text: text}, environment={text: text, "inner": {text: text}}, fresh={text: text},
            history=[{text: text, "epoch": text}],
        )  # fmt: skip
        outline = {"class": text, "parameters": 1, "trainable": 1, "layers": [[text, text, 1]]}
        content["parts"] = {text: {"kind": text, "arrays": 1, "bytes": 1, "outline": outline}}

    return arrays, table


@pytest.mark.parametrize("name", STEERING)
@pytest.mark.parametrize("card_there", [True, False], ids=["card", "no card"])
def test_nothing_steers_the_terminal(template, tmp_path, name, card_there, tried):
    """Whatever a checkpoint's texts hold, no command prints a control character, and --json stays JSON."""
    text = STEERING[name]
    path = shutil.copytree(template, tmp_path / "ckpt")
    arrays, table = dirty(text)
    if card_there:
        data = f"# {text}\n\n{text}\n".encode("utf-8", "surrogatepass")
        (path / "README.md").write_bytes(data)
    else:
        (path / "README.md").unlink()

    def change(content):
        table(content)
        if card_there:
            hostile.list_file(content, "README.md", data)
        else:
            del content["files"]["README.md"]

    forge(path, arrays=arrays, manifest=change)
    check_use(path, template)
    for words in (
        ["show", path], ["show", path, "--json"], ["show", path, "--arrays"], ["verify", path], ["verify", path, "--json"],
        ["diff", path, template], ["diff", path, template, "--json"], ["diff", template, path, "--all"], ["ls", path],
        ["pin", path], ["export", path, tmp_path / "x.pth"], ["export", path, tmp_path / "x.safetensors"],
        ["show", f"{path}{text}"], ["rewind", tmp_path, f"@{text}"], ["prune", f"{path}{text}"],
    ):  # fmt: skip
        code, out, err = command(*words)
        assert code in range(12), (words, err)
        assert not CONTROL.search(out + err), (words, CONTROL.search(out + err))
        assert "Traceback" not in err
        if "--json" in words and code == 0:
            json.loads(out, parse_constant=pytest.fail)
    tried("hostile")


@pytest.mark.parametrize("name", STEERING)
def test_a_run_of_dirty_texts(tmp_path, name, tried):
    """The same for a run: its list, its warnings on the way to a resume, and the words of its lease."""
    text = STEERING[name]
    path = tmp_path / "run"
    with holdfast.Run(path) as run:
        for epoch in (1, 2):
            run.state["x"] = epoch
            run.save(epoch=epoch)
    first, second = sorted(name for name in os.listdir(path) if name[0] == "0")
    forge(path / second, manifest=dirty(text)[1])  # calls itself otherwise: foreign
    forge(path / first, manifest=lambda m: m.update(note=text, metrics={text: 1.0}, nan=[text]))
    book = read(path, "run.json")
    book.update(note=text, keep={"last": 1, "metric": text, "mode": "max"})
    (path / "run.json").write_bytes(sealed.encode(book))
    (path / "lease-000050").write_text(
        json.dumps({"pid": 4000000, "host": text, "user": text, "acquired": text, "released": True})
    )
    for words in (
        ["ls", path], ["ls", path, "--json"], ["ls", tmp_path], ["verify", path], ["show", path], ["prune", path],
        ["prune", path, "--json"], ["doctor", path], ["show", f"{path}@best"], ["show", f"{path}@seq=2"],
    ):  # fmt: skip
        code, out, err = command(*words)
        assert code in range(12), (words, err)
        assert not CONTROL.search(out + err), words
    tried("hostile")


@pytest.mark.parametrize("name", STEERING)
def test_messages_and_warnings(name, capsys, tried):
    """An error's text, which a traceback prints as it is, and a line of the log never hold control characters."""
    text = STEERING[name]
    error = FormatError(f"{text} is wrong", found=text)
    assert not CONTROL.search(str(error) + error.message + repr(error))
    assert error.found == text
    record = logging.LogRecord("holdfast", logging.WARNING, "", 0, "Passed over %s: %s", (text, error), None)
    _Stderr().emit(record)
    _say(text)
    out, err = capsys.readouterr()
    assert not CONTROL.search(out + err)
    assert "Passed over" in err
    tried("hostile")


def test_what_is_spelled_out_can_be_read():
    """Control characters are spelled, not dropped; line breaks, tabs and all that can be seen stay."""
    assert printable("a\x1b[31m\r\u202e\ud800b") == r"a\x1b[31m\r\u202e\ud800b"
    assert printable("äöü 漢字 🌊\n\t|") == "äöü 漢字 🌊\n\t|"


def test_a_long_message_is_cut():
    """A message as long as a name that a checkpoint holds is cut in the middle; its beginning and its end stay."""
    error = FormatError(f"begin {'x' * 10**7} end", path="p")
    assert len(str(error)) < 20_100
    assert str(error).startswith("begin xxx")
    assert str(error).endswith("xxx end")
    assert "(10,000,010 characters)" in str(error)


# -- cards -----------------------------------------------------------------------------------------

MARKUP = {
    "a script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "an image": "![x](http://evil/beacon.png)",
    "a link": "[free money](http://evil)",
    "a reference": "[x]: http://evil",
    "a reference in use": "[x][y] [y]: http://evil",
    "a heading": "# Trusted by everybody",
    "a rule": "---",
    "a fence": "```\n\n<b>out</b>\n\n```python\nimport os",
    "a list": "- [ ] done",
    "a numbered list": "1. first",
    "a quote": "> said",
    "an entity": "&lt;script&gt;",
    "an autolink": "<http://evil>",
    "a table": "a | b\n--|--\nc | d",
    "code": "`x` ``y``",
    "backslashes": "\\<b\\>\\\\<i>",
    "emphasis": "**bold** __bold__ ~~gone~~",
    "a quote in code": 'x")\nimport os; os.system("x")  #',
    "HTML comment": "<!-- hidden -->",
}


def tags_of(text):
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    return html, re.findall(r"<(/?[a-zA-Z!][\w-]*)", html)


@pytest.mark.parametrize("name", MARKUP)
def test_cards_hold_no_markup(template, name, tried):
    """A card made of texts that are markup has the tags of one made of plain texts, and no other."""
    pytest.importorskip("markdown_it", reason="needs markdown-it-py, which rich brings")

    def render(text):
        content = read(template, "checkpoint.json")
        dirty(text)[1](content)
        return card.render(manifest.decode_manifest(sealed.encode(content), "x"))

    _, own = tags_of(render("plain"))
    html, found = tags_of(render(MARKUP[name]))
    assert found == own, html
    assert "http://evil" not in re.findall(r'(?:href|src)="([^"]*)"', html)
    tried("hostile")


@pytest.mark.parametrize("name", MARKUP)
def test_a_card_s_code_can_be_run(template, name, tried):
    """What a card tells to run opens a path and does nothing else, whatever the checkpoint calls itself."""
    import ast

    content = read(template, "checkpoint.json")
    dirty(MARKUP[name])[1](content)
    text = card.render(manifest.decode_manifest(sealed.encode(content), "x"))
    code = text.partition("```python\n")[2].partition("\n```")[0]
    tree = ast.parse(code)
    assert [type(node).__name__ for node in tree.body] == ["Import", "Assign", "Assign"]
    assert ast.literal_eval(tree.body[1].value.args[0]) == f"path/to/{MARKUP[name]}"
    tried("hostile")


def test_ordinary_cards_stay_readable(tmp_path):
    """What people ordinarily write is not disfigured by backslashes."""
    note = "baseline_2, lr=1e-3 (0.9, 0.999) [1, 2]: 3.5 % better! See docs/x.md - and train.py"
    holdfast.save(tmp_path / "my_net", {"model": torch.nn.Linear(2, 2)}, note=note, config={"batch_size": 32})
    text = (tmp_path / "my_net" / "README.md").read_text()
    assert note in text
    assert "- config.batch_size: 32" in text
    assert 'holdfast.open("path/to/my_net")' in text
    assert "Linear" in text


# -- secrets ---------------------------------------------------------------------------------------

SECRETS = [
    ["--api-key=SECRET"], ["--api_key", "SECRET"], ["--token", "SECRET"], ["--hf-token=SECRET"], ["--password=SECRET"],
    ["--wandb_api_key", "SECRET"], ["--db-passwd", "SECRET"], ["-token=SECRET"], ["--aws-secret-key", "SECRET"],
    ["--url", "https://user:SECRET@host/x"], ["--data=s3://key:SECRET@bucket"], ["postgres://SECRET@host/db"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", SECRETS, ids=" ".join)
def test_secrets_on_the_command_line(tmp_path, monkeypatch, arguments):
    """A checkpoint, which may be handed on, does not hold the values of options called key, token, secret or password."""
    monkeypatch.setattr("sys.argv", ["train.py", "--lr", "0.1", *arguments, "--epochs=3"])
    holdfast.save(tmp_path / "c", {"x": {"a": np.ones(1)}})
    for name in os.listdir(tmp_path / "c"):
        assert b"SECRET" not in (tmp_path / "c" / name).read_bytes(), name
    command_line = holdfast.open(tmp_path / "c").environment["command"]
    assert "--lr 0.1" in command_line
    assert "--epochs=3" in command_line


@pytest.mark.parametrize(
    "argument", ["--max-tokens=512", "--tokenizer=bert", "--eos_token=</s>", "--keyboard=x", "token=5"]
)
def test_what_is_no_secret_is_kept(argument):
    """Options that only sound like a secret are kept: without them nobody could repeat the command."""
    from holdfast.state.environment import without_secrets

    assert without_secrets(["train.py", argument]) == ["train.py", argument]


def test_environment_variables_are_not_kept(tmp_path, monkeypatch):
    """No variable of the environment is stored, beside those that name a Slurm job."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    monkeypatch.setenv("HOLDFAST_X", "SECRET")
    monkeypatch.setenv("SLURM_JWT", "SECRET")
    with holdfast.Run(tmp_path / "run") as run:
        run.state["x"] = 1
        run.save(epoch=1)
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                assert b"SECRET" not in file.read(), name


def test_hostile_variables(tmp_path, monkeypatch):
    """Variables with absurd values neither stop a run nor a command."""
    for name, value in {
        "SLURM_RESTART_COUNT": "9" * 5000, "SLURM_JOB_ID": "\x1b]0;x\x07", "SLURM_ARRAY_TASK_ID": "../../x",
        "COLUMNS": "9" * 100, "LINES": "-1", "HOLDFAST_DEBUG": "", "SLURM_NTASKS": "x", "SLURM_JOB_END_TIME": "1e999",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with holdfast.Run(tmp_path / "run") as run:
        run.state["x"] = 1
        run.save(epoch=1)
    for words in (["ls"], ["show"], ["doctor"], ["prune"]):
        code, out, err = command(words[0], tmp_path / "run")
        assert code == 0
        assert not CONTROL.search(out + err)
    with pytest.raises(HoldfastError):
        holdfast.open(f"{tmp_path}/run@seq=9")
