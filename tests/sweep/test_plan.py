"""The plan of a sweep: brackets the best learning rate on a fixed grid, at a bounded price."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hessian_lr.errors import RequestError
from hessian_lr.sweep import plan


def search(start, loss, stride=plan.STRIDE):
    """Follow the plan to its end on a known loss; the losses at all points it ran."""
    losses = {}
    while points := plan.next_points(start, losses, stride):
        assert not set(points) & set(losses), "the plan asked for a point it already had"
        losses.update({point: loss(point) for point in points})
    return losses


def bowl(centre):
    return lambda point: (point - centre) ** 2


def test_grid_points_are_quarter_decades():
    assert plan.learning_rate(-12) == pytest.approx(1e-3, rel=1e-12)
    assert plan.learning_rate(-11) / plan.learning_rate(-12) == pytest.approx(10**0.25, rel=1e-12)


@pytest.mark.parametrize(
    ("lr", "point"), [(1e-3, -12), (1.2e-3, -12), (1.5e-3, -11), (2e-4, -15), (1e-12, -28), (5000.0, 8)]
)
def test_start_is_the_nearest_point_within_the_limits(lr, point):
    assert plan.nearest_point(lr) == point


@pytest.mark.parametrize("lr", [0.0, -1e-3, math.nan, math.inf])
def test_a_start_that_is_no_learning_rate_is_refused(lr):
    with pytest.raises(RequestError, match="positive learning rate"):
        plan.nearest_point(lr)


def test_a_good_start_costs_five_points():
    assert sorted(search(-12, bowl(-12))) == [-14, -13, -12, -11, -10]


@pytest.mark.parametrize("away", [-3, -1, 0, 1, 3])
def test_a_search_of_single_steps_leaves_no_gap_and_costs_three_points_and_how_far_it_began(away):
    found = sorted(search(-12 + away, bowl(-12), stride=1))
    assert found == list(range(found[0], found[-1] + 1)) and {-13, -12, -11} <= set(found)
    assert len(found) == 3 + abs(away)


def test_it_first_runs_the_start_and_two_steps_on_both_sides():
    assert plan.next_points(-12, {}) == (-14, -12, -10)


def test_it_extends_beyond_the_best_edge():
    assert plan.next_points(-12, {-14: 3.0, -12: 2.0, -10: 1.0}) == (-8,)
    assert plan.next_points(-12, {-14: 1.0, -12: 2.0, -10: 3.0}) == (-16,)


@given(st.integers(-28, 0), st.floats(-26, -2))
@example(-28, -10.5)
@example(-28, -10.0)
@example(0, -17.25)
@example(-2, -17.25)
@example(-2, -17.75)
def test_it_brackets_the_best_of_any_bowl_near_enough(start, centre):
    losses = search(start, bowl(centre))
    best = plan.best_of(losses)
    assert len(losses) <= plan.MAX_POINTS
    assert all(plan.LOWEST <= point <= plan.HIGHEST for point in losses)
    if not plan.at_edge(losses):
        assert abs(best - centre) <= 0.5 + 1e-9
        assert {best - 1, best + 1} <= set(losses)
    # Ten points are strided to. Beyond the first three that is seven strides, to 16 grid points from the
    # start; at a limit of the grid the first are two, and the search comes a stride further. The fill
    # beside the last point still decides for a best in the half of the gap that is nearer to it.
    reach = (18 if start in (plan.LOWEST, plan.HIGHEST) else 16) - 0.5
    distance = abs(start - centre)
    assert plan.at_edge(losses) == (distance > reach) or math.isclose(distance, reach, rel_tol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_loss_that_never_turns_is_censored_at_a_bounded_price(sign):
    losses = search(-14, lambda point: sign * point)
    assert plan.at_edge(losses)
    assert len(losses) <= plan.MAX_POINTS


def test_diverged_points_send_the_search_down():
    losses = search(-4, lambda point: math.inf if point > -9 else bowl(-12)(point))
    assert plan.best_of(losses) == -12
    assert not plan.at_edge(losses)
    assert max(losses) == -2


def test_a_start_at_the_limit_stays_within_it():
    assert plan.next_points(8, {}) == (6, 8)
    assert max(search(8, bowl(11))) == 8


@given(st.dictionaries(st.integers(-28, 0), st.floats(0, 10) | st.just(math.inf), max_size=14))
@example({-point: float(abs(point - 6)) for point in range(13) if point != 5})
@example({-point: float(abs(point - 6)) for point in range(15) if point != 5})
def test_whatever_the_losses_it_asks_for_new_points_within_the_limits(losses):
    points = plan.next_points(-12, losses)
    assert not set(points) & set(losses)
    assert all(plan.LOWEST <= point <= plan.HIGHEST for point in points)
    assert not losses or len(points) == 0 or len(points) + len(losses) <= plan.MAX_POINTS


@pytest.mark.parametrize(("start", "fewest"), [(-12, plan.FEWEST_POINTS), (8, 3), (7, 3), (5, 4), (-28, 3)])
def test_the_fewest_points_are_less_at_the_grids_limits(start, fewest):
    assert plan.fewest_points(start) == fewest
    assert min(len(search(start, bowl(centre))) for centre in range(-30, 11)) == fewest


@given(st.integers(-28, 8), st.lists(st.floats(0, 10) | st.just(math.inf), min_size=37, max_size=37))
def test_no_search_ends_with_fewer_points_than_the_fewest(start, losses):
    assert len(search(start, lambda point: losses[point - plan.LOWEST])) >= plan.fewest_points(start)
