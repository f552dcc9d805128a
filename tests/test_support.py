"""The page of what adaptcache runs on has every name, and says nothing that is not so."""

import re
from collections import Counter

import diffusers
import pytest

from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.errors import AttachError
from docs.support import PAGE, exported, refusal

NAMES = PAGE.read_text(encoding="utf-8").split("\n## Every name")[1]
ROWS = dict(re.findall(r"^\| `(\w+)` \| ([a-z ]+) \|", NAMES, re.M))


def test_every_name_that_diffusers_exports_has_a_row_and_the_counts_are_those_of_the_rows():
    if diffusers.__version__ not in NAMES:
        pytest.skip(f"the page is about another version than {diffusers.__version__}")
    assert ROWS.keys() == exported().keys()
    for verdict, count in Counter(ROWS.values()).items():
        assert f"{count} {verdict}" in NAMES


@pytest.mark.parametrize("name", ["KandinskyV22CombinedPipeline", "VisualClozePipeline"])
def test_a_pipeline_of_pipelines_is_refused_as_the_page_says(name):
    assert "runs other pipelines: use" in refusal(getattr(diffusers, name)) and ROWS[name] == "refused"


def test_a_denoiser_without_a_scheduler_is_refused_as_the_page_says():
    kind = diffusers.FluxPriorReduxPipeline
    assert refusal(kind) == "has no scheduler"
    with pytest.raises(AttachError, match=r"has no scheduler|has no denoiser"):
        denoisers_of(object.__new__(kind))
