//! Pictures of the loss around an image.

use std::path::Path;

use plotters::prelude::*;

use super::canvas::{FONT, INK, PALE_INK, PictureError, SCALE, save_png};

/// The loss on a square grid around one image.
pub(crate) struct Surface {
    /// What stands above it.
    pub(crate) name: String,
    /// The loss, row by row from the bottom; all rows have the same length.
    pub(crate) rows: Vec<Vec<f64>>,
}

const SIDE: i32 = 260;
const GAP: i32 = 24;
const HEAD: i32 = 34;
const TITLE: i32 = 50;
const FOOT: i32 = 58;

/// Writes the surfaces side by side, on one scale of colours from the least loss (white) to the largest.
pub(crate) fn surfaces(
    path: &Path,
    title: &str,
    axes: &str,
    surfaces: &[Surface],
) -> Result<(), PictureError> {
    let bad = |what: &str| PictureError::BadInput { path: path.to_owned(), what: what.to_owned() };
    let all = || surfaces.iter().flat_map(|surface| surface.rows.iter().flatten().copied());
    if !all().all(f64::is_finite) {
        return Err(bad("a loss is not finite"));
    }
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    if high <= low {
        return Err(bad("the loss is the same everywhere"));
    }
    let width = GAP + surfaces.len() as i32 * (SIDE + GAP);
    let height = TITLE + HEAD + SIDE + FOOT;
    save_png(path, (width as u32, height as u32), |area| {
        area.fill(&WHITE)?;
        let text = |size: i32| (FONT, size * SCALE).into_font();
        area.draw(&Text::new(title, (GAP * SCALE, 16 * SCALE), text(24).color(&INK)))?;
        for (i, surface) in surfaces.iter().enumerate() {
            let left = GAP + i as i32 * (SIDE + GAP);
            let at = (left * SCALE, (TITLE + 8) * SCALE);
            area.draw(&Text::new(surface.name.as_str(), at, text(19).color(&INK)))?;
            let rows = surface.rows.len() as i32;
            for (j, row) in surface.rows.iter().enumerate() {
                let columns = row.len() as i32;
                for (k, loss) in row.iter().enumerate() {
                    let edge = |n: i32, of: i32| SIDE * SCALE * n / of;
                    let (j, k) = (rows - 1 - j as i32, k as i32);
                    let corner = |j: i32, k: i32| {
                        let top = (TITLE + HEAD) * SCALE;
                        (left * SCALE + edge(k, columns), top + edge(j, rows))
                    };
                    let share = (loss - low) / (high - low);
                    let shade = |full: f64| (255.0 - share * (255.0 - full)) as u8;
                    let color = RGBColor(shade(0.0), shade(64.0), shade(140.0));
                    area.draw(&Rectangle::new(
                        [corner(j, k), corner(j + 1, k + 1)],
                        color.filled(),
                    ))?;
                }
            }
        }
        let range = format!("cross-entropy from {low:.2} (white) to {high:.2}");
        for (i, line) in [axes, &range].into_iter().enumerate() {
            let at = (GAP * SCALE, (TITLE + HEAD + SIDE + 10 + 22 * i as i32) * SCALE);
            area.draw(&Text::new(line, at, text(17).color(&PALE_INK)))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surface_is_drawn_on_its_own_square_and_bad_losses_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("surface.png");
        let surface =
            |rows: [[f64; 2]; 2]| Surface { name: "x".into(), rows: rows.map(Vec::from).into() };
        surfaces(&path, "t", "a", &[surface([[0.0, 1.0], [1.0, 2.0]])]).unwrap();
        let picture = image::open(&path).unwrap().to_rgb8();
        // The least loss lies below on the left, the largest above on the right.
        let middle = |quarter: i32| (SIDE * quarter / 4) as u32;
        let pixel =
            |x, y| picture.get_pixel(GAP as u32 + middle(x), (TITLE + HEAD) as u32 + middle(y)).0;
        assert_eq!(pixel(1, 3), [255, 255, 255]);
        assert_eq!(pixel(3, 1), [0, 64, 140]);
        for bad in [[[0.0, f64::NAN]; 2], [[1.0, 1.0]; 2]] {
            let error = surfaces(&path, "t", "a", &[surface(bad)]).unwrap_err();
            assert!(matches!(error, PictureError::BadInput { .. }), "{error}");
        }
    }
}
