"""Candidates named by what they do, in the user's language, or by the repr of their operator.

Any name must do, or be refused by a ValueError before anything is computed.
"""

import pytest

import lagjax
from tests import quick, toy
from tests.cases.runs import small

no_page, groups_kept = quick.no_page, quick.groups_kept
NAMES = {
    "repr": repr(lagjax.Grow(depth="0 0* 1 1*", width={"mlp": lagjax.pools.WIDTH["isometric"]})),
    "japanese": "浅いモデルの各層を複製して積み重ね残差への出力を零にする方法"
    "（注意層と全結合層の両方）",
    "not for a path": "../../escape/<b>&$x_1$\n",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_does_or_is_refused(name, tmp_path):
    stack, other = toy.pool("stack", "zeroed-stack")
    pool = [stack._replace(name=name), other]
    trained = lagjax.Trained(toy.PARAMS)
    try:
        small.search(tmp_path, trained, pool=pool, horizon=8, lag=4)
    except ValueError:
        assert not (tmp_path / "curves.jsonl").exists()
        return
    assert toy.curve(tmp_path, name)
