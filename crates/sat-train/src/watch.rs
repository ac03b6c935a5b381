//! What is watched after each epoch.

use crate::recipe::TrainingAttack;
use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::Tensor,
};
use sat_attack::{Attack, AttackError, Classifier, Fgsm, Pgd, Victim, evaluate};
use sat_core::activation_parameters;
use serde::{Deserialize, Serialize};
use std::{collections::HashSet, ops::ControlFlow};

/// Accuracies, from 0 to 1, and losses on images that are not trained on, at the training's eps and
/// norm, and with the gradient of the model itself.
///
/// A training by single steps can learn to hide its gradient from them: FGSM fails, and PGD succeeds
/// all the better. That is catastrophic overfitting (Wong et al. 2020, arXiv 2001.03994).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Without attack.
    pub clean_accuracy: f64,
    /// Under FGSM, from the clean image.
    pub fgsm_accuracy: f64,
    /// Under PGD-10 with a random start and steps of eps/4.
    pub pgd_accuracy: f64,
    /// Mean cross-entropy without attack, in nats.
    pub clean_loss: f64,
    /// Mean cross-entropy under PGD-10, in nats.
    pub pgd_loss: f64,
}

impl HeldOut {
    /// Whether PGD-10 leaves less than half of what FGSM leaves, and 10 points less at least.
    pub fn is_catastrophic_overfitting(&self) -> bool {
        let Self { fgsm_accuracy, pgd_accuracy, .. } = *self;
        pgd_accuracy < 0.5 * fgsm_accuracy && fgsm_accuracy - pgd_accuracy > 0.1
    }

    /// The figures of images and labels that come batch by batch, once for each attack.
    pub(crate) fn of<M: Module + Classifier, B: IntoIterator<Item = (Tensor<4>, Vec<usize>)>>(
        model: &M,
        attack: &TrainingAttack,
        batches: impl Fn() -> B,
    ) -> Result<Self, AttackError> {
        let victim = Victim::new(model);
        let threat = attack.threat();
        let under = |attack: &dyn Attack| {
            evaluate(&victim, attack, batches(), &threat, |_| ControlFlow::Continue(()))
        };
        let fgsm = under(&Fgsm::default())?;
        let pgd = under(&Pgd::default().steps(10).stop_when_fooled())?;
        Ok(Self {
            clean_accuracy: fgsm.clean_accuracy(),
            fgsm_accuracy: fgsm.robust_accuracy(),
            pgd_accuracy: pgd.robust_accuracy(),
            clean_loss: pgd.clean_ce,
            pgd_loss: pgd.adv_ce,
        })
    }
}

/// The learned parameters of one activation, or of all that share them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnedParameters {
    /// Where in the module tree, with dots between.
    pub site: String,
    /// The numbers, as [`sat_core::Learnable`] names them.
    pub values: Vec<f64>,
}

/// What the activations of a module tree have learned, in its order. Waits for the device.
pub fn learned_parameters<M: Module>(model: &M) -> Vec<LearnedParameters> {
    struct Read {
        wanted: HashSet<ParamId>,
        path: Vec<String>,
        found: Vec<LearnedParameters>,
    }
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.wanted.contains(&param.id) {
                let parents = self.path.len().saturating_sub(1);
                let data = param.val().into_data();
                self.found.push(LearnedParameters {
                    site: self.path[..parents].join("."),
                    values: data.iter::<f64>().collect(),
                });
            }
        }
    }
    let wanted: HashSet<ParamId> = activation_parameters(model).into_iter().collect();
    let mut read = Read { wanted, path: Vec::new(), found: Vec::new() };
    if !read.wanted.is_empty() {
        model.visit(&mut read);
    }
    read.found
}
