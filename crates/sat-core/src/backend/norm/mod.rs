//! Normalisation fused with the residual sum and the activation behind it, as operations of a backend.
//!
//! All of them speak of the preactivation
//!
//! ```text
//! z = (x - m) s + b (+ r),    y = f(z)
//! ```
//!
//! where the channel is the second axis of x and r, and m, s and b are the three rows of `affine`,
//! `[3, channels]`. Channel vectors (`affine`, statistics, sums) are in
//! the type arithmetic is done in: `f64` for `f64` tensors and `f32` for all others.

mod autodiff;
mod composed;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cube")]
mod fusion;

#[cfg(feature = "flex")]
pub(super) use flex::{LANES, Planes, total};

use super::{ActivationBackend, Pair};
use crate::curve::Curve;
use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};

/// An argument that may be left out. Burn's dispatch takes no `Option` of a tensor.
#[derive(Clone, Debug, ExtensionType)]
pub enum Optional<B: Backend> {
    /// The tensor.
    Tensor(FloatTensor<B>),
    /// Left out.
    Absent,
}

impl<B: Backend> From<Option<FloatTensor<B>>> for Optional<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::Absent, Self::Tensor)
    }
}

impl<B: Backend> Optional<B> {
    /// As an `Option`.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::Absent => None,
        }
    }
}

/// f, what stands behind the normalisation.
#[derive(Clone, Debug, ExtensionType)]
pub enum NormActivation<B: Backend> {
    /// f(z) = z
    Identity,
    /// A curve with fixed parameters.
    Fixed(Pair),
    /// A curve with its parameters in a tensor of one axis; those that stand in the curve are not used.
    Learned(Curve, FloatTensor<B>),
}

impl<B: Backend> NormActivation<B> {
    /// The curves, and the parameters that are a tensor; nothing for the identity.
    pub fn into_parts(self) -> Option<(Pair, Option<FloatTensor<B>>)> {
        match self {
            Self::Identity => None,
            Self::Fixed(pair) => Some((pair, None)),
            Self::Learned(curve, parameters) => Some((curve.into(), Some(parameters))),
        }
    }
}

/// The operations a backend offers for fused normalisation.
///
/// Every method has a body composed of Burn's own primitives, so an empty implementation is a
/// correct one. Users do not call this trait; they use [`BatchNormAct`](crate::BatchNormAct).
///
/// The forward operations are [`affine_activation`](Self::affine_activation) and
/// [`batch_norm_activation`](Self::batch_norm_activation); the others are what their gradients are
/// made of and have none themselves.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
)]
pub trait NormBackend: ActivationBackend {
    /// f(z), with gradients for x, affine, the residual and learned parameters.
    fn affine_activation(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        #[extension_type] activation: NormActivation<Self>,
    ) -> FloatTensor<Self> {
        composed::forward::<Self>(x, affine, residual.into_option(), activation)
    }

    /// f(z) with the statistics of the batch: m is its mean, s = gamma/sqrt(variance + epsilon), and
    /// b = beta. Returns f(z) and what [`channel_statistics`](Self::channel_statistics) returns, with
    /// gradients from f(z) alone to x, gamma, beta, the residual and learned parameters.
    fn batch_norm_activation(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        #[extension_type] activation: NormActivation<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let statistics = Self::channel_statistics(x.clone());
        let affine = composed::batch_affine::<Self>(statistics.clone(), gamma, beta, epsilon);
        (Self::affine_activation(x, affine, residual, activation), statistics)
    }

    /// Mean and biased variance of each channel, `[2, channels]`.
    fn channel_statistics(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::statistics::<Self>(x)
    }

    /// The gradient for x, with dz = grad f'(z): s dz where m and s are constants. With the statistics
    /// of the batch, they move with x, and it is s dz - d - e (x - m), with the two rows d and e of
    /// `correction`, `[2, channels]`.
    fn affine_activation_backward(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        grad: FloatTensor<Self>,
        #[extension_type] activation: NormActivation<Self>,
        #[extension_type] correction: Optional<Self>,
    ) -> FloatTensor<Self> {
        let (residual, correction) = (residual.into_option(), correction.into_option());
        composed::backward::<Self>(x, affine, residual, grad, activation, correction)
    }

    /// The gradients s dz for x and dz for the residual.
    fn affine_activation_backward_both(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        #[extension_type] activation: NormActivation<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::backward_both::<Self>(x, affine, residual, grad, activation)
    }

