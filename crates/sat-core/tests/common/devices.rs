//! The devices that tests run on, here and in the crates above.

use burn::tensor::Device;

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
