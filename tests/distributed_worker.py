"""One of the processes of `test_distributed`: distributed_worker.py TASK JSON-OPTIONS."""

import contextlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lpjax.data import SOURCES
from lpjax.data.feed import make_feed
from lpjax.parallel import mesh as meshes
from lpjax.parallel import processes
from lpjax.training import evaluate

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)


def all_equal(value):
    first, *rest = processes.gather(value)
    return all(other == first for other in rest)


@contextlib.contextmanager
def raises(*texts):
    try:
        yield
    except ValueError as error:
        message = str(error)
    assert all(text in message for text in texts), message


def helpers(options):
    """Every collective of `distributed`, on arrays of all layouts."""
    me, count = jax.process_index(), jax.process_count()
    assert processes.is_writer() == (me == 0)
    values = processes.gather({"process": me, "text": "é" * 100 * me, "nothing": None})
    assert values == [{"process": i, "text": "é" * 100 * i, "nothing": None} for i in range(count)]
    assert processes.broadcast([me, "x"]) == [0, "x"]
    workdir = Path(options["workdir"])
    processes.check_shared(workdir)
    processes.gather(None)
    left = os.listdir(workdir)
    processes.gather(None)  # the other one has looked too
    assert not left, "the file is gone"
    own = workdir / str(me)
    own.mkdir()
    with raises("process 1 (", "does not see the files of process 0"):
        processes.check_shared(own, wait_seconds=0.1)
    compared = 0
    for shape in ((4, 1), (2, 2)):
        mesh = meshes.make_mesh(*shape)
        rows = np.arange(48, dtype=np.float32).reshape(8, 6) - 20
        rows[1] = [-0.0, np.nan, np.inf, 1e-40, 3, 4]
        for value in (rows, np.arange(8, dtype=np.int32), rows > 0, rows.astype(jnp.bfloat16)):
            for spec in (meshes.STAGES, meshes.TABLE, meshes.EXAMPLES, meshes.REPLICATED, P("data")):
                array = processes.from_host(value.copy(), NamedSharding(mesh, spec))
                host = processes.to_host(array)
                assert (host.dtype, host.shape, host.tobytes()) == (value.dtype, value.shape, value.tobytes())
                host[...] = host[0]
                assert processes.to_host(array).tobytes() == value.tobytes(), "a copy, not a view"
                compared += 1
        alone = jnp.arange(3)
        assert processes.to_host(alone).tolist() == [0, 1, 2]
        assert sorted(itertools.chain(*processes.gather(meshes.own_examples(mesh, 8).tolist()))) == list(range(8))
    processes.BLOCK_BYTES = 100  # several blocks a shard
    table = np.arange(320, dtype=np.int16).reshape(16, 20)
    np.testing.assert_array_equal(processes.to_host(processes.from_host(table, NamedSharding(mesh, P("stage")))), table)
    with raises("expected a mesh of all of them"):
        meshes.make_mesh(2, 1)
    print(f"compared {compared} arrays")


def train(options):
    """The feed of each mesh, and steps and an evaluation on one; process 0 writes what they came to."""
    from helpers import small_config, small_run

    out = {}
    for stage, data in options["meshes"]:
        config = small_config(**options["fields"], mesh__stage=stage, mesh__data=data)
        source = SOURCES[config.data.name].load(config.data)
        feed = make_feed(source, config, meshes.make_mesh(stage, data))
        batches = itertools.chain(feed.sample(1), feed.test(), itertools.islice(iter(feed.train().__next__, None), 4))
        for number, batch in enumerate(batches):
            for path, leaf in jax.tree.leaves_with_path(batch):
                out[f"mesh {stage}x{data}, batch {number}{jax.tree_util.keystr(path)}"] = processes.to_host(leaf)
    run = small_run(**options["fields"], mesh__stage=stage, mesh__data=data)
    state, batches = run.create(), run.feed.train()
    for step in range(4):
        state, figures = run.step(state, next(batches))
        out |= {f"step {step}, {name}": processes.to_host(value) for name, value in figures.items()}
    out |= run.evaluate(state, run.feed)._asdict()
    for path, leaf in jax.tree.leaves_with_path(state.replace(key=jax.random.key_data(state.key))):
        out[f"state{jax.tree_util.keystr(path)}"] = processes.to_host(leaf)
    for path, leaf in jax.tree.leaves_with_path(evaluate.replicated(state, run.mesh)):
        assert leaf.is_fully_replicated, path
    assert all_equal({name: np.asarray(value).tobytes().hex() for name, value in out.items()})
    if processes.is_writer():
        np.savez(options["out"], **out)


def endless(options):
    """Steps without end, or one and then nothing."""
    mesh = meshes.make_mesh(4, 1)
    mean = jax.jit(lambda x: x + x.sum() / x.size, out_shardings=NamedSharding(mesh, meshes.STAGES))
    x = processes.from_host(np.ones(4, np.float32), NamedSharding(mesh, meshes.STAGES))
    for step in range(1, 100_000):
        x = jax.block_until_ready(mean(x))
        processes.reached(f"after step {step}")
        if step == 3:
            print("running", flush=True)
        if step == 3 and options["idle"]:
            time.sleep(600)
        time.sleep(0.01)


def end(options):
    """Ends with the exit code given for this process; None: not at all."""
    jax.block_until_ready(processes.gather(None))
    code = options["codes"][jax.process_index()]
    if code == "raise":
        raise RuntimeError("a fault")
    if code is None:
        time.sleep(600)
    return code


@processes.patient
def main(argv):
    options = json.loads(argv[2])
    count = processes.initialize(**options["join"])
    jax.config.update("jax_num_cpu_devices", 4 // count)
    return {"helpers": helpers, "train": train, "endless": endless, "end": end}[argv[1]](options) or 0


if __name__ == "__main__":
    sys.exit(processes.run(main, sys.argv))
