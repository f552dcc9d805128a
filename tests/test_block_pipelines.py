"""The site `blocks` in every kind of pipeline whose denoiser's blocks are known, by name or by structure."""

import pytest

import adaptcache
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.errors import AttachError
from adaptcache.schedule.schedule import Schedule
from adaptcache.sites.denoisers import find_spec
from tests.pipelines.table import TABLE, built, generated, grid_of, same

FAST = ("Flux", "Wan 2.2")


def setup_of(name):
    setup = built(name)
    try:
        return setup, all(map(find_spec, denoisers_of(setup.pipe)))
    except AttachError:
        return setup, False


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
)
def test_blocks_that_all_run_change_nothing_and_skipped_ones_are_replaced(name):
    setup, known = setup_of(name)
    mask = [i % 3 != 2 for i in range(len(grid_of(setup)))]
    if not known:
        with pytest.raises(AttachError, match="has no site 'blocks'"):
            adaptcache.attach(setup.pipe, Schedule.of("scm", compute_steps=mask, head=0))
        return
    plain = generated(setup)
    with adaptcache.attach(setup.pipe, Schedule.of("scm", compute_steps=[True] * len(mask), head=0)):
        assert same(generated(setup), plain)
    with adaptcache.attach(setup.pipe, Schedule.of("scm", compute_steps=mask, head=0)) as handle:
        cached = generated(setup)
        assert all(value.isfinite().all() for value in cached) and not same(cached, plain)
        made = [any(branches) for branches in handle.report().calls]
    assert sum(made) < len(mask) and all(flag for flag, wanted in zip(made, mask, strict=True) if wanted)
    assert same(generated(setup), plain)
