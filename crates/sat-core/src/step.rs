use crate::backend::{StepBackend, composed_sign_step, is_extended};
use burn::{backend::Dispatch, tensor::Tensor};

/// A step of an attack in Linf: along the sign of the gradient, then back into a box, in one pass.
///
/// ```text
/// y = min(max(x + size sign(gradient), lower), upper),  sign(0) = sign(NaN) = 0
/// ```
///
/// $$ y = \min(\max(x + s\,\mathrm{sign}(g),\, l),\, u) $$
///
/// With `lower = max(x0 - eps, 0)` and `upper = min(x0 + eps, 1)` that is the update of PGD around the
/// clean image x0 (Madry et al. 2018, arXiv 1706.06083). A bound that is NaN does not bound; x that is
/// NaN stays NaN.
///
/// On Flex, f32 and f64 tensors go through one loop, which gives the bits of the composed form; on
/// the CubeCL runtimes without fusion f32 tensors go through one kernel. Everything else is composed of
/// Burn's operations.
///
/// # Shapes
///
/// - `x`, `gradient`, `lower`, `upper` and the output: `[n, ...]`, of one type
/// - `size`: `[n, 1, ..., 1]`, in the unit of x
///
/// # Panics
///
/// If the shapes are others, or the types differ.
pub fn sign_step<const D: usize>(
    x: Tensor<D>,
    gradient: Tensor<D>,
    size: Tensor<D>,
    lower: Tensor<D>,
    upper: Tensor<D>,
) -> Tensor<D> {
    let [x, gradient, size, lower, upper] =
        [x, gradient, size, lower, upper].map(Tensor::dequantize);
    let shape = x.dims();
    for (name, tensor) in [("gradient", &gradient), ("lower", &lower), ("upper", &upper)] {
        assert_eq!(tensor.dims(), shape, "`{name}` has the shape of x");
    }
    let mut one_each = [1; D];
    one_each[0] = shape[0];
    assert_eq!(size.dims(), one_each, "`size` has one number for each index of x's first axis");
    let dtype = x.dtype();
    for (name, tensor) in
        [("gradient", &gradient), ("size", &size), ("lower", &lower), ("upper", &upper)]
    {
        assert_eq!(tensor.dtype(), dtype, "`{name}` has the type of x");
    }
    let extended = is_extended(&x.device());
    let [x, gradient, size, lower, upper] =
        [x, gradient, size, lower, upper].map(Tensor::into_dispatch);
    Tensor::from_dispatch(if extended {
        Dispatch::sign_step(x, gradient, size, lower, upper)
    } else {
        composed_sign_step::<Dispatch>(x, gradient, size, lower, upper)
    })
}
