//! Makes the Fashion-MNIST subset that `sat-train` embeds (`crates/sat-train/assets`).
//!
//! ```text
//! cargo run --release --example make_subset -- --source /usr/share/datasets/fashion-mnist
//! ```
//!
//! Takes the first 600 training and 100 test images of each class and keeps their order. The same
//! source gives the same files, byte for byte.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Parser;
use flate2::{Compression, GzBuilder};
use sat_train::data::{ImageSet, Split, fashion_mnist};

#[derive(Parser)]
#[command(about = "Makes the Fashion-MNIST subset that sat-train embeds")]
struct Args {
    /// Folder with the four official IDX files, gzip or plain.
    #[arg(long)]
    source: PathBuf,
    /// Folder to write to.
    #[arg(long, default_value = "crates/sat-train/assets/fashion-mnist-6k")]
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    fs::create_dir_all(&args.out)?;
    for (split, prefix, per_class) in [(Split::Train, "train", 600), (Split::Test, "t10k", 100)] {
        let set = first_per_class(&fashion_mnist(&args.source, split)?, per_class);
        let images: Vec<u8> = (0..set.len()).flat_map(|i| set.image(i)).copied().collect();
        let labels: Vec<u8> =
            set.labels().iter().map(|&label| u8::try_from(label)).collect::<Result<_, _>>()?;
        let count = u32::try_from(set.len())?;
        write_idx(
            &args.out.join(format!("{prefix}-images-idx3-ubyte.gz")),
            &[count, 28, 28],
            &images,
        )?;
        write_idx(&args.out.join(format!("{prefix}-labels-idx1-ubyte.gz")), &[count], &labels)?;
    }
    Ok(())
}

fn first_per_class(set: &ImageSet, per_class: usize) -> ImageSet {
    let mut counts = vec![0; set.classes()];
    let chosen: Vec<usize> = (0..set.len())
        .filter(|&index| {
            let count = &mut counts[usize::from(set.labels()[index])];
            *count += 1;
            *count <= per_class
        })
        .collect();
    set.subset(&chosen)
}

fn write_idx(path: &Path, dims: &[u32], data: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    // No file name, no time and a fixed operating system in the header.
    let mut out = GzBuilder::new().operating_system(255).write(Vec::new(), Compression::best());
    for word in std::iter::once(0x0800 | u32::try_from(dims.len())?).chain(dims.iter().copied()) {
        out.write_all(&word.to_be_bytes())?;
    }
    out.write_all(data)?;
    let bytes = out.finish()?;
    fs::write(path, &bytes)?;
    println!("{}: {} bytes", path.display(), bytes.len());
    Ok(())
}
