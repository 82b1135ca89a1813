"""The paper's notation, and the parameters of its Table 1."""

import pytest
import torch

from foveal.models import HourglassTransformerLM
from foveal.models.hourglass import count_parameters, parse_hierarchy

TABLE_1 = {
    "6@1": 21,
    "2@1 1@3 2@1": 24,
    "2@1 4@4 2@1": 34,
    "8@1": 28,
    "2@1 4@3 2@1": 34,
    "2@1 8@4 2@1": 48,
    "2@1 1@2 4@4 1@2 2@1": 48,
    "2@1 8@3 2@1": 48,
    "10@1": 34,
    "3@1 8@4 3@1": 55,
    "12@1": 41,
    "4@1 8@4 4@1": 62,
    "2@1 16@3 2@1": 75,
    "14@1": 48,
    "5@1 8@2 5@1": 69,
}
"""Hierarchy -> millions of parameters, as printed."""


@pytest.mark.parametrize(("text", "millions"), TABLE_1.items())
def test_parameters_of_table_1(text, millions):
    """The rule and the model that the keywords of the paper build both give the printed number."""
    assert round(count_parameters(text) / 1e6) == millions
    with torch.device("meta"):
        model = HourglassTransformerLM(
            hierarchy=text,
            positions="relative",
            shortening="attention-average",
            upsampling="attention-repeat",
        )
    assert round(model.num_parameters / 1e6) == millions
    assert abs(model.num_parameters / count_parameters(text) - 1) < 0.002


def test_notation():
    """Nesting and factors, also where the outermost layers are shortened already."""
    assert parse_hierarchy("6@1") == (6, ())
    assert parse_hierarchy("3@2 2@6 5@24 2@6 3@2") == ((0, (3, (2, 5, 2), 3), 0), (2, 3, 4))
    assert parse_hierarchy(" 0@1  4@3 0@1") == ((0, 4, 0), (3,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "LAYERS@SHORTENING"),
        ("2@1 4x3 2@1", "LAYERS@SHORTENING"),
        ("2@1 4@3", "palindrome"),
        ("2@1 2@1", "one innermost stack"),
        ("2@1 4@3 1@1", "palindrome"),
        ("2@2 4@3 2@2", "multiple"),
        ("2@1 4@1 2@1", "multiple"),
        ("2@0 4@1 2@0", "multiple"),
    ],
)
def test_nonsense(text, message):
    """What is no hierarchy is refused with what it should be and an example."""
    with pytest.raises(ValueError, match=message) as caught:
        parse_hierarchy(text)
    assert repr(text) in str(caught.value)


def test_a_model_by_its_hierarchy_is_the_model_by_its_depths():
    """hierarchy= and depth= with shorten_factor= are two spellings of one model."""
    sizes = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4}
    torch.manual_seed(0)
    one = HourglassTransformerLM(hierarchy="1@1 1@2 2@6 1@2 1@1", **sizes)
    torch.manual_seed(0)
    two = HourglassTransformerLM(depth=(1, (1, 2, 1), 1), shorten_factor=(2, 3), **sizes)
    tokens = torch.randint(0, 20, (1, 19))
    assert torch.equal(one(tokens), two(tokens))
    assert one.config["depth"] == (1, (1, 2, 1), 1)
