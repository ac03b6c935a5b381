//! Kernels for every CubeCL runtime.
//!
//! One pass over the data each, arithmetic in `f32`, in place where nobody else holds the buffer, in the
//! order in which x lies in memory. Sums over channels have two stages: each cube sums up a part of
//! some channels, and one cube adds up the parts, always in the same order. The curve's part of a kernel
//! is recorded from its formula. What [`is_composed`] says of `f64` tensors holds here too.

use super::{
    super::{
        Pair,
        cube::{
            Fixed, elem_type, fixed_slope, fixed_value, is_composed, learned_slope, learned_value,
            parameter_slope, permuted, read_parameters, vector_size,
        },
    },
    NormActivation, NormBackend, Optional, composed,
};
use crate::{
    curve::{Curve, Formula, Visitor},
    value::Value,
};
use burn::{
    backend::tensor::FloatTensor,
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeBackend,
    cubecl::{
        self, calculate_cube_count_elemwise,
        client::Client,
        ir::{AddressType, ElemType},
        prelude::*,
        std::tensor::layout::linear::{LinearView, LinearViewLaunch, LinearViewMut},
    },
    kernel::cast,
    ops::{numeric::empty_device_contiguous_dtype, reshape},
    tensor::CubeTensor,
};

impl NormBackend for CubeBackend {
    fn affine_activation(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        activation: NormActivation<Self>,
    ) -> FloatTensor<Self> {
        let residual = residual.into_option();
        if is_left_out(&x) {
            return composed::forward::<Self>(x, affine, residual, activation);
        }
        let (curve, parameters) = curve_of(activation, |pair| pair.value);
        visit(curve, Forward { x, affine, residual, parameters })
    }

    fn channel_statistics(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_left_out(&x) {
            return composed::statistics::<Self>(x);
        }
        statistics(x)
    }

    fn affine_activation_backward(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
        correction: Optional<Self>,
    ) -> FloatTensor<Self> {
        let (residual, correction) = (residual.into_option(), correction.into_option());
        if is_left_out(&x) {
            return composed::backward::<Self>(x, affine, residual, grad, activation, correction);
        }
        let (slope, parameters) = curve_of(activation, |pair| pair.slope());
        let dz = Dz::Dropped;
        visit(slope, Backward { x, affine, residual, grad, parameters, correction, dz }).0
    }

    fn affine_activation_backward_both(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if is_left_out(&x) {
            return composed::backward_both::<Self>(x, affine, residual, grad, activation);
        }
        let (slope, parameters) = curve_of(activation, |pair| pair.slope());
        let (residual, correction, dz) = (Some(residual), None, Dz::Kept);
        let (dx, dz) =
            visit(slope, Backward { x, affine, residual, grad, parameters, correction, dz });
        (dx, dz.expect("dz is kept"))
    }

    fn affine_activation_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
    ) -> FloatTensor<Self> {
        let residual = residual.into_option();
        if is_left_out(&x) {
            return composed::sums::<Self>(x, affine, residual, grad, activation);
        }
        let (slope, parameters) = curve_of(activation, |pair| pair.slope());
        visit(slope, Sums { x, affine, residual, grad, parameters, dz: Dz::Dropped }).1
    }

    fn affine_activation_gradient_and_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let residual = residual.into_option();
        if is_left_out(&x) {
            return composed::gradient_and_sums::<Self>(x, affine, residual, grad, activation);
        }
        let (slope, parameters) = curve_of(activation, |pair| pair.slope());
        let (dz, sums) = visit(slope, Sums { x, affine, residual, grad, parameters, dz: Dz::Kept });
        (dz.expect("dz is kept"), sums)
    }
}

/// Whether the kernels leave a tensor to the composed form. There is nothing to launch for an empty
/// one.
fn is_left_out(x: &CubeTensor) -> bool {
    is_composed(x) || x.meta.num_elements() == 0
}

/// f(z) = z, where there is no activation.
struct Identity;

impl Formula for Identity {
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        x
    }
    fn slope<V: Value>(_: V, _: [V; 2]) -> V {
        V::lit(1.0)
    }
    fn curvature_bound(_: [f64; 2]) -> f64 {
        0.0
    }
}

/// One of the curves of an activation, and learned parameters in the type the kernels compute in.
fn curve_of(
    activation: NormActivation<CubeBackend>,
    choose: fn(Pair) -> Curve,
) -> (Option<Curve>, Option<CubeTensor>) {
    match activation.into_parts() {
        None => (None, None),
        Some((pair, parameters)) => (Some(choose(pair)), parameters.map(single)),
    }
}

fn visit<V: Visitor>(curve: Option<Curve>, visitor: V) -> V::Output {
    match curve {
        Some(curve) => curve.visit(visitor),
        None => visitor.visit::<Identity>([f64::NAN; 2]),
    }
}

