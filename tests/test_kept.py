"""Activations that are kept from a forward pass to its backward pass."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close

from lpjax.methods import kept


def operands():
    kernel = jnp.cos(jnp.arange(24.0)).reshape(3, 2, 4)
    params = {"kernel": kernel, "scale": jnp.arange(1.0, 5.0).reshape(1, 1, 4), "unused": jnp.ones(2)}
    return params, jnp.sin(jnp.arange(20.0)).reshape(2, 5, 2)


def function(params, x):
    """A convolution, relu, dropout whose masks are of a key that is kept, and a row of cosines."""
    maps = jax.lax.conv_general_dilated(x, params["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    maps = dropped(jax.nn.relu(maps), jax.random.key(jnp.sign(x).sum().astype(int)))
    return jnp.cos(maps * params["scale"]), maps.max()


@jax.custom_vjp
def dropped(x, key):
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0.0)


dropped.defvjp(lambda x, key: (dropped(x, key), key), lambda key, g: (dropped(g, key), None))


def convolutions(jaxpr):
    return Counter(eqn.primitive.name for eqn in jaxpr.eqns)["conv_general_dilated"]


def test_gradients_of_kept_activations_are_those_of_autodiff(x64):
    args = operands()
    room = {"bool": 99, "int8": 7}
    lengths = kept.lengths([(function, *args)]) | room
    assert {"bool", "uint32"} < lengths.keys(), "of relu, and dropout's key"

    @jax.jit
    def forward():
        output, most, own = kept.forward(function, *args)
        return output, most, kept.rows(own, lengths)

    output, most, rows = forward()
    expected, pullback, aux = jax.vjp(function, *args, has_aux=True)
    assert_close((output, most), (expected, aux))
    assert {name: len(row) for name, row in rows.items()} == lengths
    gradient = jnp.sin(output + 1)
    assert_close(jax.jit(lambda rows: kept.backward(function, *args, rows, gradient))(rows), pullback(gradient))


def test_a_row_without_room_is_an_error():
    _, _, own = kept.forward(function, *operands())
    lengths = kept.lengths([(function, *operands())])
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
    rows = kept.rows(own, kept.lengths([(network, (V, W), x)]))
    found = kept.backward(network, (newer_V, newer_W), x, rows, g[:, :2])
    hidden = jnp.tanh(V @ x)
    behind = (newer_W.T @ g[:, :2]) * (1 - hidden**2)
    assert_close(found, ((behind @ x.T, g[:, :2] @ hidden.T), newer_V.T @ behind))


def test_a_backward_pass_computes_no_forward_pass_again():
    """Two convolutions, of the gradients at kernel and input; with `jax.vjp` three."""
    params, x = operands()
    output, _, own = kept.forward(function, params, x)
    rows = kept.rows(own, kept.lengths([(function, params, x)]))
    backward = jax.make_jaxpr(lambda rows: kept.backward(function, params, x, rows, output))(rows)
    both = jax.make_jaxpr(lambda x: jax.vjp(function, params, x, has_aux=True)[1](output))(x)
    assert (convolutions(backward.jaxpr), convolutions(both.jaxpr)) == (2, 3)