    /// The sums of dz and of dz (x - m) over each channel, `[2, channels]`. With learned parameters two
    /// rows more, whose sums over the channels are those of grad df/da and of grad df/db, the latter
    /// zero for a curve of one parameter: `[4, channels]`.
    fn affine_activation_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        grad: FloatTensor<Self>,
        #[extension_type] activation: NormActivation<Self>,
    ) -> FloatTensor<Self> {
        composed::sums::<Self>(x, affine, residual.into_option(), grad, activation)
    }

    /// dz, which is the gradient for the residual, and the
    /// [sums](Self::affine_activation_sums) over it.
    fn affine_activation_gradient_and_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        grad: FloatTensor<Self>,
        #[extension_type] activation: NormActivation<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::gradient_and_sums::<Self>(x, affine, residual.into_option(), grad, activation)
    }
}

#[cfg(feature = "ndarray")]
impl NormBackend for burn::backend::NdArray {}

#[cfg(all(test, feature = "flex"))]
#[allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]
mod tests {
    use super::*;
    use crate::{Curve, Gradient};
    use burn::{
        backend::{Dispatch, TensorMetadata},
        tensor::{DType, Device, Tensor, TensorData},
    };

    type Primitive = FloatTensor<Dispatch>;

    fn devices() -> Vec<Device> {
        vec![
            Device::flex(),
            #[cfg(feature = "wgpu")]
            Device::wgpu(Default::default()),
            #[cfg(feature = "cuda")]
            Device::cuda(0),
            #[cfg(feature = "cpu")]
            Device::cpu(),
        ]
    }

