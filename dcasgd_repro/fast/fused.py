"""The server's update in one pass over memory, compiled from the rule's own formula."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from dcasgd_repro.errors import BadInput
from dcasgd_repro.simulate import Server, apply


def fuse(server: Server, backend: Any = "inductor") -> None:
    """Has the server receive gradients through ``torch.compile(apply)``, whatever its rule.

    What moves is then near the least that DC-ASGD-a must: read g, w, w_bak and MeanSquare, write w
    and MeanSquare. The first push compiles for seconds (about 20 on a CPU where nothing is cached),
    so this is for large vectors. Products and sums may be contracted: equal to the plain update
    within rounding, not to the bit. Ringleader and Malenia branch on more than torch compiles: it
    warns, and they go on uncompiled. Raises BadInput where no C++ compiler is found.
    """
    compiler = os.environ.get("CXX", "g++")
    if backend == "inductor" and server.w.device.type == "cpu" and shutil.which(compiler) is None:
        raise BadInput("fused", True, f"torch.compile needs a C++ compiler, {compiler} here")
    # A rule that branches on a counter or picks a worker's vector is compiled for each of them.
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(server.sent) + 8)
    server.apply = torch.compile(apply, backend=backend)
