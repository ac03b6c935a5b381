//! Kernels for every CubeCL runtime.
//!
//! One pass over the data each way, arithmetic in `f32`, in place where nobody else holds the buffer,
//! in the order in which the input lies in memory. `f64` tensors run in the composed form, whose
//! arithmetic is `f64`, but for WebGPU, whose languages have no `f64` exponential.

mod record;

use super::{ActivationBackend, Pair, composed};
use crate::curve::{Curve, Formula, Visitor};
use burn::{
    backend::{ops::FloatTensorOps, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeBackend,
    cubecl::{
        self, calculate_cube_count_elemwise,
        ir::ElemType,
        prelude::*,
        std::tensor::layout::linear::{LinearView, LinearViewMut},
        tensor_vector_size_parallel,
    },
    kernel::cast,
    ops::numeric::empty_device_dtype,
    tensor::CubeTensor,
};
pub(super) use record::{
    Fixed, fixed_slope, fixed_value, learned_slope, learned_value, parameter_slope,
};

impl ActivationBackend for CubeBackend {
    fn activation(x: FloatTensor<Self>, pair: Pair) -> FloatTensor<Self> {
        if is_composed(&x) {
            return composed::value::<Self>(x, None, pair.value);
        }
        pair.value.visit(Map { x, grad: None, parameters: None })
    }

    fn activation_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        if is_composed(&x) {
            return composed::backward::<Self>(x, None, grad, curve);
        }
        curve.visit(Map { x, grad: Some(grad), parameters: None })
    }

    fn parametric_activation(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        pair: Pair,
    ) -> FloatTensor<Self> {
        if is_composed(&x) {
            return composed::value::<Self>(x, Some(parameters), pair.value);
        }
        pair.value.visit(Map { x, grad: None, parameters: Some(parameters) })
    }

    fn parametric_activation_backward(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        if is_composed(&x) {
            return composed::backward::<Self>(x, Some(parameters), grad, curve);
        }
        curve.visit(Map { x, grad: Some(grad), parameters: Some(parameters) })
    }

    fn parametric_activation_parameter_backward(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        if is_composed(&x) {
            return composed::parameter_backward::<Self>(x, parameters, grad, curve);
        }
        if x.meta.num_elements() == 0 {
            return Self::float_mul_scalar(parameters, 0.0.into());
        }
        let count = curve.parameters().len();
        let dtype = parameters.dtype;
        let sums = (0..count).map(|which| {
            let (x, grad, parameters) = (x.clone(), grad.clone(), parameters.clone());
            let parts = curve.visit(PartialSums { x, grad, parameters, which });
            Self::float_reshape(Self::float_sum(parts), Shape::from([1]))
        });
        cast(Self::float_cat(sums.collect(), 0), dtype)
    }
}

/// Whether the kernels leave a tensor to the composed form.
pub(super) fn is_composed(x: &CubeTensor) -> bool {
    match x.dtype {
        DType::F64 => !computes_f64_in_f32(x.client.name()),
        // f32 in the kernels of some devices, f16 in those of others.
        DType::Flex32 => true,
        _ => false,
    }
}

/// WGSL and Vulkan's SPIR-V have no exponential of `f64`.
fn computes_f64_in_f32(runtime: &str) -> bool {
    runtime.contains("wgpu")
}

// --- Launching ---

struct Map {
    x: CubeTensor,
    /// What the slope is multiplied with; the value is computed where there is none.
    grad: Option<CubeTensor>,
    parameters: Option<CubeTensor>,
}

impl Visitor for Map {
    type Output = CubeTensor;
    fn visit<F: Formula>(self, fixed: [f64; 2]) -> CubeTensor {
        let shape = self.x.meta.shape().clone();
        if shape.num_elements() == 0 {
            return self.x;
        }
        let order = memory_order(&self.x);
        let x = permuted(self.x, &order);
        let grad = self.grad.map(|grad| {
            assert_eq!(*grad.meta.shape(), shape, "a gradient has the shape of its input");
            permuted(grad, &order)
        });
        let out = launch_map::<F>(x, grad, self.parameters, fixed);
        let mut inverse = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
        permuted(out, &inverse)
    }
}

