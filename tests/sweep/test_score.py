"""Scores: a prediction judged by a sweep, and eigenvalues judged by many sweeps."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from hessian_lr.alignment import align
from hessian_lr.errors import RequestError
from hessian_lr.score import chance, score
from hessian_lr.setting import Setting
from hessian_lr.sweep import RunResult, Sweep

GRID = [-4.0 + 0.25 * k for k in range(9)]  # log10 of 1e-4 .. 1e-2
INITIAL = 2.0


def run(lr, final, seed=0, initial=INITIAL):
    diverged = final is None or final > initial
    return RunResult("k", Setting(seed=seed), lr, initial, final, 60, diverged, 1.0, 1000)


def sweep_of(losses, seeds=(0, 1), **more):
    """A sweep from a mapping of log10(lr) to its loss (equal for all seeds)."""
    runs = tuple(run(10.0**x, loss, seed, **more) for x, loss in sorted(losses.items()) for seed in seeds)
    return Sweep(Setting(), runs, censored=False)


def parabola(centre, height=1.0, width=0.2, grid=GRID):
    return {x: height + width * (x - centre) ** 2 for x in grid}


def scattered(draw, seeds, scatter, offsets):
    """A flat sweep whose runs scatter by ``scatter`` beyond what each seed adds to all of its own."""
    losses = 1 + scatter * draw.standard_normal((4, seeds)) + np.array(offsets)
    rates = [10.0**x for x in GRID[:4]]
    runs = tuple(run(lr, float(losses[i, s]), s) for i, lr in enumerate(rates) for s in range(seeds))
    return Sweep(Setting(), runs, censored=False)


@pytest.mark.parametrize("seeds", [2, 3])
def test_noise_is_the_standard_error_of_the_difference_of_two_means(seeds):
    draw, scatter = np.random.default_rng(0), 0.01
    told = [scattered(draw, seeds, scatter, [0.03 * s for s in range(seeds)]) for _ in range(400)]
    squares = [
        (score(sweep, None, None, None).noise * (INITIAL - score(sweep, None, None, None).best_loss)) ** 2
        for sweep in told
    ]
    # Oracle: the variance of a difference of two means of independent draws.
    assert np.mean(squares) == pytest.approx(2 * scatter**2 / seeds, rel=0.1)


def test_noise_needs_two_seeds_and_knows_nothing_of_what_a_seed_adds_to_all_or_of_bad_rates():
    assert score(sweep_of(parabola(-3.0), seeds=(0,)), None, None, None).noise is None
    one, other = (scattered(np.random.default_rng(1), 2, 0.01, offsets) for offsets in ([0, 0], [0.2, -0.2]))
    assert score(one, None, None, None).noise == pytest.approx(score(other, None, None, None).noise)
    far = tuple(run(1.0, loss, seed) for seed, loss in enumerate((1.4, 1.9)))
    wider = score(Sweep(Setting(), (*one.runs, *far), censored=False), None, None, None)
    assert wider.noise == score(one, None, None, None).noise


centres = st.floats(GRID[1] - 0.12, GRID[-2] + 0.12)
predictions = st.floats(-6, 0).map(lambda x: 10.0**x)


@given(centres, st.floats(0.05, 1.9), st.floats(0.01, 0.2))
def test_the_vertex_of_an_exact_parabola_is_found_to_rounding(centre, height, width):
    result = score(sweep_of(parabola(centre, height, width), initial=height + 6.0), None, None, None)
    assert not result.censored
    # Second differences of the losses lose digits as the parabola flattens.
    assert math.log10(result.best_lr) == pytest.approx(centre, abs=1e-12 * (1 + height / width))


@given(centres)
def test_the_vertex_needs_no_even_grid(centre):
    grid = [-4.0, -3.7, -3.5, -3.1, -2.6, -2.0]
    assume(grid[1] - 0.1 < centre < grid[-2] + 0.1)
    result = score(sweep_of(parabola(centre, grid=grid)), None, None, None)
    assert math.log10(result.best_lr) == pytest.approx(centre, abs=1e-9)


@given(st.floats(0.5, 1.9), st.floats(0.5, 1.9), st.floats(0.1, 30), st.sampled_from([None, 1e4]))
def test_the_vertex_goes_no_further_than_the_best_towards_a_rate_that_diverged(low, best, gap, lost):
    assume(best < low)
    high = score(sweep_of({-3.0: low, -1.0: best, -1.0 + gap: lost}), None, None, None)
    assert 10**-2.0 <= high.best_lr <= 10**-1.0
    both = score(sweep_of({-1.0 - gap: lost, -1.0: best, -1.0 + 2 * gap: lost}), None, None, None)
    assert both.best_lr == pytest.approx(10**-1.0)


def test_a_loss_that_rises_on_the_way_to_the_best_is_told_as_chance():
    valley = [1.5, 1.3, 1.1, 1.0, 1.2, 1.4]
    told = dict(zip(GRID, valley, strict=False))
    assert chance(sweep_of(told).runs) is None and chance([]) is None
    for place, loss, share in ((1, 1.6, "10.0%"), (2, 1.302, None), (5, 1.15, "5.0%"), (5, None, None)):
        changed = told | {GRID[place]: loss}
        found = chance(sweep_of(changed).runs)
        assert (found is None) == (share is None)
        if share:
            assert f"rise by {share} of the improvement" in found and "more seeds than 2" in found
    one = chance(sweep_of(told | {GRID[1]: 1.6}, seeds=(0,)).runs)
    assert "more seeds than 1 would" in one
    assert chance(sweep_of(dict.fromkeys(GRID, 2.5)).runs) is None, "nothing learned"
    # The order of rates that diverged says nothing, but one within the valley is a rise to the start's loss.
    assert chance(sweep_of(told | {GRID[6]: 4.0, GRID[7]: 3.0}).runs) is None
    assert "rise by 70.0% of" in chance(sweep_of(told | {GRID[1]: 4.0, GRID[0]: 1.3}).runs)


def test_beside_a_rate_that_diverged_an_even_grid_keeps_its_vertex():
    # The parabola through (−1, 1.01), (0, 1), (1, 5) by hand: t = (1.01 − 5) / (2·(1.01 − 2 + 5)) = −0.497…
    result = score(sweep_of({-4.0: 1.01, -3.0: 1.0, -2.0: 5.0}), None, None, None)
    assert math.log10(result.best_lr) == pytest.approx(-3 - 3.99 / 8.02)


@given(st.lists(st.floats(0.5, 3.0), min_size=3, max_size=9))
def test_the_best_learning_rate_lies_in_its_own_band(finals):
    sweep = sweep_of(dict(zip(GRID, finals, strict=False)))
    best = score(sweep, None, None, None).best_lr
    assume(best is not None)
    itself = score(sweep, best, None, None)
    assert itself.inside_band and itself.regret <= 0.01 + 1e-6


def test_a_vertex_outside_the_band_gives_way_to_its_nearer_end():
    # The vertex lies at −3.44, where the interpolated curve has climbed by more than 1% of the gain.
    result = score(sweep_of({-4.0: 1.2, -3.0: 1.0, -2.0: 5.0}), None, None, None)
    assert 10**-3.44 < result.best_lr == result.band_low < 10**-3


@given(centres, predictions)
def test_no_prediction_is_better_than_exact(centre, predicted):
    result = score(sweep_of(parabola(centre)), predicted, predicted / 2, predicted * 2)
    assert result.factor_error >= 1
    assert result.factor_error == pytest.approx(10 ** abs(math.log10(predicted / result.best_lr)))
    assert (result.predicted_low, result.predicted_high) == (predicted / 2, predicted * 2)
    assert (result.regret is None) == (not 1e-4 <= predicted <= 1e-2)
    assert result.regret is None or result.regret >= 0


@given(st.sampled_from(GRID[1:-1]))
def test_the_best_grid_point_has_no_regret_and_the_band_around_it(x):
    result = score(sweep_of(parabola(x)), 10.0**x, None, None)
    assert result.regret == 0
    assert result.factor_error == pytest.approx(1)
    assert result.inside_band is True
    assert result.band_low < 10.0**x < result.band_high


@given(st.lists(st.floats(0.5, 1.9), min_size=4, max_size=9))
def test_regret_at_the_ends_of_the_band_is_one_percent(finals):
    sweep = sweep_of(dict(zip(GRID, finals, strict=False)))
    result = score(sweep, None, None, None)
    for end in (result.band_low, result.band_high):
        if end is not None:
            assert score(sweep, end, None, None).regret == pytest.approx(0.01, abs=1e-6)


def test_regret_is_the_share_of_the_possible_progress_that_is_missed():
    losses = {-4.0: 1.5, -3.5: 1.0, -3.0: 1.25, -2.5: 1.75}
    assert score(sweep_of(losses), 1e-3, None, None).regret == pytest.approx(0.25)
    assert score(sweep_of(losses), 10**-2.5, None, None).regret == pytest.approx(0.75)


def test_losses_are_averaged_over_seeds_before_anything_else():
    # Each seed alone has its best at 1e-4 or at 1e-3; the mean has it at 10^-3.5.
    finals = {-4.0: (0.9, 1.6), -3.5: (1.0, 1.0), -3.0: (1.6, 0.9)}
    runs = tuple(run(10.0**x, loss, seed) for x, pair in finals.items() for seed, loss in enumerate(pair))
    result = score(Sweep(Setting(), runs, False), None, None, None)
    assert result.best_lr == pytest.approx(10**-3.5)
    assert result.best_loss == 1.0


def test_learning_rates_without_every_seed_do_not_count():
    complete = sweep_of({-4.0: 1.5, -3.5: 1.0, -3.0: 1.4})
    partial = Sweep(Setting(), (*complete.runs, run(10**-2.5, 0.1, seed=0)), False)
    assert score(partial, 1e-3, None, None) == score(complete, 1e-3, None, None)
    with pytest.raises(RequestError, match="every seed"):
        score(Sweep(Setting(), (run(1e-3, 1.0, 0), run(1e-4, 1.0, 1)), False), 1e-3, None, None)


@pytest.mark.parametrize(("sign", "edge"), [(1, GRID[0]), (-1, GRID[-1])])
def test_a_best_at_the_edge_is_censored_and_the_band_is_open_there(sign, edge):
    result = score(sweep_of({x: 1.2 + 0.1 * sign * (x + 3) for x in GRID}), 10**-3.0, None, None)
    assert result.censored
    assert result.best_lr == 10.0**edge
    open_end, closed_end = (result.band_low, result.band_high)[:: 1 if edge == GRID[0] else -1]
    assert open_end is None
    assert closed_end is not None
    assert result.inside_band is False
    # Beyond the open end nothing is known; beyond the closed one the prediction is outside.
    beyond, opposite = 10.0 ** (edge - sign), 10.0 ** (-3 + 2 * sign)
    assert (
        score(sweep_of({x: 1.2 + 0.1 * sign * (x + 3) for x in GRID}), beyond, None, None).inside_band is None
    )
    assert (
        score(sweep_of({x: 1.2 + 0.1 * sign * (x + 3) for x in GRID}), opposite, None, None).inside_band
        is False
    )


def test_a_flat_sweep_has_an_open_band_on_both_sides():
    result = score(sweep_of({-4.0: 1.001, -3.5: 1.0, -3.0: 1.002}), 1e-3, None, None)
    assert (result.band_low, result.band_high) == (None, None)
    assert result.inside_band is True
    assert not result.censored


def test_a_run_without_a_finite_loss_counts_as_at_least_the_initial_loss():
    lost = score(sweep_of({-4.0: 1.5, -3.5: 1.0, -3.0: None}), 1e-3, None, None)
    assert lost.regret == pytest.approx(1.0)
    worse = score(sweep_of({-4.0: 1.5, -3.5: 1.0, -3.0: None, -2.5: 7.0}), 1e-3, None, None)
    assert worse.regret == pytest.approx(6.0)


def test_a_learning_rate_at_which_one_seed_diverged_is_never_the_best():
    runs = [run(10.0**x, 1.5, seed) for x in (-4.0, -3.5) for seed in (0, 1)]
    runs += [run(1e-3, 0.1, 0), run(1e-3, 2.1, 1)]
    result = score(Sweep(Setting(), tuple(runs), False), 1e-3, None, None)
    assert result.best_lr == 1e-4
    assert result.regret == pytest.approx(1.0)


def test_a_sweep_that_learned_nothing_gives_no_numbers():
    result = score(sweep_of({-4.0: 2.5, -3.5: None, -3.0: 9.0}), 1e-3, None, None)
    assert result.censored
    assert result.predicted_lr == 1e-3
    assert {result.best_lr, result.best_loss, result.factor_error, result.regret, result.inside_band} == {
        None
    }


def test_one_learning_rate_alone_is_censored():
    result = score(sweep_of({-3.0: 1.0}), 1e-3, None, None)
    assert (result.best_lr, result.regret, result.censored) == (1e-3, 0.0, True)
    assert (result.band_low, result.band_high) == (None, None)


def test_one_learning_rate_that_ended_in_no_number_gives_none():
    result = score(sweep_of({-3.0: None}, seeds=(0,)), 1e-3, None, None)
    assert (result.best_lr, result.regret, result.censored) == (None, None, True)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_prediction_that_is_no_learning_rate_is_refused(bad):
    with pytest.raises(RequestError, match="positive"):
        score(sweep_of(parabola(-3.0)), bad, None, None)


def test_a_score_survives_json(tmp_path):
    result = score(sweep_of(parabola(-3.1)), 1e-3, 5e-4, None)
    result.write(tmp_path / "score.json")
    assert type(result).read(tmp_path / "score.json") == result


@given(st.floats(-3, 3), st.floats(-5, 0))
def test_alignment_recovers_an_exact_power_law(slope, offset):
    assume(abs(slope) > 0.01)
    x = np.array([0.0, 0.5, 1.3, 2.0])
    result = align(list(10**x), list(10 ** (slope * x + offset)))
    assert result.slope == pytest.approx(slope, abs=1e-9)
    assert result.slope_low <= result.slope_high
    assert result.slope_high - result.slope_low < 1e-5
    assert result.r_squared == pytest.approx(1)
    assert result.kendall_tau == pytest.approx(-math.copysign(1, slope))
    assert result.spearman == pytest.approx(-math.copysign(1, slope))


def test_the_slopes_interval_is_students():
    x, y = np.array([0.13, 0.43, 1.45, 1.85, 2.53]), np.array([-2.44, -2.49, -2.62, -3.11, -3.35])
    result = align(list(10**x), list(10**y))
    # By hand: s² = residual sum of squares / (n − 2), se² = s² / Σ(x − x̄)².
    centred = x - x.mean()
    slope = (centred * y).sum() / (centred**2).sum()
    residuals = y - y.mean() - slope * centred
    error = math.sqrt((residuals**2).sum() / 3 / (centred**2).sum())
    assert result.slope == pytest.approx(slope)
    assert result.slope_high - result.slope == pytest.approx(3.182446 * error, rel=1e-6)
    assert result.slope - result.slope_low == pytest.approx(3.182446 * error, rel=1e-6)
    assert result.r_squared == pytest.approx(scipy.stats.pearsonr(x, y).statistic ** 2)


def test_alignment_of_too_few_points_has_no_slope():
    two = align([1.0, 100.0], [1e-3, 1e-4])
    assert (two.slope, two.slope_low, two.slope_high, two.r_squared) == (None, None, None, None)
    # Of two points a rank correlation is 1 or -1, whatever they are.
    assert (two.kendall_tau, two.spearman, two.points) == (None, None, 2)
    assert align([], []).kendall_tau is None


def test_alignment_with_equal_numbers_says_what_it_cannot():
    same_eigenvalue = align([2.0, 2.0, 2.0], [1e-3, 1e-4, 1e-2])
    assert (same_eigenvalue.slope, same_eigenvalue.kendall_tau) == (None, None)
    same_rate = align([1.0, 2.0, 4.0], [1e-3, 1e-3, 1e-3])
    assert same_rate.slope == pytest.approx(0)
    assert (same_rate.kendall_tau, same_rate.r_squared) == (None, None)
    assert (same_rate.slope_low, same_rate.slope_high) == (None, None)


@pytest.mark.parametrize(
    ("eigenvalues", "rates", "match"),
    [([1.0], [1e-3, 1e-4], "pair"), ([-1.0], [1e-3], "eigenvalue"), ([1.0], [math.nan], "learning rate")],
)
def test_alignment_refuses_what_cannot_stand_on_a_log_scale(eigenvalues, rates, match):
    with pytest.raises(RequestError, match=match):
        align(eigenvalues, rates)