// --- Tensors as planes of channels ---

/// The order in which the kernels go over tensors of one shape: element i belongs to channel
/// (i / inner) % channels. `inner` is the number of pixels for NCHW and 1 for channels-last.
struct Planes {
    channels: usize,
    inner: usize,
    /// The axes in that order, and their sizes.
    order: Vec<usize>,
    shape: Shape,
}

impl Planes {
    fn of(x: &CubeTensor) -> Self {
        let (shape, strides) = (x.meta.shape(), x.meta.strides());
        let channels = shape[1];
        let axes = 0..shape.num_dims();
        let others = || axes.clone().filter(|axis| *axis != 1);
        let channels_last =
            channels > 1 && others().all(|axis| shape[axis] == 1 || strides[axis] > strides[1]);
        let (order, inner): (Vec<usize>, _) = if channels_last {
            (others().chain([1]).collect(), 1)
        } else {
            (axes.collect(), shape[2..].iter().product())
        };
        let ordered: Vec<usize> = order.iter().map(|axis| shape[*axis]).collect();
        Self { channels, inner, order, shape: ordered.into() }
    }

    /// The tensor with its axes in order; as few of them as there can be if it is dense, so that
    /// vectors may cross rows.
    fn see(&self, tensor: CubeTensor) -> CubeTensor {
        let tensor = permuted(tensor, &self.order);
        assert_eq!(*tensor.meta.shape(), self.shape, "x, residual and gradient differ in shape");
        if tensor.is_contiguous() {
            let last = if self.inner == 1 { self.channels } else { self.inner };
            reshape(tensor, Shape::from([self.shape.num_elements() / last, last]))
        } else {
            tensor
        }
    }

    /// The tensor as it was before [`see`](Self::see).
    fn restore(&self, tensor: CubeTensor) -> CubeTensor {
        let mut inverse = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
        permuted(reshape(tensor, self.shape.clone()), &inverse)
    }
}

/// A pass in units of vectors: vector i belongs to column (i / run) % columns, which is a channel, or
/// as many as there are numbers in a vector.
#[derive(Clone, Copy)]
struct Vectors {
    /// The size of a vector of x, and of a vector of channels.
    sizes: [usize; 2],
    columns: usize,
    run: usize,
    /// The number of vectors.
    count: usize,
    address: AddressType,
}

impl Vectors {
    /// The largest that suit all tensors and do not exceed a size.
    fn new(planes: &Planes, tensors: &[&CubeTensor], rows: &[&CubeTensor], largest: usize) -> Self {
        let of_channels = if planes.inner == 1 { rows } else { &[] };
        let all = tensors.iter().chain(of_channels);
        let size = all.map(|tensor| vector_size(tensor)).fold(largest, Ord::min);
        let address = tensors.iter().map(|tensor| tensor.required_address_type()).max();
        let (of_channels, run) =
            if planes.inner == 1 { (size, 1) } else { (1, planes.inner / size) };
        Self {
            sizes: [size, of_channels],
            columns: planes.channels / of_channels,
            run,
            count: planes.shape.num_elements() / size,
            address: address.unwrap_or_default(),
        }
    }
}

fn assert_same_type(x: &CubeTensor, others: &[&CubeTensor]) {
    let same = others.iter().all(|other| other.dtype == x.dtype);
    assert!(same, "x, residual and gradient differ in type");
}

fn is_reusable(tensor: &CubeTensor) -> bool {
    tensor.handle.can_mut() && tensor.is_nonoverlapping()
}

/// Where a pass writes: in the place of one of its inputs, known by its position among them, or in a
/// buffer of its own.
struct Target {
    tensor: CubeTensor,
    input: Option<usize>,
}

impl Target {
    /// In the place of the first of some inputs that nobody else holds.
    fn of(like: &CubeTensor, inputs: &[&CubeTensor], candidates: &[usize]) -> Self {
        match candidates.iter().find(|input| is_reusable(inputs[**input])) {
            Some(input) => Self { tensor: inputs[*input].clone(), input: Some(*input) },
            None => {
                Self { tensor: fresh(like, like.meta.shape().clone(), like.dtype), input: None }
            }
        }
    }

    fn view(&self) -> LinearViewLaunch {
        match self.input {
            Some(input) => self.tensor.as_linear_view_alias(input),
            None => self.tensor.clone().into_linear_view(),
        }
    }
}

