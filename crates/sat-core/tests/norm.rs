//! Fused normalisation, on every device of the build.
//!
//! The expected numbers come from a naive f64 computation written here, from finite differences of
//! it, and from Burn's own layer followed by our activation.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use burn::{
    module::{Module, ModuleVisitor, Param},
    nn::{BatchNorm, BatchNormConfig},
    tensor::{DType, Device, FloatDType, Tensor, TensorData},
};
use common::{devices, to_vec};
use sat_core::{
    Activation, ActivationConfig, BatchNormAct, BatchNormActConfig, Curve, Function, Gradient,
    NormError, Pair, tensor::activate,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

/// Repeatable numbers in [-1, 1).
fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    core::iter::repeat_with(next).take(n).collect()
}

fn tensor<const D: usize>(
    values: &[f64],
    shape: [usize; D],
    device: &Device,
    dtype: FloatDType,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::from(dtype)))
}

fn to_f64<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().convert::<f64>().try_into_vec().unwrap()
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= tolerance * want.abs().max(1.0);
        assert!(close, "{what}: element {i} is {got}, not {want}");
    }
}

fn pair(text: &str) -> Option<Pair> {
    (text != "none").then(|| {
        let config: ActivationConfig = text.parse().unwrap();
        let value = match config.function {
            Function::Fixed(curve) => curve,
            Function::Learnable(learnable, _) => learnable.curve(),
            other => panic!("`{other}` has no curve"),
        };
        Pair { value, gradient: config.gradient }
    })
}

fn activation(text: &str, device: &Device) -> Option<Activation> {
    (text != "none").then(|| text.parse::<ActivationConfig>().unwrap().init(device))
}

// --- The reference ---

/// A layer and its input as plain numbers.
#[derive(Clone)]
struct Case {
    shape: [usize; 4],
    x: Vec<f64>,
    residual: Option<Vec<f64>>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    /// Running mean and variance, for inference mode.
    running: Option<[Vec<f64>; 2]>,
    /// What the loss multiplies the output with.
    weights: Vec<f64>,
    activation: &'static str,
}

impl Case {
    fn new(shape: [usize; 4], activation: &'static str, residual: bool, inference: bool) -> Self {
        let n = shape.iter().product();
        let c = shape[1];
        let around_one = |seed| noise(c, seed).iter().map(|v| 1.0 + 0.5 * v).collect::<Vec<_>>();
        Self {
            shape,
            x: noise(n, 1).iter().map(|v| 3.0 * v + 0.7).collect(),
            residual: residual.then(|| noise(n, 2)),
            gamma: around_one(3),
            beta: noise(c, 4),
            running: inference.then(|| [noise(c, 5), around_one(6)]),
            weights: noise(n, 7),
            activation,
        }
    }

    fn channel(&self, i: usize) -> usize {
        i / (self.shape[2] * self.shape[3]) % self.shape[1]
    }

    /// Mean and biased variance of each channel.
    fn statistics(&self) -> [Vec<f64>; 2] {
        let of = |c: usize| {
            let values: Vec<f64> =
                (0..self.x.len()).filter(|i| self.channel(*i) == c).map(|i| self.x[i]).collect();
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            (mean, values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n)
        };
        let (means, variances) = (0..self.shape[1]).map(of).unzip();
        [means, variances]
    }

    fn preactivation(&self) -> Vec<f64> {
        let [mean, variance] = self.running.clone().unwrap_or_else(|| self.statistics());
        let z = |i: usize| {
            let c = self.channel(i);
            let normalised = (self.x[i] - mean[c]) / (variance[c] + 1e-5).sqrt();
            self.gamma[c] * normalised + self.beta[c] + self.residual.as_ref().map_or(0.0, |r| r[i])
        };
        (0..self.x.len()).map(z).collect()
    }

    fn output(&self) -> Vec<f64> {
        let z = self.preactivation();
        match pair(self.activation) {
            None => z,
            Some(pair) => z.into_iter().map(|z| pair.value.value(z)).collect(),
        }
    }

    /// The gradients for learned parameters, if there are any.
    fn parameter_gradients(&self) -> Option<Vec<f64>> {
        let config: ActivationConfig = self.activation.parse().ok()?;
        let Function::Learnable(learnable, _) = config.function else { return None };
        let curve = learnable.curve();
        let mut sums = vec![0.0; curve.parameters().len()];
        for (z, weight) in self.preactivation().into_iter().zip(&self.weights) {
            let slopes = curve.parameter_derivatives(z);
            sums.iter_mut().zip(slopes).for_each(|(sum, slope)| *sum += weight * slope);
        }
        Some(sums)
    }

