"""CLIP's byte pairs: the words for start and end are tokens of their own, wherever they stand."""

import importlib.util
from pathlib import Path

import pytest

from foveal.data import CaptionTokenizer

pytest.importorskip("tokenizers")


@pytest.fixture(params=["small", "clip"])
def made(request, tmp_path):
    """A tokenizer of three merges, and CLIP's own where a package ships it; and its first word."""
    if request.param == "small":
        path = tmp_path / "merges.txt"
        path.write_text('"bpe"\nc a\nca t</w>\nd o\n', "utf-8")
        return CaptionTokenizer.from_clip(path), 512 + 3
    spec = importlib.util.find_spec("dalle_pytorch")
    if spec is None:
        pytest.skip("dalle-pytorch, which ships CLIP's merges, is not installed")
    folder = Path(spec.submodule_search_locations[0])
    return CaptionTokenizer.from_clip(folder / "data" / "bpe_simple_vocab_16e6.txt"), 49406


def test_special_words(made):
    """Alone, in any case, between letters and spaces; the rest is cut as without them."""
    tokenizer, start = made
    assert tokenizer.encode("<|startoftext|>") == [start]
    assert tokenizer.encode("<|EndOfText|>") == [start + 1]
    cat, dog = tokenizer.encode("cat"), tokenizer.encode("dog")
    whole = [start, *cat, *dog, start + 1]
    assert tokenizer.encode("<|startoftext|>cat dog<|endoftext|>") == whole
    assert tokenizer.encode("<|startoftext|>  Cat  dog <|endoftext|>") == whole
    assert tokenizer.encode("cat<|endoftext|>dog") == [*cat, start + 1, *dog]
    assert tokenizer.encode("<|startoftext>") != [start]
    assert tokenizer.decode(whole) == "cat dog"
    assert tokenizer.vocab_size == start + 2


def test_saved_they_are_still_whole(made, tmp_path):
    """tokenizer.json keeps them."""
    tokenizer, start = made
    tokenizer.save(tmp_path / "tokenizer.json")
    again = CaptionTokenizer.from_file(tmp_path / "tokenizer.json")
    assert again.encode("<|startoftext|>cat") == [start, *tokenizer.encode("cat")]


def test_ids_of_clip():
    """CLIP's own ids, through the module that a training script imports."""
    if importlib.util.find_spec("dalle_pytorch") is None:
        pytest.skip("dalle-pytorch, which ships CLIP's merges, is not installed")
    from foveal.compat.dalle_pytorch.tokenizer import tokenizer

    assert tokenizer.encode("<|startoftext|>a photo of a cat!<|endoftext|>") == [
        *(49406, 320, 1125, 539, 320, 2368, 256, 49407)
    ]
    assert tokenizer.tokenize("a cat", 5).tolist() == [[320, 2368, 0, 0, 0]]
    assert tokenizer.decode([49406, 320, 2368, 49407, 0]) == "a cat"
    assert tokenizer.vocab_size == 49408
