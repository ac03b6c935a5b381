//! The forward passes of benches/models.rs in candle, with its own ResNet-50 (ReLU: it has no other) and
//! EfficientNet-B0.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::{
    efficientnet::{EfficientNet, MBConvConfig},
    resnet::resnet50,
};
use std::time::Instant;

fn main() -> Result<()> {
    let device = Device::Cpu;
    // Drawn at random as the layers ask for them.
    let weights = VarMap::new();
    let builder = |name: &str| VarBuilder::from_varmap(&weights, DType::F32, &device).pp(name);
    let networks: [(&str, Box<dyn Module>); 2] = [
        ("resnet50", Box::new(resnet50(1000, builder("resnet"))?)),
        (
            "efficientnet_b0",
            Box::new(EfficientNet::new(builder("efficientnet"), MBConvConfig::b0(), 1000)?),
        ),
    ];
    println!("| network | images | forward ms |");
    println!("|---|---:|---:|");
    for (name, network) in &networks {
        for count in [1, 16] {
            let images = Tensor::rand(0f32, 1f32, (count, 3, 224, 224), &device)?;
            let mut fastest = f64::INFINITY;
            for _ in 0..if count == 1 { 21 } else { 6 } {
                let start = Instant::now();
                network.forward(&images)?;
                fastest = fastest.min(start.elapsed().as_secs_f64() * 1e3);
            }
            println!("| {name} | {count} | {fastest:.1} |");
        }
    }
    Ok(())
}
