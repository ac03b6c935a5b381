//! Flex: our own loops for `f32`, Burn's for everything else.

mod correlate;
mod planes;
mod pointwise;
mod simd;
mod tile;
mod weights;
mod winograd;

use super::{ConvBackend, composed};
use burn::{
    backend::{
        Flex,
        flex::{FlexTensor, Layout},
        tensor::FloatTensor,
    },
    tensor::{Bytes, DType, Shape, ops::ConvOptions},
};
use correlate::{Correlation, Output, Place, Tap};
use tile::InstructionSet;
use weights::WeightGradient;

impl ConvBackend for Flex {
    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        let [x_shape, w_shape] = [&x, &weight].map(dims);
        match Geometry::new(x_shape, w_shape, &options) {
            Some(geometry) if both_f32(&x, &weight) => {
                let set = InstructionSet::widest();
                let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
                tensor(geometry.forward(set, numbers(&x), numbers(&weight)), geometry.output())
            }
            _ => composed::forward::<Self>(x, weight, options),
        }
    }

    fn convolution_input_gradient(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        size: [usize; 2],
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        let [w_shape, y_shape] = [&weight, &grad].map(dims);
        let x_shape = [y_shape[0], w_shape[1] * options.groups, size[0], size[1]];
        match Geometry::new(x_shape, w_shape, &options) {
            Some(geometry) if both_f32(&weight, &grad) => {
                let set = InstructionSet::widest();
                let (weight, grad) = (weight.to_contiguous(), grad.to_contiguous());
                tensor(geometry.input_gradient(set, numbers(&weight), numbers(&grad)), x_shape)
            }
            _ => composed::input_gradient::<Self>(weight, grad, size, options),
        }
    }

    fn convolution_weight_gradient(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kernel: [usize; 2],
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        let [x_shape, y_shape] = [&x, &grad].map(dims);
        let w_shape = [y_shape[1], x_shape[1] / options.groups, kernel[0], kernel[1]];
        match Geometry::new(x_shape, w_shape, &options) {
            Some(geometry) if both_f32(&x, &grad) => {
                let set = InstructionSet::widest();
                let (x, grad) = (x.to_contiguous(), grad.to_contiguous());
                tensor(geometry.weight_gradient(set, numbers(&x), numbers(&grad)), w_shape)
            }
            _ => composed::weight_gradient::<Self>(x, grad, kernel, options),
        }
    }
}

fn dims(tensor: &FlexTensor) -> [usize; 4] {
    tensor.layout().shape().dims()
}

fn both_f32(a: &FlexTensor, b: &FlexTensor) -> bool {
    a.dtype() == DType::F32 && b.dtype() == DType::F32
}

/// The numbers of a contiguous tensor.
fn numbers(tensor: &FlexTensor) -> &[f32] {
    let layout = tensor.layout();
    &tensor.storage::<f32>()[layout.start_offset()..][..layout.num_elements()]
}

fn tensor(values: Vec<f32>, shape: [usize; 4]) -> FlexTensor {
    let layout = Layout::contiguous(Shape::new(shape));
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

/// The sizes of a convolution that the loops can do.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    images: usize,
    groups: usize,
    /// Of a group.
    inputs: usize,
    /// Of a group.
    outputs: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    grid: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
}

/// Kernels up to this many positions: beyond it other methods are faster.
const LARGEST_KERNEL: usize = 128;

impl Geometry {
    /// Nothing where Burn's own convolution has to run, or to refuse: kernels with holes or of unusual
    /// size, and shapes that do not fit together.
    fn new(x: [usize; 4], weight: [usize; 4], options: &ConvOptions<2>) -> Option<Self> {
        let [images, channels, height, width] = x;
        let [outputs, inputs, kernel_height, kernel_width] = weight;
        let ConvOptions { stride, padding, dilation, groups } = options.clone();
        let positions = kernel_height * kernel_width;
        let fits = dilation == [1, 1]
            && (1..=LARGEST_KERNEL).contains(&positions)
            && !stride.contains(&0)
            && groups > 0
            && inputs > 0
            && outputs.is_multiple_of(groups)
            && channels == inputs * groups;
        if !fits {
            return None;
        }
        let along = |axis: usize, size: usize, kernel: usize| {
            let padded = size + padding[axis].0 + padding[axis].1;
            Some(padded.checked_sub(kernel)? / stride[axis] + 1)
        };
        Some(Self {
            images,
            groups,
            inputs,
            outputs: outputs / groups,
            size: [height, width],
            kernel: [kernel_height, kernel_width],
            grid: [along(0, height, kernel_height)?, along(1, width, kernel_width)?],
            stride,
            padding: padding.map(|(before, _)| before),
        })
    }