    /// How tensors lie in memory.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Layout {
        Contiguous,
        ChannelsLast,
        /// Every second column of a wider tensor.
        Strided,
        /// x channels-last, the residual contiguous, the gradient one number for all.
        Mixed,
    }
    use Layout::{ChannelsLast, Contiguous, Mixed, Strided};

    const X: usize = 1;
    const RESIDUAL: usize = 2;
    const GRAD: usize = 3;

    /// An activation that is not yet on a device; learned parameters are 0.7 times the curve's.
    #[derive(Clone, Copy, Debug)]
    enum Plan {
        Identity,
        Fixed(Pair),
        Learned(Curve),
    }

    #[derive(Clone, Copy)]
    struct Place<'a> {
        device: &'a Device,
        dtype: DType,
        layout: Layout,
    }

    impl Place<'_> {
        fn work(self) -> DType {
            if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
        }

        fn vectors(self, shape: [usize; 2], seed: usize) -> Primitive {
            let data = TensorData::new(numbers(shape.iter().product(), seed), shape);
            Tensor::<2>::from_data(data, (self.device, self.work())).into_dispatch()
        }

        fn activation(self, plan: Plan) -> NormActivation<Dispatch> {
            match plan {
                Plan::Identity => NormActivation::Identity,
                Plan::Fixed(pair) => NormActivation::Fixed(pair),
                Plan::Learned(curve) => {
                    let numbers: Vec<f64> =
                        curve.parameters().into_iter().map(|p| 0.7 * p).collect();
                    let data = TensorData::from(numbers.as_slice());
                    let parameters = Tensor::<1>::from_data(data, (self.device, self.work()));
                    NormActivation::Learned(curve, parameters.into_dispatch())
                }
            }
        }

        fn images(self, shape: [usize; 4], seed: usize) -> Primitive {
            let [n, c, h, w] = shape;
            let put = |values, shape| {
                Tensor::<4>::from_data(TensorData::new(values, shape), (self.device, self.dtype))
            };
            let values = numbers(n * c * h * w, seed);
            let channels_last = |values: &[f32]| {
                let at = |i: usize| {
                    let (pixel, channel) = (i / c, i % c);
                    (pixel / (h * w) * c + channel) * h * w + pixel % (h * w)
                };
                let moved: Vec<f32> = (0..values.len()).map(|i| values[at(i)]).collect();
                put(moved, [n, h, w, c]).permute([0, 3, 1, 2])
            };
            let tensor = match (self.layout, seed) {
                (Contiguous, _) | (Mixed, RESIDUAL) => put(values, shape),
                (ChannelsLast, _) | (Mixed, X) => channels_last(&values),
                (Mixed, _) => put(values[..1].to_vec(), [1; 4]).expand(shape),
                (Strided, _) => {
                    let twice = values.iter().flat_map(|v| [*v, 1e3]).collect();
                    let wide = put(twice, [n, c, h, 2 * w]).reshape([n, c, h, w, 2]);
                    wide.narrow(4, 0, 1).squeeze_dim(4)
                }
            };
            tensor.into_dispatch()
        }
    }

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i: usize| ((i + seed) * 7919 % 1009) as f32 / 250.0 - 2.0).collect()
    }

    fn to_vec<const D: usize>(tensor: Primitive) -> Vec<f32> {
        let data = Tensor::<D>::from_dispatch(tensor).into_data().convert::<f32>();
        data.try_into_vec().unwrap()
    }

    #[track_caller]
    fn assert_close<const D: usize>(got: Primitive, want: Primitive, dtype: DType, what: &str) {
        // One unit in the last place of the stored type, or what another order of sums makes.
        let tolerance = match dtype {
            DType::BF16 => 1.0 / 128.0,
            DType::F16 => 1.0 / 1024.0,
            _ => 2e-5,
        };
        let kind = |t: &Primitive| (t.shape(), t.dtype());
        assert_eq!(kind(&got), kind(&want), "{what}");
        let (got, want) = (to_vec::<D>(got), to_vec::<D>(want));
        let scale = if D == 2 { want.iter().fold(1.0, |m: f32, v| m.max(v.abs())) } else { 1.0 };
        for (got, want) in got.into_iter().zip(want) {
            let close = (got - want).abs() <= tolerance * want.abs().max(scale);
            assert!(close, "{what}: {got}, not {want}");
        }
    }

    /// The first two rows channel by channel, those of learned parameters as a whole.
    #[track_caller]
    fn assert_close_sums(got: Primitive, want: Primitive, dtype: DType, what: &str) {
        let split = |sums: Primitive| {
            let sums = Tensor::<2>::from_dispatch(sums);
            let [rows, channels] = sums.dims();
            let learned = sums.clone().slice([2..rows, 0..channels]).sum_dim(1);
            (sums.slice([0..2, 0..channels]).into_dispatch(), learned.into_dispatch(), rows)
        };
        let ((got, got_learned, rows), (want, want_learned, want_rows)) = (split(got), split(want));
        assert_eq!(rows, want_rows, "{what}");
        assert_close::<2>(got, want, dtype, what);
        if rows > 2 {
            assert_close::<2>(got_learned, want_learned, dtype, what);
        }
    }

    #[track_caller]
    fn assert_equal(got: &Primitive, want: &Primitive, what: &str) {
        let [got, want] =
            [got, want].map(|tensor| Tensor::<4>::from_dispatch(tensor.clone()).into_data());
        assert_eq!(got, want, "{what}");
    }

    /// Every operation on tensors at a place, beside the composed form on Flex.
    fn compare(place: Place, shape: [usize; 4], plan: Plan, with_residual: bool) {
        let Place { dtype, layout, .. } = place;
        let what = |operation: &str| {
            let residual = if with_residual { "with" } else { "without" };
            format!(
                "{operation} on {:?}, {dtype:?} {shape:?} {layout:?}, {plan:?} {residual} residual",
                place.device
            )
        };
        let flex = Device::flex();
        // An expanded gradient is one for the composed form too.
        let plain = Layout::Contiguous;
        let plain =
            Place { device: &flex, layout: if layout == Mixed { Mixed } else { plain }, dtype };
        let work = place.work();
        let channels = shape[1];
        let activation = |place: Place| place.activation(plan);
        let x = |place: Place| place.images(shape, X);
        let grad = |place: Place| place.images(shape, GRAD);
        let residual = |place: Place| with_residual.then(|| place.images(shape, RESIDUAL));
        let maybe = |place: Place| Optional::<Dispatch>::from(residual(place));
        let affine = |place: Place| place.vectors([3, channels], 4);

        let got = Dispatch::channel_statistics(x(place));
        let want = composed::statistics::<Dispatch>(x(plain));
        assert_close::<2>(got, want, work, &what("statistics"));

        let got =
            Dispatch::affine_activation(x(place), affine(place), maybe(place), activation(place));
        // Where somebody else holds the input it is computed in another buffer.
        let held = x(place);
        let beside = Dispatch::affine_activation(
            held.clone(),
            affine(place),
            maybe(place),
            activation(place),
        );
        assert_equal(&held, &x(place), &what("an input that is held"));
        assert_equal(&beside, &got, &what("forward beside"));
        let want = composed::forward::<Dispatch>(
            x(plain),
            affine(plain),
            residual(plain),
            activation(plain),
        );
        assert_close::<4>(got, want, dtype, &what("forward"));

        let got = Dispatch::affine_activation_sums(
            x(place),
            affine(place),
            maybe(place),
            grad(place),
            activation(place),
        );
        let want = composed::sums::<Dispatch>(
            x(plain),
            affine(plain),
            residual(plain),
            grad(plain),
            activation(plain),
        );
        assert_close_sums(got, want, work, &what("sums"));

        for corrected in [false, true] {
            let correction = |place: Place| corrected.then(|| place.vectors([2, channels], 5));
            let got = Dispatch::affine_activation_backward(
                x(place),
                affine(place),
                maybe(place),
                grad(place),
                activation(place),
                correction(place).into(),
            );
            let held = grad(place);
            let beside = Dispatch::affine_activation_backward(
                x(place),
                affine(place),
                maybe(place),
                held.clone(),
                activation(place),
                correction(place).into(),
            );
            assert_equal(&held, &grad(place), &what("a gradient that is held"));
            assert_equal(&beside, &got, &what("backward beside"));
            let want = composed::backward::<Dispatch>(
                x(plain),
                affine(plain),
                residual(plain),
                grad(plain),
                activation(plain),
                correction(plain),
            );
            assert_close::<4>(got, want, dtype, &what("backward"));
        }

        let (dz, sums) = Dispatch::affine_activation_gradient_and_sums(
            x(place),
            affine(place),
            maybe(place),
            grad(place),
            activation(place),
        );
        let (want_dz, want_sums) = composed::gradient_and_sums::<Dispatch>(
            x(plain),
            affine(plain),
            residual(plain),
            grad(plain),
            activation(plain),
        );
        assert_close::<4>(dz, want_dz, dtype, &what("gradient and sums, dz"));
        assert_close_sums(sums, want_sums, work, &what("gradient and sums"));

        let (Some(r), Some(want_r)) = (residual(place), residual(plain)) else {
            return;
        };
        let (dx, dz) = Dispatch::affine_activation_backward_both(
            x(place),
            affine(place),
            r,
            grad(place),
            activation(place),
        );
        let (want_dx, want_dz) = composed::backward_both::<Dispatch>(
            x(plain),
            affine(plain),
            want_r,
            grad(plain),
            activation(plain),
        );
        assert_close::<4>(dx, want_dx, dtype, &what("both, dx"));
        assert_close::<4>(dz, want_dz, dtype, &what("both, dz"));
    }

    /// The composed bodies, computed with the device's primitives and its activations, are what runs on the
    /// backends that have no loops or kernels for normalisations.
    #[test]
    fn the_composed_form_is_what_loops_and_kernels_compute() {
        let probe =
            Pair { value: Curve::Relu, gradient: Gradient::Of(Curve::ParametricSoftplus(10.0)) };
        for device in devices() {
            for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
                if !device.supports_dtype(dtype) {
                    continue;
                }
                for layout in [Contiguous, ChannelsLast, Strided, Mixed] {
                    let place = Place { device: &device, dtype, layout };
                    for plan in [
                        Plan::Identity,
                        Plan::Fixed(Curve::Silu.into()),
                        Plan::Fixed(probe),
                        Plan::Learned(Curve::SmoothRelu(3.0)),
                        Plan::Learned(Curve::ShiftedSwish(1.5, 0.25)),
                    ] {
                        for shape in [[3, 4, 5, 7], [2, 3, 16, 17]] {
                            compare(place, shape, plan, false);
                            compare(place, shape, plan, true);
                        }
                    }
                }
            }
        }
    }

    /// Vectors along pixels and along channels, one pixel, one channel, more channels than a cube has
    /// columns, and enough elements for several parts of a sum.
    #[test]
    fn kernels_share_out_any_shape() {
        let shapes = [[2, 3, 4, 8], [9, 8, 1, 1], [5, 1, 3, 4], [2, 300, 2, 2], [40, 40, 16, 16]];
        for device in devices() {
            for layout in [Contiguous, ChannelsLast] {
                for shape in shapes {
                    let place = Place { device: &device, dtype: DType::F32, layout };
                    compare(place, shape, Plan::Learned(Curve::Swish(1.0)), true);
                }
            }
        }
    }
}
