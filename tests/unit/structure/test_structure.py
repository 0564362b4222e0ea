"""The taxonomy: its counts and names, its exact posteriors against d-separation, its drawings."""

import dataclasses
import itertools
import pickle
import subprocess
import sys
from collections import Counter

import matplotlib
import networkx
import pytest

import pyro_dssm
from pyro_dssm.structure.names import MODELS, WITHOUT_LATENTS, key
from pyro_dssm.structure.structure import Arrow, Order, Posterior, Structure

matplotlib.use("Agg")

CHAINS = Structure.all()
EVERY = Structure.all(chain=False)
STEPS = 6

every_structure = pytest.mark.parametrize("structure", EVERY, ids=lambda structure: structure.name)


def test_counts():
    assert len(CHAINS) == len(set(CHAINS)) == 36
    assert len(EVERY) == len(set(EVERY)) == 54
    assert EVERY[:36] == CHAINS
    groups = Counter(structure.group for structure in EVERY)
    assert list(groups.items()) == [
        ("HMM", 4),
        ("AR-HMM", 8),
        ("F-HMM", 8),
        ("DMM-Aug", 16),
        ("no chain", 18),
    ]
    assert all(structure.has_chain == (structure.group != "no chain") for structure in EVERY)


def test_order_is_total():
    assert Order.NONE < Order.MARKOV < Order.FULL
    assert max(Order.MARKOV, Order.NONE, Order.FULL) is Order.FULL
    assert Order.FULL >= Order.FULL
    assert repr(Order.FULL) == "Order.FULL"
    with pytest.raises(TypeError):
        _ = Order.NONE < "full"


def test_default_is_the_deep_markov_model():
    assert Structure() == Structure("markov", "none", "markov", "none")
    assert Structure().name == "DMM"
    assert Structure().posterior == Posterior(Order.MARKOV, Order.NONE, z_from_future_x=True)


def test_strings_of_any_case_and_members_build_the_same():
    members = Structure(z_from_z=Order.FULL, x_from_x=Order.MARKOV)
    assert Structure(z_from_z="FULL", x_from_x="Markov") == members
    assert hash(Structure(z_from_z="FULL", x_from_x="Markov")) == hash(members)
    assert dataclasses.replace(members, x_from_x="none") == Structure("full")
    assert members.z_from_z is Order.FULL
    with pytest.raises(dataclasses.FrozenInstanceError):
        members.z_from_z = Order.NONE


@every_structure
def test_round_trips(structure):
    assert eval(repr(structure)) == structure
    assert pickle.loads(pickle.dumps(structure)) == structure
    assert Structure.named(structure.name) == structure
    assert Structure.named(f"  {structure.name.lower()} ") == structure


def test_repr():
    expected = "Structure(z_from_z='markov', z_from_x='none', x_from_z='markov', x_from_x='none')"
    assert repr(Structure()) == expected


@pytest.mark.parametrize("edge", ["z_from_z", "z_from_x", "x_from_z", "x_from_x"])
@pytest.mark.parametrize("value", ["second", "", None, 1, True])
def test_bad_edges_are_named(edge, value):
    with pytest.raises(ValueError, match=f"^{edge}: expected .*'markov' or 'full'.* got {value!r}$"):
        Structure(**{edge: value})


@pytest.mark.parametrize("none", ["none", "NONE", Order.NONE])
def test_x_needs_z(none):
    with pytest.raises(ValueError, match="^x_from_z: expected 'markov' or 'full'.* got .*(?i:none)"):
        Structure(x_from_z=none)


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("DMM", "markov none markov none"),
        ("RSSM", "full none full none"),
        ("AR-HMM", "markov none markov markov"),
        ("ArSSM", "full none full full"),
        ("F-HMM", "markov markov markov none"),
        ("FSSM", "full full full none"),
        ("DMM-Aug", "markov markov markov markov"),
        ("SRNN", "markov full markov full"),
        ("VRNN", "full full full full"),
        ("VAE", "none none markov none"),
        ("RVAE", "none none full none"),
        ("STORN", "none none full full"),
        ("SVG-LP", "none full full full"),
    ],
)
def test_well_known_names(name, edges):
    structure = Structure(*edges.split())
    assert structure.name == name
    assert Structure.named(name) == structure


def test_every_named_model_is_in_the_table():
    """The table is the only place that says which edges a named model has; a class looks its own up."""
    alone = {"dkf", "dks"}  # of whose models the class is that of the first with the same edges
    classes = {"FrameVAE": "VAE"}
    table = {key(name): edges for name, edges in {**MODELS, **WITHOUT_LATENTS}.items()}
    zoo = {key(classes.get(name, name)): cls.edges for name, cls in pyro_dssm.ZOO.items()}
    assert zoo == {name: edges for name, edges in table.items() if name not in alone}
    assert all(Structure.named(name) == Structure(*edges) for name, edges in MODELS.items())
    assert not any(Structure(*edges).name == name for name, edges in WITHOUT_LATENTS.items())


