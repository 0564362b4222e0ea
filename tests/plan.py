"""Counts the plan of the package: how its files hang together, and how far a call travels through them.

Run as: ``python tests/plan.py [--package DIR] [--trips]``. A room is a file or a folder at the top level of the
package, an arrow an import between two rooms, a floor the length of the longest chain of arrows below a room.
Imports that only a type checker reads count as well: who reads the code follows them too.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pyro_dssm"


@dataclass
class Source:
    """One file, parsed."""

    path: Path
    module: str
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


@dataclass
class Plan:
    """What is counted."""

    figures: dict[str, object] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)


def sources(package: Path) -> list[Source]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found.append(Source(path, module, text, ast.parse(text)))
    return found


def imports(source: Source, known: set[str]) -> dict[str, int]:
    """The package's modules that a file imports, each with the line where it does."""
    found: dict[str, int] = {}
    base = source.module.split(".")
    base = base if source.is_package else base[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                start = base[: len(base) - node.level + 1]
                prefix = ".".join([*start, *([node.module] if node.module else [])])
            else:
                prefix = node.module or ""
            # `from . import a` imports the module a, where there is one.
            names = [f"{prefix}.{a.name}" if f"{prefix}.{a.name}" in known else prefix for a in node.names]
        else:
            continue
        for name in names:
            if name in known:
                found.setdefault(name, node.lineno)
    found.pop(source.module, None)
    return found


def room(module: str) -> str:
    """The top-level entry that a module is or lies in; empty for the package's face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def arrows(files: list[Source]) -> dict[str, set[str]]:
    """For each room those that it imports."""
    known = {s.module for s in files}
    found: dict[str, set[str]] = {room(s.module): set() for s in files if room(s.module)}
    for s in files:
        for name in imports(s, known):
            if room(s.module) and room(name) and room(s.module) != room(name):
                found[room(s.module)].add(room(name))
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of rooms that reach each other."""
    reach = {node: _reached(graph, node) for node in graph}
    groups = {frozenset([n, *(m for m in reach[n] if n in reach[m])]) for n in graph}
    return sorted(sorted(g) for g in groups if len(g) > 1)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for node in graph[todo.pop()] - seen:
            seen.add(node)
            todo.append(node)
    return seen


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room; those in a circle stand on one."""
    group = {n: n for n in graph} | {n: g[0] for g in circles(graph) for n in g}
    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            below = {group[b] for n in graph if group[n] == name for b in graph[n]} - {name}
            found[name] = 1 + max(map(floor, below), default=0)
        return found[name]

    return {n: floor(group[n]) for n in graph}


def private_overrides(files: list[Source]) -> list[str]:
    """Private methods and attributes of a class that a class of another file defines again."""
    classes: dict[str, list[tuple[Source, ast.ClassDef]]] = defaultdict(list)
    for s in files:
        for node in ast.walk(s.tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append((s, node))

    def members(node: ast.ClassDef) -> set[str]:
        names = {n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        return {n for n in names if n.startswith("_") and not n.startswith("__")}

    def parents(node: ast.ClassDef) -> list[tuple[Source, ast.ClassDef]]:
        names = [ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases]
        return [found for name in names for found in classes.get(name, [])]

    lines = []
    for found in classes.values():
        for s, node in found:
            todo, seen = parents(node), set()
            while todo:
                other, parent = todo.pop()
                if id(parent) in seen:
                    continue
                seen.add(id(parent))
                todo += parents(parent)
                if other.path != s.path:
                    lines += [f"{s.module}.{node.name}.{n} ({parent.name})" for n in members(node) & members(parent)]
    return sorted(set(lines))


def _length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


def _arguments(node: ast.FunctionDef) -> int:
    a = node.args
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    return len([x for x in named if x.arg not in ("self", "cls")])


def longest(files: list[Source], count: int = 5) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {"file": [], "class": [], "function": [], "arguments": []}
    for s in files:
        found["file"].append((s.text.count("\n"), s.module))
        for node in ast.walk(s.tree):
            if isinstance(node, ast.ClassDef):
                found["class"].append((_length(node), f"{s.module}.{node.name}"))
            elif isinstance(node, ast.FunctionDef):
                found["function"].append((_length(node), f"{s.module}.{node.name}"))
                found["arguments"].append((_arguments(node), f"{s.module}.{node.name}"))
    return {kind: sorted(values, reverse=True)[:count] for kind, values in found.items()}


def count_any(files: list[Source]) -> int:
    """How often ``Any`` stands in an annotation or an expression (not where it is imported)."""
    return sum(isinstance(n, ast.Name) and n.id == "Any" for s in files for n in ast.walk(s.tree))


def count(package: Path) -> Plan:
    """All that can be read from the text."""
    files = sources(package)
    graph = arrows(files)
    height = floors(graph)
    loops = circles(graph)
    overrides = private_overrides(files)
    lines = sum(s.text.count("\n") for s in files)
    plan = Plan(lists={"private overrides": overrides, "circles": [" <-> ".join(g) for g in loops]})
    plan.figures |= {
        "files": len(files),
        "lines": lines,
        "rooms": len(graph),
        "floors": max(height.values()),
        "arrows": sum(map(len, graph.values())),
        "arrows up": sum(height[b] >= height[a] for a in graph for b in graph[a]),
        "circles": len(loops),
        "private overrides": len(overrides),
        "Any per 1,000 lines": round(1000 * count_any(files) / lines, 1),
    }
    for kind, name in ADDED.items():
        where = places(files, package.parent, name)
        plan.figures[f"places to touch for a new {kind}"] = len(where)
        plan.lists[f"places of {name}"] = where
    most = longest(files)
    plan.figures |= {f"longest {kind}": values[0] for kind, values in most.items()}
    plan.lists |= {f"longest {kind}": [f"{n} {name}" for n, name in values] for kind, values in most.items()}
    return plan


# What was added to the library one day, of each kind.
ADDED = {"named model": "RSSM", "emission": "LogNormalPowerEmission", "guide": "MeanField", "objective": "GECO"}


def places(files: list[Source], root: Path, name: str) -> list[str]:
    """The files that say a name in their code (not in their prose), and the README if its tables do."""
    found = []
    for source in files:
        prose = {id(n.value) for n in ast.walk(source.tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(source.tree):
            said = (
                (isinstance(node, ast.Name) and node.id == name)
                or (isinstance(node, ast.ClassDef) and node.name == name)
                or (isinstance(node, ast.alias) and node.name.rpartition(".")[2] == name)
                or (isinstance(node, ast.Constant) and node.value == name and id(node) not in prose)
            )
            if said:
                found.append(source.path.relative_to(root).as_posix())
                break
    readme = root / "README.md"
    rows = readme.read_text().splitlines() if readme.is_file() else []
    return found + ["README.md"] * any(row.startswith("|") and f"`{name}`" in row for row in rows)


def trip(make: str, package: Path) -> tuple[int, int, int]:
    """How often one ``SVI.step`` at T = 4 changes from one file of the package to another, how many it enters, and how
    often it changes from one room to another.
    """
    sys.path.insert(0, str(package.parent))
    import pyro
    import torch

    import pyro_dssm as dssm

    pyro.clear_param_store()
    torch.manual_seed(0)
    if make == "ArSSM":
        model = dssm.ArSSM(x_dim=3, z_dim=2, rnn_dim=4)
        guide = dssm.FullAlignment(model, rnn_dim=4, hidden_dim=4)
    else:
        model = dssm.EKVAE(x_dim=3, state_dim=2, code_dim=2)
        guide = dssm.KalmanGuide(model)
    svi = pyro.infer.SVI(model, guide, dssm.ClippedNormAdam({"lr": 1e-3}), dssm.RecordingELBO())
    x, lengths = torch.randn(2, 4, 3).sign().relu(), torch.tensor([4, 3])
    svi.step(x, lengths)

    entered: list[str] = []
    inside = str(package)

    def profile(frame, event, argument):  # noqa: ANN001, ANN202
        if event == "return":
            frame = frame.f_back
        elif event != "call":
            return
        # What torch or Pyro do in between is not a stay.
        while frame is not None and not frame.f_code.co_filename.startswith(inside):
            frame = frame.f_back
        if frame is not None:
            entered.append(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        svi.step(x, lengths)
    finally:
        sys.setprofile(None)
    rooms = [Path(file).relative_to(package).parts[0] for file in entered]
    changes, moves = (sum(a != b for a, b in pairwise(visited)) for visited in (entered, rooms))
    return changes, len(set(entered)), moves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=PACKAGE, help="folder of the package (default: this one's)")
    parser.add_argument("--trips", action="store_true", help="also follow one training step of an ArSSM and an EKVAE")
    parser.add_argument("--json", action="store_true", help="print JSON, without the lists")
    options = parser.parse_args()
    package = options.package.resolve()
    plan = count(package)
    if options.trips:
        for make in ("ArSSM", "EKVAE"):
            changes, files, moves = trip(make, package)
            plan.figures[f"changes of file in one step, {make}"] = changes
            plan.figures[f"files entered in one step, {make}"] = files
            plan.figures[f"changes of room in one step, {make}"] = moves
    if options.json:
        print(json.dumps(plan.figures))
        return
    for name, value in plan.figures.items():
        shown = f"{value[0]} ({value[1]})" if isinstance(value, tuple) else value
        print(f"{name:40} {shown}")
    for name, lines in plan.lists.items():
        print(f"\n{name}:")
        print(*(f"  {line}" for line in lines), sep="\n")


if __name__ == "__main__":
    main()
