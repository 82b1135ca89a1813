"""A small DALL-E whose layers attend in four ways, drawing from words with a cache.

It is not trained, so the pictures are noise; what counts is what goes in and comes out.

Prints:
    layers attend by full, axial_row, axial_col, Neighborhood(...)
    one training step: loss ...
    2 texts, 2 pictures each: (4, 3, 32, 32)
    with the top half given: (2, 3, 32, 32)
    the same tokens with and without the cache: True
"""

import torch

import foveal
from foveal import patterns as P


def main() -> None:
    torch.manual_seed(0)
    vae = foveal.DiscreteVAE(image_size=32, num_tokens=64, num_layers=2, hidden_dim=16)
    dalle = foveal.DALLE(
        dim=64,
        depth=4,
        heads=4,
        dim_head=16,
        vae=vae,  # pictures of 32 x 32 pixels become 8 x 8 tokens
        num_text_tokens=100,
        text_seq_len=8,
        # any pattern of the image's tokens may stand where a name may
        attn_types=(
            "full",
            "axial_row",
            "axial_col",
            P.Neighborhood((8, 8), kernel_size=5, causal="raster"),
        ),
    )
    print("layers attend by", ", ".join(map(str, dalle.settings.types)))

    text, pictures = torch.randint(1, 100, (2, 8)), torch.rand(2, 3, 32, 32)
    loss = dalle(text, pictures, return_loss=True, null_cond_prob=0.1)
    loss.backward()
    print(f"one training step: loss {loss.item():.2f}")

    drawn = dalle.generate_images(text, num_images=2, guidance=3.0, top_k=32, seed=0)
    print("2 texts, 2 pictures each:", tuple(drawn.shape))
    rest = dalle.generate_images(text, img=pictures, num_init_img_rows=4, seed=0)
    print("with the top half given:", tuple(rest.shape))
    tokens = [dalle.generate_image_tokens(text, seed=1, use_cache=on) for on in (True, False)]
    print("the same tokens with and without the cache:", torch.equal(*tokens))


if __name__ == "__main__":
    main()
