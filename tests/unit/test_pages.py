"""The pages hang together: links, headings, the way to each, files that they name."""

import re

import pytest
from markdown_pages import PAGES, README, ROOT, Page

BY_NAME = {page.name: page for page in PAGES}
# Folders of the repository with which a path in the text begins.
TOP = ("actors", "benchmarks", "configs", "docker", "launch", "requirements", "rlhf_ray", "tests")
of_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.label)


def test_the_readme_is_short():
    assert len(README.text.splitlines()) <= 300


@of_each_page
def test_every_link_leads_somewhere(page):
    for place, anchor in page.links:
        assert not place.startswith(".."), f"{place} is outside of the repository"
        assert (ROOT / place).exists(), place
        if anchor:
            assert anchor in BY_NAME[place].anchors, f"{place}#{anchor}"


def test_every_page_is_reached_from_the_readme():
    reached, ahead = set(), [README.name]
    while ahead:
        name = ahead.pop()
        if name in BY_NAME and name not in reached:
            reached.add(name)
            ahead += [place for place, _ in BY_NAME[name].links]
    assert reached == BY_NAME.keys()


@of_each_page
def test_no_two_headings_of_a_page_are_alike(page):
    """A link to the second would have to count."""
    headings = re.findall(r"^#+ (.+)$", page.prose, re.MULTILINE)
    assert headings
    assert len(headings) == len(set(headings)) == len(page.anchors)


@of_each_page
def test_files_named_in_the_text_exist(page):
    """Below the root, or, as `grafana/rlhf-ray.json` on a folder's page, below that folder."""
    for code in page.code:
        if not re.fullmatch(rf"({'|'.join(TOP)})/[\w./-]+", code):
            continue
        assert any((folder / code).exists() for folder in (ROOT, page.path.parent)), code


def test_the_layout_names_every_package_and_nothing_else():
    section = Page("CONTRIBUTING.md").section("## Layout of the repository")
    folders = set(re.findall(r"`([\w/]+/)`", section))
    packages = {
        f"{file.parent.relative_to(ROOT)}/"
        for top in ("rlhf_ray", "actors", "launch")
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert packages - {"actors/"} <= folders, "all of `actors` is in its parts"
    assert {folder for folder in folders if not (ROOT / folder).is_dir()} == set()
    files = set(re.findall(r"`(?:rlhf_ray/)?(\w+\.py)`", section))
    assert files == {file.name for file in (ROOT / "rlhf_ray").glob("*.py")} - {"__init__.py"}


def test_files_told_in_one_step_exist():
    files = re.findall(r"`([\w/]+\.py)`", README.section("### One step of PPO"))
    assert len(files) > 8
    for file in files:
        assert any((ROOT / parent / file).is_file() for parent in ("", "rlhf_ray")), file


def test_steps_of_the_picture_are_those_that_are_told():
    told = re.findall(r"^(\d+)\. \*\*", README.section("### One step of PPO"), re.MULTILINE)
    [picture] = [block.body for block in README.blocks if block.language == "mermaid"]
    shown = re.findall(r'"(\d+): ', picture)
    assert shown
    assert set(shown) <= set(told)
