//! The kernels under Burn's fusion engine.
//!
//! A kernel of our own closes the block that the engine is merging. Around a normalisation that loses
//! little: it mostly stands between convolutions, which close the block too, and the kernel takes the
//! residual sum and the activation along (`docs/results/activation-lavapipe.md` has the times). So the
//! operations wait in the engine's queue and run as kernels when their turn comes. By hand, as in [`ActivationBackend`](super::super::ActivationBackend).

use super::{NormActivation, NormBackend, Optional};
use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_fusion::{
    Client, Fusion, FusionBackend, FusionHandle, FusionTensor,
    custom::{
        CustomOpIr, HandleContainer, OperationFn, OperationIr, OperationOutput, StreamId, TensorIr,
        TensorSpec,
    },
};

type Handles<B> = HandleContainer<FusionHandle<<B as FusionBackend>::FusionRuntime>>;

/// An argument of an operation that runs later.
trait Argument<B: FusionBackend> {
    /// The argument of the backend below.
    type Inner;

    /// Adds the tensors to the operation's inputs, and returns what takes them out again.
    fn defer(
        self,
        inputs: &mut Vec<TensorIr>,
    ) -> impl Fn(&mut Handles<B>) -> Self::Inner + Send + Sync + 'static;
}

impl<B: FusionBackend> Argument<B> for FusionTensor<B::FusionRuntime> {
    type Inner = FloatTensor<B>;

    fn defer(
        self,
        inputs: &mut Vec<TensorIr>,
    ) -> impl Fn(&mut Handles<B>) -> Self::Inner + Send + Sync + 'static {
        let input = self.into_ir();
        inputs.push(input.clone());
        move |handles| handles.get_float_tensor::<B>(&input)
    }
}

impl<B: FusionBackend> Argument<B> for Optional<Fusion<B>> {
    type Inner = Optional<B>;

    fn defer(
        self,
        inputs: &mut Vec<TensorIr>,
    ) -> impl Fn(&mut Handles<B>) -> Self::Inner + Send + Sync + 'static {
        let tensor = self.into_option().map(|tensor| Argument::<B>::defer(tensor, inputs));
        move |handles| tensor.as_ref().map(|tensor| tensor(handles)).into()
    }
}

impl<B: FusionBackend> Argument<B> for NormActivation<Fusion<B>> {
    type Inner = NormActivation<B>;

    fn defer(
        self,
        inputs: &mut Vec<TensorIr>,
    ) -> impl Fn(&mut Handles<B>) -> Self::Inner + Send + Sync + 'static {
        let parts = self.into_parts().map(|(pair, parameters)| {
            (pair, parameters.map(|parameters| Argument::<B>::defer(parameters, inputs)))
        });
        move |handles| match &parts {
            None => NormActivation::Identity,
            Some((pair, None)) => NormActivation::Fixed(*pair),
            Some((pair, Some(parameters))) => {
                NormActivation::Learned(pair.value, parameters(handles))
            }
        }
    }
}

fn queue<B: FusionBackend, const N: usize>(
    name: &'static str,
    client: Client<B::FusionRuntime>,
    inputs: &[TensorIr],
    outputs: [TensorSpec; N],
    run: impl Fn(&mut Handles<B>) -> [FloatTensor<B>; N] + Send + Sync + 'static,
) -> [FloatTensor<Fusion<B>>; N] {
    let outputs = outputs.map(|TensorSpec { shape, dtype }| {
        TensorIr::uninit(client.create_empty_handle(), shape, dtype)
    });
    let operation = OperationIr::Custom(CustomOpIr::new(name, inputs, &outputs));
    let run = OperationFn(move |handles: &mut Handles<B>| {
        for (output, tensor) in outputs.iter().zip(run(handles)) {
            debug_assert_eq!(tensor.shape(), output.shape, "{name}");
            debug_assert_eq!(tensor.dtype(), output.dtype, "{name}");
            handles.register_float_tensor::<B>(&output.id, tensor);
        }
        Ok(())
    });
    client.register(StreamId::current(), operation, run).outputs()
}

/// Queues an operation of [`NormBackend`], of which x is the first argument.
macro_rules! queue {
    ($name:ident($x:ident $(, $argument:ident)*) -> $($output:ident: $spec:expr),+) => {{
        let (client, outputs) = ($x.client.clone(), [$($spec),+]);
        let mut inputs = Vec::new();
        let $x = Argument::<B>::defer($x, &mut inputs);
        $(let $argument = Argument::<B>::defer($argument, &mut inputs);)*
        let name = concat!("sat_", stringify!($name));
        let [$($output),+] = queue::<B, _>(name, client, &inputs, outputs, move |handles| {
            // In the order of the inputs: of a tensor that is there twice, the last one frees it.
            let $x = $x(handles);
            $(let $argument = $argument(handles);)*
            #[allow(unused_parens, reason = "one output stands alone, several in a tuple")]
            let ($($output),+) = B::$name($x, $($argument),*);
            [$($output),+]
        });
        ($($output),+)
    }};
}

fn like<B: FusionBackend>(x: &FloatTensor<Fusion<B>>) -> TensorSpec {
    TensorSpec::new(x.shape.clone(), x.dtype)
}

/// Vectors as long as x has channels.
fn vectors<B: FusionBackend>(x: &FloatTensor<Fusion<B>>, count: usize) -> TensorSpec {
    let dtype = if x.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    TensorSpec::new(Shape::new([count, x.shape[1]]), dtype)
}

fn sums<B: FusionBackend>(
    x: &FloatTensor<Fusion<B>>,
    activation: &NormActivation<Fusion<B>>,
) -> TensorSpec {
    vectors::<B>(x, if matches!(activation, NormActivation::Learned(..)) { 4 } else { 2 })
}

impl<B: FusionBackend + NormBackend> NormBackend for Fusion<B> {
    fn affine_activation(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        activation: NormActivation<Self>,
    ) -> FloatTensor<Self> {
        queue!(affine_activation(x, affine, residual, activation) -> y: like::<B>(&x))
    }

    fn channel_statistics(x: FloatTensor<Self>) -> FloatTensor<Self> {
        queue!(channel_statistics(x) -> statistics: vectors::<B>(&x, 2))
    }

    fn affine_activation_backward(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
        correction: Optional<Self>,
    ) -> FloatTensor<Self> {
        queue!(
            affine_activation_backward(x, affine, residual, grad, activation, correction)
                -> dx: like::<B>(&x)
        )
    }

    fn affine_activation_backward_both(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        queue!(
            affine_activation_backward_both(x, affine, residual, grad, activation)
                -> dx: like::<B>(&x), dz: like::<B>(&x)
        )
    }

    fn affine_activation_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
    ) -> FloatTensor<Self> {
        queue!(
            affine_activation_sums(x, affine, residual, grad, activation)
                -> sums: sums::<B>(&x, &activation)
        )
    }

    fn affine_activation_gradient_and_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        queue!(
            affine_activation_gradient_and_sums(x, affine, residual, grad, activation)
                -> dz: like::<B>(&x), sums: sums::<B>(&x, &activation)
        )
    }
}