fn launch_map<F: Formula>(
    x: CubeTensor,
    grad: Option<CubeTensor>,
    parameters: Option<CubeTensor>,
    fixed: [f64; 2],
) -> CubeTensor {
    let client = x.client.clone();
    let dtype = x.dtype;
    let elem = elem_type(dtype);
    let vector = grad.iter().map(vector_size).fold(vector_size(&x), Ord::min);
    let units = x.meta.num_elements() / vector;
    let dim = CubeDim::new(&client, units);
    let count = calculate_cube_count_elemwise(&client, units, dim);
    let parameters = parameters.map(|parameters| cast(parameters, DType::F32));
    let in_place = |tensor: &CubeTensor| tensor.handle.can_mut() && tensor.is_nonoverlapping();
    let fresh = || {
        let shape = Shape::from(x.meta.shape().to_vec());
        empty_device_dtype(client.clone(), x.device.clone(), shape, dtype)
    };
    // The output takes the place of the gradient, or of the input where there is no gradient.
    let target = grad.as_ref().unwrap_or(&x);
    let reused = in_place(target) && target.dtype == dtype;
    let out = if reused { target.clone() } else { fresh() };
    let address = x.required_address_type().max(out.required_address_type());
    let view = |last: usize| {
        if reused { out.as_linear_view_alias(last) } else { out.clone().into_linear_view() }
    };
    // SAFETY: every kernel returns at once outside the bounds of its output, and the views of one
    // launch have one shape.
    unsafe {
        match (grad, parameters) {
            (None, None) => forward_fixed::launch_unchecked::<F>(
                &client,
                count,
                dim,
                address,
                vector,
                x.into_linear_view(),
                view(0),
                Fixed::new(fixed),
                elem,
            ),
            (None, Some(parameters)) => forward_learned::launch_unchecked::<F>(
                &client,
                count,
                dim,
                address,
                vector,
                x.into_linear_view(),
                parameters.into_linear_view(),
                view(0),
                elem,
            ),
            (Some(grad), None) => backward_fixed::launch_unchecked::<F>(
                &client,
                count,
                dim,
                address.max(grad.required_address_type()),
                vector,
                x.into_linear_view(),
                grad.into_linear_view(),
                view(1),
                Fixed::new(fixed),
                elem,
            ),
            (Some(grad), Some(parameters)) => backward_learned::launch_unchecked::<F>(
                &client,
                count,
                dim,
                address.max(grad.required_address_type()),
                vector,
                x.into_linear_view(),
                grad.into_linear_view(),
                parameters.into_linear_view(),
                view(1),
                elem,
            ),
        }
    }
    out
}

/// The first stage of the sum of grad times the slope by one parameter: as many sums as units of
/// work; Burn adds them up.
struct PartialSums {
    x: CubeTensor,
    grad: CubeTensor,
    parameters: CubeTensor,
    which: usize,
}

/// Units of work of the first stage, enough to fill a GPU.
const UNITS: usize = 1 << 16;

impl Visitor for PartialSums {
    type Output = CubeTensor;
    fn visit<F: Formula>(self, _: [f64; 2]) -> CubeTensor {
        let order = memory_order(&self.x);
        let (x, grad) = (permuted(self.x, &order), permuted(self.grad, &order));
        let client = x.client.clone();
        let vector = vector_size(&x).min(vector_size(&grad));
        let vectors = x.meta.num_elements() / vector;
        let units = vectors.min(UNITS);
        let dim = CubeDim::new(&client, units);
        let count = calculate_cube_count_elemwise(&client, units, dim);
        let sums =
            empty_device_dtype(client.clone(), x.device.clone(), Shape::from([units]), DType::F32);
        let address = x.required_address_type().max(grad.required_address_type());
        let elem = elem_type(x.dtype);
        // SAFETY: the kernel returns at once outside the bounds of the sums and stays below the
        // number of vectors.
        unsafe {
            partial_sums::launch_unchecked::<F>(
                &client,
                count,
                dim,
                address,
                vector,
                x.into_linear_view(),
                grad.into_linear_view(),
                cast(self.parameters, DType::F32).into_linear_view(),
                sums.clone().into_linear_view(),
                vectors,
                units,
                self.which,
                elem,
            );
        }
        sums
    }
}

pub(super) fn elem_type(dtype: DType) -> ElemType {
    match dtype {
        DType::F64 => f64::elem_type_native(),
        DType::F32 => f32::elem_type_native(),
        DType::F16 => burn::tensor::f16::elem_type_native(),
        DType::BF16 => burn::tensor::bf16::elem_type_native(),
        other => panic!("activations work on f64, f32, f16 and bf16 tensors, not on {other:?}"),
    }
}

