"""The options of `sbatch`: taken as the user wrote them, known as far as something is decided from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from holdfast.errors import UsageError

# Every long option of sbatch 22.05 to 25.05; the letter of those that have one.
LETTERS = {
    "a": "array", "A": "account", "b": "begin", "B": "extra-node-info", "c": "cpus-per-task", "C": "constraint",
    "d": "dependency", "D": "chdir", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "h": "help",
    "i": "input", "J": "job-name", "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution",
    "n": "ntasks", "N": "nodes", "o": "output", "O": "overcommit", "p": "partition", "q": "qos", "Q": "quiet",
    "s": "oversubscribe", "S": "core-spec", "t": "time", "u": "usage", "V": "version", "v": "verbose",
    "w": "nodelist", "W": "wait", "x": "exclude",
}  # fmt: skip
NAMES = frozenset(LETTERS.values()) | frozenset(
    """acctg-freq batch bb bbf cluster-constraint comment consolidate-segments container container-id contiguous
    cores-per-socket cpu-freq cpus-per-gpu deadline delay-boot exclusive export export-file extra get-user-env gid
    gpu-bind gpu-freq gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint ignore-pbs kill-on-invalid-dep
    mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-requeue
    ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket oom-kill-step open-mode parsable power prefer
    priority profile propagate reboot requeue reservation resv-ports segment signal sockets-per-node spread-job
    spread-segments stepmgr switches test-only thread-spec threads-per-core time-min tmp tres-bind tres-per-task
    uid use-min-nodes wait-all-nodes wckey wrap""".split()  # noqa: SIM905 (read by people)
)
# Letters that take no value; behind any other one, the rest of the word is its value.
_BARE_LETTERS = frozenset("HhkOQsuVvW")


@dataclasses.dataclass(frozen=True)
class Option:
    """One option as it was written.

    Attributes:
        name: its long name, as far as it is known; else as written, without hyphens.
        value: None for one without.
        words: what the user wrote: ``("-p", "gpu")``, ``("--mem=4G",)``.

    """

    name: str
    value: str | None
    words: tuple[str, ...]

    @property
    def shown(self) -> str:
        return " ".join(self.words)


def read_options(words: Sequence[str]) -> list[Option]:
    """The options in these words.

    A word that does not begin with a hyphen is the value of the option before it; sbatch would take it for
    its script otherwise, and that is written here.

    Raises:
        UsageError: a word belongs to no option.

    """
    found: list[Option] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            raise UsageError(
                f"{word!r} is neither an option of sbatch nor the value of one. Next: put the command behind --, as in "
                f"holdfast submit --run RUN --time=01:00:00 -- python train.py.",
                found=word,
            )
        if word.startswith("--"):
            text, equals, value = word[2:].partition("=")
            found.append(_option(_full_name(text), value if equals else None, (word,), rest))
        else:
            found += _short(word, rest)
    return found


def _option(name: str, value: str | None, words: tuple[str, ...], rest: list[str]) -> Option:
    if value is None and rest and (not rest[0].startswith("-") or rest[0] == "-"):
        value = rest.pop(0)
        words = (*words, value)
    return Option(name, value, words)


def _short(word: str, rest: list[str]) -> list[Option]:
    """``-p gpu``, ``-pgpu``, ``-H``, and several without values in one word, like ``-Hk``."""
    found = []
    for place, letter in enumerate(word[1:], start=1):
        name = LETTERS.get(letter, letter)
        if letter in _BARE_LETTERS:
            found.append(Option(name, None, (f"-{letter}",)))
            continue
        value = word[place + 1 :]
        if value:
            found.append(Option(name, value, (f"-{letter}", value)))
        else:
            found.append(_option(name, None, (f"-{letter}",), rest))
        break
    return found


def _full_name(text: str) -> str:
    """The name that sbatch takes an abbreviation for; as it is when there is none, or more than one."""
    if text in NAMES:
        return text
    near = [name for name in NAMES if name.startswith(text)]
    return near[0] if text and len(near) == 1 else text


def option_of(name: str, value: str | bool | float) -> Option | None:
    """An option from a settings file; None for one that is switched off there."""
    if value is False:
        return None
    if value is True:
        return Option(name, None, (f"--{name}",))
    return Option(name, str(value), (f"--{name}={value}",))


def merge(defaults: Iterable[Option], given: Sequence[Option]) -> list[Option]:
    """The defaults that nothing was given for, then what was given."""
    names = {option.name for option in given}
    opposite = {"requeue": "no-requeue", "no-requeue": "requeue"}
    names |= {opposite[name] for name in names if name in opposite}
    return [*(option for option in defaults if option.name not in names), *given]


def last(options: Iterable[Option], name: str) -> Option | None:
    """The option of that name that counts: sbatch takes the last one."""
    found = None
    for option in options:
        if option.name == name:
            found = option
    return found


def values(options: Iterable[Option]) -> Mapping[str, str | None]:
    """Name → value, for what is written down of a submission."""
    return {option.name: option.value for option in options}


def directive(option: Option) -> str:
    """The line of a batch script that says the same.

    Raises:
        UsageError: sbatch has no way to write it in a script.

    """
    if any("\n" in word or "\r" in word or "\0" in word for word in option.words):
        raise UsageError(
            f"The value of --{option.name} has a line break, which a line of a batch script cannot hold: {option.value!r}. "
            f"Next: leave the line break out.",
            found=option.value,
        )
    return "#SBATCH " + " ".join(_quoted(word) for word in option.words)


_PLAIN = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:,@%+*[]{}^~!$&|()<>?;`"
)


def _quoted(word: str) -> str:
    """As sbatch reads it: a # begins a comment, a backslash escapes, either kind of quotes holds words together."""
    if word and set(word) <= _PLAIN:
        return word
    if word.isprintable() and word and not set(word) & set(" \t#'\"\\"):
        return word
    # Only the value is quoted, so that the option can be read: --comment="a b".
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}{equals}"{escaped}"'
