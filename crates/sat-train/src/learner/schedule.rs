use crate::{recipe::Recipe, schedule::Schedule};
use burn::optim::{
    LearningRate,
    lr_scheduler::{LrScheduler, LrSchedulerRecord},
};

/// The schedule of a recipe as a scheduler of Burn, which takes one step an update.
#[derive(Clone, Debug)]
pub(super) struct RecipeSchedule {
    schedule: Schedule,
    epochs: f64,
    steps_per_epoch: f64,
    step: usize,
}

const STEP: &str = "step";

impl RecipeSchedule {
    pub(super) fn new(recipe: &Recipe, steps_per_epoch: usize) -> Self {
        Self {
            schedule: recipe.schedule.clone(),
            epochs: recipe.epochs as f64,
            steps_per_epoch: steps_per_epoch as f64,
            step: 0,
        }
    }
}

impl LrScheduler for RecipeSchedule {
    fn step(&mut self) -> LearningRate {
        let lr = self.schedule.lr(self.step as f64 / self.steps_per_epoch, self.epochs);
        self.step += 1;
        lr
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::new().with_scalar(STEP, self.step as u64)
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        if let Some(step) = record.scalar::<u64>(STEP) {
            self.step = step as usize;
        }
    }
}
