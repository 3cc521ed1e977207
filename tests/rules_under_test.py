"""ONE list of rules: every battery imports it, and a test fails where conf/rule/ has another one.

A rule of the package stands here once for each way of working that its code branches on. What is
costly, every engine on every schedule among it, is tried with the ``KINDS``: one rule for each way
in which a rule can differ to whoever drives it.
"""

from dcasgd_repro import (
    ASAP,
    ASGD,
    DANADC,
    DCSSGD,
    IAG,
    LWP,
    MSNAG,
    NAGASGD,
    SMEGA2,
    SSGD,
    AdaDelay,
    Clipped,
    DANAZero,
    DCASGDa,
    DCASGDc,
    DCASGDn,
    DelayAdaptive,
    DelayedNesterov,
    FedAsync,
    FedBuff,
    GapAware,
    HeLoCo,
    Malenia,
    MultiASGD,
    OrMo,
    Rennala,
    Ringleader,
    Ringmaster,
    ServerNAdam,
    ServerSGD,
    StalenessAware,
    Throttle,
)

KINDS = [
    ASGD(momentum=0.9),  # a step at every push
    DCASGDa(mean_square="worker", bias_correction=True, momentum=0.5),  # a vector for each worker
    SSGD(),  # some pushes make no step, by a count
    Ringmaster(threshold=3),  # some make none, by their delay
    DANADC(momentum=0.5),  # another vector than w is sent, and compensated for
    HeLoCo(momentum=0.5),  # not element-wise
]
RULES = [
    *KINDS,
    ASGD(),
    SSGD(momentum=0.5),
    DCASGDc(lam=1.0),
    DCASGDc(lam=0.5, momentum=0.9),
    DCASGDc(lam=0.1, gradient="sum", batch=8),
    DCASGDc(lam=0.5, curvature="abs"),
    DCASGDc(lam=0.1, curvature="minus_abs"),
    DCASGDa(),
    DCASGDa(decay=0.0, momentum=0.9),
    DCASGDa(gradient="sum", batch=8),
    DCASGDn(),
    DCSSGD(),
    StalenessAware(),
    StalenessAware(collect=3),
    FedAsync(),
    FedAsync(pushes="gradient", law="exponential", a=0.2, mean_delay=3.0, count="push"),
    FedAsync(law="hinge", b=1.0, momentum=0.5, weighs="both"),
    FedAsync(law="threshold", b=1.0, momentum=0.5, weighs="step", nesterov=True),
    DelayAdaptive(),
    DelayAdaptive(concurrency=1, late="dropped", dispatch="before"),
    AdaDelay(),
    ASAP(),
    Clipped(clip=0.5),
    Ringmaster(),
    Rennala(),
    Malenia(),
    Ringleader(),
    Throttle(),
    IAG(),
    FedBuff(collect=3),
    FedBuff(collect=2, reduction="weighted", count="push", momentum=0.5, pushes="model"),
    FedBuff(collect=4, reduction="sum", rate="arrival", law="constant"),
    ServerSGD(),
    ServerSGD(momentum=0.5, nesterov=False, dampening=0.1, weight_decay=0.01),
    ServerNAdam(),
    ServerNAdam(weight_decay=0.01, decoupled=False),
    MultiASGD(),
    GapAware(),
    GapAware(momentum=0.0, weight_decay=0.01),
    OrMo(momentum=0.5),
    DelayedNesterov(collect=4),
    DelayedNesterov(collect=3, spread=0.1),
    NAGASGD(),
    DANAZero(),
    SMEGA2(),
    SMEGA2(cycle=2, naive=True, momentum=0.5, dampening=0.1),
    LWP(),
    LWP(form="weight", steps="last", momentum=0.5),
    MSNAG(),
]
