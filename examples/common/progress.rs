//! Progress of a training run, on standard error.

use super::stop::{self, Stopped};
use burn::{
    module::{Module, ModuleDisplay},
    tensor::Device,
};
use indicatif::{ProgressBar, ProgressStyle};
use sat::{
    attack::Classifier,
    train::{self, Checkpoints, Recipe, Start, TrainError, Trained, TrainingData},
};
use std::ops::ControlFlow;

/// Trains as [`train_under_bar`] does, and ends with [`Stopped`] after Ctrl-C.
pub(crate) fn train_with_bar<M: Module + ModuleDisplay + Classifier, D: TrainingData>(
    model: M,
    recipe: &Recipe,
    data: &D,
    device: &Device,
    checkpoints: Option<(&Checkpoints, Start)>,
) -> Result<Trained<M>, Box<dyn std::error::Error>> {
    let observe = |_: &train::Progress| stop::requested();
    let trained = train_under_bar(model, recipe, data, device, checkpoints, observe)?;
    if trained.is_finished() { Ok(trained) } else { Err(Stopped.into()) }
}

/// Trains under a bar, and says when single steps begin to overfit.
pub(crate) fn train_under_bar<M: Module + ModuleDisplay + Classifier, D: TrainingData>(
    model: M,
    recipe: &Recipe,
    data: &D,
    device: &Device,
    checkpoints: Option<(&Checkpoints, Start)>,
    mut observe: impl FnMut(&train::Progress) -> ControlFlow<()>,
) -> Result<Trained<M>, TrainError> {
    let steps = data.len().saturating_sub(recipe.hold_out) / recipe.batch_size;
    let bar = Progress::new(recipe.epochs, steps);
    // None before the first step: a resumed run has epochs behind it.
    let mut epochs = None;
    let trained = train::train(model, recipe, data, device, checkpoints, |progress| {
        let figures = Figures {
            loss: progress.loss,
            clean_accuracy: Some(progress.clean_accuracy),
            robust_accuracy: Some(progress.robust_accuracy),
        };
        bar.step(progress.step, figures);
        let finished = progress.history.len();
        let before = epochs.replace(finished);
        let ends = before.map_or(progress.step_of_epoch == 0, |before| finished > before);
        if let Some(epoch) = progress.history.last().filter(|_| ends) {
            bar.epoch(progress.epoch - 1, figures);
            if epoch.held_out.is_some_and(|held_out| held_out.is_catastrophic_overfitting()) {
                eprintln!("catastrophic overfitting: held-out images withstand FGSM, not PGD-10");
            }
        }
        observe(progress)
    });
    bar.finish();
    trained
}

/// What training has reached, over the last batch or a whole epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Mean loss.
    pub(crate) loss: f64,
    /// Accuracy on clean images, from 0 to 1, where it was measured.
    pub(crate) clean_accuracy: Option<f64>,
    /// Accuracy on attacked images, from 0 to 1, where it was measured.
    pub(crate) robust_accuracy: Option<f64>,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "loss {:.4}", self.loss)?;
        for (name, accuracy) in [("clean", self.clean_accuracy), ("robust", self.robust_accuracy)] {
            if let Some(accuracy) = accuracy {
                write!(f, "  {name} {:.1} %", 100.0 * accuracy)?;
            }
        }
        Ok(())
    }
}

/// A bar over all steps of a run, with one line left behind for each epoch. Where standard error is
/// not a terminal, only the lines.
pub(crate) struct Progress {
    bar: ProgressBar,
    epochs: usize,
}

impl Progress {
    /// Starts the clock of a run.
    pub(crate) fn new(epochs: usize, steps_per_epoch: usize) -> Self {
        let bar = ProgressBar::new((epochs * steps_per_epoch) as u64);
        // The template is a constant: one that fails shows the default bar.
        if let Ok(style) = ProgressStyle::with_template(
            "{bar:30.green/white.dim} {pos}/{len}  {msg}  {elapsed} gone, {eta} to go",
        ) {
            bar.set_style(style.progress_chars("━━─"));
        }
        Self { bar, epochs }
    }

    /// Step number `step` is done, counted from 1 over all epochs.
    pub(crate) fn step(&self, step: usize, figures: Figures) {
        if self.bar.position() == 0 {
            // A resumed run starts further on: time to go is judged from there.
            self.bar.set_position(step as u64 - 1);
            self.bar.reset_eta();
        }
        self.bar.set_message(figures.to_string());
        self.bar.set_position(step as u64);
    }

    /// Leaves a line about epoch number `epoch`, counted from 0.
    pub(crate) fn epoch(&self, epoch: usize, figures: Figures) {
        // Not inside: the bar is locked while it is suspended.
        let seconds = self.bar.elapsed().as_secs();
        self.bar.suspend(|| {
            eprintln!("epoch {}/{}  {figures}  {seconds} s", epoch + 1, self.epochs);
        });
    }

    /// Removes the bar; the lines stay.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_terminal_ends() {
        let figures = Figures { loss: 1.5, clean_accuracy: None, robust_accuracy: None };
        let progress = Progress::new(2, 3);
        for epoch in 0..2 {
            (1..4).for_each(|step| progress.step(3 * epoch + step, figures));
            progress.epoch(epoch, figures);
        }
        assert_eq!(progress.bar.position(), 6);
        progress.finish();
    }

    #[test]
    fn figures_leave_out_what_was_not_measured() {
        let mut figures = Figures { loss: 1.5, clean_accuracy: Some(0.875), robust_accuracy: None };
        assert_eq!(figures.to_string(), "loss 1.5000  clean 87.5 %");
        figures.robust_accuracy = Some(0.5);
        assert_eq!(figures.to_string(), "loss 1.5000  clean 87.5 %  robust 50.0 %");
    }
}
