//! A kernel for every CubeCL runtime: one pass over the data, in the place of the gradient where nobody
//! else holds it. Types other than `f32` run in the composed form.

use super::{super::cube::vector_size, StepBackend, composed};
use burn::{backend::tensor::FloatTensor, tensor::DType};
use burn_cubecl::{
    CubeBackend,
    cubecl::{
        self, calculate_cube_count_elemwise,
        prelude::*,
        std::tensor::layout::linear::{LinearView, LinearViewMut},
    },
    ops::numeric::empty_device_dtype,
    tensor::CubeTensor,
};

impl StepBackend for CubeBackend {
    fn sign_step(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        size: FloatTensor<Self>,
        lower: FloatTensor<Self>,
        upper: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if x.dtype != DType::F32 || x.meta.num_elements() == 0 {
            return composed::sign_step::<Self>(x, gradient, size, lower, upper);
        }
        launch(x, gradient, size, [lower, upper])
    }
}

fn launch(
    x: CubeTensor,
    gradient: CubeTensor,
    size: CubeTensor,
    [lower, upper]: [CubeTensor; 2],
) -> CubeTensor {
    let client = x.client.clone();
    let inputs = [&x, &gradient, &lower, &upper];
    let sample = x.meta.num_elements() / size.meta.num_elements();
    // A vector lies in one row of the last axis, so in one sample, unless that axis is the samples' own.
    let vector = inputs.map(vector_size).into_iter().fold(usize::MAX, Ord::min);
    let vector = if sample.is_multiple_of(vector) { vector } else { 1 };
    let vectors = x.meta.num_elements() / vector;
    let of_sample = sample / vector;
    let dim = CubeDim::new(&client, vectors);
    let reused = gradient.handle.can_mut() && gradient.is_nonoverlapping();
    let out = if reused {
        gradient.clone()
    } else {
        empty_device_dtype(client.clone(), x.device.clone(), x.meta.shape().clone(), x.dtype)
    };
    let address = inputs
        .into_iter()
        .map(CubeTensor::required_address_type)
        .fold(out.required_address_type(), Ord::max);
    let view = if reused { out.as_linear_view_alias(1) } else { out.clone().into_linear_view() };
    // SAFETY: the kernel returns at once outside the bounds of its output, and the views of all
    // tensors but the sizes are as long as each other.
    unsafe {
        step::launch_unchecked(
            &client,
            calculate_cube_count_elemwise(&client, vectors, dim),
            dim,
            address,
            vector,
            x.into_linear_view(),
            gradient.into_linear_view(),
            size.into_linear_view(),
            lower.into_linear_view(),
            upper.into_linear_view(),
            view,
            of_sample,
        );
    }
    out
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn step<N: Size>(
    x: LinearView<'_, Vector<f32, N>>,
    gradient: LinearView<'_, Vector<f32, N>>,
    size: LinearView<'_, f32>,
    lower: LinearView<'_, Vector<f32, N>>,
    upper: LinearView<'_, Vector<f32, N>>,
    mut out: LinearViewMut<'_, Vector<f32, N>>,
    of_sample: usize,
) {
    if !out.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let gradient = gradient.read(ABSOLUTE_POS);
    let (lower, upper) = (lower.read(ABSOLUTE_POS), upper.read(ABSOLUTE_POS));
    let zero = Vector::<f32, N>::new(0.0);
    let size = size.read(ABSOLUTE_POS / of_sample);
    let (up, down) = (Vector::<f32, N>::new(size), Vector::<f32, N>::new(-size));
    // NaN is neither above nor below.
    let change = select_many(gradient.less_than(&zero), down, zero);
    let change = select_many(gradient.greater_than(&zero), up, change);
    let y = x.read(ABSOLUTE_POS) + change;
    let y = select_many(y.less_than(&lower), lower, y);
    out.write(ABSOLUTE_POS, select_many(upper.less_than(&y), upper, y));
}