def test_names_are_unique():
    assert len({structure.name for structure in EVERY}) == 54


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("dkf", "DMM"),
        ("DKS", "DMM"),
        ("HMM", "DMM"),
        ("svg-fp", "STORN"),
        ("Ar HMM ◐●", "AR-HMM ●◐"),
        ("AR-HMM ●◐○", "ArSSM"),
        ("DMM_Aug◑●", "SRNN"),
        ("1G", "ArSSM"),
        ("3", "DMM"),
        ("hmm without chain", "VAE"),
    ],
)
def test_aliases(alias, name):
    assert Structure.named(alias).name == name


@pytest.mark.parametrize("name", ["LSTM", "1h", "", "●", "HMM ●", 7, None])
def test_unknown_names_list_what_exists(name):
    with pytest.raises(ValueError, match=r"^name: expected one of DMM, .*VRNN, .*STORN.*; got "):
        Structure.named(name)


def test_figures_are_a_bijection():
    figures = [structure.figure for structure in CHAINS]
    letters = {"3": "abc", "1": "abcdefg", "4": "abcdefg", "5": "abcdefghijklmno"}
    assert figures == [number + letter for number, parts in letters.items() for letter in ["", *parts]]
    assert [Structure.named(figure) for figure in figures] == list(CHAINS)
    assert {structure.figure for structure in EVERY[36:]} == {None}


@pytest.mark.parametrize(
    ("figure", "markers"),
    [("1d", "●◐"), ("1e", "◐○"), ("3c", "○◐"), ("4c", "◑"), ("4f", "◑◐"), ("5c", "◐"), ("5i", "◑●"), ("5n", "◑●◐")],
)
def test_figures_of_the_paper(figure, markers):
    assert set(Structure.named(figure).markers) == set(markers)


@every_structure
def test_markers_tell_the_relaxed_edges(structure):
    signs = {"z_from_z": "○", "z_from_x": "◑", "x_from_x": "●", "x_from_z": "◐"}
    assert structure.markers == "".join(sign for edge, sign in signs.items() if getattr(structure, edge) is Order.FULL)
    assert {signs[edge] for edge in structure.relaxed} == set(structure.markers)


def test_factorisation_as_text():
    arssm, vae = Structure.named("ArSSM"), Structure.named("VAE")
    assert arssm.factorisation() == "p(z_t | z_{1:t-1}) p(x_t | z_{1:t}, x_{1:t-1})"
    assert str(arssm.posterior) == "q(z_t | z_{1:t-1}, x_{1:t-1}, x_t, x_{t+1:T})"
    assert str(vae) == "VAE: p(z_t) p(x_t | z_t)"
    assert str(vae.posterior) == "q(z_t | x_t)"
    assert len({structure.factorisation() for structure in EVERY}) == 54


def test_parents():
    srnn = Structure.named("SRNN")
    assert srnn.parents_of_z(1) == (frozenset(), frozenset())
    assert srnn.parents_of_z(4) == ({3}, {1, 2, 3})
    assert srnn.parents_of_x(4) == ({4}, {1, 2, 3})
    assert Structure.named("VAE").parents_of_z(4) == (frozenset(), frozenset())
    assert Structure.named("RVAE").parents_of_x(3) == ({1, 2, 3}, frozenset())


@pytest.mark.parametrize("steps", [0, -1, 1.5])
@pytest.mark.parametrize("method", ["parents_of_z", "parents_of_x", "arrows", "draw", "plot"])
def test_bad_steps(method, steps):
    with pytest.raises(ValueError, match=f"expected an integer of at least 1; got {steps}"):
        getattr(Structure(), method)(**{"t" if "parents" in method else "steps": steps})


# The exact posterior -----------------------------------------------------------------------------------------


def unrolled(structure: Structure, steps: int) -> networkx.DiGraph:
    """The graph of the generative program, straight from the definition of the edges, by no code under test."""
    graph = networkx.DiGraph()
    graph.add_nodes_from(itertools.product("zx", range(1, steps + 1)))
    for edge, (child, parent) in {f"{c}_from_{p}": (c, p) for c in "zx" for p in "zx"}.items():
        order = getattr(structure, edge).value
        for source, target in itertools.product(range(1, steps + 1), repeat=2):
            lag = target - source if edge != "x_from_z" else target - source + 1
            if (order == "markov" and lag == 1) or (order == "full" and lag >= 1):
                graph.add_edge((parent, source), (child, target))
    return graph


