//! Draws f, f' and f'' of every curve, for docs/activations.md.
//!
//! ```text
//! cargo run --release --example curves -- --out docs/images/curves.png
//! ```

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::canvas::{FONT, INK, PALE_INK, SCALE, save_png};
use plotters::prelude::*;
use sat::core::Curve;

mod common;

/// Draws every curve with its first and second derivative.
#[derive(Parser)]
struct Args {
    /// Where to write the picture.
    #[arg(long, default_value = "docs/images/curves.png")]
    out: PathBuf,
}

/// What a panel shows of x, and of f, f' and f''.
const X: Range<f64> = -4.0..7.0;
const Y: Range<f64> = -1.5..7.0;
/// Points on a line.
const POINTS: u32 = 2200;
/// Colours of f, f' and f'' that colour-blind readers can tell apart.
const COLORS: [RGBColor; 3] =
    [RGBColor(0x00, 0x72, 0xb2), RGBColor(0xd5, 0x5e, 0x00), RGBColor(0x00, 0x9e, 0x73)];

fn main() -> ExitCode {
    common::exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let columns = 4;
    let rows = Curve::ALL.len().div_ceil(columns);
    save_png(&args.out, (1200, 250 * rows as u32 + 40), |area| {
        area.fill(&WHITE)?;
        let (legend, panels) = area.split_vertically(40 * SCALE);
        for (i, (color, name)) in COLORS.iter().zip(["f", "f'", "f''"]).enumerate() {
            let x = (40 + 110 * i as i32) * SCALE;
            let line = [(x, 24 * SCALE), (x + 36 * SCALE, 24 * SCALE)];
            legend.draw(&PathElement::new(line, color.stroke_width(3 * SCALE as u32)))?;
            let style = (FONT, 20 * SCALE).into_font().color(&INK);
            legend.draw(&Text::new(name, (x + 46 * SCALE, 13 * SCALE), style))?;
        }
        for (panel, curve) in panels.split_evenly((rows, columns)).iter().zip(Curve::ALL) {
            let mut chart = ChartBuilder::on(panel)
                .caption(curve.to_string(), (FONT, 19 * SCALE).into_font().color(&INK))
                .margin(8 * SCALE)
                .x_label_area_size(22 * SCALE)
                .y_label_area_size(30 * SCALE)
                .build_cartesian_2d(X, Y)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(INK.mix(0.12).stroke_width(SCALE as u32))
                .axis_style(INK.mix(0.6).stroke_width(SCALE as u32))
                .label_style((FONT, 14 * SCALE).into_font().color(&PALE_INK))
                .x_labels(6)
                .y_labels(5)
                .y_label_formatter(&|v| format!("{v:.0}"))
                .x_label_formatter(&|v| format!("{v:.0}"))
                .draw()?;
            let second = |x: f64| {
                let h = 1e-4;
                (curve.derivative(x + h) - curve.derivative(x - h)) / (2.0 * h)
            };
            let functions: [&dyn Fn(f64) -> f64; 3] =
                [&|x| curve.value(x), &|x| curve.derivative(x), &second];
            for (f, color) in functions.into_iter().zip(COLORS) {
                let step = (X.end - X.start) / f64::from(POINTS);
                let points = (0..=POINTS).map(|i| X.start + f64::from(i) * step);
                let points: Vec<_> = points.map(|x| (x, f(x))).collect();
                // A line ends where it leaves the panel.
                for line in points.split(|(_, y)| !Y.contains(y)) {
                    let style = color.stroke_width(2 * SCALE as u32);
                    chart.draw_series(LineSeries::new(line.iter().copied(), style))?;
                }
            }
        }
        Ok(())
    })?;
    println!("| curve | max \\|f''\\| |\n|---|--:|");
    for curve in Curve::ALL {
        println!("| {curve} | {:.3} |", curve.curvature_bound());
    }
    println!("\nwrote {}", args.out.display());
    Ok(())
}
