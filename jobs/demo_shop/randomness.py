"""Stateless random numbers: each is a pure function of the seed, a purpose, and a key such as user and event number.

A stateful generator's numbers depend on earlier draws, and so on how users are cut into chunks. Here, the number
for user 7's third event is the same in any chunk and order. The mixing function is the finaliser of SplitMix64
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def keys(seed: int, *numbers: int | np.ndarray) -> np.ndarray:
    """uint64 keys, one for each (seed, number, number, …); `numbers` are non-negative integers and broadcast.

    Scalars alone give a key of shape (1,).
    """
    state = _mix(np.array([seed], dtype=np.uint64) + _GOLDEN)
    for number in numbers:
        state = extend(state, number)
    return state


def extend(state: np.ndarray, number: int | np.ndarray) -> np.ndarray:
    """The keys one level down, as if `number` were one more argument of `keys`. Shapes broadcast."""
    return _mix(state + (np.atleast_1d(number).astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def uniform(state: np.ndarray, purpose: str) -> np.ndarray:
    """float64 in [0, 1), of the shape of the keys `state`; two purposes give independent numbers."""
    salt = np.frombuffer(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), dtype="<u8")
    mixed = _mix(state ^ salt)
    mixed >>= np.uint64(11)
    return mixed * 2.0**-53


def whole(state: np.ndarray, purpose: str, below: int | np.ndarray) -> np.ndarray:
    """int64 in [0, below), of the shape of the keys `state`."""
    return (uniform(state, purpose) * below).astype(np.int64)


def _mix(state: np.ndarray) -> np.ndarray:
    mixed = state ^ (state >> np.uint64(30))
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed
