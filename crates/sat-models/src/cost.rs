//! What a network costs, counted from its layers without running it.

use burn::nn::{Linear, PaddingConfig2d};
use sat_core::BatchNormAct;

use crate::init::Conv2d;

/// What a network costs for one image. Made by [`NetworkConfig::cost`](crate::NetworkConfig::cost).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cost {
    /// Parameters, each element counted, without BatchNorm's running statistics.
    pub parameters: u64,
    /// Multiplications with addition in convolutions and linear layers of one forward pass.
    pub macs: u64,
    /// Elements of the tensors that a training step keeps for its backward pass: the output of each
    /// convolution, of what normalises it, of pooling and of gating. Times 4 gives bytes in f32.
    pub activations: u64,
}

/// Height and width.
pub(crate) type Size = [usize; 2];

/// Adds up the cost of layers. Methods take the size of their input and give that of their output.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) macs: u64,
    pub(crate) activations: u64,
}

impl Tally {
    pub(crate) fn conv(&mut self, conv: &Conv2d, size: Size) -> Size {
        let [c_out, c_in, height, width] = conv.weight.lazy_shape().dims();
        let out = [0, 1].map(|axis| {
            let (size, kernel, stride) = (size[axis], conv.kernel_size[axis], conv.stride[axis]);
            let pad = match conv.padding {
                PaddingConfig2d::Same => return size.div_ceil(stride),
                PaddingConfig2d::Valid => 0,
                PaddingConfig2d::Explicit(top, left, bottom, right) => {
                    if axis == 0 {
                        top + bottom
                    } else {
                        left + right
                    }
                }
            };
            // No output where the kernel is larger than the image.
            (size + pad + stride).saturating_sub(kernel) / stride
        });
        let outputs = count(c_out, out);
        self.macs += outputs * (c_in * height * width) as u64;
        self.activations += outputs;
        out
    }

    pub(crate) fn norm(&mut self, norm: &BatchNormAct, size: Size) {
        let [channels] = norm.gamma.lazy_shape().dims();
        self.activations += count(channels, size);
    }

    pub(crate) fn conv_norm(&mut self, conv: &Conv2d, norm: &BatchNormAct, size: Size) -> Size {
        let size = self.conv(conv, size);
        self.norm(norm, size);
        size
    }

    /// An operation without multiplications to count whose output is kept.
    pub(crate) fn keep(&mut self, channels: usize, size: Size) {
        self.activations += count(channels, size);
    }

    pub(crate) fn linear(&mut self, linear: &Linear) {
        let [inputs, outputs] = linear.weight.lazy_shape().dims();
        self.macs += (inputs * outputs) as u64;
        self.activations += (inputs + outputs) as u64;
    }
}

fn count(channels: usize, [height, width]: Size) -> u64 {
    channels as u64 * height as u64 * width as u64
}
