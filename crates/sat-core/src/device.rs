//! Devices by name, with an error where Burn would panic.

use crate::text::by_text;
use burn::tensor::Device;
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
use burn::tensor::DeviceKind;
use core::{fmt, str::FromStr};
use serde::{Deserialize, Serialize};

/// A backend a device can be asked for, by the name of its Cargo feature; so in `Display`, `FromStr` and
/// serde.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum DeviceName {
    /// Burn's own CPU backend.
    Flex,
    /// The older CPU backend; slow convolutions.
    NdArray,
    /// NVIDIA GPUs.
    Cuda,
    /// Any GPU, through WebGPU.
    Wgpu,
    /// Any GPU, through Vulkan.
    Vulkan,
    /// Apple GPUs.
    Metal,
    /// AMD GPUs.
    Rocm,
    /// CPUs, through CubeCL's compiler.
    Cpu,
}

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No backend has this name.
    #[error("unknown device `{name}`; known are {}", known())]
    Unknown {
        /// The name that was given.
        name: String,
    },
    /// The backend is not part of this build.
    #[error("device `{device}` is not in this build; build with `--features {device}`")]
    NotBuilt {
        /// The device that was asked for.
        device: DeviceName,
    },
    /// The backend is there and the machine, or its driver, is not.
    #[error("device `{device}` cannot be opened: {reason}; check the driver, or use `flex`")]
    Unavailable {
        /// The device that was asked for.
        device: DeviceName,
        /// What the backend said.
        reason: String,
    },
}

impl DeviceName {
    /// Every name.
    pub const ALL: [DeviceName; 8] = [
        DeviceName::Flex,
        DeviceName::NdArray,
        DeviceName::Cuda,
        DeviceName::Wgpu,
        DeviceName::Vulkan,
        DeviceName::Metal,
        DeviceName::Rocm,
        DeviceName::Cpu,
    ];

    fn as_str(self) -> &'static str {
        match self {
            DeviceName::Flex => "flex",
            DeviceName::NdArray => "ndarray",
            DeviceName::Cuda => "cuda",
            DeviceName::Wgpu => "wgpu",
            DeviceName::Vulkan => "vulkan",
            DeviceName::Metal => "metal",
            DeviceName::Rocm => "rocm",
            DeviceName::Cpu => "cpu",
        }
    }

    /// Opens the default device of the backend and runs one small operation on it.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NotBuilt`] if the feature of that name is off, [`DeviceError::Unavailable`] if
    /// the driver or the hardware is missing.
    pub fn open(self) -> Result<Device, DeviceError> {
        self.open_number(0)
    }

    /// [`open`](Self::open) for one device of several, counted from 0: GPUs as CUDA and ROCm number
    /// them, and discrete GPUs for the others but 0, which is the default device. A CPU is one device,
    /// whatever the number.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    #[allow(unused_variables)] // A build for CPUs has nothing to number.
    pub fn open_number(self, number: usize) -> Result<Device, DeviceError> {
        #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
        let kind = match number {
            0 => DeviceKind::DefaultDevice,
            _ => DeviceKind::DiscreteGpu(number),
        };
        match self {
            #[cfg(feature = "flex")]
            DeviceName::Flex => self.probe(Device::flex),
            #[cfg(feature = "ndarray")]
            DeviceName::NdArray => self.probe(Device::ndarray),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda => self.probe(|| Device::cuda(number)),
            #[cfg(feature = "wgpu")]
            DeviceName::Wgpu => self.probe(|| Device::wgpu(kind)),
            #[cfg(feature = "vulkan")]
            DeviceName::Vulkan => self.probe(|| Device::vulkan(kind)),
            #[cfg(feature = "metal")]
            DeviceName::Metal => self.probe(|| Device::metal(kind)),
            #[cfg(feature = "rocm")]
            DeviceName::Rocm => self.probe(|| Device::rocm(number)),
            #[cfg(feature = "cpu")]
            DeviceName::Cpu => self.probe(Device::cpu),
            #[allow(unreachable_patterns)] // Which backends are missing is the build's choice.
            _ => Err(DeviceError::NotBuilt { device: self }),
        }
    }

    /// Burn reports a missing driver by a panic, on this thread or on the device's own.
    #[allow(dead_code)] // A build without a backend has nothing to probe.
    fn probe(self, open: impl FnOnce() -> Device) -> Result<Device, DeviceError> {
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let device = open();
            let sum = burn::tensor::Tensor::<1>::ones([2], &device).sum();
            sum.try_into_data().map(|_| device).map_err(|error| format!("{error:?}"))
        }));
        attempt
            .unwrap_or_else(|panic| {
                let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                Err(message
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "the backend panicked".to_owned()))
            })
            .map_err(|reason| DeviceError::Unavailable { device: self, reason })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        DeviceName::ALL
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| DeviceError::Unknown { name: text.into() })
    }
}

by_text!(DeviceName, DeviceError);

fn known() -> String {
    DeviceName::ALL.map(DeviceName::as_str).join(", ")
}
