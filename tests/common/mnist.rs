//! The two small MNIST models of the known answers, and their images.

use std::fs;
use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use sat_attack::Classifier;

/// conv(1->1, 7x7) - ReLU - max-pool 4 - fc(25->10)
#[derive(Module, Debug)]
pub(crate) struct MnistTiny {
    conv: Conv2d,
    pool: MaxPool2d,
    fc: Linear,
}

impl Classifier for MnistTiny {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let x = self.pool.forward(relu(self.conv.forward(images)));
        self.fc.forward(x.flatten(1, 3))
    }
}

/// Two blocks of two 3x3 convolutions and a max-pool, then two dense layers on an NHWC flatten.
#[derive(Module, Debug)]
pub(crate) struct MnistCnn {
    convs: Vec<Conv2d>,
    pool: MaxPool2d,
    d1: Linear,
    d2: Linear,
}

impl Classifier for MnistCnn {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let mut x = images;
        for pair in self.convs.chunks(2) {
            for conv in pair {
                x = relu(conv.forward(x));
            }
            x = self.pool.forward(x);
        }
        let x = x.permute([0, 2, 3, 1]).flatten(1, 3);
        self.d2.forward(relu(self.d1.forward(x)))
    }
}

struct Weights<'a> {
    file: SafeTensors<'a>,
    device: Device,
}

impl Weights<'_> {
    fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        let view = self.file.tensor(name).unwrap();
        let values: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        Tensor::from_data(TensorData::new(values, view.shape().to_vec()), &self.device)
    }

    fn conv(&self, name: &str, padding: usize) -> Conv2d {
        let weight = self.tensor::<4>(&format!("{name}.weight"));
        let [outputs, inputs, height, width] = weight.dims();
        let mut conv = Conv2dConfig::new([inputs, outputs], [height, width])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .init(&self.device);
        conv.weight = Param::from_tensor(weight);
        conv.bias = Some(Param::from_tensor(self.tensor(&format!("{name}.bias"))));
        conv
    }

    fn linear(&self, name: &str) -> Linear {
        // PyTorch stores [outputs, inputs], Burn [inputs, outputs].
        let weight = self.tensor::<2>(&format!("{name}.weight")).transpose();
        let [inputs, outputs] = weight.dims();
        let mut linear = LinearConfig::new(inputs, outputs).init(&self.device);
        linear.weight = Param::from_tensor(weight);
        linear.bias = Some(Param::from_tensor(self.tensor(&format!("{name}.bias"))));
        linear
    }
}

fn pool(size: usize) -> MaxPool2d {
    MaxPool2dConfig::new([size, size]).with_strides([size, size]).init()
}

pub(crate) fn read_images(golden: &Path, device: &Device) -> (Tensor<4>, Vec<usize>) {
    let bytes = fs::read(golden.join("mnist20.bin")).unwrap();
    let (mut labels, mut pixels) = (Vec::new(), Vec::new());
    for record in bytes.chunks_exact(785) {
        labels.push(usize::from(record[0]));
        pixels.extend(record[1..].iter().map(|&byte| f32::from(byte) / 255.0));
    }
    let data = TensorData::new(pixels, [labels.len(), 1, 28, 28]);
    (Tensor::from_data(data, device), labels)
}

pub(crate) fn tiny(golden: &Path, device: &Device) -> MnistTiny {
    let bytes = fs::read(golden.join("mnist_tiny.safetensors")).unwrap();
    let weights =
        Weights { file: SafeTensors::deserialize(&bytes).unwrap(), device: device.clone() };
    MnistTiny { conv: weights.conv("conv", 0), pool: pool(4), fc: weights.linear("fc") }
}

pub(crate) fn cnn(golden: &Path, device: &Device) -> MnistCnn {
    let bytes = fs::read(golden.join("mnist_cnn.safetensors")).unwrap();
    let weights =
        Weights { file: SafeTensors::deserialize(&bytes).unwrap(), device: device.clone() };
    MnistCnn {
        convs: ["c1", "c2", "c3", "c4"].map(|name| weights.conv(name, 1)).into(),
        pool: pool(2),
        d1: weights.linear("d1"),
        d2: weights.linear("d2"),
    }
}