fn fresh(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

/// Channel vectors in the type the kernels compute in, and back.
fn single(rows: CubeTensor) -> CubeTensor {
    cast(rows, DType::F32)
}

fn widened(rows: CubeTensor, dtype: DType) -> CubeTensor {
    cast(rows, if dtype == DType::F64 { DType::F64 } else { DType::F32 })
}

// --- Elementwise passes ---

struct Forward {
    x: CubeTensor,
    affine: CubeTensor,
    residual: Option<CubeTensor>,
    parameters: Option<CubeTensor>,
}

impl Visitor for Forward {
    type Output = CubeTensor;
    fn visit<F: Formula>(self, fixed: [f64; 2]) -> CubeTensor {
        let planes = Planes::of(&self.x);
        let x = planes.see(self.x);
        let residual = self.residual.map(|residual| planes.see(residual));
        let affine = single(self.affine);
        let inputs: Vec<&CubeTensor> = [&x].into_iter().chain(&residual).collect();
        assert_same_type(&x, &inputs);
        let candidates: Vec<usize> = (0..inputs.len()).collect();
        let y = Target::of(&x, &inputs, &candidates);
        let vectors = Vectors::new(&planes, &inputs, &[&affine], usize::MAX);
        let client = x.client.clone();
        let dim = CubeDim::new(&client, vectors.count);
        let elem = elem_type(x.dtype);
        // SAFETY: the kernel returns at once outside the bounds of its output, and the views of x,
        // the residual and the output are as long as each other.
        unsafe {
            forward::launch_unchecked::<F>(
                &client,
                calculate_cube_count_elemwise(&client, vectors.count, dim),
                dim,
                vectors.address,
                vectors.sizes[0],
                vectors.sizes[1],
                x.into_linear_view(),
                residual.map(CubeTensor::into_linear_view).into(),
                affine.into_linear_view(),
                self.parameters.map(CubeTensor::into_linear_view).into(),
                y.view(),
                vectors.columns,
                vectors.run,
                Fixed::new(fixed),
                elem,
            );
        }
        planes.restore(y.tensor)
    }
}

/// Whether dz is written.
#[derive(Clone, Copy, PartialEq)]
enum Dz {
    Kept,
    Dropped,
}

struct Backward {
    x: CubeTensor,
    affine: CubeTensor,
    residual: Option<CubeTensor>,
    grad: CubeTensor,
    parameters: Option<CubeTensor>,
    correction: Option<CubeTensor>,
    dz: Dz,
}

impl Visitor for Backward {
    /// dx, and dz if it is kept.
    type Output = (CubeTensor, Option<CubeTensor>);
    fn visit<F: Formula>(self, fixed: [f64; 2]) -> Self::Output {
        let planes = Planes::of(&self.x);
        let (x, grad) = (planes.see(self.x), planes.see(self.grad));
        let residual = self.residual.map(|residual| planes.see(residual));
        let (affine, correction) = (single(self.affine), self.correction.map(single));
        let inputs: Vec<&CubeTensor> = [&grad, &x].into_iter().chain(&residual).collect();
        assert_same_type(&x, &inputs);
        let (dz, dx) = match self.dz {
            Dz::Dropped => (None, Target::of(&x, &inputs, &[0, 1])),
            Dz::Kept => {
                let dx = Target::of(&x, &inputs, &[1, 2]);
                (Some(Target::of(&x, &inputs, &[0])), dx)
            }
        };
        let rows: Vec<&CubeTensor> = [&affine].into_iter().chain(&correction).collect();
        let vectors = Vectors::new(&planes, &inputs, &rows, usize::MAX);
        let client = x.client.clone();
        let dim = CubeDim::new(&client, vectors.count);
        let elem = elem_type(x.dtype);
        // SAFETY: the kernel returns at once outside the bounds of its output, and the views of all
        // tensors but the channel vectors are as long as each other.
        unsafe {
            backward::launch_unchecked::<F>(
                &client,
                calculate_cube_count_elemwise(&client, vectors.count, dim),
                dim,
                vectors.address,
                vectors.sizes[0],
                vectors.sizes[1],
                grad.into_linear_view(),
                x.into_linear_view(),
                residual.map(CubeTensor::into_linear_view).into(),
                affine.into_linear_view(),
                self.parameters.map(CubeTensor::into_linear_view).into(),
                correction.map(CubeTensor::into_linear_view).into(),
                dz.as_ref().map(Target::view).into(),
                dx.view(),
                vectors.columns,
                vectors.run,
                Fixed::new(fixed),
                elem,
            );
        }
        (planes.restore(dx.tensor), dz.map(|dz| planes.restore(dz.tensor)))
    }
}

// --- Sums over channels ---

/// Units of work of a cube that sums up, and how many cubes are enough to fill a GPU.
const UNITS: usize = 256;
const CUBES: usize = 1024;
/// Vectors that a unit sums up at least, unless there are fewer.
const VECTORS: usize = 4;
/// The longest vector: what a cube shares must fit into 16 KiB, which four sums of it fill.
const LONGEST: usize = 4;
/// Neighbouring numbers that a cube reads of each pixel of channels-last tensors: a line of a GPU's
/// cache.
const LINE: usize = 32;

/// A cube of `width` columns, with `height` units for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    width: usize,
    height: usize,
}