    /// Gradients of sum(weights * output) by central differences of the preactivation: for x, gamma,
    /// beta, the residual and learned parameters. The slope of the gradient curve stands for that of
    /// the value curve.
    fn gradients(&self) -> Vec<Vec<f64>> {
        let slope = |z: f64| pair(self.activation).map_or(1.0, |pair| pair.slope().derivative(z));
        let weights: Vec<f64> = self
            .preactivation()
            .into_iter()
            .zip(&self.weights)
            .map(|(z, weight)| weight * slope(z))
            .collect();
        let loss = |case: &Case| -> f64 {
            case.preactivation().iter().zip(&weights).map(|(z, weight)| z * weight).sum()
        };
        let fields: [fn(&mut Case) -> &mut Vec<f64>; 4] = [
            |case| &mut case.x,
            |case| &mut case.gamma,
            |case| &mut case.beta,
            |case| case.residual.as_mut().unwrap(),
        ];
        let count = if self.residual.is_some() { 4 } else { 3 };
        let mut moved = self.clone();
        let mut gradient = |field: fn(&mut Case) -> &mut Vec<f64>| {
            let h = 1e-5;
            (0..field(&mut moved).len())
                .map(|i| {
                    let at = field(&mut moved)[i];
                    field(&mut moved)[i] = at + h;
                    let above = loss(&moved);
                    field(&mut moved)[i] = at - h;
                    let below = loss(&moved);
                    field(&mut moved)[i] = at;
                    (above - below) / (2.0 * h)
                })
                .collect()
        };
        let fields = fields[..count].iter().map(|field| gradient(*field));
        fields.chain(self.parameter_gradients()).collect()
    }

    /// The same gradients in closed form, with the statistics of the batch: for tensors of any size.
    fn closed_form_gradients(&self) -> Vec<Vec<f64>> {
        let [mean, variance] = self.statistics();
        let slope = pair(self.activation).map(|pair| pair.slope());
        let terms = self.preactivation().into_iter().zip(&self.weights);
        let dz: Vec<f64> =
            terms.map(|(z, w)| w * slope.map_or(1.0, |slope| slope.derivative(z))).collect();
        let deviation = |c: usize| (variance[c] + 1e-5).sqrt();
        let normalised = |i: usize, c: usize| (self.x[i] - mean[c]) / deviation(c);
        let (mut dgamma, mut dbeta) = (vec![0.0; self.shape[1]], vec![0.0; self.shape[1]]);
        for (i, dz) in dz.iter().enumerate() {
            let c = self.channel(i);
            dgamma[c] += dz * normalised(i, c);
            dbeta[c] += dz;
        }
        let n = (self.x.len() / self.shape[1]) as f64;
        let dx = |i: usize| {
            let c = self.channel(i);
            let centred = dz[i] - dbeta[c] / n - normalised(i, c) * dgamma[c] / n;
            self.gamma[c] / deviation(c) * centred
        };
        let dx = (0..dz.len()).map(dx).collect();
        let all = [dx, dgamma, dbeta, dz];
        let count = if self.residual.is_some() { 4 } else { 3 };
        all.into_iter().take(count).chain(self.parameter_gradients()).collect()
    }

    fn layer(&self, device: &Device, dtype: FloatDType) -> BatchNormAct {
        let vector = |values: &[f64]| tensor(values, [values.len()], device, dtype);
        let mut layer = BatchNormActConfig::new(self.shape[1]).init(device);
        layer.gamma = Param::from_tensor(vector(&self.gamma));
        layer.beta = Param::from_tensor(vector(&self.beta));
        let [mean, variance] = self
            .running
            .clone()
            .unwrap_or_else(|| [vec![0.0; self.shape[1]], vec![1.0; self.shape[1]]]);
        layer.running_mean = burn::module::RunningState::new(vector(&mean));
        layer.running_var = burn::module::RunningState::new(vector(&variance));
        if self.running.is_some() {
            layer.training = layer.training.with_value(false);
        }
        layer.with_activation(activation(self.activation, device))
    }

    /// Output and gradients as our layer computes them, in the order of [`gradients`](Self::gradients).
    fn run(&self, device: &Device, dtype: FloatDType, view: View) -> (Vec<f64>, Vec<Vec<f64>>) {
        self.run_mixed(device, dtype, dtype, view)
    }

    /// With parameters and statistics of another type.
    fn run_mixed(
        &self,
        device: &Device,
        dtype: FloatDType,
        of_layer: FloatDType,
        view: View,
    ) -> (Vec<f64>, Vec<Vec<f64>>) {
        let device = device.clone().autodiff();
        let layer = self.layer(&device, of_layer);
        let place = |values: &[f64]| view.place(values, self.shape, &device, dtype).require_grad();
        let x = place(&self.x);
        let residual = self.residual.as_deref().map(place);
        let seen = |t: &Tensor<4>| view.see(t.clone());
        let y = match &residual {
            None => layer.forward(seen(&x)),
            Some(residual) => layer.forward_with_residual(seen(&x), seen(residual)),
        };
        assert_eq!(FloatDType::from(y.dtype()), dtype);
        let weights = seen(&view.place(&self.weights, self.shape, &device, dtype));
        let grads = (y.clone() * weights).sum().backward();
        let of_gamma = layer.gamma.val().grad(&grads).unwrap();
        assert_eq!(FloatDType::from(of_gamma.dtype()), of_layer);
        let hidden = |t: &Tensor<4>| to_f64(view.see(t.grad(&grads).unwrap()));
        let mut gradients =
            vec![hidden(&x), to_f64(of_gamma), to_f64(layer.beta.val().grad(&grads).unwrap())];
        gradients.extend(residual.iter().map(hidden));
        let learned = layer.activation.as_ref().and_then(Activation::parameters);
        gradients.extend(learned.map(|learned| to_f64(learned.val().grad(&grads).unwrap())));
        (to_f64(y.inner()), gradients)
    }
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum View {
    Contiguous,
    ChannelsLast,
    /// Every second column of a wider tensor.
    Strided,
}

impl View {
    const ALL: [View; 3] = [View::Contiguous, View::ChannelsLast, View::Strided];

