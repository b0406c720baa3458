"""Checks of a program that `jax.export` wrote: it must be a pure function of examples that does nothing but compute."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
from jax.export import Exported
from jax.extend.mlir import ir, passmanager
from jax.extend.mlir.dialects import stablehlo

from lpjax.errors import BadInput
from lpjax.nn.chain import Shape

_COMPATIBILITY = stablehlo.StablehloCompatibilityRequirement.WEEK_12
"""JAX of twelve weeks ago can read the program too."""

_TREES = jax.tree.structure(((0,), {})), jax.tree.structure(0)
EXTERNAL = frozenset(f"stablehlo.{name}" for name in ("custom_call", "infeed", "outfeed", "send", "recv"))
"""Operations that exchange values with something outside the program."""
HARMLESS = frozenset({"stablehlo.custom_call @shape_assertion"})
"""By which `jax.export` itself checks a symbolic batch; gone before anything is compiled."""


def check(program: Exported, in_shape: Shape, out_shape: Shape) -> None:
    """Refuse a program that is not a function of examples to logits, or could do more than compute.

    Args:
      program: to check.
      in_shape: of an example that it must take.
      out_shape: of the logits that it must return of it.

    Raises:
      BadInput: saying what the program is and what was expected.
    """
    signature = [*map(str, program.in_avals), "->", *map(str, program.out_avals)]
    given, made = (",".join(map(str, shape)) for shape in (in_shape, out_shape))
    expected = [f"uint8[b,{given}]", "->", f"float32[b,{made}]"]
    if signature != expected:
        raise BadInput(f"a program {' '.join(signature)}: expected {' '.join(expected)}")
    if str((program.in_tree, program.out_tree)) != str(_TREES):
        raise BadInput(f"a program of {program.in_tree} to {program.out_tree}: expected one array to one array")
    effects = (*program.ordered_effects, *program.unordered_effects)
    if program.nr_devices != 1 or effects:
        raise BadInput(f"a program for {program.nr_devices} devices with effects {effects}: expected 1 and none")
    for operation in _operations(program.mlir_module_serialized) - HARMLESS:
        if operation.split()[0] in EXTERNAL or not operation.startswith(("stablehlo.", "func.", "builtin.")):
            raise BadInput(f"a program with the operation {operation}: expected one that only computes")


def _operations(serialised: bytes) -> set[str]:
    """Names of all operations of a StableHLO module, wherever they are; custom calls with their target."""
    found: set[str] = set()

    def visit(operation: Any) -> ir.WalkResult:
        is_call = operation.name == "stablehlo.custom_call"
        found.add(f"{operation.name} @{operation.attributes['call_target_name'].value}" if is_call else operation.name)
        return ir.WalkResult.ADVANCE

    with _module(serialised) as module:
        module.operation.walk(visit)
    return found


@contextlib.contextmanager
def _module(serialised: bytes) -> Iterator[ir.Module]:
    with ir.Context() as context:
        context.attach_diagnostic_handler(lambda _: True)  # otherwise stderr gets whatever is in the file
        yield stablehlo.deserialize_portable_artifact(context, serialised)


def without_debug_info(program: Exported) -> Exported:
    """The program without the names of the source files it was traced from, which are paths on this machine."""
    with _module(program.mlir_module_serialized) as module:
        passmanager.PassManager.parse("builtin.module(strip-debuginfo)").run(module.operation)
        version = stablehlo.get_version_from_compatibility_requirement(_COMPATIBILITY)
        return replace(program, mlir_module_serialized=stablehlo.serialize_portable_artifact(module, version))
