//! Normalisation fused with the residual sum and the activation behind it, as operations of a backend.
//!
//! All of them speak of the preactivation
//!
//! ```text
//! z = (x - m) s + b (+ r),    y = f(z)
//! ```
//!
//! where the channel is the second axis of x and r, and m, s and b are the three rows of `affine`,
//! `[3, channels]`. No activation means f(z) = z. Channel vectors (`affine`, statistics, sums) are in
//! the type arithmetic is done in: `f64` for `f64` tensors and `f32` for all others.

mod autodiff;
mod composed;
#[cfg(feature = "flex")]
mod flex;

#[cfg(feature = "flex")]
pub(super) use flex::Number;

use super::Pair;
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
pub trait NormBackend: Backend {
    /// f(z), with gradients for x, affine and the residual.
    fn affine_activation(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        activation: Option<Pair>,
    ) -> FloatTensor<Self> {
        composed::forward::<Self>(x, affine, residual.into_option(), activation)
    }

    /// f(z) with the statistics of the batch: m is its mean, s = gamma/sqrt(variance + epsilon), and
    /// b = beta. Returns f(z) and what [`channel_statistics`](Self::channel_statistics) returns, with
    /// gradients from f(z) alone to x, gamma, beta and the residual.
    fn batch_norm_activation(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        activation: Option<Pair>,
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
        activation: Option<Pair>,
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
        activation: Pair,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::backward_both::<Self>(x, affine, residual, grad, activation)
    }

    /// The sums of dz and of dz (x - m) over each channel, `[2, channels]`.
    fn affine_activation_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: Option<Pair>,
    ) -> FloatTensor<Self> {
        composed::sums::<Self>(x, affine, residual.into_option(), grad, activation)
    }

    /// dz, which is the gradient for the residual, and the
    /// [sums](Self::affine_activation_sums) over it.
    fn affine_activation_residual_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Pair,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::residual_sums::<Self>(x, affine, residual, grad, activation)
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Burn keeps NdArray working; so do we.
impl NormBackend for burn::backend::NdArray {}

#[cfg(feature = "cube")]
impl NormBackend for burn_cubecl::CubeBackend {}

/// The composed bodies: see [`ActivationBackend`](super::ActivationBackend)'s.
#[cfg(feature = "cube")]
impl<B: burn_fusion::FusionBackend + NormBackend> NormBackend for burn_fusion::Fusion<B> {}

#[cfg(all(test, feature = "flex"))]
#[allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]
mod tests {
    use super::*;
    use crate::{Curve, Gradient};
    use burn::{
        backend::Dispatch,
        tensor::{DType, Device, Tensor, TensorData},
    };

    type Primitive = FloatTensor<Dispatch>;

    fn values<const D: usize>(shape: [usize; D], seed: usize, dtype: DType) -> Primitive {
        let n = shape.iter().product();
        let values: Vec<f32> =
            (0..n).map(|i: usize| ((i + seed) * 7919 % 1009) as f32 / 250.0 - 2.0).collect();
        let data = TensorData::new(values, shape);
        Tensor::<D>::from_data(data, (&Device::flex(), dtype)).into_dispatch()
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
        for (got, want) in to_vec::<D>(got).into_iter().zip(to_vec::<D>(want)) {
            let close = (got - want).abs() <= tolerance * want.abs().max(1.0);
            assert!(close, "{what}: {got}, not {want}");
        }
    }

    /// The composed bodies, computed with Flex's primitives, are what runs on the backends that have
    /// no loops of their own.
    #[test]
    fn the_composed_form_is_what_the_loops_compute() {
        let probe =
            Pair { value: Curve::Relu, gradient: Gradient::Of(Curve::ParametricSoftplus(10.0)) };
        let shape = [3, 4, 5, 7];
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let work = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let x = || values(shape, 1, dtype);
            let grad = || values(shape, 3, dtype);
            let affine = || values([3, 4], 4, work);

            let statistics = Dispatch::channel_statistics(x());
            assert_close::<2>(
                statistics,
                composed::statistics::<Dispatch>(x()),
                work,
                "statistics",
            );

            for activation in [None, Some(Pair::from(Curve::Silu)), Some(probe)] {
                for residual in [None, Some(values(shape, 2, dtype))] {
                    let what = format!("{dtype:?} {activation:?} {}", residual.is_some());
                    let r = || residual.clone();
                    let maybe = || Optional::<Dispatch>::from(r());

                    let got = Dispatch::affine_activation(x(), affine(), maybe(), activation);
                    let want = composed::forward::<Dispatch>(x(), affine(), r(), activation);
                    assert_close::<4>(got, want, dtype, &what);

                    let got = Dispatch::affine_activation_sums(
                        x(),
                        affine(),
                        maybe(),
                        grad(),
                        activation,
                    );
                    let want = composed::sums::<Dispatch>(x(), affine(), r(), grad(), activation);
                    assert_close::<2>(got, want, work, &what);

                    for correction in [None, Some(values([2, 4], 5, work))] {
                        let got = Dispatch::affine_activation_backward(
                            x(),
                            affine(),
                            maybe(),
                            grad(),
                            activation,
                            correction.clone().into(),
                        );
                        let want = composed::backward::<Dispatch>(
                            x(),
                            affine(),
                            r(),
                            grad(),
                            activation,
                            correction,
                        );
                        assert_close::<4>(got, want, dtype, &what);
                    }

                    let (Some(r), Some(pair)) = (residual, activation) else { continue };
                    let got = Dispatch::affine_activation_backward_both(
                        x(),
                        affine(),
                        r.clone(),
                        grad(),
                        pair,
                    );
                    let want =
                        composed::backward_both::<Dispatch>(x(), affine(), r.clone(), grad(), pair);
                    assert_close::<4>(got.0, want.0, dtype, &what);
                    assert_close::<4>(got.1, want.1, dtype, &what);

                    let got = Dispatch::affine_activation_residual_sums(
                        x(),
                        affine(),
                        r.clone(),
                        grad(),
                        pair,
                    );
                    let want = composed::residual_sums::<Dispatch>(x(), affine(), r, grad(), pair);
                    assert_close::<4>(got.0, want.0, dtype, &what);
                    assert_close::<2>(got.1, want.1, work, &what);
                }
            }
        }
    }
}
