"""Keys that the pages name are a job's, and so is what other systems' settings become."""

import re
from itertools import product
from typing import Literal, get_args, get_origin

import pytest
from markdown_pages import PAGES, Page

from launch.cli import CONFIGURED
from rlhf_ray.config.tools import schema

MIGRATING = Page("MIGRATING.md")
# `.py` and their like end a file's name and no key's.
FILE = re.compile(r".*\.(py|jsonl?|yaml|md|txt|parquet|gz)")
KEY = re.compile(r"(?P<key>[a-z]\w*(\.(\w+|\*))*)(: (?P<value>.+))?")
SECTIONS = {key for job in CONFIGURED.values() for key in schema.keys(job)}


def paths(key):
    """Of a key as a page writes it: `*` and `ROLE` stand for any, `N` for a place in a list."""
    steps = [
        ["*"] if step in ("*", "ROLE") else [step.replace("N", "0")] for step in key.split(".")
    ]
    for job in CONFIGURED.values():
        found = [()]
        for [step] in steps:
            found = [
                (*path, name)
                for path in found
                for name in (schema.keys(schema.at_path(job, path)) if step == "*" else [step])
            ]
        yield from product([job], found)


def annotations(key):
    """What each job allows there; none where no job knows the key."""
    found = [schema.at_path(job, path) for job, path in paths(key)]
    return [annotation for annotation in found if annotation is not None]


def values(annotation):
    """The names of a key that takes one of several."""
    return {
        value
        for member in schema.members(annotation)
        if get_origin(member) is Literal
        for value in get_args(member)
    }


LEAVES = {path[-1] for job in CONFIGURED.values() for path in schema.all_paths(job)}
VALUES = {
    value
    for job in CONFIGURED.values()
    for path in schema.all_paths(job)
    for value in values(schema.at_path(job, path))
}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != MIGRATING], ids=lambda page: page.label
)
def test_dotted_keys_in_the_text_exist(page):
    for code in page.code:
        found = KEY.fullmatch(code)
        if not found or "." not in found["key"] or FILE.fullmatch(code):
            continue
        if found["key"].partition(".")[0] in SECTIONS:
            assert annotations(found["key"]), code


def here_cells():
    """What stands in the columns named `here` of the tables, row by row."""
    column = None
    for line in MIGRATING.text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            column = None
        elif column is None:
            column = cells.index("here")
        elif set(line) - set("|- "):
            yield cells[0], cells[column]


ROWS = [
    pytest.param(theirs, here, id=f"{number}-{theirs.partition(',')[0].strip('`')}")
    for number, (theirs, here) in enumerate(here_cells())
]


def test_every_table_has_a_column_of_ours():
    assert len(ROWS) > 50


@pytest.mark.parametrize(("theirs", "here"), ROWS)
def test_what_another_systems_setting_becomes_is_ours(theirs, here):
    codes = re.findall(r"`([^`]+)`", here)
    if theirs == "not here":
        assert not {code for code in codes if annotations(code)}
        return
    if here == "the same names":
        codes = re.findall(r"`([^`]+)`", theirs)
    assert codes or here.startswith(("always", "the job's name"))
    above = ""
    for code in codes:
        if code.startswith("."):  # beside the key before
            code = f"{above}{code}"
        found = KEY.fullmatch(code)
        if not found:
            assert code in VALUES, code
            continue
        key, value = found["key"], found["value"]
        known = annotations(key)
        assert known or key in {*CONFIGURED, *LEAVES, *VALUES}, code
        above = key.rpartition(".")[0] or above
        names = {name for annotation in known for name in values(annotation)}
        if value and names and not value.startswith(("[", "{")):
            assert value in {str(name) for name in names}, code