/// How many neighbours a unit can load at once.
pub(super) fn vector_size(x: &CubeTensor) -> usize {
    let axes = x.meta.num_dims();
    if axes == 0 {
        return 1;
    }
    tensor_vector_size_parallel(
        x.client.io_optimized_vector_sizes(x.dtype.size()),
        x.meta.shape(),
        x.meta.strides(),
        axes - 1,
    )
}

/// The axes by falling stride: elementwise work does not care about the order of the axes, and walks
/// memory in order if they are sorted so.
fn memory_order(x: &CubeTensor) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.meta.num_dims()).collect();
    order.sort_by_key(|axis| core::cmp::Reverse(x.meta.strides()[*axis]));
    order
}

pub(super) fn permuted(x: CubeTensor, order: &[usize]) -> CubeTensor {
    if order.is_sorted() { x } else { burn_cubecl::ops::permute(x, order) }
}

// --- Kernels ---

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_fixed<E: Float, N: Size, F: Formula>(
    x: LinearView<'_, Vector<E, N>>,
    mut y: LinearViewMut<'_, Vector<E, N>>,
    #[comptime] parameters: Fixed,
    #[define(E)] _elem: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let value = fixed_value::<F, N>(Vector::cast_from(x.read(ABSOLUTE_POS)), parameters);
    y.write(ABSOLUTE_POS, Vector::cast_from(value));
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_learned<E: Float, N: Size, F: Formula>(
    x: LinearView<'_, Vector<E, N>>,
    parameters: LinearView<'_, f32>,
    mut y: LinearViewMut<'_, Vector<E, N>>,
    #[define(E)] _elem: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (a, b) = read_parameters::<N>(&parameters);
    let value = learned_value::<F, N>(Vector::cast_from(x.read(ABSOLUTE_POS)), a, b);
    y.write(ABSOLUTE_POS, Vector::cast_from(value));
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_fixed<E: Float, N: Size, F: Formula>(
    x: LinearView<'_, Vector<E, N>>,
    grad: LinearView<'_, Vector<E, N>>,
    mut dx: LinearViewMut<'_, Vector<E, N>>,
    #[comptime] parameters: Fixed,
    #[define(E)] _elem: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let slope = fixed_slope::<F, N>(Vector::cast_from(x.read(ABSOLUTE_POS)), parameters);
    let grad = Vector::<f32, N>::cast_from(grad.read(ABSOLUTE_POS));
    dx.write(ABSOLUTE_POS, Vector::cast_from(grad * slope));
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_learned<E: Float, N: Size, F: Formula>(
    x: LinearView<'_, Vector<E, N>>,
    grad: LinearView<'_, Vector<E, N>>,
    parameters: LinearView<'_, f32>,
    mut dx: LinearViewMut<'_, Vector<E, N>>,
    #[define(E)] _elem: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (a, b) = read_parameters::<N>(&parameters);
    let slope = learned_slope::<F, N>(Vector::cast_from(x.read(ABSOLUTE_POS)), a, b);
    let grad = Vector::<f32, N>::cast_from(grad.read(ABSOLUTE_POS));
    dx.write(ABSOLUTE_POS, Vector::cast_from(grad * slope));
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn partial_sums<E: Float, N: Size, F: Formula>(
    x: LinearView<'_, Vector<E, N>>,
    grad: LinearView<'_, Vector<E, N>>,
    parameters: LinearView<'_, f32>,
    mut sums: LinearViewMut<'_, f32>,
    vectors: usize,
    units: usize,
    #[comptime] which: usize,
    #[define(E)] _elem: ElemType,
) {
    if !sums.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (a, b) = read_parameters::<N>(&parameters);
    let mut sum = Vector::<f32, N>::new(0.0);
    // Neighbouring units read neighbouring vectors.
    let mut at = ABSOLUTE_POS;
    while at < vectors {
        let slope = parameter_slope::<F, N>(Vector::cast_from(x.read(at)), a, b, which);
        sum += Vector::<f32, N>::cast_from(grad.read(at)) * slope;
        at += units;
    }
    sums.write(ABSOLUTE_POS, sum.vector_sum());
}

/// a and b; a again for a curve of one parameter, which does not look at b.
#[cube]
pub(super) fn read_parameters<N: Size>(
    parameters: &LinearView<'_, f32>,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let last = parameters.shape() - 1;
    (Vector::new(parameters.read(0)), Vector::new(parameters.read(last)))
}
