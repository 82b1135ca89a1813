"""A package's object beside ours, with the same weights."""

import importlib

import torch

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def padding(batch, length, real):
    return (torch.arange(length) < real).expand(batch, length)


def pair(peer, module, name, args=(), options=None):
    """The package's object and ours, with the same weights, which load both ways, strictly."""
    theirs = getattr(peer(module), name)(*args, **(options or {}))
    home = importlib.import_module(f"foveal.compat.{module}")
    ours = getattr(home, name)(*args, **(options or {}))
    wanted, found = theirs.state_dict(), ours.state_dict()
    assert {k: v.shape for k, v in wanted.items()} == {k: v.shape for k, v in found.items()}
    theirs.load_state_dict(found, strict=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def check(theirs, ours, x, **kwargs):
    """Outputs, and gradients of the input and of all parameters by their names, are the same."""
    results = []
    for model in (theirs, ours):
        model.zero_grad()
        here = x.clone().requires_grad_(x.is_floating_point())
        out = model(here, **kwargs)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        (out * weights).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((out.detach(), here.grad, grads))
    torch.testing.assert_close(results[1][0], results[0][0], **CLOSE)
    if x.is_floating_point():
        torch.testing.assert_close(results[1][1], results[0][1], **CLOSE)
    for name, grad in results[0][2].items():
        torch.testing.assert_close(results[1][2][name], grad, atol=1e-4, rtol=1e-4, msg=name)
