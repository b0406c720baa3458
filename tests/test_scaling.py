"""Predicted steps: collectives and schedules by hand on made-up machines, bytes against traced steps."""

import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from experiments.predict import scale
from lpjax.config.schema.methods import LocalConfig
from lpjax.cost.machine import Group, Link, Machine, collective_seconds, kept_bytes, roofline
from lpjax.cost.model import device_bytes, step_seconds
from lpjax.methods import kept
from lpjax.methods.local.classifiers import classifiers
from lpjax.models.resnet import ConvBlock, basic_block, resnet
from lpjax.nn.count import activation_bytes, layers, unit_flops
from lpjax.nn.layers import STANDARDISE
from tests.helpers import cut_network, seconds_by_part, small_config

B = 64
FREE = Link(0.0, math.inf)
LINK = Link(latency=3.0, bandwidth=2.0)
UNITS = resnet(depth=26, width=4, classes=10)  # stem, 3 x 4 blocks, head
STAGES = cut_network(UNITS, (8, 8, 3), num_stages=7, cuts=(2, 4, 6, 8, 10, 12))  # two units each
WHOLE = cut_network(UNITS, (8, 8, 3), num_stages=1)


def unit_time(unit, in_shape, examples):
    """A second for an example's forward pass through a unit, two for its backward pass; standardisation is free."""
    seconds = 0.0 if unit == STANDARDISE else float(examples)
    return seconds, 2 * seconds


IDEAL = Machine("ideal", unit_time, 8, FREE, FREE, memory_bandwidth=math.inf, launch=0.0)


def settings(method, net=STAGES, *, stage=7, data=1, batch=7 * B, **fields):
    """A configuration; "fdg" and "ddg" are variants of delayed."""
    variant = method in ("fdg", "ddg")
    own = {"method": "delayed" if variant else method, "delayed__variant": method if variant else "fdg"}
    sizes = {"num_stages": net.num_stages, "batch_size": batch, "mesh__stage": stage, "mesh__data": data}
    return small_config(**own, **sizes, aux__tied=bool(net.tied), data__crop=0, **fields)


def step(method, machine=IDEAL, net=STAGES, *, adjacent="data", synchronised=True, **options):
    """Seconds of a step, in all and by part."""
    config = settings(method, net, **options)
    found = step_seconds(net, config, machine, adjacent=adjacent, synchronised=synchronised)
    return SimpleNamespace(total=found.total, **seconds_by_part(found))


# ---------------------------------------------------------------------------------------------------------- collectives


def test_collectives_by_hand():
    """Four devices, 8 bytes each, 3 s a message and 2 bytes a second."""
    assert collective_seconds("all_to_all", 4, 8.0, LINK) == 3 * (2 / 2 + 3)
    assert collective_seconds("all_gather", 4, 8.0, LINK) == 3 * (8 / 2 + 3)
    assert collective_seconds("reduce_scatter", 4, 8.0, LINK) == 3 * (2 / 2 + 3)
    assert collective_seconds("ppermute", 4, 8.0, LINK) == 8 / 2 + 3
    assert collective_seconds("psum", 4, 8.0, LINK) == 2 * (8 / 2 + 2 * 3), "a tree: twice the bytes, twice two levels"
    assert collective_seconds("psum", 4, 800.0, LINK) == 6 * (200 / 2 + 3), "a ring: six messages of a quarter"
    assert collective_seconds("psum", 3, 0.0, LINK) == 2 * 2 * 3, "a tree of three devices has two levels"


def test_one_device_sends_nothing():
    kinds = ("psum", "all_to_all", "all_gather", "reduce_scatter", "ppermute")
    assert [collective_seconds(kind, 1, 8.0, LINK) for kind in kinds] == [0] * 5
    assert Group(replace(IDEAL, start=1.0), 1).seconds("psum", 8.0) == 0
    assert Group(replace(IDEAL, start=1.0), 1).seconds("all_to_all", 8.0) == 0


