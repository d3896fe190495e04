"""The linear fit of the measurements, and the arithmetic for the large shop."""

import pytest

from tests.benchmarks.bench_scale import STEPS, Measured, Target, arithmetic, extrapolated, fitted


def test_a_line_is_found_and_how_far_a_value_lies_from_it():
    line = fitted([1e6, 3e6, 1e7], [12.0, 16.0, 30.0])
    assert (line.fixed, line.per_unit) == pytest.approx((10, 2e-6)) and line.residual < 1e-9
    assert fitted([1e6, 3e6, 1e7], [12.0, 16.0, 33.0]).residual > 0.01
    assert fitted([1, 2, 3], [5.0, 5.0, 4.0]).per_unit == 0  # falling costs are noise: the slope stays at 0
    assert fitted([1, 2, 4], [1.0, 2.2, 4.4]).fixed == 0


def test_a_target_ten_times_as_large_costs_ten_times_its_units():
    rows = [
        Measured(step.name, users, "units", 1000.0 * users, 5 + users, 1.0, 0.0, 2.0 * users, 0.0)
        for step in STEPS
        for users in (1, 3, 10)
    ]
    small, large = (extrapolated(rows, Target(users=users, events_a_year=200 * users)) for users in (5e6, 50e6))
    for one, other in zip(small, large, strict=True):
        fixed = 5 / 3600
        of_items = one.name in ("embed_items", "fit_basis")
        assert other.core_hours - fixed == pytest.approx((one.core_hours - fixed) * (1 if of_items else 10)), one.name


def test_sizes_that_need_no_measuring():
    sizes = {name: value for name, value, _ in arithmetic(Target(), row_bytes=300)}
    assert sizes["a snapshot's vectors, bare"] == pytest.approx(50e6 * 64 * 4 / 1e9)
    assert sizes["item vectors, int32, mapped on each machine"] == pytest.approx(0.256)
    assert sizes["snapshots written in a year"] == pytest.approx(5.475)