/// How a sum over channels is shared out: a cube has some columns and one of the parts that their
/// vectors are divided into.
struct Shares {
    tile: Tile,
    tiles: usize,
    /// Vectors of a column, and of a part of it.
    column: usize,
    part: usize,
    parts: usize,
    /// The most cubes that may lie along the first axis.
    most: usize,
}

impl Shares {
    fn new(client: &Client, vectors: &Vectors) -> Self {
        let hardware = &client.properties().hardware;
        // Units of one cube wait for each other, which threads of a CPU had better not.
        let units = match hardware.num_cpu_cores {
            Some(_) => 1,
            None => UNITS.min(hardware.max_units_per_cube as usize),
        };
        let width = (LINE / vectors.sizes[0]).min(vectors.columns.next_power_of_two()).min(units);
        let width = if vectors.run == 1 { width } else { 1 };
        let tile = Tile { width, height: units / width };
        let tiles = vectors.columns.div_ceil(width);
        let column = vectors.count / vectors.columns;
        let parts = (column / (tile.height * VECTORS)).min(CUBES / tiles).max(1);
        let part = column.div_ceil(parts);
        // No part is empty.
        let parts = column.div_ceil(part);
        Self { tile, tiles, column, part, parts, most: hardware.max_cube_count.0 as usize }
    }

    fn dim(&self) -> CubeDim {
        CubeDim::new_1d((self.tile.width * self.tile.height) as u32)
    }

    /// Cubes for all columns, so many times.
    fn cubes(&self, times: usize) -> CubeCount {
        let first = self.tiles.min(self.most);
        CubeCount::Static(first as u32, self.tiles.div_ceil(first) as u32, times as u32)
    }
}

struct Sums {
    x: CubeTensor,
    affine: CubeTensor,
    residual: Option<CubeTensor>,
    grad: CubeTensor,
    parameters: Option<CubeTensor>,
    dz: Dz,
}

impl Visitor for Sums {
    /// dz if it is kept, and the sums.
    type Output = (Option<CubeTensor>, CubeTensor);
    fn visit<F: Formula>(self, fixed: [f64; 2]) -> Self::Output {
        let planes = Planes::of(&self.x);
        let (x, grad) = (planes.see(self.x), planes.see(self.grad));
        let residual = self.residual.map(|residual| planes.see(residual));
        let affine = single(self.affine);
        let inputs: Vec<&CubeTensor> = [&grad, &x].into_iter().chain(&residual).collect();
        assert_same_type(&x, &inputs);
        let dz = (self.dz == Dz::Kept).then(|| Target::of(&x, &inputs, &[0]));
        let vectors = Vectors::new(&planes, &inputs, &[&affine], LONGEST);
        let client = x.client.clone();
        let shares = Shares::new(&client, &vectors);
        // Rows of sums, in pairs.
        let pairs = if self.parameters.is_some() { 2 } else { 1 };
        let sums = |parts| fresh(&x, Shape::from([2 * pairs, parts * planes.channels]), DType::F32);
        let (partial, total) = (sums(shares.parts), sums(1));
        let (dtype, elem) = (x.dtype, elem_type(x.dtype));
        // SAFETY: units go over the columns there are and over the vectors a column has; the views of
        // all tensors but the channel vectors are as long as each other.
        unsafe {
            partial_sums::launch_unchecked::<F>(
                &client,
                shares.cubes(shares.parts),
                shares.dim(),
                vectors.address,
                vectors.sizes[0],
                vectors.sizes[1],
                grad.into_linear_view(),
                x.into_linear_view(),
                residual.map(CubeTensor::into_linear_view).into(),
                affine.into_linear_view(),
                self.parameters.map(CubeTensor::into_linear_view).into(),
                dz.as_ref().map(Target::view).into(),
                partial.clone().into_linear_view(),
                vectors.columns,
                vectors.run,
                shares.column,
                shares.part,
                Fixed::new(fixed),
                shares.tile,
                elem,
            );
            total_sums::launch_unchecked(
                &client,
                shares.cubes(pairs),
                shares.dim(),
                vectors.address,
                vectors.sizes[1],
                partial.into_linear_view(),
                total.clone().into_linear_view(),
                vectors.columns,
                shares.parts,
                shares.tile,
            );
        }
        let total = reshape(total, Shape::from([2 * pairs, planes.channels]));
        (dz.map(|dz| planes.restore(dz.tensor)), widened(total, dtype))
    }
}

