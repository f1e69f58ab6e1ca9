"""What torch.compile needs to be told to make the most of our ops."""

from __future__ import annotations

from typing import Any


def compile_options() -> dict[str, Any]:
    """Return options for `torch.compile(model, options=...)` by which norm, sum and relu become one call.

        torch.compile(model, options=gammabeta.compile_options())

    Inductor cannot look into gammabeta's ops. With these options it turns `relu(norm(x))` and
    `relu(norm(x) + residual)`, as they stand in the forward of any residual network, into one op, and the backward of
    the first too. `gammabeta.fuse` does the same in eager code where the activation is a module that alone reads the
    norm.

    They are asked for, and not set when gammabeta is imported: the setting is torch's and global, and importing
    Inductor takes longer than importing torch.

    Returns:
        The options, to which others may be added.
    """
    from gammabeta.kernels.graph_pass import FuseNorms

    return {"joint_custom_pre_pass": FuseNorms()}
