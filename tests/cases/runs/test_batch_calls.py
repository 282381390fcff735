"""A loader that takes a while: batches are not asked for much oftener than steps are trained."""

import lagjax
from tests import quick, toy
from tests.cases.runs import small

no_page, groups_kept = quick.no_page, quick.groups_kept


def test_asks_for_few_more_batches_than_steps(tmp_path):
    asked = []

    def counted(seed, step):
        asked.append(step)
        return toy.batch(seed, step)

    small.search(tmp_path, lagjax.Trained(toy.PARAMS), horizon=32, batch=counted)
    trained = 2 * 8 + 24
    assert len(asked) < 2 * trained
