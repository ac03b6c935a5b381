//! Numbers as people write them: `8/255`, and sums in hexadecimal.

use serde::{Deserializer, de};
use sha2::{Digest, Sha256};
use std::fmt;

/// Why a text is not a perturbation size.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EpsError {
    /// A part is not a number.
    #[error("`{0}` is not a number; write eps like 8/255 or 0.03")]
    NotANumber(String),
    /// A part is infinite or NaN.
    #[error("`{0}` is not finite; write eps like 8/255 or 0.03")]
    NotFinite(String),
    /// A part is below zero.
    #[error("`{0}` is negative; eps is a size, at least 0")]
    Negative(String),
    /// The part after the slash is zero.
    #[error("`{0}` divides by zero; write eps like 8/255 or 0.03")]
    DivisionByZero(String),
}

/// Reads an eps or a step size, in units of images in [0, 1]: `8/255` or `0.03`.
///
/// ```
/// assert_eq!(sat_train::parse_eps("8/255"), Ok(8.0 / 255.0));
/// ```
///
/// # Errors
///
/// An [`EpsError`] if the text is no finite number of at least 0, or no fraction of two.
pub fn parse_eps(text: &str) -> Result<f64, EpsError> {
    let number = |part: &str| {
        let value: f64 = part.parse().map_err(|_| EpsError::NotANumber(part.to_owned()))?;
        match value {
            _ if !value.is_finite() => Err(EpsError::NotFinite(part.to_owned())),
            _ if value.is_sign_negative() => Err(EpsError::Negative(part.to_owned())),
            _ => Ok(value),
        }
    };
    let Some((above, below)) = text.split_once('/') else {
        return number(text);
    };
    let (above, below) = (number(above)?, number(below)?);
    if below == 0.0 {
        return Err(EpsError::DivisionByZero(text.to_owned()));
    }
    let value = above / below;
    if value.is_finite() { Ok(value) } else { Err(EpsError::NotFinite(text.to_owned())) }
}

/// The SHA-256 sum of parts whose lengths count too, in hexadecimal.
#[derive(Default)]
pub(crate) struct SumOfParts(Sha256);

impl SumOfParts {
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    pub(crate) fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For serde: a number, or a text that [`parse_eps`] reads.
pub(crate) fn number_or_fraction<'de, D: Deserializer<'de>>(input: D) -> Result<f64, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = f64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number or a fraction such as \"8/255\"")
        }
        fn visit_f64<E>(self, value: f64) -> Result<f64, E> {
            Ok(value)
        }
        fn visit_i64<E>(self, value: i64) -> Result<f64, E> {
            Ok(value as f64)
        }
        fn visit_u64<E>(self, value: u64) -> Result<f64, E> {
            Ok(value as f64)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<f64, E> {
            parse_eps(text).map_err(E::custom)
        }
    }
    input.deserialize_any(Visitor)
}

/// As [`number_or_fraction`], for a field that may be left out.
pub(crate) fn some_number_or_fraction<'de, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<f64>, D::Error> {
    #[derive(serde::Deserialize)]
    struct Number(#[serde(deserialize_with = "number_or_fraction")] f64);
    let number: Option<Number> = serde::Deserialize::deserialize(input)?;
    Ok(number.map(|Number(value)| value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eps_as_fraction_or_decimal() {
        assert_eq!(parse_eps("8/255"), Ok(8.0 / 255.0));
        assert_eq!(parse_eps("0.5/255"), Ok(0.5 / 255.0));
        assert_eq!(parse_eps("0.1"), Ok(0.1));
        assert_eq!(parse_eps("0"), Ok(0.0));
        assert_eq!(parse_eps("1e-3"), Ok(1e-3));
    }

    #[test]
    fn eps_refuses_the_rest() {
        use EpsError::*;
        for text in ["", "8/", "/255", "8/255/2", "8/255x", "8 / 255", "eight", "0.1 "] {
            assert!(matches!(parse_eps(text), Err(NotANumber(_))), "{text}");
        }
        for text in ["nan", "inf", "1/nan", "inf/2", "1e300/1e-300"] {
            assert!(matches!(parse_eps(text), Err(NotFinite(_))), "{text}");
        }
        for text in ["-0.1", "-8/255", "8/-255", "-0"] {
            assert!(matches!(parse_eps(text), Err(Negative(_))), "{text}");
        }
        assert_eq!(parse_eps("8/0"), Err(DivisionByZero("8/0".into())));
    }
}
