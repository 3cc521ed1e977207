"""Learning rates with a warm-up that follows the number of workers and the length of the run."""

import pytest

from dcasgd_repro.errors import BadInput
from dcasgd_repro.lr import Step, Warmed


def test_warm_up_from_base_over_m_to_base_within_its_share_of_the_run() -> None:
    rate = Warmed(base=0.1, milestones=[80, 120], workers=4, epochs=160, share=5 / 160)
    # 0.1 / 4 at the start, half-way 0.1 * (1/4 + 3/4 / 2), from epoch 5 on Step's own
    found = [rate(epoch) for epoch in (0, 2.5, 5, 79.9, 80, 120)]
    assert found == pytest.approx([0.025, 0.0625, 0.1, 0.1, 0.01, 0.001], rel=1e-12)
    tenth = Warmed(base=0.1, milestones=[8, 12], workers=4, epochs=16, share=5 / 160)
    assert [tenth(epoch / 10) for epoch in range(160)] == pytest.approx(
        [rate(epoch) for epoch in range(160)], rel=1e-12
    )


def test_one_worker_or_no_share_needs_no_warm_up() -> None:
    plain = Step(0.1, [8, 12])
    for rate in (Warmed(0.1, [8, 12], 1, 16), Warmed(0.1, [8, 12], 8, 16, share=0)):
        assert [rate(epoch / 4) for epoch in range(64)] == [plain(e / 4) for e in range(64)]


@pytest.mark.parametrize(
    ("key", "value"),
    [("share", -0.1), ("share", 1.5), ("workers", 0), ("epochs", 0), ("base", -1), ("factor", 11)],
)
def test_refusals(key: str, value: float) -> None:
    with pytest.raises(BadInput, match=f"^{key}="):
        Warmed(**{"base": 0.1, "milestones": [1], "workers": 2, "epochs": 4, key: value})
