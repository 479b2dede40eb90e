"""What `holdfast submit` writes for bash and for sbatch is read back as it was meant, whatever is in it."""

import os
import subprocess

from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.jobs.quoting import quote
from holdfast.jobs.script import command_line
from holdfast.jobs.words import directive, option_of, read_options

# As a program gets them: any bytes but NUL, decoded as Python does.
arguments = st.binary(max_size=40).map(lambda data: os.fsdecode(data.replace(b"\0", b""))) | st.text(
    st.sampled_from("ab0 \t\n\r'\"\\$`!*?~#;&|<>(){}[]=-éß語🌊\x07\x1b\u2028"), max_size=12
)


@settings(max_examples=150, deadline=None)
@given(words=st.lists(arguments, min_size=1, max_size=6))
@example(words=["python", "it's", 'a "b"', "$HOME `id` $(id)", "two\nlines\r\n", "", "-x", "\x0a1", "語"])
def test_a_command_reaches_bash_word_for_word(words):
    """The line of the script that holds the command gives bash the arguments that the user gave, byte for byte."""
    script = f'{command_line(words)}\nprintf "%s\\0" "${{command[@]}}"\n'
    done = subprocess.run(["bash", "-c", os.fsencode(script)], capture_output=True, check=True, timeout=60)
    assert [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]] == words


@given(word=arguments)
def test_each_word_stands_on_one_line(word):
    """No argument can begin a line of the script, where sbatch would read it, or bring in a DOS line break."""
    assert not set(quote(word)) & set("\n\r")


texts = st.text(st.characters(blacklist_characters="\0\n\r", blacklist_categories=("Cs",)), max_size=30)


def as_sbatch_reads(line):
    """The words of a directive, by sbatch's own rules: # ends it, a backslash escapes, quotes hold together."""
    words, word, quoted, escaped, begun = [], "", "", False, False
    for letter in line.removeprefix("#SBATCH") + " ":
        if escaped:
            word, escaped, begun = word + letter, False, True
        elif letter == "\\":
            escaped = True
        elif quoted:
            quoted, word = ("", word) if letter == quoted else (quoted, word + letter)
        elif letter in "\"'":
            quoted, begun = letter, True
        elif letter == "#":
            break
        elif letter in " \t\n\v\f\r":
            words += [word] if begun else []
            word, begun = "", False
        else:
            word, begun = word + letter, True
    return words


@given(value=texts)
@example(value='a "b" # c')
@example(value="a\\b")
@example(value="it's")
def test_an_option_reaches_sbatch_as_it_was_given(value):
    """A line #SBATCH holds the option's words, spaces, quotes, # and backslashes included."""
    option = option_of("comment", value)
    assert as_sbatch_reads(directive(option)) == [f"--comment={value}"]
    if value and not value.startswith("-"):
        (option,) = read_options(["-J", value])
        assert as_sbatch_reads(directive(option)) == ["-J", value]