def test_groups_in_and_between_nodes():
    """Four devices a node: an all-reduce of eight is one of four inside, and one of two with a quarter of the bytes."""
    machine = replace(IDEAL, devices_per_node=4, inside=Link(0.0, 100.0), between=Link(0.0, 10.0), start=1.0)
    assert Group(machine, 4).seconds("psum", 400.0) == pytest.approx(1 + 1.5 * 400 / 100)
    assert Group(machine, 8).seconds("psum", 400.0) == pytest.approx(1 + 1.5 * 400 / 100 + 1.0 * 100 / 10)
    assert Group(machine, 2, stride=4).seconds("psum", 400.0) == pytest.approx(1 + 1.0 * 400 / 10)
    assert Group(machine, 2, stride=2).seconds("ppermute", 400.0) == 1 + 400 / 100
    assert Group(machine, 4, stride=2).seconds("ppermute", 400.0) == 1 + 400 / 10
    assert Group(machine, 4, stride=2).seconds("psum", 400.0) == pytest.approx(1 + 1.0 * 400 / 100 + 1.0 * 200 / 10)


# ---------------------------------------------------------------------------------------------------------------- units


def test_roofline_by_hand():
    unit, shape = ConvBlock(16, 1, 3), (8, 8, 16)
    flops, kept, params = unit_flops(unit, shape), kept_bytes(unit, shape, None), 9 * 16 * 16 + 2 * 16
    assert 2 * 4 * 8 * 8 * 16 < kept < 3 * 4 * 8 * 8 * 16, "input and output of the convolution, a mask"

    def seconds(peak, bandwidth, examples):
        shares = {"efficiency": 0.5, "kernel_seconds": 3.0}
        return roofline(peak_flops=peak, memory_bandwidth=bandwidth, **shares)(unit, shape, examples)

    assert seconds(100.0, math.inf, 5) == pytest.approx((3 + 5 * flops / 50, 6 + 10 * flops / 50))
    moved = 2 * 5 * kept + 4 * params
    assert seconds(math.inf, 10.0, 5) == pytest.approx((3 + moved / 10, 6 + 2 * moved / 10))
    assert seconds(100.0, 1.0, 5)[0] == 3 + moved > 3 + 5 * flops / 50, "the larger of both, not their sum"
    half = kept_bytes(unit, shape, "bfloat16")
    assert 0.5 * kept <= half < 0.75 * kept, "masks stay as they are"


# ---------------------------------------------------------------------------------------------------------------- steps


def test_one_stage_is_serial():
    machine = Machine("any", unit_time, 8, LINK, LINK, memory_bandwidth=1e3, launch=5.0, start=1.0)
    serial = step("serial", machine, WHOLE, stage=1)
    for method in ("layer_parallel", "data_parallel"):
        assert vars(step(method, machine, WHOLE, stage=1)) == pytest.approx(vars(serial))
    values = 4 * B * 7 * 8 * 8 * 3, 5 * sum(WHOLE.params.lengths.values())
    assert (serial.data, serial.optimizer, serial.fixed) == pytest.approx((4 * values[0] / 1e3, 4 * values[1] / 1e3, 5))
    assert serial.total == pytest.approx(sum(vars(serial).values()) - serial.total)


def test_serial_and_data_parallel():
    """14 units, of which the first one has no gradient of the image: 3 * 14 - 1 passes' seconds an example."""
    assert step("serial", net=WHOLE, stage=1).total == 41 * 7 * B
    assert step("data_parallel", net=WHOLE, stage=1, data=8, batch=8 * B).total == 41 * B


def test_stages_take_a_kth_of_the_time():
    """Seven stages of two units; the AuxNet's pieces have 2, 1, 2, 1, 2, 1, 2 units, 11 in all."""
    found = step("layer_parallel", multiplier="none")
    assert found.stages == 3 * 2 * 7 * B == 3 * 14 * B
    assert (found.aux_forward, found.aux_backward) == (11 * B, 22 * B - B)
    assert found.total == found.stages + 32 * B


@pytest.mark.parametrize(
    ("tail", "seconds"),
    [
        (None, 3 * (2 + 1 + 2 + 1 + 2 + 1 + 2) - 1),  # stage 0, which has no gradient of the image
        (3, 3 * (2 + 2 + 1 + 2 + 2)),  # stage 1: pieces 2, 3, 4 and the last one
        (1, 3 * (2 + 2 + 2)),  # stages 1 and 3
    ],
)
def test_coarse_tails(tail, seconds):
    """Two units of the slowest stage's own, and those of the pieces behind it."""
    assert step("layer_parallel", aux__tail=tail).stages == seconds * 7 * B


