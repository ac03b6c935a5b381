//! What every test of this crate shares: the devices of the build.

#[allow(dead_code)]
pub(crate) mod precision;

use burn::tensor::{Device, Tensor, TensorData};

/// Every device of the build, with its name.
#[allow(dead_code)] // Not every test has every device.
pub(crate) fn devices() -> Vec<(&'static str, Device)> {
    let devices: Vec<(&'static str, Device)> = vec![
        #[cfg(feature = "flex")]
        ("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", {
            #[allow(deprecated)]
            Device::ndarray()
        }),
        #[cfg(feature = "wgpu")]
        ("wgpu", Device::wgpu(Default::default())),
        #[cfg(feature = "cuda")]
        ("cuda", Device::cuda(0)),
        #[cfg(feature = "cpu")]
        ("cpu", Device::cpu()),
    ];
    assert!(!devices.is_empty(), "no backend in this build; use --features flex");
    devices
}

#[allow(dead_code, reason = "not every test has vectors")]
pub(crate) fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

#[allow(dead_code)]
pub(crate) fn to_vec<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_into_vec().unwrap()
}
