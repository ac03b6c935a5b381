//! Curves of accuracy.

use std::path::Path;

use plotters::prelude::*;

use super::canvas::{FONT, INK, PALE_INK, PictureError, SCALE, save_png};

/// One curve.
pub(crate) struct Series {
    /// What the legend calls it.
    pub(crate) name: String,
    /// Perturbation sizes or epochs, as the axis says.
    pub(crate) x: Vec<f64>,
    /// The accuracy at each, from 0 to 1.
    pub(crate) accuracy: Vec<f64>,
}

/// What accuracy is drawn against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Axis {
    /// The size of the perturbation, in units of images in `[0, 1]`.
    Eps,
    /// The epoch of the training.
    Epoch,
}

impl Axis {
    fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Eps => ("eps (images in [0, 1])", "robust accuracy (%)"),
            Self::Epoch => ("epoch", "accuracy (%)"),
        }
    }
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

/// Writes a plot of accuracy in percent to a PNG of 1000 x 640 pixels.
pub(crate) fn accuracy_plot(
    path: &Path,
    title: &str,
    axis: Axis,
    series: &[Series],
) -> Result<(), PictureError> {
    let bad = |what: String| PictureError::BadInput { path: path.to_owned(), what };
    let (x_label, y_label) = axis.labels();
    for Series { name, x, accuracy } in series {
        if x.len() != accuracy.len() {
            return Err(bad(format!("{name}: {} points, {} accuracies", x.len(), accuracy.len())));
        }
        if !x.iter().chain(accuracy).all(|v| v.is_finite()) {
            return Err(bad(format!("{name}: a value is not finite")));
        }
    }
    let max_x = series.iter().flat_map(|s| &s.x).copied().fold(0.0, f64::max);
    if max_x <= 0.0 {
        return Err(bad(format!("no {x_label} above 0")));
    }

    let line_width = 3 * SCALE as u32;
    save_png(path, (1000, 640), |area| {
        area.fill(&WHITE)?;
        let area = area.margin(14 * SCALE, 18 * SCALE, 14 * SCALE, 30 * SCALE);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 28 * SCALE).into_font().color(&INK))
            .x_label_area_size(58 * SCALE)
            .y_label_area_size(72 * SCALE)
            .build_cartesian_2d(0.0..max_x * 1.02, 0.0..100.0_f64)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12).stroke_width(SCALE as u32))
            .axis_style(INK.mix(0.6).stroke_width(SCALE as u32))
            .label_style((FONT, 19 * SCALE).into_font().color(&PALE_INK))
            .axis_desc_style((FONT, 21 * SCALE).into_font().color(&INK))
            .x_desc(x_label)
            .y_desc(y_label)
            .x_labels(8)
            .y_labels(6)
            .y_label_formatter(&|v| format!("{v:.0}"))
            .draw()?;
        for (series, color) in series.iter().zip(COLORS.iter().cycle()) {
            let points = || series.x.iter().zip(&series.accuracy).map(|(&x, &y)| (x, 100.0 * y));
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

/// One line of [`rows_plot`].
pub(crate) struct RowPoints {
    /// What stands before it.
    pub(crate) name: String,
    /// The accuracy of each seed, from 0 to 1.
    pub(crate) values: Vec<f64>,
    /// Their mean.
    pub(crate) mean: f64,
}

/// Writes a plot with a line for each row: a pale dot for each seed, a dark one for their mean.
pub(crate) fn rows_plot(
    path: &Path,
    title: &str,
    label: &str,
    rows: &[RowPoints],
) -> Result<(), PictureError> {
    let all = || rows.iter().flat_map(|row| &row.values).map(|value| 100.0 * value);
    let (low, high) =
        (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    if !(low.is_finite() && high.is_finite()) {
        return Err(PictureError::BadInput {
            path: path.to_owned(),
            what: "no row has a number".to_owned(),
        });
    }
    let height = 130 + 34 * rows.len() as u32;
    save_png(path, (1000, height), |area| {
        area.fill(&WHITE)?;
        let area = area.margin(14 * SCALE, 18 * SCALE, 14 * SCALE, 30 * SCALE);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 28 * SCALE).into_font().color(&INK))
            .x_label_area_size(58 * SCALE)
            .y_label_area_size(300 * SCALE)
            .build_cartesian_2d(low - 1.0..high + 1.0, -0.5..rows.len() as f64 - 0.5)?;
        let name = |y: &f64| {
            // The first row stands on top.
            let row = rows.len() as f64 - 1.0 - y;
            match rows.get(row.max(0.0) as usize) {
                Some(row) if (y - y.round()).abs() < 1e-6 => row.name.clone(),
                _ => String::new(),
            }
        };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12).stroke_width(SCALE as u32))
            .axis_style(INK.mix(0.6).stroke_width(SCALE as u32))
            .label_style((FONT, 19 * SCALE).into_font().color(&PALE_INK))
            .axis_desc_style((FONT, 21 * SCALE).into_font().color(&INK))
            .x_desc(label)
            .x_labels(8)
            .y_labels(2 * rows.len() + 1)
            .y_label_formatter(&name)
            .draw()?;
        for (i, row) in rows.iter().enumerate() {
            let y = (rows.len() - 1 - i) as f64;
            let dots = row.values.iter().map(|value| (100.0 * value, y));
            chart.draw_series(
                dots.map(|dot| Circle::new(dot, 5 * SCALE, COLORS[0].mix(0.35).filled())),
            )?;
            let mean = (100.0 * row.mean, y);
            chart.draw_series([Circle::new(mean, 7 * SCALE, COLORS[0].filled())])?;
        }
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
        let series = |x: &[f64], accuracy: &[f64]| {
            [Series { name: "ReLU".into(), x: x.to_vec(), accuracy: accuracy.to_vec() }]
        };
        for axis in [Axis::Eps, Axis::Epoch] {
            accuracy_plot(&path, "title", axis, &series(&[0.0, 0.1], &[0.9, 0.2])).unwrap();
        }
        assert_eq!(image::image_dimensions(&path).unwrap(), (1000, 640));
        for bad in [series(&[0.0], &[0.9, 0.2]), series(&[0.1], &[f64::NAN]), series(&[], &[])] {
            let error = accuracy_plot(&path, "title", Axis::Eps, &bad).unwrap_err();
            assert!(matches!(error, PictureError::BadInput { .. }), "{error}");
        }
        // A folder stands where the file should go.
        let error = accuracy_plot(dir.path(), "t", Axis::Eps, &series(&[0.1], &[0.5])).unwrap_err();
        assert!(matches!(error, PictureError::Save { .. }), "{error}");
    }
}
