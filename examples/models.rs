//! Every network that has a name: what it costs for one image of its usual size.
//!
//! ```text
//! cargo run --release --example models
//! ```
//!
//! Counted from the layers; nothing is run and no weights are drawn.

use burn::tensor::Device;
use sat::models::ModelName;

fn main() {
    let device = Device::flex();
    println!("| name | image | parameters | GMAC | activations for training, MiB |");
    println!("|---|---|---|---|---|");
    for name in ModelName::ALL {
        let [height, width] = name.image_size();
        let cost = name.config().cost([height, width], &device);
        let mebibytes = cost.activations as f64 * 4.0 / f64::from(1 << 20);
        println!(
            "| {name} | {height} x {width} | {} | {:.3} | {mebibytes:.1} |",
            cost.parameters,
            cost.macs as f64 / 1e9
        );
    }
}
