"""The documentation: its code runs, its lists are whole, and it builds without a warning."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import time
import unicodedata

import pages
import pytest
import torch
from tiny_text import byte_tokenizer

import hessian_lr as hlr
from hessian_lr import integrations, study
from hessian_lr.alignment import Alignment
from hessian_lr.commands.spectra import Request
from hessian_lr.curvature import ClosedForm
from hessian_lr.data import make_batches, tasks
from hessian_lr.data.encode import Encoder
from hessian_lr.measure import ModuleSharpness, ModuleSpectrum
from hessian_lr.models import alias
from hessian_lr.records import UNWRITTEN, read_json
from hessian_lr.rows import PredictionRow, RunRow, SpectrumRow, SweepRow
from hessian_lr.spectrum import SpectralDensity
from hessian_lr.study.grids import Plan

DOCS = pages.ROOT / "docs"
PAGES = [pages.ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


@pytest.fixture(scope="module", autouse=True)
def short_tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "generate", pages.short(tasks.generate))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory, short_tasks):
    with torch.random.fork_rng(devices=[]):
        return pages.build_world(tmp_path_factory.mktemp("model"))


@pytest.fixture
def namespace(tmp_path, model, monkeypatch):
    """The tiny world; the built-in model is its model, and no file of the repository is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(alias, "folder", lambda *_: model)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield pages.furnish(tmp_path, model)
    torch.set_num_threads(before)


def test_the_batches_that_a_page_makes_by_hand_are_the_packages_own():
    """Of a tokenizer that begins texts with a token of its own: none stands before the response."""
    tokenizer = byte_tokenizer(adds_bos=True)
    page = (DOCS / "how-to/model-and-data.md").read_text(encoding="utf-8")
    names = {"torch": torch, "tokenizer": tokenizer}
    exec(page[page.index("def batch(") : page.index("\nrows = [")], names)
    (own,) = make_batches([Encoder(tokenizer, 100).pair("2 + 3?", "5")], 1, tokenizer.pad_token_id)
    assert {name: value.tolist() for name, value in names["batch"]([("2 + 3?", "5")]).items()} == {
        name: value.tolist() for name, value in own.items()
    }


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_what_a_page_takes_in_from_files_is_there(page):
    for line in page.read_text(encoding="utf-8").splitlines():
        if re.search(r"8\s*<", line) and "--" in line:
            found = re.fullmatch(r'--8<-- "([^":]+)(:\w+)?"', line)
            assert found, f"{line}: the builder does not know this as a file to put in"
            assert (pages.ROOT / found[1]).is_file()


STUDIES = [*pages.ROOT.glob("experiments/*/README.md"), *pages.ROOT.glob("experiments/*/pages/*.md")]
LINKED = sorted([*DOCS.rglob("*.md"), pages.ROOT / "README.md", *STUDIES])


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(pages.ROOT).as_posix())
def test_a_pages_links_lead_to_files_of_the_repository(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?", text):
        if "://" in link:
            continue
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor and target.parent.name != "reference":  # whose headings are made when it is built
            assert anchor in anchors(target), f"{link}#{anchor}"


def anchors(page):
    """As the builder makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = [
        unicodedata.normalize("NFKD", one).encode("ascii", "ignore").decode().lower() for one in headings
    ]
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", one).strip()) for one in plain}


def test_the_menu_has_every_study():
    menu = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (experiments/\S+\.md)$", menu, flags=re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(pages.ROOT).as_posix() for page in STUDIES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(pages.ROOT).as_posix())
def test_the_code_of_a_page_runs(page, namespace):
    runs = [b for b in pages.blocks(page) if b.language in ("python", "console") and not b.reason]
    assert pages.run(page, namespace) == len(runs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(pages.ROOT).as_posix())
def test_every_block_says_what_it_is(page):
    assert {block.language for block in pages.blocks(page)} <= pages.LANGUAGES


def test_every_field_that_a_command_writes_is_explained():
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([a-z_0-9]+)`", text))
    validated = read_json(pages.ROOT / "experiments/first_light/results/validate.json")
    rows = {
        "validate.json": validated,
        **{kind.__name__: vars_of(kind) for kind in (PredictionRow, SpectrumRow, SweepRow, RunRow)},
        **{kind.__name__: vars_of(kind) for kind in (ClosedForm, SpectralDensity, ModuleSpectrum)},
        **{kind.__name__: vars_of(kind) for kind in (ModuleSharpness, Request, Plan, Alignment)},
    }
    unexplained = {name: sorted(set(fields) - explained) for name, fields in rows.items()}
    assert not any(unexplained.values()), unexplained


def vars_of(kind):
    return [field.name for field in dataclasses.fields(kind) if field.metadata != UNWRITTEN]


def test_every_public_name_has_its_place_in_the_reference():
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: hessian_lr\.(?:\w+\.)?(\w+)$", text, flags=re.MULTILINE))
    results = {"Alignment", "Score"}  # what public functions give, and nobody makes
    assert named == {*hlr.__all__, *integrations.__all__, *study.__all__, *results} - {"__version__"}


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    began = time.perf_counter()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert time.perf_counter() - began < 60, "the build is to take seconds"
    html = {
        file.relative_to(tmp_path).as_posix(): file.read_text(encoding="utf-8")
        for file in tmp_path.rglob("*.html")
    }
    for name, text in html.items():
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"(\w+:)?//", text)
        fetched += re.findall(r"<link[^>]*rel=\"(?:stylesheet|preconnect|icon)\"[^>]*href=\"(\w+:)?//", text)
        assert not fetched, name
    commands = html["reference/commands.html"]
    assert all(f"Usage: hessian-lr {name} " in commands for name in ("predict", "validate", "sweep", "list"))
    assert "--target-modules" in commands
    assert "with LoRA or one of its relatives" in " ".join(html["index.html"].split()), "what it is"
    # What a page takes in from files is there, and what is not in docs/ is linked where the site has it.
    (first, *_) = (pages.ROOT / "examples" / "trainer.py").read_text(encoding="utf-8").splitlines()
    assert first.strip('"') in html["how-to/integrations.html"]
    assert 'href="experiments/lr_bench/index.html"' in html["accuracy.html"]
