//! Number types of CPU tensors, and the loops over them.

use super::block::{BLOCK, Block, each};
use crate::{curve::Formula, lane::Lane, value::Value};
use burn::tensor::{Element, bf16, f16};
use core::{
    mem::MaybeUninit,
    ops::{Add, AddAssign, Mul, Sub},
};

/// A number type of arithmetic.
pub(super) trait Number:
    Element
    + bytemuck::Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
    + Into<f64>
{
    const ZERO: Self;
    /// f(z)
    fn value<F: Formula, const FMA: bool>(z: Self, parameters: [f64; 2]) -> Self;
    /// f'(z)
    fn slope<F: Formula, const FMA: bool>(z: Self, parameters: [f64; 2]) -> Self;
    /// df/da and df/db at z
    fn parameter_slopes<F: Formula, const FMA: bool>(z: Self, parameters: [f64; 2]) -> [Self; 2];
}

impl Number for f32 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn value<F: Formula, const FMA: bool>(z: Self, parameters: [f64; 2]) -> Self {
        F::value(Lane::<FMA>(z), parameters.map(Lane::lit)).0
    }
    #[inline(always)]
    fn slope<F: Formula, const FMA: bool>(z: Self, parameters: [f64; 2]) -> Self {
        F::slope(Lane::<FMA>(z), parameters.map(Lane::lit)).0
    }
    #[inline(always)]
    fn parameter_slopes<F: Formula, const FMA: bool>(z: Self, parameters: [f64; 2]) -> [Self; 2] {
        F::parameter_slopes(Lane::<FMA>(z), parameters.map(Lane::lit)).map(|slope| slope.0)
    }
}

impl Number for f64 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn value<F: Formula, const FMA: bool>(z: Self, parameters: [f64; 2]) -> Self {
        F::value(z, parameters)
    }
    #[inline(always)]
    fn slope<F: Formula, const FMA: bool>(z: Self, parameters: [f64; 2]) -> Self {
        F::slope(z, parameters)
    }
    #[inline(always)]
    fn parameter_slopes<F: Formula, const FMA: bool>(z: Self, parameters: [f64; 2]) -> [Self; 2] {
        F::parameter_slopes(z, parameters)
    }
}

/// A number type of tensors.
pub(super) trait Stored: Element + bytemuck::Pod + Send + Sync {
    /// What the arithmetic is done in.
    type Work: Work;
    /// Hands the elements to `f` for reading.
    fn with_read<R>(elements: &[Self], f: impl FnOnce(&[Self::Work]) -> R) -> R;
    /// Hands a block to `f` in the numbers of arithmetic, and writes what `f` leaves there: all of it has
    /// been written then. `f` must leave the block where it is.
    fn with_block(block: Block<'_, Self>, f: impl FnOnce(&mut Block<'_, Self::Work>));
    /// The same for a fresh block, whose old numbers are given as those of arithmetic.
    fn with_fresh(
        old: &[Self::Work],
        new: &mut [MaybeUninit<Self>],
        f: impl FnOnce(&mut Block<'_, Self::Work>),
    );
}

macro_rules! stored_as_is {
    ($number:ty) => {
        impl Stored for $number {
            type Work = $number;
            fn with_read<R>(elements: &[Self], f: impl FnOnce(&[Self]) -> R) -> R {
                f(elements)
            }
            fn with_block(mut block: Block<'_, Self>, f: impl FnOnce(&mut Block<'_, Self>)) {
                let place = (block.place(), block.len());
                f(&mut block);
                block.numbers();
                assert_eq!((block.place(), block.len()), place, "the block is another one");
            }
            fn with_fresh(
                old: &[Self],
                new: &mut [MaybeUninit<Self>],
                f: impl FnOnce(&mut Block<'_, Self>),
            ) {
                Self::with_block(Block::beside(old, new), f);
            }
        }
    };
}
stored_as_is!(f32);
stored_as_is!(f64);

macro_rules! stored_in_half {
    ($number:ty) => {
        impl Stored for $number {
            type Work = f32;
            fn with_read<R>(elements: &[Self], f: impl FnOnce(&[f32]) -> R) -> R {
                let mut buffer = [0.0; BLOCK];
                let work = &mut buffer[..elements.len()];
                work.iter_mut().zip(elements).for_each(|(work, x)| *work = x.to_f32());
                f(work)
            }
            fn with_block(mut block: Block<'_, Self>, f: impl FnOnce(&mut Block<'_, f32>)) {
                let mut buffer = [0.0; BLOCK];
                let work = &mut buffer[..block.len()];
                work.iter_mut().zip(block.read()).for_each(|(work, x)| *work = x.to_f32());
                f(&mut Block::Over(work));
                each!(&mut block, _, new in work => Self::from_f32(new));
            }
            fn with_fresh(
                old: &[f32],
                new: &mut [MaybeUninit<Self>],
                f: impl FnOnce(&mut Block<'_, f32>),
            ) {
                assert_eq!(old.len(), new.len(), "a block beside another is as long");
                let mut buffer = [0.0; BLOCK];
                let work = &mut buffer[..old.len()];
                work.copy_from_slice(old);
                f(&mut Block::Over(work));
                new.iter_mut().zip(work).for_each(|(new, work)| _ = new.write(Self::from_f32(*work)));
            }
        }
    };
}
stored_in_half!(f16);
stored_in_half!(bf16);

