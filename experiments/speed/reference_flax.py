"""ResNets in flax.linen with optax, to time ours against: a worker like `experiments.speed.worker`."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree

from experiments.harness.worker import Json, serve

Conv = partial(nn.Conv, use_bias=False)
BatchNorm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9)


class Block(nn.Module):
    """Of arXiv:1512.03385 with shortcut A."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.relu(BatchNorm()(Conv(self.features, (3, 3), self.stride, padding=1)(x)))
        y = BatchNorm()(Conv(self.features, (3, 3), padding=1)(y))
        x = x[:, :: self.stride, :: self.stride]
        return nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1]))))


class Net(nn.Module):
    """`lpjax.models.resnet.resnet`."""

    depth: int
    width: int
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(BatchNorm()(Conv(self.width, (3, 3), padding=1)(x)))
        for group in range(3):
            for i in range((self.depth - 2) // 6):
                x = Block(self.width * 2**group, 2 if group and i == 0 else 1)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class Worker:
    """One network and its state."""

    def prepare(self, name: str, model: Json, batch: int, image: list[int]) -> Json:
        """Compile the step."""
        net, rng = Net(**model), np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(batch, *image)), jnp.float32)
        y = jnp.asarray(rng.integers(0, model["classes"], batch))
        state = jax.jit(net.init)(jax.random.key(0), x)
        optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9, nesterov=True))

        def step(params: PyTree, stats: PyTree, opt: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            def loss(params: PyTree) -> tuple[Array, PyTree]:
                logits, new = net.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

            grads, stats_ = jax.grad(loss, has_aux=True)(params)
            updates, opt = optimizer.update(grads, opt, params)
            return optax.apply_updates(params, updates), stats_, opt

        self.state = state["params"], state["batch_stats"], optimizer.init(state["params"])
        self.call = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*self.state).compile()
        return {"parameters": sum(leaf.size for leaf in jax.tree.leaves(state["params"]))}

    def step(self, name: str, steps: int) -> Json:
        """Seconds of steps."""
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self.state = jax.block_until_ready(self.call(*self.state))
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}


if __name__ == "__main__":
    serve(Worker())
