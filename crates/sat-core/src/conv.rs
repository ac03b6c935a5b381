use crate::backend::{ConvBackend, is_extended};
use burn::{
    backend::Dispatch,
    config::Config,
    module::{Content, DisplaySettings, Module, ModuleDisplay, Param},
    nn::{Initializer, PaddingConfig2d, conv as burns},
    tensor::{Device, Tensor, module, ops::ConvOptions},
};

/// A [`Conv2d`] as data, with the fields and defaults of Burn's `Conv2dConfig`.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::{nn::PaddingConfig2d, tensor::{Device, Tensor}};
/// use sat_core::Conv2dConfig;
///
/// let device = Device::flex();
/// let conv = Conv2dConfig::new([3, 16], [3, 3])
///     .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
///     .init(&device);
/// let y = conv.forward(Tensor::<4>::ones([2, 3, 32, 32], &device));
/// assert_eq!(y.dims(), [2, 16, 32, 32]);
/// # }
/// ```
#[derive(Config, Debug)]
pub struct Conv2dConfig {
    /// Channels of the input and of the output.
    pub channels: [usize; 2],
    /// Height and width of the kernel.
    pub kernel_size: [usize; 2],
    /// Stride along the height and the width.
    #[config(default = "[1, 1]")]
    pub stride: [usize; 2],
    /// Distance of the kernel's elements.
    #[config(default = "[1, 1]")]
    pub dilation: [usize; 2],
    /// Number of groups of channels; outputs of a group see the inputs of that group alone.
    #[config(default = "1")]
    pub groups: usize,
    /// The padding with zeros, `Valid` (none) by default.
    #[config(default = "PaddingConfig2d::Valid")]
    pub padding: PaddingConfig2d,
    /// Whether there is a bias.
    #[config(default = true)]
    pub bias: bool,
    /// How the weight and the bias are drawn.
    #[config(
        default = "Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false }"
    )]
    pub initializer: Initializer,
}

impl Conv2dConfig {
    /// Builds the layer on a device.
    ///
    /// # Panics
    ///
    /// If a number of channels is not a multiple of `groups`.
    pub fn init(&self, device: &Device) -> Conv2d {
        burns::Conv2dConfig::new(self.channels, self.kernel_size)
            .with_stride(self.stride)
            .with_dilation(self.dilation)
            .with_groups(self.groups)
            .with_padding(self.padding.clone())
            .with_bias(self.bias)
            .with_initializer(self.initializer.clone())
            .init(device)
            .into()
    }
}

/// Two-dimensional convolution, with the fields and records of Burn's `Conv2d`:
///
/// ```text
/// y[n, o, i, j] = bias[o] + sum over c, kh, kw of
///     weight[o, c, kh, kw] x[n, c, i stride + kh dilation - pad, j stride + kw dilation - pad]
/// ```
///
/// $$ y_{n,o,i,j} = b_o + \sum_{c,k,l} w_{o,c,k,l}\; x_{n,\,c,\,i s + k d - p,\,j s + l d - p} $$
///
/// where c goes over the input channels of o's group and x is zero outside.
///
/// On Flex, f32 tensors go through loops of this crate if the dilation is 1 and the kernel has at most
/// 128 elements; everything else, and every other backend, through Burn's convolution. The
/// backward pass computes the gradient of the input only where the input has one, and of the weight only
/// where the weight has one; what only the other would need is not kept. So attacks on a `valid()`
/// model keep no inputs of convolutions. The results do not depend on the number of threads.
///
/// There, kernels of three by three with stride 1 and 16 channels or more on both sides go by Winograd's
/// method, F(4x4, 3x3) ([Lavin and Gray, arXiv 1509.09308](https://arxiv.org/abs/1509.09308)), with a
/// quarter of the multiplications. On noise and with up to 512 channels its errors are below 5e-6 of the
/// largest output, 1.4 to 3 times those of the direct sum; those of the weight's gradient are below 3e-6,
/// 2 to 11 times. An infinite or NaN input spreads to all outputs of the tiles of four by four that
/// meet it.
///
/// Padding counts as zeros that are multiplied: a weight that is infinite or NaN gives NaN there, as
/// in Burn and PyTorch.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Conv2d {
    /// `[channels_out, channels_in / groups, kernel height, kernel width]`
    pub weight: Param<Tensor<4>>,
    /// `[channels_out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// Stride along the height and the width.
    pub stride: [usize; 2],
    /// Height and width of the kernel.
    pub kernel_size: [usize; 2],
    /// Distance of the kernel's elements.
    pub dilation: [usize; 2],
    /// Number of groups of channels.
    pub groups: usize,
    /// The padding with zeros.
    #[module(skip)]
    pub padding: PaddingConfig2d,
}

