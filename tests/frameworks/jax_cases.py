"""JAX values in `run.state`: a loop by steps, killed and resumed, equal to the bit."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import holdfast
from holdfast import Every, UsageError

AdamState = collections.namedtuple("AdamState", ["count", "mu", "nu"])


@jax.jit
def train(params, opt, key):
    key, draw = jax.random.split(key)
    x = jax.random.normal(draw, (16, 4))
    grads = jax.grad(lambda p: jnp.mean((x @ p["w"] + p["b"] - 1.0) ** 2))(params)
    mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, opt.mu, grads)
    params = jax.tree.map(lambda p, m: p - 0.1 * m, params, mu)
    return params, AdamState(opt.count + 1, mu, opt.nu), key


def loop(path, goal, stop_at=None):
    run = holdfast.Run(path, every=Every(steps=3))
    zeros = {"w": jnp.zeros((4, 2)), "b": jnp.zeros(2, jnp.bfloat16).astype(jnp.float32)}
    run.state.update(params=zeros, opt=AdamState(0, zeros, ()), key=jax.random.key(0))
    for step in run.steps(goal):
        if step == stop_at:
            break
        state = run.state
        state["params"], state["opt"], state["key"] = train(state["params"], state["opt"], state["key"])
    result = dict(run.state)
    run.close()
    return result


def test_an_interrupted_jax_loop_ends_as_a_straight_one(tmp_path):
    """Parameters, a named tuple of optimizer state and a typed key continue from the last save, to the bit."""
    straight = loop(tmp_path / "straight", 10)
    loop(tmp_path / "cut", 10, stop_at=8)
    resumed = loop(tmp_path / "cut", 10)
    assert type(resumed["opt"]) is AdamState
    assert isinstance(resumed["params"]["w"], jax.Array)
    assert (jax.random.key_data(resumed["key"]) == jax.random.key_data(straight["key"])).all()
    for a, b in zip(
        jax.tree.leaves((resumed["params"], resumed["opt"])),
        jax.tree.leaves((straight["params"], straight["opt"])),
        strict=True,
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "int8", "bool", "complex64"])
def test_each_dtype_comes_back(tmp_path, dtype):
    """JAX arrays of each dtype come back as JAX arrays, equal to the bit, and as NumPy arrays on request."""
    array = (jnp.arange(6).reshape(2, 3) % 2).astype(dtype)
    holdfast.save(tmp_path / "x", {"value": {"a": array, "scalar": jnp.ones((), dtype)}})
    found = holdfast.open(tmp_path / "x").load()["value"]
    assert isinstance(found["a"], jax.Array)
    assert found["a"].dtype == array.dtype
    assert np.asarray(found["a"]).tobytes() == np.asarray(array).tobytes()
    assert found["scalar"].shape == ()
    plain = holdfast.open(tmp_path / "x").load(arrays="numpy")["value"]["a"]
    assert type(plain) is np.ndarray
    assert plain.tobytes() == np.asarray(array).tobytes()


def test_what_needs_64_bits_says_so(tmp_path):
    """A 64-bit array is not silently narrowed when it is asked for as a JAX array with 64-bit types off."""
    holdfast.save(tmp_path / "x", {"value": np.arange(3)})
    with pytest.raises(holdfast.FormatError, match="jax_enable_x64"):
        holdfast.open(tmp_path / "x").load(arrays="jax")


def test_a_jax_array_cannot_be_tracked(tmp_path):
    """An array that cannot be restored in place is refused with the remedy."""
    with pytest.raises(UsageError, match=r"run\.state\['params'\]"):
        holdfast.Run(tmp_path / "r").track(params=jnp.zeros(3))
