//! The shape of a zone. Pure; knows nothing of zones beyond their corners.

/// Four corners, each x and y, in the order they are connected; the last joins the first.
pub type Corners = [[f64; 2]; 4];

/// Why four corners are no zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolygonFault {
    #[error("zone coordinates must be finite numbers")]
    NotFinite,
    #[error("the edges of the zone cross or touch: give the corners in the order they are connected")]
    EdgesCross,
    #[error("the zone has no area: its corners lie on one line")]
    NoArea,
}

/// Checks that the corners make a simple quadrilateral with area.
///
/// Orientation tests are exact (adaptive-precision predicates of J. R. Shewchuk, "Adaptive Precision
/// Floating-Point Arithmetic and Fast Robust Geometric Predicates", 1997), so no epsilon decides.
pub fn check_polygon(corners: &Corners) -> Result<(), PolygonFault> {
    if corners.iter().flatten().any(|value| !value.is_finite()) {
        return Err(PolygonFault::NotFinite);
    }
    let [a, b, c, d] = *corners;
    let turns = [turn(a, b, c), turn(b, c, d), turn(c, d, a), turn(d, a, b)];
    if turns.iter().all(|turn| *turn == 0) {
        return Err(PolygonFault::NoArea);
    }
    let repeated = (0..4).any(|i| corners[i + 1..].contains(&corners[i]));
    let folds_back = (0..4).any(|i| {
        let (before, corner, after) = (corners[(i + 3) % 4], corners[i], corners[(i + 1) % 4]);
        turn(before, corner, after) == 0 && !between(before, corner, after)
    });
    if repeated || folds_back || meet(a, b, c, d) || meet(b, c, d, a) {
        return Err(PolygonFault::EdgesCross);
    }
    Ok(())
}

/// +1 left, -1 right, 0 straight on.
fn turn(a: [f64; 2], b: [f64; 2], c: [f64; 2]) -> i8 {
    let point = |p: [f64; 2]| robust::Coord { x: p[0], y: p[1] };
    let area = robust::orient2d(point(a), point(b), point(c));
    i8::from(area > 0.0) - i8::from(area < 0.0)
}

/// Whether `corner`, on the line through `before` and `after`, lies between them.
fn between(before: [f64; 2], corner: [f64; 2], after: [f64; 2]) -> bool {
    (0..2).all(|axis| {
        let (low, high) = (before[axis].min(after[axis]), before[axis].max(after[axis]));
        (low..=high).contains(&corner[axis])
    })
}

/// Whether the segments `ab` and `cd` have a point in common.
fn meet(a: [f64; 2], b: [f64; 2], c: [f64; 2], d: [f64; 2]) -> bool {
    let (abc, abd, cda, cdb) = (turn(a, b, c), turn(a, b, d), turn(c, d, a), turn(c, d, b));
    if abc * abd < 0 && cda * cdb < 0 {
        return true;
    }
    (abc == 0 && between(a, c, b))
        || (abd == 0 && between(a, d, b))
        || (cda == 0 && between(c, a, d))
        || (cdb == 0 && between(c, b, d))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tells_zones_from_others() {
        let square = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]];
        assert_eq!(check_polygon(&square), Ok(()));
        let dart = [[0.0, 0.0], [4.0, 0.0], [1.0, 1.0], [0.0, 4.0]];
        assert_eq!(check_polygon(&dart), Ok(()));
        let bow_tie = [[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]];
        assert_eq!(check_polygon(&bow_tie), Err(PolygonFault::EdgesCross));
        let line = [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]];
        assert_eq!(check_polygon(&line), Err(PolygonFault::NoArea));
        let point = [[5.0, 5.0]; 4];
        assert_eq!(check_polygon(&point), Err(PolygonFault::NoArea));
        let triangle_with_repeat = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]];
        assert_eq!(check_polygon(&triangle_with_repeat), Err(PolygonFault::EdgesCross));
        let corner_on_edge = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [2.0, 0.0]];
        assert_eq!(check_polygon(&corner_on_edge), Err(PolygonFault::EdgesCross));
        let spike = [[0.0, 0.0], [4.0, 0.0], [2.0, 0.0], [0.0, 4.0]];
        assert_eq!(check_polygon(&spike), Err(PolygonFault::EdgesCross));
        let straight_corner = [[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [0.0, 4.0]];
        assert_eq!(check_polygon(&straight_corner), Ok(()));
        let infinite = [[0.0, 0.0], [f64::INFINITY, 0.0], [1.0, 1.0], [0.0, 1.0]];
        assert_eq!(check_polygon(&infinite), Err(PolygonFault::NotFinite));
        let huge = [[-1e300, -1e300], [1e300, -1e300], [1e300, 1e300], [-1e300, 1e300]];
        assert_eq!(check_polygon(&huge), Ok(()));
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_where_the_walk_begins(
            corners in prop::array::uniform4(prop::array::uniform2(-4_i8..4)), turns in 0_usize..4, back: bool,
        ) {
            let corners = corners.map(|corner| corner.map(f64::from));
            let mut walked = corners;
            walked.rotate_left(turns);
            if back { walked.reverse(); }
            prop_assert_eq!(check_polygon(&corners), check_polygon(&walked));
        }

        #[test]
        fn convex_corners_around_a_centre_are_a_zone(
            x in -1e6..1e6_f64, y in -1e6..1e6_f64, radii in prop::array::uniform4(0.001..1e3_f64),
        ) {
            let corners = [[x + radii[0], y], [x, y + radii[1]], [x - radii[2], y], [x, y - radii[3]]];
            prop_assert_eq!(check_polygon(&corners), Ok(()));
        }
    }
}
