"""Activations that are kept from a forward pass to its backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close

from lpjax.methods import kept


def operands():
    kernel = jnp.cos(jnp.arange(24.0)).reshape(3, 2, 4)
    params = {"kernel": kernel, "scale": jnp.arange(1.0, 5.0).reshape(1, 1, 4), "unused": jnp.ones(2)}
    return params, jnp.sin(jnp.arange(20.0)).reshape(2, 5, 2)


def function(params, x, key):
    """A convolution, relu, dropout, and a row of cosines."""
    maps = jax.lax.conv_general_dilated(x, params["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    maps = jax.nn.relu(maps)
    maps = jnp.where(jax.random.bernoulli(key, 0.5, maps.shape), maps, 0.0)
    return jnp.cos(maps * params["scale"]), maps.max()


def convolutions(jaxpr):
    found = [str(eqn) for eqn in jaxpr.eqns]
    return sum(own.count("conv_general_dilated[") for own in found)


def test_gradients_of_kept_activations_are_those_of_autodiff(x64):
    """What is kept is what the convolution returns, and the key, which is no argument."""
    args, key = operands(), jax.random.key(3)
    room = {"float64": 9, "int8": 7}

    @jax.jit
    def forward(key):
        run = partial(function, key=key)
        output, most, own = kept.forward(run, *args)
        assert sorted((leaf.dtype.name, leaf.shape) for leaf in own) == [("float64", (2, 5, 4)), ("uint32", (2,))]
        lengths = {name: length + room.get(name, 0) for name, length in kept.lengths(run, *args).items()}
        return output, most, kept.rows(own, lengths)

    output, most, rows = forward(key)
    expected, pullback, aux = jax.vjp(partial(function, key=key), *args, has_aux=True)
    assert_close((output, most), (expected, aux))
    assert {name: len(row) for name, row in rows.items()} == {"float64": 40 + 9, "uint32": 2}
    gradient, other = jnp.sin(output + 1), jax.random.key(4)  # that of the forward pass is kept
    backward = jax.jit(lambda rows, key: kept.backward(partial(function, key=key), *args, rows, gradient))
    assert_close(backward(rows, other), pullback(gradient))


def test_a_row_without_room_is_an_error():
    run = partial(function, key=jax.random.key(3))
    _, _, own = kept.forward(run, *operands())
    lengths = kept.lengths(run, *operands())
    with pytest.raises(AssertionError):
        kept.rows(own, lengths | {"float32": lengths["float32"] - 1})


def test_weights_of_the_backward_pass_may_be_newer_than_its_activations(x64):
    """y = W tanh(V x): activations of (V, W), gradients at (V', W')."""
    key = jax.random.split(jax.random.key(0), 6)
    V, W, newer_V, newer_W, g = (jax.random.normal(k, (3, 3)) for k in key[:5])
    x = jax.random.normal(key[5], (3, 2))

    def network(params, x):
        return params[1] @ jnp.tanh(params[0] @ x), ()

    _, _, own = kept.forward(network, (V, W), x)
    rows = kept.rows(own, kept.lengths(network, (V, W), x))
    found = kept.backward(network, (newer_V, newer_W), x, rows, g[:, :2])
    hidden = jnp.tanh(V @ x)
    behind = (newer_W.T @ g[:, :2]) * (1 - hidden**2)
    assert_close(found, ((behind @ x.T, g[:, :2] @ hidden.T), newer_V.T @ behind))


def test_a_backward_pass_computes_no_forward_pass_again():
    """Two convolutions, of the gradients at kernel and input; with `jax.vjp` three."""
    params, x = operands()
    run = partial(function, key=jax.random.key(3))
    output, _, own = kept.forward(run, params, x)
    rows = kept.rows(own, kept.lengths(run, params, x))
    backward = jax.make_jaxpr(lambda rows: kept.backward(run, params, x, rows, output))(rows)
    both = jax.make_jaxpr(lambda x: jax.vjp(run, params, x, has_aux=True)[1](output))(x)
    assert (convolutions(backward.jaxpr), convolutions(both.jaxpr)) == (2, 3)
