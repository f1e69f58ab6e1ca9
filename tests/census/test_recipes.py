"""The census of recipes under `watch` (`recipes.py`): healthy ones are quiet, and what is faulty is said."""

import fnmatch

import pytest
from tests.census.recipe import RECIPES
from tests.census.recipes import LOUD, run, said
from tests.census.true_findings import TRUE

FAULTY = [(glob.removeprefix("recipe "), code) for glob, code, _ in TRUE if glob.startswith("recipe ")]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_raises_no_false_alarm_and_its_fault_is_said(name):
    diagnoses = run(name)
    false, _ = said(name, diagnoses)
    assert false == []
    loud = {finding.code for diagnosis in diagnoses for finding in diagnosis.findings if finding.severity in LOUD}
    assert {code for glob, code in FAULTY if fnmatch.fnmatchcase(name, glob)} <= loud


def test_each_faulty_recipe_is_there():
    for glob, _ in FAULTY:
        assert fnmatch.filter(RECIPES, glob), glob


def test_there_are_enough():
    assert len(RECIPES) - len({glob for glob, _ in FAULTY}) >= 30