    fn output(&self) -> [usize; 4] {
        [self.images, self.groups * self.outputs, self.grid[0], self.grid[1]]
    }

    fn forward(&self, set: InstructionSet, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let [kernel_height, kernel_width] = self.kernel;
        let taps = (0..kernel_height * kernel_width)
            .map(|tap| Tap {
                row: (tap / kernel_width) as isize - self.padding[0] as isize,
                column: (tap % kernel_width) as isize - self.padding[1] as isize,
                weight: tap,
            })
            .collect();
        let positions = kernel_height * kernel_width;
        let [height, width] = self.grid;
        let correlation = Correlation {
            set,
            images: self.images,
            groups: self.groups,
            inputs: self.inputs,
            outputs: self.outputs,
            size: self.size,
            x,
            weight,
            weight_strides: [
                self.outputs * self.inputs * positions,
                self.inputs * positions,
                positions,
            ],
            taps,
            stride: self.stride,
            grid: self.grid,
            place: Place { start: 0, plane: height * width, row: width, column: 1 },
        };
        let n = self.output().iter().product();
        let mut y = Vec::with_capacity(n);
        // SAFETY: y has room for all of its n numbers, and each of them is written.
        unsafe {
            correlate::run(&[correlation], Output(y.as_mut_ptr()));
            y.set_len(n);
        }
        y
    }

    /// The inputs whose positions have the same remainder modulo the stride meet the same taps: for
    /// each remainder the gradient is a correlation of its own, with stride 1.
    fn input_gradient(&self, set: InstructionSet, weight: &[f32], grad: &[f32]) -> Vec<f32> {
        let [height, width] = self.size;
        let n = self.images * self.groups * self.inputs * height * width;
        let positions = self.kernel[0] * self.kernel[1];
        let mut correlations = Vec::new();
        for top in 0..self.stride[0].min(height) {
            let rows = self.taps_of(0, top);
            for left in 0..self.stride[1].min(width) {
                let columns = self.taps_of(1, left);
                let grid = [
                    (height - top).div_ceil(self.stride[0]),
                    (width - left).div_ceil(self.stride[1]),
                ];
                let taps: Vec<Tap> = rows
                    .iter()
                    .flat_map(|&(kh, row)| {
                        columns.iter().map(move |&(kw, column)| Tap {
                            row,
                            column,
                            weight: kh * self.kernel[1] + kw,
                        })
                    })
                    .collect();
                correlations.push(Correlation {
                    set,
                    images: self.images,
                    groups: self.groups,
                    inputs: self.outputs,
                    outputs: self.inputs,
                    size: self.grid,
                    x: grad,
                    weight,
                    weight_strides: [
                        self.outputs * self.inputs * positions,
                        positions,
                        self.inputs * positions,
                    ],
                    taps,
                    stride: [1, 1],
                    grid,
                    place: Place {
                        start: top * width + left,
                        plane: height * width,
                        row: self.stride[0] * width,
                        column: self.stride[1],
                    },
                });
            }
        }
        let mut dx = Vec::with_capacity(n);
        // SAFETY: dx has room for all of its n numbers, and each of them is written by one of the
        // correlations: every position has its remainders.
        unsafe {
            correlate::run(&correlations, Output(dx.as_mut_ptr()));
            dx.set_len(n);
        }
        dx
    }

    /// The kernel positions along an axis that inputs with this remainder meet, and which output,
    /// relative to the input's position divided by the stride.
    fn taps_of(&self, axis: usize, remainder: usize) -> Vec<(usize, isize)> {
        let (stride, shifted) = (self.stride[axis], remainder + self.padding[axis]);
        (shifted % stride..self.kernel[axis])
            .step_by(stride)
            .map(|k| (k, (shifted as isize - k as isize) / stride as isize))
            .collect()
    }

