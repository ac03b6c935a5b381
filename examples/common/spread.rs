//! Figures over seeds.

/// The mean.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sample standard deviation; 0 of one value.
pub(crate) fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt()
}

/// "81.2", or "81.2 ± 0.4" with the deviation over several values, in per cent.
pub(crate) fn percent(mean: f64, deviation: Option<f64>) -> String {
    match deviation {
        None => format!("{:.1}", 100.0 * mean),
        Some(deviation) => format!("{:.1} ± {:.1}", 100.0 * mean, 100.0 * deviation),
    }
}