def test_adjoint_needs_half_a_backward_pass_more():
    """Of all 11 units; the backward pass of the fit spares the first one half of its own."""
    assert step("layer_parallel", multiplier="adjoint").aux_backward == (22 - 1 + 11) * B


def test_fewer_devices_than_stages():
    """On one device all stages follow each other, with what they do beside their units; the AuxNet has all examples."""
    found = step("layer_parallel", stage=1, multiplier="none", batch=B)
    assert (found.stages, found.aux_forward) == (41 * B, 11 * B)


def test_twice_the_data_axis_halves_everything():
    one, two = (vars(step("layer_parallel", data=data, batch=14 * B)) for data in (1, 2))
    assert two == {name: part / 2 for name, part in one.items()}


@pytest.mark.parametrize("micro", [1, 4, 16])
@pytest.mark.parametrize("keep", ["activations", "inputs"])
def test_pipeline(micro, keep):
    """Six rounds of f = 2 at the start, six of b = 4 at the end, device 0 a second less; between them M of both.  With
    inputs alone f is computed again but by the last device, which alone has both passes in the first and last of M."""
    found = step("pipeline", pipeline__micro_batches=micro, pipeline__keep=keep, batch=7 * 16)
    between = 6 * micro if keep == "activations" else 6 * min(micro, 2) + 8 * max(micro - 2, 0)
    assert found.total == (7 * 16 / micro) * (6 * 2 + between + 6 * (4 if keep == "activations" else 6) - 1)


def test_pipeline_of_one_device():
    assert step("pipeline", stage=1).stages == 41 * 7 * B


def test_delayed_and_local():
    """FDG: two forward passes and one backward pass of two units.  DDG: six forward passes in turn, then f + b.  Local:
    no gradient of the input (-1), a classifier of a block and the head."""
    assert step("fdg").stages == (2 * 2 + 2 * 2) * 7 * B
    uneven = cut_network(UNITS, (8, 8, 3), num_stages=2, cuts=(2,))  # two units and twelve
    assert step("fdg", net=uneven, stage=2).stages == 3 * 12 * 7 * B, "the last stage has one forward pass"
    assert step("ddg").stages == (6 * 2 + 2 + 2 * 2) * 7 * B
    assert step("local").stages == (3 * 2 - 1 + 3 * 2) * 7 * B
    found = step("local", local__classifier="momentum").stages
    assert found == (3 * 2 - 1 + 3 * 2 + 2) * 7 * B, "no gradient of the weights that are a mean"


def test_rounds_of_a_pipeline_end_for_all_devices_together():
    """Stages of two, one and two units, four micro-batches.  Each round takes as long as its slowest device; a unit
    takes f + b = 3 in a backward pass, of the last stage in all; only the first stage spares the gradient of its
    input."""
    uneven = cut_network(resnet(depth=8, width=4, classes=10), (8, 8, 3), num_stages=3, cuts=(2, 3))
    found = step("pipeline", net=uneven, stage=3, batch=12 * 4, pipeline__keep="inputs")
    assert found.total == 12 * sum([2, 2, 6, 6, 6, 6, 5, 5])


def test_coarse_adjoint():
    """No gradient of an input.  Stage 0 has nine units of pieces behind it; stage 1 eight, and one beside it."""
    slowest = 3 * 2 - 1 + 3 * (1 + 2 + 1 + 2 + 1 + 2)
    assert slowest == 3 * 2 - 1 + 3 * (2 + 1 + 2 + 1 + 2) + 3 * 1
    assert step("coarse_adjoint").stages == slowest * 7 * B


def test_recomputation_is_one_more_forward_pass():
    again = cut_network(UNITS, (8, 8, 3), num_stages=1, remat=True)
    assert step("serial", net=again, stage=1).stages == (41 + 14) * 7 * B


