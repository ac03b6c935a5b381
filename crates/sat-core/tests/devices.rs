//! Devices by name.

use sat_core::device::{DeviceError, DeviceName};

#[test]
fn names_round_trip() {
    for name in DeviceName::ALL {
        assert_eq!(name.to_string().parse::<DeviceName>().unwrap(), name);
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(json, format!("\"{name}\""));
        assert_eq!(serde_json::from_str::<DeviceName>(&json).unwrap(), name);
    }
    let error = serde_json::from_str::<DeviceName>("\"gpu\"").unwrap_err();
    assert!(error.to_string().contains("unknown device `gpu`"), "{error}");
    let error = "gpu".parse::<DeviceName>().unwrap_err();
    assert!(matches!(error, DeviceError::Unknown { .. }));
    assert!(error.to_string().contains("flex"), "{error}");
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_backend_that_is_not_built_names_its_feature() {
    let error = DeviceName::Cuda.open().unwrap_err();
    assert_eq!(error, DeviceError::NotBuilt { device: DeviceName::Cuda });
    assert!(error.to_string().contains("--features cuda"), "{error}");
}

#[test]
#[cfg(feature = "flex")]
fn a_device_opens() {
    DeviceName::Flex.open().unwrap();
}
