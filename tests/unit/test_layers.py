"""The plan of the package: what a wing may import, and how many doors there are."""

from pathlib import Path

import plan
import pytest

PACKAGE = Path(plan.__file__).parents[1] / "pyro_dssm"
# An entry imports from entries above it alone.
LISTING = (
    "_utils",  # checks, devices, extras, files: knows nobody
    "structure",
    "kalman",
    "data",
    "programs",  # program, batch, latent path, what guide and model share
    "nn",  # networks, memories, images
    "emissions",
    "particles",  # conditional particle filters
    "models",
    "guides",
    "objectives",  # the bound, schedules, constraints
    "evaluation",
    "speech",
    "saving",
    "training",
    "testing",
    "plots",
    "_moved",  # paths of version 0.1, for one release
)


@pytest.fixture(scope="module")
def files():
    return plan.sources(PACKAGE)


def test_the_listing_is_the_package(files):
    assert set(plan.arrows(files)) == set(LISTING)
    assert len(LISTING) <= 20


def test_an_entry_imports_from_entries_above_it(files):
    place = {name: i for i, name in enumerate(LISTING)}
    up = [f"{a} imports {b}" for a, below in plan.arrows(files).items() for b in below if place[b] >= place[a]]
    assert up == []


def test_the_unit_tests_mirror_the_package():
    folders = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(LISTING)


def test_no_circle(files):
    assert plan.circles(plan.arrows(files)) == []


def test_no_private_method_is_overridden_elsewhere(files):
    assert plan.private_overrides(files) == []


def test_a_file_a_class_and_a_list_of_arguments_can_be_read_at_one_glance(files):
    longest = plan.longest(files)
    assert [entry for entry in longest["file"] if entry[0] > 300] == []
    assert [entry for entry in longest["class"] if entry[0] > 200] == []
    assert [entry for entry in longest["arguments"] if entry[0] > 12 and not entry[1].endswith("fitting.fit")] == []
    assert max(count for count, name in longest["arguments"]) <= 17


def test_hardly_anything_is_of_any_type(files):
    lines = sum(source.text.count("\n") for source in files)
    assert 1000 * plan.count_any(files) / lines < 6


@pytest.mark.parametrize("kind", plan.ADDED)
def test_what_is_added_has_few_places(files, kind):
    assert len(plan.places(files, PACKAGE.parent, plan.ADDED[kind])) <= (4 if kind == "guide" else 3)


def test_a_circle_and_an_arrow_up_are_noticed():
    """Negative control."""
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert plan.circles(graph) == [["a", "b", "c"]]
    assert plan.floors(graph)["d"] == 2
