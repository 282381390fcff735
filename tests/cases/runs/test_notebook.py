"""A notebook: an event loop is running, and a cell that failed on a damaged file is run again.

It must train inside the loop; and where the user has mended the file it must go on in the same
kernel, which keeps the last error and so whatever its traceback holds.
"""

import asyncio

import pytest

from tests.cases.runs import small


def test_goes_on_in_the_same_kernel(tmp_path):
    async def cell():
        return small.source(tmp_path, 8)

    async def session():
        await cell()
        curves = tmp_path / "curves.jsonl"
        good = curves.read_text()
        curves.write_text("<<<<<<< HEAD\n" + good)
        with pytest.raises(ValueError, match="damaged") as kept:
            await cell()
        curves.write_text(good)
        assert (await cell()).params
        return kept

    assert asyncio.run(session())
