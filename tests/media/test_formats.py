import re
from pathlib import Path

import numpy as np
import pytest

from lookalike.api.errors import STATUS
from lookalike.errors import InvalidImageError
from lookalike.media.decode import ImageLimits, decode_image
from tests.media.variants import CASES

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def table():
    """Format and variant -> what the page says of it."""
    cells = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    return {f"{kind} | {variant}": says for kind, variant, says in cells if kind != "format"}


def test_every_row_of_the_page_is_tested_and_every_test_is_a_row():
    assert list(table()) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_true(name):
    case, says = CASES[name](), table()[name]
    if isinstance(case, bytes):
        with pytest.raises(InvalidImageError) as refused:
            decode_image(case, limits=ImageLimits(), decode_size=64)
        assert says.startswith(f"`{refused.value.code}`")
        quoted = re.findall(r'"(.+?)"', says)
        assert all(part in str(refused.value) for part in quoted)
        status = next(STATUS[kind] for kind in type(refused.value).__mro__ if kind in STATUS)
        assert status == (422 if refused.value.code == "unreadable_image" else 415)
        return
    assert says.startswith("read")
    decoded = decode_image(case.data, limits=ImageLimits(), decode_size=64)
    wanted = case.picture.convert("RGB")
    assert (decoded.width, decoded.height) == decoded.image.size == wanted.size
    shown, expected = (np.asarray(one, dtype=float) for one in (decoded.image, wanted))
    if case.stretched:
        assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.99
        assert np.ptp(shown) > 240
    else:
        assert np.abs(shown - expected).mean() <= case.within