fn statistics(x: CubeTensor) -> CubeTensor {
    let planes = Planes::of(&x);
    let x = planes.see(x);
    let vectors = Vectors::new(&planes, &[&x], &[], LONGEST);
    let client = x.client.clone();
    let shares = Shares::new(&client, &vectors);
    let rows = |rows, parts| fresh(&x, Shape::from([rows, parts * planes.channels]), DType::F32);
    let (partial, total) = (rows(4, shares.parts), rows(2, 1));
    let (dtype, elem) = (x.dtype, elem_type(x.dtype));
    // SAFETY: as for the sums.
    unsafe {
        partial_moments::launch_unchecked(
            &client,
            shares.cubes(shares.parts),
            shares.dim(),
            vectors.address,
            vectors.sizes[0],
            vectors.sizes[1],
            x.into_linear_view(),
            partial.clone().into_linear_view(),
            vectors.columns,
            vectors.run,
            shares.column,
            shares.part,
            shares.tile,
            elem,
        );
        total_moments::launch_unchecked(
            &client,
            shares.cubes(1),
            shares.dim(),
            vectors.address,
            vectors.sizes[1],
            partial.into_linear_view(),
            total.clone().into_linear_view(),
            vectors.columns,
            shares.parts,
            shares.tile,
        );
    }
    widened(reshape(total, Shape::from([2, planes.channels])), dtype)
}

// --- Kernels ---

/// What z is made of at some channels.
#[derive(CubeType)]
struct Affine<N: Size> {
    mean: Vector<f32, N>,
    scale: Vector<f32, N>,
    shift: Vector<f32, N>,
}

#[cube]
fn affine_at<N: Size, M: Size>(
    rows: &LinearView<'_, Vector<f32, M>>,
    columns: usize,
    column: usize,
) -> Affine<N> {
    Affine::<N> {
        mean: row_at::<N, M>(rows, 0usize, columns, column),
        scale: row_at::<N, M>(rows, 1usize, columns, column),
        shift: row_at::<N, M>(rows, 2usize, columns, column),
    }
}

/// A row of channel vectors at some channels: one channel for all numbers of a vector, or one each.
#[cube]
fn row_at<N: Size, M: Size>(
    rows: &LinearView<'_, Vector<f32, M>>,
    #[comptime] row: usize,
    columns: usize,
    column: usize,
) -> Vector<f32, N> {
    Vector::cast_from(rows.read(columns * row + column))
}

#[cube]
fn preactivation<E: Float, N: Size>(
    x: Vector<f32, N>,
    affine: &Affine<N>,
    residual: &ComptimeOption<LinearView<'_, Vector<E, N>>>,
    at: usize,
) -> Vector<f32, N> {
    let mut z = (x - affine.mean) * affine.scale + affine.shift;
    #[comptime]
    match residual {
        ComptimeOption::Some(residual) => z += Vector::cast_from(residual.read(at)),
        ComptimeOption::None => {}
    }
    z
}

/// f(z)
#[cube]
fn value_of<F: Formula, N: Size>(
    z: Vector<f32, N>,
    #[comptime] fixed: Fixed,
    parameters: &ComptimeOption<LinearView<'_, f32>>,
) -> Vector<f32, N> {
    #[comptime]
    match parameters {
        ComptimeOption::Some(parameters) => {
            let (a, b) = read_parameters::<N>(parameters);
            learned_value::<F, N>(z, a, b)
        }
        ComptimeOption::None => fixed_value::<F, N>(z, fixed),
    }
}

