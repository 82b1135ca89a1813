"""The documents are true: snippets run, links resolve, commands, recipes and pictures exist."""

import ast
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import torch

from foveal.common.packages import how_to_get

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "foveal"
DOCUMENTS = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if not path.name.startswith(".")
]
PERFORMANCE = ROOT / "docs" / "performance.md"  # benchmarks/verify.py writes it
PLUGS = ROOT / "docs" / "integrations.md"
OLD_CHECKPOINTS = ROOT / "docs" / "coming-from.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[tuple[int, str]]:
    """(line, content) of each fenced block in one of the languages."""
    text = path.read_text("utf-8")
    return [
        (text[: match.start()].count("\n") + 2, match[2])
        for match in FENCE.finditer(text)
        if match[1] in languages
    ]


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if path != PLUGS and blocks(path, "python")], ids=name
)
def test_python_snippets_run(path, tmp_path, monkeypatch, peer):
    """The snippets of a document run one after another, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    if path == OLD_CHECKPOINTS:
        for file, content in checkpoints(peer):
            torch.save(content, file)
    scope: dict[str, object] = {"__name__": "snippet"}
    for line, code in blocks(path, "python"):
        # empty lines in front keep the document's line numbers in a traceback
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), scope)


@pytest.mark.parametrize(("line", "code"), blocks(PLUGS, "python"), ids=lambda one: str(one)[:4])
def test_plugs_run(line, code, tmp_path, monkeypatch):
    """Each block of the plugs runs by itself, where its packages are installed."""
    for package in sorted(imported(code)):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: {how_to_get(package)}")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile("\n" * (line - 1) + code, str(PLUGS), "exec"), {"__name__": "snippet"})


def imported(code: str) -> set[str]:
    """The packages that a piece of code names in its imports."""
    found = list(ast.walk(ast.parse(code)))
    modules = [name.name for one in found if isinstance(one, ast.Import) for name in one.names]
    modules += [one.module for one in found if isinstance(one, ast.ImportFrom)]
    return {module.partition(".")[0] for module in modules}


def test_the_plugs_name_what_they_are_tested_with():
    """The versions of the page are those that the second environment installs, and of this one."""
    page = PLUGS.read_text("utf-8")
    pins = (ROOT / "constraints-integrations.txt").read_text("utf-8")
    for package, version in re.findall(r"^([\w-]+)==([\w.]+)$", pins, re.MULTILINE):
        said = f"torch {version}" if package == "torch" else f"| {package} | {version} |"
        assert said in page, f"{package} {version}"
    import foveal.integrations

    listed = set(re.findall(r"`foveal\.integrations\.(\w+)`", foveal.integrations.__doc__))
    assert {plug for plug in listed if plug not in page} == set()


def checkpoints(peer):
    """(file, content) of what users of the public packages bring along."""
    halo = peer("halonet_pytorch").HaloAttention(
        dim=64, block_size=8, halo_size=4, dim_head=16, heads=4
    )
    yield "halonet.pt", halo.state_dict()
    net = peer("vit_pytorch.sep_vit").SepViT(num_classes=5, dim=16, depth=(1, 1), heads=(1, 2))
    yield "sepvit.pt", net.state_dict()
    sizes = {"num_tokens": 20, "dim": 16, "heads": 2, "dim_head": 8}
    hierarchy = peer("h_transformer_1d.h_transformer_1d").HTransformer1D(
        **sizes, depth=2, causal=True, block_size=8, max_seq_len=128
    )
    wrapper = peer("h_transformer_1d.autoregressive_wrapper").AutoregressiveWrapper
    yield "h-transformer.pt", wrapper(hierarchy).state_dict()
    hourglass = peer("hourglass_transformer_pytorch.hourglass_transformer_pytorch")
    model = hourglass.HourglassTransformerLM(
        **sizes, depth=(1, 1, 1), shorten_factor=2, max_seq_len=32
    )
    yield "hourglass.pt", model.state_dict()
    module = peer("dalle_pytorch.dalle_pytorch")
    vae = {"image_size": 32, "num_tokens": 20, "codebook_dim": 16, "num_layers": 3}
    hparams = {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "num_text_tokens": 50}
    hparams |= {"text_seq_len": 6, "attn_types": ("full", "axial_row")}
    dalle = module.DALLE(vae=module.DiscreteVAE(**vae), **hparams)
    content = {"hparams": hparams, "vae_params": vae, "weights": dalle.state_dict()}
    yield "dalle.pt", content


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path, "toml")], ids=name)
def test_recipes_are_recipes(path):
    """A recipe in the documents is read, and its model can be made."""
    from foveal.recipes.build import build_model
    from foveal.recipes.config import config_from_dict

    for _, text in blocks(path, "toml"):
        config = config_from_dict(tomllib.loads(text), name(path))
        build_model(config.model, name(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_resolve(path):
    """Relative links point at files of the repository."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target) and path.parent / target != PERFORMANCE:
            assert (path.parent / target).exists(), f"{name(path)} links to {target}"


