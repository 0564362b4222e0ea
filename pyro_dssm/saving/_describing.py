"""What builds a program again: its class, its arguments and what has been changed since, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..programs._parts import change, frozen_copy
from ..programs._program import Program
from ..programs.part import Part, built_as
from ..structure.structure import Order, Structure
from ._json import Json, is_json
from ._makers import MAKERS, class_of, decode_maker, encode_maker, is_maker

__all__ = ["Built", "build", "build_later_changed", "describe", "need_description", "need_parts", "settle"]


def describe(program: Program) -> dict[str, Json]:
    """A program's class, its arguments, and what has been changed since, as JSON holds them.

    Args:
        program: A model, or a guide, whose model is left out.

    Returns:
        The description.

    Raises:
        ValueError: If an argument is nothing that JSON can hold.
    """
    return _described(program, set())


def _described(program: Program | Part, seen: set[int]) -> dict[str, Json]:
    name = type(program).__name__
    model = program.model if isinstance(program, BaseGuide) else None
    if id(program) in seen:
        raise ValueError(f"{name}: expected arguments that are programs of their own, got one of them twice.")
    seen.add(id(program))

    def encode(value: object) -> Json:
        if isinstance(value, DSSM) and value is model:
            return {"": "model"}
        if isinstance(value, Program | Part):
            return {"": "program" if isinstance(value, Program) else "part", **_described(value, seen)}
        if is_maker(value):
            return encode_maker(value, encode)
        if isinstance(value, Structure):
            return {"": "structure", "edges": [edge.value for edge in _edges(value)]}
        if isinstance(value, tuple | list):
            return [encode(v) for v in value]
        if isinstance(value, dict) and all(isinstance(k, str) and k for k in value):
            return {k: encode(v) for k, v in value.items()}
        if is_json(value, 0):
            return value
        raise ValueError(f"{name}: expected constructor arguments that JSON can hold, got {value!r}.")

    built = built_as(program)
    return {
        "class": type(program).__qualname__,
        "module": type(program).__module__,
        "arguments": {name: encode(value) for name, value in program.arguments.items()},
        "changed": {path: frozen_copy(value) for path, value in built.changed(program).items()},
        "frozen": [*sorted(path for path, p in program.named_parameters() if not p.requires_grad)],
        "replaced": [*built.replaced(program)[:8]],
    }


def _edges(structure: Structure) -> tuple[Order, ...]:
    return structure.z_from_z, structure.z_from_x, structure.x_from_z, structure.x_from_x


# A program or a part that has been built, and what it was built from.
Built: TypeAlias = tuple[Program | Part, Mapping[str, Json]]


def build(description: Json, model: DSSM | None = None) -> Program | Part:
    """Builds what :func:`describe` described.

    Args:
        description: Class, arguments and what has been changed.
        model: Stands for the model among a guide's arguments.

    Returns:
        The program, with fresh parameters.

    Raises:
        ValueError: If it is no description, no class of that name has been imported, or the class does not take the
            arguments.
    """
    changes: list[Built] = []
    program = build_later_changed(description, model, changes)
    settle(changes)
    return program


def build_later_changed(description: Json, model: DSSM | None, changes: list[Built]) -> Program | Part:
    """Builds a program, and notes what is to be changed in it and in those among its arguments.

    Args:
        description: Class, arguments and what has been changed.
        model: Stands for the model among a guide's arguments.
        changes: Receives each program with its description, for :func:`settle`.

    Returns:
        The program, as it is built.
    """

    def decode(value: Json) -> object:
        if isinstance(value, list):
            return [decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        kind = value.get("")
        if "" not in value:
            return {k: decode(v) for k, v in value.items()}
        if kind == "model" and len(value) == 1:
            return model
        if kind == "structure" and value.keys() == {"", "edges"}:
            edges = value["edges"]
            if isinstance(edges, list) and len(edges) == 4:
                names = [edge for edge in edges if isinstance(edge, str)]
                if len(names) == 4:
                    return Structure(*names)
        if kind in MAKERS:
            return decode_maker(value, decode)
        if kind in ("program", "part"):
            return build_later_changed({k: v for k, v in value.items() if k}, model, changes)
        raise ValueError(f"path: expected a model, a part or a structure among the arguments, got {kind!r:.80}.")

    checked = need_description(description)
    need_parts("path", checked)
    name, module, arguments = checked["class"], checked["module"], checked["arguments"]
    assert isinstance(name, str) and isinstance(module, str) and isinstance(arguments, dict)  # noqa: PT018
    program = class_of(name, module)(**{key: decode(value) for key, value in arguments.items()})
    changes.append((program, checked))
    return program


def need_description(value: Json) -> dict[str, Json]:
    """Returns a value that has the form of a description.

    Raises:
        ValueError: If it has another form.
    """
    kinds: dict[str, type] = {"class": str, "module": str, "arguments": dict}
    later: dict[str, type] = {"changed": dict, "frozen": list, "replaced": list}
    # Version 0.1 did not know what had been changed.
    kinds |= later if isinstance(value, dict) and len(value) > len(kinds) else {}
    form = value if isinstance(value, dict) and value.keys() == kinds.keys() else None
    if form is not None and all(isinstance(form[name], kind) for name, kind in kinds.items()):
        return form
    raise ValueError(f"path: expected class, module and arguments of a program, got {value!r:.200}.")


def need_parts(what: str, description: Mapping[str, Json]) -> None:
    """Raises ``ValueError`` where something was put in the place of what the constructor had made."""
    replaced = description.get("replaced")
    if isinstance(replaced, list) and replaced:
        raise ValueError(
            f"{what}: expected a {description['class']!s:.200} with the parts that its constructor has made, got "
            f"{replaced[0]!s:.500}; a file holds arguments and weights, so other parts belong in the "
            "constructor of a class of your own."
        )


def settle(changes: Iterable[Built]) -> None:
    """Changes programs after they were built, as they had been changed when they were saved.

    Args:
        changes: Each program with its description.
    """
    for program, description in changes:
        changed = description.get("changed", {})
        assert isinstance(changed, dict)
        change(program, changed)
        if "frozen" not in description:
            continue
        parameters = dict(program.named_parameters())
        frozen = description["frozen"]
        if not (isinstance(frozen, list) and all(isinstance(name, str) and name in parameters for name in frozen)):
            raise ValueError(f"path: expected names of parameters that are frozen, got {frozen!r:.200}.")
        for name, p in parameters.items():
            p.requires_grad_(name not in frozen)
