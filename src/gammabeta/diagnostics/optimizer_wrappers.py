"""The optimizer of torch inside what other libraries wrap around it."""

from __future__ import annotations

from typing import Any

import torch

# accelerate's AcceleratedOptimizer, apex' and fairseq's FP16_Optimizer, Lightning's LightningOptimizer and every
# scheduler of torch hold it as `optimizer`; accelerate's AcceleratedScheduler holds the scheduler.
_HELD = ("optimizer", "scheduler")


def optimizer_inside(given: Any) -> Any:
    """Return the optimizer inside wrappers, the outermost that takes hooks on its step; None if there is none.

    A wrapper may call itself an optimizer of torch: accelerate's is of a subclass, but has not run torch's constructor
    and has no place for hooks.
    """
    seen: set[int] = set()
    while given is not None and id(given) not in seen:
        if _takes_hooks(given):
            return given
        seen.add(id(given))
        held = (getattr(given, name, None) for name in _HELD)
        given = next((one for one in held if one is not None), None)
    return None


def _takes_hooks(given: Any) -> bool:
    if isinstance(given, torch.optim.Optimizer):
        return "_optimizer_step_post_hooks" in vars(given)
    return callable(getattr(given, "register_step_post_hook", None)) and hasattr(given, "param_groups")
