"""Plugs into packages that people already run, each in a module of its own, imported by its name.

| module | what it gives |
|---|---|
| `foveal.integrations.transformers` | `attn_implementation="foveal"`; our models as theirs |
| `foveal.integrations.timm` | `timm.create_model("foveal_...")` |
| `foveal.integrations.natten` | natten's functions and modules, computed by foveal |
| `foveal.integrations.deepspeed` | DeepSpeed's `SparseSelfAttention` on our layouts |
| `foveal.integrations.hub` | what `push_to_hub` and `from_pretrained("user/name")` run on |
| `foveal.integrations.diffusers` | a VQModel as the VAE of DALL-E |
| `foveal.integrations.open_clip` | an open_clip model as reranker of its pictures |

None of them is loaded by `import foveal`, and a package that is not installed is named when its
module is imported.
"""
