"""The vision transformer: sizes, its numbers by a plain route in torchvision's layout, methods on several meshes."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, plain_sgd, small_run, take_steps

from lpjax.errors import BadInput
from lpjax.models.from_torch import from_torch, torchvision_vit, torchvision_vit_names
from lpjax.models.vit import vit
from lpjax.nn import chain
from lpjax.nn.chain import Mode, make_chain
from lpjax.nn.count import chain_size

MODEL = {"blocks": 3, "width": 8, "heads": 2, "patch": 4}
ERF = np.vectorize(math.erf)


@pytest.mark.parametrize(
    "fields, side, classes, size",
    [
        ({"size": "Ti", "patch": 16}, 224, 1000, 5_717_416),  # of timm's vit_tiny_patch16_224, and so on
        ({"size": "S", "patch": 16}, 224, 1000, 22_050_664),
        ({"size": "B", "patch": 16}, 224, 1000, 86_567_656),
        ({"size": "B", "patch": 16, "pooling": "mean"}, 224, 1000, 86_567_656 - 2 * 768),
        ({"size": "Ti", "patch": 4}, 32, 10, 5_362_762),
    ],
)
def test_sizes_are_the_published_ones(fields, side, classes, size):
    model = make_chain(vit(classes=classes, **fields), (side, side, 3))
    assert chain_size(model) == size
    assert [repeat.count for repeat in model.repeats] == [1, 12, 1], "equal blocks are one loop"


def state_dict(blocks: int, width: int, patch: int, tokens: int, classes: int) -> dict[str, np.ndarray]:
    """Keys and shapes of torchvision's `VisionTransformer`."""
    shapes = {"class_token": (1, 1, width), "encoder.pos_embedding": (1, tokens + 1, width)}
    linear = {"conv_proj": (width, 3, patch, patch), "heads.head": (classes, width)}
    norms = ["encoder.ln"]
    for i in range(blocks):
        place = f"encoder.layers.encoder_layer_{i}."
        norms += [f"{place}ln_1", f"{place}ln_2"]
        shapes |= {f"{place}self_attention.in_proj_weight": (3 * width, width)}
        shapes |= {f"{place}self_attention.in_proj_bias": (3 * width,)}
        linear |= {f"{place}self_attention.out_proj": (width, width)}
        linear |= {f"{place}mlp.0": (4 * width, width), f"{place}mlp.3": (width, 4 * width)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape) / 2 for name, shape in shapes.items()}


def plain(state, image, blocks: int, heads: int, patch: int, pooling: str) -> np.ndarray:
    """The logits of one image [C, H, W], one patch, one head and one position after another."""

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name, joint="."):
        return x @ state[f"{name}{joint}weight"].T + state[f"{name}{joint}bias"]

    kernel, tokens = state["conv_proj.weight"], []
    for row in range(0, image.shape[1], patch):
        for column in range(0, image.shape[2], patch):
            window = image[:, row : row + patch, column : column + patch]
            tokens.append((kernel * window).sum((1, 2, 3)) + state["conv_proj.bias"])
    first = [state["class_token"][0, 0]] if pooling == "class" else []
    x = np.stack([*first, *tokens]) + state["encoder.pos_embedding"][0]
    for i in range(blocks):
        place = f"encoder.layers.encoder_layer_{i}."
        query, key, value = np.split(linear(norm(x, f"{place}ln_1"), f"{place}self_attention.in_proj", "_"), 3, axis=1)
        size, found = query.shape[1] // heads, np.zeros_like(query)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            weights = np.exp(query[:, own] @ key[:, own].T / np.sqrt(size))
            found[:, own] = weights / weights.sum(1, keepdims=True) @ value[:, own]
        x = x + linear(found, f"{place}self_attention.out_proj")
        y = linear(norm(x, f"{place}ln_2"), f"{place}mlp.0")
        x = x + linear(y * (1 + ERF(y / np.sqrt(2))) / 2, f"{place}mlp.3")
    y = norm(x, "encoder.ln")
    return linear(y[0] if pooling == "class" else y.mean(0), "heads.head")


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_weights_in_the_layout_of_torchvision(pooling, x64):
    """On images that are not square, so that no axes are mistaken."""
    images = np.random.default_rng(1).normal(size=(2, 8, 12, 3))
    network = make_chain(vit(classes=5, pooling=pooling, **MODEL), images.shape[1:])
    state = state_dict(MODEL["blocks"], MODEL["width"], MODEL["patch"], tokens=6, classes=5)
    if pooling == "mean":
        del state["class_token"]
        state["encoder.pos_embedding"] = state["encoder.pos_embedding"][:, 1:]
    params, stats = from_torch(network, torchvision_vit(state), torchvision_vit_names)
    logits, _ = chain.apply(network, params, stats, jnp.asarray(images), Mode(train=False))
    expected = [plain(state, image.transpose(2, 0, 1), 3, MODEL["heads"], 4, pooling) for image in images]
    assert np.ptp(expected, axis=0).min() > 0.01, "they depend on the image"
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9)


def test_torchvisions_own(x64):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    model = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=32, num_classes=5
    )
    with torch.no_grad():
        for value in model.double().eval().parameters():
            value.normal_(0, 0.5)
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
    network = make_chain(vit(classes=5, **MODEL), images.shape[1:])
    params, stats = from_torch(network, torchvision_vit(model.state_dict()), torchvision_vit_names)
    logits, _ = chain.apply(network, params, stats, jnp.asarray(images), Mode(train=False))
    expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2))).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"size": "L"}, "model.size='L': expected one of Ti, S, B"),
        ({"pooling": "max"}, "model.pooling='max': expected one of class, mean"),
        ({"heads": 3}, "model.width=8: expected a multiple of model.heads=3"),
        ({"blocks": 0}, "model.blocks=0: expected a whole number of at least 1"),
        ({"patch": 3}, "expected images whose sides are multiples of model.patch=3"),
    ],
)
def test_bad_models(fields, message):
    with pytest.raises(BadInput, match=message):
        make_chain(vit(classes=5, **MODEL | fields), (8, 8, 3))


@pytest.mark.parametrize("method, fields", [("delayed", {"delayed__micro_batches": 4}), ("coarse_adjoint", {})])
def test_methods_train_it_alike_on_every_mesh(method, fields, x64):
    model, aux = MODEL | {"function": "vit", "dropout": 0.1}, {"function": "own_units", "width": 0.5}
    data = {"name": "digits", "crop": 0}
    own = {"method": method, "num_stages": 3, "batch_size": 12, "model": model, "aux": aux, "data": data}
    own |= plain_sgd(0.1) | fields
    one, several = (take_steps(small_run(mesh={"stage": stage}, **own), 5) for stage in (1, 3))
    assert_close(one[1], several[1])
    assert min(one[1][-1]["gradient_norm"]) > 0
