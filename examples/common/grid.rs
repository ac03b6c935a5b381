//! Pictures of attacked images: what each model saw and what it made of it.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use sat::{
    attack::{Attack, Goal, Norm, ThreatModel, Victim},
    train::data::ImageSet,
};

use super::canvas::{Area, DrawError, FONT, INK, PALE_INK, PictureError, SCALE, save_png};

/// A sample that every model is shown.
pub(crate) struct Sample {
    /// `C x H x W` values in `[0, 1]`.
    pub(crate) image: Vec<f32>,
    /// Its true class.
    pub(crate) label: usize,
}

/// One model and its attacked images, one for each sample.
pub(crate) struct ModelColumn {
    /// What the heading calls it.
    pub(crate) name: String,
    /// Predicted class of each clean sample.
    pub(crate) clean_predictions: Vec<usize>,
    /// `C x H x W` values in `[0, 1]`.
    pub(crate) adversarial: Vec<Vec<f32>>,
    /// Predicted class of each attacked sample.
    pub(crate) adversarial_predictions: Vec<usize>,
}

/// The data of a picture.
pub(crate) struct Grid<'a> {
    /// Heading.
    pub(crate) title: &'a str,
    /// Channels (1 or 3), height and width of the images.
    pub(crate) shape: [usize; 3],
    /// The name of each class.
    pub(crate) class_names: &'a [String],
    /// The change of a pixel that is drawn as black or white: eps of the attack for Linf.
    pub(crate) full_scale: f64,
    /// One row each.
    pub(crate) samples: &'a [Sample],
    /// Three columns each.
    pub(crate) models: &'a [ModelColumn],
}

// All lengths are in pixels of the file.
const MARGIN: i32 = 20;
const TITLE_HEIGHT: i32 = 46;
const HEADING_HEIGHT: i32 = 56;
const CAPTION_HEIGHT: i32 = 64;
const LABEL_HEIGHT: i32 = 20;
const ROW_LABEL_WIDTH: i32 = 104;
/// Leaves room for the caption where there is one model.
const MIN_WIDTH: i32 = 520;
const GAP: i32 = 12;
const MODEL_GAP: i32 = 36;
/// Images are enlarged by a whole number to at least this many pixels.
const MIN_CELL: usize = 84;

const RIGHT: RGBColor = RGBColor(0x1a, 0x7f, 0x37);
const WRONG: RGBColor = RGBColor(0xc6, 0x28, 0x28);

/// Writes a PNG with a row for each sample and, for each model, the clean image, the perturbation
/// and the attacked image, under the class that the model predicts (green if right, red if wrong).
pub(crate) fn picture_grid(path: &Path, grid: &Grid<'_>) -> Result<(), PictureError> {
    check(grid).map_err(|what| PictureError::BadInput { path: path.to_owned(), what })?;
    let [_, height, width] = grid.shape;
    let zoom = MIN_CELL.div_ceil(height.max(width));
    let (cell_width, cell_height) = ((width * zoom) as i32, (height * zoom) as i32);
    let model_width = 3 * cell_width + 2 * GAP;
    let row_height = LABEL_HEIGHT + cell_height + GAP;
    let columns = grid.models.len() as i32 * (model_width + MODEL_GAP) - MODEL_GAP;
    let total_width = (2 * MARGIN + ROW_LABEL_WIDTH + columns).max(MIN_WIDTH);
    let top = MARGIN + TITLE_HEIGHT + HEADING_HEIGHT;
    let total_height = top + grid.samples.len() as i32 * row_height + CAPTION_HEIGHT;

    save_png(path, (total_width as u32, total_height as u32), |area| {
        area.fill(&WHITE)?;
        let title_at = (total_width / 2, MARGIN + 8);
        text(area, grid.title, title_at, 26, INK, HPos::Center)?;
        for (row, sample) in grid.samples.iter().enumerate() {
            let middle = top + row as i32 * row_height + LABEL_HEIGHT + cell_height / 2;
            let name = &grid.class_names[sample.label];
            text(area, name, (MARGIN + ROW_LABEL_WIDTH - 14, middle), 18, INK, HPos::Right)?;
        }
        for (column, model) in grid.models.iter().enumerate() {
            let left = MARGIN + ROW_LABEL_WIDTH + column as i32 * (model_width + MODEL_GAP);
            let lefts = [0, 1, 2].map(|i| left + i * (cell_width + GAP));
            let heading_at = (left + model_width / 2, top - HEADING_HEIGHT + 8);
            text(area, &model.name, heading_at, 21, INK, HPos::Center)?;
            let y = (top - HEADING_HEIGHT + 23) * SCALE;
            let line = [(left * SCALE, y), ((left + model_width) * SCALE, y)];
            area.draw(&PathElement::new(line, INK.mix(0.35).stroke_width(SCALE as u32)))?;
            for (left, what) in lefts.into_iter().zip(["clean", "perturbation", "attacked"]) {
                let at = (left + cell_width / 2, top - HEADING_HEIGHT + 37);
                text(area, what, at, 15, PALE_INK, HPos::Center)?;
            }
            for (row, sample) in grid.samples.iter().enumerate() {
                let y = top + row as i32 * row_height;
                let adversarial = &model.adversarial[row];
                let predict = |left: i32, predicted: usize| {
                    let color = if predicted == sample.label { RIGHT } else { WRONG };
                    let at = (left + cell_width / 2, y + LABEL_HEIGHT / 2 - 1);
                    text(area, &grid.class_names[predicted], at, 16, color, HPos::Center)
                };
                predict(lefts[0], model.clean_predictions[row])?;
                predict(lefts[2], model.adversarial_predictions[row])?;
                let change: Vec<f32> = sample
                    .image
                    .iter()
                    .zip(adversarial)
                    .map(|(x, adv)| 0.5 + 0.5 * (adv - x) / grid.full_scale as f32)
                    .collect();
                for (left, image) in lefts.into_iter().zip([&sample.image, &change, adversarial]) {
                    draw_image(area, image, grid.shape, zoom, (left, y + LABEL_HEIGHT))?;
                }
            }
        }
        let scale = fraction(grid.full_scale);
        let caption = [
            "Above an image: the class that the model predicts, green if right, red if wrong.",
            &format!("Perturbation: grey is no change, white +{scale}, black -{scale}."),
        ];
        for (line, text_line) in (0..).zip(caption) {
            let at = (total_width / 2, total_height - CAPTION_HEIGHT + 18 + 20 * line);
            text(area, text_line, at, 15, PALE_INK, HPos::Center)?;
        }
        Ok(())
    })
}