@every_structure
def test_arrows_are_the_unrolled_graph(structure):
    arrows = structure.arrows(STEPS)
    edges = {((arrow.edge[-1], arrow.source), (arrow.edge[0], arrow.target)) for arrow in arrows}
    assert len(edges) == len(arrows)
    assert edges == set(unrolled(structure, STEPS).edges)
    assert {arrow.edge for arrow in arrows if arrow.relaxed} == set(structure.relaxed)
    first_order = dataclasses.replace(structure, **dict.fromkeys(structure.relaxed, Order.MARKOV))
    assert [arrow for arrow in arrows if not arrow.relaxed] == list(first_order.arrows(STEPS))


@every_structure
def test_posterior_is_what_d_separation_finds(structure):
    # d-separation has the intersection property, so the smallest set of parents in p(z_t | z_{1:t-1}, x_{1:T}) is
    # unique: whatever is still connected to z_t with all the others given.
    graph = unrolled(structure, STEPS)
    posterior = structure.posterior
    for t in range(1, STEPS + 1):
        given = {("z", s) for s in range(1, t)} | {("x", s) for s in range(1, STEPS + 1)}
        needed = {node for node in given if not networkx.is_d_separator(graph, {("z", t)}, {node}, given - {node})}
        expected = {("x", t)}
        expected |= {("z", s) for s in back(posterior.z_from_z, t)}
        expected |= {("x", s) for s in back(posterior.z_from_past_x, t)}
        if posterior.z_from_future_x:
            expected |= {("x", s) for s in range(t + 1, STEPS + 1)}
        assert needed == expected, f"t = {t}"


def back(order: Order, t: int) -> range:
    return {Order.NONE: range(0), Order.MARKOV: range(max(t - 1, 1), t), Order.FULL: range(1, t)}[order]


# Drawings ----------------------------------------------------------------------------------------------------


def test_text_drawings_differ():
    # The title names the structure, so the drawing is to differ without it.
    drawings = {structure.draw().split("\n", 1)[1] for structure in EVERY}
    assert len(drawings) == 54


@pytest.mark.parametrize("steps", [1, 3, 11])
@every_structure
def test_text_drawings_show_every_arrow(structure, steps):
    _, grid, *longer = structure.draw(steps).split("\n\n")
    nearest = Counter(arrow.edge for arrow in structure.arrows(steps) if not arrow.relaxed)
    rows = grid.splitlines()
    assert rows[0].count("▶") == nearest["z_from_z"]
    assert rows[-1].count("▶") == nearest["x_from_x"]
    assert grid.count("▼") == nearest["x_from_z"] == steps
    assert grid.count("↗") == nearest["z_from_x"]
    assert all(f"{variable}{t}" in grid for variable in "zx" for t in range(1, steps + 1))
    assert len("\n".join(longer).splitlines()) == len(structure.relaxed)


def test_text_drawing_lists_longer_arrows():
    *_, z_from_z, x_from_z = Structure.named("RSSM").draw(5).splitlines()
    assert z_from_z == "  ○ z_from_z full: z3 ← z1, z4 ← z1 z2, z5 ← z1…z3"
    assert x_from_z == "  ◐ x_from_z full: x2 ← z1, x3 ← z1 z2, x4 ← z1…z3, x5 ← z1…z4"


def test_plot_draws_every_arrow():
    from matplotlib import pyplot
    from matplotlib.patches import Circle, FancyArrowPatch

    figure, ax = pyplot.subplots()
    settings = dict(matplotlib.rcParams)
    for structure in EVERY:
        ax.clear()
        assert structure.plot(ax, steps=3) is ax
        kinds = Counter(type(patch) for patch in ax.patches)
        assert kinds == {Circle: 6, FancyArrowPatch: len(structure.arrows(3))}
        assert structure.name in ax.get_title()
        assert structure.markers in ax.get_title()
        legend = ax.get_legend()
        assert len(legend.get_texts() if legend else []) == len(structure.relaxed) + bool(structure.relaxed)
    assert dict(matplotlib.rcParams) == settings
    pyplot.close(figure)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_plot_makes_and_renders_a_figure(steps):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    ax = Structure.named("VRNN").plot(steps=steps)
    ax.figure.canvas.draw()
    pyplot.close(ax.figure)
    assert pyplot.get_fignums() == before


def test_arrow_is_a_plain_tuple():
    assert Structure().arrows(1) == (("x_from_z", 1, 1, False),)
    assert Arrow("x_from_z", 1, 1, relaxed=False) in Structure().arrows(3)


def test_structures_need_neither_torch_nor_matplotlib():
    # The package around them does import torch, so it is replaced by one that only has a path.
    code = (
        "import sys, types\n"
        "package = sys.modules['pyro_dssm'] = types.ModuleType('pyro_dssm')\n"
        f"package.__path__ = {list(pyro_dssm.__path__)!r}\n"
        "from pyro_dssm.structure import Structure\n"
        "Structure.all()\n"
        "assert not {'torch', 'pyro', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
