//! The nearest point of a hyperplane within pixel bounds, on the host in f64.

use crate::Norm;

/// The smallest change `d`, in `norm`, of `point` with `slope . d = rise` and `point + d` within the
/// bounds. Where no such change exists: the one that comes nearest to the rise, with every pixel
/// value that matters at its bound.
///
/// All three norms move each pixel value towards its bound, by `min(t, r)` (Linf), `min(t |w|, r)`
/// (L2) or first those with the largest `|w|` as far as `r` (L1), where `r` is the room to the
/// bound. For Linf and L2 what is gained is a concave, piecewise linear function of `t`, so Newton's
/// method from `t = 0` climbs to the root without overshooting, and ends after finitely many steps.
pub(crate) fn nearest(
    norm: Norm,
    point: &[f64],
    slope: &[f64],
    rise: f64,
    lower: f64,
    upper: f64,
) -> Vec<f64> {
    let sign = if rise < 0.0 { -1.0 } else { 1.0 };
    let rise = rise.abs();
    let room = |z: f64, w: f64| match w * sign {
        up if up > 0.0 => upper - z,
        down if down < 0.0 => z - lower,
        _ => 0.0,
    };
    let rooms: Vec<f64> = point.iter().zip(slope).map(|(&z, &w)| room(z, w)).collect();
    let directed = |length: f64, w: f64| length.copysign(w * sign);
    if norm == Norm::L1 {
        return steepest_first(slope, &rooms, rise, sign);
    }
    // How far a pixel value wants to go at t.
    let wish = |t: f64, w: f64| if norm == Norm::Linf { t } else { t * w.abs() };
    let mut t = 0.0;
    loop {
        let (mut gained, mut gain) = (0.0, 0.0);
        for (&w, &room) in slope.iter().zip(&rooms) {
            if room <= wish(t, w) {
                gained += w.abs() * room;
            } else {
                gain += w.abs() * wish(1.0, w);
            }
        }
        if gain == 0.0 {
            // Everything is at its bound.
            return rooms.iter().zip(slope).map(|(&room, &w)| directed(room, w)).collect();
        }
        let next = (rise - gained) / gain;
        // Also ends where rounding keeps it from moving, or a gain underflows.
        if next <= t || !next.is_finite() {
            break;
        }
        t = next;
    }
    slope.iter().zip(&rooms).map(|(&w, &room)| directed(room.min(wish(t, w)), w)).collect()
}

fn steepest_first(slope: &[f64], rooms: &[f64], rise: f64, sign: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..slope.len()).filter(|&i| rooms[i] > 0.0).collect();
    order.sort_unstable_by(|&a, &b| slope[b].abs().total_cmp(&slope[a].abs()).then(a.cmp(&b)));
    let mut change = vec![0.0; slope.len()];
    let mut left = rise;
    for index in order {
        if left <= 0.0 {
            break;
        }
        let steepness = slope[index].abs();
        let length = rooms[index].min(left / steepness);
        change[index] = length.copysign(slope[index] * sign);
        left -= steepness * length;
    }
    change
}

/// The norm that measures a slope: `max slope . d` over `|d| <= 1`.
pub(crate) fn dual_norm(norm: Norm, slope: &[f64]) -> f64 {
    match norm {
        Norm::Linf => Norm::L1.length(slope),
        Norm::L2 => Norm::L2.length(slope),
        Norm::L1 => Norm::Linf.length(slope),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn away_from_the_bounds_it_is_the_closed_form() {
        let (point, slope) = ([0.5; 3], [1.0, -2.0, 0.0]);
        let near = |norm| nearest(norm, &point, &slope, 0.3, 0.0, 1.0);
        let close = |a: Vec<f64>, b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(near(Norm::Linf), [0.1, -0.1, 0.0]));
        assert!(close(near(Norm::L2), [0.06, -0.12, 0.0]));
        assert!(close(near(Norm::L1), [0.0, -0.15, 0.0]));
    }

    #[test]
    fn a_bound_hands_the_rest_to_the_others() {
        let (point, slope) = ([0.95, 0.5], [1.0, 1.0]);
        let near = nearest(Norm::Linf, &point, &slope, 0.3, 0.0, 1.0);
        assert!((near[0] - 0.05).abs() < 1e-12 && (near[1] - 0.25).abs() < 1e-12);
        // Out of reach: both go to their bounds.
        let near = nearest(Norm::L2, &point, &slope, 3.0, 0.0, 1.0);
        assert!((near[0] - 0.05).abs() < 1e-12 && (near[1] - 0.5).abs() < 1e-12);
    }

    #[test]
    fn no_slope_no_change() {
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            assert_eq!(nearest(norm, &[0.2, 0.7], &[0.0, 0.0], 1.0, 0.0, 1.0), [0.0, 0.0]);
            assert_eq!(nearest(norm, &[0.2, 0.7], &[1.0, 2.0], 0.0, 0.0, 1.0), [0.0, 0.0]);
        }
    }

    proptest! {
        #[test]
        fn it_reaches_the_plane_and_nothing_shorter_does(
            point in prop::collection::vec(0.0..1.0f64, 6),
            slope in prop::collection::vec(-2.0..2.0f64, 6),
            other in prop::collection::vec(0.0..1.0f64, 6),
            norm in prop_oneof![Just(Norm::Linf), Just(Norm::L2), Just(Norm::L1)],
        ) {
            // `other` is a feasible point of the plane it defines.
            let change: Vec<f64> = other.iter().zip(&point).map(|(o, p)| o - p).collect();
            let rise = dot(&slope, &change);
            let found = nearest(norm, &point, &slope, rise, 0.0, 1.0);
            prop_assert!((dot(&slope, &found) - rise).abs() < 1e-9);
            for (z, d) in point.iter().zip(&found) {
                prop_assert!((-1e-12..=1.0 + 1e-12).contains(&(z + d)));
            }
            prop_assert!(norm.length(&found) <= norm.length(&change) + 1e-9);
        }
    }
}
