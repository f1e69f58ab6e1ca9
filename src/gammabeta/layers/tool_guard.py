"""The error for TorchScript, which takes only torch's own layers: it names `release`, where torch's message cannot."""

from __future__ import annotations

from typing import Any

from torch import nn

from gammabeta.arguments import RELEASE


class ToolGuard(nn.Module):
    """A layer that TorchScript refuses with a sentence: its compiler would quote a line of our source instead."""

    def __prepare_scriptable__(self) -> Any:
        """Refuse to be scripted; torch.jit.script calls this first on every module.

        A layer of torch's in our place would stay in the user's model, into which torch puts what this returns.
        """
        raise RuntimeError(
            f"torch.jit.script: expected layers that TorchScript can compile, got gammabeta's {type(self).__name__}. "
            f"{RELEASE} torch.export and torch.jit.trace take the model as it is."
        )
