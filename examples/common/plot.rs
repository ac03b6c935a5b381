//! Curves of robust accuracy against the size of the perturbation.

use std::path::Path;

use plotters::prelude::*;

use super::canvas::{FONT, INK, PALE_INK, PictureError, SCALE, save_png};

/// One curve.
pub(crate) struct Series {
    /// What the legend calls it.
    pub(crate) name: String,
    /// Perturbation sizes, in units of images in `[0, 1]`.
    pub(crate) eps: Vec<f64>,
    /// Robust accuracy at each, from 0 to 1.
    pub(crate) accuracy: Vec<f64>,
}

/// Okabe and Ito's colours, which colour-blind readers can tell apart, the palest left out.
const COLORS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
];

/// Writes a plot of robust accuracy in percent against eps to a PNG of 1000 x 640 pixels.
pub(crate) fn accuracy_vs_eps(
    path: &Path,
    title: &str,
    series: &[Series],
) -> Result<(), PictureError> {
    let bad = |what: String| PictureError::BadInput { path: path.to_owned(), what };
    for Series { name, eps, accuracy } in series {
        if eps.len() != accuracy.len() {
            return Err(bad(format!("{name}: {} eps, {} accuracies", eps.len(), accuracy.len())));
        }
        if !eps.iter().chain(accuracy).all(|v| v.is_finite()) {
            return Err(bad(format!("{name}: a value is not finite")));
        }
    }
    let all_eps = || series.iter().flat_map(|s| &s.eps).copied();
    let max_eps = all_eps().fold(0.0, f64::max);
    if max_eps <= 0.0 {
        return Err(bad("no eps above 0".to_owned()));
    }

    let line_width = 3 * SCALE as u32;
    save_png(path, (1000, 640), |area| {
        area.fill(&WHITE)?;
        let area = area.margin(14 * SCALE, 18 * SCALE, 14 * SCALE, 30 * SCALE);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 28 * SCALE).into_font().color(&INK))
            .x_label_area_size(58 * SCALE)
            .y_label_area_size(72 * SCALE)
            .build_cartesian_2d(0.0..max_eps * 1.02, 0.0..100.0_f64)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12).stroke_width(SCALE as u32))
            .axis_style(INK.mix(0.6).stroke_width(SCALE as u32))
            .label_style((FONT, 19 * SCALE).into_font().color(&PALE_INK))
            .axis_desc_style((FONT, 21 * SCALE).into_font().color(&INK))
            .x_desc("eps (images in [0, 1])")
            .y_desc("robust accuracy (%)")
            .x_labels(8)
            .y_labels(6)
            .y_label_formatter(&|v| format!("{v:.0}"))
            .draw()?;
        for (series, color) in series.iter().zip(COLORS.iter().cycle()) {
            let points = || series.eps.iter().zip(&series.accuracy).map(|(&x, &y)| (x, 100.0 * y));
            chart
                .draw_series(LineSeries::new(points(), color.stroke_width(line_width)))?
                .label(&series.name)
                .legend(move |(x, y)| {
                    EmptyElement::at((x, y - 3 * SCALE))
                        + PathElement::new(
                            [(0, 0), (28 * SCALE, 0)],
                            color.stroke_width(line_width),
                        )
                        + Circle::new((14 * SCALE, 0), 5 * SCALE, color.filled())
                });
            chart
                .draw_series(points().map(|point| Circle::new(point, 5 * SCALE, color.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .legend_area_size(40 * SCALE)
            .margin(14 * SCALE)
            .background_style(WHITE.mix(0.9))
            .border_style(INK.mix(0.2).stroke_width(SCALE as u32))
            .label_font((FONT, 20 * SCALE).into_font().color(&INK))
            .draw()?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_is_written_and_bad_data_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/plot.png");
        let series = |eps: &[f64], accuracy: &[f64]| {
            [Series { name: "ReLU".into(), eps: eps.to_vec(), accuracy: accuracy.to_vec() }]
        };
        accuracy_vs_eps(&path, "title", &series(&[0.0, 0.1], &[0.9, 0.2])).unwrap();
        assert_eq!(image::image_dimensions(&path).unwrap(), (1000, 640));
        for bad in [series(&[0.0], &[0.9, 0.2]), series(&[0.1], &[f64::NAN]), series(&[], &[])] {
            let error = accuracy_vs_eps(&path, "title", &bad).unwrap_err();
            assert!(matches!(error, PictureError::BadInput { .. }), "{error}");
        }
        // A folder stands where the file should go.
        let error = accuracy_vs_eps(dir.path(), "t", &series(&[0.1], &[0.5])).unwrap_err();
        assert!(matches!(error, PictureError::Save { .. }), "{error}");
    }
}
