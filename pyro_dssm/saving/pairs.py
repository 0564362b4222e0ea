"""Files of pairs and of runs: tensors, what builds the pair again as JSON beside them, and a checksum over both.

Whatever a file says is checked before anything is built, as if a stranger had written it. A pair file holds

- the arguments of the two constructors, as they were given, with the attributes that have been changed since and the
  parameters that are frozen (``model``, ``guide``), and the form of sites (``sites``);
- all tensors, among them the means and scales of a model that standardises and the calibrated scale;
- the transform that recordings went through (``transform``) and whatever else is to be known of it (``card``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from .._utils.devices import generators_kept
from .._utils.files import atomic_write
from .._utils.types import check_types
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..programs._parts import change, frozen_copy, is_plain
from ..programs._program import Program, note_parts
from ..speech import Spectrogram
from ..structure.structure import Structure
from ._building import Bounded, Excess, Sizes, size_of
from ._tensorfile import DTYPES, FORMAT, TensorFile, check_header, dump, opened, stamp

__all__ = ["FORMAT", "PairFile", "inspect", "load", "read_run", "read_tensors", "save", "write_tensors"]

_FLOATING = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values() if dtype.is_floating_point}


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and JSON-able metadata atomically, with a checksum over both.

    Args:
        path: The file.
        tensors: By name.
        metadata: Anything that JSON can hold, and numbers that are not finite.

    Raises:
        ValueError: If a tensor or the metadata could not be read again.
    """
    check_types(write_tensors, locals())
    text = dump(metadata)
    values: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, t in tensors.items():
        value = t.detach().cpu().contiguous()
        # The format has no two names for one memory, as of a parameter that is used twice.
        values[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    content = serialize(values, metadata=stamp(values, text))
    check_header(content)
    with atomic_write(path) as file:
        file.write(content)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write_tensors` wrote.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged or of another kind.

    Warns:
        UserWarning: If it has no checksum, as files of version 0.1.
    """
    check_types(read_tensors, locals())
    with _told(), opened(path) as file:
        return file.tensors(), file.metadata


@contextmanager
def _told() -> Iterator[None]:
    """Lets what is warned of while a file is read be warned of in the line that asked for it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        # Past this generator, the `with` statement's own frame, and the public function.
        warnings.warn(warning.message, warning.category, stacklevel=4)


# What a program was built from.


def describe(program: Program) -> dict[str, Any]:
    """A program's class, its arguments, and what has been changed since, as JSON holds them.

    Args:
        program: A model, or a guide, whose model is left out.

    Returns:
        The description.

    Raises:
        ValueError: If an argument is nothing that JSON can hold.
    """
    return _described(program, set())


def _described(program: Program, seen: set[int]) -> dict[str, Any]:
    name = type(program).__name__
    model = program.model if isinstance(program, BaseGuide) else None
    if id(program) in seen:
        raise ValueError(f"{name}: expected arguments that are programs of their own, got one of them twice.")
    seen.add(id(program))

    def encode(value: Any) -> Any:
        if isinstance(value, DSSM) and value is model:
            return {"": "model"}
        if isinstance(value, Program):
            return {"": "program", **_described(value, seen)}
        if isinstance(value, Structure):
            return {"": "structure", "edges": [e.value for e in _edges(value)]}
        if isinstance(value, tuple | list):
            return [encode(v) for v in value]
        if isinstance(value, dict) and all(isinstance(k, str) and k for k in value):
            return {k: encode(v) for k, v in value.items()}
        if is_plain(value, 0):
            return value
        raise ValueError(f"{name}: expected constructor arguments that JSON can hold, got {value!r}.")

    built = program._built
    return {
        "class": type(program).__qualname__,
        "module": type(program).__module__,
        "arguments": {name: encode(value) for name, value in program.arguments.items()},
        "changed": {path: frozen_copy(value) for path, value in built.changed(program).items()},
        "frozen": sorted(path for path, p in program.named_parameters() if not p.requires_grad),
        "replaced": built.replaced(program)[:8],
    }


def _edges(structure: Structure) -> tuple[Any, ...]:
    return structure.z_from_z, structure.z_from_x, structure.x_from_z, structure.x_from_x


def _subclasses(cls: type[Program]) -> Iterator[type[Program]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)


def build(description: Any, model: DSSM | None = None) -> Any:
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
    changes: list[tuple[Program, Any]] = []
    program = _build(description, model, changes)
    _settle(changes)
    return program


def _build(description: Any, model: DSSM | None, changes: list[tuple[Program, Any]]) -> Any:
    """Builds a program, and notes what is to be changed in it and in those among its arguments."""

    def decode(value: Any) -> Any:
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
            if isinstance(edges, list) and len(edges) == 4 and all(isinstance(edge, str) for edge in edges):
                return Structure(*edges)
        if kind == "program":
            return _build({k: v for k, v in value.items() if k}, model, changes)
        raise ValueError(f"path: expected a model, a program or a structure among the arguments, got {kind!r:.80}.")

    _need_description(description)
    _need_parts("path", description)
    cls = _class_of(description["class"], description["module"])
    program = cls(**{key: decode(value) for key, value in description["arguments"].items()})
    changes.append((program, description))
    return program


def _need_description(value: Any) -> None:
    """Raises ``ValueError`` unless a value has the form of a description."""
    kinds: dict[str, type] = {"class": str, "module": str, "arguments": dict}
    later: dict[str, type] = {"changed": dict, "frozen": list, "replaced": list}
    # Version 0.1 did not know what had been changed.
    kinds |= later if isinstance(value, dict) and len(value) > len(kinds) else {}
    whole = isinstance(value, dict) and value.keys() == kinds.keys()
    if not whole or not all(isinstance(value[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"path: expected class, module and arguments of a program, got {value!r:.200}.")


def _need_parts(what: str, description: dict[str, Any]) -> None:
    """Raises ``ValueError`` where something was put in the place of what the constructor had made."""
    if description.get("replaced"):
        raise ValueError(
            f"{what}: expected a {description['class']:.200} with the parts that its constructor has made, got "
            f"{description['replaced'][0]!s:.500}; a file holds arguments and weights, so other parts belong in the "
            "constructor of a class of your own."
        )


def _class_of(name: str, module: str) -> type[Program]:
    found = [cls for cls in _subclasses(Program) if cls.__qualname__ == name]
    exact = [cls for cls in found if cls.__module__ == module]
    if not exact and len(found) != 1:
        others = f"; of that name there are {[c.__module__ for c in found]}" if found else ""
        raise ValueError(
            f"path: the checkpoint needs the class {name!r:.200} of {module!r:.200}; import the module that defines it "
            f"before loading{others}."
        )
    # In a notebook, the cell that defines a class is often run again: the latest definition counts.
    return (exact or found)[-1]


def _settle(changes: list[tuple[Program, Any]]) -> None:
    """Changes programs after they were built, as they had been changed when they were saved."""
    for program, description in changes:
        change(program, description.get("changed", {}))
        if "frozen" not in description:
            continue
        parameters = dict(program.named_parameters())
        frozen = description["frozen"]
        if not all(isinstance(name, str) and name in parameters for name in frozen):
            raise ValueError(f"path: expected names of parameters that are frozen, got {frozen!r:.200}.")
        for name, p in parameters.items():
            p.requires_grad_(name not in frozen)


# The state of a pair.


def pair_tensors(model: DSSM, guide: BaseGuide) -> dict[str, Tensor]:
    """The state of a pair under one roof."""
    return {
        **{f"model.{k}": v for k, v in model.state_dict().items()},
        **{f"guide.{k}": v for k, v in guide.state_dict().items()},
    }


def load_pair(model: DSSM, guide: BaseGuide, tensors: Mapping[str, Tensor]) -> None:
    """Puts the state of a pair back.

    Args:
        model: The model.
        guide: Its guide.
        tensors: As from :func:`pair_tensors`.

    Raises:
        ValueError: If names, shapes or dtypes are others than those of the pair.
    """
    for prefix, module in (("model", model), ("guide", guide)):
        own = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
        for name, t in module.state_dict().items():
            if name in own and own[name].dtype != t.dtype:
                raise ValueError(
                    f"{prefix}: expected one of the checkpoint's dtype, {own[name].dtype} for {name!r}, got {t.dtype}."
                )
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{prefix}: expected one of the checkpoint's shape ({why:.500}).") from error


def _match_dtypes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives parameters and buffers the floating-point types that those of a file have."""
    for name, t in module.state_dict(keep_vars=True).items():
        kept = tensors.get(name)
        if kept is not None and kept.dtype != t.dtype and kept.is_floating_point() and t.is_floating_point():
            t.data = t.data.to(kept.dtype)


# Pairs.


@dataclass(frozen=True)
class PairFile:
    """What a pair file holds beside its weights: see :func:`inspect`.

    Attributes:
        model: The model's ``class``, its ``module`` and the ``arguments`` it was built with, as JSON holds them; what
            had been ``changed`` in it since, and the parameters that were ``frozen``.
        guide: The same of the guide.
        sites: The form of sites.
        dtype: That of the model.
        standardise: Means and scales of the frames, shape ``(x_dim,)`` each; ``None`` where the model does not
            standardise.
        calibration: The factors of the calibrated scale, shape ``(x_dim,)``; ``None`` where there are none.
        transform: What recordings went through, ``None`` if nothing was said.
        card: Whatever else was saved with the pair.
        has_checksum: Whether damage would have been noticed; files of version 0.1 have no checksum.
    """

    model: dict[str, Any]
    guide: dict[str, Any]
    sites: str
    dtype: torch.dtype
    standardise: tuple[Tensor, Tensor] | None
    calibration: Tensor | None
    transform: Spectrogram | dict[str, Any] | None
    card: dict[str, Any]
    has_checksum: bool


def save(
    path: str | os.PathLike[str],
    model: DSSM,
    guide: BaseGuide,
    *,
    card: Mapping[str, Any] | None = None,
    transform: Spectrogram | Mapping[str, Any] | None = None,
    **extra: Any,
) -> None:
    """Saves a model and its guide in one file, atomically, without pickle and with a checksum.

    The file holds the arguments that the two were built with, as they were then, the form of sites, all parameters and
    buffers (so also the means and scales of a model that standardises, and a calibrated scale), which parameters are
    frozen, and attributes that have been changed since: numbers, strings, truth values, and containers of these, as
    ``model.bound`` or the scale of an emission. It forgets the device, the mode (what is loaded is in evaluation mode),
    attributes of other kinds, such as tensors that are no buffers, and those that the constructor did not set, hooks
    and methods that were replaced on the object. A pair in which modules were replaced is refused.

    Args:
        path: The file, usually ``*.safetensors``.
        model: The model.
        guide: Its guide.
        card: What is to be known of the pair: the data, the command, the seed, a bound. Anything that JSON can hold;
            :func:`inspect` reads it back, and so it does for a pair that is saved again, of which neither this nor the
            transform is a part.
        transform: What recordings went through before the model saw them, to do the same to others and to go back: the
            :class:`~pyro_dssm.speech.Spectrogram`, or a dictionary.
        **extra: More entries of the card.

    Raises:
        ValueError: If the guide is not the model's, or anything is not JSON-able or could not be built again.

    Example:
        >>> import tempfile, pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dssm.save(f"{folder}/pair.safetensors", model, dssm.PartialAlignment(model), card={"seed": 1})
        ...     model, guide = dssm.load(f"{folder}/pair.safetensors")
        >>> guide
        PartialAlignment(DMM): q(z_t | z_{t-1}, g←_t)
    """
    check_types(save, locals())
    check_pair(model, guide)
    card = {} if card is None else card
    if not isinstance(card, Mapping):
        raise ValueError(f"card: expected a dictionary or None, got {type(card).__name__}.")
    both = sorted(str(name) for name in card.keys() & extra.keys())
    if both:
        raise ValueError(f"card: expected none of the names that are given beside it, got {', '.join(both)}.")
    for name, program in (("model", model), ("guide", guide)):
        _need_parts(name, describe(program))
    write_pair(path, model, guide, pair_tensors(model, guide), {**card, **extra}, transform)


def write_pair(
    path: str | os.PathLike[str],
    model: DSSM,
    guide: BaseGuide,
    tensors: Mapping[str, Tensor],
    card: Mapping[str, Any],
    transform: Spectrogram | Mapping[str, Any] | None = None,
) -> None:
    """Writes a pair with a state that need not be the one in place.

    Args:
        path: The file.
        model: The model.
        guide: Its guide.
        tensors: As from :func:`pair_tensors`.
        card: JSON-able values that are kept with them.
        transform: What recordings went through.

    Raises:
        ValueError: If anything could not be read again.
    """
    card, transform = frozen_copy(dict(card)), frozen_copy(transform)
    for name, value in card.items():
        if not isinstance(name, str) or not name or not is_plain(value, 16):
            raise ValueError(f"{name}: expected a value that JSON can hold, got {value!r}.")
    metadata = {
        "model": describe(model),
        "guide": describe(guide),
        "sites": model.sites,
        "dtype": str(model._like.dtype).removeprefix("torch."),
        "transform": _encoded(transform),
        "card": card,
    }
    write_tensors(path, tensors, metadata)


def _encoded(transform: Any) -> Any:
    if transform is None:
        return None
    if isinstance(transform, Spectrogram):
        return {"": "spectrogram", **asdict(transform)}
    if isinstance(transform, Mapping) and is_plain(dict(transform)):
        return dict(transform)
    raise ValueError(f"transform: expected a Spectrogram, a dictionary that JSON can hold or None, got {transform!r}.")


def _decoded(transform: Any) -> Spectrogram | dict[str, Any] | None:
    if isinstance(transform, dict) and transform.get("") == "spectrogram":
        values = {name: value for name, value in transform.items() if name}
        if values.keys() == Spectrogram.__dataclass_fields__.keys():
            return Spectrogram(**values)
    elif transform is None or (isinstance(transform, dict) and is_plain(transform, 16)):
        return transform
    raise ValueError(f"path: expected a transform of recordings, got {transform!r:.200}.")


def inspect(path: str | os.PathLike[str]) -> PairFile:
    """Reads what a pair file holds beside its weights, without building anything.

    Args:
        path: A file written by :func:`save` or :func:`~pyro_dssm.fit`.

    Returns:
        The arguments of the two, standardisation, calibration, the transform of recordings, and the card.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged or holds no pair.

    Warns:
        UserWarning: If it has no checksum, as files of version 0.1.

    Example:
        >>> import tempfile, pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/pair.safetensors"
        ...     dssm.save(path, model, dssm.PartialAlignment(model), card={"data": "rolls"}, transform={"rate": 16000})
        ...     found = dssm.inspect(path)
        >>> found.model["arguments"], found.card, found.transform
        ({'x_dim': 3, 'z_dim': 2}, {'data': 'rolls'}, {'rate': 16000})
    """
    with _told(), opened(path) as file:
        return _pair_file(file)


def _pair_file(file: TensorFile) -> PairFile:
    """What a file says of a pair, after all of it has been checked but for what only the classes know."""
    metadata = file.metadata
    early = file.format != FORMAT
    names = {"model", "guide", "sites", "dtype"} | ({"extra"} if early else {"transform", "card"})
    if metadata.keys() != names:
        which = " (the state of a run, which fit resumes)" if "progress" in metadata else ""
        raise ValueError(f"path: expected a saved pair, got another kind of checkpoint{which}: {file.path}.")
    for name in ("model", "guide"):
        _need_description(metadata[name])
    if metadata["sites"] not in ("path", "step"):
        raise ValueError(f"path: expected sites 'path' or 'step', got {metadata['sites']!r:.80}.")
    dtype = metadata["dtype"]
    if not isinstance(dtype, str) or dtype not in _FLOATING:
        raise ValueError(f"path: expected a dtype of {', '.join(_FLOATING)}, got {dtype!r:.80}.")
    card = metadata["extra" if early else "card"]
    if not isinstance(card, dict) or not is_plain(card, 17):
        raise ValueError(f"path: expected a dictionary of plain values as the card, got {card!r:.80}.")
    strangers = [name for name in file.entries if not name.startswith(("model.", "guide."))]
    if strangers:
        raise ValueError(f"path: expected tensors of a model and a guide, got {strangers[0]!r:.80}.")

    def tensor(name: str) -> Tensor | None:
        return file.tensor(name) if name in file.entries else None

    loc, scale = tensor("model.standardise.loc"), tensor("model.standardise.scale")
    return PairFile(
        model=metadata["model"],
        guide=metadata["guide"],
        sites=metadata["sites"],
        dtype=_FLOATING[dtype],
        standardise=None if loc is None or scale is None else (loc, scale),
        calibration=tensor("model.calibration"),
        transform=_decoded(metadata.get("transform")),
        card=card,
        has_checksum=file.checked,
    )


def card_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The card of a pair file; empty where there is no whole one, for those who would write it again then.

    Args:
        path: The file.

    Returns:
        The card.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return inspect(path).card
    except (OSError, ValueError):
        return {}


def load(path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Builds a saved model and its guide again, on the CPU and in evaluation mode (without dropout).

    Classes of your own must have been imported; nothing else of the file is executed. What the file says of sizes is
    compared with its own tensors before any memory is taken, so that it takes about twice the size of the file.

    Args:
        path: A file written by :func:`save`.

    Returns:
        The model and the guide.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged, holds no pair, or needs a class that has not been imported.

    Warns:
        UserWarning: If the file has no checksum, as those of version 0.1, or what it holds works in another way now.
    """
    check_types(load, locals())
    with _told(), opened(path) as file:
        found = _pair_file(file)
        try:
            model, guide = _built(file, found)
            load_pair(model, guide, file.tensors())
        except Exception as error:
            _refuse(file, error)
        return model.eval(), guide.eval()


def _refuse(file: TensorFile, error: Exception) -> NoReturn:
    if isinstance(error, ValueError) and str(error).startswith("path: "):
        raise error
    what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    raise ValueError(f"path: expected a pair that can be built, got {file.path} ({what:.1000}).") from error


def _built(file: TensorFile, found: PairFile) -> tuple[DSSM, BaseGuide]:
    """Builds the pair of a file, but only if it is as large as the file's tensors."""
    shapes = {name: entry.on_meta() for name, entry in file.entries.items()}
    most_calls = 20_000 + 100 * len(shapes)
    try:
        with generators_kept(torch.device("cpu")), warnings.catch_warnings(), Sizes(most_calls):
            warnings.simplefilter("ignore")
            pair = _assemble(found, shapes)
            load_pair(*pair, shapes)
        more = size_of(t for program in pair for t in (*program.parameters(), *program.buffers()))
    except ValueError:
        raise
    except Exception:
        # A constructor of one's own may read what it makes, for which it has to be made.
        with Bounded(most_calls, 8 * file.num_bytes + (1 << 29)):
            return _assemble(found, shapes)
    if more > 2 * file.num_bytes + (1 << 26):
        raise Excess(f"a pair of {more:,} bytes in a file whose tensors have {file.num_bytes:,}")
    return _assemble(found, shapes)


def _assemble(found: PairFile, tensors: Mapping[str, Tensor]) -> tuple[DSSM, BaseGuide]:
    """Builds a pair that can take the state of a file."""
    changes: list[tuple[Program, Any]] = []
    model = _build(found.model, None, changes)
    guide = _build(found.guide, model, changes)
    check_pair(model, guide)
    guide.adapt(take(tensors, "guide."))
    programs = [program for program, _ in changes]
    for program in programs:
        note_parts(program)
    _settle(changes)
    model.sites = found.sites
    for prefix, program in (("model.", model), ("guide.", guide)):
        _match_dtypes(program.to(found.dtype), take(tensors, prefix))
    return model, guide


def take(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


# Runs.


def read_run(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the state of a run.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU: those of the pair, and under ``average/``, ``best/`` and ``optimizer/``; and the
        metadata ``progress``, ``plan``, ``history``, ``kl`` and ``optimizer``, of the form that a run has written.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged or of another kind, or does not fit together.

    Warns:
        UserWarning: If it has no checksum, as files of version 0.1.
    """
    with _told(), opened(path) as file:
        _check_run(file)
        return file.tensors(), file.metadata


def _check_run(file: TensorFile) -> None:
    metadata, path = file.metadata, file.path

    def need(good: object, what: str, value: object) -> None:
        if not good:
            raise ValueError(f"checkpoint: expected {what} in {path}, got {value!r:.200}.")

    if metadata.keys() != {"progress", "plan", "history", "kl", "optimizer"}:
        kind = "a saved pair, as best.safetensors holds one" if "model" in metadata else "another kind of file"
        raise ValueError(
            f"checkpoint: expected the state of a run in {path}, got {kind}. Remove it, or start from scratch with "
            "resume=False."
        )
    _check_progress(metadata["progress"], metadata["history"], need)
    for name in ("plan", "kl"):
        need(isinstance(metadata[name], dict), f"a dictionary as {name}", metadata[name])
    plan = metadata["plan"]
    if "train" in plan:
        need(_whole(plan.get("epochs")) and isinstance(plan.get("device"), str), "epochs and device of a plan", plan)
    named = sorted(_tensors_of(metadata["optimizer"]))
    found = sorted(name.removeprefix("optimizer/") for name in file.entries if name.startswith("optimizer/"))
    need(named == found, "the tensors of the optimiser that it names", found)


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_progress(progress: Any, history: Any, need: Any) -> None:
    """The counts of a run and its records, which count the same."""
    names = {"epoch", "batch", "step", "sums"}
    need(isinstance(progress, dict) and progress.keys() == names, "the progress of a run", progress)
    counts = progress["epoch"], progress["batch"], progress["step"]
    need(all(map(_whole, counts)), "epoch, batch and step", progress)
    need(progress["step"] >= progress["epoch"] + progress["batch"], "as many steps as batches", progress)
    sums = progress["sums"]
    good = isinstance(sums, list) and len(sums) in (3, 4) and all(v is None or _number(v) for v in sums)
    need(good, "three or four sums", sums)
    names = {"epochs", "best_epoch", "best_valid", "stopped_early"}
    need(isinstance(history, dict) and history.keys() == names, "the history of a run", history)
    records = history["epochs"]
    need(isinstance(records, list) and len(records) == progress["epoch"], "a record for each epoch", records)
    for i, record in enumerate(records, start=1):
        good = isinstance(record, dict) and record.get("epoch") == i and type(record["epoch"]) is int
        need(good and all(v is None or _number(v) for v in record.values()), f"the record of epoch {i}", record)
    best = history["best_epoch"]
    need(_whole(best) and best <= progress["epoch"], "the best epoch among those that were", best)
    need(history["best_valid"] is None or _number(history["best_valid"]), "the best bound", history["best_valid"])
    need(isinstance(history["stopped_early"], bool), "whether it was stopped", history["stopped_early"])


def check_state(tensors: Mapping[str, Tensor], model: DSSM, guide: BaseGuide) -> None:
    """Raises ``ValueError`` unless the tensors of a run are those of a pair.

    Args:
        tensors: From :func:`read_run`.
        model: The model that is to be trained.
        guide: Its guide.

    Raises:
        ValueError: If names, shapes or dtypes of the weights are others, or averages and best weights are there of
            some parameters only.
    """
    pair = {name: _form(t) for name, t in pair_tensors(model, guide).items()}
    weights = {f"{kind}.{n}" for kind, p in (("model", model), ("guide", guide)) for n, _ in p.named_parameters()}
    for group, least in (("", set(pair)), ("average/", weights), ("best/", weights)):
        found = {
            name.removeprefix(group): _form(t)
            for name, t in tensors.items()
            if (name.startswith(group) if group else not name.startswith(("average/", "best/", "optimizer/")))
        }
        for name in {**dict.fromkeys(sorted(least)), **found} if found or not group else ():
            then, now = found.get(name), pair.get(name)
            if then != now:
                kind = "guide" if name.startswith("guide.") else "model"
                raise ValueError(
                    f"{kind}: expected one of the checkpoint's shape and dtype, {then or 'nothing'} for "
                    f"{group + name!r:.200}, got {now or 'nothing'}."
                )


def _form(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)}"


# Nested states.


def flatten(value: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Splits a nested state into its tensors and the JSON around them."""
    if isinstance(value, Tensor):
        return {path: value}, {"tensor": path}
    if isinstance(value, dict):
        tensors: dict[str, Tensor] = {}
        items = []
        for key, inner in value.items():
            found, shape = flatten(inner, f"{path}/{key}")
            tensors |= found
            items.append([key, shape])
        return tensors, {"dict": items}
    if isinstance(value, list | tuple):
        parts = [flatten(inner, f"{path}/{i}") for i, inner in enumerate(value)]
        return {k: v for found, _ in parts for k, v in found.items()}, {"list": [shape for _, shape in parts]}
    return {}, {"value": value}


def unflatten(tensors: Mapping[str, Tensor], shape: Any) -> Any:
    """Puts together what :func:`flatten` took apart.

    Args:
        tensors: By path.
        shape: The JSON.

    Returns:
        The state.

    Raises:
        ValueError: If it is no such JSON, or a tensor is not there.
    """
    kind, inner = _node(shape)
    if kind == "tensor":
        if inner not in tensors:
            raise ValueError(f"path: expected a tensor of a state, found none for {inner!r:.200}.")
        return tensors[inner]
    if kind == "dict":
        return {key: unflatten(tensors, part) for key, part in inner}
    return [unflatten(tensors, part) for part in inner] if kind == "list" else inner


def _tensors_of(shape: Any) -> list[str]:
    kind, inner = _node(shape)
    if kind == "tensor":
        return [inner]
    parts = [part for _, part in inner] if kind == "dict" else inner if kind == "list" else []
    return [name for part in parts for name in _tensors_of(part)]


def _node(shape: Any) -> tuple[str, Any]:
    """The kind of a part of a nested state, and what is in it, of the form that belongs to the kind."""
    if isinstance(shape, dict) and len(shape) == 1:
        [(kind, inner)] = shape.items()
        if kind == "tensor" and isinstance(inner, str):
            return kind, inner
        if kind == "dict" and isinstance(inner, list) and all(_is_item(item) for item in inner) and _differ(inner):
            return kind, inner
        if (kind == "list" and isinstance(inner, list)) or (kind == "value" and is_plain(inner, 16)):
            return kind, inner
    raise ValueError(f"path: expected a part of a nested state, got {shape!r:.200}.")


def _is_item(item: Any) -> bool:
    return (
        isinstance(item, list) and len(item) == 2 and (item[0] is None or isinstance(item[0], bool | int | float | str))
    )


def _differ(items: list[Any]) -> bool:
    return len({(type(key), key) for key, _ in items}) == len(items)