fn check(grid: &Grid<'_>) -> Result<(), String> {
    let [channels, height, width] = grid.shape;
    if !matches!(channels, 1 | 3) || height == 0 || width == 0 {
        return Err(format!(
            "images of {channels} x {height} x {width}; only grey and RGB are drawn"
        ));
    }
    if grid.samples.is_empty() || grid.models.is_empty() {
        return Err("no samples or no models".to_owned());
    }
    if !(grid.full_scale.is_finite() && grid.full_scale > 0.0) {
        return Err(format!("full scale {} of the perturbation is not above 0", grid.full_scale));
    }
    let count = grid.samples.len();
    for ModelColumn { name, clean_predictions, adversarial, adversarial_predictions } in grid.models
    {
        if [clean_predictions.len(), adversarial.len(), adversarial_predictions.len()] != [count; 3]
        {
            return Err(format!("{name} does not have {count} predictions and attacked images"));
        }
    }
    let models = || grid.models.iter();
    let mut images =
        grid.samples.iter().map(|s| &s.image).chain(models().flat_map(|m| &m.adversarial));
    if images.any(|image| image.len() != channels * height * width) {
        return Err(format!("an image is not {channels} x {height} x {width}"));
    }
    let predictions =
        models().flat_map(|m| m.clean_predictions.iter().chain(&m.adversarial_predictions));
    let classes = grid.class_names.len();
    match grid.samples.iter().map(|s| &s.label).chain(predictions).find(|&&class| class >= classes)
    {
        Some(class) => Err(format!("class {class} has no name")),
        None => Ok(()),
    }
}

fn text(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: i32,
    color: RGBColor,
    align: HPos,
) -> Result<(), DrawError> {
    let style = (FONT, size * SCALE).into_font().color(&color).pos(Pos::new(align, VPos::Center));
    area.draw(&Text::new(text, (at.0 * SCALE, at.1 * SCALE), style))
}

/// Each value becomes a square of `zoom x zoom` pixels, inside a thin frame.
fn draw_image(
    area: &Area<'_>,
    image: &[f32],
    [channels, height, width]: [usize; 3],
    zoom: usize,
    (left, top): (i32, i32),
) -> Result<(), DrawError> {
    let byte = |channel: usize, y: usize, x: usize| {
        // A cast saturates, and makes 0 of NaN.
        (255.0 * image[(channel * height + y) * width + x]).round() as u8
    };
    let zoom = zoom * SCALE as usize;
    let (left, top) = (left * SCALE, top * SCALE);
    let (right, bottom) = (left + (width * zoom) as i32, top + (height * zoom) as i32);
    let frame = [(left - SCALE, top - SCALE), (right + SCALE - 1, bottom + SCALE - 1)];
    area.draw(&Rectangle::new(frame, INK.mix(0.25).filled()))?;
    for y in 0..height * zoom {
        for x in 0..width * zoom {
            let [r, g, b] = [0, 1, 2].map(|c| byte(c.min(channels - 1), y / zoom, x / zoom));
            area.draw_pixel((left + x as i32, top + y as i32), &RGBColor(r, g, b))?;
        }
    }
    Ok(())
}

