//! What every test of this crate shares: the devices of the build.

mod devices;
#[allow(dead_code)]
pub(crate) mod precision;

#[allow(unused_imports, reason = "not every test has every device")]
pub(crate) use devices::devices;

use burn::tensor::{Device, Tensor, TensorData};

#[allow(dead_code, reason = "not every test has vectors")]
pub(crate) fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

#[allow(dead_code)]
pub(crate) fn to_vec<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_into_vec().unwrap()
}
