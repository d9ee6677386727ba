"""The built-in families besides math: what is held out, whether answers are right, the same everywhere."""

import ast
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from functools import lru_cache

import pytest

from hessian_lr import cli
from hessian_lr.data import tasks
from hessian_lr.data.families import code, commonsense

FAMILIES = ("code", "commonsense", "instruction")
GENERATED = ("math", *FAMILIES)
# The 24 valid moods by figure. A mood is the quantifiers of major premise, minor premise and conclusion.
MOODS = {
    1: "AAA EAE AII EIO AAI EAO",
    2: "EAE AEE EIO AOO EAO AEO",
    3: "AAI IAI AII EAO OAO EIO",
    4: "AAI AEE IAI EAO EIO AEO",
}
QUANTIFIERS = {"A": "All", "E": "No", "I": "Some", "O": "Some not"}


@lru_cache
def rows(name):
    return tasks.generate(name)


def digest(name):
    made = tasks.generate(name)
    return hashlib.sha256(json.dumps([made.train, made.heldout]).encode()).hexdigest()


def all_rows(name):
    return [*rows(name).train, *rows(name).heldout]


def generator(template):
    return template.split(": ")[0]


@pytest.mark.parametrize(("name", "count"), [("code", 1_027), ("commonsense", 2_000), ("instruction", 2_000)])
def test_sizes_and_that_every_row_has_a_prompt_and_a_response(name, count):
    made = rows(name)
    assert (len(made.train), len(made.heldout)) == (count, 34)
    assert (len(made.train_templates), len(made.heldout_templates)) == (count, 34)
    assert all(prompt.strip() and response.strip() for prompt, response in all_rows(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_template_and_no_prompt_is_on_both_sides_or_twice(name):
    made = rows(name)
    assert not set(made.train_templates) & set(made.heldout_templates)
    prompts = [prompt for prompt, _ in all_rows(name)]
    assert len(set(prompts)) == len(prompts)


def test_the_rows_are_the_same_in_another_process_whatever_its_hash_seed():
    program = (
        "import runpy, sys; digest = runpy.run_path(sys.argv[1])['digest']; print(*map(digest, sys.argv[2:]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, __file__, *GENERATED],
        env=os.environ | {"PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    before = random.getstate()
    assert other.stdout.split() == [digest(name) for name in GENERATED]
    assert random.getstate() == before


def test_the_list_shows_every_family_and_says_what_it_is_not(capsys):
    assert cli.main(["list", "--json", "-"]) == 0
    shown = {task["name"]: task["summary"] for task in json.loads(capsys.readouterr().out)["tasks"]}
    assert list(shown) == ["math", "code", "code-humaneval", "commonsense", "instruction"]
    assert "not HumanEval" in shown["code"]
    assert "162 of 164" in shown["code-humaneval"]
    assert "synthetic" in shown["commonsense"]


# Code


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_the_code_is_python_with_a_main_solution_and_short_enough():
    for prompt, response in all_rows("code"):
        names = {node.name for node in ast.walk(ast.parse(response)) if isinstance(node, ast.FunctionDef)}
        assert "main_solution" in names
        assert len((prompt + response).encode()) <= code.LONGEST
        assert "Input" in prompt


def test_no_held_out_problem_is_a_trained_one_in_other_words():
    def words(text):
        return set(re.findall(r"\w+", text.lower()))

    made = rows("code")
    for side in (0, 1):
        trained = [words(row[side]) for row in made.train]
        for row in made.heldout:
            held = words(row[side])
            assert max(len(held & other) / len(held | other) for other in trained) < code.ALIKE


def test_the_code_is_never_run(monkeypatch):
    import builtins

    real = builtins.exec

    def guarded(source, *rest, **named):
        assert "main_solution" not in str(source)
        return real(source, *rest, **named)

    monkeypatch.setattr(builtins, "exec", guarded)
    assert len(tasks.generate("code").train) == len(rows("code").train)


# Commonsense


def test_every_held_out_relation_is_trained_in_another_wording():
    made = rows("commonsense")

    def relations(templates):
        return {t.split(": ")[1].split(",")[0] for t in templates if generator(t) == "family_relationships"}

    trained = relations(made.train_templates)
    assert relations(made.heldout_templates) <= trained
    assert trained == commonsense.RELATIONS


def test_held_out_logic_comes_from_each_generator_alike():
    made = rows("commonsense")
    for templates, count in ((made.train_templates, 2_000), (made.heldout_templates, 34)):
        shares = [[*map(generator, templates)].count(name) for name in set(map(generator, templates))]
        assert sum(shares) == count
        assert len(shares) == 3
        assert max(shares) - min(shares) <= 1


def test_a_conclusion_follows_just_in_the_24_moods():
    figures = {1: ("MP", "SM"), 2: ("PM", "SM"), 3: ("MP", "MS"), 4: ("PM", "MS")}
    letters = {"S": "A", "M": "B", "P": "C"}
    for figure, (major, minor) in figures.items():
        found = set()
        for one, two, three in ((x, y, z) for x in "AEIO" for y in "AEIO" for z in "AEIO"):
            made = [
                (QUANTIFIERS[letter], *(letters[term] for term in terms))
                for letter, terms in ((one, major), (two, minor), (three, "SP"))
            ]
            if commonsense.follows((made[0], made[1]), made[2]):
                found.add(one + two + three)
        assert found == set(MOODS[figure].split())


def test_family_answers_are_what_the_story_says():
    made = rows("commonsense")
    checked = 0
    for (prompt, answer), template in zip(
        (*made.train, *made.heldout), (*made.train_templates, *made.heldout_templates), strict=True
    ):
        if generator(template) == "family_relationships":
            assert answer in related(prompt)
            checked += 1
    assert checked > 600


def related(prompt):
    """The words for what the first person asked about is to the second, whichever the person's sex."""
    story, question = prompt.rsplit("\n\n", 1)
    first, second = re.search(r"(?:is|related) (\w+) (?:related )?to (\w+)", question).groups()
    parents, spouse = {}, {}
    for one, two, children in re.findall(
        r"(\w+) is married to (\w+)\.(?: They have (?:a child|children) called ([^.]+)\.)?", story
    ):
        spouse |= {one: two, two: one}
        for child in re.findall(r"\b(?!and\b)\w+", children):
            parents[child] = {one, two}
    above = parents.get(second, set())
    grand = {old for parent in above for old in parents.get(parent, ())}
    if first in above:
        return {"mother", "father"}
    if second in parents.get(first, ()):
        return {"daughter", "son"}
    if spouse.get(first) == second:
        return {"wife", "husband"}
    if first in grand:
        return {"grandmother", "grandfather"}
    if above and parents.get(first) == above:
        return {"sister", "brother"}
    return {"aunt", "uncle"} if parents.get(first, set()) & grand else set()


# Instruction


def test_every_held_out_instruction_is_trained_with_other_particulars():
    made = rows("instruction")
    trained = set(map(generator, made.train_templates))
    assert set(map(generator, made.heldout_templates)) == trained
    assert len(trained) == 7


def test_no_held_out_answer_of_words_is_a_trained_one():
    made = rows("instruction")
    longer = {response for _, response in made.heldout if not response.isdigit()}
    assert len(longer) > 25
    assert not longer & {response for _, response in made.train}


def test_instructions_are_answered_as_they_ask():
    done = set()
    made = rows("instruction")
    for template, (prompt, answer) in zip(made.heldout_templates, made.heldout, strict=True):
        name = generator(template)
        given = prompt.strip().split("\n")[-1].rsplit(": ", 1)[-1]
        if name == "spell_backward":
            assert answer == given[::-1]
        elif name == "word_sequence_reversal":
            assert answer.split(", ") == given.split(", ")[::-1]
        elif name == "word_sorting":
            assert answer.split(", ") == sorted(given.split(", "), reverse="descending order (" in prompt)
        elif name == "letter_counting":
            letter, text = re.search(r'letter "(.)" appear in the text: "(.*)"', prompt).groups()
            assert int(answer) == text.lower().count(letter)
        elif name == "sentence_reordering":
            assert sorted(answer.split()) == sorted(given.split())
        else:
            continue
        done.add(name)
    assert len(done) == 5
