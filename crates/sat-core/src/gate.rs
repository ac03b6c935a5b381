use crate::backend::{GateBackend, gate::composed, is_extended};
use burn::{backend::Dispatch, tensor::Tensor};

/// The mean of each channel of each sample, global average pooling: the squeeze of
/// squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507).
///
/// $$ m_{n,c} = \frac{1}{P} \sum_p x_{n,c,p} $$
///
/// Sums are taken in `f32` or better. On Flex it is one pass that all threads share.
///
/// # Shapes
///
/// - `x`: `[n, channels, ...]`, of any rank from 2
/// - output: `[n, channels]`
///
/// # Panics
///
/// If x has fewer than two axes.
pub fn channel_means<const D: usize>(x: Tensor<D>) -> Tensor<2> {
    let [batch, channels, values] = rows(&x);
    let extended = is_extended(&x.device()) && batch * channels * values > 0;
    let x = x.dequantize().into_dispatch();
    Tensor::from_dispatch(if extended {
        Dispatch::channel_means(x)
    } else {
        composed::means::<Dispatch>(x)
    })
}

/// Each channel of each sample times its gate: the excitation of squeeze-and-excitation (Hu et al.
/// 2018, arXiv 1709.01507).
///
/// $$ y_{n,c,p} = g_{n,c}\, x_{n,c,p} $$
///
/// On Flex the backward pass is one over the data, for both gradients, and all threads share it.
///
/// # Shapes
///
/// - `x` and output: `[n, channels, ...]`, of any rank from 2
/// - `gate`: `[n, channels]`
///
/// # Panics
///
/// If the gate has another shape or type, or x fewer than two axes.
pub fn scale_channels<const D: usize>(x: Tensor<D>, gate: Tensor<2>) -> Tensor<D> {
    let (x, gate) = (x.dequantize(), gate.dequantize());
    let [batch, channels, values] = rows(&x);
    assert_eq!(
        gate.dims(),
        [batch, channels],
        "the gate has one number a channel of {:?}",
        x.dims()
    );
    assert_eq!(gate.dtype(), x.dtype(), "the gate has the type of x");
    let extended = is_extended(&x.device()) && batch * channels * values > 0;
    let (x, gate) = (x.into_dispatch(), gate.into_dispatch());
    Tensor::from_dispatch(if extended {
        Dispatch::scale_channels(x, gate)
    } else {
        composed::scale::<Dispatch>(x, gate)
    })
}

/// Samples, channels, and values of a channel.
fn rows<const D: usize>(x: &Tensor<D>) -> [usize; 3] {
    let dims = x.dims();
    assert!(D >= 2, "x has a channel axis, the second");
    [dims[0], dims[1], dims[2..].iter().product()]
}
