//! What the images of a batch show.

use burn::tensor::{Int, Tensor, TensorData};
use sat_attack::{Loss, cross_entropy};
use std::ops::Range;

/// A class for each image, or with mixup two and the share of the first.
pub(crate) struct Targets<'a> {
    labels: &'a [usize],
    mixed: Option<Mixed>,
}

#[derive(Clone)]
struct Mixed {
    partner_labels: Vec<usize>,
    weight: f64,
}

impl<'a> Targets<'a> {
    pub(crate) fn of(labels: &'a [usize]) -> Self {
        Self { labels, mixed: None }
    }

    pub(crate) fn mixed(labels: &'a [usize], partner_labels: Vec<usize>, weight: f64) -> Self {
        Self { labels, mixed: Some(Mixed { partner_labels, weight }) }
    }

    /// The class of the larger share of each image.
    pub(crate) fn labels(&self) -> &'a [usize] {
        self.labels
    }

    pub(crate) fn rows(&self, rows: Range<usize>) -> Self {
        let mixed = self.mixed.as_ref().map(|Mixed { partner_labels, weight }| Mixed {
            partner_labels: partner_labels[rows.clone()].to_vec(),
            weight: *weight,
        });
        Self { labels: &self.labels[rows], mixed }
    }

    /// The mean of a loss of labels over the shares.
    pub(crate) fn mean(&self, loss: impl Fn(&[usize]) -> Tensor<1>) -> Tensor<1> {
        match &self.mixed {
            None => loss(self.labels),
            Some(Mixed { partner_labels, weight }) => {
                loss(self.labels) * *weight + loss(partner_labels) * (1.0 - weight)
            }
        }
    }

    /// The cross-entropy that an attack raises.
    pub(crate) fn attacked_loss(&self) -> Loss {
        let Some(Mixed { partner_labels, weight }) = self.mixed.clone() else {
            return Loss::CrossEntropy;
        };
        // Labels count classes, far below i64::MAX.
        let partners: Vec<i64> = partner_labels.into_iter().map(|label| label as i64).collect();
        Loss::custom("mixup-cross-entropy", move |logits, labels| {
            let data = TensorData::new(partners.clone(), [partners.len()]);
            let partners = Tensor::<1, Int>::from_data(data, &labels.device());
            let own = cross_entropy(logits.clone(), labels);
            own * weight + cross_entropy(logits, partners) * (1.0 - weight)
        })
    }
}
