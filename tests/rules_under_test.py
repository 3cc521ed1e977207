"""ONE list of rules: every battery imports it, and a test fails where conf/rule/ has another one.

A rule of the package stands here once for each way of working that its code branches on.
"""

from dcasgd_repro import ASGD, SSGD, DCASGDa, DCASGDc

RULES = [
    ASGD(),
    ASGD(momentum=0.9),
    SSGD(),
    SSGD(momentum=0.5),
    DCASGDc(lam=1.0),
    DCASGDc(lam=0.5, momentum=0.9),
    DCASGDc(lam=0.1, gradient="sum", batch=8),
    DCASGDa(),
    DCASGDa(mean_square="worker", bias_correction=True, momentum=0.5),
    DCASGDa(decay=0.0, momentum=0.9),
    DCASGDa(gradient="sum", batch=8),
]
