"""Pictures of biases show what pairs gain, and nothing where there is no pair."""

import pytest
import torch

from foveal import TableBias, alibi
from foveal import patterns as P
from foveal.cli.draw import main
from foveal.draw.biases import _frame, draw_bias, gained
from foveal.draw.patterns import chosen_query, find_canvas


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


def test_a_clip_shows_the_frame_of_its_query():
    """What is laid out as an image are the keys of the query's own frame, where it stands."""
    clip = P.TextImage(3, P.Neighborhood((4, 3, 5), 3))
    canvas = find_canvas(clip)
    query = chosen_query(clip, canvas.length, canvas)
    frame, row, column = canvas.place(query)
    gains = gained(clip, alibi(1, torch.ones(1)), canvas.length)[query]
    image = _frame(gains, canvas, frame)
    assert image[row, column] == 0
    assert int((~image.isnan()).sum()) == 9
    assert image[row, column + 1] == image[row, column - 1] == -1


def test_rows_of_pooled_keys():
    """A Pyramid has the rows that its implementations read, and no rule that counts tokens."""
    pyramid = P.Pyramid(4)
    rows = gained(pyramid, "rows", 32)
    assert rows[5, 5] == 7
    assert rows[5, 6] == 8  # the next token
    assert rows[0, 31] == 7 + (31 >> 2)  # the last of 4 clusters of the level where they meet
    with pytest.raises(ValueError, match="pools keys"):
        gained(pyramid, "alibi", 32)


def test_what_shapes_logits_is_drawn(tmp_path, capsys):
    """`foveal draw softcap` and `sinks` write a picture for the numbers that are given."""
    pytest.importorskip("matplotlib")
    for words in (["softcap", "--at", "30", "50"], ["sinks", "--at", "-2", "1.5"], ["sinks"]):
        path = tmp_path / f"{len(words)}.png"
        assert main([*words, "--output", str(path)]) == 0
        assert path.read_bytes()[:4] == b"\x89PNG"
        path.unlink()
    with pytest.raises(ValueError, match="softcap must be a positive number"):
        main(["softcap", "--at", "-3"])
    with pytest.raises(ValueError, match="1 to 4 numbers"):
        main(["sinks", "--at", "1", "2", "3", "4", "5"])
