"""Pictures of biases show what pairs gain, and nothing where there is no pair."""

import pytest
import torch

from foveal import TableBias, alibi
from foveal import patterns as P
from foveal.cli.draw import main
from foveal.draw.biases import draw_bias, gained


def test_what_is_drawn():
    """The first head's numbers of allowed pairs."""
    values = gained(P.SlidingWindow(3), alibi(2), 6)
    assert values[4].tolist()[2:5] == [-2 / 16, -1 / 16, 0.0]
    assert int(values.isnan().sum()) == 36 - 6 - 5 - 4
    near = P.Neighborhood((3, 4), 3)
    rows = gained(near, "rows", 12)
    assert rows[5, 5] == 12
    assert rows[5, 6] == 11
    assert rows[5, 1] == 17
    table = TableBias(torch.full((25, 2), 0.5))
    assert set(gained(near, table, 12)[0].nan_to_num(9.0).tolist()) == {0.5, 9.0}


def test_pictures_and_the_command(tmp_path, capsys):
    """A PNG of bytes or at a path, by function and by `foveal draw --bias`."""
    pytest.importorskip("matplotlib")
    assert draw_bias(P.SlidingWindow(4), "t5", 12)[:4] == b"\x89PNG"
    image = P.TextImage(3, P.Neighborhood((3, 4), 3, causal="raster"))
    assert draw_bias(image, "rows")[:4] == b"\x89PNG"
    path = tmp_path / "one.png"
    assert main(["Halo(4, 2, 1)", "--bias", "alibi", "--output", str(path)]) == 0
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="rows, alibi, t5"):
        draw_bias(P.Full(), "albi")
    with pytest.raises(ValueError, match="1024"):
        draw_bias(P.Full(), "rows", 5000)