impl Conv2d {
    /// The convolution of x.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, channels_in, height, width]`, taken to the type of the weight if it has another
    /// - output: `[batch, channels_out, height_out, width_out]`, of the type of the weight
    ///
    /// # Panics
    ///
    /// If x has another number of channels, or is with its padding smaller than the kernel.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, channels, height, width] = x.dims();
        let padding = self.pairs([height, width]);
        let options =
            ConvOptions::new_with_padding(self.stride, padding, self.dilation, self.groups);
        // What a `Quantizer` left behind, as Burn's convolution takes it.
        let weight = self.weight.val().dequantize();
        let x = x.dequantize().cast(weight.dtype());
        let bias = self.bias.as_ref().map(|bias| bias.val().dequantize());
        if !is_extended(&x.device()) {
            return module::conv2d(x, weight, bias, options);
        }

        let [_, inputs, kernel_height, kernel_width] = weight.dims();
        assert_eq!(
            channels,
            inputs * self.groups,
            "the input has {channels} channels, the convolution {}",
            inputs * self.groups
        );
        for (name, size, padding, kernel, dilation) in [
            ("high", height, padding[0], kernel_height, self.dilation[0]),
            ("wide", width, padding[1], kernel_width, self.dilation[1]),
        ] {
            let padded = size + padding.0 + padding.1;
            let extent = dilation * kernel.saturating_sub(1) + 1;
            assert!(
                padded >= extent,
                "the input with its padding is {padded} {name}, the kernel {extent}"
            );
        }
        let y = Tensor::from_dispatch(Dispatch::convolution(
            x.into_dispatch(),
            weight.into_dispatch(),
            options,
        ));
        match bias {
            None => y,
            Some(bias) => y + bias.reshape([1, -1, 1, 1]),
        }
    }

    /// The padding before and behind, along the height and the width.
    fn pairs(&self, size: [usize; 2]) -> [(usize, usize); 2] {
        match self.padding {
            PaddingConfig2d::Valid => [(0, 0); 2],
            PaddingConfig2d::Explicit(top, left, bottom, right) => [(top, bottom), (left, right)],
            // As in TensorFlow, and as Burn does it: as many outputs as the stride fits into the input.
            PaddingConfig2d::Same => core::array::from_fn(|axis| {
                let (stride, size) = (self.stride[axis], size[axis]);
                let covered = size.div_ceil(stride).saturating_sub(1) * stride;
                let all = (covered + self.kernel_size[axis]).saturating_sub(size);
                (all / 2, all - all / 2)
            }),
        }
    }
}

impl ModuleDisplay for Conv2d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [outputs, inputs, _, _] = self.weight.dims();
        content
            .add("ch_in", &(inputs * self.groups))
            .add("ch_out", &outputs)
            .add_debug_attribute("stride", &self.stride)
            .add_debug_attribute("kernel_size", &self.kernel_size)
            .add_debug_attribute("dilation", &self.dilation)
            .add("groups", &self.groups)
            .add_debug_attribute("padding", &self.padding)
            .optional()
    }
}

/// Parameters keep their identities.
impl From<burns::Conv2d> for Conv2d {
    fn from(conv: burns::Conv2d) -> Self {
        let burns::Conv2d { weight, bias, stride, kernel_size, dilation, groups, padding } = conv;
        Self { weight, bias, stride, kernel_size, dilation, groups, padding }
    }
}

/// Parameters keep their identities.
impl From<Conv2d> for burns::Conv2d {
    fn from(conv: Conv2d) -> Self {
        let Conv2d { weight, bias, stride, kernel_size, dilation, groups, padding } = conv;
        Self { weight, bias, stride, kernel_size, dilation, groups, padding }
    }
}