/// `8/255` where that is exact to reading, else the decimal.
fn fraction(value: f64) -> String {
    let steps = value * 255.0;
    match (steps - steps.round()).abs() < 1e-3 && steps >= 0.5 {
        true => format!("{steps:.0}/255"),
        false => format!("{value:.3}"),
    }
}

/// Classes that [`attacked_images`] shows.
const CLASSES: usize = 6;

/// Attacks the first image of each of the first classes and draws what each model makes of it.
pub(crate) fn attacked_images(
    path: &Path,
    title: &str,
    (set, device): (&ImageSet, &Device),
    attack: &dyn Attack,
    (norm, eps): (Norm, f64),
    models: &[(String, Victim<'_>)],
) -> Result<(), Box<dyn std::error::Error>> {
    let first = |class| set.labels().iter().position(|label| usize::from(*label) == class);
    let indices: Vec<usize> = (0..set.classes().min(CLASSES)).filter_map(first).collect();
    let (images, labels) = set.batch(&indices, device);
    let pixels = |images: Tensor<4>| -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
        let size = images.dims()[1..].iter().product();
        let values = images.into_data().try_into_vec::<f32>()?;
        Ok(values.chunks(size).map(<[f32]>::to_vec).collect())
    };
    let mut columns = Vec::new();
    for (name, victim) in models {
        let goal = Goal::untargeted(labels.clone());
        let attacked = attack.run(victim, images.clone(), goal, &ThreatModel::new(norm, eps))?;
        columns.push(ModelColumn {
            name: name.clone(),
            clean_predictions: victim.predict(images.clone())?,
            adversarial: pixels(attacked.images)?,
            adversarial_predictions: attacked.predictions,
        });
    }
    let sample = |(image, &label)| Sample { image, label };
    let samples: Vec<Sample> = pixels(images)?.into_iter().zip(&labels).map(sample).collect();
    let grid = Grid {
        title,
        shape: set.shape(),
        class_names: set.class_names(),
        full_scale: eps,
        samples: &samples,
        models: &columns,
    };
    Ok(picture_grid(path, &grid)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(image: Vec<f32>, predicted: usize) -> ModelColumn {
        ModelColumn {
            name: "model".into(),
            clean_predictions: vec![0],
            adversarial: vec![image],
            adversarial_predictions: vec![predicted],
        }
    }

    fn draw(path: &Path, image: Vec<f32>, model: ModelColumn) -> Result<(), PictureError> {
        let grid = Grid {
            title: "title",
            shape: [1, 2, 2],
            class_names: &["a".to_owned(), "b".to_owned()],
            full_scale: 8.0 / 255.0,
            samples: &[Sample { image, label: 0 }],
            models: &[model],
        };
        picture_grid(path, &grid)
    }

    #[test]
    fn pixels_are_where_they_belong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grid.png");
        let adversarial = vec![0.0, 1.0, 0.5 + 8.0 / 255.0, 0.5 - 8.0 / 255.0];
        draw(&path, vec![0.0, 1.0, 0.5, 0.5], model(adversarial, 1)).unwrap();
        let picture = image::open(&path).unwrap().into_rgb8();
        let (left, top) =
            (MARGIN + ROW_LABEL_WIDTH, MARGIN + TITLE_HEIGHT + HEADING_HEIGHT + LABEL_HEIGHT);
        let quarters = |cell: i32| {
            [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(x, y)| {
                let at = (left + cell * (84 + GAP) + 21 + 42 * x, top + 21 + 42 * y);
                picture.get_pixel(at.0 as u32, at.1 as u32).0
            })
        };
        assert_eq!(quarters(0), [[0; 3], [255; 3], [128; 3], [128; 3]]);
        assert_eq!(quarters(1), [[128; 3], [128; 3], [255; 3], [0; 3]]);
        assert_eq!(quarters(2), [[0; 3], [255; 3], [136; 3], [120; 3]]);
    }

    #[test]
    fn misfits_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grid.png");
        let good = || vec![0.5; 4];
        let mut short = model(good(), 0);
        short.clean_predictions.clear();
        for (image, model) in [
            (vec![0.5; 3], model(good(), 0)),
            (good(), model(vec![], 0)),
            (good(), model(good(), 2)),
            (good(), short),
        ] {
            let error = draw(&path, image, model).unwrap_err();
            assert!(matches!(error, PictureError::BadInput { .. }), "{error}");
        }
    }

    #[test]
    fn scale_reads_as_people_write_it() {
        assert_eq!(fraction(8.0 / 255.0), "8/255");
        assert_eq!(fraction(0.1), "0.100");
        assert_eq!(fraction(1e-4), "0.000");
    }
}
