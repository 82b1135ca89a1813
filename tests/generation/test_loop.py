"""The generate loop, with a decoder whose next token is known: last token + 1, modulo 50."""

import threading

import pytest
import torch

from foveal.generation import Recompute, Sampler, generate
from foveal.generation.threads import fitting_threads

GREEDY = Sampler(temperature=0)


def forward(tokens):
    return torch.nn.functional.one_hot((tokens + 1) % 50, 50).float()


class Counter:
    """A decoder that remembers what it was asked."""

    def __init__(self):
        self.seen = None
        self.steps = 0

    def prefill(self, tokens, max_length=None):
        self.seen, self.max_length = tokens, max_length
        return forward(tokens)[:, -1], None

    def step(self, token, cache):
        self.steps += 1
        self.seen = torch.cat((self.seen, token[:, None]), 1)
        return forward(token[:, None])[:, -1], cache


def run(prompts, n, **options):
    return generate(Recompute(forward), prompts, n, sampler=GREEDY, **options)


def test_continues_a_batch():
    """Each row goes on from its own last token, and the decoder steps no more than needed."""
    decoder = Counter()
    tokens, lengths = generate(decoder, torch.tensor([[3, 4], [8, 9]]), 3, sampler=GREEDY)
    assert tokens.tolist() == [[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]
    assert lengths.tolist() == [5, 5]
    assert (decoder.steps, decoder.max_length) == (2, 5)


def test_rows_of_different_lengths():
    """A row among longer ones comes out as it does alone, then padding."""
    prompts = [torch.tensor([7]), torch.tensor([1, 9, 20, 30]), torch.tensor([40, 48])]
    tokens, lengths = run(prompts, 3, pad=49)
    assert tokens.tolist() == [
        [7, 8, 9, 10, 49, 49, 49],
        [1, 9, 20, 30, 31, 32, 33],
        [40, 48, 49, 0, 1, 49, 49],
    ]
    assert lengths.tolist() == [4, 7, 5]
    as_rectangle = torch.tensor([[7, 5, 5, 5, 5], [1, 9, 20, 30, 5], [40, 48, 5, 5, 5]])
    again, _ = run(as_rectangle, 3, lengths=[1, 4, 2], pad=49)
    assert torch.equal(again, tokens)


def test_stop_ends_a_row():
    """The stop token stays, padding follows, and all rows stopped means no more steps."""
    decoder = Counter()
    tokens, lengths = generate(
        decoder, torch.tensor([[3], [7]]), 40, sampler=GREEDY, stop=[5, 9], pad=1
    )
    assert tokens[:, :4].tolist() == [[3, 4, 5, 1], [7, 8, 9, 1]]
    assert (tokens[:, 3:] == 1).all()
    assert lengths.tolist() == [3, 3]
    assert decoder.steps == 1


def test_stop_inside_a_prompt_is_not_an_end():
    """Only new tokens stop a row, not those that were given."""
    tokens, lengths = run([[5], [5, 20, 5]], 2, stop=5)
    assert tokens.tolist() == [[5, 6, 7, 0, 0], [5, 20, 5, 6, 7]]
    assert lengths.tolist() == [3, 5]


def test_seed_repeats_and_none_does_not():
    """The same seed gives the same tokens and leaves torch's global state alone."""
    flat = Recompute(lambda tokens: torch.zeros(*tokens.shape, 50))
    prompt = torch.zeros(4, 1, dtype=torch.long)
    state = torch.get_rng_state()
    one, two, three = (generate(flat, prompt, 20, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(generate(flat, prompt, 20)[0], generate(flat, prompt, 20)[0])


def test_a_small_model_takes_one_thread_and_gives_the_others_back():
    """Also after an error; and a thread that begins meanwhile has the number of the process."""

    class Small:
        num_parameters = 10

    cpu, before, seen = torch.device("cpu"), torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        with fitting_threads(Small(), 1, cpu):
            other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            other.start()
            other.join()
            assert (torch.get_num_threads(), seen) == (1, [3])
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyError), fitting_threads(Small(), 1, cpu):
            raise KeyError
        assert torch.get_num_threads() == 3
        with fitting_threads(Small(), 100, cpu):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_nothing_to_do_and_progress():
    """n=0 returns the prompts; progress hears of every position."""
    tokens, lengths = run([[1, 2], [3]], 0)
    assert (tokens.tolist(), lengths.tolist()) == ([[1, 2], [3, 0]], [2, 1])
    heard = []
    run([[1, 2], [3]], 4, progress=heard.append)
    assert sum(heard) == 5


@pytest.mark.parametrize(
    ("prompts", "n", "options", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), 3, {}, "at least one token"),
        ([[1], []], 3, {}, "at least one token"),
        ([], 3, {}, "empty list"),
        (torch.zeros(3, dtype=torch.long), 3, {}, "must be \\(batch, length\\)"),
        ([[[1]]], 3, {}, "1-D"),
        ([[1]], -1, {}, "n must not be negative"),
        ([[1, 2, 3]], 6, {"max_seq_len": 8}, "at most 5 tokens"),
        (torch.zeros(1, 3, dtype=torch.long), 1, {"lengths": [4]}, "lengths"),
        ([[1]], 1, {"lengths": [1]}, "a list has its own"),
    ],
)
def test_nonsense_prompts(prompts, n, options, message):
    """Each impossible request is one clear ValueError."""
    with pytest.raises(ValueError, match=message):
        run(prompts, n, **options)
