"""The program as a whole: help, errors, exit codes, pipes, Ctrl-C, and what it does not import."""

import os
import signal
import subprocess
import sys
import time

import pytest
from cli_runs import call, make_run

import holdfast
from holdfast.cli.main import COMMANDS, main
from holdfast.errors import HoldfastError

PROGRAM = [sys.executable, "-c", "from holdfast.cli.main import main; main()"]


def start(*words, **more):
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
    )


def test_help_names_every_command():
    """--help lists all commands, each with a line that begins as its own help does."""
    output = call("--help").output
    for name, (_, line) in COMMANDS.items():
        assert line in output
        assert name in output
        assert main.commands[name].help.split()[0] == line.split()[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    """Each command explains itself and every option, within 80 columns."""
    result = call(name, "--help", env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "--debug" in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    for parameter in main.commands[name].params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name


def test_version():
    """--version says the package's version."""
    assert call("--version").output == f"holdfast {holdfast.__version__}\n"


def test_unknown_commands_and_options_get_a_suggestion(tmp_path):
    """A misspelt command or option ends with code 2 and names the near one."""
    result = call("prun", tmp_path)
    assert (result.exit_code, "'prune'" in result.stderr) == (2, True)
    result = call("ls", "--jsn")
    assert (result.exit_code, "--json" in result.stderr) == (2, True)
    assert call("diff", "a").exit_code == 2


def test_an_error_is_one_message_with_its_code(tmp_path):
    """An error of the tree goes to stderr, without a traceback, and its class decides the exit code."""
    result = call("show", tmp_path / "nothing")
    assert result.exit_code == 4
    assert result.stdout == ""
    assert result.stderr.startswith("holdfast: error: There is no run or checkpoint")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_debug_shows_the_traceback(tmp_path, place):
    """--debug, wherever it stands, and HOLDFAST_DEBUG show the traceback and keep the exit code."""
    words = ["show", str(tmp_path / "nothing")]
    words = ["--debug", *words] if place == "before" else [*words, "--debug"] if place == "after" else words
    environment = {**os.environ, **({"HOLDFAST_DEBUG": "1"} if place == "environment" else {})}
    process = start(*words, env=environment)
    _, errors = process.communicate()
    assert process.returncode == 4
    assert b"Traceback" in errors
    assert b"NotFoundError" in errors


def test_every_error_class_ends_with_its_code(monkeypatch):
    """Whatever error of the tree a command raises, the process ends with that class's code."""

    def classes(kind):
        return [kind, *(below for child in kind.__subclasses__() for below in classes(child))]

    for kind in classes(HoldfastError):
        monkeypatch.setattr(
            "holdfast.checkpoint.catalog.resolve", lambda _, kind=kind: (_ for _ in ()).throw(kind("no"))
        )
        assert call("pin", "x").exit_code == kind.exit_code


def test_a_plain_system_error_is_a_storage_error(monkeypatch):
    """An OSError that nobody translated still ends with code 10 and a message, not with a traceback."""

    def deny(_):
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr("holdfast.checkpoint.catalog.resolve", deny)
    result = call("pin", "x")
    assert result.exit_code == 10
    assert "/somewhere: Permission denied" in result.stderr


def test_messages_do_not_steer_the_terminal(tmp_path):
    """Control characters in what a message quotes are replaced."""
    result = call("show", f"{tmp_path}/\x1b[31mred")
    assert "\x1b" not in result.output


def test_a_closed_pipe_is_quiet(tmp_path):
    """When the reader goes away, nothing is printed and the code is 141, as a shell says SIGPIPE."""
    process = start("show", make_run(tmp_path / "run", epochs=1))
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(), errors) == (141, b"")
    process.stderr.close()


def test_ctrl_c_ends_with_130(tmp_path):
    """An interrupt ends the program with code 130 and one line."""
    os.mkfifo(tmp_path / "gate")
    code = (
        "import holdfast.checkpoint as c\n"
        f"c.catalog.resolve = lambda _: open({str(tmp_path / 'gate')!r}).read()\n"
        "from holdfast.cli.main import main; main(['pin', 'x'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    writer = os.open(tmp_path / "gate", os.O_WRONLY)  # returns when the program waits for us
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    os.close(writer)
    assert process.returncode == 130
    assert errors.strip() == b"holdfast: interrupted"


def test_listing_imports_nothing_heavy(tmp_path):
    """--help and ls import no NumPy, no framework and no rich."""
    path = make_run(tmp_path / "run", epochs=1)
    for words in (["--help"], ["ls", path], ["ls", path, "--json"], ["prune", path]):
        code = (
            "import sys\nfrom holdfast.cli.main import main\n"
            f"try: main({words!r})\nexcept SystemExit: pass\n"
            "print([m for m in ('numpy', 'torch', 'rich', 'jax') if m in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "[]", words
