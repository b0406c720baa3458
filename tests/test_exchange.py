"""What changes hands on the mesh: packed rows, packets of examples, rows of a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close
from jax.sharding import PartitionSpec as P

from lpjax.methods.layer_parallel import multiplier
from lpjax.models.resnet import resnet
from lpjax.network.packing import Packing
from lpjax.network.partition import split
from lpjax.nn import chain
from lpjax.nn.chain import make_chain
from lpjax.parallel import exchange
from lpjax.parallel.mesh import EXAMPLES, TABLE, make_mesh


def on_mesh(function, mesh, in_specs, out_specs):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))


def test_packing_is_lossless_and_padded_to_the_longest():
    stages = split(make_chain(resnet(depth=14, width=4, classes=10), (8, 8, 1)), num_stages=3)
    trees = [chain.init(stage, jax.random.key(k))[0] for k, stage in enumerate(stages)]
    packing = Packing.of(trees)
    rows = packing.pack_all(trees)
    assert_close(packing.unpack_all(rows), tuple(trees))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees]
    assert {name: row.shape for name, row in rows.items()} == {n: (3, length) for n, length in packing.lengths.items()}
    np.testing.assert_allclose(packing.waste, 1 - sum(sizes) / (3 * sum(packing.lengths.values())))
    for tree, row in zip(trees, np.asarray(rows["kernel"]), strict=True):
        kernels = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(tree) if path[-1].key == "kernel")
        assert not row[kernels:].any()


def test_packets_hold_arrays_of_any_shape():
    parts = [jnp.arange(12.0).reshape(2, 3, 2), jnp.arange(4.0).reshape(2, 1, 2)]
    packet = exchange.pack(parts, 2, 11)
    assert packet.shape == (2, 11)
    assert_close(exchange.unpack(packet, [(3, 2), (1, 2)]), parts)
    assert exchange.packet_length([(3, 2), (1, 2)]) == 8


@pytest.mark.parametrize("shape", [(4, 2), (2, 2), (1, 2), (4, 1)])
def test_a_stage_receives_its_column_in_order(shape):
    """And what it sends back arrives where it came from."""
    mesh, K, B = make_mesh(*shape), 4, 16
    S, D = shape

    def there_and_back(example):  # a packet says which stage it is for and which example it is
        packets = jnp.stack([jnp.stack([jnp.full_like(example, k), example], axis=1) for k in range(K)])
        at_stage = exchange.to_stages(packets, S)
        home = exchange.to_owners(at_stage, S)
        return at_stage[None], jnp.array_equal(home, packets)[None]

    out_specs = (P("data", "stage"), P(("stage", "data")))
    at_stage, home = on_mesh(there_and_back, mesh, EXAMPLES, out_specs)(jnp.arange(float(B)))
    assert home.all()
    columns = np.arange(B).reshape(D, 1, B // D)
    np.testing.assert_array_equal(at_stage[..., 0], np.broadcast_to(np.arange(K)[None, :, None], (D, K, B // D)))
    np.testing.assert_array_equal(at_stage[..., 1], np.broadcast_to(columns, (D, K, B // D)))


@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (1, 1)])
def test_rows_of_a_sharded_table(shape):
    mesh = make_mesh(*shape)
    table = np.random.default_rng(0).normal(size=(24, 2, 1, 3)).astype(np.float32)
    index = np.array([23, 0, 5, 17, 6, 11, 12, 3], np.int32)
    new = np.random.default_rng(1).normal(size=(8, 2, 1, 3)).astype(np.float32)
    read = on_mesh(multiplier.read, mesh, (TABLE, EXAMPLES), EXAMPLES)
    write = on_mesh(multiplier.write, mesh, (TABLE, EXAMPLES, EXAMPLES), TABLE)
    np.testing.assert_array_equal(read(table, index), table[index])
    expected = table.copy()
    expected[index] = new
    np.testing.assert_array_equal(write(table, index, new), expected)


def test_a_table_is_never_gathered():
    """No array of the compiled programs is as long as the table."""
    mesh, rows = make_mesh(4, 2), 8 * 1009
    table = jax.ShapeDtypeStruct((rows, 2, 2, 2), jnp.float32)
    index = jax.ShapeDtypeStruct((8,), jnp.int32)
    new = jax.ShapeDtypeStruct((8, 2, 2, 2), jnp.float32)
    read = on_mesh(multiplier.read, mesh, (TABLE, EXAMPLES), EXAMPLES).lower(table, index).compile()
    write = on_mesh(multiplier.write, mesh, (TABLE, EXAMPLES, EXAMPLES), TABLE).lower(table, index, new).compile()
    for program in (read, write):
        assert "1009" in program.as_text()
        assert str(rows) not in program.as_text()
