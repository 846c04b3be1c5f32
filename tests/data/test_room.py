"""Room for a cohort's rows: enough for any, or growing by doubling where that would be far too many."""

import numpy as np

from sumfold.data import room

HUGE = np.array([1_000_000] + [10] * 999)


def test_a_few_huge_clients_are_not_reserved_for() -> None:
    width, known, made = 400, 0, set()
    for needed in range(20, 2_000):
        known = room.rows_for(HUGE, 2, needed, width, known)
        assert needed <= known <= 4 * needed
        made.add(known)
    assert len(made) <= 8, "each is another program"


def test_what_any_cohort_may_need_is_reserved_at_once() -> None:
    counts = np.arange(1, 101)
    assert room.rows_for(counts, 10, int(counts[:10].sum()), 4, 0) == counts[-10:].sum()
    assert room.rows_for(counts, 10, 3, 4, 500) == 500
    assert room.rows_for(counts, 1_000, 40, 4, 0) == counts.sum()