    /// A tensor that shows the values through [`see`](Self::see).
    fn place(
        self,
        values: &[f64],
        shape: [usize; 4],
        device: &Device,
        dtype: FloatDType,
    ) -> Tensor<4> {
        let plain = tensor(values, shape, device, dtype);
        match self {
            View::Contiguous => plain,
            View::ChannelsLast => {
                // Through the host, so that the permuted tensor is what lies in memory.
                let [n, c, h, w] = shape;
                let moved = to_f64(plain.permute([0, 2, 3, 1]));
                tensor(&moved, [n, h, w, c], device, dtype)
            }
            View::Strided => {
                let [n, c, h, w] = shape;
                let twice: Vec<f64> = values.iter().flat_map(|v| [*v, 1e3]).collect();
                tensor(&twice, [n, c, h, 2 * w], device, dtype)
            }
        }
    }

    fn see(self, placed: Tensor<4>) -> Tensor<4> {
        match self {
            View::Contiguous => placed,
            View::ChannelsLast => placed.permute([0, 3, 1, 2]),
            View::Strided => {
                let [n, c, h, w] = placed.dims();
                placed.reshape([n, c, h, w / 2, 2]).narrow(4, 0, 1).squeeze_dim(4)
            }
        }
    }
}

const ACTIVATIONS: [&str; 7] =
    ["none", "silu", "relu~psoftplus:10", "gelu", "elu:0.5", "psilu:2", "pssilu:1.5,0.25@layer"];
/// One value a run, runs shorter and longer than a vector, long runs over several blocks.
const SHAPES: [[usize; 4]; 5] =
    [[7, 5, 1, 1], [3, 2, 2, 3], [2, 3, 5, 7], [2, 2, 3, 11], [1, 2, 17, 31]];

fn cases() -> impl Iterator<Item = Case> {
    SHAPES.into_iter().flat_map(|shape| {
        ACTIVATIONS.into_iter().flat_map(move |activation| {
            [(false, false), (true, false), (false, true), (true, true)]
                .map(move |(residual, inference)| Case::new(shape, activation, residual, inference))
        })
    })
}

/// Whether normalisations are composed of Burn's operations on a device.
fn is_composed(name: &str) -> bool {
    name == "ndarray"
}

fn describe(case: &Case, view: View, name: &str) -> String {
    let mode = if case.running.is_some() { "inference" } else { "training" };
    let residual = if case.residual.is_some() { "with" } else { "without" };
    let Case { shape, activation, .. } = case;
    format!("{name}: {activation} {shape:?} {mode} {residual} residual, {view:?}")
}

#[test]
fn values_and_gradients_are_the_reference_s() {
    for case in cases() {
        let (want_y, want) = (case.output(), case.gradients());
        for (name, device) in devices() {
            for view in View::ALL {
                let what = describe(&case, view, name);
                let (y, got) = case.run(&device, FloatDType::F32, view);
                assert_close(&y, &want_y, 1e-5, &what);
                for (got, want) in got.iter().zip(&want) {
                    assert_close(got, want, 5e-5, &what);
                }
            }
        }
    }
}

#[cfg(feature = "flex")]
#[test]
fn in_f64_values_and_gradients_are_exact() {
    for case in cases() {
        let (want_y, want_gradients) = (case.output(), case.gradients());
        for view in View::ALL {
            let what = describe(&case, view, "f64");
            let (y, got) = case.run(&Device::flex(), FloatDType::F64, view);
            assert_close(&y, &want_y, 1e-12, &what);
            let learned = case.parameter_gradients().is_some();
            for (i, (got, want)) in got.iter().zip(&want_gradients).enumerate() {
                // Learned parameters, and so their gradients, are f32.
                let single = learned && i + 1 == want_gradients.len();
                assert_close(got, want, if single { 1e-7 } else { 2e-8 }, &what);
            }
        }
    }
}

// --- Beside Burn's layer ---

fn burns(layer: &BatchNormAct, device: &Device) -> BatchNorm {
    let mut norm = BatchNormConfig::new(layer.gamma.dims()[0]).init(device);
    let copy =
        |values: Tensor<1>| Param::from_tensor(Tensor::<1>::from_data(values.into_data(), device));
    norm.gamma = copy(layer.gamma.val());
    norm.beta = copy(layer.beta.val());
    norm
}

#[test]
fn large_tensors_have_the_reference_s_values_and_gradients() {
    // Above the size from which several threads work, with runs that cross the blocks.
    for (shape, activation, residual) in [
        ([8, 16, 40, 40], "psilu:2", true),
        ([129, 33, 6, 6], "silu", true),
        ([3, 2, 150, 201], "silu", true),
        ([3, 2, 150, 201], "silu", false),
        ([70_001, 2, 1, 1], "psilu:2", true),
    ] {
        let case = Case::new(shape, activation, residual, false);
        let (want_y, want) = (case.output(), case.closed_form_gradients());
        for (name, device) in devices() {
            // The composed form's sums are Burn's: compared with its layer below.
            if is_composed(name) {
                continue;
            }
            for view in [View::Contiguous, View::ChannelsLast] {
                let what = describe(&case, view, name);
                let (y, got) = case.run(&device, FloatDType::F32, view);
                assert_close(&y, &want_y, 1e-5, &what);
                for (got, want) in got.iter().zip(&want) {
                    assert_close(got, want, 2e-4, &what);
                }
            }
        }
    }
}

#[test]
fn large_tensors_agree_with_burn_s_layer_and_our_activation() {
    let shape = [8, 16, 40, 40];
    for (name, device) in devices() {
        let device = device.autodiff();
        let case = Case::new(shape, "silu", true, false);
        let layer = case.layer(&device, FloatDType::F32);
        let burns = burns(&layer, &device);
        let leaf = |values: &[f64]| tensor(values, shape, &device, FloatDType::F32).require_grad();
        let weights = leaf(&case.weights).detach();
        let residual = case.residual.as_deref().unwrap();
        let results = [0, 1].map(|which| {
            let (x, r) = (leaf(&case.x), leaf(residual));
            let (y, gamma, beta) = if which == 0 {
                let y = layer.forward_with_residual(x.clone(), r.clone());
                (y, layer.gamma.val(), layer.beta.val())
            } else {
                let z = burns.forward(x.clone()) + r.clone();
                (activate(z, Curve::Silu), burns.gamma.val(), burns.beta.val())
            };
            let grads = (y.clone() * weights.clone()).sum().backward();
            let of = |t: &Tensor<4>| to_f64(t.grad(&grads).unwrap());
            let of_vector = |t: Tensor<1>| to_f64(t.grad(&grads).unwrap());
            let gradients = [of(&x), of(&r), of_vector(gamma), of_vector(beta)];
            (to_f64(y.inner()), gradients)
        });
        let [(y, got), (want_y, want)] = results;
        assert_close(&y, &want_y, 1e-5, name);
        for (got, want) in got.iter().zip(&want) {
            assert_close(got, want, 2e-4, name);
        }

        let n = (case.x.len() / shape[1]) as f64;
        let variance = |norm: &burn::module::RunningState<Tensor<1>>| to_f64(norm.value_sync());
        let (mean, want) = (variance(&layer.running_mean), variance(&burns.running_mean));
        assert_close(&mean, &want, 1e-6, name);
        let (biased, unbiased) = (variance(&burns.running_var), variance(&layer.running_var));
        let want: Vec<f64> = biased.iter().map(|v| 0.9 + (v - 0.9) * n / (n - 1.0)).collect();
        assert_close(&unbiased, &want, 1e-5, name);
    }
}

#[test]
fn running_statistics_follow_pytorch() {
    // torch.nn.BatchNorm2d(1), one step in training mode on these four values.
    for (name, device) in devices() {
        let device = device.autodiff();
        let layer = BatchNormActConfig::new(1).init(&device);
        let x = Tensor::<4>::from_data([[[[1.0f32, 2.0], [3.0, 6.0]]]], &device);
        layer.forward(x);
        assert_close(&to_f64(layer.running_mean.value_sync()), &[0.3], 1e-6, name);
        // 0.9 + 0.1 * 14/3; the biased variance would give 1.25.
        assert_close(&to_f64(layer.running_var.value_sync()), &[1.366_666_7], 1e-6, name);
    }
}

#[test]
fn the_variance_of_a_narrow_channel_far_from_zero_is_right() {
    for (name, device) in devices() {
        let device = device.autodiff();
        let shape = [32, 2, 16, 16];
        // The first channel starts with an outlier, which must not spoil the sums either.
        let mut x: Vec<f64> =
            noise(32 * 2 * 256, 9).iter().map(|v| f64::from((1e3 + 1e-2 * v) as f32)).collect();
        x[0] = 0.0;
        let case = Case { x: x.clone(), ..Case::new(shape, "none", false, false) };
        // With a momentum of 1 the running statistics are the batch's.
        let layer = BatchNormActConfig::new(2).with_momentum(1.0).init(&device);
        layer.forward(tensor::<4>(&x, shape, &device, FloatDType::F32));
        let n = (x.len() / 2) as f64;
        let [mean, variance] = case.statistics();
        let unbiased: Vec<f64> = variance.iter().map(|v| v * n / (n - 1.0)).collect();
        // The composed form sums in f32, in the order of the backend; kernels sum in f32, but pieces.
        let (of_mean, of_variance) = match name {
            "flex" => (1e-7, 1e-6),
            _ if is_composed(name) => (1e-6, 1e-2),
            // One unit of work sums up a whole part, from the outlier on.
            "cpu" => (2e-7, 1e-5),
            _ => (1e-7, 1e-5),
        };
        for (state, want, tolerance) in
            [(&layer.running_mean, mean, of_mean), (&layer.running_var, unbiased, of_variance)]
        {
            for (got, want) in to_f64(state.value_sync()).iter().zip(want) {
                let close = (got - want).abs() <= tolerance * want;
                assert!(close, "{name}: {got:e}, not {want:e}");
            }
        }
    }
}

// --- Modes and state ---

#[test]
fn an_attack_leaves_the_statistics_and_training_moves_them() {
    for (name, device) in devices() {
        let device = device.autodiff();
        let case = Case::new([4, 3, 5, 5], "silu", false, false);
        let layer = case.layer(&device, FloatDType::F32);
        let x = || tensor::<4>(&case.x, case.shape, &device, FloatDType::F32);
        layer.forward(x());
        let bits = |layer: &BatchNormAct| {
            [&layer.running_mean, &layer.running_var]
                .map(|state| to_vec(state.value_sync()).into_iter().map(f32::to_bits).collect())
        };
        let before: [Vec<u32>; 2] = bits(&layer);
        let frozen = layer.valid();
        assert_eq!(bits(&frozen), before, "{name}: `valid` sees the last update");
        let leaf = x().require_grad();
        let mut grads = frozen.forward(leaf.clone()).sum().backward();
        assert!(leaf.grad_remove(&mut grads).is_some(), "{name}");
        assert_eq!(bits(&frozen), before, "{name}: the attack moved the frozen statistics");
        assert_eq!(bits(&layer), before, "{name}: the attack moved the layer's statistics");

        let trained = frozen.train();
        assert!(trained.training.is_enabled());
        trained.forward(x());
        assert_ne!(bits(&trained), before, "{name}: training must move the statistics");
        assert_eq!(bits(&layer), before, "{name}: a layer made by `train` shares no state");
    }
}

#[test]
fn without_autodiff_the_running_statistics_are_used() {
    for (name, device) in devices() {
        let case = Case::new([4, 3, 5, 5], "gelu", true, true);
        let layer = case.layer(&device, FloatDType::F32);
        let place = |values: &[f64]| tensor::<4>(values, case.shape, &device, FloatDType::F32);
        let residual = place(case.residual.as_deref().unwrap());
        let y = layer.forward_with_residual(place(&case.x), residual);
        assert_close(&to_f64(y), &case.output(), 1e-5, name);
    }
}

#[test]
fn training_needs_two_values_a_channel_and_inference_does_not() {
    for (name, device) in devices() {
        let device = device.autodiff();
        let layer = BatchNormActConfig::new(3).with_activation(Curve::Relu).init(&device);
        let x = Tensor::<4>::ones([1, 3, 1, 1], &device);
        let refused = catch_unwind(AssertUnwindSafe(|| layer.forward(x.clone()))).unwrap_err();
        let message = refused.downcast::<String>().unwrap();
        assert!(message.contains("two values a channel"), "{name}: {message}");
        let y = to_vec(layer.valid().forward(x.inner()));
        let want = 1.0 / (1.0f32 + 1e-5).sqrt();
        assert!(y.iter().all(|y| (y - want).abs() < 1e-6), "{name}: {y:?}");
    }
}

#[test]
fn an_empty_batch_passes_in_inference_mode() {
    for (name, device) in devices() {
        let layer = BatchNormActConfig::new(3).with_activation(Curve::Silu).init(&device);
        let y = layer.forward(Tensor::<4>::zeros([0, 3, 4, 4], &device));
        assert_eq!(y.dims(), [0, 3, 4, 4], "{name}");
    }
}

#[test]
fn nan_in_is_nan_out() {
    let views = [View::Contiguous, View::ChannelsLast];
    for ((name, device), view) in devices().into_iter().flat_map(|d| views.map(|v| (d.clone(), v)))
    {
        for activation in [None, Some(Curve::Relu), Some(Curve::SmoothRelu(400.0))] {
            let mut config = BatchNormActConfig::new(2);
            config.activation = activation.map(Into::into);
            let layer = config.init(&device.clone().autodiff());
            let mut values = noise(2 * 2 * 9, 3);
            values[4] = f64::NAN;
            let x = view.see(view.place(&values, [2, 2, 3, 3], &device, FloatDType::F32));
            let y = to_vec(layer.valid().forward(x.clone()));
            let nans = y.iter().filter(|y| y.is_nan()).count();
            assert!(y[4].is_nan() && nans == 1, "{name} {view:?}: inference {activation:?}: {y:?}");

            // The statistics of its channel are no numbers either; those of the other one are.
            let leaf = x.autodiff().require_grad();
            let y = layer.forward(leaf.clone());
            let dx = leaf.grad(&y.clone().sum().backward()).unwrap();
            for (what, got) in [("y", y.inner()), ("dx", dx)] {
                let by_channel = to_vec(got.swap_dims(0, 1));
                let what =
                    format!("{name} {view:?}: training {activation:?}, {what}: {by_channel:?}");
                assert!(by_channel[18..].iter().all(|y| y.is_finite()), "{what}");
                // ReLU's gradient for the others is 0 times NaN.
                assert!(by_channel[..18].iter().all(|y| y.is_nan()), "{what}");
            }
        }
    }
}

// --- Number types, checkpointing, buffers ---

#[test]
fn half_precision_is_computed_in_f32() {
    for (name, device) in devices() {
        for dtype in [FloatDType::F16, FloatDType::BF16] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            // One rounding of the stored result, and another's of what it is computed from.
            let tolerance = if dtype == FloatDType::F16 { 2e-3 } else { 1.6e-2 };
            let [short, long] = [[6, 5, 7, 3], [1, 2, 17, 31]];
            for (shape, activation, residual, inference) in [
                (short, "silu", false, false),
                (short, "silu", true, false),
                (short, "silu", false, true),
                (short, "silu", true, true),
                (short, "psilu:2", true, false),
                (short, "psilu:2", false, true),
                (long, "silu", false, false),
                (long, "silu", false, true),
            ] {
                let mut case = Case::new(shape, activation, residual, inference);
                let round = |values: &mut Vec<f64>| {
                    let shape = [values.len()];
                    let rounded = tensor::<1>(values, shape, &device, dtype);
                    *values = to_f64(rounded);
                };
                round(&mut case.x);
                case.residual.as_mut().map(round);
                round(&mut case.weights);
                let what = describe(&case, View::Contiguous, name);
                // First with the layer in `f32`, as in mixed precision; then rounded too.
                for of_layer in [FloatDType::F32, dtype] {
                    if of_layer == dtype {
                        round(&mut case.gamma);
                        round(&mut case.beta);
                        case.running.iter_mut().flatten().for_each(round);
                    }
                    let (want_y, want) = case.run(&device, FloatDType::F32, View::Contiguous);
                    let (y, got) = case.run_mixed(&device, dtype, of_layer, View::Contiguous);
                    assert_close(&y, &want_y, tolerance / 4.0, &what);
                    for (got, want) in got.iter().zip(&want) {
                        assert_close(got, want, tolerance, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn statistics_of_half_precision_do_not_overflow() {
    // The sum of squares is far beyond the largest f16, 65,504.
    for (name, device) in devices() {
        if !device.supports_dtype(FloatDType::F16) {
            continue;
        }
        let device = device.autodiff();
        let x: Vec<f64> = noise(2 * 4096, 5).iter().map(|v| 200.0 * v).collect();
        let x = tensor::<4>(&x, [2, 1, 64, 64], &device, FloatDType::F16);
        let layer = BatchNormActConfig::new(1).init(&device);
        let y = to_f64(layer.forward(x).inner());
        let mean_square = y.iter().map(|y| y * y).sum::<f64>() / y.len() as f64;
        assert!((mean_square - 1.0).abs() < 1e-3, "{name}: {mean_square}");
    }
}

#[test]
fn gradient_checkpointing_gives_the_same_gradients() {
    for (name, device) in devices() {
        for (activation, residual, inference) in [
            ("silu", false, false),
            ("silu", true, false),
            ("smooth-relu-learnable", false, true),
            ("pssilu:1.5,0.25@layer", true, true),
            ("smooth-relu-learnable", true, false),
        ] {
            let case = Case::new([4, 3, 5, 5], activation, residual, inference);
            let run = |device: Device| {
                let layer = case.layer(&device, FloatDType::F32);
                let place = |values: &[f64]| {
                    tensor::<4>(values, case.shape, &device, FloatDType::F32).require_grad()
                };
                let x = place(&case.x);
                let r = case.residual.as_deref().map(place);
                // Through operations that are themselves recomputed, before and behind.
                let input = activate(x.clone() * 2.0, Curve::Gelu);
                let y = match &r {
                    None => layer.forward(input),
                    Some(r) => layer.forward_with_residual(input, r.clone() * 0.5),
                };
                let y = activate(y.exp(), Curve::Softplus);
                let grads = (y * place(&case.weights).detach()).sum().backward();
                let mut all = vec![to_vec(x.grad(&grads).unwrap())];
                all.extend(r.map(|r| to_vec(r.grad(&grads).unwrap())));
                let learned = layer.activation.as_ref().and_then(Activation::parameters);
                let learned = learned.map(|learned| learned.val());
                for vector in [layer.gamma.val(), layer.beta.val()].into_iter().chain(learned) {
                    all.push(to_vec(vector.grad(&grads).unwrap()));
                }
                all
            };
            let plain = run(device.clone().autodiff());
            let recomputed = run(device.clone().autodiff().gradient_checkpointing());
            // Not to the bit: fusion groups the recomputed operations in another way.
            for (plain, again) in plain.iter().flatten().zip(recomputed.iter().flatten()) {
                let close = (plain - again).abs() <= 1e-5 * plain.abs().max(1.0);
                let what = describe(&case, View::Contiguous, name);
                assert!(close, "{what}: {plain}, recomputed {again}");
            }
        }
    }
}

#[test]
fn no_tensor_held_elsewhere_is_overwritten() {
    for (name, device) in devices() {
        let modes = [(false, false), (true, false), (false, true), (true, true)];
        let shapes = [[4, 3, 5, 5], [1, 2, 17, 31]];
        for (shape, (residual, inference)) in shapes.into_iter().flat_map(|s| modes.map(|m| (s, m)))
        {
            let case = Case::new(shape, "silu", residual, inference);
            let what = describe(&case, View::Contiguous, name);
            // Without autodiff, where the input may be overwritten: once held, once not.
            let frozen = Case {
                running: case.running.clone().or_else(|| Some(case.statistics())),
                ..case.clone()
            };
            let layer = frozen.layer(&device, FloatDType::F32);
            let place = |values: &[f64]| tensor::<4>(values, case.shape, &device, FloatDType::F32);
            let forward = |x: Tensor<4>, r: Option<Tensor<4>>| match r {
                None => layer.forward(x),
                Some(r) => layer.forward_with_residual(x, r),
            };
            let (x, r) = (place(&case.x), case.residual.as_deref().map(place));
            let held = forward(x.clone(), r.clone());
            assert_eq!(to_vec(x.clone()), to_vec(place(&case.x)), "{what}: x");
            if let (Some(r), Some(values)) = (&r, &case.residual) {
                assert_eq!(to_vec(r.clone()), to_vec(place(values)), "{what}: residual");
            }
            let moved = forward(place(&case.x), case.residual.as_deref().map(place));
            assert_eq!(to_vec(held), to_vec(moved), "{what}: in place");
            if residual {
                let x = place(&case.x);
                let twice = forward(x.clone(), Some(x));
                let apart = forward(place(&case.x), Some(place(&case.x)));
                assert_eq!(to_vec(twice), to_vec(apart), "{what}: one tensor as both");
            }

            // The same x as input, residual and input of another operation; the gradient of y goes
            // two ways, so its buffer is shared.
            let tracked = device.clone().autodiff();
            let layer = case.layer(&tracked, FloatDType::F32);
            let run = |separate: bool| {
                let x = tensor::<4>(&case.x, case.shape, &tracked, FloatDType::F32).require_grad();
                let copy = |t: &Tensor<4>| if separate { t.clone() * 1.0 } else { t.clone() };
                let y = match residual {
                    false => layer.forward(copy(&x)),
                    true => layer.forward_with_residual(copy(&x), copy(&x)),
                };
                let loss = (copy(&y) + copy(&x)) * copy(&y) + activate(copy(&x), Curve::Silu);
                to_f64(x.grad(&loss.sum().backward()).unwrap())
            };
            assert_close(&run(false), &run(true), 1e-6, &what);
        }
    }
}

#[test]
fn threads_share_a_layer_and_its_inputs() {
    for (name, device) in devices() {
        let case = Case::new([4, 3, 5, 5], "silu", true, false);
        let device = device.autodiff();
        let layer = case.layer(&device, FloatDType::F32);
        let place = |values: &[f64]| tensor::<4>(values, case.shape, &device, FloatDType::F32);
        let run = |x: Tensor<4>, residual: Tensor<4>| {
            let x = x.require_grad();
            let y = layer.forward_with_residual(x.clone(), residual);
            (y.clone(), x.grad(&y.powi_scalar(2).sum().backward()).unwrap())
        };
        let residual = case.residual.as_deref().unwrap();
        let (y, dx) = run(place(&case.x), place(residual));
        let (x, r) = (place(&case.x), place(residual));
        let (other_y, other_dx) = thread::scope(|s| s.spawn(|| run(x, r)).join().unwrap());
        assert_close(&to_f64(other_y), &to_f64(y), 1e-6, name);
        assert_close(&to_f64(other_dx), &to_f64(dx), 1e-5, name);
    }
}

// --- Configuration, conversion, activations ---

#[test]
fn a_learnable_activation_trains_behind_the_normalisation() {
    for (name, device) in devices() {
        let device = device.autodiff();
        let case = Case::new([4, 3, 5, 5], "none", true, false);
        let config = ActivationConfig::SMOOTH_RELU_LEARNABLE;
        let layer =
            case.layer(&device, FloatDType::F32).with_activation(Some(config.init(&device)));
        let place = |values: &[f64]| tensor::<4>(values, case.shape, &device, FloatDType::F32);
        let residual = place(case.residual.as_deref().unwrap());
        let y = layer.forward_with_residual(place(&case.x), residual);
        let grads = (y.clone() * place(&case.weights)).sum().backward();
        let b = layer.activation.as_ref().unwrap().parameters().unwrap();
        let got = to_f64(b.val().grad(&grads).unwrap());

        let curve = Curve::SmoothRelu(400.0);
        let z = case.preactivation();
        let want_y: Vec<f64> = z.iter().map(|z| curve.value(*z)).collect();
        let terms = z.iter().zip(&case.weights);
        let want: f64 =
            terms.map(|(z, w)| w * curve.parameter_derivatives(*z)[0] * 2.0 * 20.0).sum();
        assert_close(&to_f64(y.inner()), &want_y, 1e-5, name);
        assert!((got[0] - want).abs() <= 1e-4 * want.abs(), "{name}: {} not {want}", got[0]);
    }
}

#[test]
fn the_gradient_can_be_exchanged() {
    for (name, device) in devices() {
        let case = Case::new([4, 3, 5, 5], "relu~psoftplus:10", false, true);
        let (want, _) = (case.gradients(), ());
        let device = device.autodiff();
        let gradient = Gradient::Of(Curve::ParametricSoftplus(10.0));
        let layer = Case { activation: "relu", ..case.clone() }
            .layer(&device, FloatDType::F32)
            .with_gradient(gradient);
        let x = tensor::<4>(&case.x, case.shape, &device, FloatDType::F32).require_grad();
        let weights = tensor::<4>(&case.weights, case.shape, &device, FloatDType::F32);
        let grads = (layer.forward(x.clone()) * weights).sum().backward();
        assert_close(&to_f64(x.grad(&grads).unwrap()), &want[0], 5e-5, name);
    }
}

#[test]
fn other_ranks_have_their_channels_on_the_second_axis_too() {
    for (name, device) in devices() {
        let case = Case::new([6, 4, 3, 5], "silu", false, true);
        let layer = case.layer(&device, FloatDType::F32);
        let x = tensor::<4>(&case.x, case.shape, &device, FloatDType::F32);
        let want = to_vec(layer.forward(x.clone()));
        let close =
            |got: Vec<f32>| got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-5);
        assert!(close(to_vec(layer.forward::<3>(x.clone().reshape([6, 4, 15])))), "{name}");
        let flat = x.clone().permute([0, 2, 3, 1]).reshape([90, 4]);
        let flat = layer.forward::<2>(flat).reshape([6, 3, 5, 4]);
        assert!(close(to_vec(flat.permute([0, 3, 1, 2]))), "{name}");
        let wrong = AssertUnwindSafe(|| layer.forward(x.swap_dims(0, 1)));
        assert!(catch_unwind(wrong).is_err(), "{name}: six channels for a layer of four");
    }
}

#[test]
fn conversion_from_and_to_burn_s_layer_keeps_everything() {
    for (name, device) in devices() {
        let device = device.autodiff();
        let norm = BatchNormConfig::new(3).with_epsilon(1e-3).with_momentum(0.25).init(&device);
        norm.forward(Tensor::<4>::from_data(
            TensorData::new(noise(24, 1), [2, 3, 2, 2]).convert::<f32>(),
            &device,
        ));
        let ids = |norm: &BatchNorm| (norm.gamma.id, norm.beta.id);
        let (want_ids, mean) = (ids(&norm), to_vec(norm.running_mean.value_sync()));
        let variance = to_vec(norm.running_var.value_sync());
        let x = Tensor::<4>::from_data(
            TensorData::new(noise(24, 2), [2, 3, 2, 2]).convert::<f32>(),
            &device,
        );
        let want = to_vec(norm.valid().forward(x.clone().inner()));

        let ours = BatchNormAct::from(norm);
        assert!(ours.activation.is_none());
        assert_eq!((ours.epsilon(), ours.momentum()), (1e-3, 0.25), "{name}");
        let got = to_vec(ours.valid().forward(x.inner()));
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
        let silu = ActivationConfig::from(Curve::Silu).init(&device);
        let (back, activation) = ours.with_activation(Some(silu)).into_parts();
        assert_eq!(activation.unwrap().config(), &ActivationConfig::from(Curve::Silu));
        assert_eq!(ids(&back), want_ids, "{name}");
        assert_eq!((back.epsilon, back.momentum), (1e-3, 0.25), "{name}");
        assert_eq!(to_vec(back.running_mean.value_sync()), mean, "{name}");
        assert_eq!(to_vec(back.running_var.value_sync()), variance, "{name}");
    }
}

#[test]
fn bad_configurations_are_refused() {
    let config = || BatchNormActConfig::new(4);
    assert_eq!(BatchNormActConfig::new(0).validate(), Err(NormError::NoChannels));
    for epsilon in [0.0, -1e-5, f64::INFINITY] {
        assert_eq!(config().with_epsilon(epsilon).validate(), Err(NormError::Epsilon(epsilon)));
    }
    for momentum in [-0.1, 1.1] {
        let refused = config().with_momentum(momentum).validate();
        assert_eq!(refused, Err(NormError::Momentum(momentum)));
    }
    assert!(config().with_momentum(f64::NAN).validate().is_err());
    let activation = config().with_activation(Curve::Elu(-1.0)).validate();
    assert!(matches!(activation, Err(NormError::Activation(_))));
    assert_eq!(config().with_activation(Curve::Silu).validate(), Ok(()));
}

#[test]
fn a_configuration_has_a_text_form() {
    let config = BatchNormActConfig::new(8).with_momentum(0.01).with_activation(Curve::Gelu);
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(text, r#"{"channels":8,"epsilon":0.00001,"momentum":0.01,"activation":"gelu"}"#);
    assert_eq!(serde_json::from_str::<BatchNormActConfig>(&text).unwrap(), config);
    let short: BatchNormActConfig = serde_json::from_str(r#"{"channels":8}"#).unwrap();
    assert_eq!(short, BatchNormActConfig::new(8));
}

/// By these names stores map PyTorch's tensors to the fields of a module.
#[test]
fn stores_see_burns_layer() {
    #[derive(Default)]
    struct Places {
        entered: Vec<(String, String)>,
        found: Vec<Vec<(String, String)>>,
    }
    impl ModuleVisitor for Places {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.entered.push((name.into(), container.into()));
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.entered.pop();
        }
        fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
            self.found.push(self.entered.clone());
        }
    }
    fn places(module: &impl Module) -> Vec<Vec<(String, String)>> {
        let mut places = Places::default();
        module.visit(&mut places);
        places.found
    }
    let (_, device) = devices().remove(0);
    let ours = BatchNormActConfig::new(3).with_activation(Curve::Silu).init(&device);
    let burns = BatchNormConfig::new(3).init(&device);
    assert_eq!(places(&ours), places(&burns));
    assert_eq!(places(&ours).len(), 4);
    assert_eq!(ours.num_params(), burns.num_params());
    assert!(ours.to_string().starts_with("BatchNormAct {"), "{ours}");
}