/// A number type of arithmetic, with the loops over it.
pub(super) trait Work: Number {
    /// x = f(x)
    fn values<F: Formula>(x: &mut Block<'_, Self>, parameters: [f64; 2]);
    /// grad = grad * f'(x)
    fn scale_by_slope<F: Formula>(x: &[Self], grad: &mut Block<'_, Self>, parameters: [f64; 2]);
    /// The sums of grad * df/da and grad * df/db.
    fn parameter_sums<F: Formula>(x: &[Self], grad: &[Self], parameters: [f64; 2]) -> [f64; 2];
}

impl Work for f64 {
    fn values<F: Formula>(x: &mut Block<'_, Self>, parameters: [f64; 2]) {
        each!(x, x => F::value(x, parameters));
    }
    fn scale_by_slope<F: Formula>(x: &[Self], grad: &mut Block<'_, Self>, parameters: [f64; 2]) {
        each!(grad, grad, x in x => grad * F::slope(x, parameters));
    }
    fn parameter_sums<F: Formula>(x: &[Self], grad: &[Self], parameters: [f64; 2]) -> [f64; 2] {
        x.iter().zip(grad).fold([0.0; 2], |sums, (x, grad)| {
            let slopes = F::parameter_slopes(*x, parameters);
            [sums[0] + grad * slopes[0], sums[1] + grad * slopes[1]]
        })
    }
}

/// The loops on lanes, to be compiled once for each instruction set.
mod loops {
    use super::{Block, Formula, Lane, Value, each};

    #[inline(always)]
    pub(super) fn values<F: Formula, const FMA: bool>(
        x: &mut Block<'_, f32>,
        parameters: [f64; 2],
    ) {
        let parameters = parameters.map(Lane::<FMA>::lit);
        each!(x, x => F::value(Lane(x), parameters).0);
    }

    #[inline(always)]
    pub(super) fn scale_by_slope<F: Formula, const FMA: bool>(
        x: &[f32],
        grad: &mut Block<'_, f32>,
        parameters: [f64; 2],
    ) {
        let parameters = parameters.map(Lane::<FMA>::lit);
        each!(grad, grad, x in x => grad * F::slope(Lane(x), parameters).0);
    }

    #[inline(always)]
    pub(super) fn parameter_sums<F: Formula, const FMA: bool>(
        x: &[f32],
        grad: &[f32],
        parameters: [f64; 2],
    ) -> [f64; 2] {
        // Sixteen running sums each: one would chain every addition to the one before it.
        let parameters = parameters.map(Lane::<FMA>::lit);
        let mut sums = [[0.0f32; 16]; 2];
        let (x_body, x_rest) = x.as_chunks::<16>();
        let (grad_body, grad_rest) = grad.as_chunks::<16>();
        for (x, grad) in x_body.iter().zip(grad_body) {
            for i in 0..16 {
                let slopes = F::parameter_slopes(Lane(x[i]), parameters);
                sums[0][i] += grad[i] * slopes[0].0;
                sums[1][i] += grad[i] * slopes[1].0;
            }
        }
        let mut totals = sums.map(|sums| sums.into_iter().map(f64::from).sum::<f64>());
        for (x, grad) in x_rest.iter().zip(grad_rest) {
            let slopes = F::parameter_slopes(Lane::<FMA>(*x), parameters);
            totals[0] += f64::from(grad * slopes[0].0);
            totals[1] += f64::from(grad * slopes[1].0);
        }
        totals
    }
}

/// Compiles functions of a module `loops`, whose last generic says whether fused multiply-add may be
/// used, once for each instruction set, and calls the widest that the machine has.
macro_rules! for_each_instruction_set {
    ($(
        $name:ident<$($generic:ident: $bound:path),+>(
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $output:ty)?;
    )*) => {
        $(
            fn $name<$($generic: $bound),+>($($argument: $type),*) $(-> $output)? {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,fma")]
                    fn avx512<$($generic: $bound),+>($($argument: $type),*) $(-> $output)? {
                        loops::$name::<$($generic,)+ true>($($argument),*)
                    }
                    #[target_feature(enable = "avx2,fma")]
                    fn avx2<$($generic: $bound),+>($($argument: $type),*) $(-> $output)? {
                        loops::$name::<$($generic,)+ true>($($argument),*)
                    }
                    if std::is_x86_feature_detected!("avx512f")
                        && std::is_x86_feature_detected!("avx512dq")
                        && std::is_x86_feature_detected!("avx512vl")
                        && std::is_x86_feature_detected!("avx512bw")
                        && std::is_x86_feature_detected!("fma")
                    {
                        // SAFETY: the machine has these instructions.
                        return unsafe { avx512::<$($generic),+>($($argument),*) };
                    }
                    if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
                    {
                        // SAFETY: the machine has these instructions.
                        return unsafe { avx2::<$($generic),+>($($argument),*) };
                    }
                }
                // 64-bit Arm always has fused multiply-add.
                loops::$name::<$($generic,)+ { cfg!(target_arch = "aarch64") }>($($argument),*)
            }
        )*
    };
}
pub(super) use for_each_instruction_set;

impl Work for f32 {
    for_each_instruction_set! {
        values<F: Formula>(x: &mut Block<'_, f32>, parameters: [f64; 2]);
        scale_by_slope<F: Formula>(x: &[f32], grad: &mut Block<'_, f32>, parameters: [f64; 2]);
        parameter_sums<F: Formula>(x: &[f32], grad: &[f32], parameters: [f64; 2]) -> [f64; 2];
    }
}
