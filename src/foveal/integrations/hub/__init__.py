"""Models on the Hub: `model.push_to_hub("user/name")`, and `from_pretrained("user/name")`.

A repository has config.json and model.safetensors, as `save_pretrained` writes them, a README.md
that says what the model is, and of a run what belongs to it. Opening a model downloads the first
two of these, and executes nothing. huggingface_hub is imported when something is asked for.
"""

from foveal.integrations.hub.card import Card, write_card
from foveal.integrations.hub.fetch import HubFiles
from foveal.integrations.hub.push import push

__all__ = ["Card", "HubFiles", "push", "write_card"]
