"""The documents: their code runs, their tables, commands and links are right, and their words are the field's."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

import pyro_dssm as dssm

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
EXAMPLES = ROOT / "examples"
DOCUMENTS = ["README.md", "examples/README.md", "examples/RESULTS.md", "data/README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document, language):
    return [body for name, body in FENCE.findall(text_of(document)) if name == language]


@pytest.fixture
def examples(monkeypatch):
    """Imports a module of the examples."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and EXAMPLES in Path(sys.modules[name].__file__).parents:
            del sys.modules[name]


def run_blocks(document):
    names = {}
    for block in blocks(document, "python"):
        exec(compile(block, document, "exec"), names)
    return names


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 200


def test_the_blocks_of_the_readme_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks("README.md")
    assert names["new"].shape == (8, 100, 88)
    assert names["future"].shape == (100, 1, 20, 88)


@pytest.mark.slow
def test_the_blocks_of_the_how_tos_run_in_order(tmp_path, monkeypatch, capsys, examples):
    monkeypatch.chdir(tmp_path)
    examples("support.speech").make_recordings(tmp_path / "recordings")
    names = run_blocks("examples/README.md")
    assert names["RandomWalk"](3, 2).sample(1, 4).shape == (1, 4, 3)
    guide = names["LinearGuide"](dssm.DMM(3, 4))
    assert guide(names["torch"].zeros(2, 3, 3)).shape == (2, 3, 4)
    drawn = names["counts"].sample(1, 4)
    assert (drawn == drawn.round()).all()
    assert names["windows"].lengths == [10] * 18
    assert names["ahead"].shape == (100, 10, 10, 256)
    assert names["draws"].shape == (100, 1, 20, 2)
    assert (names["draws"].mean((0, 1)) - names["waves"][40]).abs().max() < 25
    assert len(names["history"].epochs) == 2
    printed = capsys.readouterr().out
    for expected in ("AR-HMM 1e ○◐", "q(z_t | z_{1:t-1}, x_{t-1}, x_t, x_{t+1:T})", "ESTOI", "hold after", "'x_3'"):
        assert expected in printed


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in ("README.md", "examples/README.md")])
def test_no_block_of_another_document_is_left_out(document):
    assert blocks(document, "python") == []


@pytest.mark.parametrize("name", dssm.ZOO)
def test_the_table_has_a_row_for_every_model(name):
    cls = dssm.ZOO[name]
    row = next(line for line in text_of("README.md").splitlines() if line.startswith(f"| `{name}`"))
    assert f"| {cls.year} |" in row
    structure = dssm.Structure(*cls.edges)
    assert structure.markers in row
    if structure.has_chain:
        assert structure.group in row


@pytest.mark.parametrize("name", ["PartialAlignment", "FullAlignment", "Filtering", "MeanField"])
def test_the_table_of_guides_says_what_they_read(name):
    row = next(line for line in text_of("README.md").splitlines() if line.startswith(f"| `{name}`"))
    guide = getattr(dssm, name)(dssm.ArSSM(x_dim=3, z_dim=2))
    assert re.search(r"\| (.*)\)", repr(guide)).group(1) in row


def test_the_table_of_emissions_has_them_all():
    from pyro_dssm.emissions import EMISSIONS

    assert re.findall(r'^\| `"([a-z-]+)"` \|', text_of("README.md"), flags=re.MULTILINE) == [
        *("bernoulli", "autoregressive", "gaussian", "itakura-saito", "gamma", "log-normal", "power-gaussian")
    ]
    assert len(EMISSIONS) == 7


def test_the_table_of_scripts_has_them_all():
    listed = re.findall(r"^\| \[(\w+)\.py\]", text_of("examples/README.md"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_are_targets_of_the_makefile(document):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"(?:\$ |`)make ([a-z-]+)", text_of(document))) <= set(targets)


def commands(document):
    """The lines of consoles that call an example, with what they take from the lines before."""
    given = {}
    for line in "".join(blocks(document, "console")).splitlines():
        if found := re.fullmatch(r'\$ (\w+)="(.*)"', line):
            given[found[1]] = found[2]
        elif line.startswith("$ python examples/"):
            yield re.sub(r"\$(\w+)", lambda name: given[name[1]], line.removeprefix("$ python examples/"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_are_understood(document, tmp_path, monkeypatch, examples):
    """Every flag of every command that is shown is one of its script, with a value that it takes."""
    monkeypatch.chdir(tmp_path)
    for folder in ("RECORDINGS", "OTHER_RECORDINGS", "DATA/librispeech_mini/test_other", "runs/speech"):
        Path(folder).mkdir(parents=True)
    Path("runs/speech/best.safetensors").touch()
    for command in commands(document):
        name, *options = shlex.split(command, comments=True)
        monkeypatch.setattr(sys, "argv", [name, *options])
        args = examples(Path(name).stem).parse()
        assert str(args.out).startswith("runs/")


def anchors(document):
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(document)), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(document)):
        file, _, anchor = target.partition("#")
        path = ((ROOT / document).parent / file).resolve() if file else ROOT / document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT).as_posix()), target


def test_no_figure_is_left_to_be_filled_in():
    for document in DOCUMENTS:
        assert "@@" not in text_of(document)


OURS = [*DOCUMENTS, *(path.relative_to(ROOT).as_posix() for path in sorted(EXAMPLES.rglob("*.py")))]
OURS += [path.relative_to(ROOT).as_posix() for path in sorted(EXAMPLES.rglob("*.ipynb"))]
OURS += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "pyro_dssm").rglob("*.py"))]
NOT_OURS = {
    r"\blaws?\b(?! of motion)|\w(?<!zeta)_laws?\b|(?-i:[a-z]Law\b)": "distribution, density",
    r"(?-i:\bInputs\b)": "a checked batch",
    r"\bbeside\b": "in addition to, next to",
    r"\banew\b": "again, from scratch",
    r"\b(goes|go|going|went) on (from|with)\b": "resumes from",
    r"\b(is|are) told\b": "receives",
    r"\ban affair of\b": "",
    r"\ba share of\b|--share\b": "a fraction of",
    r"\bpyro_dssm as pd\b|(?<![\w.])pd\.\w": "dssm (pd is pandas)",
}


@pytest.mark.parametrize("file", OURS)
def test_the_words_are_those_of_the_field(file):
    for words, better in NOT_OURS.items():
        found = re.search(words, text_of(file), flags=re.IGNORECASE)
        assert found is None, f"{file}: {found.group(0)!r}; say {better!r}"