def test_batch_norm_waits_for_two_collectives_a_layer():
    """25 batch norms, and six standardisations between the stages; a device of the pipeline has a stage's."""
    machine = replace(IDEAL, start=1.0)
    assert step("data_parallel", machine, WHOLE, stage=1, data=7).batch_norm == 2 * 25
    assert step("data_parallel", machine, stage=7).batch_norm == 2 * (25 + 6)
    assert step("data_parallel", machine, stage=7, synchronised=False).batch_norm == 0
    pieces = (
        2 * sum(3 if j in (0, 2, 4) else 2 for j in range(7)) + 2 * 6
    )  # conv and block, or a block; standardisation
    assert step("layer_parallel", machine, multiplier="none").batch_norm == pieces, "stages of one column have no other"


def test_half_the_bytes_of_an_exchange():
    machine = replace(IDEAL, inside=Link(0.0, 1.0))
    whole, half = (step("layer_parallel", machine, exchange__bfloat16=half).exchange for half in (False, True))
    tags = 6 * 12 * B
    assert half - tags == (whole - tags) / 2 > 0


def test_next_to_each_other():
    """Two columns of four stages on nodes of four: only one of the axes is inside a node."""
    machine = replace(IDEAL, devices_per_node=4, between=Link(1.0, math.inf))
    net = cut_network(UNITS, (8, 8, 3), num_stages=4)
    columns = step("layer_parallel", machine, net, stage=4, data=2, batch=B, adjacent="stage")
    rows = step("layer_parallel", machine, net, stage=4, data=2, batch=B)
    assert (columns.exchange, rows.exchange) == (0, 3 * 3), "two all_to_alls and an all_gather of three messages"
    assert columns.gradients > rows.gradients


# --------------------------------------------------------------------------------------------------------------- memory


def memory(method, net=STAGES, **options):
    return device_bytes(net, settings(method, net, **options), 0)


