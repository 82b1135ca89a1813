"""What a subclass of a pattern may inherit."""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

Class = TypeVar("Class")

CLOSED_FORMS = (
    "mask",
    "tiles",
    "_tiles",
    "_candidates",
    "_part",
    "_span",
    "needs",
    "period",
    "overlap",
    "block_mask",
    "num_pairs",
    "always_reads",
    "reads_all",
    "reads",
    "keeps",
    "horizon",
    "per_head",
    "in_head",
    "rule",
    "pools",
    "joined",
    "biased_by_table",
    "keeps_apart",
    "decodes_from",
    "band",
)
"""What follows from the definition of a pattern, and may be given in a quicker way."""

_HARMLESS = (
    *CLOSED_FORMS,
    *("_axes", "_tile", "_breaks", "_check_pairs", "from_fields", "opaque"),
    *("check_length", "check_lengths"),
    *("offset_reach", "offset_step", "offset_codes", "bias_size", "bias_place"),
)
"""What a subclass may override without becoming another pattern."""


def drop_stale_forms(cls: Any, root: Any) -> type:
    """Closed forms of a base class do not hold for a class with another definition.

    Where a subclass of a finished pattern overrides `allows`, `num_queries` or anything else that
    these may rest on, all that it does not give itself is derived from `allows` again.

    Args:
        cls: the new class.
        root: the base of all patterns, whose forms are derived from `allows`.

    Returns:
        The class whose definition now holds: `cls`, or a base that it changes nothing of.
    """
    mro = cls.__mro__
    base = next((c for c in mro[1:] if issubclass(c, root) and not c._abstract), None)
    if base is None:
        return cls
    place = mro.index(base)
    own = {name for one in mro[:place] for name in vars(one)}
    defined = {name for one in mro[place:-1] for name in vars(one)}
    fields = {name for one in mro[:place] for name in vars(one).get("__annotations__", ())}
    changed = {name for name in (own & defined) - fields if not name.startswith("__")}
    if "bias_place" in changed and "period" not in own:
        cls.period = root.period  # which promises something of rows as well
    if not changed - {*_HARMLESS, "reference", "_abstract", "_rule_of"}:
        return base._rule_of
    for name in CLOSED_FORMS:
        if name not in own:
            setattr(cls, name, vars(root)[name])
    return cls


def is_a(pattern: Any, cls: type[Class]) -> TypeGuard[Class]:
    """Whether this is a pattern of a class whose meaning no subclass has changed."""
    return isinstance(pattern, cls) and type(pattern)._rule_of is cls  # type: ignore[attr-defined]
