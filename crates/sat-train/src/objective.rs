//! What adversarial training minimises.

use crate::recipe::{AttackStart, RecipeError, TrainingAttack};
use burn::tensor::{
    Int, Tensor, TensorData,
    activation::{log_softmax, softmax},
};
use serde::{Deserialize, Serialize};

/// What the weights minimise, given clean images x, adversarial images x' and labels y.
///
/// Where clean and adversarial images both go through the network, each is a batch of its own to
/// BatchNorm: clean first, then adversarial, as in the official code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Objective {
    /// Adversarial training: CE(f(x'), y). Madry et al. 2018, arXiv 1706.06083.
    #[default]
    Adversarial,
    /// TRADES, [`trades_loss`], where x' maximises its second term.
    Trades {
        /// The weight of robustness, at least 0; the paper's choice is 6.
        beta: f64,
    },
    /// MART, [`mart_loss`], where x' maximises the cross-entropy.
    Mart {
        /// The weight of the regularisation, at least 0; the official code's choice is 6, the paper's 5.
        beta: f64,
    },
}

/// Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884): the gradient is taken at
/// w + v, where each weight of more than one axis gets v = gamma |w| g / |g|, with g the gradient of the
/// loss at w and norms over the whole tensor. Costs one forward and backward pass more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perturbation {
    /// The relative size, above 0; 0.01 with adversarial training, 0.005 with TRADES in the paper.
    pub gamma: f64,
}

impl Perturbation {
    pub(crate) fn validate(&self) -> Result<(), RecipeError> {
        let gamma = self.gamma;
        let valid = gamma.is_finite() && gamma > 0.0;
        RecipeError::unless(valid, "weight_perturbation.gamma", gamma, "finite and above 0")
    }
}

impl Objective {
    pub(crate) fn validate(&self, attack: Option<&TrainingAttack>) -> Result<(), RecipeError> {
        let check = RecipeError::unless;
        let beta = match *self {
            Objective::Adversarial => return Ok(()),
            Objective::Trades { beta } | Objective::Mart { beta } => beta,
        };
        let field = "objective.beta";
        check(beta.is_finite() && beta >= 0.0, field, beta, "finite and at least 0")?;
        let Some(attack) = attack else {
            return check(
                false,
                field,
                beta,
                "accompanied by an [attack], which the objective needs",
            );
        };
        let starts_clean = match attack.start {
            AttackStart::Clean => true,
            AttackStart::Uniform { probability } => probability < 1.0,
            AttackStart::Normal { .. } | AttackStart::NFgsm { .. } => false,
        };
        let is_trades = matches!(self, Objective::Trades { .. });
        check(
            !(is_trades && starts_clean),
            field,
            beta,
            "accompanied by an attack.start with noise, such as { kind = \"normal\", std = 0.001 }: \
             the gradient of TRADES is zero at the clean image",
        )
    }
}

/// The mean over the batch of -sum_k q_k ln p_k, where p is the softmax of the logits and q puts
/// 1 - smoothing on the label and spreads `smoothing` over all classes evenly, as PyTorch does.
///
/// `logits` `[n, classes]`, one label a row; the result is `[1]`.
///
/// # Panics
///
/// If the number of labels is not n, or a label is not below the number of classes.
pub fn smoothed_cross_entropy(logits: Tensor<2>, labels: &[usize], smoothing: f64) -> Tensor<1> {
    let labels = column(&logits, labels);
    let log_p = log_softmax(logits, 1);
    let of_label = log_p.clone().gather(1, labels).mean();
    (of_label * (1.0 - smoothing) + log_p.mean() * smoothing).neg()
}

/// TRADES (Zhang et al. 2019, arXiv 1901.08573): CE(z, y) + beta KL(p || p'), means over the batch,
/// where p and p' are the softmax of the clean logits z and the adversarial logits z'.
///
/// Gradients flow through both. `smoothing` is that of [`smoothed_cross_entropy`]; the paper has none.
/// `clean` and `adversarial` are `[n, classes]`, the result is `[1]`.
///
/// # Panics
///
/// As [`smoothed_cross_entropy`], or if the logits have different shapes.
pub fn trades_loss(
    clean: Tensor<2>,
    adversarial: Tensor<2>,
    labels: &[usize],
    beta: f64,
    smoothing: f64,
) -> Tensor<1> {
    let divergence = divergences(clean.clone(), adversarial).mean();
    smoothed_cross_entropy(clean, labels, smoothing) + divergence * beta
}

/// MART (Wang et al. 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified
/// Examples", ICLR), as its official code computes it: the mean over the batch of
///
/// ```text
/// -ln p'_y - ln(1.0001 - max_{k != y} p'_k + 1e-12)
///     + beta (1.0000001 - p_y) sum_k p_k (ln p_k - ln(p'_k + 1e-12))
/// ```
///
/// where p and p' are the softmax of the clean and the adversarial logits. `smoothing` acts on the first
/// term; the paper has none. `clean` and `adversarial` are `[n, classes]`, the result is `[1]`.
///
/// # Panics
///
/// As [`smoothed_cross_entropy`], or if the logits have different shapes.
pub fn mart_loss(
    clean: Tensor<2>,
    adversarial: Tensor<2>,
    labels: &[usize],
    beta: f64,
    smoothing: f64,
) -> Tensor<1> {
    let index = column(&clean, labels);
    let p_adversarial = softmax(adversarial.clone(), 1);
    // Below every probability, so that the label is never the largest.
    let label_out =
        Tensor::<2>::full(index.dims(), -2.0, &index.device()).cast(adversarial.dtype());
    let others = p_adversarial.clone().scatter(
        1,
        index.clone(),
        label_out,
        burn::tensor::IndexingUpdateOp::Add,
    );
    let rival = p_adversarial.clone().gather(1, others.argmax(1));
    let margin = (rival.neg() + (1.0001 + 1e-12)).log().neg().mean();
    let boosted = smoothed_cross_entropy(adversarial, labels, smoothing) + margin;

    let log_p = log_softmax(clean, 1);
    let p = log_p.clone().exp();
    let of_label = p.clone().gather(1, index);
    let divergence = (p * (log_p - (p_adversarial + 1e-12).log())).sum_dim(1);
    boosted + (divergence * (of_label.neg() + 1.0000001)).mean() * beta
}

/// KL(p || p') of each row, `[n, 1]`, p of the first logits, p' of the second.
pub(crate) fn divergences(clean: Tensor<2>, adversarial: Tensor<2>) -> Tensor<2> {
    let (log_p, log_q) = (log_softmax(clean, 1), log_softmax(adversarial, 1));
    (log_p.clone().exp() * (log_p - log_q)).sum_dim(1)
}

/// The labels as `[n, 1]`, beside the logits.
fn column(logits: &Tensor<2>, labels: &[usize]) -> Tensor<2, Int> {
    let [rows, classes] = logits.dims();
    assert_eq!(rows, labels.len(), "one label a row of logits");
    if let Some(label) = labels.iter().find(|label| **label >= classes) {
        panic!("label {label} with {classes} classes");
    }
    // Labels count classes, far below i64::MAX.
    let labels: Vec<i64> = labels.iter().map(|label| *label as i64).collect();
    let device = logits.device().without_autodiff();
    Tensor::from_data(TensorData::new(labels, [rows, 1]), &device)
}
