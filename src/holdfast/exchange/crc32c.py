"""CRC-32C (Castagnoli), the checksum in TensorFlow's checkpoints, at the speed of NumPy.

A long text is cut into as many equal lanes as there are columns; one step takes the next byte of each.
What the lanes come to is then joined, each shifted by the length of those behind it (the matrix of a
shift is applied as four tables of 256 entries).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

_POLYNOMIAL = 0x82F63B78
_LANES = 4096
_ALONE = 1 << 16  # bytes up to which lanes are shorter than the work of joining them

Table = np.ndarray[Any, np.dtype[np.uint32]]


@functools.cache
def _table() -> Table:
    found = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        found = np.where(found & 1, (found >> 1) ^ np.uint32(_POLYNOMIAL), found >> 1)
    return found


@functools.cache
def _list() -> list[int]:
    return [int(number) for number in _table()]


def crc32c(data: bytes | memoryview | np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    """The checksum of some bytes."""
    array = np.frombuffer(data, np.uint8)
    register = 0xFFFFFFFF
    size = len(array) // _LANES if len(array) > _ALONE else 0
    if size:
        register = _through_lanes(array[: size * _LANES].reshape(_LANES, size), register)
    table = _list()
    for byte in array[size * _LANES :].tobytes():
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked(data: bytes | memoryview | np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    """The checksum as LevelDB and TensorFlow store it, so that one of a checksum is no weakness."""
    plain = crc32c(data)
    return (((plain >> 15) | (plain << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _through_lanes(lanes: np.ndarray[Any, np.dtype[np.uint8]], register: int) -> int:
    table = _table()
    states = np.zeros(len(lanes), np.uint32)
    states[0] = register
    columns = np.ascontiguousarray(lanes.T).astype(np.uint32) if lanes.size <= 1 << 22 else lanes.T
    for column in columns:
        states = table[(states ^ column) & np.uint32(0xFF)] ^ (states >> np.uint32(8))
    shift = _shift(lanes.shape[1])
    total = 0
    for state in states.tolist():
        total = (
            shift[0][total & 0xFF]
            ^ shift[1][(total >> 8) & 0xFF]
            ^ shift[2][(total >> 16) & 0xFF]
            ^ shift[3][total >> 24]
        ) ^ state
    return total


def _shift(length: int) -> list[list[int]]:
    """What `length` zero bytes make of a register, as a table for each of its bytes."""
    matrix = [_list()[bit & 0xFF] if bit <= 0x80 else bit >> 8 for bit in (1 << place for place in range(32))]
    found = [1 << place for place in range(32)]
    while length:
        if length & 1:
            found = [_times(matrix, column) for column in found]
        matrix = [_times(matrix, column) for column in matrix]
        length >>= 1
    return [[_times(found, byte << (8 * place)) for byte in range(256)] for place in range(4)]


def _times(matrix: list[int], vector: int) -> int:
    total, place = 0, 0
    while vector:
        if vector & 1:
            total ^= matrix[place]
        vector >>= 1
        place += 1
    return total