@pytest.mark.parametrize("keep, M", [("activations", 4), ("activations", 16), ("inputs", 4)])
def test_memory_of_a_pipeline_by_hand(keep, M):
    """Parameters, momentum and gradients of a stage; activations of one micro-batch, and room for what is kept of those
    under way, 13 or one more than there are; packets of a column, and of micro-batches: inputs under way and one for
    none, the next input and gradient."""
    found = memory("pipeline", pipeline__keep=keep, pipeline__micro_batches=M)
    row = 4 * sum(STAGES.params.lengths.values())
    lengths: dict[str, list[int]] = {}  # of the largest array, the second largest one ..
    for name, length in (pair for own in STAGES.stages[:-1] for pair in kept.of_chain(own, 7 * B // M).items()):
        lengths.setdefault(name, []).append(length)
    rows = 4 * sum(map(max, lengths.values())) if keep == "activations" else 0
    activations = max(activation_bytes(own, 7 * B // M) for own in STAGES.stages) + min(M + 1, 13) * rows
    packets = 4 * 7 * B // M * 8 * 8 * 4 * (M + min(M + 1, 13) + 2)
    assert found == {
        "parameters": row,
        "optimizer": row,
        "gradients": row,
        "activations": activations,
        "packets": packets,
    }


def test_memory_with_recomputation_is_of_the_units_inputs():
    """Four bytes a value of each unit's input, and what one unit keeps at a time."""
    again = cut_network(UNITS, (8, 8, 3), num_stages=1, remat=True)
    inputs = sum(math.prod(shape) for shape in again.chain.shapes[:-1])
    pieces = [replace(again.chain.piece(i, i + 1), remat=False) for i in range(len(again.chain.units))]
    expected = 4 * 7 * B * inputs + max(activation_bytes(piece, 7 * B) for piece in pieces)
    assert memory("serial", again, stage=1)["activations"] == pytest.approx(expected, rel=0.01)


def test_memory_of_classifiers():
    """A block and the head: their parameters, momentum and gradients, and what they keep beside the stage."""
    head = UNITS[-1]
    params = layers(basic_block(16, 1), (2, 2, 16)).params + layers(head, (2, 2, 16)).params
    found, bare = memory("local"), memory("pipeline")
    assert found["parameters"] - bare["parameters"] == 4 * params == found["gradients"] - bare["gradients"]
    own = classifiers(STAGES, LocalConfig()).chains
    assert own[0].units == (basic_block(4, 1), head)
    kept = [sum(activation_bytes(chain, 7 * B) for chain in both) for both in zip(STAGES.stages, own, strict=True)]
    assert found["activations"] == max(kept)
    shapes = [[s for u, s in zip(c.units, c.shapes[1:], strict=True) if "block" in u.name] for c in STAGES.stages]
    kept = [own + 4 * 7 * B * sum(map(math.prod, blocks)) for own, blocks in zip(kept, shapes, strict=True)]
    assert memory("local", local__residue=0.1)["activations"] == max(kept), "and what the blocks add"


def test_memory_of_deep_supervision_by_hand():
    """All classifiers; activations of the stages so far with those of a classifier, or of all with what these found."""
    own = classifiers(STAGES, LocalConfig()).params.length
    found, bare = (memory("serial", stage=1, serial__deep_supervision=weight) for weight in (0.1, 0.0))
    assert {found[name] - bare[name] for name in ("parameters", "optimizer", "gradients")} == {4 * 7 * own}
    stages = [activation_bytes(chain, 7 * B) for chain in STAGES.stages]
    ends = [activation_bytes(chain, 7 * B) for chain in classifiers(STAGES, LocalConfig()).chains]
    gradients = [4 * 7 * B * math.prod(chain.out_shape) for chain in STAGES.stages[:-1]]
    at_ends = [sum(stages[: k + 1]) + sum(gradients[:k]) + ends[k] for k in range(6)]
    assert found["activations"] == max(*at_ends, sum(stages) + sum(gradients))


def test_memory_of_running_means():
    """The weights of the largest unit that a stage begins with, which has no momentum and no gradients."""
    first = layers(basic_block(16, 1), (2, 2, 16)).params
    own = classifiers(STAGES, LocalConfig("momentum"))
    assert own.means.length == first
    assert [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in own.means.trees][-3:] == [first, first, 0]
    found, params = memory("local", local__classifier="momentum"), 4 * (STAGES.params.length + own.params.length)
    assert found["running means"] == 4 * first
    assert found["parameters"] == found["optimizer"] == found["gradients"] == params
    assert own.params.length == classifiers(STAGES, LocalConfig()).params.length + 2 * 16, "a scale and a bias"


def test_memory_of_tails():
    full, short, none = (
        memory("layer_parallel", aux__tail=tail, multiplier=policy)["activations"]
        for tail, policy in ((None, "coarse_tail"), (1, "coarse_tail"), (None, "none"))
    )
    pieces = [basic_block(4, 1), ConvBlock(8, 2, 3), basic_block(8, 1), basic_block(8, 1)]  # behind stage 0, of two
    shapes = [(8, 8, 4), (8, 8, 4), (4, 4, 8), (4, 4, 8)]
    assert full > short > none
    assert full - none > 7 * B * sum(kept_bytes(unit, shape, None) for unit, shape in zip(pieces, shapes, strict=True))


# ----------------------------------------------------------------------------------------------------------- experiment


def test_the_fastest_of_each_method(monkeypatch):
    """Where collectives are free, data parallelism is perfect and nothing else is; what does not fit is left out."""
    monkeypatch.setattr(scale, "WIDTHS", (1.0,))
    monkeypatch.setitem(scale.NETWORKS, "tiny", (UNITS, (8, 8, 3)))
    monkeypatch.setitem(scale.GRIDS, "tiny", 4)
    monkeypatch.setitem(scale.CAPACITY, "ideal", 1e9)
    row = scale.compare("tiny", IDEAL, 128, 4)
    found, staged = row["methods"], ("pipeline", "delayed", "layer_parallel", "coarse_adjoint")
    assert set(found) == {"data_parallel", *staged}
    assert (row["winner"], found["data_parallel"]["speedup"]) == ("data_parallel", 4)
    assert all(1 < found[method]["speedup"] < 4 for method in staged)
    fastest = {name: row["serial_seconds"] / own["speedup"] for name, own in found.items()}
    (serial, *_), *tried = scale.choices("tiny", IDEAL, 128, 4)
    assert serial == "serial"
    for name, seconds in fastest.items():
        assert min(own[3] for own in tried if own[0] == name) == pytest.approx(seconds, rel=1e-3), "four digits"
    monkeypatch.setitem(scale.CAPACITY, "ideal", 0.0)
    row = scale.compare("tiny", IDEAL, 128, 4)
    assert (row["methods"], row["winner"]) == ({}, "none")
