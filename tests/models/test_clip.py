"""CLIP: the public package's numbers, texts with padding, pictures of any size."""

import pytest
import torch

from foveal.models import CLIP, cost, load_model

SMALL = {
    "dim_text": 8,
    "dim_image": 12,
    "dim_latent": 6,
    "num_text_tokens": 20,
    "text_enc_depth": 2,
    "text_seq_len": 6,
    "text_heads": 2,
    "visual_enc_depth": 1,
    "visual_heads": 2,
}


@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_package(peer, masked):
    """With the package's weights: similarities, loss and gradients, with and without a mask."""
    sizes = SMALL | {"visual_image_size": 8, "visual_patch_size": 4}
    torch.manual_seed(0)
    theirs = peer("dalle_pytorch.dalle_pytorch").CLIP(**sizes)
    ours = CLIP(mask_padding=False, **sizes)
    ours.load_state_dict(theirs.state_dict())
    text, images = torch.randint(0, 20, (4, 6)), torch.rand(4, 3, 8, 8)
    mask = torch.arange(6) < torch.tensor([[1], [3], [6], [2]]) if masked else None
    with torch.no_grad():
        torch.testing.assert_close(ours(text, images, mask), theirs(text, images, mask))
    grads = []
    for model in (ours, theirs):
        loss = model(text, images, mask, return_loss=True)
        loss.backward()
        grads.append((loss, model.text_emb.weight.grad, model.to_visual_embedding.weight.grad))
    for mine, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_padding_is_no_word():
    """More padding changes nothing, and a text without words is no NaN."""
    clip = CLIP(visual_image_size=8, visual_patch_size=4, **SMALL).eval()
    text = torch.tensor([[3, 7], [5, 0]])
    padded = torch.nn.functional.pad(text, (0, 4))
    torch.testing.assert_close(clip.encode_text(padded), clip.encode_text(text))
    assert clip.encode_text(torch.zeros(1, 6, dtype=torch.long)).isfinite().all()


def test_finds_pictures_of_any_size(tmp_path):
    """Trained on a few pairs, each text finds its picture; saved, it still does."""
    torch.manual_seed(0)
    clip = CLIP(visual_image_size=(6, 10), visual_patch_size=4, **SMALL)
    text, images = torch.arange(1, 9)[:, None], torch.rand(8, 3, 6, 10)
    optimizer = torch.optim.Adam(clip.parameters(), 1e-2)
    for _ in range(60):
        loss = clip(text, images, return_loss=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clip.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    found = (again.encode_text(text) @ again.encode_image(images).T).argmax(1)
    assert (found == torch.arange(8)).all()
    assert cost(clip, text[:3], images[:3]).flops == 3 * cost(clip, 1).flops > 0


def test_mistakes_are_named():
    """Texts that are too long, pictures of another size, and batches that are no pairs."""
    clip = CLIP(visual_image_size=8, visual_patch_size=4, **SMALL)
    text, images = torch.ones(2, 6, dtype=torch.long), torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"text_seq_len=6.*\(2, 7\)"):
        clip(torch.ones(2, 7, dtype=torch.long), images)
    with pytest.raises(ValueError, match=r"3, 8, 8\).*\(2, 3, 8, 9\)"):
        clip(text, torch.rand(2, 3, 8, 9))
    with pytest.raises(ValueError, match="1 texts and 2 pictures"):
        clip(text[:1], images)
    with pytest.raises(ValueError, match="visual_image_size"):
        CLIP(visual_image_size=(1, 2, 3))
