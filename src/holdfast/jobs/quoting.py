"""Words as bash reads them back, each on one line whatever is in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

# Control characters, and bytes that are no text: sbatch refuses a script with \r\n in it.
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", "'": "\\'"}


def quote(word: str) -> str:
    """One word.

    Raises:
        ValueError: it holds a NUL, which no argument of a program can.

    """
    if "\0" in word:
        raise ValueError("an argument cannot hold a NUL character")
    if not _ODD.search(word):
        return shlex.quote(word)
    # bash takes two digits after \x at most, so a digit may follow.
    pieces = [
        _SHORT[letter]
        if letter in _SHORT
        else "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
        if _ODD.match(letter)
        else letter
        for letter in word
    ]
    return f"$'{''.join(pieces)}'"


def join(words: Sequence[str]) -> str:
    """Several words, with a space between."""
    return " ".join(quote(word) for word in words)
