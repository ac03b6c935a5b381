//! Errors of values and derivatives in units in the last place, against the `f64` reference.

use burn::tensor::{Device, Tensor, TensorData};
use sat_core::{Curve, tensor::activate};

/// The distance between neighbouring `f32` numbers at |x|.
fn ulp(x: f64) -> f64 {
    let exponent = (x.abs().log2().floor()).max(-126.0);
    (exponent - 23.0).exp2()
}

/// What a device does with numbers below 2^-126.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subnormals {
    Kept,
    Flushed,
}

/// The largest errors over some inputs, and where they are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Worst {
    /// In ulp of the value.
    pub(crate) value: (f64, f32),
    /// In ulp of max(1, |f'|).
    pub(crate) slope: (f64, f32),
    /// Absolute, where GELU's tail is allowed more than 4 ulp.
    pub(crate) tail: (f64, f32),
}

impl Worst {
    pub(crate) fn and(self, other: Self) -> Self {
        let larger = |a: (f64, f32), b: (f64, f32)| if b.0 > a.0 { b } else { a };
        Self {
            value: larger(self.value, other.value),
            slope: larger(self.slope, other.slope),
            tail: larger(self.tail, other.tail),
        }
    }
}

/// The errors on a device. `subnormals` says whether it has numbers below 2^-126, which GPUs take for
/// zero.
pub(crate) fn measure(curve: Curve, device: &Device, subnormals: Subnormals, x: &[f32]) -> Worst {
    let data = TensorData::new(x.to_vec(), [x.len()]);
    let leaf = Tensor::<1>::from_data(data, &device.clone().autodiff()).require_grad();
    let y = activate(leaf.clone(), curve);
    let grads = y.clone().sum().backward();
    let numbers = |x: Tensor<1>| x.into_data().convert::<f32>().try_into_vec::<f32>().unwrap();
    let (y, dx) = (numbers(y.inner()), numbers(leaf.grad(&grads).unwrap()));
    let lost = match subnormals {
        Subnormals::Kept => 0.0,
        Subnormals::Flushed => f64::from(f32::MIN_POSITIVE),
    };
    let mut worst = Worst::default();
    for ((&x, y), dx) in x.iter().zip(y).zip(dx) {
        let (value, slope) = (curve.value(x.into()), curve.derivative(x.into()));
        let far_tail = matches!(curve, Curve::Gelu | Curve::GeluTanh) && x < -5.0;
        let absolute = ((f64::from(y) - value).abs() - lost).max(0.0);
        // Beyond the largest f32, infinity is right.
        let overflow =
            value.abs() > f32::MAX.into() && f64::from(y) == value.signum() * f64::INFINITY;
        // Next to its zero, shifted swish is as exact as what is subtracted there.
        let scale = match curve {
            Curve::ShiftedSwish(_, b) => value.abs().max(b * f64::from(x).abs()),
            _ => value,
        };
        let error = if overflow { 0.0 } else { absolute / ulp(scale) };
        let slope_error = (f64::from(dx) - slope).abs() / ulp(slope.abs().max(1.0));
        worst = worst.and(Worst {
            value: if far_tail { (0.0, x) } else { (error, x) },
            slope: (slope_error, x),
            tail: if far_tail { (absolute, x) } else { (0.0, x) },
        });
        assert!(error.is_finite() && slope_error.is_finite(), "{curve} at {x:e}: {y} {dx}");
    }
    worst
}

/// Every stride-th finite number, both signs.
pub(crate) fn every(stride: u32) -> impl Iterator<Item = f32> {
    let finite = (0..0x7f80_0000u32).step_by(stride as usize);
    finite.flat_map(|bits| [f32::from_bits(bits), f32::from_bits(bits | 0x8000_0000)])
}

/// The largest errors over every stride-th finite number.
pub(crate) fn walk(curve: Curve, device: &Device, subnormals: Subnormals, stride: u32) -> Worst {
    let mut worst = Worst::default();
    let mut numbers = every(stride).peekable();
    while numbers.peek().is_some() {
        let x: Vec<f32> = numbers.by_ref().take(1 << 20).collect();
        let measure = |x| measure(curve, device, subnormals, x);
        worst = std::thread::scope(|scope| {
            let parts: Vec<_> =
                x.chunks(1 << 17).map(|x| scope.spawn(move || measure(x))).collect();
            parts.into_iter().fold(worst, |worst, part| worst.and(part.join().unwrap()))
        });
    }
    worst
}

/// The default of every curve, and some other parameters.
pub(crate) fn curves() -> Vec<Curve> {
    let others = [
        "psoftplus:0.03125",
        "psoftplus:1",
        "psoftplus:40",
        "elu:0.5",
        "celu:2",
        "smooth-relu:3",
        "swish:2.5",
    ];
    let others = others.iter().map(|name| name.parse().unwrap());
    Curve::ALL.iter().copied().chain(others).collect()
}