    fn weight_gradient(&self, set: InstructionSet, x: &[f32], grad: &[f32]) -> Vec<f32> {
        WeightGradient {
            set,
            images: self.images,
            groups: self.groups,
            inputs: self.inputs,
            outputs: self.outputs,
            size: self.size,
            grid: self.grid,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            x,
            grad,
        }
        .compute()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i + seed) * 7919 % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    /// Calls `f(x, weight, y)` with the index of each number of the three that meet.
    fn for_each_product(g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
        let ([height, width], [rows, columns]) = (g.size, g.grid);
        let [kernel_height, kernel_width] = g.kernel;
        let mut along = |n: usize, group: usize, o: usize, c: usize, w: usize| {
            let x = ((n * g.groups + group) * g.inputs + c) * height * width;
            let y = ((n * g.groups + group) * g.outputs + o) * rows * columns;
            for (kh, kw) in
                (0..kernel_height).flat_map(|kh| (0..kernel_width).map(move |kw| (kh, kw)))
            {
                for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                    let row = (i * g.stride[0] + kh).wrapping_sub(g.padding[0]);
                    let column = (j * g.stride[1] + kw).wrapping_sub(g.padding[1]);
                    if row < height && column < width {
                        let w = w + kh * kernel_width + kw;
                        f(x + row * width + column, w, y + i * columns + j);
                    }
                }
            }
        };
        for n in 0..g.images {
            for group in 0..g.groups {
                for o in 0..g.outputs {
                    for c in 0..g.inputs {
                        let w =
                            ((group * g.outputs + o) * g.inputs + c) * kernel_height * kernel_width;
                        along(n, group, o, c, w);
                    }
                }
            }
        }
    }

    fn assert_close(got: &[f32], want: &[f64], sizes: &[f64], what: &str) {
        assert_eq!(got.len(), want.len(), "{what}");
        let largest = sizes.iter().copied().fold(0.0, f64::max);
        for (i, ((got, want), size)) in got.iter().zip(want).zip(sizes).enumerate() {
            // `size` is the sum of the absolute products: rounding grows with it, and where tiles are
            // computed as a whole, with that of the neighbours.
            let bound = (5e-6 * (1.0 + size)).max(3e-6 * largest);
            let close = (f64::from(*got) - want).abs() <= bound;
            assert!(close, "{what}: element {i} is {got}, not {want}");
        }
    }

    fn check(x: [usize; 4], weight: [usize; 4], options: &ConvOptions<2>) {
        let Some(g) = Geometry::new(x, weight, options) else { return };
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let (xs, ws, ys) =
            (noise(count(x), 1), noise(count(weight), 2), noise(count(g.output()), 3));
        let zeros = |values: &[f32]| [vec![0.0f64; values.len()], vec![0.0; values.len()]];
        let (mut of_x, mut of_w, mut of_y) = (zeros(&xs), zeros(&ws), zeros(&ys));
        for_each_product(&g, |x, w, y| {
            let add = |sums: &mut [Vec<f64>; 2], at: usize, a: f32, b: f32| {
                let product = f64::from(a) * f64::from(b);
                sums[0][at] += product;
                sums[1][at] += product.abs();
            };
            add(&mut of_y, y, xs[x], ws[w]);
            add(&mut of_x, x, ys[y], ws[w]);
            add(&mut of_w, w, xs[x], ys[y]);
        });
        for set in InstructionSet::all() {
            let what = |pass| format!("{pass} on {set:?}, {g:?}");
            assert_close(&g.forward(set, &xs, &ws), &of_y[0], &of_y[1], &what("y"));
            assert_close(&g.input_gradient(set, &ws, &ys), &of_x[0], &of_x[1], &what("dx"));
            assert_close(&g.weight_gradient(set, &xs, &ys), &of_w[0], &of_w[1], &what("dw"));
        }
    }

    fn options(stride: [usize; 2], padding: [(usize, usize); 2], groups: usize) -> ConvOptions<2> {
        ConvOptions::new_with_padding(stride, padding, [1, 1], groups)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn every_instruction_set_computes_what_the_definition_says(
            (images, groups) in (1usize..4, prop_oneof![3 => Just(1usize), 1 => 2usize..5]),
            (inputs, outputs) in (1usize..41, 1usize..41),
            size in prop::array::uniform2(1usize..36),
            kernel in prop::array::uniform2(1usize..8),
            stride in prop::array::uniform2(1usize..4),
            padding in prop::array::uniform4(0usize..4),
        ) {
            // Few products for each case, many cases.
            let inputs = if size[0] * size[1] > 300 { inputs.min(9) } else { inputs };
            let [top, bottom, left, right] = padding;
            let options = options(stride, [(top, bottom), (left, right)], groups);
            let x = [images, inputs * groups, size[0], size[1]];
            check(x, [outputs * groups, inputs, kernel[0], kernel[1]], &options);
        }

        #[test]
        fn kernels_of_three_by_three(
            images in 1usize..6, (inputs, outputs) in (16usize..70, 16usize..70),
            size in prop::array::uniform2(2usize..14),
            padding in prop::array::uniform4(0usize..4),
        ) {
            let [top, bottom, left, right] = padding;
            let options = options([1, 1], [(top, bottom), (left, right)], 1);
            check([images, inputs, size[0], size[1]], [outputs, inputs, 3, 3], &options);
        }

        #[test]
        fn kernels_of_one_position(
            images in 1usize..4, groups in 1usize..3, (inputs, outputs) in (1usize..50, 1usize..50),
            size in prop::array::uniform2(1usize..20), behind in prop::array::uniform2(0usize..2),
        ) {
            let options = options([1, 1], behind.map(|padding| (0, padding)), groups);
            let x = [images, inputs * groups, size[0], size[1]];
            check(x, [outputs * groups, inputs, 1, 1], &options);
        }

        #[test]
        fn depthwise(
            images in 1usize..4, channels in 1usize..20, multiplier in 1usize..3,
            size in prop::array::uniform2(1usize..40), kernel in prop::array::uniform2(1usize..8),
            stride in prop::array::uniform2(1usize..4),
            padding in prop::array::uniform4(0usize..9),
        ) {
            let [top, bottom, left, right] = padding;
            let options = options(stride, [(top, bottom), (left, right)], channels);
            let x = [images, channels, size[0], size[1]];
            check(x, [channels * multiplier, 1, kernel[0], kernel[1]], &options);
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        for (x, weight, stride, pad, groups) in [
            // Winograd's method, products, planes, pixels where they lie.
            ([5, 17, 20, 20], [33, 17, 3, 3], 1, 1, 1),
            ([9, 20, 15, 15], [70, 20, 5, 5], 2, 2, 1),
            ([7, 40, 14, 14], [40, 1, 3, 3], 1, 1, 40),
            ([7, 40, 14, 14], [90, 40, 1, 1], 1, 0, 1),
            ([7, 40, 14, 14], [90, 40, 1, 1], 2, 0, 1),
        ] {
            let g = Geometry::new(x, weight, &options([stride; 2], [(pad, pad); 2], groups))
                .expect("it has outputs");
            let count = |shape: [usize; 4]| shape.iter().product::<usize>();
            let (xs, ws, ys) =
                (noise(count(x), 1), noise(count(weight), 2), noise(count(g.output()), 3));
            let [one, others @ ..] = [1, 2, 5].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let set = InstructionSet::widest();
                pool.expect("the machine has threads").install(|| {
                    [
                        g.forward(set, &xs, &ws),
                        g.input_gradient(set, &ws, &ys),
                        g.weight_gradient(set, &xs, &ys),
                    ]
                })
            });
            assert!(others.iter().all(|other| *other == one), "{g:?}");
        }
    }

    #[test]
    fn images_without_a_column_have_outputs_of_padding_alone() {
        check([2, 4, 3, 0], [4, 4, 1, 1], &options([2, 2], [(0, 0), (0, 1)], 1));
    }

    #[test]
    fn layers_of_networks() {
        for (x, weight, stride, pad) in [
            ([3, 16, 32, 32], [16, 16, 3, 3], 1, 1),
            ([2, 3, 32, 32], [16, 3, 3, 3], 1, 1),
            ([2, 16, 32, 32], [32, 16, 1, 1], 2, 0),
            ([5, 64, 8, 8], [64, 64, 3, 3], 1, 1),
            ([9, 130, 4, 4], [70, 130, 3, 3], 1, 1),
            ([2, 3, 61, 61], [24, 3, 7, 7], 2, 3),
            ([2, 40, 56, 56], [9, 40, 1, 1], 1, 0),
            // Several panels of pixels.
            ([1, 300, 17, 19], [20, 300, 1, 1], 1, 0),
            ([1, 48, 7, 7], [100, 48, 3, 3], 1, 1),
            ([1, 300, 1, 1], [20, 300, 1, 1], 1, 0),
            // Empty images, all padding.
            ([2, 1, 3, 0], [1, 1, 3, 3], 1, 2),
            ([2, 4, 0, 3], [8, 4, 3, 3], 2, 2),
        ] {
            check(x, weight, &options([stride; 2], [(pad, pad); 2], 1));
        }
    }

    #[test]
    fn what_is_not_a_number_stays_where_it_is() {
        let g =
            Geometry::new([1, 3, 9, 19], [5, 3, 3, 3], &options([1, 1], [(1, 1); 2], 1)).unwrap();
        let (mut x, weight) = (noise(3 * 9 * 19, 1), noise(5 * 27, 2));
        let at = 4 * 19 + 7;
        x[at] = f32::INFINITY;
        for set in InstructionSet::all() {
            let y = g.forward(set, &x, &weight);
            for (i, y) in y.iter().enumerate() {
                let (row, column) = (i % 171 / 19, i % 19);
                let meets = row.abs_diff(4) <= 1 && column.abs_diff(7) <= 1;
                assert_eq!(y.is_finite(), !meets, "{set:?}, row {row}, column {column}");
            }
        }
    }
}
