//! A picture in memory, drawn on with plotters and saved as PNG.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Once;

use epaint_default_fonts::UBUNTU_LIGHT;
use image::RgbImage;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::prelude::{BitMapBackend, FontStyle};
use plotters::style::{RGBColor, register_font};

use super::output::{WriteError, write};

/// Text that does not stand in the way of the data.
pub(crate) const INK: RGBColor = RGBColor(0x26, 0x26, 0x26);
/// Secondary text.
pub(crate) const PALE_INK: RGBColor = RGBColor(0x6b, 0x6b, 0x6b);
/// The font family of all text.
pub(crate) const FONT: &str = "sat";

/// Why a picture was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PictureError {
    /// Plotters could not draw it.
    #[error("{}: cannot draw the picture: {reason}", path.display())]
    Draw {
        /// The file that was to be written.
        path: PathBuf,
        /// What plotters says.
        reason: String,
    },
    /// The data to draw do not fit together.
    #[error("{}: cannot draw the picture: {what}", path.display())]
    BadInput {
        /// The file that was to be written.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Save(#[from] WriteError),
}

/// The area that a drawing function gets.
pub(crate) type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
/// What plotters' drawing calls return as their error.
pub(crate) type DrawError =
    DrawingAreaErrorKind<<BitMapBackend<'static> as plotters::backend::DrawingBackend>::ErrorType>;

/// How much larger than the file the drawing is. Plotters places letters at whole pixels and smooths
/// thick lines badly; averaging down evens both out.
pub(crate) const SCALE: i32 = 2;

/// Draws a picture and writes it to `path` as `width x height` pixels, making its folder. The area to
/// draw on is [`SCALE`] times as large.
///
/// It is drawn in memory first: plotters' own file output panics when a file can't be written.
pub(crate) fn save_png(
    path: &Path,
    (width, height): (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Result<(), DrawError>,
) -> Result<(), PictureError> {
    register_fonts();
    let large = (width * SCALE as u32, height * SCALE as u32);
    let mut pixels = RgbImage::new(large.0, large.1);
    {
        let area = BitMapBackend::with_buffer(&mut pixels, large).into_drawing_area();
        draw(&area).and_then(|()| area.present()).map_err(|error| PictureError::Draw {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    }
    let mut bytes = Vec::new();
    image::imageops::thumbnail(&pixels, width, height)
        .write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png)
        .map_err(|error| PictureError::Draw { path: path.to_owned(), reason: error.to_string() })?;
    Ok(write(path, &bytes)?)
}

fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The bytes are compiled in and known to be a font. If they were not, drawing text would say so.
        let _ = register_font(FONT, FontStyle::Normal, UBUNTU_LIGHT);
    });
}
