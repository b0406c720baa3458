"""Activations that are kept from a forward pass to its backward pass."""

from collections import Counter

import jax
import jax.numpy as jnp
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
    output, most, rows = jax.jit(lambda: kept.forward(function, *args))()
    expected, pullback, aux = jax.vjp(function, *args, has_aux=True)
    assert_close((output, most), (expected, aux))
    assert {"bool", "uint32"} < rows.keys(), "of relu, and dropout's key"
    longer = kept.padded(rows, kept.longest([rows, {"bool": jnp.zeros(99), "int8": jnp.zeros(7)}]))
    assert {name: len(row) for name, row in longer.items()} == {n: len(r) for n, r in rows.items()} | {
        "bool": 99,
        "int8": 7,
    }
    gradient = jnp.sin(output + 1)
    assert_close(jax.jit(lambda rows: kept.backward(function, *args, rows, gradient))(longer), pullback(gradient))


def test_a_backward_pass_computes_no_forward_pass_again():
    """Two convolutions, of the gradients at kernel and input; with `jax.vjp` three."""
    params, x = operands()
    output, _, rows = kept.forward(function, params, x)
    backward = jax.make_jaxpr(lambda rows: kept.backward(function, params, x, rows, output))(rows)
    both = jax.make_jaxpr(lambda x: jax.vjp(function, params, x, has_aux=True)[1](output))(x)
    assert (convolutions(backward.jaxpr), convolutions(both.jaxpr)) == (2, 3)
