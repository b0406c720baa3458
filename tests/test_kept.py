"""Activations that are kept from a forward pass to its backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close, small_run

from lpjax.methods import kept
from lpjax.nn import chain


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

    @jax.jit
    def forward(key):
        run = partial(function, key=key)
        output, most, own = kept.forward(run, *args)
        assert sorted((leaf.dtype.name, leaf.shape) for leaf in own) == [("float64", (2, 5, 4)), ("uint32", (2,))]
        lengths = kept.longest([kept.lengths(run, *args), {"float64.0": 40 + 9}])
        return output, most, kept.rows(own, lengths)

    output, most, rows = forward(key)
    expected, pullback, aux = jax.vjp(partial(function, key=key), *args, has_aux=True)
    assert_close((output, most), (expected, aux))
    assert {name: len(row) for name, row in rows.items()} == {"float64.0": 40 + 9, "uint32.0": 2}
    gradient, other = jnp.sin(output + 1), jax.random.key(4)  # that of the forward pass is kept
    backward = jax.jit(lambda rows, key: kept.backward(partial(function, key=key), *args, rows, gradient))
    assert_close(backward(rows, other), pullback(gradient))


def test_a_row_without_room_is_an_error():
    run = partial(function, key=jax.random.key(3))
    _, _, own = kept.forward(run, *operands())
    lengths = kept.lengths(run, *operands())
    with pytest.raises(AssertionError):
        kept.rows(own, lengths | {"float32.0": lengths["float32.0"] - 1})


def test_arrays_of_unlike_stages_share_rows_by_rank():
    """An array of another stage's length is a row as it is; what the other stage has besides is zeros."""
    small, large, single = jnp.ones((2, 3)), jnp.full((4, 5), 2.0), jnp.full(7, 3, jnp.int32)

    several = {"float32.0": 20, "float32.1": 4, "int32.0": 7}, {"float32.0": 9, "float32.1": 6, "float32.2": 2}
    lengths = kept.longest(several)
    assert kept.size(lengths) == 4 * (20 + 6 + 2 + 7)
    rows = kept.rows([small, single, large], lengths)
    assert {name: row.tolist() for name, row in rows.items()} == {
        "float32.0": [2.0] * 20,
        "float32.1": [1.0] * 6,
        "float32.2": [0.0] * 2,
        "int32.0": [3] * 7,
    }
    both = kept.joined([{"float32.0": 5, "int32.0": 7}, {"float32.0": 9, "float32.1": 4}])
    assert both == {"float32.0": 9, "float32.1": 5, "float32.2": 4, "int32.0": 7}
    again = kept._read(rows, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (small, single, large)])
    assert_close(again, [small, single, large])


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


def test_two_stages_keep_what_each_of_them_does():
    run = small_run(method="serial", num_stages=4)
    first, second = run.network.stages[1:3]
    mode = chain.Mode(train=True, keys=jax.random.split(jax.random.key(0), 5))
    (p, s), (q, t) = (chain.init(own, jax.random.key(1)) for own in (first, second))

    def both(params, x):
        y, _ = chain.apply(first, params[0], s, x, mode)
        return chain.apply(second, params[1], t, y, mode)

    found = kept.lengths(both, (p, q), jnp.zeros((5, *first.in_shape)))
    assert found == kept.joined(kept.of_chain(own, 5) for own in (first, second))
    assert len(found) > len(kept.of_chain(first, 5))
