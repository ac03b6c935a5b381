use std::path::Path;

use super::{DataError, ImageSet, Split};

/// JPEG and PNG files (`.jpg`, `.jpeg`, `.png`) in `dir/train/<class>/` or `dir/test/<class>/`, read
/// as RGB. All images must have one size.
///
/// The index of a class is the position of its folder's name in sorted order. Samples take turns
/// among the classes: the first file of each (in sorted order), then the second, so that the first
/// `n` samples are balanced.
///
/// # Errors
///
/// A folder or all images are missing, an image cannot be decoded or has another size, the whole is
/// above 2 GiB, or this build lacks the cargo feature `images`.
pub fn image_tree(dir: impl AsRef<Path>, split: Split) -> Result<ImageSet, DataError> {
    #[cfg(feature = "images")]
    return imp::read(&dir.as_ref().join(split.to_string()));
    #[cfg(not(feature = "images"))]
    {
        let _ = (dir, split);
        Err(DataError::MissingFeature { what: "reading image folders", feature: "images" })
    }
}

#[cfg(feature = "images")]
mod imp {
    use std::path::{Path, PathBuf};

    use super::super::listing::{entries, file_name, is_image};
    use super::super::source::check_size;
    use super::{DataError, ImageSet};

    pub(super) fn read(root: &Path) -> Result<ImageSet, DataError> {
        let missing = |wanted: &str| DataError::Missing {
            path: root.to_owned(),
            wanted: wanted.to_owned(),
            help: "lay the images out as train/<class>/<file>.png (or .jpg) and test/<class>/...",
        };
        if !root.is_dir() {
            return Err(missing("folder of this name"));
        }
        let classes: Vec<PathBuf> =
            entries(root)?.into_iter().filter(|path| path.is_dir()).collect();
        if classes.is_empty() {
            return Err(missing("class folders"));
        }

        let mut files = Vec::new();
        for (class, folder) in classes.iter().enumerate() {
            // More classes than labels can count: the set's own check reports it.
            let label = u16::try_from(class).unwrap_or(u16::MAX);
            let images = entries(folder)?.into_iter().filter(|path| is_image(path));
            files.extend(images.enumerate().map(|(rank, path)| (rank, label, path)));
        }
        files.sort();

        let mut size: Option<[u32; 2]> = None;
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for (_, label, path) in &files {
            let image = image::open(path)
                .map_err(|source| DataError::Decode { path: path.clone(), source: source.into() })?
                .into_rgb8();
            let (actual, expected) =
                (image.dimensions().into(), *size.get_or_insert(image.dimensions().into()));
            if actual != expected {
                return Err(DataError::SizeMismatch { path: path.clone(), expected, actual });
            }
            for channel in 0..3 {
                pixels.extend(image.as_raw().iter().skip(channel).step_by(3));
            }
            check_size(root, pixels.len() as u64)?;
            labels.push(*label);
        }
        let [width, height] = size.ok_or_else(|| missing("images"))?;
        let class_names = classes.iter().map(|path| file_name(path)).collect();
        let shape = [3, height as usize, width as usize];
        ImageSet::from_source(root.display(), pixels, shape, labels, class_names)
    }
}