/// f'(z)
#[cube]
fn slope_of<F: Formula, N: Size>(
    z: Vector<f32, N>,
    #[comptime] fixed: Fixed,
    parameters: &ComptimeOption<LinearView<'_, f32>>,
) -> Vector<f32, N> {
    #[comptime]
    match parameters {
        ComptimeOption::Some(parameters) => {
            let (a, b) = read_parameters::<N>(parameters);
            learned_slope::<F, N>(z, a, b)
        }
        ComptimeOption::None => fixed_slope::<F, N>(z, fixed),
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward<E: Float, N: Size, M: Size, F: Formula>(
    x: LinearView<'_, Vector<E, N>>,
    residual: ComptimeOption<LinearView<'_, Vector<E, N>>>,
    affine: LinearView<'_, Vector<f32, M>>,
    parameters: ComptimeOption<LinearView<'_, f32>>,
    mut y: LinearViewMut<'_, Vector<E, N>>,
    columns: usize,
    run: usize,
    #[comptime] value: Fixed,
    #[define(E)] _elem: ElemType,
) {
    let at = ABSOLUTE_POS;
    if !y.is_in_bounds(at) {
        terminate!();
    }
    let affine = affine_at::<N, M>(&affine, columns, at / run % columns);
    let z = preactivation::<E, N>(Vector::cast_from(x.read(at)), &affine, &residual, at);
    y.write(at, Vector::cast_from(value_of::<F, N>(z, value, &parameters)));
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward<E: Float, N: Size, M: Size, F: Formula>(
    grad: LinearView<'_, Vector<E, N>>,
    x: LinearView<'_, Vector<E, N>>,
    residual: ComptimeOption<LinearView<'_, Vector<E, N>>>,
    affine: LinearView<'_, Vector<f32, M>>,
    parameters: ComptimeOption<LinearView<'_, f32>>,
    correction: ComptimeOption<LinearView<'_, Vector<f32, M>>>,
    mut dz_out: ComptimeOption<LinearViewMut<'_, Vector<E, N>>>,
    mut dx_out: LinearViewMut<'_, Vector<E, N>>,
    columns: usize,
    run: usize,
    #[comptime] slope: Fixed,
    #[define(E)] _elem: ElemType,
) {
    let at = ABSOLUTE_POS;
    if !dx_out.is_in_bounds(at) {
        terminate!();
    }
    let column = at / run % columns;
    let affine = affine_at::<N, M>(&affine, columns, column);
    let x = Vector::<f32, N>::cast_from(x.read(at));
    let z = preactivation::<E, N>(x, &affine, &residual, at);
    let slope = slope_of::<F, N>(z, slope, &parameters);
    let dz = Vector::<f32, N>::cast_from(grad.read(at)) * slope;
    let mut dx = dz * affine.scale;
    #[comptime]
    match &correction {
        ComptimeOption::Some(rows) => {
            let constant = row_at::<N, M>(rows, 0usize, columns, column);
            let linear = row_at::<N, M>(rows, 1usize, columns, column);
            dx = dx - constant - (x - affine.mean) * linear;
        }
        ComptimeOption::None => {}
    }
    #[comptime]
    match &mut dz_out {
        ComptimeOption::Some(out) => out.write(at, Vector::cast_from(dz)),
        ComptimeOption::None => {}
    }
    dx_out.write(at, Vector::cast_from(dx));
}

/// The column of this unit.
#[cube]
fn unit_column(#[comptime] tile: Tile) -> usize {
    let cube = CUBE_POS_X as usize + CUBE_POS_Y as usize * CUBE_COUNT_X as usize;
    cube * tile.width + UNIT_POS as usize % tile.width
}

/// Its place among the units of its column. By hand and not by a cube of two axes, since some drivers
/// fill SIMD lanes along the first axis alone.
#[cube]
fn unit_row(#[comptime] tile: Tile) -> usize {
    UNIT_POS as usize / tile.width
}

/// A vector of one channel becomes a number; one of several stays.
#[cube]
fn collapsed<N: Size, M: Size>(x: Vector<f32, N>) -> Vector<f32, M> {
    let of_x = N::value();
    let of_channels = M::value();
    if comptime![of_x == of_channels] { Vector::cast_from(x) } else { Vector::new(x.vector_sum()) }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn partial_sums<E: Float, N: Size, M: Size, F: Formula>(
    grad: LinearView<'_, Vector<E, N>>,
    x: LinearView<'_, Vector<E, N>>,
    residual: ComptimeOption<LinearView<'_, Vector<E, N>>>,
    affine: LinearView<'_, Vector<f32, M>>,
    parameters: ComptimeOption<LinearView<'_, f32>>,
    mut dz_out: ComptimeOption<LinearViewMut<'_, Vector<E, N>>>,
    mut sums: LinearViewMut<'_, Vector<f32, M>>,
    columns: usize,
    run: usize,
    length: usize,
    part: usize,
    #[comptime] slope: Fixed,
    #[comptime] tile: Tile,
    #[define(E)] _elem: ElemType,
) {
    let column = unit_column(tile);
    let mut first = Vector::<f32, N>::new(0.0);
    let mut second = Vector::<f32, N>::new(0.0);
    let mut of_a = Vector::<f32, N>::new(0.0);
    let mut of_b = Vector::<f32, N>::new(0.0);
    if column < columns {
        let affine = affine_at::<N, M>(&affine, columns, column);
        let start = CUBE_POS_Z as usize * part;
        let end = min(start + part, length);
        // Neighbouring units read neighbouring vectors.
        let mut i = start + unit_row(tile);
        while i < end {
            let at = (i / run * columns + column) * run + i % run;
            let x = Vector::<f32, N>::cast_from(x.read(at));
            let z = preactivation::<E, N>(x, &affine, &residual, at);
            let grad = Vector::<f32, N>::cast_from(grad.read(at));
            let dz = grad * slope_of::<F, N>(z, slope, &parameters);
            #[comptime]
            match &mut dz_out {
                ComptimeOption::Some(out) => out.write(at, Vector::cast_from(dz)),
                ComptimeOption::None => {}
            }
            #[comptime]
            match &parameters {
                ComptimeOption::Some(parameters) => {
                    let (a, b) = read_parameters::<N>(parameters);
                    of_a += grad * parameter_slope::<F, N>(z, a, b, 0usize);
                    of_b += grad * parameter_slope::<F, N>(z, a, b, 1usize);
                }
                ComptimeOption::None => {}
            }
            first += dz;
            second += dz * (x - affine.mean);
            i += tile.height;
        }
    }
    let at = CUBE_POS_Z as usize * columns + column;
    let second_row = CUBE_COUNT_Z as usize * columns;
    write_sums::<M>(
        collapsed::<N, M>(first),
        collapsed::<N, M>(second),
        &mut sums,
        at,
        second_row,
        column < columns,
        tile,
    );
    #[comptime]
    match &parameters {
        ComptimeOption::Some(_) => write_sums::<M>(
            collapsed::<N, M>(of_a),
            collapsed::<N, M>(of_b),
            &mut sums,
            at + 2 * second_row,
            second_row,
            column < columns,
            tile,
        ),
        ComptimeOption::None => {}
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn total_sums<M: Size>(
    parts: LinearView<'_, Vector<f32, M>>,
    mut sums: LinearViewMut<'_, Vector<f32, M>>,
    columns: usize,
    count: usize,
    #[comptime] tile: Tile,
) {
    let column = unit_column(tile);
    let pair = CUBE_POS_Z as usize;
    let mut first = Vector::<f32, M>::new(0.0);
    let mut second = Vector::<f32, M>::new(0.0);
    if column < columns {
        let mut part = unit_row(tile);
        while part < count {
            first += parts.read((2 * pair * count + part) * columns + column);
            second += parts.read(((2 * pair + 1) * count + part) * columns + column);
            part += tile.height;
        }
    }
    let at = 2 * pair * columns + column;
    write_sums::<M>(first, second, &mut sums, at, columns, column < columns, tile);
}

/// Adds up what the units of each column have and writes it at a position and so many positions
/// behind it.
#[cube]
fn write_sums<M: Size>(
    first: Vector<f32, M>,
    second: Vector<f32, M>,
    sums: &mut LinearViewMut<'_, Vector<f32, M>>,
    at: usize,
    rest: usize,
    writes: bool,
    #[comptime] tile: Tile,
) {
    let unit = UNIT_POS as usize;
    let mut firsts = Shared::<[Vector<f32, M>]>::new_slice(comptime![tile.width * tile.height]);
    let mut seconds = Shared::<[Vector<f32, M>]>::new_slice(comptime![tile.width * tile.height]);
    firsts[unit] = first;
    seconds[unit] = second;
    let mut step = (tile.height / 2).runtime();
    while step > 0 {
        sync_cube();
        if unit_row(tile) < step {
            let other = unit + step * tile.width;
            let (first, second) = (firsts[unit] + firsts[other], seconds[unit] + seconds[other]);
            firsts[unit] = first;
            seconds[unit] = second;
        }
        step /= 2;
    }
    if unit_row(tile) == 0 && writes {
        sums.write(at, firsts[unit]);
        sums.write(at + rest, seconds[unit]);
    }
}

/// Sums over x: their number n, their mean in two pieces, and the sum of (x - mean)^2. Of the pieces,
/// one is a value of x, so that the other one is small where x is far from zero.
#[derive(CubeType)]
struct Moments<M: Size> {
    count: f32,
    origin: Vector<f32, M>,
    offset: Vector<f32, M>,
    squares: Vector<f32, M>,
}

/// Chan, Golub and LeVeque 1979; both hold some x.
#[cube]
fn united<M: Size>(a: &Moments<M>, b: &Moments<M>) -> Moments<M> {
    let count = a.count + b.count;
    let share = Vector::new(b.count / count);
    let distance = (b.origin - a.origin) + (b.offset - a.offset);
    Moments::<M> {
        count,
        origin: a.origin,
        offset: a.offset + distance * share,
        squares: a.squares + b.squares + distance * distance * share * Vector::new(a.count),
    }
}

/// The value that differences are taken to.
#[cube]
fn origin_of<N: Size, M: Size>(x: Vector<f32, N>) -> Vector<f32, M> {
    let of_x = N::value();
    let of_channels = M::value();
    if comptime![of_x == of_channels] {
        Vector::cast_from(x)
    } else {
        Vector::new(x.extract(0usize))
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn partial_moments<E: Float, N: Size, M: Size>(
    x: LinearView<'_, Vector<E, N>>,
    mut parts: LinearViewMut<'_, Vector<f32, M>>,
    columns: usize,
    run: usize,
    length: usize,
    part: usize,
    #[comptime] tile: Tile,
    #[define(E)] _elem: ElemType,
) {
    let column = unit_column(tile);
    let start = CUBE_POS_Z as usize * part;
    let end = min(start + part, length);
    let mut i = start + unit_row(tile);
    let mut count = 0.0f32;
    let mut origin = Vector::<f32, M>::new(0.0);
    let mut offset = Vector::<f32, M>::new(0.0);
    let mut squares = Vector::<f32, M>::new(0.0);
    if column < columns && i < end {
        let at = (i / run * columns + column) * run + i % run;
        origin = origin_of::<N, M>(Vector::cast_from(x.read(at)));
        let from = Vector::<f32, N>::cast_from(origin);
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut sum_of_squares = Vector::<f32, N>::new(0.0);
        while i < end {
            let at = (i / run * columns + column) * run + i % run;
            let d = Vector::<f32, N>::cast_from(x.read(at)) - from;
            sum += d;
            sum_of_squares += d * d;
            count += 1.0;
            i += tile.height;
        }
        let of_x = N::value();
        let of_channels = M::value();
        count *= comptime![(of_x / of_channels) as f32].runtime();
        let sum = collapsed::<N, M>(sum);
        offset = sum / Vector::new(count);
        squares = collapsed::<N, M>(sum_of_squares) - sum * offset;
        // Rounding may leave a constant channel just below zero. Not a maximum: it drops NaN.
        let zero = Vector::<f32, M>::new(0.0);
        squares = select_many(squares.less_than(&zero), zero, squares);
    }
    let all = column_moments::<M>(Moments::<M> { count, origin, offset, squares }, tile);
    if unit_row(tile) == 0 && column < columns {
        let at = CUBE_POS_Z as usize * columns + column;
        let row = CUBE_COUNT_Z as usize * columns;
        parts.write(at, Vector::new(all.count));
        parts.write(at + row, all.origin);
        parts.write(at + 2 * row, all.offset);
        parts.write(at + 3 * row, all.squares);
    }
}

#[cube]
fn part_at<M: Size>(parts: &LinearView<'_, Vector<f32, M>>, row: usize, at: usize) -> Moments<M> {
    Moments::<M> {
        count: parts.read(at).extract(0usize),
        origin: parts.read(at + row),
        offset: parts.read(at + 2 * row),
        squares: parts.read(at + 3 * row),
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn total_moments<M: Size>(
    parts: LinearView<'_, Vector<f32, M>>,
    mut statistics: LinearViewMut<'_, Vector<f32, M>>,
    columns: usize,
    parts_count: usize,
    #[comptime] tile: Tile,
) {
    let column = unit_column(tile);
    let row = parts_count * columns;
    let mut part = unit_row(tile);
    let mut count = 0.0f32;
    let mut origin = Vector::<f32, M>::new(0.0);
    let mut offset = Vector::<f32, M>::new(0.0);
    let mut squares = Vector::<f32, M>::new(0.0);
    if column < columns && part < parts_count {
        let first = part_at::<M>(&parts, row, part * columns + column);
        count = first.count;
        origin = first.origin;
        offset = first.offset;
        squares = first.squares;
        part += tile.height;
        while part < parts_count {
            let some = Moments::<M> { count, origin, offset, squares };
            let next = part_at::<M>(&parts, row, part * columns + column);
            let both = united::<M>(&some, &next);
            count = both.count;
            offset = both.offset;
            squares = both.squares;
            part += tile.height;
        }
    }
    let some = Moments::<M> { count, origin, offset, squares };
    let all = column_moments::<M>(some, tile);
    if unit_row(tile) == 0 && column < columns {
        statistics.write(column, all.origin + all.offset);
        statistics.write(columns + column, all.squares / Vector::new(all.count));
    }
}

/// Unites what the units of each column have. The first unit of each has the result.
#[cube]
fn column_moments<M: Size>(moments: Moments<M>, #[comptime] tile: Tile) -> Moments<M> {
    let units = comptime![tile.width * tile.height];
    let unit = UNIT_POS as usize;
    let mut counts = Shared::<[f32]>::new_slice(units);
    let mut origins = Shared::<[Vector<f32, M>]>::new_slice(units);
    let mut offsets = Shared::<[Vector<f32, M>]>::new_slice(units);
    let mut squares = Shared::<[Vector<f32, M>]>::new_slice(units);
    counts[unit] = moments.count;
    origins[unit] = moments.origin;
    offsets[unit] = moments.offset;
    squares[unit] = moments.squares;
    let mut step = (tile.height / 2).runtime();
    while step > 0 {
        sync_cube();
        let other = unit + step * tile.width;
        // The last units may have nothing; if this one has nothing, then the other one neither.
        if unit_row(tile) < step && counts[other] > 0.0 {
            let a = Moments::<M> {
                count: counts[unit],
                origin: origins[unit],
                offset: offsets[unit],
                squares: squares[unit],
            };
            let b = Moments::<M> {
                count: counts[other],
                origin: origins[other],
                offset: offsets[other],
                squares: squares[other],
            };
            let both = united::<M>(&a, &b);
            counts[unit] = both.count;
            offsets[unit] = both.offset;
            squares[unit] = both.squares;
        }
        step /= 2;
    }
    Moments::<M> {
        count: counts[unit],
        origin: origins[unit],
        offset: offsets[unit],
        squares: squares[unit],
    }
}
