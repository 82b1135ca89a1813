"""Parts of a batch count by what they hold, and losses over pairs see those of all processes."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from foveal.training.weighing import GlobalMean

CODE = """
import os, tempfile
import torch, torch.distributed as dist
from foveal.models import CLIP
from foveal.training.processes import rows_of_all

torch.set_num_threads(1)

def clip():
    torch.manual_seed(0)
    return CLIP(dim_text=8, dim_image=8, dim_latent=6, num_text_tokens=20, text_enc_depth=1,
                text_seq_len=5, text_heads=1, visual_enc_depth=1, visual_heads=1,
                visual_image_size=8, visual_patch_size=4).double()

torch.manual_seed(1)
text, images = torch.randint(1, 20, (6, 5)), torch.rand(6, 3, 8, 8).double()
whole = clip()
wanted = whole(text, images, return_loss=True)
wanted.backward()

def rank(number, size, home):
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{home}/store-{size}", size), rank=number, world_size=size
    )
    model, count = clip(), 6 // size
    own = slice(number * count, (number + 1) * count)
    loss = model(text[own], images[own], return_loss=True, gather=rows_of_all)
    loss.backward()
    means = [loss.detach(), *(p.grad for p in model.parameters())]
    for value in means:
        dist.all_reduce(value)
    expected = [wanted.detach(), *(p.grad for p in whole.parameters())]
    far = max(float((a / size - b).abs().max()) for a, b in zip(means, expected, strict=True))
    assert far < 1e-12, far
    dist.destroy_process_group()

with tempfile.TemporaryDirectory() as home:
    for size in (2, 3):
        children = []
        for number in range(size):
            child = os.fork()
            if not child:
                code = 1
                try:
                    rank(number, size, home)
                    code = 0
                except BaseException:
                    import traceback
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(size, *codes)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_clip_sees_the_pairs_of_all_processes(after_torch):
    """Loss and gradients of 2 x 3 and 3 x 2 pairs are those of 6 in one process, to 1e-12."""
    assert after_torch(CODE).split("\n")[:2] == ["2 0 0", "3 0 0 0"]


ALONE = SimpleNamespace(num_processes=1, device=torch.device("cpu"))


@pytest.mark.parametrize("counts", [(5, 3), (1, 7, 2), (4, 4), (3, 0, 6)])
def test_micro_batches_weigh_by_their_terms(counts):
    """The gradient of means over parts, weighed, is that of the mean over all."""
    logits = torch.randn(sum(counts), 4, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(sum(counts)) % 4
    wanted = F.cross_entropy(logits, targets)
    (expected,) = torch.autograd.grad(wanted, logits)
    mean, total = GlobalMean(ALONE, len(counts)), 0.0
    for count, rows, asked in zip(
        counts, logits.split(counts), targets.split(counts), strict=True
    ):
        mean.add(count)
        loss = mean.scaled(F.cross_entropy(rows, asked))
        loss.backward()
        total = total + loss.detach()
    loss = mean.divide(total, [logits])
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-12)


def test_equal_parts_need_no_weights():
    """One micro-batch of one process is its loss to the bit; two are each a half."""
    loss = torch.tensor(1.7)
    for count, weight in ((1, None), (1, 3.0), (2, None)):
        mean = GlobalMean(ALONE, count)
        mean.add(weight)
        assert torch.equal(mean.scaled(loss), loss / count)
        assert mean.divide(loss, []) is loss
