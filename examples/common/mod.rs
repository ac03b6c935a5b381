//! What the examples share: the allocator, parsing of eps, a progress bar and pictures.

// Each example uses a part of it.
#![allow(dead_code)]

use std::process::ExitCode;

pub(crate) mod canvas;
pub(crate) mod grid;
pub(crate) mod output;
pub(crate) mod plot;
pub(crate) mod progress;

/// Keeps the pages of freed tensors: with the system's allocator, every large tensor pays for fresh
/// pages again, which costs more than the arithmetic on it.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Says what went wrong, if anything, and how the process ends.
pub(crate) fn exit_code(result: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The metadata keys, in a weights file, of the normalisation that the network expects.
pub(crate) const MEAN: &str = "sat.mean";
pub(crate) const STD: &str = "sat.std";

/// Metadata of a normalisation: one number a channel, with commas between.
pub(crate) fn normalization_metadata((mean, std): (&[f32], &[f32])) -> [(String, String); 2] {
    let text = |values: &[f32]| {
        let values: Vec<String> = values.iter().map(f32::to_string).collect();
        values.join(",")
    };
    [(MEAN.to_owned(), text(mean)), (STD.to_owned(), text(std))]
}

/// Why a text is not a perturbation size.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum EpsError {
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

/// Parses an eps or a step size, in units of images in `[0, 1]`: `8/255` or `0.03`.
pub(crate) fn eps(text: &str) -> Result<f64, EpsError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eps_as_fraction_or_decimal() {
        assert_eq!(eps("8/255"), Ok(8.0 / 255.0));
        assert_eq!(eps("0.5/255"), Ok(0.5 / 255.0));
        assert_eq!(eps("0.1"), Ok(0.1));
        assert_eq!(eps("0"), Ok(0.0));
        assert_eq!(eps("1e-3"), Ok(1e-3));
    }

    #[test]
    fn eps_refuses_the_rest() {
        use EpsError::*;
        for text in ["", "8/", "/255", "8/255/2", "8/255x", "8 / 255", "eight", "0.1 "] {
            assert!(matches!(eps(text), Err(NotANumber(_))), "{text}");
        }
        for text in ["nan", "inf", "1/nan", "inf/2", "1e300/1e-300"] {
            assert!(matches!(eps(text), Err(NotFinite(_))), "{text}");
        }
        for text in ["-0.1", "-8/255", "8/-255", "-0"] {
            assert!(matches!(eps(text), Err(Negative(_))), "{text}");
        }
        assert_eq!(eps("8/0"), Err(DivisionByZero("8/0".into())));
    }
}