def test_commands_exist():
    """Each `foveal` and `make` command of the documents is one that there is."""
    from foveal.cli import COMMANDS

    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for path in DOCUMENTS:
        for _, code in blocks(path, "sh", "console"):
            for command in re.findall(r"^\s*foveal (\w+)", code, re.MULTILINE):
                assert command in COMMANDS, f"{name(path)}: foveal {command}"
            for target in re.findall(r"^\s*make (\w+)", code, re.MULTILINE):
                assert target in targets, f"{name(path)}: make {target}"
            for script in re.findall(r"^\s*python (\S+\.py)", code, re.MULTILINE):
                assert (ROOT / script).exists(), f"{name(path)}: python {script}"


def test_names_of_recipes_and_models():
    """What is called a recipe or a size in the guide is one, and all of them are named."""
    from foveal.models import list_models
    from foveal.recipes.config import recipe_names

    training = (ROOT / "docs" / "training.md").read_text("utf-8")
    guide = training + (ROOT / "docs" / "models.md").read_text("utf-8")
    for command in re.findall(r"foveal train ([\w.-]+)", guide):
        assert command in recipe_names() or command.endswith(".toml"), command
    implied = ("lra-listops-dense", "lra-image-dense")  # "and `-dense` of each"
    assert [r for r in recipe_names() if f"`{r}`" not in training and r not in implied] == []
    spelt = set(re.findall(r"`([a-z]+[\w]*)`", guide))
    between = {f"halonet_h{number}" for number in range(1, 7)}
    assert set(list_models()) - spelt - between == set()


def test_every_pattern_has_a_picture():
    """The page on patterns shows each of them, small, and by an expression that can be drawn."""
    from foveal.patterns.serialize import known_patterns, parse

    page = ROOT / "docs" / "patterns.md"
    shown = re.findall(r"!\[(.+)\]\((pictures/[\w-]+\.png)\)", page.read_text("utf-8"))
    drawn = [type(parse(expression)).__name__ for expression, _ in shown]
    ours = (n for n, cls in known_patterns().items() if cls.__module__.startswith("foveal."))
    assert [pattern for pattern in ours if pattern not in drawn] == []
    files = {page.parent / path for _, path in shown}
    assert files == set((page.parent / "pictures").glob("*.png"))
    assert max(file.stat().st_size for file in files) < 30_000


def test_which_patterns_are_causal_by_default_is_said():
    """The page of patterns names those whose `causal` is True unless given, and the others."""
    from foveal import patterns

    text = (ROOT / "docs" / "patterns.md").read_text(encoding="utf-8")
    said = {}
    for names, ways in re.findall(r"((?:`\w+`(?:, | and )?)+) (are|read)\b", text):
        said |= dict.fromkeys(re.findall(r"`(\w+)`", names), ways == "are")
    defaults = {}
    for name in patterns.__all__:
        for one in getattr(getattr(patterns, name), "__dataclass_fields__", {}).values():
            if one.name == "causal" and isinstance(one.default, bool):
                defaults[name] = one.default
    assert said == defaults


def test_the_site_lists_its_pages():
    """mkdocs.yml names each page; decisions list themselves, performance may not be there yet."""
    docs = ROOT / "docs"
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    assert {page for page in pages if not page.startswith("decisions/")} <= listed
    made = {f"notebooks/{book.stem}.md" for book in (docs / "notebooks").glob("*.ipynb")}
    assert made <= listed
    assert listed - pages <= {PERFORMANCE.name, *made}


def test_examples_are_on_their_page():
    """Each example is shown."""
    text = (ROOT / "docs" / "examples.md").read_text("utf-8")
    shown = re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE)
    assert sorted(shown) == sorted(f"examples/{p.name}" for p in ROOT.glob("examples/*.py"))


def test_the_file_tree_of_the_guide_is_the_package():
    """Each room is listed for contributors, and each listed room exists."""
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    tree = re.search(r"^src/foveal/\n(.*?)^tests/", guide, re.M | re.S)
    assert tree is not None
    listed = set(re.findall(r"^  (\w+)/", tree[1], re.MULTILINE))
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert listed == rooms


def test_the_table_of_patterns_is_complete():
    """It begins the page on patterns, and leads to the section of each."""
    from foveal.patterns.serialize import known_patterns

    text = (ROOT / "docs" / "patterns.md").read_text("utf-8")
    table = re.search(r"^\| pattern \|.*?\n\n", text, re.M | re.S)
    assert table is not None
    assert table.start() < text.index("\n## ")
    ours = (n for n, cls in known_patterns().items() if cls.__module__.startswith("foveal."))
    assert [pattern for pattern in ours if f"`{pattern}`" not in table[0]] == []
    heads = {head.lower().replace(" ", "-") for head in re.findall(r"^### (.+)$", text, re.M)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", table[0])) == heads
